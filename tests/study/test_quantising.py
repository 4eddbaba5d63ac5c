"""`remember quantise` writes a checkpoint that any command takes as its model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pocket", "--to", "there"], "to: there exists already; name a folder that does not"),
        (["pocket", "--to", "there/under"], "to: there/under cannot be written: "),
        (["pocket", "--to", "new", "--group-size", "100"], "multiple of group_size = 100"),
        (["nowhere/at-all", "--to", "new"], "nowhere/at-all"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "there").write_text("a file")
    assert run_application(["quantise", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
