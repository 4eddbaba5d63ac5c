"""A dry run says what a study would take, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, BloomConfig

from objectives.bank import probing
from objectives.models import sources
from objectives.models.machine.devices import Device
from objectives.paces import AskingPace, measure_asking_pace
from study import planning
from study.commands import dry_run
from study.commands.application import DONE, USAGE, run_application
from study.planned_work import count_rungs
from study.planning import MemoryPlan
from study.pruning import Rungs
from study.spec import EngineSpec
from tests.study.tiny_study import FACTS, STUDY_FILE


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    (tmp_path / "facts.csv").write_text(FACTS)
    (tmp_path / "study.toml").write_text(STUDY_FILE)


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Return what a dry run of the tiny study prints as JSON."""
    arguments = ["run", "facts.csv", "--study", "study.toml", "--dry-run", "--json", *flags]
    assert run_application(arguments) == DONE
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert run_application(["run", "facts.csv", "--study", "study.toml", *flags]) == USAGE
    return " ".join(capsys.readouterr().err.split())


def test_it_says_what_the_study_would_take_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.rglob("*"))
    planned = plan(capsys)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (planned["model"], planned["parameters"]) == ("pocket", 1_049_728)
    assert (planned["trials"], planned["facts"], planned["workers"]) == (3, 2, 1)
    memory, time = planned["memory"], planned["time"]
    assert memory["slots"] == 2, "as the study file says"
    assert memory["weights_bytes"] == 4_198_912
    # Rank 4 of all modules: 10,240 weights for each rank, four tensors of them in fp32.
    assert memory["adapter_bytes"] == 16 * 4 * 10_240
    assert memory["training_bytes"] == memory["weights_bytes"] + 2 * memory["slot_bytes"]
    assert memory["limit_bytes"] is None
    assert memory["peak_bytes"] is None
    parts = [time["train_seconds"], time["ask_seconds"], time["judge_seconds"]]
    assert all(part > 0 for part in parts)
    assert time["total_seconds"] == pytest.approx(sum(parts))


def test_it_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "facts.csv", "--study", "study.toml", "--dry-run"]
    assert run_application(arguments) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "tiny: nothing is trained or written" in said
    assert "pocket, 1.0 million parameters, float32, on cpu" in said
    assert "4.2 MB for the weights" in said
    assert "time to train" in said
    assert "at most about" in said
    assert "within a factor of two" in said


def test_a_model_that_is_not_here_is_planned_for_by_its_shape(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: None)
    planned = plan(capsys, "--model", "llama-13b-gptq")
    assert planned["parameters"] == 13_015_864_320
    assert planned["precision"].startswith("4 bits in groups of 128")
    assert 7.2e9 < planned["memory"]["weights_bytes"] < 8e9, "head and embeddings dense"
    assert planned["time"] == {
        "train_seconds": None,
        "ask_seconds": None,
        "judge_seconds": None,
        "total_seconds": None,
    }
    assert "it is not on this machine" in planned["notes"][0]
    assert run_application(["run", "facts.csv", "--dry-run", "--model", "llama-13b-gptq"]) == DONE
    assert "not measured" in capsys.readouterr().out


def test_a_model_of_which_nothing_is_known_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nto load this file")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    said = refusal(capsys, "--dry-run", "--model", "nobody/nothing")
    assert "model: 'nobody/nothing' cannot be planned for" in said
    assert "couldn't connect to the hub; name a folder" in said
    said = refusal(capsys, "--dry-run", "--model", "qwen3-06b")
    assert "couldn't connect to the hub; did you mean 'qwen3-0.6b'?" in said


@pytest.mark.parametrize("name", ["a/b/c", "two words"])
def test_what_is_no_name_of_a_repository_is_refused(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert f"model: '{name}' cannot be planned for" in refusal(
        capsys, "--dry-run", "--model", name
    )


def test_a_model_that_does_not_say_how_much_it_reads_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=256).save_pretrained(
        tmp_path / "bloom"
    )
    monkeypatch.setattr(planning, "_fits", lambda *_: False)
    said = refusal(capsys, "--dry-run", "--model", "./bloom")
    assert "does not say how many tokens it can read; fetch the whole model" in said


def test_memory_that_runs_out_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(planning, "probe", fill)
    said = refusal(capsys, "--dry-run", "--slots", "1")
    assert "memory: it ran out while a single adapter of pocket was trained" in said
    assert "end what else uses the device, or set gradient_checkpointing = true" in said


def test_what_gpus_have_no_room_for_may_wait_in_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = tuple(Device(name=f"cuda:{n}", kind="x", total_bytes=12 * 10**9) for n in range(2))
    monkeypatch.setattr(planning, "list_devices", lambda: cards)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 * 10**9))
    split = EngineSpec(device="split", memory_limit="10GB")
    assert planning._room(split, workers=1) == (2 * 10 + 64) * 10**9
    assert planning._room(EngineSpec(device="cuda:1"), workers=1) == 12 * 10**9


