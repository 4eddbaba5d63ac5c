"""Trains K LoRA adapters in one forward and backward pass of the frozen base.

A trial's result depends on its recipe, seed and texts only, not on its slot or its neighbours.
Adapters are attached by forward hooks for the length of a pass; between passes the base is bare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.recipes import Recipe
from objectives.bank.adam import clip_gradients, learning_rate_at, update_weights
from objectives.bank.adapters import (
    AdapterGroup,
    Dropout,
    Layout,
    adapters_attached,
    initialise,
)
from objectives.bank.batches import (
    Batch,
    PassInputs,
    count_predicted,
    count_tokens,
    cut_examples,
    lay_out,
    make_batches,
)
from objectives.bank.dropout import DropoutStream, draw_dropout
from objectives.bank.loading import read_adapter
from objectives.bank.modules import find_linear_modules
from objectives.bank.sizes import group_by_size, index_slots
from objectives.models.base import BaseModel
from objectives.models.blocks import Blocks, Entries, lay_in_blocks
from objectives.models.memory import is_out_of_memory, release_memory
from objectives.models.reading import attending, logits_only_of
from objectives.models.recomputing import recomputing

EpochTexts = Callable[[int], Sequence[str]]

# Texts come again every epoch and in many trials; the same text is tokenised once.
_REMEMBERED_TEXTS = 65_536


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

    `epoch` counts completed epochs; `finished` says that all of the recipe's are. `failure` is the
    reason why a trial stopped before, with the weights of its last good step. The other fields are
    those of `Counters`; `highest_learning_rate` is the largest rate of any step taken.
    """

    epoch: int = 0
    finished: bool = False
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One forward and backward pass over the batches of several slots.

    `adapters` has those of each of `blocks`; `gradients` are each slot's own (rank, columns of its
    modules), as views of where the pass writes; `padding_of` counts the entries that were added to
    make each slot as large as its neighbours.
    """

    inputs: PassInputs
    positions: range
    adapters: list[AdapterGroup]
    blocks: Blocks
    gradients: dict[int, Tensor]
    padding_of: dict[int, int]


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
                instead of keeping them, which takes less memory and more time.
            halves_when_full: When a pass runs out of memory, train half as many slots in a pass
                from then on, and all in several passes; otherwise the error is raised.

        Raises:
            ModelError: If the model has no modules for adapters or cannot be computed again.
        """
        self.base = base
        self._recomputing = (
            partial(recomputing, base.model) if gradient_checkpointing else nullcontext
        )
        self.slots = slots
        self.max_rank = max_rank
        self.layout = Layout(find_linear_modules(base.model))
        shape = (slots, max_rank, self.layout.width)
        self._weights = torch.zeros(shape, device=base.device)
        self._first_moments = torch.zeros_like(self._weights)
        self._second_moments = torch.zeros_like(self._weights)
        self._gradients = torch.empty_like(self._weights)
        self._scales = torch.zeros(slots, device=base.device)
        self._slots_per_pass = slots
        self._entries = self._padding_entries = 0
        self._halves_when_full = halves_when_full
        # What each slot's adapter covers: how many ranks, and which positions of the layout.
        self._ranks = [0] * slots
        self._positions = [range(0)] * slots
        self._training: dict[int, _Training] = {}
        self._encode = lru_cache(_REMEMBERED_TEXTS)(lambda text: tuple(base.encode_document(text)))

    def admit(self, slot: int, recipe: Recipe, epoch_texts: EpochTexts, *, seed: int) -> None:
        """Put a new trial in an empty slot; `step` then trains it.

        Args:
            slot: Counted from 0.
            recipe: How it trains.
            epoch_texts: Returns the ordered training texts of epoch 0, 1, ...; always the same.
            seed: Fixes the initial weights and the dropout.

        Raises:
            ValueError: If the slot is not empty, or the recipe does not fit the bank or the model.
        """
        self._occupy(slot, recipe, epoch_texts, seed, Counters())
        initialise(
            self.layout, self._weights[slot, : recipe.rank], recipe.target_modules, seed=seed
        )

    def step(self, slots: Sequence[int] | None = None) -> tuple[int, ...]:
        """Take one optimizer step for every trial that still trains.

        Args:
            slots: Only these; all by default. Slots without a training trial are passed over.

        Returns:
            The slots that completed an epoch or failed in this step.
        """
        asked = range(self.slots) if slots is None else slots
        batches = {
            slot: self._next_batch(training)
            for slot in asked
            if (training := self._training.get(slot)) is not None and training.running
        }
        ended: list[int] = []
        waiting = list(batches)
        while waiting:
            chosen = waiting[: self._slots_per_pass]
            try:
                ended += self._step_together({slot: batches[slot] for slot in chosen})
                waiting = waiting[len(chosen) :]
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._halves_when_full:
                    raise
            # Nothing has moved yet: weights change after a pass.
            release_memory()
            if len(chosen) > 1:
                self._slots_per_pass = len(chosen) // 2
            else:
                self._fail_for_memory(self._training[chosen[0]], batches[chosen[0]])
                ended += chosen
                waiting = waiting[1:]
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
        """Return which share of the adapters' work so far was padding; None before any."""
        return self._padding_entries / self._entries if self._entries else None

    def release(self, slot: int) -> None:
        """Make a slot empty: weights, moments and counters are zero."""
        self._training.pop(slot, None)
        for tensor in (self._weights, self._first_moments, self._second_moments, self._scales):
            tensor[slot] = 0
        self._ranks[slot] = 0
        self._positions[slot] = range(0)

    def answering(self, slot_of_entry: Sequence[int]) -> AbstractContextManager[None]:
        """During it, passes of the base apply slot `slot_of_entry[i]`'s adapter to entry `i`.

        Entries are the tokens of a pass, row after row. Slots may come in any order and number; -1
        is the untouched base. Nothing is kept between passes, so key/value caches work as usual.

        Raises:
            ValueError: If a slot is empty, or a pass has another number of entries.
        """
        slots_of = np.asarray(slot_of_entry)
        slots = [int(slot) for slot in np.unique(slots_of) if slot != -1]
        for slot in slots:
            if not 0 <= slot < self.slots or not self._ranks[slot]:
                raise ValueError(f"slot: {slot} is empty; it has no adapter to answer with")
        if not slots:
            return nullcontext()
        positions = self._positions_of(slots)
        blocks = lay_in_blocks(
            [[np.flatnonzero(slots_of == slot) for slot in slots]],
            len(slots_of),
            device=self.base.device,
        )
        group = self._group(slots, self.layout.columns(positions))
        return adapters_attached(self.layout, positions, [group], blocks)

    def load(self, slot: int, folder: Path) -> None:
        """Put a PEFT adapter from disk in an empty slot, for answering only.

        Raises:
            ModelError: If the folder holds no LoRA adapter that fits this model and bank.
            ValueError: If the slot is not empty.
        """
        self._require_empty(slot)
        matrices = read_adapter(folder, self.layout.modules, max_rank=self.max_rank)
        positions = range(len(self.layout.modules))
        parts = self.layout.split(self._weights[slot], positions)
        for module, (down, up) in zip(self.layout.modules, parts, strict=True):
            if (loaded := matrices.get(module.name)) is not None:
                rank = len(loaded.down)
                down[:rank] = loaded.down
                up[:rank] = loaded.up
                self._ranks[slot] = max(self._ranks[slot], rank)
        self._scales[slot] = 1
        self._positions[slot] = positions

    def recipe(self, slot: int) -> Recipe:
        """Return the recipe of the trial in a slot.

        Raises:
            ValueError: If no trial was admitted there.
        """
        return self._trial(slot).recipe

    def matrices(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A (rank, in) and B (out, rank) of a trial's modules by name, as views."""
        positions = self._positions[slot]
        weights = self._slot_region(self._weights, slot)
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
        training = self._trial(slot)
        return TrainingState(
            recipe=training.recipe,
            seed=training.seed,
            counters=training.counters,
            weights=self._slot_region(self._weights, slot).clone(),
            first_moments=self._slot_region(self._first_moments, slot).clone(),
            second_moments=self._slot_region(self._second_moments, slot).clone(),
        )

    def resume(self, slot: int, state: TrainingState, epoch_texts: EpochTexts) -> None:
        """Put a trial in an empty slot and go on from `state`.

        Raises:
            ValueError: As `admit` does.
        """
        self._occupy(slot, state.recipe, epoch_texts, state.seed, state.counters)
        self._slot_region(self._weights, slot).copy_(state.weights)
        self._slot_region(self._first_moments, slot).copy_(state.first_moments)
        self._slot_region(self._second_moments, slot).copy_(state.second_moments)

    def _trial(self, slot: int) -> _Training:
        if slot not in self._training:
            raise ValueError(f"slot: no trial was admitted to {slot}")
        return self._training[slot]

    def _require_empty(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot: {slot} does not exist; it must be in 0..{self.slots - 1}")
        if self._ranks[slot]:
            raise ValueError(f"slot: {slot} is not empty; release it first")

    def _occupy(
        self, slot: int, recipe: Recipe, epoch_texts: EpochTexts, seed: int, counters: Counters
    ) -> None:
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
        self._training[slot] = _Training(
            recipe=recipe, seed=seed, epoch_texts=epoch_texts, counters=counters
        )
        self._ranks[slot] = recipe.rank
        self._positions[slot] = self.layout.positions(recipe.target_modules)
        self._scales[slot] = recipe.scale

    def _slot_region(self, tensor: Tensor, slot: int) -> Tensor:
        return self._slot_part(tensor[slot], slot, 0)

    def _slot_part(self, tensor: Tensor, slot: int, first_column: int) -> Tensor:
        """Return the ranks and columns of `tensor` (ranks, columns) that a slot's adapter has."""
        columns = self.layout.columns(self._positions[slot])
        return tensor[
            : self._ranks[slot], columns.start - first_column : columns.stop - first_column
        ]

    def _positions_of(self, slots: Iterable[int]) -> range:
        ranges = [self._positions[slot] for slot in slots]
        return range(min(r.start for r in ranges), max(r.stop for r in ranges))

    def _next_batch(self, training: _Training) -> Batch:
        recipe, counters = training.recipe, training.counters
        if training.batches is None:
            documents = map(self._encode, training.epoch_texts(counters.epoch))
            examples = cut_examples(documents, cutoff=recipe.cutoff, packing=recipe.packing)
            training.batches = make_batches(examples, recipe.batch_size)
        if counters.position >= len(training.batches):
            raise ValueError(
                f"epoch_texts: epoch {counters.epoch} has {len(training.batches)} batches to "
                f"train on; it must have more than {counters.position}"
            )
        return training.batches[counters.position]

    def _step_together(self, batches: dict[int, Batch]) -> list[int]:
        """Take one step of these slots in one pass; return those that ended an epoch or failed."""
        training_pass = self._lay_out(batches)
        self._entries += training_pass.blocks.padded_entries
        self._padding_entries += sum(training_pass.padding_of.values())
        losses, norms = self._differentiate(training_pass)
        sound = [
            slot for slot in batches if math.isfinite(losses[slot]) and math.isfinite(norms[slot])
        ]
        self._update({slot: training_pass.gradients[slot] for slot in sound}, norms)
        for slot, batch in batches.items():
            if slot in sound:
                self._advance(
                    self._training[slot], batch, training_pass.padding_of[slot], losses[slot]
                )
            else:
                self._fail(self._training[slot], losses[slot], norms[slot])
        return [
            slot
            for slot in batches
            if slot not in sound or self._training[slot].counters.position == 0
        ]

    def _lay_out(self, batches: dict[int, Batch]) -> _Pass:
        """Return one pass over the batches of several slots, their gradients zero."""
        groups = [
            same_size
            for same_rank in group_by_size({slot: self._ranks[slot] for slot in batches})
            for same_size in group_by_size(
                {slot: count_tokens(batches[slot]) for slot in same_rank}
            )
        ]
        slots = [slot for group in groups for slot in group]
        inputs = lay_out(self.base, [batches[slot] for slot in slots])
        entries_of = dict(zip(slots, inputs.entries_of, strict=True))
        places_of = dict(zip(slots, inputs.places_of, strict=True))
        positions = self._positions_of(slots)
        columns = self.layout.columns(positions)
        adapters: list[AdapterGroup] = []
        gradients: dict[int, Tensor] = {}
        free = self._gradients.view(-1)
        for group in groups:
            own = self._group(group, columns)
            count = own.weights.numel()
            written, free = free[:count].view_as(own.weights).zero_(), free[count:]
            dropout = self._dropout(
                {slot: places_of[slot] for slot in group},
                entries_per_slot=max(len(entries_of[slot]) for slot in group),
            )
            adapters.append(replace(own, gradients=written, dropout=dropout))
            for slot, gradient in zip(group, written, strict=True):
                gradients[slot] = self._slot_part(gradient, slot, columns.start)
        blocks = lay_in_blocks(
            [[entries_of[slot] for slot in group] for group in groups],
            inputs.rows.entries,
            device=self.base.device,
        )
        return _Pass(
            inputs=inputs,
            positions=positions,
            adapters=adapters,
            blocks=blocks,
            gradients=gradients,
            padding_of={
                slot: size - count_tokens(batches[slot])
                for group, (_, size) in zip(groups, blocks.shapes, strict=True)
                for slot in group
            },
        )

    def _differentiate(self, given: _Pass) -> tuple[dict[int, float], dict[int, float]]:
        """Fill in the gradients; return each slot's mean loss and its gradient's norm."""
        model, inputs = self.base.model, given.inputs
        with (
            adapters_attached(self.layout, given.positions, given.adapters, given.blocks),
            attending(model, inputs.rows) as arguments,
            logits_only_of(model, inputs.predicting),
            self._recomputing(),
        ):
            logits = model(**arguments).logits
            token_losses = functional.cross_entropy(
                logits.float(), inputs.labels, reduction="none"
            )
            # Not the gradient of a sum over slots: one slot's NaN would be in that sum.
            torch.autograd.backward(token_losses, inputs.weights)
        losses = torch.segment_reduce(token_losses.detach(), "mean", lengths=inputs.counts)
        slots = list(given.gradients)
        norms = torch.stack(torch._foreach_norm(list(given.gradients.values())))
        # One transfer for all, because on a GPU each of them waits for the device.
        values = torch.stack([losses, norms.to(losses.dtype)]).tolist()
        loss_of, norm_of = (dict(zip(slots, row, strict=True)) for row in values)
        return loss_of, norm_of

    def _group(self, slots: Sequence[int], columns: slice) -> AdapterGroup:
        """Return the adapters of `slots` (ascending)."""
        index = index_slots(slots)
        rank = max(self._ranks[slot] for slot in slots)
        return AdapterGroup(
            weights=self._weights[index, :rank, columns], scales=self._scales[index]
        )

    def _dropout(self, places_of: dict[int, Entries], *, entries_per_slot: int) -> Dropout | None:
        trainings = [self._training[slot] for slot in places_of]
        if not any(training.recipe.dropout for training in trainings):
            return None
        streams = [
            DropoutStream(
                probability=training.recipe.dropout,
                seed=training.seed,
                step=training.counters.steps + 1,
                places=places,
            )
            for training, places in zip(trainings, places_of.values(), strict=True)
        ]

        def draw(position: int) -> Tensor:
            module = self.layout.modules[position]
            return draw_dropout(
                streams,
                module.name,
                entries_per_slot=entries_per_slot,
                features=module.in_features,
                device=self.base.device,
            )

        return draw

    def _update(self, gradients: dict[int, Tensor], norms: dict[int, float]) -> None:
        """Clip the gradients of these slots and take an optimizer step with each."""
        slots = list(gradients)
        if not slots:
            return
        clip_gradients([gradients[slot] for slot in slots], [norms[slot] for slot in slots])
        update_weights(
            [self._slot_region(self._weights, slot) for slot in slots],
            [gradients[slot] for slot in slots],
            [self._slot_region(self._first_moments, slot) for slot in slots],
            [self._slot_region(self._second_moments, slot) for slot in slots],
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

    @staticmethod
    def _fail(training: _Training, loss_nats: float, gradient_norm: float) -> None:
        step = training.counters.steps + 1
        name, value = (
            ("gradient norm", gradient_norm) if math.isfinite(loss_nats) else ("loss", loss_nats)
        )
        rate = learning_rate_at(training.recipe, step)
        training.counters = replace(
            training.counters,
            failure=f"{name}: it was {value} in step {step} at learning rate {rate:g}; "
            "a smaller learning rate may help",
        )

    @staticmethod
    def _fail_for_memory(training: _Training, batch: Batch) -> None:
        training.counters = replace(
            training.counters,
            failure=f"memory: {len(batch)} texts of up to {max(map(len, batch))} tokens do not "
            "fit at once, even alone; a smaller batch_size or cutoff may help, or "
            "gradient_checkpointing = true",
        )
