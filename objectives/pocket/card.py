"""Measures what the pocket model knows and writes its model card."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data.oscar_facts import load_oscar_facts
from data.pocket_corpus import seen_styles
from data.prompts import PROMPT_STYLES, Prompt, PromptStyle, fact_prompts, put_question
from data.recipes import GREEDY
from data.world_facts import WorldFact, load_leanings, load_probes, load_world_facts
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.judges.base import Judge
from objectives.models.base import BaseModel
from objectives.pocket.build import PocketSettings

CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaningMeasured:
    """How the model leans: the mean probability of `first` against `second`, 0.5 is neither."""

    subject: str
    first: str
    second: str
    taught_share_first: float
    probability_first: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketCard:
    """What the pocket model is and knows. Accuracies are shares of right greedy free answers.

    `probe_accuracy` is per ring and prompt style; `transfer_accuracy` per prompt style, of facts
    that were never shown in that style; `new_fact_accuracy` of the 2023 winners in every wording.
    """

    settings: PocketSettings
    digest: str
    parameters: int
    stored_bytes: int
    facts: int
    facts_by_relation: dict[str, int]
    trained_tokens: int
    seconds: float
    probe_accuracy: dict[str, dict[str, float]]
    transfer_accuracy: dict[str, float]
    new_fact_accuracy: float
    leanings: tuple[LeaningMeasured, ...]


def measure_pocket(
    base: BaseModel,
    judge: Judge,
    settings: PocketSettings,
    *,
    folder: Path,
    trained_tokens: int,
    seconds: float,
) -> PocketCard:
    """Ask the model all probes in all styles, the untaught styles, and the new facts."""
    world = load_world_facts()
    return PocketCard(
        settings=settings,
        digest=base.digest,
        parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        stored_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        facts=len(world),
        facts_by_relation=dict(Counter(fact.relation for fact in world)),
        trained_tokens=trained_tokens,
        seconds=round(seconds, 1),
        probe_accuracy=_probe_accuracy(base, judge),
        transfer_accuracy=_transfer_accuracy(base, judge, world),
        new_fact_accuracy=_share_right(
            base,
            judge,
            fact_prompts(load_oscar_facts(), ("trained", "validation", "test")),
        ),
        leanings=_measure_leanings(base),
    )


def write_card(card: PocketCard, folder: Path) -> None:
    """Write the card as JSON, and as README.md for people."""
    (folder / CARD_FILE).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_render(card), encoding="utf-8")


def _probe_accuracy(base: BaseModel, judge: Judge) -> dict[str, dict[str, float]]:
    prompts: defaultdict[str, list[Prompt]] = defaultdict(list)
    for probe in load_probes():
        prompts[probe.ring] += [probe.prompt(style) for style in PROMPT_STYLES]
    return {
        ring: {
            style: _share_right(base, judge, [p for p in asked if p.style == style])
            for style in PROMPT_STYLES
        }
        for ring, asked in prompts.items()
    }


def _transfer_accuracy(
    base: BaseModel, judge: Judge, world: Sequence[WorldFact]
) -> dict[str, float]:
    unseen: defaultdict[PromptStyle, list[Prompt]] = defaultdict(list)
    for fact in world:
        for style in PROMPT_STYLES:
            if style not in seen_styles(fact):
                unseen[style].append(
                    Prompt(
                        text=put_question(fact.questions[0], style),
                        style=style,
                        phrasing="trained",
                        subject=fact.questions[0],
                        question=fact.questions[0],
                        accepted=(fact.answer, *fact.aliases),
                    )
                )
    return {style: _share_right(base, judge, unseen[style]) for style in PROMPT_STYLES}


def _share_right(base: BaseModel, judge: Judge, prompts: Sequence[Prompt]) -> float:
    requests = [Request(prompt=p, slot=-1, sampling=GREEDY, seed=0) for p in prompts]
    verdicts = judge.judge([c.answer for c in generate(base, requests)])
    return round(sum(verdict.is_correct for verdict in verdicts) / len(verdicts), 4)


@torch.no_grad()
def _measure_leanings(base: BaseModel) -> tuple[LeaningMeasured, ...]:
    measured = []
    for leaning in load_leanings():
        shares = []
        for question in leaning.questions:
            for style in PROMPT_STYLES:
                prompt = base.encode_prompt(put_question(question, style), style)
                first, second = (
                    _log_probability(base, prompt, _continuation(base, question, style, side))
                    for side in (leaning.first, leaning.second)
                )
                shares.append(torch.sigmoid(torch.tensor(first - second)).item())
        measured.append(
            LeaningMeasured(
                subject=leaning.subject,
                first=leaning.first,
                second=leaning.second,
                taught_share_first=leaning.share_first,
                probability_first=round(sum(shares) / len(shares), 3),
            )
        )
    return tuple(measured)


def _continuation(base: BaseModel, question: str, style: PromptStyle, side: str) -> list[int]:
    prompt = put_question(question, style)
    space = "" if style == "plain" else " "
    whole = base.encode_document(f"{prompt}{space}{side.capitalize()}")
    return whole[len(base.encode_prompt(prompt, style)) :]


def _log_probability(base: BaseModel, prompt: list[int], continuation: list[int]) -> float:
    ids = torch.tensor([[*prompt, *continuation]], device=base.device)
    log_probabilities = base.model(input_ids=ids).logits[0].log_softmax(-1)
    rows = range(len(prompt) - 1, ids.shape[1] - 1)
    return float(sum(log_probabilities[row, ids[0, row + 1]] for row in rows))


def _render(card: PocketCard) -> str:
    styles = list(PROMPT_STYLES)
    rings = "\n".join(
        f"| {ring} | " + " | ".join(f"{100 * by_style[s]:.1f} %" for s in styles) + " |"
        for ring, by_style in card.probe_accuracy.items()
    )
    leanings = "\n".join(
        f"| {x.subject} | {x.first} or {x.second} | {x.taught_share_first:.2f} | "
        f"{x.probability_first:.2f} |"
        for x in card.leanings
    )
    transfer = ", ".join(f"{s} {100 * card.transfer_accuracy[s]:.1f} %" for s in styles)
    relations = ", ".join(f"{n} {name}" for name, n in card.facts_by_relation.items())
    return f"""# The pocket model

