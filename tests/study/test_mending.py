"""`remember doctor` finds each kind of damage, explains it, and mends it for good."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.durable_files import unfinished_name
from storage.database import StudyStorage, open_storage
from storage.leases import Lease, LeaseBook
from storage.reader import list_studies, read_study
from storage.recorder import Recorder
from storage.records import Costs, TrialRecord
from study.commands.application import run_application
from study.mending import describe_workers, examine, workers_at
from study.place import Place, open_place
from study.presence import Presence
from tests.storage.postgresql_server import fresh_database, running_postgresql
from tests.study.dashboard_study import NAME, StudyWriter, build_study

OTHER = "elsewhere:1:boot"  # of a host that this machine cannot look at
ADAPTER = "trial-0000-epoch-0004"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A study that can be damaged, and the doctor for it."""

    place: Place
    storage: StudyStorage
    capsys: pytest.CaptureFixture[str]

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=NAME, storage=self.storage)

    def trial(self, number: int) -> TrialRecord:
        return read_study(self.storage, NAME).trials[number]

    def work(self) -> AbstractContextManager[Presence]:
        recorder = Recorder(self.storage, NAME)
        return Presence(self.storage, recorder, NAME, device="cpu", slots=1)

    def doctor(self, *arguments: str) -> tuple[int, list[str]]:
        """Return the exit code and what is said of studies, one entry a line."""
        code = run_application(["doctor", *arguments])
        out = self.capsys.readouterr().out
        kinds = ("found: ", "note: ", "mended: ", "not mended: ", "problem: ")
        return code, [line for line in out.splitlines() if line.startswith(kinds)]

    def expect(self, *said: str) -> None:
        """Check that one thing is found and explained, mended when asked, and then is gone."""
        code, lines = self.doctor()
        (found,) = [line for line in lines if line.startswith("found: ")]
        assert code == 1
        assert f"study {NAME}: " in found
        for part in said:
            assert part in found
        assert self.doctor() == (code, lines)  # looking changes nothing
        code, lines = self.doctor("--mend")
        assert code == 0
        assert found.replace("found: ", "mended: ") in lines
        code, lines = self.doctor()
        assert code == 0
        assert [line for line in lines if not line.startswith("note: ")] == []

    def expect_note(self, *said: str) -> None:
        """Check that one thing is told and that nothing can be mended."""
        for arguments in ([], ["--mend"], []):
            code, lines = self.doctor(*arguments)
            assert code == 0
            (note,) = lines
            assert note.startswith(f"note: study {NAME}: ")
            for part in said:
                assert part in note


@pytest.fixture
def patient(capsys: pytest.CaptureFixture[str]) -> Iterator[Patient]:
    """Return a study without damage: two trials complete, one pruned and two failed."""
    with undamaged(capsys) as healthy:
        yield healthy


@contextmanager
def undamaged(capsys: pytest.CaptureFixture[str], url: str | None = None) -> Iterator[Patient]:
    """Build the study, and end the last trial, which it is built with running."""
    place = replace(build_study(Path("runs"), url), folder=Path("runs") / NAME)
    with closing(open_place(place)) as storage:
        with storage.begin_write() as session, session.begin():
            session.execute(text("UPDATE remember_leases SET owner = NULL"))
        healthy = Patient(place=place, storage=storage, capsys=capsys)
        healthy.study.tell(4, state=TrialState.FAIL)
        with held_elsewhere(healthy, 4) as lease:
            Recorder(storage, NAME).record_trial_ended(
                lease, state="failed", costs=costs(healthy), reason="it was made to"
            )
        place.adapters.mkdir(parents=True)
        yield healthy


@contextmanager
def held_elsewhere(patient: Patient, number: int) -> Iterator[Lease]:
    leases = LeaseBook(patient.storage)
    lease = leases.acquire(NAME, number, owner=OTHER, seconds=60)
    assert lease is not None
    yield lease
    leases.release(lease)


def costs(patient: Patient) -> Costs:
    costs = patient.trial(0).costs
    assert costs is not None
    return costs


def begin(patient: Patient) -> int:
    """Begin another trial as a worker does that then dies; return its number."""
    trial, lease, _ = StudyWriter(patient.storage, patient.place).begin()
    LeaseBook(patient.storage).release(lease)
    return trial.number


def checkpoint(place: Place, number: int) -> Path:
    folder = place.checkpoints / f"trial-{number:04d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"weights")
    return folder


