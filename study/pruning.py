"""Prunes running trials on both objectives: asynchronous successive halving against a reference.

Optuna's pruners refuse studies with two objectives. The rule here: of the vectors that trials had
when they had done equal work (a rung), a newcomer stays if it is among the best share of
1 / reduction, or on the rung's front inside the reference box. Vectors are ordered by (1) whether
they beat the reference point, which a do-nothing adapter never does, (2) their non-domination
rank, (3) their hypervolume contribution within that rank. Asynchronous: Li et al. 2020 (ASHA);
ranking by fronts: Schmucker et al. 2021 (MO-ASHA); the reference point is this project's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from analysis.points import Reference
from data.front import hypervolume_contributions, non_dominated
from data.measurements import MEASUREMENT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RungVector:
    """What a trial had reached when it had trained enough tokens for a rung.

    Only vectors with an equal `stamp` are compared: it carries the version of the measurement and
    the reference point.
    """

    rung: int
    epoch: int
    trained_tokens: int
    recall: float
    knowledge_loss: float
    is_last: bool
    stamp: str

    def encode(self) -> str:
        """Return the vector as JSON for a trial attribute."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> RungVector:
        """Return the vector that `encode` wrote."""
        return RungVector(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a trial goes on, and why in words for the person."""

    keep: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rungs:
    """When running trials are measured: at the first epoch's end after so much work.

    `first_rung_tokens * reduction**k` trained tokens make rung k.
    """

    first_rung_tokens: int
    reduction: int = 3

    def rungs_reached(self, trained_tokens: int) -> int:
        """Return how many rungs a trial has reached; 0 before the first."""
        if trained_tokens < self.first_rung_tokens:
            return 0
        rungs = 1
        while trained_tokens >= self.first_rung_tokens * self.reduction**rungs:
            rungs += 1
        return rungs


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessiveHalving:
    """The pruner of a study with two objectives.

    Of the vectors at a rung the best 1 / `reduction` go on. A rung with fewer than
    `minimum_entries` vectors does not decide. Higher recall and lower knowledge loss are better;
    NaN or infinite vectors are pruned at once.
    """

    reference: Reference
    reduction: int = 3
    minimum_entries: int = 4

    def decide(self, newcomer: RungVector, others: Sequence[RungVector]) -> Decision:
        """Return whether a trial goes on from a rung.

        Args:
            newcomer: The trial's vector at the rung.
            others: One vector per other trial that reached the rung, or that finished before it.
        """
        if not (math.isfinite(newcomer.recall) and math.isfinite(newcomer.knowledge_loss)):
            return Decision(keep=False, reason="recall or knowledge loss is not a number")
        vectors = [newcomer]
        vectors += [
            other
            for other in others
            if other.stamp == newcomer.stamp
            and math.isfinite(other.recall)
            and math.isfinite(other.knowledge_loss)
        ]
        at_rung = f"rung {newcomer.rung}, epoch {newcomer.epoch}"
        if len(vectors) < self.minimum_entries:
            return Decision(keep=True, reason=f"{at_rung}: too few trials to compare with")
        places = self._places(vectors)
        place, kept = places[0], max(1, len(vectors) // self.reduction)
        if place < kept:
            return Decision(keep=True, reason=f"{at_rung}: place {place + 1} of {len(vectors)}")
        if self._beats_reference(newcomer) and 0 in non_dominated(_points(vectors)):
            return Decision(keep=True, reason=f"{at_rung}: on the front")
        return Decision(
            keep=False,
            reason=(
                f"{at_rung}: place {place + 1} of {len(vectors)}, the best {kept} go on "
                f"(recall {newcomer.recall:.2f}, knowledge loss {newcomer.knowledge_loss:.2f})"
            ),
        )

    def _beats_reference(self, vector: RungVector) -> bool:
        return (
            vector.recall > self.reference.recall
            and vector.knowledge_loss < self.reference.knowledge_loss
        )

    def _places(self, vectors: Sequence[RungVector]) -> list[int]:
        """Return each vector's place, 0 is best: `places[i]` belongs to `vectors[i]`."""
        inside = [i for i, vector in enumerate(vectors) if self._beats_reference(vector)]
        outside = [i for i in range(len(vectors)) if i not in set(inside)]
        order = self._order(vectors, inside) + self._order(vectors, outside)
        places = [0] * len(vectors)
        for place, index in enumerate(order):
            places[index] = place
        return places

    def _order(self, vectors: Sequence[RungVector], indices: Sequence[int]) -> list[int]:
        """Return `indices` from best to worst: front after front, contribution within a front."""
        order: list[int] = []
        left = list(indices)
        while left:
            points = _points([vectors[i] for i in left])
            front = non_dominated(points)
            # Outside the box every contribution to the box is nothing: the nearest goes first.
            contributions = hypervolume_contributions(
                [points[i] for i in front], (self.reference.recall, self.reference.knowledge_loss)
            )
            best_first = sorted(
                zip(contributions, front, strict=True),
                key=lambda pair: (-pair[0], -(points[pair[1]][0] - points[pair[1]][1]), pair[1]),
            )
            order += [left[i] for _, i in best_first]
            taken = set(front)
            left = [index for i, index in enumerate(left) if i not in taken]
        return order


def make_stamp(reference: Reference) -> str:
    """Return what makes the vectors of two trials comparable."""
    box = reference
    return f"{MEASUREMENT_VERSION}/{box.recall:.6f}/{box.knowledge_loss:.6f}"


def vectors_at_rung(rung: int, vectors: Mapping[int, Sequence[RungVector]]) -> list[RungVector]:
    """Return one vector per trial at a rung.

    A trial that finished with less work enters with its last vector.

    Args:
        rung: The rung.
        vectors: All vectors of each trial, by its number.
    """
    found: list[RungVector] = []
    for own in vectors.values():
        here = [vector for vector in own if vector.rung == rung]
        earlier = [vector for vector in own if vector.is_last and vector.rung < rung]
        # A last vector may carry the number of a rung that it lies beyond.
        found += sorted(here or earlier, key=lambda vector: vector.trained_tokens)[:1]
    return found


def _points(vectors: Sequence[RungVector]) -> list[tuple[float, float]]:
    return [(vector.recall, vector.knowledge_loss) for vector in vectors]
