"""Making judges from what a person wrote, and what is refused with which words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from data.judge_config import EndpointConfig, JudgeConfig
from data.measurements import Answer
from data.recipes import SettingError
from objectives.judges.build import make_judge
from objectives.judges.matcher import Matcher
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model

MakeAnswer = Callable[..., Answer]

_SERVER = EndpointConfig(base_url="http://localhost:1/v1", model="org/judge")


class _Loader:
    """Loads on the CPU and remembers what was asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, name: str) -> BaseModel:
        self.loaded.append(name)
        return load_base_model(name, device="cpu")


def test_every_kind_is_made_with_a_name_that_fits_the_records(make_answer: MakeAnswer) -> None:
    loader = _Loader()
    configs = [
        JudgeConfig(),
        JudgeConfig(kind="model", model="pocket"),
        JudgeConfig(kind="endpoint", endpoint=_SERVER),
        JudgeConfig(kind="cascade", model="pocket"),
        JudgeConfig(kind="cascade", endpoint=_SERVER),
    ]

    judges = [make_judge(config, loader=loader) for config in configs]

    names = [judge.name for judge in judges]
    assert isinstance(judges[0], Matcher)
    assert len(set(names)) == len(configs)
    assert all(len(name) < 200 for name in names)
    assert loader.loaded == ["pocket", "pocket"]
    for judge in (judges[0], judges[3], judges[4]):
        assert judge.judge([make_answer("Brendan Fraser")])[0].label == "correct"
        assert judge.judge([make_answer("")])[0].label == "not_attempted"


def test_a_name_changes_with_server_and_model() -> None:
    servers = [
        _SERVER,
        EndpointConfig(base_url="http://localhost:2/v1", model="org/judge"),
        EndpointConfig(base_url="http://localhost:1/v1", model="other/judge"),
    ]

    names = {
        make_judge(JudgeConfig(kind="cascade", endpoint=server), loader=_Loader()).name
        for server in servers
    }

    assert len(names) == 3


def test_the_matcher_needs_neither_torch_nor_a_client() -> None:
    code = (
        "import sys, objectives.judges.build as b; from data.judge_config import JudgeConfig;"
        "b.make_judge(JudgeConfig(), loader=None);"
        "sys.exit(', '.join({'torch', 'transformers', 'openai'} & set(sys.modules)) or 0)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "oracle"}, "judge.kind: 'oracle' .* one of matcher, model, endpoint, cascade"),
        ({"kind": "model"}, "judge.model: it is missing"),
        ({"kind": "model", "model": "  "}, "judge.model: '  ' is not allowed"),
        (
            {"kind": "model", "model": "m", "endpoint": _SERVER},
            "judge.endpoint: .* asks no server",
        ),
        ({"model": "m"}, "judge.model: 'm' .* leave it out"),
        ({"endpoint": _SERVER}, "judge.endpoint: .* leave it out"),
        ({"kind": "endpoint"}, "judge.endpoint: it is missing"),
        ({"kind": "endpoint", "endpoint": _SERVER, "model": "m"}, "asks no local model"),
        ({"kind": "cascade"}, "neither is given; give exactly one"),
        ({"kind": "cascade", "model": "m", "endpoint": _SERVER}, "both are .* give exactly one"),
    ],
)
def test_contradictions_are_refused_with_a_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        JudgeConfig(**fields)


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("base_url", "localhost:8000/v1", "an address as http://localhost:8000/v1"),
        ("base_url", "ftp://host/v1", "an address"),
        ("base_url", "http://", "an address"),
        ("base_url", "http://host:port/v1", "an address"),
        ("base_url", "http://host/v1?key=x", "without a query"),
        ("base_url", "http://host/v1\n", "an address"),
        ("base_url", "http://[::1/v1", "an address"),
        ("model", " ", "a name that the server knows"),
        ("timeout_seconds", 0.0, "above 0"),
        ("timeout_seconds", float("nan"), "above 0"),
        ("attempts", 0, "from 1 to 20"),
        ("concurrency", 0, "from 1 to 256"),
        ("requests_per_minute", 0, "above 0"),
        ("requests_per_minute", float("inf"), "above 0"),
    ],
)
def test_a_server_out_of_bounds_is_refused(field: str, value: object, bound: str) -> None:
    fields: dict[str, Any] = {"base_url": "http://h/v1", "model": "m", field: value}

    with pytest.raises(SettingError, match=rf"^judge\.endpoint\.{field}: .*{bound}"):
        EndpointConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"key_variable": "sk-proj-abc123"},
        {"base_url": "https://me:sk-proj-abc123@host/v1"},
        {"base_url": "https://me:sk-proj-abc123@host:x/v1"},
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(fields: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="environment variable") as caught:
        EndpointConfig(**{"base_url": "http://h/v1", "model": "m"} | fields)  # type: ignore[arg-type]

    assert "abc123" not in str(caught.value)
