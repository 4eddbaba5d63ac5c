"""Prunes running trials on both objectives: asynchronous successive halving against a reference.

Optuna's pruners refuse studies with two objectives. The rule here, at a rung, where trials have
done equal work: who loses more than the reference tolerates goes, for what is lost hardly comes
back. Who does not answer better than the reference may be slow to begin and is spared once, at the
first rung; then it goes too, as a do-nothing adapter does. Of those inside the reference box a
newcomer stays if it is among the best share of 1 / reduction, or on the rung's front. They are
ordered by their non-domination rank, then by their hypervolume contribution within it.

Asynchronous: Li et al. 2020 (ASHA); ranking by fronts: Schmucker et al. 2021 (MO-ASHA); the
reference box is this project's, and `benchmarks/SEARCH.md` shows what it brings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.points import Reference
from data.front import hypervolume_contributions, non_dominated
from study.rung_vectors import RungVector, is_inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a trial goes on, and why in words for the person."""

    keep: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rungs:
    """When running trials are measured: at the first epoch's end after so much work.

    `first_rung_tokens * spacing**k` trained tokens make rung k. Between rungs a trial inside the
    reference box is measured whenever its tokens have grown by the factor `inside_spacing`: there
    every epoch is a point that counts.
    """

    first_rung_tokens: int
    spacing: float = 1.5
    inside_spacing: float = 1.2

    def rungs_reached(self, trained_tokens: int) -> int:
        """Return how many rungs a trial has reached; 0 before the first."""
        rungs = 0
        while trained_tokens >= self.first_rung_tokens * self.spacing**rungs:
            rungs += 1
        return rungs


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessiveHalving:
    """The pruner of a study with two objectives.

    Who is outside the reference box needs no others to be compared with. Fewer than
    `minimum_entries` vectors inside it do not decide among each other. Higher recall and lower
    knowledge loss are better; NaN or infinite vectors are pruned at once.
    """

    reference: Reference
    reduction: int = 3
    minimum_entries: int = 8

    def decide(self, newcomer: RungVector, others: Sequence[RungVector]) -> Decision:
        """Return whether a trial goes on from a rung.

        Args:
            newcomer: The trial's vector at the rung.
            others: One vector per other trial that reached the rung, or that finished before it.
        """
        if not (math.isfinite(newcomer.recall) and math.isfinite(newcomer.knowledge_loss)):
            return Decision(keep=False, reason="recall or knowledge loss is not a number")
        comparable = [
            other
            for other in others
            if other.stamp == newcomer.stamp
            and math.isfinite(other.recall)
            and math.isfinite(other.knowledge_loss)
        ]
        at_rung = f"rung {newcomer.rung}, epoch {newcomer.epoch}"
        reached = f"(recall {newcomer.recall:.2f}, knowledge loss {newcomer.knowledge_loss:.2f})"
        if newcomer.knowledge_loss >= self.reference.knowledge_loss:
            return Decision(keep=False, reason=f"{at_rung}: loses too much {reached}")
        if newcomer.recall <= self.reference.recall:
            is_first = newcomer.rung == 0
            begun = "not yet" if is_first else "still not"
            return Decision(
                keep=is_first,
                reason=f"{at_rung}: does {begun} answer more than the base {reached}",
            )
        inside = [newcomer, *filter(self.beats_reference, comparable)]
        if len(inside) < self.minimum_entries:
            return Decision(keep=True, reason=f"{at_rung}: too few good trials to compare with")
        place, kept = self._places(inside)[0], max(1, len(inside) // self.reduction)
        if place < kept:
            return Decision(keep=True, reason=f"{at_rung}: place {place + 1} of {len(inside)}")
        if 0 in non_dominated(_points(inside)):
            return Decision(keep=True, reason=f"{at_rung}: on the front")
        return Decision(
            keep=False,
            reason=(
                f"{at_rung}: place {place + 1} of {len(inside)}, the best {kept} go on {reached}"
            ),
        )

    def beats_reference(self, vector: RungVector) -> bool:
        """Return whether a vector is inside the box: more recall and less loss than its corner."""
        return is_inside(self.reference, vector.recall, vector.knowledge_loss)

    def _places(self, vectors: Sequence[RungVector]) -> list[int]:
        """Return each vector's place, 0 is best: `places[i]` belongs to `vectors[i]`."""
        places = [0] * len(vectors)
        for place, index in enumerate(self._order(vectors)):
            places[index] = place
        return places

    def _order(self, vectors: Sequence[RungVector]) -> list[int]:
        """Return positions from best to worst: front after front, contribution within a front."""
        order: list[int] = []
        left = list(range(len(vectors)))
        while left:
            points = _points([vectors[i] for i in left])
            front = non_dominated(points)
            contributions = hypervolume_contributions(
                [points[i] for i in front], (self.reference.recall, self.reference.knowledge_loss)
            )
            best_first = sorted(
                zip(contributions, front, strict=True), key=lambda pair: (-pair[0], pair[1])
            )
            order += [left[i] for _, i in best_first]
            taken = set(front)
            left = [index for i, index in enumerate(left) if i not in taken]
        return order


def _points(vectors: Sequence[RungVector]) -> list[tuple[float, float]]:
    return [(vector.recall, vector.knowledge_loss) for vector in vectors]
