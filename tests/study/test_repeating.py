"""Chosen members are trained again with fresh seeds, each once, and a yardstick beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from analysis.findings import Findings, find
from analysis.verdict import Subject
from search_spaces.starting_points import WEBUI_2023, starting_points
from storage.reader import read_study, read_verdicts
from study.repeating import planned_repeats, train_again, yardstick_recipe
from tests.study.conftest import REFERENCE, STUDY, Sitting

SitDown = Callable[..., AbstractContextManager[Sitting]]


def found(sitting: Sitting) -> Findings:
    learning = sitting.worker.learning
    subject = Subject(model="pocket", new=learning.facts, known=())
    return find(read_study(sitting.storage, STUDY), subject, REFERENCE)


def train(sitting: Sitting, seeds: int, *, steps: int | None = None) -> tuple[bool, list[int]]:
    """Train what is planned, for at most so many steps; return how it ended and its progress."""
    taken, done = 0, list[int]()

    def should_stop() -> bool:
        nonlocal taken
        taken += 1
        return steps is not None and taken > steps

    learning = sitting.worker.learning
    ended = train_again(
        planned_repeats(found(sitting), learning, seeds=seeds),
        study=STUDY,
        storage=sitting.storage,
        recorder=sitting.worker.recorder,
        learning=learning,
        should_stop=should_stop,
        progressed=lambda so_far, _of: done.append(so_far),
    )
    return ended, done


@pytest.fixture
def searched(sit_down: SitDown) -> Any:
    with sit_down(trials=3, prune=False) as sitting:
        assert sitting.run()
        yield sitting


def test_each_member_is_trained_with_each_fresh_seed_once(searched: Sitting) -> None:
    findings, learning = found(searched), searched.worker.learning
    members = findings.members_to_confirm
    assert members
    planned = planned_repeats(findings, learning, seeds=2)
    assert len(planned) == 2 * len(members)  # the yardstick's rank does not fit this bank
    seeds = {repeat.seed for repeat in planned}
    assert len(seeds) == len(planned)
    assert not seeds & {trial.seed for trial in findings.record.trials}

    ended, done = train(searched, 2)
    assert ended
    assert done == list(range(1, len(planned) + 1))
    after = found(searched)
    assert after.are_repeated(2)
    assert after.points == findings.points
    for point in members:
        confirmation = after.confirmation_of(point)
        assert confirmation.seeds == 2
        assert confirmation.recall.value is not None
        assert {each.epoch for each in confirmation.measurements} == {point.epoch}
    assert planned_repeats(after, learning, seeds=2) == ()
    assert len(planned_repeats(after, learning, seeds=3)) == len(members)  # one more of each


def test_a_repeat_is_the_recipe_under_another_seed(searched: Sitting) -> None:
    train(searched, 1)
    findings, learning = found(searched), searched.worker.learning
    point = findings.members_to_confirm[0]
    (repeat,) = (
        kept for kept in findings.record.measurements if kept.trial == point.trial and kept.repeat
    )
    (planned,) = (
        each
        for each in planned_repeats(
            replace(findings, record=replace(findings.record, trials=_searched(findings))),
            learning,
            seeds=1,
        )
        if each.trial == point.trial
    )
    learning.begin(0, point.recipe, seed=planned.seed)
    while not learning.bank.progress(0).finished:
        learning.bank.step([0])
    alone = learning.measure_everything(0, epoch=point.epoch)
    learning.bank.release(0)
    assert [v.answer.text for v in read_verdicts(searched.storage, repeat.id)] == [
        v.answer.text for v in alone.verdicts
    ]


def _searched(findings: Findings) -> tuple[Any, ...]:
    """Return the trials without what was measured after the search."""
    return tuple(
        replace(trial, measurements=tuple(k for k in trial.measurements if not k.repeat))
        for trial in findings.record.trials
    )


def test_a_stop_keeps_what_was_done_and_the_next_run_does_the_rest(searched: Sitting) -> None:
    planned = len(planned_repeats(found(searched), searched.worker.learning, seeds=3))
    ended, done = train(searched, 3, steps=12)
    assert not ended
    bank = searched.worker.learning.bank
    assert not any(bank.progress(slot).steps for slot in range(bank.slots))  # all are empty
    assert train(searched, 3)[0]
    assert found(searched).are_repeated(3)
    assert len(done) < planned


def test_the_yardstick_is_the_webuis_recipe_whole_or_not_at_all(searched: Sitting) -> None:
    learning = searched.worker.learning
    assert yardstick_recipe(learning) is None  # rank 32 in a bank of rank 8

    class Wider:
        max_rank = 32
        base = learning.bank.base

    class Other:
        bank = Wider

    recipe = yardstick_recipe(Other)  # type: ignore[arg-type]
    (point,) = (each for each in starting_points(128) if each.name == WEBUI_2023)
    assert recipe is not None
    for name, value in point.settings.items():
        assert getattr(recipe, name) == value
