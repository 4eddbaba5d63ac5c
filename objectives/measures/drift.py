"""Drift: how much worse a model reads text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.answers.batches import batch_rows
from objectives.answers.encode import encode_document
from objectives.answers.following import logits_after
from objectives.answers.request import AdapterRouter, UntouchedBase
from objectives.models.base import BaseModel
from objectives.models.machine.memory import with_rows_that_fit

# The most logits of one forward pass: 32 MiB in fp32, several times in the loss. Larger passes
# were slower on a CPU.
_LOGITS_PER_PASS = 2**23


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

    rows = [tuple(document) for _ in slots for document in documents]
    row_slots = [slot for slot in slots for _ in documents]
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    longest = max(map(len, documents))
    rows_per_batch = max(1, _LOGITS_PER_PASS // (longest * vocabulary))

    def sum_with(most_rows: int) -> NDArray[np.float64]:
        sums = np.zeros(len(rows))
        for batch in batch_rows(rows, row_slots, most_rows):
            sums[batch] = _sum_nats(
                base, [rows[row] for row in batch], [row_slots[row] for row in batch], router
            )
        return sums

    nats = with_rows_that_fit(base.model, rows_per_batch, sum_with, row_tokens=longest)
    return tuple(math.fsum(own) / predicted for own in nats.reshape(len(slots), -1))


def _sum_nats(
    base: BaseModel,
    documents: Sequence[tuple[int, ...]],
    slots: Sequence[int],
    router: AdapterRouter,
) -> NDArray[np.float64]:
    """Return the summed cross-entropy of each document's tokens but the first, (documents)."""
    logits, places = logits_after(
        base, documents, slots, [slice(0, len(each) - 1) for each in documents], router
    )
    labels = [token for document in documents for token in document[1:]]
    chosen = logits[places, torch.tensor(labels, device=base.device)]
    nats = (logits.logsumexp(dim=-1)[places] - chosen).double().cpu().numpy()
    owners = np.repeat(np.arange(len(documents)), [len(document) - 1 for document in documents])
    return np.bincount(owners, weights=nats, minlength=len(documents)).astype(np.float64)
