"""Saves a running trial to disk and goes on from there, bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data.recipes import Recipe
from objectives.bank.bank import Bank, Counters, EpochTexts, TrainingState
from objectives.durable_files import MayReplace, filled_file, save_tensors

CHECKPOINT_VERSION = 1
CHECKPOINT_FILE = "checkpoint.safetensors"
_METADATA_KEY = "remember_checkpoint"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to do."""


def save_checkpoint(
    bank: Bank, slot: int, folder: Path, *, may_replace: MayReplace | None = None
) -> None:
    """Write all that the trial of a slot needs to go on; replaces an earlier checkpoint.

    It is one file, numbers in safetensors and the rest as JSON in its header, so that one rename
    swaps the old checkpoint for the new: a crash leaves one of the two, whole, and so does every
    error raised here.

    Args:
        bank: Where the trial is.
        slot: Its slot.
        folder: Where its checkpoint lies; made if it is not there.
        may_replace: Held while the new checkpoint takes its place, and no longer. Entering it may
            raise, for example because the trial is another worker's by now; then the earlier
            checkpoint stays.

    Raises:
        OSError: If the disk is full or cannot be written.
        ValueError: If no trial was admitted to the slot.
    """
    state = bank.snapshot(slot)
    described = {
        "schema_version": CHECKPOINT_VERSION,
        "base": bank.base.digest,
        "recipe": asdict(state.recipe),
        "seed": state.seed,
        "counters": asdict(state.counters),
    }
    tensors = {
        "weights": state.weights,
        "first_moments": state.first_moments,
        "second_moments": state.second_moments,
    }
    with filled_file(folder / CHECKPOINT_FILE, may_replace=may_replace) as unfinished:
        save_tensors(tensors, unfinished, metadata={_METADATA_KEY: json.dumps(described)})


def restore_checkpoint(
    bank: Bank,
    slot: int,
    folder: Path,
    epoch_texts: EpochTexts,
    *,
    recipe: Recipe | None = None,
) -> None:
    """Put the trial of a checkpoint in an empty slot, where it goes on as if never interrupted.

    Args:
        bank: A bank on the same base; it may have other slots and neighbours.
        slot: Counted from 0.
        folder: Where `save_checkpoint` wrote.
        epoch_texts: The same as before.
        recipe: The recipe the checkpoint must be of; any if None.

    Raises:
        CheckpointError: If there is no checkpoint, it cannot be read, or it belongs to another
            schema, base model or recipe.
        ValueError: If the slot is not empty, or the recipe does not fit the bank.
    """
    path = folder / CHECKPOINT_FILE
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            # The file cannot be iterated over, only its keys.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {error}") from error
    _require_equal(path, "schema_version", described.get("schema_version"), CHECKPOINT_VERSION)
    _require_equal(path, "base", described["base"], bank.base.digest)
    saved_recipe = Recipe(
        **{**described["recipe"], "formats": tuple(described["recipe"]["formats"])}
    )
    if recipe is not None:
        _require_equal(path, "recipe", saved_recipe, recipe)
    state = TrainingState(
        recipe=saved_recipe,
        seed=described["seed"],
        counters=Counters(**described["counters"]),
        **tensors,
    )
    bank.resume(slot, state, epoch_texts)


def _require_equal(path: Path, field: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise CheckpointError(
            f"{field}: {path} was written with {found!r}; it must be {expected!r}; remove the "
            "checkpoint to start this trial again"
        )
