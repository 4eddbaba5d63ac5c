"""Makes the judge that a study file or a flag names, with a model of its own and a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data.judge_config import EndpointConfig, JudgeConfig
from data.measurements import Label
from data.nearest_name import hint_at
from objectives.answers.request import never
from objectives.judges.base import Judge
from objectives.judges.build import make_judge
from objectives.judges.cached import VerdictCache as Cache
from storage.database import StudyStorage
from storage.verdict_cache import VerdictCache
from study.engine import load_on
from study.spec import ConfigurationError, EngineSpec, JudgeSpec, load_spec


class LateCache:
    """Verdicts that are kept in memory until there is a database to keep them in."""

    def __init__(self) -> None:
        """Begin without a database."""
        self._early: dict[str, Label] = {}
        self._database: VerdictCache | None = None

    def keep_in(self, storage: StudyStorage) -> None:
        """Keep all verdicts in a database from now on, those so far included."""
        self._database = VerdictCache(storage)
        self._database.write(self._early)

    def read(self, keys: Sequence[str]) -> Mapping[str, Label]:
        """Return the labels of those keys that are known."""
        if self._database is not None:
            return self._database.read(keys)
        return {key: self._early[key] for key in keys if key in self._early}

    def write(self, labels: Mapping[str, Label]) -> None:
        """Keep labels."""
        if self._database is not None:
            self._database.write(labels)
        else:
            self._early |= labels


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


def make_study_judge(
    spec: JudgeSpec,
    engine: EngineSpec,
    cache: Cache,
    should_stop: Callable[[], bool] = never,
) -> Judge:
    """Return the judge; its model is loaded apart from any that is tuned.

    It stops judging, with `AskingStopped`, once `should_stop` says so.

    Raises:
        SettingError: As `judge_config`.
        ModelError: If its model cannot be loaded or cannot judge.
    """
    return make_judge(
        judge_config(spec),
        loader=lambda name: load_on(engine, name),
        cache=cache,
        should_stop=should_stop,
    )
