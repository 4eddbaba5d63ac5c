"""Loads models on the device and in the precision that a study file names."""

from __future__ import annotations

from objectives.models.base import NO_RULES, BaseModel, TokenRules
from objectives.models.devices import use_threads
from objectives.models.load import load_base_model
from study.spec import EngineSpec, StudySpec


def load_engine(spec: StudySpec) -> BaseModel:
    """Return a study's base model, and let torch use as many threads as the study says.

    Raises:
        ModelError: If the model or the device is not there, or a rule does not fit its tokens.
    """
    use_threads(spec.engine.threads)
    rules = TokenRules(
        end=tuple(spec.tokens.end),
        pad=spec.tokens.pad,
        bad_words=tuple(spec.tokens.bad_words),
    )
    return load_on(spec.engine, spec.model, rules=rules)


def load_on(engine: EngineSpec, name: str, *, rules: TokenRules = NO_RULES) -> BaseModel:
    """Return a model where and as precise as `engine` says; "auto" leaves it to the machine.

    Raises:
        ModelError: If the model or the device is not there, or a rule does not fit its tokens.
    """
    return load_base_model(
        name,
        device=None if engine.device == "auto" else engine.device,
        dtype=None if engine.dtype == "auto" else engine.dtype,
        rules=rules,
    )
