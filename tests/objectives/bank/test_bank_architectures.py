"""Adapters in other architectures: saved for plain PEFT, and asked as transformers asks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from data.prompts import Prompt
from data.recipes import GREEDY, Recipe, TargetModules
from objectives.answers.generate import generate
from objectives.answers.request import BASE, Request
from objectives.answers.verify import verify_greedy
from objectives.bank import Bank
from objectives.bank.export import export_adapter
from objectives.models.base import BaseModel
from objectives.models.passes.reading import reads_packed
from tests.objectives.architectures import CONFIGS, make_architecture

EpochTexts = Callable[[int], Sequence[str]]

# What these leave to transformers' attention interface can be read end to end, the others cannot.
PADDED = {"falcon", "bloom", "mpt"}
ANSWER_TOKENS = 12


@pytest.fixture(scope="session")
def tokenizer(base: BaseModel) -> PreTrainedTokenizerFast:
    return base.tokenizer


@pytest.fixture(scope="session")
def questions() -> list[Prompt]:
    """Return prompts of 1 to 9 words, two of which begin alike."""
    texts = ["w3", "w1 w2 w3 w4", "w1 w2 w5", "w8 w9 w10 w11 w12 w13 w14 w15 w16", "w70 w71"]
    return [
        Prompt(
            text=text,
            style="chat",  # so that only EOS ends an answer
            phrasing="probe",
            subject=text,
            question=text,
            accepted=("w1",),
        )
        for text in texts
    ]


def train(base: BaseModel, texts: EpochTexts, targets: TargetModules = "all") -> Bank:
    """Return a bank with a trained adapter in slot 0, strong enough to change what is said."""
    recipe = Recipe(
        epochs=4,
        rank=4,
        alpha=16,
        cutoff=64,
        warmup_steps=0,
        learning_rate=1e-2,
        target_modules=targets,
    )
    bank = Bank(base, slots=1, max_rank=4, halves_when_full=False)
    bank.admit(0, recipe, texts, seed=0)
    while not bank.progress(0).finished:
        bank.step()
    return bank


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", ["all", "attention", "mlp", "query+value"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "opt", "starcoder2", "gemma"])
def test_plain_peft_reads_a_saved_adapter_and_gives_the_same_logits(
    name: str,
    targets: TargetModules,
    tokenizer: PreTrainedTokenizerFast,
    texts: Callable[[int], EpochTexts],
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    base = make_architecture(name, tokenizer)
    bank = train(base, texts(0), targets)
    export_adapter(bank, 0, tmp_path / "adapter")
    with torch.no_grad():
        untouched = base.model(token_ids).logits
        with bank.answering([0] * token_ids.numel()):
            ours = base.model(token_ids).logits
        peft = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter")
        theirs = peft(token_ids).logits
    assert (ours - untouched).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # It has adapters where it was trained and nowhere else, as PEFT counts them.
    with_adapter = {
        key.split(".lora_")[0].removeprefix("base_model.model.")
        for key in peft.state_dict()
        if ".lora_A." in key
    }
    assert with_adapter == set(bank.matrices(0))
    config = PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert config.fan_in_fan_out == (name == "gpt2")
    # And it comes back into a bank as it was.
    again = Bank(base, slots=1, max_rank=4)
    again.load(0, tmp_path / "adapter")
    with torch.no_grad(), again.answering([0] * token_ids.numel()):
        torch.testing.assert_close(base.model(token_ids).logits, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_transformers_with_and_without_an_adapter(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    texts: Callable[[int], EpochTexts],
    questions: list[Prompt],
) -> None:
    base = make_architecture(name, tokenizer)
    assert reads_packed(base.model) == (name not in PADDED)
    bank = train(base, texts(0))
    sampling = replace(GREEDY, max_new_tokens=ANSWER_TOKENS)
    said = {}
    for slot in (BASE, 0):
        requests = [Request(prompt=p, slot=slot, sampling=sampling, seed=0) for p in questions]
        answered = generate(base, requests, router=bank, rows_per_batch=3)
        said[slot] = [continuation.token_ids for continuation in answered]
        if slot == BASE:
            references = answered
    assert said[BASE] == [ask_transformers(base, prompt) for prompt in questions]
    assert said[0] == [ask_whole(base, bank, prompt) for prompt in questions]
    assert said[BASE] != said[0]
    (verified,) = verify_greedy(base, references, [0], router=bank, max_new_tokens=ANSWER_TOKENS)
    assert [continuation.token_ids for continuation in verified] == said[0]


def ask_transformers(base: BaseModel, prompt: Prompt) -> tuple[int, ...]:
    """Return the untouched model's greedy answer to one prompt by its own `generate`."""
    token_ids = torch.tensor([base.encode_prompt(prompt.text, prompt.style)])
    settings = GenerationConfig(
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=base.eos_id,
        pad_token_id=base.eos_id,
    )
    with torch.no_grad():
        # What it generates may be padding tokens: they are read like others.
        whole = base.model.generate(
            token_ids, attention_mask=torch.ones_like(token_ids), generation_config=settings
        )
    return tuple(whole[0, token_ids.shape[1] :].tolist())


def ask_whole(base: BaseModel, bank: Bank, prompt: Prompt) -> tuple[int, ...]:
    """Return the adapter's greedy answer to one prompt, all of it read for every token."""
    read = base.encode_prompt(prompt.text, prompt.style)
    generated: list[int] = []
    while len(generated) < ANSWER_TOKENS and (not generated or generated[-1] != base.eos_id):
        row = torch.tensor([[*read, *generated]])
        with torch.no_grad(), bank.answering([0] * row.numel()):
            generated.append(int(base.model(row, use_cache=False).logits[0, -1].argmax()))
    return tuple(generated)
