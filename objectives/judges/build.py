"""Makes the judge that a study's author chose; imports only what that judge needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from data.judge_config import JudgeConfig
from data.judge_prompts import GRADER, WORDINGS, Wording
from objectives.answers.request import never
from objectives.judges.base import Judge
from objectives.judges.cached import CachedJudge, MemoryCache, VerdictCache
from objectives.judges.cascade import Cascade
from objectives.judges.matcher import Matcher

if TYPE_CHECKING:
    from objectives.models.base import BaseModel


def make_judge(
    config: JudgeConfig,
    *,
    loader: Callable[[str], BaseModel],
    cache: VerdictCache | None = None,
    should_stop: Callable[[], bool] = never,
) -> Judge:
    """Return the judge; no server is asked yet.

    Args:
        config: What was chosen.
        loader: Loads a model by folder or hub id; it must not return the model that is tuned.
        cache: Where the verdicts of models are kept; by default in memory.
        should_stop: Asked before every pass or request; `AskingStopped` is raised once it says so.

    Raises:
        ModelError: If a local model cannot be loaded or cannot judge.
    """
    if config.kind == "matcher":
        return Matcher()
    ask_in = _models_judge(config, loader, should_stop)
    kept = cache or MemoryCache()
    if config.kind == "cascade":
        return Cascade(Matcher(), [CachedJudge(ask_in(wording), kept) for wording in WORDINGS])
    return CachedJudge(ask_in(GRADER), kept)


def _models_judge(
    config: JudgeConfig, loader: Callable[[str], BaseModel], should_stop: Callable[[], bool]
) -> Callable[[Wording], Judge]:
    """Return what makes a judge of a wording; all of them share one model or one server."""
    if config.endpoint is not None:
        from objectives.judges.endpoint import Endpoint, EndpointJudge

        endpoint = Endpoint(config.endpoint, should_stop=should_stop)
        return lambda wording: EndpointJudge(endpoint, wording)
    from objectives.judges.model import ModelJudge

    assert config.model is not None  # the config has one of the two
    base = loader(config.model)
    return lambda wording: ModelJudge(base, wording, should_stop=should_stop)
