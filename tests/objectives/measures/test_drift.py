"""Cross-entropy against transformers' own loss, and its mean by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from objectives.measures import drift
from objectives.measures.drift import mean_cross_entropy_nats
from objectives.models.base import BaseModel, ModelError

if TYPE_CHECKING:
    from tests.objectives.conftest import ShiftingRouter

TEXTS = (" w1 w2", " w3 w4 w5 w6 w7 w8? w9", " w0", " w1 w1\n w2: w3 w4")


def mean_by_transformers(base: BaseModel, texts: tuple[str, ...]) -> float:
    """Return the token mean of transformers' loss, one text at a time."""
    sums, counts = [], []
    for text in texts:
        ids = torch.tensor([base.encode_document(text)])
        sums.append(float(base.model(ids, labels=ids).loss) * (ids.shape[1] - 1))
        counts.append(ids.shape[1] - 1)
    return sum(sums) / sum(counts)


def test_the_mean_is_that_of_transformers_loss_for_every_slot(
    talking_base: BaseModel, shifting_router: ShiftingRouter
) -> None:
    slots = [3, -1, 1]

    means = mean_cross_entropy_nats(talking_base, TEXTS, slots=slots, router=shifting_router)

    for slot, mean in zip(slots, means, strict=True):
        with shifting_router.asking(slot):
            expected = mean_by_transformers(talking_base, TEXTS)
        assert mean == pytest.approx(expected, rel=1e-6)
    assert len(set(means)) == 3


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary(
    talking_base: BaseModel,
) -> None:
    tokens = len(talking_base.tokenizer)
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=tokens,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.zero_()  # every logit is 0, every token has probability 1 / tokens
    base = replace(talking_base, model=model)

    (mean,) = mean_cross_entropy_nats(base, TEXTS, slots=[-1])

    assert mean == pytest.approx(math.log(tokens))


def test_texts_are_weighed_by_their_tokens(talking_base: BaseModel) -> None:
    short, long = " w0", " w3 w4 w5 w6 w7 w8? w9"
    ((short_mean,), (long_mean,), (mean,)) = (
        mean_cross_entropy_nats(talking_base, texts, slots=[-1])
        for texts in ([short], [long], [short, long])
    )

    # BOS is not predicted: " w0" and EOS are 2 tokens, seven words, "?" and EOS are 9.
    assert mean == pytest.approx((2 * short_mean + 9 * long_mean) / 11)


def test_small_batches_give_the_same_means(
    talking_base: BaseModel, shifting_router: ShiftingRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [-1, 0, 2]
    at_once = mean_cross_entropy_nats(talking_base, TEXTS, slots=slots, router=shifting_router)
    shifting_router.passes.clear()
    monkeypatch.setattr(drift, "_LOGITS_PER_PASS", 1)

    one_by_one = mean_cross_entropy_nats(talking_base, TEXTS, slots=slots, router=shifting_router)

    assert len(shifting_router.passes) == 12
    assert one_by_one == pytest.approx(at_once, rel=1e-6)


def test_an_adapter_of_nan_has_no_mean_and_spoils_no_other(
    talking_base: BaseModel, shifting_router: ShiftingRouter
) -> None:
    expected = mean_cross_entropy_nats(talking_base, TEXTS, slots=[1], router=shifting_router)
    shifting_router.shifts[2] = torch.nan

    means = mean_cross_entropy_nats(talking_base, TEXTS, slots=[2, 1], router=shifting_router)

    assert math.isnan(means[0])
    assert means[1:] == pytest.approx(expected, rel=1e-6)


def test_no_texts_have_no_mean(talking_base: BaseModel) -> None:
    with pytest.raises(ValueError, match="0 texts have no token to predict"):
        mean_cross_entropy_nats(talking_base, [], slots=[-1])


def test_a_text_longer_than_the_context_is_refused(talking_base: BaseModel) -> None:
    with pytest.raises(ModelError, match="has 50 tokens, more than the 48 tokens"):
        mean_cross_entropy_nats(talking_base, [" w1" * 48], slots=[-1])


def test_a_window_shorter_than_the_texts_is_kept(windowed_base: BaseModel) -> None:
    (mean,) = mean_cross_entropy_nats(windowed_base, TEXTS, slots=[-1])
    assert mean == pytest.approx(mean_by_transformers(windowed_base, TEXTS), rel=1e-5)
