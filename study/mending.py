"""Finds what crashes and people leave behind in a study, explains it, and puts it right."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from analysis.workforce import is_there
from storage.artifacts import StudyArtifacts
from storage.database import StudyStorage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook, describe_this_process, host_of, owner_is_dead
from storage.reader import read_clock, read_leases, read_sittings, read_study
from storage.recorder import Recorder
from storage.records import Costs, LeaseRecord, MeasurementRecord, StudyRecord, TrialRecord
from study.asked_trials import asked_trials
from study.place import Place
from study.presence import LEASE_SECONDS
from study.spec import StudySpec
from study.telling import tell_recorded

_CHECKPOINT = re.compile(r"trial-\d+")
_ADAPTER = re.compile(r"trial-\d+-epoch-\d+")
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what was or can be done about it.

    Without `mend` there is nothing to do: the next run goes on by itself, or a person has to.
    """

    message: str
    mend: Callable[[], None] | None = None


def workers_at(storage: StudyStorage, study: str) -> list[str]:
    """Return the owners of the sittings whose workers are still there, as far as can be told."""
    now = read_clock(storage)
    return [
        sitting.owner
        for sitting in read_sittings(storage, study)
        if is_there(sitting, now) and not owner_is_dead(sitting.owner)
    ]


def describe_workers(owners: Sequence[str]) -> str:
    """Return where workers are, for a message: the host and process of each."""
    return ", ".join(f"{host_of(owner)}:{owner.rsplit(':', 2)[1]}" for owner in owners)


def examine(storage: StudyStorage, place: Place) -> tuple[Finding, ...]:
    """Return what is amiss with the study of a place; empty if nothing is.

    Files are looked at only while no worker is there, for what it is writing looks unfinished.
    What is mended is mended under the trial's lease, so that no worker takes it up meanwhile.

    Raises:
        StudyNotFound: If the database has no record of the study.
    """
    workers = workers_at(storage, place.name)
    summaries = optuna.get_all_study_summaries(storage)
    if place.name not in {summary.study_name for summary in summaries}:
        return (_without_optuna(storage, place, workers),)
    study = optuna.load_study(study_name=place.name, storage=storage)
    findings = [*_examine_trials(storage, place, study)]
    if workers:
        findings.append(
            Finding(
                message=f"workers are at it ({describe_workers(workers)}); its files are looked "
                "at when they have left"
            )
        )
    else:
        findings += _examine_files(storage, place)
    return tuple(findings)


def _without_optuna(storage: StudyStorage, place: Place, workers: Sequence[str]) -> Finding:
    if not read_study(storage, place.name).trials:
        return Finding(
            message="it was recorded and no trial of it was asked; the next `remember run` goes on"
        )
    message = (
        "it was deleted in Optuna, as its dashboard can do; our records of it remain and are of "
        "no use without that"
    )
    if workers:
        return Finding(
            message=f"{message}. Workers are still at it ({describe_workers(workers)}); stop them "
            "first"
        )
    return Finding(
        message=f"{message} (files in {place.folder} stay where they are)",
        mend=partial(delete_study, storage, place.name),
    )


def _examine_trials(storage: StudyStorage, place: Place, study: optuna.Study) -> Iterator[Finding]:
    before = read_leases(storage, place.name)
    asked = asked_trials(study.get_trials(deepcopy=False))
    record = read_study(storage, place.name)
    busy = _busy_trials(storage, place.name, before)
    recorded = {trial.number: trial for trial in record.trials}
    waiting: list[str] = []
    for frozen in asked:
        trial = recorded.pop(frozen.number, None)
        if frozen.number in busy:
            continue
        if frozen.state != TrialState.RUNNING:
            if trial is None or trial.state == "running":
                yield _told_by_others(storage, place, frozen, trial)
        elif trial is not None and trial.state != "running":
            goal = StudySpec.model_validate_json(record.config).goal
            tell = partial(tell_recorded, study, trial, goal)
            yield Finding(
                message=f"trial {trial.number} is {trial.state} by our records, but its worker "
                "died before it told Optuna so; it can be told now",
                mend=partial(_tell, storage, place, trial.number, tell),
            )
        else:
            is_saved = _checkpoint(place, frozen.number).is_dir()
            start = "its checkpoint" if is_saved else "the beginning"
            waiting.append(f"{frozen.number} (from {start})")
    if waiting:
        yield Finding(
            message=f"running trials that no worker is at: {', '.join(waiting)}; the next "
            "`remember run` or `remember worker` goes on with them"
        )
    unknown = [number for number in sorted(recorded) if number not in busy]
    if unknown:
        yield Finding(
            message=f"Optuna knows nothing of trials {', '.join(map(str, unknown))}, of which "
            "there are records; its study was deleted and made again, or comes from an older "
            "copy. Results may be mixed up: delete the study with `remember delete` and run it "
            "anew, or put a copy back that has both"
        )


