"""Rungs and further samplings may become trials of Optuna's study; none counts as asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from analysis.points import front_points, study_points
from search_spaces.presets import find_preset
from storage.reader import read_study
from study.asked_trials import asked_index, asked_trials, is_free

SitDown = Callable[..., AbstractContextManager[Any]]
PRESETS = ("greedy", "Shortwave")
TRIALS = 5
EVERYTHING: dict[str, Any] = {
    "trials": TRIALS,
    "presets": PRESETS,
    "other_samplings": tuple(map(find_preset, PRESETS)),
    "free_points": "all",
}


def split(sitting: Any) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """Return the asked trials and the free points."""
    trials = sitting.study.get_trials()
    return asked_trials(trials), [trial for trial in trials if is_free(trial)]


def describe(trial: FrozenTrial) -> tuple[int, int, str]:
    attributes = trial.user_attrs
    return attributes["measured_from"], attributes["epochs_reached"], attributes["sampling"]


def test_free_points_are_what_was_measured_and_the_space_allows(sit_down: SitDown) -> None:
    with sit_down(**EVERYTHING) as sitting:
        assert sitting.run()
        asked, free = split(sitting)
        points = {
            (point.trial, point.epoch, point.sampling.name): point
            for point in study_points(read_study(sitting.storage, sitting.worker.settings.study))
        }
    numbers = {trial.number: trial for trial in asked}
    expected = {
        key
        for key in points
        if key[1] >= 2  # the space has 2 to 4 epochs
        and (key[1], key[2])
        != (numbers[key[0]].params["epochs"], numbers[key[0]].params["sampling"])
    }
    assert Counter(map(describe, free)) == Counter(expected)
    assert any(numbers[trial].params["epochs"] > epoch for trial, epoch, _ in expected)
    assert any(name == "Shortwave" for _, _, name in expected)
    for trial in free:
        point = points[describe(trial)]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [point.recall, point.knowledge_loss]
        origin = numbers[trial.user_attrs["measured_from"]]
        own = {"epochs": point.epoch, "sampling": point.sampling.name}
        assert trial.params == origin.params | own


def test_asked_trials_are_counted_and_seeded_as_if_there_were_no_free_points(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=TRIALS, presets=PRESETS, folder="without") as sitting:
        assert sitting.run()
        without = [trial.params for trial in sitting.study.get_trials()]
    with sit_down(**EVERYTHING, folder="with") as sitting:
        assert sitting.run()
        asked, free = split(sitting)
        record = read_study(sitting.storage, sitting.worker.settings.study)
    assert free
    assert [trial.params for trial in asked] == without  # all of them are start-up trials
    assert [trial.asked_index for trial in record.trials] == [*range(TRIALS)]
    assert [trial.number for trial in record.trials] == [trial.number for trial in asked]


def test_no_point_is_added_twice_over_several_sittings(sit_down: SitDown) -> None:
    with sit_down(**EVERYTHING, folder="one") as sitting:
        assert sitting.run()
        in_one = Counter(map(describe, split(sitting)[1]))
        asked_in_one = [trial.params for trial in split(sitting)[0]]
    for steps in (7, 5, None):
        with sit_down(**EVERYTHING, folder="three", stop_after_steps=steps) as sitting:
            finished = sitting.run()
            asked, free = split(sitting)
    assert finished
    assert [trial.params for trial in asked] == asked_in_one
    counted = Counter(map(describe, free))
    # Numbers of asked trials differ with when points came in; how many there are does not.
    assert max(counted.values()) == 1
    assert Counter((e, s) for _, e, s in counted) == Counter((e, s) for _, e, s in in_one)


def test_only_points_on_the_front_when_they_were_measured_may_be_added(sit_down: SitDown) -> None:
    with sit_down(**EVERYTHING | {"free_points": "front"}) as sitting:
        assert sitting.run()
        _, on_front = split(sitting)
        reference = sitting.worker.settings.reference
        points = study_points(read_study(sitting.storage, sitting.worker.settings.study))
    assert all(trial.values[0] > reference.recall for trial in on_front)
    added = {describe(trial) for trial in on_front}
    last_front = front_points(points, reference)
    may_be_added = {
        (point.trial, point.epoch, point.sampling.name) for point in last_front if point.epoch >= 2
    }
    asked_themselves = {
        (trial.number, trial.params["epochs"], trial.params["sampling"])
        for trial in asked_trials(sitting.study.get_trials())
    }
    assert may_be_added - asked_themselves <= added
    with sit_down(**EVERYTHING, folder="all") as sitting:
        assert sitting.run()
        assert len(on_front) < len(split(sitting)[1])


def test_an_index_stays_when_points_come_later() -> None:
    study = optuna.create_study()
    first = study.ask()
    study.add_trial(optuna.create_trial(value=0.0, user_attrs={"measured_from": 0}))
    second = study.ask()

    def indices() -> list[int]:
        return [asked_index(trial.number, study.trials) for trial in (first, second)]

    assert indices() == [0, 1]
    study.add_trial(optuna.create_trial(value=0.0, user_attrs={"measured_from": 0}))
    assert indices() == [0, 1]
