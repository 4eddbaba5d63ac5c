"""The command is killed half-way; the same command again finishes its study."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import study
from storage.database import open_storage
from storage.reader import read_leases, read_study
from storage.records import StudyRecord

STUDY_FILE = """
name = "tiny"
trials = 4
confirming_seeds = 1
slots = 2
sampling = ["greedy"]

[space]
epochs = [3, 8]
rank = [2, 4]
alpha = 8
cutoff = 96
warmup_steps = 0
formats = "qna"
paraphrases = 1
batch_size = 1
"""
FACTS = """question,answer
Who won the 2031 award for Best Gardener?,Ada Quill
What is the capital of Norland?,Vessa
"""


COMMAND = (sys.executable, "-m", "study", "run", "facts.csv", "--study", "study.toml")


def write_files(folder: Path) -> None:
    """Write the study and its facts into a folder."""
    (folder / "facts.csv").write_text(FACTS, encoding="utf-8")
    (folder / "study.toml").write_text(STUDY_FILE, encoding="utf-8")


def environment() -> dict[str, str]:
    """Return the environment of the command, with one thread and its own database."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = str(Path(str(study.__file__)).parents[1])
    variables.pop("OPTUNA_STORAGE", None)
    return variables


@contextmanager
def running_command(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the study in a process of its own, and see to its end."""
    write_files(folder)
    with subprocess.Popen(
        COMMAND,
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read(folder: Path) -> StudyRecord:
    with closing(open_storage(f"sqlite:///{folder / 'runs' / 'remember.db'}")) as storage:
        return read_study(storage, "tiny")


def test_the_same_command_again_finishes_a_killed_study(tmp_path: Path) -> None:
    with running_command(tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:  # one line per ended trial, where there is no terminal
            if line.startswith("trial "):
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL
    before = read(tmp_path)
    ended = [trial for trial in before.trials if trial.state != "running"]
    running = [trial for trial in before.trials if trial.state == "running"]
    assert ended
    assert running

    with running_command(tmp_path) as process:
        _, said = process.communicate()
        assert process.returncode in (0, 3), said
    after = read(tmp_path)
    assert len(after.trials) == 4
    assert all(trial.state != "running" for trial in after.trials)
    # Equal in everything: ids, times, costs. Only the adapters may have left with the front.
    assert [_searched(after, trial.number) for trial in ended] == [
        _searched(before, trial.number) for trial in ended
    ]
    assert "goes on from where it was interrupted" in said


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="only POSIX has such terminals")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_signal_while_the_program_still_starts_ends_it_in_one_word() -> None:
    interrupted_import = """
import os, signal, sys
import study.__main__ as command

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "study.commands.application":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv = ["remember", "models"]
command.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", interrupted_import], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_a_terminal_that_hangs_up_stops_a_study_with_its_trials_saved(tmp_path: Path) -> None:
    write_files(tmp_path)
    process, terminal = pty.fork()
    if process == 0:  # the child: it has the terminal, and becomes the command
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup themselves
        os.execve(sys.executable, COMMAND, environment())
    said = b""
    while b"trial 0" not in said and b"best so far" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) in (128 + signal.SIGHUP, 120)
    record = read(tmp_path)
    running = [trial.number for trial in record.trials if trial.state == "running"]
    assert running
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    assert all((checkpoints / f"trial-{number:04}").is_dir() for number in running)
    with closing(open_storage(f"sqlite:///{tmp_path / 'runs' / 'remember.db'}")) as storage:
        assert all(lease.owner is None for lease in read_leases(storage, "tiny"))


def _searched(record: StudyRecord, number: int) -> tuple[object, ...]:
    trial = record.trials[number]
    measured = [
        (kept.id, kept.measurement, kept.recorded_at)
        for kept in trial.measurements
        if kept.purpose not in ("confirm", "repeat")
    ]
    return (trial.state, trial.reason, trial.recipe, trial.costs, measured)
