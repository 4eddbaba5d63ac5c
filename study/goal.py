"""What a study optimises: recall and knowledge loss, or one number made of both; and its bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from analysis.points import Reference
from data.front import hypervolume
from data.measurements import Estimate, Measurement

Direction = Literal["maximize", "minimize"]

_BOUND = "max_knowledge_loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Two objectives, or with a `loss_weight` the one of recall - loss_weight * knowledge loss.

    A trial whose knowledge loss is above `max_knowledge_loss` is infeasible: samplers avoid its
    like, and it is none of Optuna's best trials.
    """

    loss_weight: float | None = None
    max_knowledge_loss: float | None = None

    @property
    def is_single(self) -> bool:
        """Return whether there is one objective, so that Optuna's own pruners can decide."""
        return self.loss_weight is not None

    @property
    def directions(self) -> list[Direction]:
        """Return the direction of each objective."""
        return ["maximize"] if self.is_single else ["maximize", "minimize"]

    @property
    def metric_names(self) -> list[str]:
        """Return the names of the objectives, as dashboards show them."""
        if self.loss_weight is None:
            return ["judged recall", "knowledge loss"]
        return [f"judged recall - {self.loss_weight:g} * knowledge loss"]

    def values(self, recall: float, knowledge_loss: float) -> tuple[float, ...]:
        """Return what Optuna is told of a trial; NaN where something was not measured."""
        if self.loss_weight is None:
            return recall, knowledge_loss
        return (recall - self.loss_weight * knowledge_loss,)

    def values_of(self, measurement: Measurement) -> tuple[float, ...]:
        """Return what Optuna is told of a trial that ended with a measurement."""
        return self.values(number_of(measurement.recall), number_of(measurement.knowledge_loss))

    def constraints(self, knowledge_loss: float) -> dict[str, float]:
        """Return the violation of each bound by name; at most 0 is feasible.

        Empty without a bound, and for a loss that was not measured.
        """
        if self.max_knowledge_loss is None or not math.isfinite(knowledge_loss):
            return {}
        return {_BOUND: knowledge_loss - self.max_knowledge_loss}

    def constrain(self, trial: optuna.Trial, knowledge_loss: float) -> None:
        """Write a trial's constraints: for Optuna 5 by name, and as the list dashboards read.

        They are written once, with the trial's last measurement.
        """
        attributes = constraint_attributes(self.constraints(knowledge_loss))
        present = trial.storage.get_trial_system_attrs(trial._trial_id)
        for name, value in attributes.items():
            if name not in present:
                trial.storage.set_trial_system_attr(trial._trial_id, name, value)

    def reached(self, trials: Sequence[FrozenTrial], reference: Reference) -> float:
        """Return how far trials have come: the hypervolume, or the best value above nothing.

        Higher is better; 0 when none has beaten the reference.
        """
        values = [trial.values for trial in trials if trial.values is not None]
        if self.is_single:
            nothing = self.values(reference.recall, 0.0)[0]
            return max((value - nothing for (value,) in values if value > nothing), default=0.0)
        points = [(recall, loss) for recall, loss in values]
        return hypervolume(points, (reference.recall, reference.knowledge_loss))


def constraint_attributes(constraints: Mapping[str, float]) -> dict[str, float | list[float]]:
    """Return a trial's constraints as system attributes, in both forms that are read.

    Optuna 5 reads `constraints:NAME`, optuna-dashboard 0.21 only the list `constraints`. Optuna
    reads both and adds them up, which changes no order.
    """
    if not constraints:
        return {}
    attributes: dict[str, float | list[float]] = {"constraints": list(constraints.values())}
    for name, violation in constraints.items():
        attributes[f"constraints:{name}"] = violation
    return attributes


def number_of(estimate: Estimate) -> float:
    """Return an estimate's value for Optuna; NaN, which it takes as failed, if not measured."""
    return float("nan") if estimate.value is None else estimate.value
