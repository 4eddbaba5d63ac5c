"""Loads models on the device and in the precision that a study file names."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.models.base import BaseModel, TokenRules
from objectives.models.load import load_base_model
from objectives.models.machine.devices import use_threads
from objectives.models.machine.memory_limit import cap_memory
from study.spec import EngineSpec, StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Where one of a study's `workers` computes, and how.

    `joined` is what the study was made with where this worker only joins it: it may know the
    model and the output folder by other paths.
    """

    engine: EngineSpec
    workers: int = 1
    joined: StudySpec | None = None


def load_engine(spec: StudySpec, engine: EngineSpec | None = None) -> BaseModel:
    """Return a study's base model, and let torch use as many threads as the engine says.

    The engine is the study's own unless another one is named.

    Raises:
        ModelError: As `load_base_model`.
    """
    engine = engine or spec.engine
    use_threads(engine.threads)
    cap_memory(_named(engine.device), engine.memory_limit_bytes)
    return load_base_model(
        spec.model,
        device=_named(engine.device),
        dtype=None if engine.dtype == "auto" else engine.dtype,
        rules=TokenRules(
            end=tuple(spec.tokens.end),
            pad=spec.tokens.pad,
            bad_words=tuple(spec.tokens.bad_words),
        ),
        loading=spec.loading.options,
        memory_limit_bytes=engine.memory_limit_bytes,
        chat_template=spec.chat_template,
    )


def load_on(engine: EngineSpec, name: str) -> BaseModel:
    """Return a model where and as precise as `engine` says; "auto" leaves it to the machine.

    Raises:
        ModelError: If the model or the device is not there.
    """
    return load_base_model(
        name,
        device=_named(engine.device),
        dtype=None if engine.dtype == "auto" else engine.dtype,
    )


def _named(device: str) -> str | None:
    return None if device == "auto" else device