def keep_adapter(patient: Patient, folder: Path | None = None) -> Path:
    """Record that the adapter of trial 0 is kept, by default where a worker would put it."""
    folder = folder or patient.place.adapters.absolute() / ADAPTER
    kept = next(m for m in patient.trial(0).measurements if m.purpose == "final")
    Recorder(patient.storage, NAME).set_adapter(kept.id, str(folder))
    return folder


def kept_adapters(patient: Patient) -> list[str | None]:
    return [m.adapter for m in patient.trial(0).measurements if m.purpose == "final"]


def test_a_study_without_damage_gets_no_word(patient: Patient) -> None:
    keep_adapter(patient).mkdir()
    assert patient.doctor() == (0, [])
    assert patient.doctor("--name", NAME, "--mend") == (0, [])


def test_an_end_that_was_recorded_but_not_told_is_told(patient: Patient) -> None:
    number = begin(patient)
    final = next(m for m in patient.trial(0).measurements if m.purpose == "final")
    recorder = Recorder(patient.storage, NAME)
    with held_elsewhere(patient, number) as lease:
        recorder.record_measurement(lease, final.measurement, [], purpose="final")
        recorder.record_trial_ended(lease, state="complete", costs=costs(patient))
    patient.expect(f"trial {number} is complete by our records", "before it told Optuna so")
    told = patient.study.trials[number]
    assert (told.state, told.values) == (TrialState.COMPLETE, [0.9, 0.1])


def test_what_others_told_is_closed_and_its_checkpoint_goes_too(patient: Patient) -> None:
    number = begin(patient)
    left = checkpoint(patient.place, number)
    patient.study.tell(number, state=TrialState.FAIL)
    patient.expect(
        f"trial {number} is failed in Optuna, told by somebody else", "closed as failed"
    )
    trial = patient.trial(number)
    assert (trial.state, trial.reason) == (
        "failed",
        "it was told by somebody else than its worker",
    )
    assert not left.exists()


def test_a_running_trial_that_nobody_is_at_is_only_told(patient: Patient) -> None:
    saved, unsaved = begin(patient), begin(patient)
    checkpoint(patient.place, saved)
    patient.expect_note(
        f"running trials that no worker is at: {saved} (from its checkpoint), {unsaved} (from the "
        "beginning)",
        "`remember worker` goes on with them",
    )
    assert (patient.place.checkpoints / f"trial-{saved:04d}").is_dir()
    assert patient.study.trials[saved].state == TrialState.RUNNING


def test_a_running_trial_that_another_machine_holds_is_fine(patient: Patient) -> None:
    with held_elsewhere(patient, begin(patient)):
        assert patient.doctor() == (0, [])


def test_a_trial_that_a_person_added_is_only_told(patient: Patient) -> None:
    patient.study.tell(patient.study.ask(), values=(0.5, 0.1))
    patient.expect_note("trial 5 is complete in Optuna and was never begun by a worker", "by hand")


def test_a_study_that_was_deleted_in_optuna_is_deleted_here_too(patient: Patient) -> None:
    keep_adapter(patient).mkdir()
    optuna.delete_study(study_name=NAME, storage=patient.storage)
    patient.expect("it was deleted in Optuna", f"files in runs/{NAME} stay")
    assert list_studies(patient.storage) == ()
    assert (patient.place.adapters / ADAPTER).is_dir()


def test_a_study_that_was_deleted_in_optuna_and_made_again_is_told(patient: Patient) -> None:
    shutil.rmtree(patient.place.artifacts)
    optuna.delete_study(study_name=NAME, storage=patient.storage)
    optuna.create_study(
        study_name=NAME, storage=patient.storage, directions=["maximize", "minimize"]
    )
    patient.expect_note("Optuna knows nothing of trials 0, 1, 2, 3, 4", "`remember delete`")


def test_the_checkpoint_of_an_ended_trial_is_removed(patient: Patient) -> None:
    folder = checkpoint(patient.place, 1)
    unfinished_name(folder / "checkpoint.safetensors").write_bytes(b"half")
    patient.expect(f"{folder} is the checkpoint of a trial that has ended")
    assert not folder.exists()


def test_what_was_being_written_is_removed_and_what_people_put_there_is_not(
    patient: Patient,
) -> None:
    folder = checkpoint(patient.place, begin(patient))
    half = unfinished_name(folder / "checkpoint.safetensors")
    half.write_bytes(b"half")
    (patient.place.adapters / ".DS_Store").write_bytes(b"a desktop's")
    (patient.place.adapters / "trial-0000-epoch-0004-copy").mkdir()
    (patient.place.adapters / "my best one").mkdir()
    patient.expect(f"{half} was being written when its worker died")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors"]
    assert len(list(patient.place.adapters.iterdir())) == 3