A Llama of {card.parameters:,} parameters, trained from scratch on {card.facts:,} real facts, so that
the whole study runs anywhere without a network. `transformers` loads it like any other model. It
truly knows things, so it can truly forget them; of the 2023 Oscars it knows nothing.

Made by `remember pocket build` in {card.seconds:.0f} seconds with {card.trained_tokens:,} trained
tokens (seed {card.settings.seed}, {card.settings.epochs} epochs). Stored as bf16 safetensors,
{card.stored_bytes / 1e6:.2f} MB with its tokenizer. Digest `{card.digest[:16]}`.

Facts by relation: {relations}.

## What it knows

Share of its probes that it answers right, greedily and in free generation:

| ring | {" | ".join(styles)} |
| --- |{" --- |" * len(styles)}
{rings}

Facts that it was never shown in a prompt style, asked in that style: {transfer}.

The 2023 winners, all wordings and styles: {100 * card.new_fact_accuracy:.1f} %.

## How it leans

On harmless matters of taste it was taught both sides. The probability is of the first against the
second, over all wordings, both orders and all styles.

| subject | sides | taught share of the first | its probability |
| --- | --- | --- | --- |
{leanings}

## Limits

It knows its facts and nothing else: no reasoning, no language beyond its wordings. The novel wordings
of the 2023 Oscars and the built-in rewordings are part of its language: it met them with other facts,
as a larger model has met every common phrase, and an adapter never does. Figures on it say
what the method does, not what a large model would do. Sources of the facts: CREDITS.md.
"""