def test_a_split_model_is_planned_for_on_all_devices_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tuple(Device(name=f"cuda:{n}", kind="x", total_bytes=12 * 10**9) for n in range(2))
    monkeypatch.setattr(planning, "list_devices", lambda: cards)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8 * 10**9))
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: None)
    study = Path("study.toml")
    study.write_text(STUDY_FILE + '\n[engine]\ndevice = "split"\nmemory_limit = "10GB"\n')
    flags = ("--model", "llama-13b-gptq")
    memory = plan(capsys, *flags)["memory"]
    assert (memory["is_spread"], memory["limit_bytes"]) == (True, (2 * 10 + 8) * 10**9)
    arguments = ["run", "facts.csv", "--study", "study.toml", "--dry-run", *flags]
    assert run_application(arguments) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "28 GB of all GPUs and main memory together" in said
    # Of a third of that memory, no part of which anybody set.
    study.write_text(STUDY_FILE + '\n[engine]\ndevice = "split"\nmemory_limit = "1GB"\n')
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=4 * 10**9))
    assert "device: its memory, 6 GB, does not suffice" in refusal(capsys, "--dry-run", *flags)


@pytest.mark.parametrize(
    ("is_spread", "said"),
    [
        (False, ("; measured here: 3.0 GB", "8.0 GB of the device")),
        (True, ("; measured here, on the fullest GPU: 3.0 GB", "8.0 GB of all GPUs and main")),
    ],
)
def test_what_was_measured_is_told_of_the_device_that_it_is_of(
    is_spread: bool, said: tuple[str, ...]
) -> None:
    giga = 10**9
    memory = MemoryPlan(
        weights=giga,
        adapter=giga,
        slot=giga,
        row=giga,
        slots=1,
        rows=1,
        training=2 * giga,
        asking=2 * giga,
        limit=8 * giga,
        is_spread=is_spread,
        peak=3 * giga,
    )
    assert said[0] in dry_run._say_training(memory)
    assert said[1] in dry_run._say_limit(memory)


def test_asking_is_tried_out_as_the_study_would_train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def watch(*arguments: Any, gradient_checkpointing: bool) -> AskingPace:
        asked.append(gradient_checkpointing)
        return measure_asking_pace(*arguments, gradient_checkpointing=gradient_checkpointing)

    monkeypatch.setattr(planning, "measure_asking_pace", watch)
    with Path("study.toml").open("a") as file:
        file.write("\n[engine]\ngradient_checkpointing = true\n")
    plan(capsys)
    assert asked == [True]


def test_a_wrong_study_is_as_wrong_in_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert "trials: 0 is not allowed" in refusal(capsys, "--dry-run", "--trials", "0")
    assert run_application(["run", "none.csv", "--dry-run"]) == USAGE
    assert "none.csv" in capsys.readouterr().err


def test_several_workers_share_the_time_and_a_processors_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = plan(capsys, "--workers", "2", "--memory-limit", "1GB")
    assert planned["workers"] == 2
    assert planned["memory"]["limit_bytes"] == 500_000_000
    assert any("cannot be enforced" in note for note in planned["notes"])


@pytest.mark.parametrize("flag", [["--dry-run"], []])
def test_a_limit_below_the_weights_and_one_adapter_says_what_is_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: list[str]
) -> None:
    said = refusal(capsys, "--memory-limit", "5MB", *flag)
    assert "memory_limit: 0.005 GB is not allowed; it must be at least 0.00" in said
    assert "0.0042 GB for the weights" in said
    assert "What would fit: " in said
    assert not (tmp_path / "runs").exists()


def test_a_limit_bounds_the_adapters_that_train_at_once_on_a_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(capsys, "--memory-limit", "10MB", "--slots", "64")
    assert "slots: 64 is not allowed; within a memory_limit of 0.01 GB it must be at most " in said
    most = int(said.rpartition("at most ")[2].rstrip("."))
    (Path("study.toml")).write_text(STUDY_FILE.replace("slots = 2", ""))
    # However much faster more were, no more than have room are tried.
    seconds = iter(0.5**number for number in range(10))

    def probe(base: object, recipe: object, texts: object, slots: int, _: bool) -> object:
        return probing.Probed(slots=slots, seconds_per_token=next(seconds), peak_bytes=None)

    monkeypatch.setattr(probing, "probe", probe)
    planned = plan(capsys, "--trials", "640", "--memory-limit", "10MB")
    assert planned["memory"]["slots"] == 2 ** (most.bit_length() - 1)
    assert planned["memory"]["training_bytes"] <= 10_000_000


def test_a_limit_that_is_no_size_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--memory-limit", "a lot")
    assert "engine.memory_limit: 'a lot' is not allowed" in said


@given(epochs=st.integers(1, 40), tokens=st.integers(1, 10**5), first=st.integers(1, 10**5))
def test_rungs_are_counted_as_a_trial_comes_to_them(epochs: int, tokens: int, first: int) -> None:
    rungs = Rungs(first_rung_tokens=first)
    done = measured = 0
    for epoch in range(1, epochs):
        if rungs.rungs_reached(epoch * tokens) > done:
            done = rungs.rungs_reached(epoch * tokens)
            measured += 1
    assert count_rungs(rungs, epochs, tokens) == measured
    assert count_rungs(None, epochs, tokens) == 0
