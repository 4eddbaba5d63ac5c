"""Says when a running trial is measured, and whether it goes on from a rung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from analysis.points import Reference
from data.measurements import Measurement
from study.goal import Goal, number_of
from study.optuna_pruning import decide_by_optuna
from study.pruning import Decision, Rungs, SuccessiveHalving
from study.rung_vectors import (
    RungVector,
    is_inside,
    make_stamp,
    store_vector,
    stored_vectors,
    vectors_at_rung,
)

if TYPE_CHECKING:  # deciding takes no torch
    from objectives.bank.bank import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RungDecider:
    """The rungs of a study and what is decided there; without `rungs` trials run to their end.

    `pruner` decides, but of a study with one objective Optuna's own does.
    """

    study: optuna.Study
    goal: Goal
    reference: Reference
    rungs: Rungs | None
    pruner: SuccessiveHalving

    def is_at_new_rung(self, trained_tokens: int, rungs_done: int) -> bool:
        """Return whether a trial that has done some rungs has come to the next."""
        return self.rungs is not None and self.rungs.rungs_reached(trained_tokens) > rungs_done

    def is_worth_a_look(self, trained_tokens: int, last: Measurement | None) -> bool:
        """Return whether a trial between rungs is likely to be a point that counts."""
        if self.rungs is None or last is None:
            return False
        has_grown = trained_tokens >= self.rungs.inside_spacing * last.trained_tokens
        return has_grown and is_inside(
            self.reference, number_of(last.recall), number_of(last.knowledge_loss)
        )

    def rungs_done(self, number: int, trained_tokens: int) -> int:
        """Return how many rungs a trial has behind it, with so many tokens at its checkpoint.

        What lies beyond the checkpoint is measured again, for it was not decided upon.
        """
        vectors = self._vectors().get(number, ())
        return max((v.rung + 1 for v in vectors if v.trained_tokens <= trained_tokens), default=0)

    def keep_vector(
        self,
        trial: optuna.Trial,
        progress: Progress,
        compared: Measurement,
        greedy: Measurement,
    ) -> int:
        """Store what a trial has reached, to compare others with; return its rungs done.

        Args:
            trial: The trial.
            progress: How far it has come.
            compared: Its greedy measurement on what rungs ask.
            greedy: The same one on all that it was asked.
        """
        is_more = greedy != compared
        assert self.rungs is not None
        rungs_done = self.rungs.rungs_reached(progress.trained_tokens)
        store_vector(
            trial,
            RungVector(
                rung=rungs_done - 1,
                epoch=progress.epoch,
                trained_tokens=progress.trained_tokens,
                recall=number_of(compared.recall),
                knowledge_loss=number_of(compared.knowledge_loss),
                recall_of_all=number_of(greedy.recall) if is_more else None,
                knowledge_loss_of_all=number_of(greedy.knowledge_loss) if is_more else None,
                is_last=progress.finished,
                stamp=make_stamp(self.reference),
            ),
        )
        return rungs_done

    def decide(self, trial: optuna.Trial, rung: int) -> Decision:
        """Return whether a trial goes on from a rung, whose vector is stored already."""
        vectors = self._vectors()
        newcomer = next(v for v in vectors.pop(trial.number) if v.rung == rung)
        if self.goal.is_single:
            (score,) = self.goal.values(newcomer.recall, newcomer.knowledge_loss)
            return decide_by_optuna(trial, newcomer, score, reduction=self.pruner.reduction)
        return self.pruner.decide(newcomer, vectors_at_rung(rung, vectors))

    def _vectors(self) -> dict[int, list[RungVector]]:
        """Return the rung vectors of all trials that did not fail, by trial."""
        return {
            frozen.number: stored_vectors(frozen)
            for frozen in self.study.get_trials(deepcopy=False)
            if frozen.state != TrialState.FAIL
        }
