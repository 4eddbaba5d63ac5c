"""How a running study stands: who is there, with what, how fast, and how long it may take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.workforce import LONGEST_SILENCE_SECONDS, StudyStatus, is_there, study_status
from storage.records import LeaseRecord, SittingRecord, StudyRecord, WorkerState
from tests.analysis.conftest import BEGUN, REFERENCE, StudyMaker

START = BEGUN.timestamp()  # the n-th measurement of a study is recorded n seconds later
STATE = WorkerState(
    activity="training",
    trained_tokens=900,
    training_seconds=4.5,
    asking_seconds=2.0,
    memory_bytes=None,
    memory_limit_bytes=None,
    load=None,
)


def sit(owner: str, *, began: float, seen: float, ended: float | None = None) -> SittingRecord:
    """Return a sitting with its times in seconds after the study's beginning."""
    return SittingRecord(
        owner=owner,
        device="cpu",
        slots=2,
        began_at_seconds=START + began,
        seen_at_seconds=START + seen,
        ended_at_seconds=None if ended is None else START + ended,
        state=STATE,
    )


def hold(trial: int, owner: str | None) -> LeaseRecord:
    return LeaseRecord(trial=trial, owner=owner, fence=1, expires_at_seconds=START + 1000)


def stand(
    record: StudyRecord,
    sittings: list[SittingRecord],
    leases: list[LeaseRecord] | None = None,
    *,
    now: float,
    total: int = 10,
) -> StudyStatus:
    return study_status(
        record,
        sittings,
        leases or [],
        total=total,
        reference=REFERENCE,
        now_seconds=START + now,
    )


@pytest.fixture
def five_trials(maker: StudyMaker) -> StudyRecord:
    """Return a study with measurements at second 1, 2, 3, 4 and 5, and a base at second 6.

    Trial 0 ended at second 2, trial 1 at second 3, trial 2 was never measured, trials 3 and 4 run.
    """
    maker.add((4, 0.4, 0.1), (8, 0.9, 0.1))
    maker.add((4, 0.02, 0.0), state="pruned")
    maker.add(state="failed")
    maker.add((4, 0.5, 0.1), state="running")
    maker.add((4, 0.6, 0.2), state="running")
    return maker.study()


def test_trials_are_counted_by_state(five_trials: StudyRecord) -> None:
    status = stand(five_trials, [], now=100)
    assert status.counts == {"complete": 1, "pruned": 1, "failed": 1, "running": 2}
    assert (status.ended, status.total, status.study) == (3, 10, "oscars-pocket")


def test_the_best_is_what_would_be_recommended(five_trials: StudyRecord) -> None:
    best = stand(five_trials, [], now=100).best
    assert best is not None
    assert (best.trial, best.epoch) == (0, 8)


def test_the_rate_counts_what_ended_since_the_first_present_worker_came(
    five_trials: StudyRecord,
) -> None:
    here = [sit("h:1:b", began=0, seen=99), sit("h:2:b", began=40, seen=99)]
    status = stand(five_trials, here, now=100)
    # Trials 0 and 1 in 100 seconds; of trial 2 it is not known when it ended.
    assert status.trials_per_hour == pytest.approx(2 / 100 * 3600)
    # 7 of 10 are left, at 2 in 100 seconds.
    assert status.seconds_left == pytest.approx(7 * 50)


def test_what_ended_before_the_present_workers_came_is_no_rate(five_trials: StudyRecord) -> None:
    gone = sit("h:1:b", began=0, seen=2, ended=2)
    status = stand(five_trials, [gone, sit("h:2:b", began=2.5, seen=10)], now=10.5)
    assert status.trials_per_hour == pytest.approx(1 / 8 * 3600)
    assert status.seconds_left == pytest.approx(7 * 8)
    later = stand(five_trials, [gone, sit("h:2:b", began=20, seen=30)], now=30)
    assert (later.trials_per_hour, later.seconds_left) == (None, None)


def test_a_study_with_all_its_trials_has_no_time_left(five_trials: StudyRecord) -> None:
    here = [sit("h:1:b", began=0, seen=99)]
    assert stand(five_trials, here, now=100, total=3).seconds_left == 0
    # Its total was lowered since.
    assert stand(five_trials, here, now=100, total=2).seconds_left == 0


def test_who_has_left_or_been_silent_for_long_is_not_there() -> None:
    now = START + 1000
    there = sit("h:1:b", began=0, seen=1000 - LONGEST_SILENCE_SECONDS)
    assert is_there(there, now)
    assert not is_there(replace(there, seen_at_seconds=there.seen_at_seconds - 1), now)
    assert not is_there(replace(there, ended_at_seconds=now), now)


def test_a_worker_has_the_running_trials_whose_leases_it_holds(five_trials: StudyRecord) -> None:
    here = [sit("h:1:b", began=0, seen=94), sit("i:1:b", began=0, seen=101)]
    leases = [hold(4, "h:1:b"), hold(3, "h:1:b"), hold(0, "h:1:b"), hold(1, None)]
    one, other = stand(five_trials, here, leases, now=100).workers
    assert (one.owner, one.trials, one.silent_seconds, one.slots) == ("h:1:b", (3, 4), 6, 2)
    # Its sign of life came while all this was read.
    assert (other.owner, other.trials, other.silent_seconds) == ("i:1:b", (), 0)


def test_tokens_a_second_are_those_while_it_trains(five_trials: StudyRecord) -> None:
    here = sit("h:1:b", began=0, seen=99)
    untrained = replace(STATE, trained_tokens=0, training_seconds=0.0)
    sittings = [here, replace(here, state=None), replace(here, state=untrained)]
    rates = [w.tokens_per_second for w in stand(five_trials, sittings, now=100).workers]
    assert rates == [200.0, None, None]


def test_a_study_of_nothing_stands_at_nothing(maker: StudyMaker) -> None:
    status = stand(maker.study(has_base=False), [], now=0)
    assert status.counts == {"complete": 0, "pruned": 0, "failed": 0, "running": 0}
    assert (status.ended, status.workers, status.best) == (0, (), None)
    assert (status.trials_per_hour, status.seconds_left) == (None, None)
    # The clock may not have moved on since the worker came.
    just_come = stand(maker.study(has_base=False), [sit("h:1:b", began=0, seen=0)], now=0)
    assert just_come.trials_per_hour is None
    assert len(just_come.workers) == 1