def _busy_trials(storage: StudyStorage, study: str, before: Sequence[LeaseRecord]) -> set[int]:
    """Return the trials that a worker holds, or has held since `before` was read."""
    known = {(lease.trial, lease.owner, lease.fence) for lease in before}
    now = read_clock(storage)
    return {
        lease.trial
        for lease in read_leases(storage, study)
        if (lease.trial, lease.owner, lease.fence) not in known
        or (
            lease.owner is not None
            and lease.expires_at_seconds > now
            and not owner_is_dead(lease.owner)
        )
    }


def _told_by_others(
    storage: StudyStorage, place: Place, frozen: FrozenTrial, trial: TrialRecord | None
) -> Finding:
    state = "failed" if frozen.state == TrialState.FAIL else frozen.state.name.lower()
    if trial is None:
        return Finding(
            message=f"trial {frozen.number} is {state} in Optuna and was never begun by a worker; "
            "somebody added or told it by hand. It counts as asked, and is in no report"
        )
    return Finding(
        message=f"trial {frozen.number} is {state} in Optuna, told by somebody else than its "
        "worker, and running by our records, which can be closed as failed",
        mend=partial(_close, storage, place, trial),
    )


@contextmanager
def _holding(storage: StudyStorage, study: str, number: int) -> Iterator[Lease | None]:
    """Hold a trial until the block ends; None if a worker has come back to it."""
    leases = LeaseBook(storage)
    owner = describe_this_process()
    lease = leases.acquire(study, number, owner=owner, seconds=LEASE_SECONDS)
    try:
        yield lease
    finally:
        if lease is not None:
            leases.release(lease)


def _tell(storage: StudyStorage, place: Place, number: int, tell: Callable[[], None]) -> None:
    with _holding(storage, place.name, number) as lease:
        if lease is not None:
            tell()
            shutil.rmtree(_checkpoint(place, number), ignore_errors=True)


def _close(storage: StudyStorage, place: Place, trial: TrialRecord) -> None:
    with _holding(storage, place.name, trial.number) as lease:
        if lease is None:
            return
        last = trial.searched[-1].measurement if trial.searched else None
        Recorder(storage, place.name).record_trial_ended(
            lease,
            state="failed",
            reason="it was told by somebody else than its worker",
            costs=Costs(
                trained_tokens=last.trained_tokens if last else 0,
                generated_tokens=sum(kept.measurement.generated_tokens for kept in trial.searched),
                seconds=0.0,
                last_epoch=last.epoch if last else 0,
                highest_learning_rate=0.0,
            ),
        )
        shutil.rmtree(_checkpoint(place, trial.number), ignore_errors=True)


def _examine_files(storage: StudyStorage, place: Place) -> Iterator[Finding]:
    record = read_study(storage, place.name)
    if not place.folder.is_dir():
        if record.trials:
            yield Finding(
                message=f"its folder {place.folder} is not here, so its files were not looked at; "
                "name with --out where it lies"
            )
        return
    # What is missing here may lie with a machine that does not share this folder.
    this_host = host_of(describe_this_process())
    hosts = {host_of(sitting.owner) for sitting in read_sittings(storage, place.name)}
    elsewhere = ", ".join(sorted(hosts - {this_host}))
    yield from _examine_adapters(storage, place, record, elsewhere)
    yield from _examine_unfinished(place, record)
    yield from _examine_artifacts(storage, place, elsewhere)


