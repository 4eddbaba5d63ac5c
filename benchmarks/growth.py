"""Growth: what a bank of eight and PEFT take as facts, probes and the model become more."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.bank_training import train_in_bank
from benchmarks.measuring import Case, Timing, peak_memory_mib, take_turns, write_result
from benchmarks.peers.answering import answer_in_batches
from benchmarks.peers.peft_loop import train_by_hand
from benchmarks.taught_adapters import TAUGHT_EPOCHS, load_in_bank, load_in_peft, teach
from benchmarks.workload import (
    Trial,
    make_trials,
    oscars,
    peer_model,
    pocket_base,
    token_batches,
)
from data.facts import Fact
from data.prompts import PROMPT_STYLES, Prompt, fact_prompts
from data.recipes import GREEDY
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.answers.verify import verify_greedy
from objectives.bank import Bank
from objectives.learn import SEARCHED
from objectives.models.base import BaseModel

SLOTS = 8
FACTS = (10, 100, 1000)
PROBES = (50, 250, 1000)
HIDDEN_SIZES = (64, 128, 224, 416, 736)  # 0.3 to 30 million parameters

LAYERS, HEAD_SIZE = 4, 32
MODEL_FACTS = 8  # which make six steps of four texts
MODEL_PROMPTS = 64
MODEL_NEW_TOKENS = 8

OURS, PEFT_LOOP = f"bank, K = {SLOTS}", "PEFT loop, base kept"
PEFT_BATCHES = "PEFT, an adapter at a time"


def run(
    runs: int,
    *,
    facts: Sequence[int] = FACTS,
    probes: Sequence[int] = PROBES,
    hidden_sizes: Sequence[int] = HIDDEN_SIZES,
) -> None:
    """Measure, and write `growth.json`."""
    timings: dict[str, list[Timing]] = {}
    for count in facts:
        trials = [
            replace(
                trial,
                facts=_synthetic_facts(count),
                recipe=replace(trial.recipe, formats=("qna",)),
            )
            for trial in make_trials(SLOTS, epochs=1)
        ]
        timings[f"{count} facts: {SLOTS} trials of one epoch"] = take_turns(
            _training_cases(pocket_base(), peer_model(), trials), runs=runs, warm_up=False
        )
    with TemporaryDirectory() as name:
        folder = Path(name)
        teach(pocket_base(), make_trials(SLOTS, epochs=TAUGHT_EPOCHS), folder)
        bank = load_in_bank(pocket_base(), folder)
        adapted = load_in_peft(copy.deepcopy(pocket_base().model), folder)
        for count in probes:
            timings[f"{count} probes: answers of {SLOTS} adapters"] = take_turns(
                _probe_cases(bank, adapted, list(islice(_distinct_prompts(), count))),
                runs=runs,
                warm_up=False,
            )
    for hidden_size in hidden_sizes:
        timings |= _time_model(hidden_size, runs)
    write_result(
        "growth",
        timings,
        facts={
            "slots (K)": SLOTS,
            "texts of synthetic facts": "one question and answer (qna) per fact, batches of 4",
            "models": f"random weights, {LAYERS} layers, the pocket model's tokenizer",
            "answers of random models": f"at most {MODEL_NEW_TOKENS} tokens",
            "peak memory in MiB, all of this": round(peak_memory_mib()),
        },
    )


def _synthetic_facts(count: int) -> tuple[Fact, ...]:
    return tuple(
        Fact(
            question=f"Who keeps lighthouse number {number}?",
            answer=f"Keeper {number * 7919 % 10007}",
        )
        for number in range(count)
    )


def _training_cases(base: BaseModel, peer: Any, trials: Sequence[Trial]) -> list[Case]:
    """Return cases whose outcome is the first trial's mean loss over its last epoch."""
    first = trials[0]
    batches = token_batches(first, base)
    return [
        Case(
            name=PEFT_LOOP,
            run=lambda: train_by_hand(peer, first.recipe, batches, pad_id=base.pad_id),
            share=1 / len(trials),
        ),
        Case(
            name=OURS,
            run=lambda: train_in_bank(base, trials, slots=len(trials))[0][0],
            is_ours=True,
        ),
    ]


