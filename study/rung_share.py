"""Decides which share of the questions rungs ask: all of them, where asking is cheap."""

from __future__ import annotations

from data.prompts import fact_prompts
from data.recipes import GREEDY
from data.scenarios import Scenario
from objectives.learn import SEARCHED
from objectives.models.base import BaseModel
from study.pruning import Rungs
from study.spec import StudySpec

# Below, asking everything takes seconds.
_LARGE_PARAMETERS = 500_000_000

# Answers end on their own, on average at about half of what they may have.
_ANSWER_TOKENS = GREEDY.max_new_tokens // 2

# Reading a token is one pass through the weights, and training on one is two: forward, and back to
# the adapters. The weights themselves get no gradient.
_PASSES_PER_TRAINED_TOKEN = 2

# Shares are coarse, so that they do not depend on a few tokens more or less.
_STEP, _LEAST = 0.05, 0.1


def rung_share_of(
    spec: StudySpec, scenario: Scenario, base: BaseModel, rungs: Rungs | None
) -> float:
    """Return the share of the questions that a study's rungs ask; 1 is all.

    It is what the study file says. "auto" is 1 for models of fewer than 500 million parameters in
    their layers, and where there are no rungs. For larger ones asking at the second rung costs as
    many passes through the weights as the training between the first two did: twice its tokens,
    against the tokens of all prompts and of their answers, which are taken to be half as long as
    they may be. Later rungs have more training between them.

    Args:
        spec: The study.
        scenario: What it asks.
        base: Of which model.
        rungs: When it asks, if all facts are new.
    """
    if spec.rung_share != "auto":
        return float(spec.rung_share)
    if rungs is None or _layer_parameters(base) < _LARGE_PARAMETERS:
        return 1.0
    prompts = (
        *fact_prompts(scenario.facts, SEARCHED, chat=base.chat),
        *(probe.prompt(chat=base.chat) for probe in scenario.probes),
    )
    asked = sum(
        len(base.encode_prompt(prompt.text, prompt.style)) + _ANSWER_TOKENS for prompt in prompts
    )
    trained = (rungs.spacing - 1) * rungs.first_rung_tokens
    share = _PASSES_PER_TRAINED_TOKEN * trained / asked
    return min(1.0, max(_LEAST, round(_STEP * round(share / _STEP), 2)))


def _layer_parameters(base: BaseModel) -> int:
    """Return about how many weights a model's layers have, however they are stored.

    Attention has four square matrices of the hidden size, and an MLP as much as eight (Kaplan et
    al. 2020, 2001.08361).
    """
    layers = int(base.model.config.get_text_config().num_hidden_layers)
    return 12 * layers * base.hidden_size**2