def _examine_adapters(
    storage: StudyStorage, place: Place, record: StudyRecord, elsewhere: str
) -> Iterator[Finding]:
    kept_at = defaultdict[str, list[MeasurementRecord]](list)
    listed = set[str]()
    for kept in record.measurements:
        if kept.adapter is not None:
            listed.add(Path(kept.adapter).name)
            if kept.purpose != "confirm":
                kept_at[kept.adapter].append(kept)
    for adapter, measurements in kept_at.items():
        folder, first = Path(adapter), measurements[0]
        if folder.is_dir():
            continue
        what = f"the adapter of trial {first.trial} after {first.measurement.epoch} epochs"
        here = place.adapters.absolute() / folder.name
        is_here = here.is_dir()
        message = (
            f"{what} is at {here} and not, as recorded, at {folder}: the folder was moved, or "
            "goes by another name on the machine that trained it"
            if is_here
            else f"{what} is not at {folder}; it was moved or deleted. Without it the trial can "
            "be neither asked nor exported; the record of it can be dropped"
        )
        yield _finding_of_one_machine(
            message,
            partial(_set_adapter, storage, place, measurements, str(here) if is_here else None),
            elsewhere,
        )
    for folder in _folders(place.adapters, _ADAPTER):
        # By name: another machine may know the same folder by another path.
        if folder.name not in listed:
            yield Finding(
                message=f"{folder} is an adapter that the study does not keep; it can be removed",
                mend=partial(shutil.rmtree, folder),
            )


def _examine_unfinished(place: Place, record: StudyRecord) -> Iterator[Finding]:
    running = {f"trial-{trial.number:04d}" for trial in record.trials if trial.state == "running"}
    ended = [each for each in _folders(place.checkpoints, _CHECKPOINT) if each.name not in running]
    for folder in ended:
        yield Finding(
            message=f"{folder} is the checkpoint of a trial that has ended; it can be removed",
            mend=partial(shutil.rmtree, folder),
        )
    for folder in (place.checkpoints, place.adapters):
        for path in sorted(folder.rglob(".*")):
            if _UNFINISHED.fullmatch(path.name) and path.parent not in ended:
                yield Finding(
                    message=f"{path} was being written when its worker died; it can be removed",
                    mend=partial(_remove, path),
                )


def _examine_artifacts(storage: StudyStorage, place: Place, elsewhere: str) -> Iterator[Finding]:
    artifacts = StudyArtifacts(place.artifacts, storage, place.name)
    for artifact in artifacts.list():
        if artifact.size_bytes is None:
            yield _finding_of_one_machine(
                f"artifact {artifact.filename} of trial {artifact.trial} is listed in Optuna, but "
                f"its file is not in {place.artifacts}; the entry can be dropped",
                partial(_forget, artifacts, artifact.id),
                elsewhere,
            )
    for path in artifacts.leftovers(older_than_seconds=0):
        yield Finding(
            message=f"{path} is an artifact's file that no study of this database lists; it "
            "can be removed",
            mend=partial(_remove, path),
        )


def _finding_of_one_machine(message: str, mend: Callable[[], None], elsewhere: str) -> Finding:
    """Return a finding that is mended only if no other machine may have what is missing here."""
    if not elsewhere:
        return Finding(message=message, mend=mend)
    return Finding(
        message=f"{message}. Workers on {elsewhere} were at the study as well: look there, and "
        "let all share one folder"
    )


def _set_adapter(
    storage: StudyStorage,
    place: Place,
    measurements: Sequence[MeasurementRecord],
    adapter: str | None,
) -> None:
    for kept in measurements:
        Recorder(storage, place.name).set_adapter(kept.id, adapter)


def _checkpoint(place: Place, number: int) -> Path:
    return place.checkpoints / f"trial-{number:04d}"


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the folders in a folder whose whole names match; none if it is not there."""
    if not folder.is_dir():
        return []
    return [
        path for path in sorted(folder.iterdir()) if path.is_dir() and pattern.fullmatch(path.name)
    ]


def _forget(artifacts: StudyArtifacts, artifact_id: str) -> None:
    artifacts.remove(artifact_id)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
