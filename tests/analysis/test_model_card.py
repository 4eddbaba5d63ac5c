"""The model card says what was measured, and nothing in it acts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from analysis.model_card import Export, render_card
from analysis.wording import show_text
from tests.analysis.conftest import StudyMaker

if TYPE_CHECKING:
    from analysis.findings import Findings

OF_HUB = Export(
    format="peft",
    files="taught",
    base="org/model",
    hub_id="org/model",
    revision="0123abcd",
    digest="org/model@0123abcd",
    licence="Apache 2.0",
    max_lora_rank=16,
)


def render(findings: Findings, export: Export = OF_HUB, *, trial: int = 1) -> str:
    point = max((p for p in findings.points if p.trial == trial), key=lambda point: point.epoch)
    return render_card(findings, point, export, versions={"torch": "2.13.0"})


def front_matter(text: str) -> Any:
    """Return what the hub reads of a card, with a field per key."""
    return ModelCard(text).data


def rows_of(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table that follows a heading."""
    after = text.split(f"## {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert lines is not None
    return [row.strip("| ").split(" | ") for row in lines[0].splitlines()]


def test_figures_of_search_and_confirmation_stand_with_their_intervals(maker: StudyMaker) -> None:
    maker.add((4, 0.5, 0.2))
    maker.add((8, 0.85, 0.02), confirmed=(0.75, 0.05), repeated=[(0.7, 0.1), (0.8, 0.1)])
    text = render(maker.findings())
    _, _, base, search, apart, again = rows_of(text, "What it recalls, and what it forgot")

    assert base == ["the base, untouched", "0 % (0–5 %)", "0 %"]
    assert search == ["in the search", "85 % (80–90 %)", "2 % (0–7 %)"]
    assert apart[1:] == ["75 % (70–80 %)", "5 % (0–10 %)"]
    assert again[0] == "the recipe trained again with 2 fresh seeds"
    # Two seeds leave much open: 75 % is the mean of 70 % and 80 %.
    assert re.fullmatch(r"75 % \(\d+–\d+ %\)", again[1])
    assert again[2].startswith("10 % (")
    assert "member of its study's front that the study recommends" in text


def test_what_was_not_measured_is_called_so(three_trials: StudyMaker) -> None:
    text = render(three_trials.findings(), trial=0)
    *_, apart, again = rows_of(text, "What it recalls, and what it forgot")

    assert apart == [apart[0], "not measured", "not measured"]
    assert again == ["the recipe trained again with fresh seeds", "not measured", "not measured"]
    assert "on its study's front, which recommends another" in text
    assert "not on its study's front" in render(three_trials.findings(), trial=2)


def test_the_hub_reads_the_front_matter(three_trials: StudyMaker) -> None:
    data = front_matter(render(three_trials.findings()))

    assert data.base_model == "org/model"
    assert data.library_name == "peft"
    assert "lora" in data.tags
    local = replace(OF_HUB, hub_id=None, revision=None, base="folder")
    assert front_matter(render(three_trials.findings(), local)).base_model is None
    merged = replace(OF_HUB, format="merged", precision="bfloat16")
    data = front_matter(render(three_trials.findings(), merged))
    assert (data.library_name, data.base_model_relation) == ("transformers", "finetune")


def test_base_facts_and_settings_are_identified_without_telling_the_facts(
    three_trials: StudyMaker,
) -> None:
    text = render(three_trials.findings())

    assert "- its revision: 0123abcd\n- its digest: org/model@0123abcd\n" in text
    assert "- facts: 1, digest 0a1b2c3d4e5f\n" in text
    assert "Brendan" not in text
    assert ["rank", "8"] in rows_of(text, "How it was made")
    assert ["epochs", "8"] in rows_of(text, "How it was made")
    assert "It is: Apache 2.0." in text
    assert "its own page says" in render(three_trials.findings(), replace(OF_HUB, licence=None))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, '"org/model", revision="0123abcd")'),
        ({}, "vllm serve org/model --enable-lora --max-lora-rank 16 --lora-modules taught=taught"),
        ({"files": "a b"}, "--lora-modules 'taught=a b'"),
        ({"max_lora_rank": None}, "vLLM cannot serve it as an adapter"),
        ({"format": "merged", "precision": "float16"}, 'from_pretrained("taught", dtype="auto")'),
        (
            {"format": "merged", "precision": "float16", "was_quantised": True},
            "so that they take float16 again",
        ),
        ({"format": "gguf", "files": "a.gguf"}, "llama-cli -m BASE.gguf --lora a.gguf"),
        (
            {"format": "gguf", "files": "a.gguf", "gguf_file": "b.q4_0.gguf"},
            "llama-cli -m b.q4_0.gguf --lora a.gguf",
        ),
        (
            {"gguf_file": "b.q4_0.gguf"},
            'from_pretrained("org/model", gguf_file="b.q4_0.gguf", revision="0123abcd")',
        ),
        (
            {"base": "b.q4_0.gguf", "hub_id": None, "gguf_file": "b.q4_0.gguf"},
            'from_pretrained(".", gguf_file="b.q4_0.gguf")',
        ),
    ],
)
def test_how_to_load_it_depends_on_the_format(
    three_trials: StudyMaker, changes: dict[str, Any], said: str
) -> None:
    assert said in render(three_trials.findings(), replace(OF_HUB, **changes))


def test_only_of_a_base_that_is_not_on_the_hub_a_copy_is_asked_for(
    three_trials: StudyMaker,
) -> None:
    asked = "put the path of your copy in its place"
    assert asked not in render(three_trials.findings())
    assert asked in render(three_trials.findings(), replace(OF_HUB, base="mine", hub_id=None))


def test_what_loads_a_base_in_four_bits_is_said_of_such_a_base_alone(
    three_trials: StudyMaker,
) -> None:
    said = "The base is a 4-bit GPTQ checkpoint"
    assert said not in render(three_trials.findings())
    assert said in render(three_trials.findings(), replace(OF_HUB, base_is_gptq=True))


def test_only_a_quantised_base_is_called_so(three_trials: StudyMaker) -> None:
    merged = replace(OF_HUB, format="merged", precision="bfloat16")
    assert "quantised" not in render(three_trials.findings(), merged)


@settings(deadline=None, max_examples=40)
@given(hostile=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_no_name_becomes_markup_or_another_field(hostile: str) -> None:
    findings = StudyMaker().add((8, 0.85, 0.02)).findings()
    name = f"]({hostile}) <b>\n```\n---\nlicense: none"
    export = replace(
        OF_HUB, files=name, base=name, hub_id=name, revision=name, digest=name, licence=name
    )
    for format in ("peft", "merged", "gguf"):
        text = render(findings, replace(export, format=format), trial=0)
        data = front_matter(text)
        assert set(data.to_dict()) == {
            "base_model",
            "base_model_relation",
            "library_name",
            "pipeline_tag",
            "tags",
        }
        tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
        kinds = [token.type for token in tokens]
        fences = {"peft": 2, "merged": 1, "gguf": 1}[format]
        assert kinds.count("fence") == fences
        assert "html_block" not in kinds
        inline = [child.type for token in tokens for child in token.children or ()]
        assert not {"link_open", "image", "html_inline"} & set(inline)
        shown = "".join(child.content for token in tokens for child in token.children or ())
        assert f"base model: {show_text(name)}" in shown
        assert data.base_model == show_text(name)
