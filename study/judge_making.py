"""Makes the judge that a study file or a flag names, with a model of its own and a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.judge_config import EndpointConfig, JudgeConfig
from data.measurements import Label
from data.nearest_name import hint_at
from objectives.judges.base import Judge, JudgeUnreachable
from objectives.judges.build import make_judge
from objectives.judges.cached import MemoryCache
from objectives.judges.cached import VerdictCache as Cache
from objectives.models.load import load_base_model
from storage.database import StudyStorage
from storage.verdict_cache import VerdictCache
from study.spec import ConfigurationError, EngineSpec, JudgeSpec, load_spec


class LateCache:
    """Verdicts that are kept in memory until there is a database to keep them in."""

    def __init__(self) -> None:
        """Begin without a database."""
        self._cache: Cache = MemoryCache()
        self._early: dict[str, Label] = {}

    def keep_in(self, storage: StudyStorage) -> None:
        """Keep all verdicts in a database from now on, those so far included."""
        self._cache = VerdictCache(storage)
        self._cache.write(self._early)
        self._early.clear()

    def read(self, keys: Sequence[str]) -> Mapping[str, Label]:
        """Return the labels of those keys that are known."""
        return self._cache.read(keys)

    def write(self, labels: Mapping[str, Label]) -> None:
        """Keep labels."""
        if isinstance(self._cache, MemoryCache):
            self._early |= labels
        self._cache.write(labels)


def judge_config(spec: JudgeSpec) -> JudgeConfig:
    """Return what a study file says about its judge, checked.

    Raises:
        SettingError: If a field is out of its bounds, missing or of no use to the kind.
    """
    endpoint = None if spec.endpoint is None else EndpointConfig(**spec.endpoint.model_dump())
    return JudgeConfig(kind=spec.kind, model=spec.model, endpoint=endpoint)


def judge_named(text: str, cache: Cache) -> Judge:
    """Return the judge that a flag names.

    That is “matcher”, “model:NAME” or “cascade:NAME” with a local model's folder or hub id, or a
    study file whose `judge` it is.

    Raises:
        ConfigurationError: If it is none of these, or the file cannot be read.
        SettingError: As `judge_config`.
        ModelError: If its model cannot be loaded or cannot judge.
    """
    kind, _, model = text.partition(":")
    if text == "matcher":
        return make_study_judge(JudgeSpec(), EngineSpec(), cache)
    if kind in ("model", "cascade") and model:
        spec = JudgeSpec.model_validate({"kind": kind, "model": model})
        return make_study_judge(spec, EngineSpec(), cache)
    if text.endswith(".toml"):
        study = load_spec(Path(text), {})
        return make_study_judge(study.judge, study.engine, cache)
    remedy = hint_at(
        text,
        ["matcher"],
        otherwise=(
            "name matcher, model:NAME, cascade:NAME, or a study file (.toml) with a [judge] of "
            "its own"
        ),
    )
    raise ConfigurationError(f"judge: {text!r} is not a judge; {remedy}")


def require_replies(judge: Judge) -> None:
    """Refuse to go on with verdicts of a judge that gave no reply.

    Raises:
        JudgeUnreachable: With its reason.
    """
    reason: str | None = getattr(judge, "unreachable_reason", None)
    if reason is not None:
        raise JudgeUnreachable(
            f"judge: {judge.name} gives no reply ({reason}); what it judged is kept. Run the same "
            "command again once it is there"
        )


def make_study_judge(spec: JudgeSpec, engine: EngineSpec, cache: Cache | None = None) -> Judge:
    """Return the judge; its model is loaded apart from any that is tuned.

    Raises:
        SettingError: As `judge_config`.
        ModelError: If its model cannot be loaded or cannot judge.
    """
    return make_judge(
        judge_config(spec),
        loader=lambda name: load_base_model(
            name,
            device=None if engine.device == "auto" else engine.device,
            dtype=None if engine.dtype == "auto" else engine.dtype,
        ),
        cache=cache,
    )
