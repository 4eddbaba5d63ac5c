"""Several workers on one machine: where they compute, who starts them, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import study
from objectives.models.machine import devices
from objectives.models.machine.devices import Device
from storage.database import open_storage
from storage.reader import read_sittings, read_study
from study.crew import describe_post, posts_on, read_post
from study.engine import Post
from study.spec import ConfigurationError, EngineSpec, StudySpec
from tests.study.test_interruption import FACTS, STUDY_FILE

CPU = Device(name="cpu", kind="4 threads", total_bytes=None)
GPUS = tuple(Device(name=f"cuda:{index}", kind="a card", total_bytes=2) for index in range(2))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.crew.list_devices", lambda: (*GPUS, CPU))
    monkeypatch.setattr("study.crew.available_cores", lambda: 4)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.crew.list_devices", lambda: (CPU,))
    monkeypatch.setattr("study.crew.available_cores", lambda: 4)


def places(
    workers: int | None, names: str | None, **engine: object
) -> list[tuple[str, int | None]]:
    spec = StudySpec(engine=EngineSpec.model_validate(engine))
    return [(post.device, post.threads) for post in posts_on(spec, workers=workers, devices=names)]


@pytest.mark.usefixtures("two_gpus")
class TestPostsWithGpus:
    def test_every_device_gets_a_worker(self) -> None:
        assert places(None, "all") == [("cuda:0", None), ("cuda:1", None)]
        assert places(None, "cuda:1, cpu") == [("cuda:1", None), ("cpu", 4)]

    def test_so_many_workers_take_the_first_devices(self) -> None:
        assert places(1, None) == [("cuda:0", None)]
        assert places(2, "cuda:0,cuda:1") == [("cuda:0", None), ("cuda:1", None)]

    def test_a_study_on_the_processor_stays_there(self) -> None:
        assert places(2, None, device="cpu") == [("cpu", 2), ("cpu", 2)]

    def test_a_study_on_one_gpu_has_one_worker(self) -> None:
        assert places(None, None, device="cuda:1") == [("cuda:1", None)]
        with pytest.raises(
            ConfigurationError, match="workers: 2 need a device each, and there ar"
        ):
            places(2, None, device="cuda:1")

    @pytest.mark.parametrize(
        ("workers", "names", "message"),
        [
            (3, None, "workers: 3 need a device each, and there are 2: cuda:0, cuda:1"),
            (None, "cuda:7", "devices: cuda:7 is not there; torch can use cuda:0, cuda:1, cpu"),
            (None, " ,", "devices: ' ,' is not there"),
            (3, "all", "workers: 3 does not go with 2 devices"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, workers: int | None, names: str | None, message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            places(workers, names)


@pytest.mark.usefixtures("no_gpu")
class TestPostsWithoutGpus:
    def test_workers_share_the_cores(self) -> None:
        assert places(2, None) == [("cpu", 2), ("cpu", 2)]
        assert places(8, None) == [("cpu", 1)] * 8

    def test_threads_that_the_study_names_are_kept(self) -> None:
        assert places(2, None, threads=3) == [("cpu", 3), ("cpu", 3)]

    def test_all_devices_are_the_processor(self) -> None:
        assert places(None, "all") == [("cpu", 4)]


def test_a_worker_reads_what_it_is_told() -> None:
    spec = StudySpec(name="tiny", storage="postgresql://ada:secret@host/studies")
    engine = EngineSpec(device="cuda:1", threads=2)
    assert read_post(describe_post(spec, engine, workers=3)) == (
        spec,
        Post(engine=engine, workers=3),
    )


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "facts.csv").write_text(FACTS, encoding="utf-8")
    text = STUDY_FILE.replace("trials = 4", "trials = 8")
    text = text.replace("slots = 2", "slots = 1").replace("epochs = [3, 8]", "epochs = [20, 40]")
    (folder / "study.toml").write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(str(study.__file__)).parents[1])}
    environment.pop("OPTUNA_STORAGE", None)
    return subprocess.Popen(
        [sys.executable, "-m", "study", "run", "facts.csv", "--study", "study.toml", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_workers_share_a_study_and_stop_together(tmp_path: Path) -> None:
    with start(tmp_path, "--workers", "2") as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("worker 2: asking"):
                    break
            process.send_signal(signal.SIGINT)
            asked = time.monotonic()
            _, said = process.communicate(timeout=60)
            assert time.monotonic() - asked < 10
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGINT, said
    assert "every running trial is saved" in said
    with start(tmp_path, "--workers", "2") as process:
        out, said = process.communicate(timeout=240)
    assert process.returncode in (0, 3), said
    assert "report: runs/tiny/report.html" in out
    with closing(open_storage(f"sqlite:///{tmp_path / 'runs' / 'remember.db'}")) as storage:
        record, sittings = read_study(storage, "tiny"), read_sittings(storage, "tiny")
    assert [trial.asked_index for trial in record.trials] == [*range(8)]
    assert all(trial.state != "running" for trial in record.trials)
    # One of the first two was stopped before it had come so far as to sit down.
    assert len({sitting.owner for sitting in sittings}) in (3, 4)
    assert all(sitting.ended_at_seconds is not None for sitting in sittings)
    assert all(sitting.state and sitting.state.memory_bytes for sitting in sittings)


def test_the_devices_of_this_machine_end_with_the_processor() -> None:
    assert devices.list_devices()[-1].name == "cpu"
