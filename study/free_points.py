"""Tells Optuna of points that were measured along an asked trial's way: rungs, other samplings.

Each is a completed trial of its own with the user attribute `measured_from`. They are trials of
the same space: a rung is its recipe with fewer epochs, asked greedily. What the space does not
allow, such as fewer epochs than the least, is no point of it and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.points import Point
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from study.asked_trials import MEASURED_FROM
from study.goal import Goal, constraint_attributes

FreePointsMode = Literal["none", "front", "all"]

_Key = tuple[int, int, str]  # asked trial, epoch, sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class FreePoints:
    """Adds to a study what was measured beside what was asked."""

    study: optuna.Study
    goal: Goal
    space: RecipeSpace
    samplings: SamplingSpace

    def add(self, points: Sequence[Point]) -> None:
        """Add points that are not in the study yet and that its space allows.

        The caller holds the leases of the trials they come from, so that nobody else adds them.
        """
        trials = self.study.get_trials(deepcopy=False)
        asked = {trial.number: trial for trial in trials}
        there = {_key(trial) for trial in trials if MEASURED_FROM in trial.user_attrs}
        for point in points:
            key = (point.trial, point.epoch, point.sampling.name)
            params = self._params(asked[point.trial], point)
            if key in there or params is None:
                continue
            there.add(key)
            self.study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=self.goal.values(point.recall, point.knowledge_loss),
                    params=params,
                    distributions=asked[point.trial].distributions,
                    user_attrs={
                        MEASURED_FROM: point.trial,
                        "epochs_reached": point.epoch,
                        "sampling": point.sampling.name,
                        "last_recall": point.recall,
                        "last_knowledge_loss": point.knowledge_loss,
                    },
                    system_attrs=constraint_attributes(
                        self.goal.constraints(point.knowledge_loss)
                    ),
                )
            )

    def _params(self, asked: FrozenTrial, point: Point) -> dict[str, Any] | None:
        """Return the settings of a point; None if it is the asked trial's own or out of space."""
        own: dict[str, Any] = {"epochs": point.epoch, "sampling": point.sampling.name}
        in_space = (
            self.space.contains("epochs", point.epoch)
            and point.sampling.name in self.samplings.presets
        )
        params = asked.params | {name: own[name] for name in own if name in asked.params}
        return params if in_space and params != asked.params else None


def _key(trial: FrozenTrial) -> _Key:
    attributes = trial.user_attrs
    return (attributes[MEASURED_FROM], attributes["epochs_reached"], attributes["sampling"])
