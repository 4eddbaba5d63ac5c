"""A bank of many equals banks of one equals plain PEFT with torch's AdamW."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from data.recipes import Recipe
from objectives.bank import Bank
from objectives.models.base import BaseModel
from tests.objectives.architectures import CONFIGS, make_architecture

EpochTexts = Callable[[int], Sequence[str]]

RECIPES = (
    Recipe(epochs=20, rank=1, alpha=2, cutoff=64, warmup_steps=0, learning_rate=1e-3),
    Recipe(epochs=20, rank=2, alpha=16, cutoff=8, warmup_steps=10, learning_rate=3e-3),
    Recipe(
        epochs=20,
        rank=8,
        alpha=4,
        cutoff=16,
        warmup_steps=100,
        learning_rate=1e-2,
        target_modules="attention",
    ),
    Recipe(
        epochs=10,
        rank=4,
        alpha=8,
        cutoff=32,
        warmup_steps=3,
        learning_rate=2e-3,
        target_modules="mlp",
        batch_size=2,
    ),
    Recipe(
        epochs=9,
        rank=8,
        alpha=16,
        cutoff=24,
        warmup_steps=5,
        learning_rate=1e-3,
        rslora=True,
        packing="joined",
        batch_size=1,
    ),
    Recipe(
        epochs=30,
        rank=3,
        alpha=12,
        cutoff=64,
        warmup_steps=20,
        learning_rate=5e-4,
        batch_size=8,
        weight_decay=0.1,
    ),
    Recipe(
        epochs=2,
        rank=6,
        alpha=6,
        cutoff=10,
        warmup_steps=4,
        learning_rate=4e-3,
        batch_size=3,
        packing="joined",
    ),
    Recipe(
        epochs=20, rank=5, alpha=7.5, cutoff=9, warmup_steps=7, learning_rate=2e-3, rslora=True
    ),
)
STEPS = 60

Matrices = dict[str, tuple[Tensor, Tensor]]


def copy_matrices(bank: Bank, slot: int) -> Matrices:
    return {name: (a.clone(), b.clone()) for name, (a, b) in bank.matrices(slot).items()}


def train_in_one_bank(
    base: BaseModel,
    recipes: Sequence[Recipe],
    texts: Callable[[int], EpochTexts],
    steps: int = STEPS,
) -> tuple[list[Matrices], list[Matrices], Bank]:
    """Return the initial and the trained matrices of every recipe; recipe `i` has seed `i`."""
    bank = Bank(base, slots=len(recipes), max_rank=max(recipe.rank for recipe in recipes))
    for slot, recipe in enumerate(recipes):
        bank.admit(slot, recipe, texts(slot), seed=slot)
    initial = [copy_matrices(bank, slot) for slot in range(len(recipes))]
    for _ in range(steps):
        bank.step()
    return initial, [copy_matrices(bank, slot) for slot in range(len(recipes))], bank


def largest_difference(first: Matrices, second: Matrices) -> float:
    assert first.keys() == second.keys()
    return float(differences(first, second).max())


def differences(first: Matrices, second: Matrices) -> Tensor:
    """Return how far all weights are apart, in one dimension."""
    return torch.cat(
        [
            (one - other).abs().flatten()
            for name in first
            for one, other in zip(first[name], second[name], strict=True)
        ]
    )


def as_float64(matrices: Matrices) -> Matrices:
    return {name: (down.double(), up.double()) for name, (down, up) in matrices.items()}


def reference_batches(base: BaseModel, recipe: Recipe, epoch_texts: EpochTexts) -> list[Tensor]:
    """Return every batch of the recipe's epochs as padded token ids, written anew and plainly."""
    batches = []
    for epoch in range(recipe.epochs):
        documents = [base.encode_document(text) for text in epoch_texts(epoch)]
        if recipe.packing == "joined":
            documents = [list(itertools.chain.from_iterable(documents))]
        rows = [
            document[start : start + recipe.cutoff]
            for document in documents
            for start in range(0, len(document), recipe.cutoff)
        ]
        assert min(map(len, rows)) > 1, "choose texts for which plain cutting leaves no lone token"
        for start in range(0, len(rows), recipe.batch_size):
            chosen = rows[start : start + recipe.batch_size]
            width = max(map(len, chosen))
            batches.append(torch.tensor([row + [0] * (width - len(row)) for row in chosen]))
    return batches


