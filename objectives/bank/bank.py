"""Trains K LoRA adapters in one forward and backward pass of the frozen base.

A trial's result depends on its recipe, seed and texts only, not on its slot or its neighbours.
Adapters are attached by forward hooks for the length of a pass; between passes the base is bare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from data.recipes import Recipe
from objectives.bank.adam import clip_gradients, learning_rate_at, update_weights
from objectives.bank.adapters import Layout, adapters_attached, initialise
from objectives.bank.batches import (
    Batch,
    count_predicted,
    cut_examples,
    make_batches,
)
from objectives.bank.loading import read_adapter
from objectives.bank.passes import SlotStep, TrainingPass, differentiate, lay_out_pass
from objectives.bank.slot_weights import SlotWeights
from objectives.models.base import BaseModel
from objectives.models.linear_modules import find_linear_modules
from objectives.models.machine.devices import still_computes
from objectives.models.machine.memory import is_out_of_memory, release_memory
from objectives.models.machine.placement import devices_of, is_offloaded
from objectives.models.passes.blocks import lay_in_blocks
from objectives.models.passes.recomputing import recomputing

EpochTexts = Callable[[int], Sequence[str]]

# Texts come again every epoch and in many trials; the same text is tokenised once.
_REMEMBERED_TEXTS = 65_536

# The reason of a failure goes into a table and a terminal.
_LONGEST_REASON = 200
_LONGEST_SHOWN_TEXT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How far a trial has come.

    `epoch` counts completed epochs and `position` the batches of the running one; `steps` counts
    optimizer steps, `trained_tokens` predicted tokens, and `padding_tokens` the entries that were
    computed only to make rows equally long, which depends on the neighbours. `loss_nats` is the
    mean loss per predicted token before the last step, None before the first.
    """

    epoch: int = 0
    position: int = 0
    steps: int = 0
    trained_tokens: int = 0
    padding_tokens: int = 0
    loss_nats: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a slot's trial has done so far; of an empty slot, nothing.

    `epoch` counts completed epochs; `finished` says that all of the recipe's are, and
    `is_at_epoch_end` that no step was taken since one was completed. `failure` is the reason why a
    trial stopped before, with the weights of its last good step. The other fields are those of
    `Counters`; `highest_learning_rate` is the largest rate of any step taken.
    """

    epoch: int = 0
    finished: bool = False
    is_at_epoch_end: bool = False
    steps: int = 0
    trained_tokens: int = 0
    padding_tokens: int = 0
    highest_learning_rate: float = 0.0
    loss_nats: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """All that a trial needs to go on in another bank as if nothing had happened, but its texts.

    `weights`, `first_moments` and `second_moments` are (rank, columns of the target modules).
    Dropout needs no state: its draws are a function of the seed and the step.
    """

    recipe: Recipe
    seed: int
    counters: Counters
    weights: Tensor
    first_moments: Tensor
    second_moments: Tensor


@dataclass(slots=True, kw_only=True)
class _Training:
    """The trial in a slot; `batches` are those of the running epoch, made at its first step."""

    recipe: Recipe
    seed: int
    epoch_texts: EpochTexts
    counters: Counters
    batches: list[Batch] | None = None

    @property
    def finished(self) -> bool:
        return self.counters.epoch == self.recipe.epochs

    @property
    def running(self) -> bool:
        return not self.finished and self.counters.failure is None


class Bank:
    """Slots for LoRA adapters inside one frozen base model."""

    def __init__(
        self,
        base: BaseModel,
        *,
        slots: int,
        max_rank: int,
        gradient_checkpointing: bool = False,
        halves_when_full: bool = True,
    ) -> None:
        """Make an empty bank.

        Args:
            base: The model.
            slots: How many adapters it can hold.
            max_rank: The largest rank of one.
            gradient_checkpointing: Compute a layer's inner values again in the backward pass
                instead of keeping them, which takes less memory and more time. It is done anyway
                where weights wait in main memory.
            halves_when_full: When a pass runs out of memory, train half as many slots in a pass
                from then on, and all in several passes; what else fails is narrowed down to the
                slot at fault, as `step` says. Otherwise every error is raised.

        Raises:
            ModelError: If the model has no modules for adapters or cannot be computed again.
        """
        self.base = base
        # Weights that are copied to a device for a layer would stay there until its backward pass.
        gradient_checkpointing = gradient_checkpointing or is_offloaded(base.model)
        self._gradient_checkpointing = gradient_checkpointing
        self._recomputing = (
            partial(recomputing, base.model) if gradient_checkpointing else nullcontext
        )
        with self._recomputing():
            pass  # what cannot be computed again is refused now
        self.slots = slots
        self.max_rank = max_rank
        self.layout = Layout(find_linear_modules(base.model))
        self._adapters = SlotWeights(
            self.layout, slots=slots, max_rank=max_rank, device=base.device
        )
        self._slots_per_pass = slots
        self._halves_when_full = halves_when_full
        self._work = self._own_work = 0
        self._training: dict[int, _Training] = {}
        self._encode = lru_cache(_REMEMBERED_TEXTS)(partial(_encode, base))

    def admit(self, slot: int, recipe: Recipe, epoch_texts: EpochTexts, *, seed: int) -> None:
        """Put a new trial in an empty slot; `step` then trains it.

        The texts of its first epoch are tokenised now. Whatever is raised, the slot is as empty as
        before and the others are as they were.

        Args:
            slot: Counted from 0.
            recipe: How it trains.
            epoch_texts: Returns the ordered training texts of epoch 0, 1, ...; always the same.
            seed: Fixes the initial weights and the dropout.

        Raises:
            ValueError: If the slot is not empty, the recipe does not fit the bank or the model, or
                the first epoch has no text to train on or one that cannot be tokenised.
        """
        with self._occupying(slot, recipe, epoch_texts, seed, Counters()):
            initialise(
                self.layout,
                self._adapters.region(self._adapters.weights, slot),
                recipe.target_modules,
                seed=seed,
            )

    def step(self, slots: Sequence[int] | None = None) -> tuple[int, ...]:
        """Take one optimizer step for every trial that still trains.

        A slot that cannot take it fails, with its reason, and the others take theirs: a pass that
        raises any exception is done again in halves until what fails is a single slot. That way
        an error of the texts, of a module or of the memory costs one trial and not all of them.
        Where a device cannot compute any more no slot is at fault, and the error is raised.

        Args:
            slots: Only these; all by default. Slots without a training trial are passed over.

        Returns:
            The slots that completed an epoch or failed in this step.
        """
        asked = range(self.slots) if slots is None else slots
        batches, ended = self._next_batches(
            slot for slot in asked if slot in self._training and self._training[slot].running
        )
        waiting = list(batches)
        halves: list[list[int]] = []
        while halves or waiting:
            if halves:
                chosen = halves.pop()
            else:
                chosen = waiting[: self._slots_per_pass]
                waiting = waiting[len(chosen) :]
            try:
                training_pass, losses, norms = self._differentiate(
                    {slot: batches[slot] for slot in chosen}
                )
            except Exception as error:
                is_full, reason = is_out_of_memory(error), _say_failure(error)
                is_lost = not is_full and not all(map(still_computes, devices_of(self.base.model)))
                if is_lost or not self._halves_when_full:
                    raise
            else:
                ended += self._take_step(
                    {slot: batches[slot] for slot in chosen}, training_pass, losses, norms
                )
                continue
            # Nothing has moved: weights change after a pass, and the next one writes its gradients
            # over those that this one has left.
            release_memory()
            if len(chosen) == 1:
                (slot,) = chosen
                self._fail(slot, self._say_too_large(batches[slot]) if is_full else reason)
                ended.append(slot)
            elif is_full:
                self._slots_per_pass = len(chosen) // 2
                waiting = chosen + waiting
            else:
                middle = len(chosen) // 2
                halves += [chosen[middle:], chosen[:middle]]
        return tuple(sorted(ended))

    def progress(self, slot: int) -> Progress:
        """Return how far the trial of a slot has come."""
        training = self._training.get(slot)
        if training is None:
            return Progress()
        counters = training.counters
        return Progress(
            epoch=counters.epoch,
            finished=training.finished,
            is_at_epoch_end=counters.steps > 0 and counters.position == 0,
            steps=counters.steps,
            trained_tokens=counters.trained_tokens,
            padding_tokens=counters.padding_tokens,
            # The rate never falls, so the last step's is the highest.
            highest_learning_rate=(
                learning_rate_at(training.recipe, counters.steps) if counters.steps else 0.0
            ),
            loss_nats=counters.loss_nats,
            failure=counters.failure,
        )

    @property
    def padding_share(self) -> float | None:
        """Return which share of the adapters' work so far was padding, of tokens or of ranks.

        None before any.
        """
        return 1 - self._own_work / self._work if self._work else None

    def release(self, slot: int) -> None:
        """Make a slot empty: weights, moments and counters are zero."""
        self._training.pop(slot, None)
        self._adapters.clear(slot)

    def answering(self, slot_of_entry: Sequence[int]) -> AbstractContextManager[None]:
        """During it, passes of the base apply slot `slot_of_entry[i]`'s adapter to entry `i`.

        Entries are the tokens of a pass, row after row. Slots may come in any order and number; -1
        is the untouched base. Nothing is kept between passes, so key/value caches work as usual.

        Raises:
            ValueError: If a slot is empty, or a pass has another number of entries.
        """
        slots_of = np.asarray(slot_of_entry)
        slots = [slot for slot in map(int, np.unique(slots_of)) if slot != -1]
        for slot in slots:
            if not 0 <= slot < self.slots or not self._adapters.rank(slot):
                raise ValueError(f"slot: {slot} is empty; it has no adapter to answer with")
        if not slots:
            return nullcontext()
        slots.sort(key=self._adapters.place)
        positions = self._adapters.positions(slots)
        blocks = lay_in_blocks(
            [[np.flatnonzero(slots_of == slot) for slot in slots]],
            len(slots_of),
            device=self.base.device,
        )
        group = self._adapters.group(slots, positions)
        return adapters_attached(self.layout, positions, [group], blocks)

    def load(self, slot: int, folder: Path, *, any_base: bool = False) -> None:
        """Put a PEFT adapter from disk in an empty slot, for answering only.

        Args:
            slot: Counted from 0.
            folder: As PEFT writes it.
            any_base: Take it if only its shapes fit, whichever base it was trained in.

        Raises:
            ModelError: If the folder holds no LoRA adapter that fits this model and bank.
            ValueError: If the slot is not empty.
        """
        self._require_empty(slot)
        matrices = read_adapter(
            folder,
            self.layout.modules,
            max_rank=self.max_rank,
            base_digest=None if any_base else self.base.digest,
        )
        positions = range(len(self.layout.modules))
        largest = max(len(loaded.down) for loaded in matrices.values())
        self._adapters.cover(slot, rank=largest, positions=positions, scale=1)
        weights = self._adapters.region(self._adapters.weights, slot)
        parts = self.layout.split(weights, positions)
        for module, (down, up) in zip(self.layout.modules, parts, strict=True):
            if (loaded := matrices.get(module.name)) is not None:
                rank = len(loaded.down)
                down[:rank] = loaded.down
                up[:rank] = loaded.up

    def recipe(self, slot: int) -> Recipe:
        """Return the recipe of the trial in a slot.

        Raises:
            ValueError: If no trial was admitted there.
        """
        return self._trial(slot).recipe

    def matrices(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A (rank, in) and B (out, rank) of a trial's modules by name, as views."""
        positions = self._adapters.positions([slot])
        weights = self._adapters.region(self._adapters.weights, slot)
        parts = self.layout.split(weights, positions)
        return {
            self.layout.modules[position].name: (down, up.T)
            for position, (down, up) in zip(positions, parts, strict=True)
        }

    def snapshot(self, slot: int) -> TrainingState:
        """Return a copy of all that the trial of a slot needs to go on elsewhere.

        Raises:
            ValueError: If no trial was admitted there.
        """
        training, adapters = self._trial(slot), self._adapters
        return TrainingState(
            recipe=training.recipe,
            seed=training.seed,
            counters=training.counters,
            weights=adapters.region(adapters.weights, slot).clone(),
            first_moments=adapters.region(adapters.first_moments, slot).clone(),
            second_moments=adapters.region(adapters.second_moments, slot).clone(),
        )

    def resume(self, slot: int, state: TrainingState, epoch_texts: EpochTexts) -> None:
        """Put a trial in an empty slot and go on from `state`.

        Raises:
            ValueError: As `admit` does, or if the state's tensors are not of this model.
        """
        adapters = self._adapters
        with self._occupying(slot, state.recipe, epoch_texts, state.seed, state.counters):
            for held, saved in (
                (adapters.weights, state.weights),
                (adapters.first_moments, state.first_moments),
                (adapters.second_moments, state.second_moments),
            ):
                region = adapters.region(held, slot)
                if region.shape != saved.shape:
                    raise ValueError(
                        f"state: a tensor of {tuple(saved.shape)} is not allowed; in this model "
                        f"the recipe's adapter is {tuple(region.shape)}"
                    )
                region.copy_(saved)

    def _trial(self, slot: int) -> _Training:
        if slot not in self._training:
            raise ValueError(f"slot: no trial was admitted to {slot}")
        return self._training[slot]

    def _require_empty(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot: {slot} does not exist; it must be in 0..{self.slots - 1}")
        if self._adapters.rank(slot):
            raise ValueError(f"slot: {slot} is not empty; release it first")

    @contextmanager
    def _occupying(
        self, slot: int, recipe: Recipe, epoch_texts: EpochTexts, seed: int, counters: Counters
    ) -> Iterator[None]:
        """Put a trial in an empty slot, to be filled during it; an error leaves the slot empty."""
        self._require_empty(slot)
        if recipe.rank > self.max_rank:
            raise ValueError(
                f"rank: {recipe.rank} is not allowed; it must be at most {self.max_rank}, the "
                "largest that this bank was made for"
            )
        if recipe.cutoff > self.base.context_tokens:
            raise ValueError(
                f"cutoff: {recipe.cutoff} is not allowed; it must be at most "
                f"{self.base.context_tokens} tokens, the most that {self.base.name} can read"
            )
        positions = self.layout.positions(recipe.target_modules)
        training = _Training(recipe=recipe, seed=seed, epoch_texts=epoch_texts, counters=counters)
        if training.running:
            self._next_batch(training)  # what cannot be trained on is refused now
        try:
            self._adapters.cover(slot, rank=recipe.rank, positions=positions, scale=recipe.scale)
            yield
        except BaseException:
            self._adapters.clear(slot)
            raise
        self._training[slot] = training

    def _next_batches(self, slots: Iterable[int]) -> tuple[dict[int, Batch], list[int]]:
        """Return what each slot trains on next, and the slots that failed for want of it."""
        batches: dict[int, Batch] = {}
        failed: list[int] = []
        for slot in slots:
            try:
                batches[slot] = self._next_batch(self._training[slot])
            except Exception as error:
                if not self._halves_when_full:
                    raise
                self._fail(slot, _say_failure(error))
                failed.append(slot)
        return batches, failed

    def _next_batch(self, training: _Training) -> Batch:
        recipe, counters = training.recipe, training.counters
        if training.batches is None:
            documents = map(self._tokenise, training.epoch_texts(counters.epoch))
            examples = cut_examples(documents, cutoff=recipe.cutoff, packing=recipe.packing)
            training.batches = make_batches(examples, recipe.batch_size)
        if counters.position >= len(training.batches):
            raise ValueError(
                f"epoch_texts: epoch {counters.epoch} has {len(training.batches)} batches to "
                f"train on; it must have more than {counters.position}"
            )
        return training.batches[counters.position]

    def _tokenise(self, text: str) -> tuple[int, ...]:
        try:
            return self._encode(text)
        except Exception as error:  # whatever a tokenizer may raise
            shown = repr(text)
            if len(shown) > _LONGEST_SHOWN_TEXT:
                shown = f"{shown[:_LONGEST_SHOWN_TEXT]}…"
            raise ValueError(
                f"epoch_texts: {shown} cannot be tokenised ({_say_failure(error)}); change or "
                "leave out this text"
            ) from error

    def _differentiate(
        self, batches: dict[int, Batch]
    ) -> tuple[TrainingPass, dict[int, float], dict[int, float]]:
        """Return a pass over these slots that was computed, and their losses and norms."""
        training_pass = lay_out_pass(
            self.base,
            self._adapters,
            {
                slot: SlotStep(
                    batch=batch,
                    dropout=self._training[slot].recipe.dropout,
                    seed=self._training[slot].seed,
                    number=self._training[slot].counters.steps + 1,
                )
                for slot, batch in batches.items()
            },
        )
        losses, norms = differentiate(self.base, self.layout, training_pass, self._recomputing())
        return training_pass, losses, norms

    def _take_step(
        self,
        batches: dict[int, Batch],
        training_pass: TrainingPass,
        losses: dict[int, float],
        norms: dict[int, float],
    ) -> list[int]:
        """Take the step of these slots' pass; return those that ended an epoch or failed."""
        self._work += training_pass.work
        self._own_work += training_pass.own_work
        sound = [
            slot for slot in batches if math.isfinite(losses[slot]) and math.isfinite(norms[slot])
        ]
        if sound:
            self._update({slot: training_pass.gradients[slot] for slot in sound}, norms)
        for slot, batch in batches.items():
            if slot in sound:
                self._advance(
                    self._training[slot], batch, training_pass.padding_of[slot], losses[slot]
                )
            else:
                self._fail(slot, self._say_not_finite(slot, losses[slot], norms[slot]))
        return [
            slot
            for slot in batches
            if slot not in sound or self._training[slot].counters.position == 0
        ]

    def _update(self, gradients: dict[int, Tensor], norms: dict[int, float]) -> None:
        """Clip the gradients of these slots and take an optimizer step with each."""
        slots, adapters = list(gradients), self._adapters
        clip_gradients(list(gradients.values()), [norms[slot] for slot in slots])
        update_weights(
            [adapters.region(adapters.weights, slot) for slot in slots],
            list(gradients.values()),
            [adapters.region(adapters.first_moments, slot) for slot in slots],
            [adapters.region(adapters.second_moments, slot) for slot in slots],
            recipes=[self._training[slot].recipe for slot in slots],
            steps=[self._training[slot].counters.steps + 1 for slot in slots],
        )

    @staticmethod
    def _advance(training: _Training, batch: Batch, padding: int, loss_nats: float) -> None:
        counters = training.counters
        assert training.batches is not None
        epoch_ends = counters.position + 1 == len(training.batches)
        training.counters = replace(
            counters,
            epoch=counters.epoch + epoch_ends,
            position=0 if epoch_ends else counters.position + 1,
            steps=counters.steps + 1,
            trained_tokens=counters.trained_tokens + count_predicted(batch),
            padding_tokens=counters.padding_tokens + padding,
            loss_nats=loss_nats,
        )
        if epoch_ends:
            training.batches = None

    def _fail(self, slot: int, reason: str) -> None:
        training = self._training[slot]
        training.counters = replace(training.counters, failure=reason)

    def _say_not_finite(self, slot: int, loss_nats: float, gradient_norm: float) -> str:
        training = self._training[slot]
        step = training.counters.steps + 1
        name, value = (
            ("gradient norm", gradient_norm) if math.isfinite(loss_nats) else ("loss", loss_nats)
        )
        rate = learning_rate_at(training.recipe, step)
        return (
            f"{name}: it was {value} in step {step} at learning rate {rate:g}; "
            "a smaller learning rate may help"
        )

    def _say_too_large(self, batch: Batch) -> str:
        help_more = "" if self._gradient_checkpointing else ", or gradient_checkpointing = true"
        return (
            f"memory: {len(batch)} texts of up to {max(map(len, batch))} tokens do not "
            f"fit at once, even alone; a smaller batch_size or cutoff may help{help_more}"
        )


def _encode(base: BaseModel, text: str) -> tuple[int, ...]:
    return tuple(base.encode_document(text))


def _say_failure(error: Exception) -> str:
    """Return an exception's type and message on one line of at most 200 characters."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return said if len(said) <= _LONGEST_REASON else f"{said[: _LONGEST_REASON - 1]}…"
