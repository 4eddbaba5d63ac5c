"""Trains what a study chose again with fresh seeds, and a yardstick beside it, all in one bank.

A member of the front was chosen as the best of many; part of its figure is luck. Trained again it
tells how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from analysis.findings import Findings
from data.recipes import GREEDY, Recipe, Sampling
from objectives.learn import Learning
from search_spaces.recipe_space import build_recipe
from search_spaces.settings import Value
from search_spaces.starting_points import WEBUI_2023, starting_points
from storage.database import StudyStorage
from storage.leases import LeaseBook, describe_this_process
from storage.recorder import Recorder
from study.presence import LEASE_SECONDS
from study.seeds import derive_repeat_seed, derive_seed

FORMATS: Value = "statement+qna+conversation"  # the yardstick is shown every format we have


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One training with a fresh seed: of a member of the front, or of the yardstick (no trial)."""

    trial: int | None
    number: int
    recipe: Recipe
    sampling: Sampling
    seed: int
    noise_seed: int


def planned_repeats(findings: Findings, learning: Learning, *, seeds: int) -> tuple[Repeat, ...]:
    """Return the trainings that are still to be done, `seeds` per member and of the yardstick.

    The yardstick is what text-generation-webui's training tab offered in June 2023. It is left out
    where its rank or cutoff does not fit the bank or the model.
    """
    done = {
        (kept.trial, kept.repeat, kept.measurement.epoch, kept.measurement.sampling.name)
        for kept in findings.record.measurements
        if kept.repeat
    }
    return tuple(
        repeat
        for repeat in _all_repeats(findings, learning, seeds)
        if (repeat.trial, repeat.number, repeat.recipe.epochs, repeat.sampling.name) not in done
    )


def _all_repeats(findings: Findings, learning: Learning, seeds: int) -> Iterator[Repeat]:
    record = findings.record
    index_of = {trial.number: trial.asked_index for trial in record.trials}
    yardstick = yardstick_recipe(learning)
    for number in range(1, seeds + 1):
        for point in findings.members_to_confirm:
            index = index_of[point.trial]
            yield Repeat(
                trial=point.trial,
                number=number,
                recipe=point.recipe,
                sampling=point.sampling,
                seed=derive_repeat_seed(record.seed, index, number),
                noise_seed=derive_seed(record.seed, index, "noise"),
            )
        if yardstick is not None:
            yield Repeat(
                trial=None,
                number=number,
                recipe=yardstick,
                sampling=GREEDY,
                seed=derive_repeat_seed(record.seed, -1, number),
                noise_seed=0,
            )


def yardstick_recipe(learning: Learning) -> Recipe | None:
    """Return the webui's recipe of June 2023, or None where it cannot be trained as it was."""
    base = learning.bank.base
    (point,) = (point for point in starting_points(base.hidden_size) if point.name == WEBUI_2023)
    recipe = build_recipe({**point.settings, "formats": FORMATS})
    fits = recipe.rank <= learning.bank.max_rank and recipe.cutoff <= base.context_tokens
    return recipe if fits else None


def train_again(
    repeats: Sequence[Repeat],
    *,
    study: str,
    storage: StudyStorage,
    recorder: Recorder,
    learning: Learning,
    should_stop: Callable[[], bool],
    progressed: Callable[[int, int], None],
) -> bool:
    """Train and measure all repeats, as many at once as the bank has slots.

    Each is recorded when it is done. Return False when asked to stop before; those that were being
    trained then begin anew the next time.

    Args:
        repeats: What to train.
        study: The study's name.
        storage: Where it lives.
        recorder: Writes it.
        learning: The bank, empty.
        should_stop: Asked before every step.
        progressed: Receives how many are done, and of how many.
    """
    bank, leases = learning.bank, LeaseBook(storage)
    waiting, training = list(repeats), dict[int, Repeat]()
    try:
        while waiting or training:
            if should_stop():
                return False
            for slot in range(bank.slots):
                if waiting and slot not in training:
                    training[slot] = waiting.pop(0)
                    learning.begin(slot, training[slot].recipe, seed=training[slot].seed)
            bank.step()
            for slot in list(training):
                progress = bank.progress(slot)
                if progress.failure is None and not progress.finished:
                    continue
                repeat = training.pop(slot)
                if progress.failure is None:
                    _measure(repeat, slot, study, leases, recorder, learning)
                bank.release(slot)
                progressed(len(repeats) - len(waiting) - len(training), len(repeats))
    finally:
        for slot in training:
            bank.release(slot)
    return True


def _measure(
    repeat: Repeat,
    slot: int,
    study: str,
    leases: LeaseBook,
    recorder: Recorder,
    learning: Learning,
) -> None:
    """Measure and record a repeat, unless another process has its trial: that one does it then."""
    progress = learning.bank.progress(slot)
    measured = learning.measure_everything(
        slot,
        epoch=progress.epoch,
        trained_tokens=progress.trained_tokens,
        sampling=repeat.sampling,
        noise_seed=repeat.noise_seed,
    )
    lease = None
    if repeat.trial is not None:
        lease = leases.acquire(
            study, repeat.trial, owner=describe_this_process(), seconds=LEASE_SECONDS
        )
        if lease is None:
            return
    recorder.record_measurement(
        lease,
        measured.measurement,
        measured.verdicts,
        purpose="yardstick" if lease is None else "repeat",
        repeat=repeat.number,
    )
    if lease is not None:
        leases.release(lease)