def train_with_peft(
    base: BaseModel,
    recipe: Recipe,
    epoch_texts: EpochTexts,
    initial: Matrices,
    steps: int = STEPS,
) -> tuple[Matrices, int, float]:
    """Return what plain PEFT trains, the number of its steps, and its last loss."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        target_modules=sorted(initial),
        fan_in_fan_out=any(isinstance(base.model.get_submodule(name), Conv1D) for name in initial),
    )
    model = get_peft_model(copy.deepcopy(base.model), config)
    modules = {name: model.base_model.model.get_submodule(name) for name in initial}
    with torch.no_grad():
        for name, (down, up) in initial.items():
            modules[name].lora_A["default"].weight.copy_(down)
            modules[name].lora_B["default"].weight.copy_(up)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1.0, (done + 1) / max(1, recipe.warmup_steps))
    )
    batches = reference_batches(base, recipe, epoch_texts)[:steps]
    for batch in batches:
        real = batch != 0
        loss = model(
            input_ids=batch, attention_mask=real, labels=batch.masked_fill(~real, -100)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    trained = {
        name: (
            module.lora_A["default"].weight.detach(),
            module.lora_B["default"].weight.detach(),
        )
        for name, module in modules.items()
    }
    return trained, len(batches), loss.item()


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_bank_of_eight_equals_eight_banks_of_one_and_plain_peft(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    initial, together, bank = train_in_one_bank(base, RECIPES, texts)
    for slot, recipe in enumerate(RECIPES):
        alone = Bank(base, slots=1, max_rank=recipe.rank)
        alone.admit(0, recipe, texts(slot), seed=slot)
        for _ in range(STEPS):
            alone.step()
        peft, peft_steps, peft_loss = train_with_peft(base, recipe, texts(slot), initial[slot])
        moved = largest_difference(initial[slot], together[slot])
        assert moved > 1e-2, "without movement equality shows nothing"
        assert largest_difference(together[slot], copy_matrices(alone, 0)) < 1e-5
        assert largest_difference(together[slot], peft) < 1e-5
        assert bank.progress(slot).steps == peft_steps
        assert bank.progress(slot).loss_nats == pytest.approx(peft_loss, abs=1e-5)


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_trains_as_in_plain_peft(
    name: str, base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    other = make_architecture(name, base.tokenizer)
    chosen = (1, 2, 4)  # separate texts at all modules, at attention alone, and joined texts
    recipes = [RECIPES[number] for number in chosen]
    own_texts = [texts(number) for number in chosen]
    initial, together, _ = train_in_one_bank(other, recipes, own_texts.__getitem__, steps=12)
    for slot, recipe in enumerate(recipes):
        peft, _, _ = train_with_peft(other, recipe, own_texts[slot], initial[slot], steps=12)
        assert largest_difference(initial[slot], together[slot]) > 1e-3
        assert largest_difference(together[slot], peft) < 1e-5


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_where_rounding_decides_the_bank_is_as_exact_as_peft(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    # Adam's first step is rate * g / (|g| + 1e-8): a gradient near 1e-8 is rounding noise, yet it
    # moves its weight by a good part of the full rate, here 4e-3. Without a warm-up a few of the
    # 11,000 weights meet such a gradient; fp32 PEFT itself is 2e-5 away from float64 PEFT.
    recipe = dataclasses.replace(RECIPES[6], warmup_steps=0)
    crowd = (*RECIPES[:6], recipe, RECIPES[7])
    initial, trained, _ = train_in_one_bank(base, crowd, texts)
    in_float64 = dataclasses.replace(base, model=copy.deepcopy(base.model).double())
    exact, _, _ = train_with_peft(in_float64, recipe, texts(6), as_float64(initial[6]))
    peft, _, _ = train_with_peft(base, recipe, texts(6), initial[6])
    ours, theirs = (differences(as_float64(some), exact) for some in (trained[6], peft))
    assert theirs.max() > 1e-5, "without such weights this shows nothing"
    assert ours.max() < 1e-4
    assert (ours > 1e-5).double().mean() < 1e-3
    assert ours.median() < 2 * theirs.median()


def test_neither_slot_nor_neighbours_matter_even_with_dropout(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    recipe = Recipe(
        epochs=5, rank=4, alpha=8, cutoff=64, warmup_steps=2, learning_rate=3e-3, dropout=0.2
    )
    alone = Bank(base, slots=1, max_rank=4)
    alone.admit(0, recipe, texts(5), seed=5)
    crowded = Bank(base, slots=4, max_rank=8)
    crowded.admit(3, recipe, texts(5), seed=5)
    crowded.admit(0, RECIPES[4], texts(1), seed=1)
    crowded.admit(2, RECIPES[2], texts(2), seed=5)
    for _ in range(15):
        alone.step()
        crowded.step()
    assert largest_difference(copy_matrices(alone, 0), copy_matrices(crowded, 3)) < 1e-5
    assert alone.progress(0).finished


def test_dropout_changes_what_is_learned(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    learned = []
    for dropout in (0.0, 0.3):
        recipe = Recipe(
            epochs=3,
            rank=4,
            alpha=8,
            cutoff=64,
            warmup_steps=0,
            learning_rate=3e-3,
            dropout=dropout,
        )
        bank = Bank(base, slots=1, max_rank=4)
        bank.admit(0, recipe, texts(5), seed=5)
        for _ in range(9):
            bank.step()
        learned.append(copy_matrices(bank, 0))
    assert largest_difference(*learned) > 1e-3


def test_the_initial_weights_depend_on_seed_and_module_only(
    base: BaseModel, texts: Callable[[int], EpochTexts]
) -> None:
    bank = Bank(base, slots=3, max_rank=8)
    small = Recipe(epochs=1, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-3)
    bank.admit(0, small, texts(0), seed=1)
    bank.admit(1, RECIPES[3], texts(0), seed=1)  # mlp only, also of rank 4
    bank.admit(2, small, texts(0), seed=2)
    for name, (down, up) in bank.matrices(1).items():
        assert torch.equal(down, bank.matrices(0)[name][0])
        assert not torch.equal(down, bank.matrices(2)[name][0])
        bound = down.shape[1] ** -0.5
        assert 0.8 * bound < down.abs().max() <= bound
        assert not up.any()
