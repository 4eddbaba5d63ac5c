"""Asks the recommended adapters the test wordings, once the search has made its choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis.findings import Findings
from analysis.points import Point
from objectives.learn import Learning
from storage.database import StudyStorage
from storage.leases import LeaseBook, describe_this_process
from storage.recorder import Recorder
from study.presence import LEASE_SECONDS
from study.seeds import derive_seed


def confirm(
    storage: StudyStorage,
    recorder: Recorder,
    learning: Learning,
    findings: Findings,
    should_stop: Callable[[], bool],
) -> bool:
    """Ask the members to confirm everything, test wordings included, from their saved files.

    Return False when asked to stop before all were asked.
    """
    record, leases = findings.record, LeaseBook(storage)
    index_of = {trial.number: trial.asked_index for trial in record.trials}
    for point in unconfirmed(findings):
        if should_stop():
            return False
        assert point.adapter is not None
        learning.bank.load(0, Path(point.adapter))
        measured = learning.measure_everything(
            0,
            epoch=point.epoch,
            trained_tokens=point.measurement.trained_tokens,
            sampling=point.sampling,
            noise_seed=derive_seed(record.seed, index_of[point.trial], "noise"),
        )
        learning.bank.release(0)
        lease = leases.acquire(
            record.name, point.trial, owner=describe_this_process(), seconds=LEASE_SECONDS
        )
        if lease is not None:
            recorder.record_measurement(
                lease,
                measured.measurement,
                measured.verdicts,
                purpose="confirm",
                adapter=point.adapter,
            )
            leases.release(lease)
    return True


def unconfirmed(findings: Findings) -> list[Point]:
    """Return the recommended members whose adapter is there and was not asked everything yet."""
    done = {
        (confirmed.trial, confirmed.measurement.epoch)
        for trial in findings.record.trials
        for confirmed in trial.measurements
        if confirmed.purpose == "confirm"
    }
    return [
        point
        for point in findings.members_to_confirm
        if (point.trial, point.epoch) not in done
        and point.adapter is not None
        and Path(point.adapter).is_dir()
    ]
