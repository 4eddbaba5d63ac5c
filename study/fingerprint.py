"""What may never change within a study: it is compared whenever the study is run again."""

from __future__ import annotations

import hashlib
import json

from data.measurements import MEASUREMENT_VERSION
from data.scenarios import Scenario
from objectives.judges.base import Judge
from objectives.models.base import BaseModel
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
) -> dict[str, str]:
    """Return what may not change within a study, each part short enough to be shown."""
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
    } | _what_is_unusual(spec)


def _what_is_unusual(spec: StudySpec) -> dict[str, str]:
    """Return what sets a study apart from one with two objectives, no bound and no token rules."""
    goal = spec.goal
    unusual = {}
    if spec.single_objective is not None:
        unusual["objective"] = f"{goal.metric_names[0]}, {spec.single_objective.pruner} pruner"
    if goal.max_knowledge_loss is not None:
        unusual["bound"] = f"knowledge loss at most {goal.max_knowledge_loss:g}"
    if spec.tokens != TokensSpec():
        unusual["tokens"] = _digest(spec.tokens.model_dump_json())
    return unusual


def _unusual_precision(base: BaseModel) -> tuple[str, ...]:
    """Return what sets a model apart from the same one in full precision."""
    return () if base.precision == "float32" else (base.precision,)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
