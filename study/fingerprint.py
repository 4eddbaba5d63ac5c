"""What may never change within a study: it is compared whenever the study is run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from data.measurements import MEASUREMENT_VERSION
from data.scenarios import Scenario
from objectives.judges.base import Judge
from objectives.models.base import BaseModel
from objectives.models.load import Precision
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from study.spec import StudySpec, TokensSpec
from study.stored import facts_digest


def fingerprint_of(
    spec: StudySpec,
    scenario: Scenario,
    base: BaseModel,
    space: RecipeSpace,
    samplings: SamplingSpace,
    judge: Judge,
    *,
    rung_share: float = 1.0,
) -> dict[str, str]:
    """Return what may not change within a study, each part short enough to be shown.

    `rung_share` is the share of the questions that its rungs ask.
    """
    return {
        "facts": facts_digest(scenario),
        "model": " ".join((spec.model, base.digest[-12:], *_unusual_precision(base))),
        "space": _digest(repr(space)),
        "sampling": _digest(
            json.dumps(spec.sampling) + (repr(samplings.matrix) if samplings.matrix else "")
        ),
        "pruner": _digest(spec.pruner.model_dump_json()),
        "reference": _digest(spec.reference.model_dump_json()),
        "judge": judge.name,
        "measurement": str(MEASUREMENT_VERSION),
    } | _what_is_unusual(spec, base, rung_share)


def precision_of(fingerprint: Mapping[str, str]) -> Precision:
    """Return the type of the weights that a study computed with, as its fingerprint says."""
    match fingerprint.get("model", "").rpartition(" ")[2]:
        case "bfloat16" | "float16" as unusual:
            return unusual
        case _:
            return "float32"


def _what_is_unusual(spec: StudySpec, base: BaseModel, rung_share: float) -> dict[str, str]:
    """Return what sets a study apart from one that names none of this.

    That one has two objectives, no bound, no token rules, one file of weights or all that belong
    together, no chat template, and asks everything at its rungs.
    """
    goal = spec.goal
    unusual = {}
    if spec.single_objective is not None:
        unusual["objective"] = f"{goal.metric_names[0]}, {spec.single_objective.pruner} pruner"
    if goal.max_knowledge_loss is not None:
        unusual["bound"] = f"knowledge loss at most {goal.max_knowledge_loss:g}"
    if spec.tokens != TokensSpec():
        unusual["tokens"] = _digest(spec.tokens.model_dump_json())
    if spec.loading.weights_file is not None:
        unusual["weights"] = spec.loading.weights_file
    if base.chat is not None:
        unusual["chat"] = _digest(repr((base.chat, base.chat_ends)))
    if rung_share != 1:
        unusual["rung share"] = f"{rung_share:g}"
    return unusual


def _unusual_precision(base: BaseModel) -> tuple[str, ...]:
    """Return what sets a model apart from the same one in full precision."""
    return () if base.precision == "float32" else (base.precision,)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