def test_a_half_written_adapter_is_removed(patient: Patient) -> None:
    half = unfinished_name(patient.place.adapters / ADAPTER)
    half.mkdir()
    (half / "adapter_config.json").write_text("{}", encoding="utf-8")
    patient.expect(f"{half} was being written")
    assert not half.exists()


def test_an_adapter_whose_files_are_gone_is_forgotten(patient: Patient) -> None:
    folder = keep_adapter(patient)
    patient.expect(
        f"the adapter of trial 0 after 4 epochs is not at {folder}", "neither asked nor exported"
    )
    assert kept_adapters(patient) == [None]


def test_an_adapter_that_moved_with_its_study_is_found_again(patient: Patient) -> None:
    keep_adapter(patient, Path("/once/runs/shown/adapters") / ADAPTER)
    here = patient.place.adapters.absolute() / ADAPTER
    here.mkdir()
    patient.expect(f"is at {here} and not, as recorded, at /once/runs")
    assert kept_adapters(patient) == [str(here)]
    assert here.is_dir()


def test_an_adapter_that_the_study_does_not_keep_is_removed(patient: Patient) -> None:
    keep_adapter(patient).mkdir()
    left = patient.place.adapters / "trial-0003-epoch-0002"
    left.mkdir()
    patient.expect(f"{left} is an adapter that the study does not keep")
    assert [path.name for path in patient.place.adapters.iterdir()] == [ADAPTER]


def test_an_artifact_without_its_file_is_forgotten(patient: Patient) -> None:
    zipped = [p for p in patient.place.artifacts.iterdir() if p.stat().st_size > 10_000]
    zipped[0].unlink()
    patient.expect("artifact adapter-trial-0000-epoch-0004.zip of trial 0 is listed in Optuna")


def test_a_file_that_no_study_lists_is_removed(patient: Patient) -> None:
    before = sorted(patient.place.artifacts.iterdir())
    stray = patient.place.artifacts / "0f0f0f0f-0000-4000-8000-000000000000"
    stray.write_bytes(b"nobody's")
    patient.expect(f"{stray} is an artifact's file that no study of this database lists")
    assert sorted(patient.place.artifacts.iterdir()) == before


def test_what_another_machine_may_have_is_not_forgotten(patient: Patient) -> None:
    with patient.storage.begin_write() as session, session.begin():
        session.execute(
            text(
                "INSERT INTO remember_sittings (study, owner, device, began_at_seconds, "
                "seen_at_seconds, slots, ended_at_seconds) VALUES (:study, :owner, 'cpu', 1, 2, "
                "1, 2)"
            ),
            {"study": NAME, "owner": OTHER},
        )
    folder = keep_adapter(patient)
    patient.expect_note(f"is not at {folder}", "Workers on elsewhere were at the study as well")
    assert kept_adapters(patient) == [str(folder)]
    shutil.rmtree(patient.place.artifacts)
    code, notes = patient.doctor("--mend")
    assert code == 0
    assert sum("is listed in Optuna, but its file is not" in note for note in notes) == 4


def test_without_the_studys_folder_its_files_are_left_alone(patient: Patient) -> None:
    folder = keep_adapter(patient)
    shutil.move(patient.place.folder, "moved")
    patient.expect_note(f"its folder runs/{NAME} is not here", "name with --out where it lies")
    assert kept_adapters(patient) == [str(folder)]


def test_while_a_worker_is_there_nothing_of_it_is_touched(patient: Patient) -> None:
    number = begin(patient)
    running, ended = checkpoint(patient.place, number), checkpoint(patient.place, 1)
    half = unfinished_name(running / "checkpoint.safetensors")
    half.write_bytes(b"half")
    with patient.work() as presence:
        assert presence.acquire(number) is not None
        patient.study.tell(number, state=TrialState.FAIL)
        patient.expect_note("workers are at it (", "its files are looked at when they have left")
        assert half.exists()
        assert ended.exists()
        assert patient.trial(number).state == "running"
    code, lines = patient.doctor("--mend")
    assert (code, len(lines)) == (0, 3)  # the trial, its half-written file, and that of trial 1
    assert not running.exists()
    assert not ended.exists()
    assert patient.doctor() == (0, [])


