"""`remember models` lists what a study can name in short; a study's model is read as it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.model_profiles import load_profiles
from objectives.models.base import TokenRules
from objectives.models.loading import DEFAULT_LOADING, Loading
from study import engine
from study.commands.application import run_application
from study.engine import load_engine
from study.spec import ConfigurationError, StudySpec, load_spec


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_models_are_listed_with_what_their_weights_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.commands.models.results.width", 300)
    assert run_application(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for profile in load_profiles().values():
        (line,) = [line for line in lines if line.split()[:1] == [profile.name]]
        assert profile.hub_id in line
        assert f"{profile.weight_bytes() / 1e9:.1f} GB, {profile.bits} bit" in line
        assert ("gated" in line) == profile.gated


def test_a_narrow_terminal_leaves_every_name_in_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.commands.models.results.width", 80)
    assert run_application(["models"]) == 0
    words = capsys.readouterr().out.split()
    assert set(load_profiles()) <= set(words)


def test_models_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [each["name"] for each in listed] == list(load_profiles())
    (llama,) = [each for each in listed if each["name"] == "llama-3.1-8b"]
    assert llama["weight_bytes"] == 2 * 8_030_261_248
    assert llama["gated"] is True


def _asked_of(monkeypatch: pytest.MonkeyPatch, spec: StudySpec) -> dict[str, Any]:
    """Return the name and all else that a study's model would be loaded with."""
    asked: dict[str, Any] = {}

    def instead(name: str, **named: Any) -> None:
        asked.update(named, name=name)

    monkeypatch.setattr(engine, "load_base_model", instead)
    monkeypatch.setattr(engine, "use_threads", lambda _: None)
    load_engine(spec)
    return asked


def test_all_that_a_study_says_about_its_model_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("study.toml").write_text(
        'model = "qwen3-0.6b"\n'
        'chat_template = "chat.jinja"\n'
        '[tokens]\nend = ["?"]\n'
        '[loading]\nrevision = "v1"\nweights_file = "b.safetensors"\ngptq = "gptqmodel"\n'
        "trust_remote_code = true\npickled_weights = true\n"
        '[engine]\ndevice = "split"\ndtype = "float16"\nmemory_limit = "24GB"\n'
    )
    assert _asked_of(monkeypatch, load_spec(Path("study.toml"), {})) == {
        "name": "qwen3-0.6b",
        "device": "split",
        "dtype": "float16",
        "rules": TokenRules(end=("?",)),
        "loading": Loading(
            revision="v1",
            weights_file="b.safetensors",
            gptq="gptqmodel",
            trust_remote_code=True,
            pickled_weights=True,
        ),
        "memory_limit_bytes": 24 * 10**9,
        "chat_template": "chat.jinja",
    }


def test_a_study_that_says_nothing_leaves_all_to_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _asked_of(monkeypatch, StudySpec()) == {
        "name": "pocket",
        "device": None,
        "dtype": None,
        "rules": TokenRules(),
        "loading": DEFAULT_LOADING,
        "memory_limit_bytes": None,
        "chat_template": None,
    }


def test_a_flag_of_a_part_takes_the_place_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("study.toml").write_text('[loading]\nrevision = "v1"\ntrust_remote_code = true\n')
    spec = load_spec(Path("study.toml"), {"loading.revision": "v2", "engine.device": None})
    assert spec.loading.revision == "v2"
    assert spec.loading.trust_remote_code
    assert load_spec(Path("study.toml"), {"loading.revision": None}).loading.revision == "v1"
    Path("study.toml").write_text('loading = "v1"\n')
    with pytest.raises(ConfigurationError, match="loading: 'v1' is not allowed"):
        load_spec(Path("study.toml"), {"loading.revision": "v2"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--revision", "v2"], "loading.revision: 'v2' is not allowed with 'pocket'"),
        (["--model", "none.gguf"], "model: there is no file 'none.gguf'; check the path"),
        (["--model", "./none"], "model: './none' is not a model folder (no config.json in it)"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_message_and_nothing_is_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_application(["run", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
