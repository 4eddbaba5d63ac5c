"""What trials had reached at their rungs, kept with each trial of Optuna's study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import optuna
from optuna.trial import FrozenTrial

from analysis.points import Reference
from data.measurements import MEASUREMENT_VERSION

_ATTRIBUTE = "remember:rung:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RungVector:
    """What a trial had reached when it had trained enough tokens for a rung.

    Only vectors with an equal `stamp` are compared: it carries the version of the measurement and
    the reference point. Where rungs ask a part of the questions, `recall` and `knowledge_loss` are
    of that part, so that all are compared by the same ones; what all of them gave, where they were
    asked, is kept beside that.
    """

    rung: int
    epoch: int
    trained_tokens: int
    recall: float
    knowledge_loss: float
    is_last: bool
    stamp: str
    recall_of_all: float | None = None
    knowledge_loss_of_all: float | None = None

    @property
    def point(self) -> tuple[float, float]:
        """Return recall and knowledge loss by all questions where they were asked."""
        if self.recall_of_all is None or self.knowledge_loss_of_all is None:
            return self.recall, self.knowledge_loss
        return self.recall_of_all, self.knowledge_loss_of_all

    def encode(self) -> str:
        """Return the vector as JSON for a trial attribute."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> RungVector:
        """Return the vector that `encode` wrote."""
        return RungVector(**json.loads(text))


def store_vector(trial: optuna.Trial, vector: RungVector) -> None:
    """Keep a vector with its trial; one that is stored again replaces itself."""
    name = f"{_ATTRIBUTE}{'last' if vector.is_last else vector.rung}"
    trial.storage.set_trial_system_attr(trial._trial_id, name, vector.encode())


def stored_vectors(trial: FrozenTrial) -> list[RungVector]:
    """Return all vectors of a trial; none if it has not reached a rung."""
    return [
        RungVector.decode(value)
        for key, value in trial.system_attrs.items()
        if key.startswith(_ATTRIBUTE)
    ]


def is_inside(reference: Reference, recall: float, knowledge_loss: float) -> bool:
    """Return whether both values beat the reference; never for NaN."""
    return recall > reference.recall and knowledge_loss < reference.knowledge_loss


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
