"""Reads what a model expects after parts of given texts, by any adapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from objectives.answers.cache import may_share_beginnings
from objectives.answers.request import AdapterRouter
from objectives.models.base import BaseModel
from objectives.models.passes.reading import (
    attending,
    lay_out_rows,
    logits_only_of,
    share_beginnings,
)


def logits_after(
    base: BaseModel,
    rows: Sequence[tuple[int, ...]],
    slots: Sequence[int],
    parts: Sequence[slice],
    router: AdapterRouter,
) -> tuple[Tensor, Tensor]:
    """Return the logits that follow a part of each row's tokens.

    Args:
        base: The model.
        rows: Token ids.
        slots: By whose adapter each row is read.
        parts: After which of its tokens each row's logits are wanted.
        router: Where the adapters are.

    Returns:
        Logits (distinct places, vocabulary) in single precision, and the place of every wanted
        token, row after row.
    """
    if may_share_beginnings(base.model):
        laid = share_beginnings(base, rows, slots)
    else:
        laid = lay_out_rows(base, rows)
    wanted = [entries[part] for entries, part in zip(laid.entries_of, parts, strict=True)]
    read, places = np.unique(np.concatenate(wanted), return_inverse=True)
    with (
        router.answering(np.asarray(slots)[laid.owners].tolist()),
        attending(base.model, laid) as arguments,
        logits_only_of(base.model, torch.from_numpy(read).to(base.device)),
    ):
        logits = base.model(**arguments).logits.float()
    return logits, torch.from_numpy(places).to(base.device)
