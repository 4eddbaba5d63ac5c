"""`remember quantise` writes a checkpoint that any command takes as its model."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from objectives.models.gptq import writing
from objectives.models.gptq.four_bit import FourBitLinear, quantise_round_to_nearest
from study.commands.application import run_application


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_a_checkpoint_is_written_and_its_coarseness_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_application(["quantise", "pocket", "--to", "four", "--layout", "2023"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("four (")
    assert "coarser than GPTQ" in output.err
    names = {path.name for path in (tmp_path / "four").iterdir()}
    assert {"config.json", "llama-4bit-128g.safetensors", "tokenizer.json"} <= names
    settings = json.loads((tmp_path / "four" / "quantize_config.json").read_text())
    assert settings["group_size"] == 128


def test_a_model_is_never_read_in_more_than_the_halves_that_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watch(weight: torch.Tensor, **settings: Any) -> FourBitLinear:
        seen.append(weight.dtype)
        return quantise_round_to_nearest(weight, **settings)

    monkeypatch.setattr(writing, "quantise_round_to_nearest", watch)
    assert run_application(["quantise", "pocket", "--to", "four"]) == 0
    assert seen == [torch.float16] * 4 * 7


def test_what_a_message_names_can_be_said_in_a_study_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(str(files("data") / "pocket"), tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert run_application(["quantise", "./pickled", "--to", "four"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "loading.pickled_weights = true in the study file" in said
    Path("study.toml").write_text("[loading]\npickled_weights = true\n")
    arguments = ["quantise", "./pickled", "--to", "four", "--study", "study.toml"]
    assert run_application(arguments) == 0
    assert (tmp_path / "four" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pocket", "--to", "there"], "to: there exists already; name a folder that does not"),
        (["pocket", "--to", "there/under"], "to: there/under cannot be written: "),
        (
            ["pocket", "--to", "new", "--group-size", "100"],
            "group_size: 100 is not allowed; it must divide 128",
        ),
        (["nowhere/at-all", "--to", "new"], "nowhere/at-all"),
        (
            ["pocket", "--to", "new", "--revision", "v1"],
            "loading.revision: 'v1' is not allowed with 'pocket'",
        ),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "there").write_text("a file")
    assert run_application(["quantise", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
