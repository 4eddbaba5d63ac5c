"""Trains K LoRA adapters in one forward and backward pass of the frozen base.

A trial's result depends on its recipe, seed and texts only, not on its slot or its neighbours.
Adapters are attached by forward hooks for the length of a pass; between passes the base is bare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
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
    cut_examples,
    lay_out,
    longest_row,
    make_batches,
)
from objectives.bank.dropout import DropoutStream, draw_dropout
from objectives.bank.loading import read_adapter
from objectives.bank.modules import find_linear_modules
from objectives.bank.routing import group_by_size, index_slots, route_rows
from objectives.models.base import BaseModel

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


class Bank:
    """Slots for LoRA adapters inside one frozen base model."""

    def __init__(self, base: BaseModel, *, slots: int, max_rank: int) -> None:
        """Make an empty bank of `slots` slots for adapters of ranks up to `max_rank`."""
        self.base = base
        self.slots = slots
        self.max_rank = max_rank
        self.layout = Layout(find_linear_modules(base.model))
        shape = (slots, max_rank, self.layout.width)
        self._weights = torch.zeros(shape, device=base.device)
        self._first_moments = torch.zeros_like(self._weights)
        self._second_moments = torch.zeros_like(self._weights)
        self._scales = torch.zeros(slots, device=base.device)
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
        lengths = {slot: longest_row(batch) for slot, batch in batches.items()}
        ended: list[int] = []
        for group in group_by_size(lengths):
            ended += self._step_together({slot: batches[slot] for slot in group})
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

    def release(self, slot: int) -> None:
        """Make a slot empty: weights, moments and counters are zero."""
        self._training.pop(slot, None)
        for tensor in (self._weights, self._first_moments, self._second_moments, self._scales):
            tensor[slot] = 0
        self._ranks[slot] = 0
        self._positions[slot] = range(0)

    def answering(self, row_slots: Sequence[int]) -> AbstractContextManager[None]:
        """During it, forward passes of the base apply slot `row_slots[i]`'s adapter to row `i`.

        Slots may come in any order and number; -1 is the untouched base. Each pass must have
        `len(row_slots)` rows. Nothing is kept between passes, so key/value caches work as usual.

        Raises:
            ValueError: If a slot is empty.
        """
        slots = sorted(set(row_slots) - {-1})
        for slot in slots:
            if not 0 <= slot < self.slots or not self._ranks[slot]:
                raise ValueError(f"slot: {slot} is empty; it has no adapter to answer with")
        if not slots:
            return nullcontext()
        positions = self._positions_of(slots)
        group = self._group(slots, row_slots, self.layout.columns(positions))
        return adapters_attached(self.layout, positions, [group])

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
        columns = self.layout.columns(self._positions[slot])
        return tensor[slot, : self._ranks[slot], columns]

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
        groups = group_by_size({slot: self._ranks[slot] for slot in batches})
        batches = {slot: batches[slot] for group in groups for slot in group}
        positions = self._positions_of(batches)
        inputs = lay_out(list(batches.values()), pad_id=self.base.pad_id, device=self.base.device)
        losses, gradients = self._differentiate(groups, batches, inputs, positions)
        norms = [torch.linalg.vector_norm(gradient, dim=(1, 2)) for gradient in gradients]
        values = torch.stack((losses, torch.cat(norms))).tolist()
        loss_of, norm_of = (dict(zip(batches, row, strict=True)) for row in values)
        sound = {s for s in batches if math.isfinite(loss_of[s]) and math.isfinite(norm_of[s])}

        columns = self.layout.columns(positions)
        for group, gradient, norm in zip(groups, gradients, norms, strict=True):
            kept = [place for place, slot in enumerate(group) if slot in sound]
            if not kept:
                continue
            if len(kept) < len(group):
                gradient, norm = gradient[kept], norm[kept]
            clip_gradients(gradient, norm)
            self._update([group[place] for place in kept], columns, gradient)

        width = inputs.token_ids.shape[1]
        for slot, batch in batches.items():
            if slot in sound:
                self._advance(self._training[slot], batch, width, loss_of[slot])
            else:
                self._fail(self._training[slot], loss_of[slot], norm_of[slot])
        return [
            slot
            for slot in batches
            if slot not in sound or self._training[slot].counters.position == 0
        ]

    def _differentiate(
        self,
        groups: list[list[int]],
        batches: dict[int, Batch],
        inputs: PassInputs,
        positions: range,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return each slot's mean loss, and each group's gradients (slots, ranks, columns)."""
        columns, width = self.layout.columns(positions), inputs.token_ids.shape[1]
        attached = [
            self._group(
                group,
                [slot for slot in group for _ in batches[slot]],
                columns,
                self._dropout({slot: batches[slot] for slot in group}, width),
            )
            for group in groups
        ]
        trained = [adapters.weights.requires_grad_() for adapters in attached]
        head = self.base.model.get_output_embeddings()
        with (
            adapters_attached(self.layout, positions, attached),
            _logits_only_of(head, inputs.predicting),
        ):
            # Without an attention mask causal attention takes its fast path; real tokens come
            # before the padding of their row and never see it.
            logits = self.base.model(input_ids=inputs.token_ids, use_cache=False).logits
            token_losses = functional.cross_entropy(
                logits.float(), inputs.labels, reduction="none"
            )
            # Not the gradient of a sum over slots: one slot's NaN would be in that sum.
            gradients = torch.autograd.grad(token_losses, trained, grad_outputs=inputs.weights)
        losses = torch.segment_reduce(token_losses.detach(), "mean", lengths=inputs.counts)
        return losses, gradients

    def _group(
        self,
        slots: Sequence[int],
        row_slots: Sequence[int],
        columns: slice,
        dropout: Dropout | None = None,
    ) -> AdapterGroup:
        """Return the adapters of `slots` (ascending) for rows of which each has one or none."""
        index = index_slots(slots)
        rank = max(self._ranks[slot] for slot in slots)
        return AdapterGroup(
            weights=self._weights[index, :rank, columns].detach(),
            scales=self._scales[index],
            routing=route_rows(row_slots, self.base.device),
            dropout=dropout,
        )

    def _dropout(self, batches: dict[int, Batch], longest: int) -> Dropout | None:
        trainings = [self._training[slot] for slot in batches]
        if not any(training.recipe.dropout for training in trainings):
            return None
        streams = [
            DropoutStream(
                probability=training.recipe.dropout,
                seed=training.seed,
                step=training.counters.steps + 1,
                rows=len(batch),
                longest=longest_row(batch),
            )
            for training, batch in zip(trainings, batches.values(), strict=True)
        ]
        rows_per_slot = max(map(len, batches.values()))

        def draw(position: int) -> Tensor:
            module = self.layout.modules[position]
            return draw_dropout(
                streams,
                module.name,
                rows_per_slot=rows_per_slot,
                longest=longest,
                features=module.in_features,
                device=self.base.device,
            )

        return draw

    def _update(self, slots: list[int], columns: slice, gradients: Tensor) -> None:
        region = (index_slots(slots), slice(gradients.shape[1]), columns)
        whole = (self._weights, self._first_moments, self._second_moments)
        weights, first_moments, second_moments = (tensor[region] for tensor in whole)
        update_weights(
            weights,
            gradients,
            first_moments,
            second_moments,
            recipes=[self._training[slot].recipe for slot in slots],
            steps=[self._training[slot].counters.steps + 1 for slot in slots],
        )
        if not isinstance(region[0], slice):  # then these are copies, not views
            for tensor, part in zip(whole, (weights, first_moments, second_moments), strict=True):
                tensor[region] = part

    @staticmethod
    def _advance(training: _Training, batch: Batch, width: int, loss_nats: float) -> None:
        counters = training.counters
        assert training.batches is not None
        epoch_ends = counters.position + 1 == len(training.batches)
        training.counters = replace(
            counters,
            epoch=counters.epoch + epoch_ends,
            position=0 if epoch_ends else counters.position + 1,
            steps=counters.steps + 1,
            trained_tokens=counters.trained_tokens + count_predicted(batch),
            padding_tokens=counters.padding_tokens + width * len(batch) - sum(map(len, batch)),
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


@contextmanager
def _logits_only_of(head: nn.Module, rows: Tensor) -> Iterator[None]:
    """During it, the base computes logits (entries of `rows`, vocabulary) of these tokens only."""
    handle = head.register_forward_pre_hook(
        lambda _head, inputs: (inputs[0].flatten(0, 1).index_select(0, rows),)
    )
    try:
        yield
    finally:
        handle.remove()