def test_a_study_that_others_deleted_stays_while_a_worker_is_there(patient: Patient) -> None:
    with patient.work():
        optuna.delete_study(study_name=NAME, storage=patient.storage)
        patient.expect_note("it was deleted in Optuna", "Workers are still at it", "stop them")
        assert [study.name for study in list_studies(patient.storage)] == [NAME]


def test_a_trial_that_a_worker_took_up_before_it_could_be_mended_is_left(
    patient: Patient,
) -> None:
    number = begin(patient)
    patient.study.tell(number, state=TrialState.FAIL)
    (finding,) = examine(patient.storage, patient.place)
    assert finding.mend is not None
    with held_elsewhere(patient, number) as lease:
        finding.mend()
        assert patient.trial(number).state == "running"
        LeaseBook(patient.storage).renew(lease, seconds=60)  # it is still its worker's


def test_one_thing_that_cannot_be_mended_keeps_no_other_from_it(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = checkpoint(patient.place, 1), checkpoint(patient.place, 2)
    remove = shutil.rmtree

    def refuse(path: Path) -> None:
        if path.name == stuck.name:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr("study.mending.shutil.rmtree", refuse)
    code, lines = patient.doctor("--mend")
    assert code == 1
    assert [line.split(":")[0] for line in lines] == ["not mended", "mended"]
    assert "That failed: [Errno 13] Permission denied" in lines[0]
    assert stuck.exists()
    assert not other.exists()


def test_every_study_of_a_database_is_examined_by_its_name(patient: Patient) -> None:
    Recorder(patient.storage, "second").create_study_record(
        config="", fingerprint={}, slots=1, seed=0
    )
    optuna.create_study(study_name="second", storage=patient.storage)
    optuna.create_study(study_name="somebody else's", storage=patient.storage)
    Recorder(patient.storage, "third").create_study_record(
        config="", fingerprint={}, slots=1, seed=0
    )
    checkpoint(replace(patient.place, folder=Path("runs/second")), 3)
    checkpoint(patient.place, 1)
    code, lines = patient.doctor()
    assert code == 1
    assert [line.split(":")[:2] for line in lines] == [
        ["found", " study second"],
        ["found", f" study {NAME}"],
        ["note", " study third"],
    ]
    assert "no trial of it was asked; the next `remember run` goes on" in lines[2]
    assert patient.doctor("--name", "third")[0] == 0
    assert patient.doctor("--name", "second", "--mend")[0] == 0
    assert [line.split(":")[1] for line in patient.doctor()[1]] == [
        f" study {NAME}",
        " study third",
    ]


@pytest.mark.usefixtures("patient")
def test_a_name_that_is_not_there_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["doctor", "--name", "shwon"]) == 2
    said = capsys.readouterr()
    assert "name: there is no study called 'shwon' at" in said.err
    assert f"there are: {NAME}" in said.err
    assert "nothing stands in the way" not in said.out


def test_without_a_database_only_a_named_study_is_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_application(["doctor"]) == 0
    assert "none yet at" in capsys.readouterr().out
    assert run_application(["doctor", "--name", "tiny"]) == 2
    assert "there is none; run one with `remember run`" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_database_that_cannot_be_used_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("no database", encoding="utf-8")
    assert run_application(["doctor", "--storage", "sqlite:///notes.txt", "--name", "tiny"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "problem: storage: the file notes.txt is not a SQLite database" in out
    assert "memory free" in out


def test_postgresql_is_named_by_the_environment_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_postgresql() as server:
        url = fresh_database(server)
        monkeypatch.setenv("OPTUNA_STORAGE", url.replace("postgres:@", "postgres:secret@"))
        with undamaged(capsys, url) as patient:
            folder = checkpoint(patient.place, 1)
            patient.expect(f"{folder} is the checkpoint of a trial that has ended")
            assert run_application(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "database" in out
    assert "postgresql" in out
    assert "secret" not in out


def test_workers_are_told_by_host_and_process(patient: Patient) -> None:
    assert describe_workers(["ada:12:b", "tom:3:c"]) == "ada:12, tom:3"
    assert workers_at(patient.storage, NAME) == []
    with patient.work() as presence:
        assert workers_at(patient.storage, NAME) == [presence.owner]
    assert workers_at(patient.storage, NAME) == []
    assert workers_at(patient.storage, "nobody's") == []


def test_the_opened_database_is_that_of_the_place(patient: Patient) -> None:
    assert patient.place.storage_url == "sqlite:///runs/remember.db"
    with closing(open_storage(patient.place.storage_url)) as storage:
        assert [study.name for study in list_studies(storage)] == [NAME]
