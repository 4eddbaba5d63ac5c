"""Drift: how much worse a model reads text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from objectives.answers.batches import batch_rows
from objectives.answers.encode import encode_document
from objectives.answers.request import AdapterRouter, UntouchedBase
from objectives.models.base import BaseModel

# The most logits of one forward pass: 32 MiB in fp32, several times in the loss. Larger passes
# were slower on a CPU.
_LOGITS_PER_PASS = 2**23

# What transformers and torch leave out of a loss.
_IGNORED = -100


@torch.inference_mode()
def mean_cross_entropy_nats(
    base: BaseModel,
    texts: Sequence[str],
    *,
    slots: Sequence[int],
    router: AdapterRouter | None = None,
) -> tuple[float, ...]:
    """Return for every slot the texts' mean cross-entropy in nats per token; lower is better.

    The mean is over all predicted tokens of all texts together, EOS included and each text's first
    token, which nothing predicts, excluded; so long texts count more. Drift is an adapter's mean
    minus the untouched base's (slot -1).

    Args:
        base: The model.
        texts: Held-out texts.
        slots: The adapters to measure.
        router: Where the adapters are; None if only the untouched base (slot -1) is measured.

    Raises:
        ModelError: If a text exceeds the model's context.
        ValueError: If the texts have no token to predict, or an adapter is asked without a router.
    """
    router = router or UntouchedBase()
    documents = [encode_document(base, text) for text in texts]
    predicted = sum(len(document) - 1 for document in documents)
    if predicted < 1:
        raise ValueError(f"texts: {len(texts)} texts have no token to predict; give at least one")

    rows = [(number, document) for number in range(len(slots)) for document in documents]
    row_slots = [slots[number] for number, _ in rows]
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    rows_per_batch = max(1, _LOGITS_PER_PASS // (max(map(len, documents)) * vocabulary))
    nats: list[list[float]] = [[] for _ in slots]
    for batch in batch_rows([document for _, document in rows], row_slots, rows_per_batch):
        with router.answering([row_slots[row] for row in batch]):
            sums = _sum_nats(base, [rows[row][1] for row in batch])
        for row, row_nats in zip(batch, sums.tolist(), strict=True):
            nats[rows[row][0]].append(row_nats)
    return tuple(math.fsum(row_nats) / predicted for row_nats in nats)


def _sum_nats(base: BaseModel, documents: Sequence[Sequence[int]]) -> Tensor:
    """Return the summed cross-entropy of each document's tokens but the first, (documents)."""
    width = max(map(len, documents))
    # Padding on the right needs no mask: a causal model reads it after all that counts.
    ids = torch.tensor([[*row, *[base.pad_id] * (width - len(row))] for row in documents])
    targets = torch.tensor([[*row[1:], *[_IGNORED] * (width - len(row) + 1)] for row in documents])
    logits = base.model(input_ids=ids.to(base.device), use_cache=False).logits
    losses = cross_entropy(
        logits.float().flatten(0, 1),
        targets.to(base.device).flatten(),
        ignore_index=_IGNORED,
        reduction="none",
    )
    return losses.reshape(targets.shape).sum(dim=1)
