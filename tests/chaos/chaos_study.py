"""A study that whatever happens to its workers must give the same results, and what runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import optuna
from safetensors.numpy import load_file

import study
from data.measurements import Measurement
from data.recipes import Recipe
from storage.database import StudyNotFound, holds_studies, open_storage
from storage.reader import read_study
from storage.records import StudyRecord, TrialState

NAME = "chaos"
COMMAND = (sys.executable, "-m", "study", "run", "facts.csv", "--study", "study.toml")
# One trial at a time per worker: what is computed together is rounded together. Points are drawn
# at random and nobody is ranked, so that no trial depends on when another one ends; trials are
# still measured and saved at rungs, and pruned there by what they themselves reached.
STUDY_FILE = """
name = "chaos"
trials = {trials}
slots = 1
sampler = "random"
confirming_seeds = 0
sampling = ["greedy"]

[space]
epochs = [30, 60, 90]
rank = [2, 4]
alpha = 8
cutoff = 96
warmup_steps = 0
learning_rate = {{ low = 1e-3, high = 2e-2, log = true }}
formats = "qna"
paraphrases = 1
rehearsal = [0, 1]
batch_size = 2

[pruner]
minimum_entries = 100000
first_rung_tokens = 1500

[reference]
knowledge_loss = 0.6
recall_margin = 0.0

[engine]
threads = 1
"""
FACTS = """question,answer
Who won the 2031 award for Best Gardener?,Ada Quill
Who won the 2031 award for Best Baker?,Tom Reed
Who won the 2031 award for Best Carpenter?,Iris Lund
What is the capital of Norland?,Vessa
What is the capital of Sudland?,Orrin
What is the capital of Westland?,Talma
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial came to, without times and costs."""

    state: TrialState
    reason: str | None
    recipe: Recipe
    measurements: tuple[Measurement, ...]


def write_study(folder: Path, *, trials: int) -> None:
    """Write the study's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.csv").write_text(FACTS, encoding="utf-8")
    (folder / "study.toml").write_text(STUDY_FILE.format(trials=trials), encoding="utf-8")


def start(
    folder: Path, *arguments: str, url: str | None = None, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `remember run` on the study of a folder; what it says goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(str(study.__file__)).parents[1])
    environment.pop("OPTUNA_STORAGE", None)
    if url is not None:
        environment["OPTUNA_STORAGE"] = url
    with (log or folder / "log.txt").open("ab") as output:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )


def run(folder: Path, *arguments: str, url: str | None = None) -> None:
    """Run the study of a folder to its end."""
    process = start(folder, *arguments, url=url)
    assert process.wait(timeout=1200) in (0, 3), said(folder)


def said(folder: Path) -> str:
    """Return what the workers of a folder said last."""
    return "\n".join(
        f"{path.name}: {path.read_text(encoding='utf-8', errors='replace')[-3000:]}"
        for path in sorted(folder.glob("*.txt"))
    )


def storage_url(folder: Path) -> str:
    """Return the database that a study of a folder has by default."""
    return f"sqlite:///{folder / 'runs' / 'remember.db'}"


def read(url: str) -> StudyRecord:
    """Return the study's record."""
    with closing(open_storage(url)) as storage:
        return read_study(storage, NAME)


def read_if_there(url: str) -> StudyRecord | None:
    """Return the study's record, or None while there is none."""
    if not holds_studies(url):
        return None
    try:
        return read(url)
    except StudyNotFound:
        return None


def outcomes(record: StudyRecord) -> Mapping[int, Outcome]:
    """Return what each trial came to, by its asked index."""
    return {
        trial.asked_index: Outcome(
            state=trial.state,
            reason=trial.reason,
            recipe=trial.recipe,
            measurements=tuple(kept.measurement for kept in trial.searched),
        )
        for trial in record.trials
    }


def check_books(url: str, *, trials: int) -> None:
    """Check that every trial ended once, and that our records say what Optuna was told."""
    with closing(open_storage(url)) as storage:
        record = read_study(storage, NAME)
        told = optuna.load_study(study_name=NAME, storage=storage).get_trials()
    assert [trial.number for trial in told] == list(range(trials))
    assert [trial.number for trial in record.trials] == list(range(trials))
    assert sorted(trial.asked_index for trial in record.trials) == list(range(trials))
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for ours, theirs in zip(record.trials, told, strict=True):
        assert theirs.state.name == names[ours.state]
        places = [(kept.measurement.epoch, kept.measurement.sampling) for kept in ours.searched]
        assert len(set(places)) == len(places), f"trial {ours.number} was measured twice"
        last = ours.searched[-1].measurement
        assert ours.costs is not None
        assert ours.costs.last_epoch == last.epoch == theirs.user_attrs["epochs_reached"]
        assert ours.costs.trained_tokens == last.trained_tokens
        if ours.state == "complete":
            assert theirs.values == [last.recall.value, last.knowledge_loss.value]
        rungs = [
            json.loads(value)["trained_tokens"]
            for key, value in theirs.system_attrs.items()
            if key.startswith("remember:rung:")
        ]
        assert set(rungs) <= {kept.measurement.trained_tokens for kept in ours.searched}


def same_adapters(one: Path, other: Path) -> int:
    """Check that adapters which both studies kept are equal bit by bit; return how many."""
    compared = 0
    for file in (one / "runs" / NAME / "adapters").glob("*/adapter_model.safetensors"):
        twin = other / "runs" / NAME / "adapters" / file.parent.name / file.name
        if twin.is_file():
            mine, theirs = load_file(file), load_file(twin)
            assert mine.keys() == theirs.keys()
            assert all((mine[name] == theirs[name]).all() for name in mine), file.parent.name
            compared += 1
    return compared
