"""A tiny random Llama whose answers end in every way, and adapters that change what it says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from data.prompts import Prompt
from objectives.models.base import BaseModel
from tests.objectives.tiny_llama import SIZES, make_tiny_llama

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ENDS_OF_ANSWERS = ("\n", "\n\n", "?", ":", "Joe", "Brandine", "Question", "Answer")
WORDS = tuple(f" w{number}" for number in range(24))


class ShiftingRouter:
    """Gives every slot an adapter that adds a constant of its own to the first layer's output.

    `shifts` has the constants (slots + 1, hidden), the base's zeros last; `passes` lists the
    tokens of every forward pass.
    """

    def __init__(self, base: BaseModel, shifts: Tensor) -> None:
        """Take one shift per slot, (slots, hidden)."""
        self._layer: nn.Module = base.model.model.layers[0].mlp
        self.shifts = torch.cat([shifts, torch.zeros_like(shifts[:1])])  # the last serves -1
        self.passes: list[int] = []

    @contextmanager
    def asking(self, slot: int) -> Iterator[None]:
        """Add one slot's shift to whatever is read."""
        shift = self.shifts[slot]
        hook = self._layer.register_forward_hook(lambda _module, _inputs, output: output + shift)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def answering(self, slot_of_entry: Sequence[int]) -> Iterator[None]:
        """Add the slots' shifts to the tokens of forward passes."""
        shifts = self.shifts[list(slot_of_entry)]

        def shift(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            assert output.shape[0] * output.shape[1] == len(slot_of_entry)
            self.passes.append(len(slot_of_entry))
            return output + shifts.view_as(output)

        hook = self._layer.register_forward_hook(shift)
        try:
            yield
        finally:
            hook.remove()


def _make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *ENDS_OF_ANSWERS, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\n|\?|:| \w+|\w+"), "isolated")
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def talking_base() -> BaseModel:
    """Return a model whose answers end at EOS, at a cut and at their longest; do not change it."""
    torch.set_num_threads(1)
    tokenizer = _make_tokenizer()
    return make_tiny_llama("talking", tokenizer, seed=95, context=48, initializer_range=0.4)


@pytest.fixture(scope="session")
def windowed_base(talking_base: BaseModel) -> BaseModel:
    """Return a model whose tokens see only the six before them; do not change it."""
    config = MistralConfig(
        **SIZES,
        vocab_size=len(talking_base.tokenizer),
        max_position_embeddings=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
        sliding_window=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = MistralForCausalLM(config)
    return replace(talking_base, model=model.eval().requires_grad_(False))


@pytest.fixture
def shifting_router(talking_base: BaseModel) -> ShiftingRouter:
    """Return four adapters of growing strength; the first changes nothing."""
    generator = torch.Generator().manual_seed(7)
    strengths = torch.tensor([[0.0], [0.3], [1.0], [3.0]])
    return ShiftingRouter(talking_base, strengths * torch.randn(4, 32, generator=generator))


@pytest.fixture(scope="session")
def prompts() -> tuple[Prompt, ...]:
    """Return twelve prompts of two to eleven tokens, some of equal length."""
    draw = random.Random(0)
    questions = [
        "".join(f" w{draw.randrange(24)}" for _ in range(draw.randint(1, 9))) + "?"
        for _ in range(12)
    ]
    return tuple(
        Prompt(
            text=question + "\n",
            style="plain",
            phrasing="probe",
            subject=f"subject {number}",
            question=question,
            accepted=("w1",),
        )
        for number, question in enumerate(questions)
    )
