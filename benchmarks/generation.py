"""Asking: the answers of 32 adapters to all searched prompts, one by one, in batches, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import Case, take_turns, write_result
from benchmarks.memory import peak_alone_mib
from benchmarks.peers.answering import ROWS_PER_BATCH, answer_in_batches, answer_one_by_one
from benchmarks.taught_adapters import TAUGHT_EPOCHS, load_in_bank, load_in_peft, teach
from benchmarks.workload import TRIALS, make_trials, oscars, peer_model, pocket_base
from data.matching import match_answer
from data.prompts import Prompt, fact_prompts
from data.recipes import GREEDY
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.bank import Bank
from objectives.learn import SEARCHED

ADAPTERS = TRIALS

# The strides share no factor with the four styles and three wordings of a fact, so that a part of
# the prompts has all of them.
ONE_BY_ONE, BATCHES, MIXED = (4, 13), (4, 1), (8, 5)  # adapters, and every how many-th prompt
OURS = "bank, all adapters and prompts at once"

Ask = Callable[[Path, Sequence[int], Sequence[Prompt]], list[str]]


def run(runs: int, *, adapters: int = ADAPTERS) -> None:
    """Measure, and write `generation.json`."""
    prompts = fact_prompts(oscars().facts, SEARCHED)
    with TemporaryDirectory() as name:
        folder = Path(name)
        teach(pocket_base(), make_trials(adapters, epochs=TAUGHT_EPOCHS), folder)
        answers: dict[str, dict[tuple[int, Prompt], str]] = {}

        def case(
            name: str, ask: Ask, some: tuple[int, int], settings: str, *, is_ours: bool = False
        ) -> Case:
            asked_adapters, asked_prompts = range(min(some[0], adapters)), prompts[:: some[1]]
            pairs = [(adapter, prompt) for adapter in asked_adapters for prompt in asked_prompts]

            def ask_and_judge() -> float:
                given = ask(folder, asked_adapters, asked_prompts)
                answers[name] = dict(zip(pairs, given, strict=True))
                return _recall(answers[name])

            return Case(
                name=name,
                run=ask_and_judge,
                share=len(pairs) / (adapters * len(prompts)),
                is_ours=is_ours,
                settings=settings,
            )

        cases = [
            case("PEFT, prompt by prompt", ask_one_by_one, ONE_BY_ONE, "set_adapter, generate"),
            case(
                "PEFT, an adapter at a time",
                ask_in_batches,
                BATCHES,
                f"set_adapter, batches of {ROWS_PER_BATCH} rows of like length",
            ),
            case(
                f"PEFT mixed batch, {MIXED[0]} adapters",
                ask_in_mixed_batches,
                MIXED,
                f"adapter_names per row, batches of {ROWS_PER_BATCH} rows of like length",
            ),
            case(OURS, ask_bank, (adapters, 1), "one call", is_ours=True),
        ]
        timings = take_turns(cases, runs=runs)
        facts: dict[str, str | int | float] = {
            "adapters (K)": adapters,
            "prompts per adapter": len(prompts),
            "most new tokens": GREEDY.max_new_tokens,
        }
        for name, given in answers.items():
            if name != OURS:
                ours = {pair: answers[OURS][pair] for pair in given}
                same = sum(ours[pair] == answer for pair, answer in given.items())
                facts[f"{name}: answers equal to ours"] = f"{same} of {len(given)}"
                facts[f"{name}: recall of ours on the same prompts"] = round(_recall(ours), 4)
        facts |= {
            "peak memory in MiB, PEFT, an adapter at a time": peak_alone_mib(
                ask_in_batches, folder, range(1), prompts
            ),
            f"peak memory in MiB, {OURS}": peak_alone_mib(
                ask_bank, folder, range(adapters), prompts
            ),
        }
    write_result("generation", {"greedy answers": timings}, facts=facts)


def ask_one_by_one(folder: Path, adapters: Sequence[int], prompts: Sequence[Prompt]) -> list[str]:
    """Return answers, adapters outermost, of one prompt after the other."""
    return _ask_in_turn(answer_one_by_one, folder, adapters, prompts)


def ask_in_batches(folder: Path, adapters: Sequence[int], prompts: Sequence[Prompt]) -> list[str]:
    """Return answers, adapters outermost, of one adapter after the other."""
    return _ask_in_turn(answer_in_batches, folder, adapters, prompts)


def ask_in_mixed_batches(
    folder: Path, adapters: Sequence[int], prompts: Sequence[Prompt]
) -> list[str]:
    """Return answers, adapters outermost, whose batches mix the adapters."""
    return answer_in_batches(
        _peft_model(folder),
        pocket_base(),
        [prompt.text for _ in adapters for prompt in prompts],
        adapter_names=[str(adapter) for adapter in adapters for _ in prompts],
    )


def ask_bank(folder: Path, adapters: Sequence[int], prompts: Sequence[Prompt]) -> list[str]:
    """Return answers, adapters outermost, of one call of ours."""
    requests = [
        Request(prompt=prompt, slot=adapter, sampling=GREEDY, seed=0)
        for adapter in adapters
        for prompt in prompts
    ]
    answered = generate(pocket_base(), requests, router=_bank(folder))
    return [continuation.answer.text for continuation in answered]


def _ask_in_turn(
    answer: Callable[..., list[str]],
    folder: Path,
    adapters: Sequence[int],
    prompts: Sequence[Prompt],
) -> list[str]:
    model, answers = _peft_model(folder), []
    for adapter in adapters:
        model.set_adapter(str(adapter))
        answers += answer(model, pocket_base(), [prompt.text for prompt in prompts])
    return answers


@cache
def _peft_model(folder: Path) -> Any:
    return load_in_peft(peer_model(), folder)


@cache
def _bank(folder: Path) -> Bank:
    return load_in_bank(pocket_base(), folder)


def _recall(answers: dict[tuple[int, Prompt], str]) -> float:
    """Return the share of right answers; of all prompts that is the recall, as facts are alike."""
    return fmean(
        match_answer(prompt.question, text, prompt.accepted) == "correct"
        for (_, prompt), text in answers.items()
    )
