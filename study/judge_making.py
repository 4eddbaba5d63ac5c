"""Makes the judge that a study file or a flag names, with a model of its own and a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.judge_config import EndpointConfig, JudgeConfig
from data.measurements import Label
from objectives.judges.base import Judge
from objectives.judges.build import make_judge
from objectives.judges.cached import MemoryCache
from objectives.judges.cached import VerdictCache as Cache
from objectives.models.load import load_base_model
from storage.database import StudyStorage
from storage.verdict_cache import VerdictCache
from study.spec import EngineSpec, JudgeSpec


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
