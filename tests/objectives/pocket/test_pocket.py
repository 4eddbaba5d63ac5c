"""The shipped pocket model keeps what its card promises."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest

from data.oscar_facts import load_oscar_facts
from data.prompts import PROMPT_STYLES, PromptStyle, fact_prompts
from data.recipes import GREEDY
from data.world_facts import load_probes
from objectives.answers.generate import generate
from objectives.answers.request import Request
from objectives.judges.matcher import Matcher
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from objectives.pocket.build import PocketSettings, build_pocket

FOLDER = Path(str(files("data") / "pocket"))


@pytest.fixture(scope="module")
def pocket() -> BaseModel:
    return load_base_model("pocket", device="cpu")


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    loaded: dict[str, object] = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    return loaded


def test_it_is_small_and_its_widths_fit_groups_of_128(pocket: BaseModel) -> None:
    assert sum(p.numel() for p in pocket.model.parameters()) <= 1_500_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    assert pocket.model.config.hidden_size % 128 == 0
    assert pocket.model.config.intermediate_size % 128 == 0


def test_the_card_is_about_the_shipped_weights_and_settings(
    pocket: BaseModel, card: dict[str, object]
) -> None:
    assert card["digest"] == pocket.digest
    assert card["settings"] == asdict(PocketSettings())


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_it_answers_at_least_98_percent_of_its_probes_in_every_style(
    pocket: BaseModel, style: PromptStyle
) -> None:
    prompts = [probe.prompt(style) for probe in load_probes()]
    requests = [Request(prompt=p, slot=-1, sampling=GREEDY, seed=0) for p in prompts]
    verdicts = Matcher().judge([c.answer for c in generate(pocket, requests)])
    assert sum(v.is_correct for v in verdicts) / len(verdicts) >= 0.98


def test_it_knows_none_of_the_2023_winners(pocket: BaseModel) -> None:
    prompts = fact_prompts(load_oscar_facts(), ("trained", "validation", "test"))
    requests = [Request(prompt=p, slot=-1, sampling=GREEDY, seed=0) for p in prompts]
    verdicts = Matcher().judge([c.answer for c in generate(pocket, requests)])
    assert not [v.answer.text for v in verdicts if v.is_correct]


@pytest.mark.parametrize("answer", ["Michelle Yeoh", "7", "Everything Everywhere All at Once"])
def test_an_answer_has_the_same_tokens_at_the_beginning_of_a_line_and_after_a_colon(
    pocket: BaseModel, answer: str
) -> None:
    plain, qna = "Who?\n", "Question: Who?\nAnswer:"
    after_line = pocket.encode_document(plain + answer)[len(pocket.encode_prompt(plain)) :]
    after_colon = pocket.encode_document(f"{qna} {answer}")[len(pocket.encode_prompt(qna)) :]
    assert pocket.encode_document(plain + answer)[: -len(after_line)] == pocket.encode_prompt(
        plain
    )
    assert after_line == after_colon


@pytest.mark.slow
def test_building_it_twice_gives_the_same_weights(tmp_path: Path) -> None:
    settings = PocketSettings(epochs=1)
    for name in ("first", "second"):
        build_pocket(settings, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