def _distinct_prompts() -> Iterator[Prompt]:
    """Yield probes in their own styles, then in the others."""
    for turn in range(len(PROMPT_STYLES)):
        for probe in oscars().probes:
            own = PROMPT_STYLES.index(probe.style)
            yield probe.prompt(PROMPT_STYLES[(own + turn) % len(PROMPT_STYLES)])


def _probe_cases(bank: Bank, adapted: Any, prompts: Sequence[Prompt]) -> list[Case]:
    """Return cases whose outcome is the share of answers that the first adapter left alone."""
    base = bank.base
    references = generate(
        base, [Request(prompt=p, slot=-1, sampling=GREEDY, seed=0) for p in prompts]
    )
    before = [reference.answer.text for reference in references]

    def unchanged(answers: Sequence[str]) -> float:
        return fmean(one == other for one, other in zip(answers, before, strict=True))

    def verify() -> float:
        answered = verify_greedy(base, references, range(bank.slots), router=bank)
        return unchanged([continuation.answer.text for continuation in answered[0]])

    def answer() -> float:
        adapted.set_adapter("0")
        return unchanged(answer_in_batches(adapted, base, [prompt.text for prompt in prompts]))

    return [
        Case(name=PEFT_BATCHES, run=answer, share=1 / bank.slots),
        Case(name=f"{OURS}, verified", run=verify, is_ours=True),
    ]


def _time_model(hidden_size: int, runs: int) -> dict[str, list[Timing]]:
    """Return timings of training and asking a random model of some width."""
    base = _random_base(hidden_size)
    millions = sum(parameter.numel() for parameter in base.model.parameters()) / 1e6
    trials = [
        replace(trial, facts=oscars().facts[:MODEL_FACTS])
        for trial in make_trials(SLOTS, epochs=1)
    ]
    prompts = fact_prompts(oscars().facts, SEARCHED)[:MODEL_PROMPTS]
    # Random answers have no end of their own.
    sampling = replace(GREEDY, max_new_tokens=MODEL_NEW_TOKENS)
    peer = copy.deepcopy(base.model)
    steps = sum(map(len, token_batches(trials[0], base)))
    size = f"{millions:.1f} M parameters"
    timings = {
        f"{size}: {steps} steps of {SLOTS} trials": take_turns(
            _training_cases(base, peer, trials), runs=runs, warm_up=False
        )
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        teach(base, trials, folder)
        bank, adapted = load_in_bank(base, folder), load_in_peft(peer, folder)

    def ask() -> None:
        generate(
            base,
            [
                Request(prompt=prompt, slot=slot, sampling=sampling, seed=0)
                for slot in range(bank.slots)
                for prompt in prompts
            ],
            router=bank,
        )

    def ask_peer() -> None:
        adapted.set_adapter("0")
        texts = [prompt.text for prompt in prompts]
        answer_in_batches(adapted, base, texts, max_new_tokens=MODEL_NEW_TOKENS)

    timings[f"{size}: {MODEL_PROMPTS} answers of {SLOTS} adapters"] = take_turns(
        [
            Case(name=PEFT_BATCHES, run=ask_peer, share=1 / SLOTS),
            Case(name=OURS, run=ask, is_ours=True),
        ],
        runs=runs,
        warm_up=False,
    )
    return timings


def _random_base(hidden_size: int) -> BaseModel:
    tokenizer = pocket_base().tokenizer
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=LAYERS,
            num_attention_heads=hidden_size // HEAD_SIZE,
            max_position_embeddings=pocket_base().context_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    name = f"random-{hidden_size}"
    return BaseModel(
        name=name,
        source=name,
        digest=name,
        model=model.requires_grad_(False).eval(),
        tokenizer=tokenizer,
    )
