"""A study's fingerprint tells models apart by what changes answers, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from data.measurements import MEASUREMENT_VERSION
from data.prompts import ChatFrame
from data.scenarios import Scenario
from objectives.judges.matcher import Matcher
from objectives.models.base import BaseModel
from study.fingerprint import fingerprint_of
from study.spec import StudySpec
from study.stored import load_study_scenario


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_study_scenario(StudySpec())


@dataclass(frozen=True)
class _Model:
    """Only what a fingerprint reads of a model."""

    dtype: str = "torch.float32"


def fingerprint(scenario: Scenario, base: BaseModel, **fields: Any) -> dict[str, str]:
    spec = StudySpec.model_validate(fields)
    space = spec.recipe_space(hidden_size=128, context_tokens=512, longest_qna_tokens=40)
    return fingerprint_of(spec, scenario, base, space, spec.sampling_space, Matcher())


def make_base(**fields: Any) -> BaseModel:
    return BaseModel(
        name="pocket",
        source="pocket",
        digest="0123456789abcdef",
        model=_Model(),
        tokenizer=None,
        **fields,
    )


def test_a_study_with_defaults_has_the_fingerprint_that_it_always_had(scenario: Scenario) -> None:
    assert fingerprint(scenario, make_base()) == {
        "facts": "e41114964b54",
        "judge": "matcher",
        "measurement": str(MEASUREMENT_VERSION),
        "model": "pocket 456789abcdef",
        "pruner": "8b3426002182",
        "reference": "7b503242971d",
        "sampling": "60539bbab928",
        "space": "4c49e6bdec07",
    }


def test_where_and_how_a_model_is_found_does_not_matter(scenario: Scenario) -> None:
    plain = fingerprint(scenario, make_base())
    assert fingerprint(scenario, make_base(revision="1" * 40)) == plain
    same = {"loading": {"revision": "main", "trust_remote_code": True, "pickled_weights": True}}
    assert fingerprint(scenario, make_base(), **same) == plain
    assert fingerprint(scenario, make_base(), engine={"device": "cpu"}) == plain


def test_another_file_of_weights_is_another_study(scenario: Scenario) -> None:
    named = fingerprint(scenario, make_base(), loading={"weights_file": "b.safetensors"})
    assert named["weights"] == "b.safetensors"


def test_another_chat_template_is_another_study(scenario: Scenario) -> None:
    frame = ChatFrame(before="<user>", after="<assistant>")
    bases = [
        make_base(),
        make_base(chat=frame),
        make_base(chat=replace(frame, after="<bot>")),
        make_base(chat=replace(frame, end="<user>")),
        make_base(chat=frame, chat_ends=(7,)),
    ]
    found = [fingerprint(scenario, base).get("chat") for base in bases]
    assert found[0] is None
    assert len(set(found)) == len(bases)


def test_a_share_that_rungs_ask_tells_a_study_apart(scenario: Scenario) -> None:
    spec, base = StudySpec(), make_base()
    space = spec.recipe_space(hidden_size=128, context_tokens=512, longest_qna_tokens=40)
    a_part, everything = (
        fingerprint_of(
            spec, scenario, base, space, spec.sampling_space, Matcher(), rung_share=share
        )
        for share in (0.25, 1.0)
    )
    assert a_part == everything | {"rung share": "0.25"}
    assert "rung share" not in everything
