"""A tiny random Llama with a word tokenizer, and training texts for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from objectives.models.base import BaseModel
from tests.objectives.tiny_llama import make_tiny_llama

WORDS = tuple(f"w{number}" for number in range(90))

EpochTexts = Callable[[int], Sequence[str]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base() -> BaseModel:
    """Return the model all tests share; no test may change it."""
    special = ("<pad>", "<s>", "</s>", "<unk>")
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return make_tiny_llama("tiny", tokenizer, seed=20230312, context=64, initializer_range=0.2)


@pytest.fixture(scope="session")
def texts() -> Callable[[int], EpochTexts]:
    """Return a maker of shuffled training texts: eleven of 2 to 13 words, the same every time."""

    def make(seed: int) -> EpochTexts:
        draw = random.Random(seed)
        documents = [" ".join(draw.choices(WORDS, k=draw.randint(2, 13))) for _ in range(11)]

        def epoch_texts(epoch: int) -> list[str]:
            return random.Random(f"{seed}/{epoch}").sample(documents, len(documents))

        return epoch_texts

    return make


@pytest.fixture
def token_ids() -> torch.Tensor:
    """Return (6, 9) token ids without padding, to compare logits on."""
    return torch.randint(4, 94, (6, 9), generator=torch.Generator().manual_seed(7))
