"""The work that most benchmarks share: the pocket model, the 2023 Oscars, and 32 recipes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedModel

from benchmarks.text_batches import batch_texts
from data.facts import Fact
from data.formats import epoch_documents
from data.probes import KnownFact
from data.recipes import Recipe
from data.scenarios import Scenario
from objectives.bank.batches import Batch
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from objectives.models.sources import POCKET
from study.spec import StudySpec
from study.stored import load_study_scenario

TRIALS = 32
EPOCHS = 2  # a trial's time is proportional to them
RANKS = (8, 16, 32)
ALPHAS = (16.0, 32.0, 64.0, 8.0, 32.0)
LEARNING_RATES = (1e-3, 5e-4, 2e-3, 7e-4, 1.4e-3, 3e-3, 4e-4)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A recipe with the seed that fixes its initial weights and the texts of its epochs."""

    recipe: Recipe
    seed: int
    facts: tuple[Fact, ...]
    known_facts: tuple[KnownFact, ...] = ()

    def epoch_texts(self, epoch: int) -> tuple[str, ...]:
        """Return the training texts of one epoch, in order."""
        documents = epoch_documents(
            self.facts, self.known_facts, self.recipe, seed=self.seed, epoch=epoch
        )
        return tuple(document.text for document in documents)


@cache
def token_batches(trial: Trial, base: BaseModel) -> list[list[Batch]]:
    """Return the batches of token ids of every epoch.

    They are kept, so that ways which are given them do not spend time on making them.
    """
    epochs = range(trial.recipe.epochs)
    return batch_texts(base, trial.recipe, map(trial.epoch_texts, epochs))


@cache
def pocket_base() -> BaseModel:
    """Return the pocket model on the CPU, loaded once."""
    return load_base_model(POCKET, device="cpu")


@cache
def peer_model() -> PreTrainedModel:
    """Return a second copy of the pocket model, for PEFT to wrap and unwrap."""
    return load_base_model(POCKET, device="cpu").model


@cache
def oscars() -> Scenario:
    """Return the packaged scenario: 23 facts, probes, and known facts to rehearse."""
    return load_study_scenario(StudySpec())


def make_trials(
    count: int = TRIALS, *, batch_size: int = 4, epochs: int = EPOCHS
) -> tuple[Trial, ...]:
    """Return trials whose ranks, alphas and learning rates differ and whose texts are as long.

    The lengths of the three lists share no factor, so that their values combine freely. Every
    trial has the same facts in the same formats, so any of them is as much work as any other but
    for its rank.
    """
    return tuple(
        Trial(
            recipe=Recipe(
                epochs=epochs,
                rank=RANKS[number % len(RANKS)],
                alpha=ALPHAS[number % len(ALPHAS)],
                cutoff=96,
                warmup_steps=10,
                learning_rate=LEARNING_RATES[number % len(LEARNING_RATES)],
                batch_size=batch_size,
            ),
            seed=number,
            facts=oscars().facts,
        )
        for number in range(count)
    )
