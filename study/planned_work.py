"""Adds up what a study would train and ask if none of its trials were pruned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import optuna
from optuna.samplers import RandomSampler

from data.prompts import fact_prompts
from data.recipes import GREEDY, Recipe
from data.scenarios import Scenario
from objectives.bank.batches import count_predicted
from objectives.demand import TokenCounter, epoch_batches
from objectives.learn import EVERYTHING, SEARCHED
from objectives.models.base import BaseModel
from search_spaces.grid import count_cells, make_grid
from search_spaces.recipe_space import RecipeSpace, suggest_recipe
from study.pruning import Rungs
from study.rung_share import rung_share_of
from study.setting_up import make_rungs
from study.spec import StudySpec

# So many random trials stand for all that a study will ask.
_TRIALS_LOOKED_AT = 32

# At most so many members of the front are asked the test wordings and trained again.
_MOST_MEMBERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all trials come to if none is pruned, and what comes before and after them.

    `answers` and `probes` are put to adapters and the base; `verdicts` are answers of both kinds.
    """

    trials: int
    trained_tokens: int
    answers: int
    probes: int

    @property
    def verdicts(self) -> int:
        """Return how many answers are judged."""
        return self.answers + self.probes


def add_up(
    spec: StudySpec,
    scenario: Scenario,
    space: RecipeSpace,
    count: TokenCounter,
    base: BaseModel | None,
) -> Work:
    """Return what a study of this spec comes to if no trial is pruned.

    Random trials stand for those that will be asked. At a rung a share of the prompts is asked; at
    its end a trial is asked all, and once more under its own sampling.
    """
    grid = make_grid(space, spec.sampling_space) if spec.sampler == "grid" else None
    trials = spec.trials if grid is None else min(spec.trials, count_cells(grid))
    chat = None if base is None else base.chat
    searched = len(fact_prompts(scenario.facts, SEARCHED, chat=chat))
    everything = len(fact_prompts(scenario.facts, EVERYTHING, chat=chat))
    probes = len(scenario.probes)
    rungs = make_rungs(spec, len(scenario.facts))
    share = 1.0 if spec.rung_share == "auto" else spec.rung_share
    if base is not None:
        share = rung_share_of(spec, scenario, base, rungs)
    recipes = _random_recipes(space, seed=spec.seed)
    tokens = [sum(map(count_predicted, epoch_batches(scenario, r, count))) for r in recipes]
    per_trial = fmean(recipe.epochs * own for recipe, own in zip(recipes, tokens, strict=True))
    rungs_per_trial = fmean(
        count_rungs(rungs, recipe.epochs, own) for recipe, own in zip(recipes, tokens, strict=True)
    )
    # Each member and the yardstick, with so many seeds.
    repeats = (_MOST_MEMBERS + 1) * spec.confirming_seeds
    own_samplings = 0 if set(spec.sampling_space.presets) == {GREEDY.name} else 1
    answers_per_trial = (share * rungs_per_trial + 1 + own_samplings) * searched
    probes_per_trial = (share * rungs_per_trial + 1) * probes
    return Work(
        trials=trials,
        trained_tokens=round((trials + repeats) * per_trial),
        # The base is asked everything first, what may be rehearsed too, and the facts again with
        # others in its prompt; the members and what is trained again are asked everything.
        answers=round(
            everything
            + len(scenario.known_facts)
            + 2 * searched
            + trials * answers_per_trial
            + (_MOST_MEMBERS + repeats) * (everything + own_samplings * (searched + 2 * probes))
        ),
        probes=round(probes + trials * probes_per_trial + (_MOST_MEMBERS + repeats) * probes),
    )


def count_rungs(rungs: Rungs | None, epochs: int, tokens_per_epoch: int) -> int:
    """Return at how many epochs' ends before its last a trial comes to a new rung."""
    if rungs is None:
        return 0
    reached = [rungs.rungs_reached(epoch * tokens_per_epoch) for epoch in range(epochs)]
    return sum(later > earlier for earlier, later in pairwise(reached))


def _random_recipes(space: RecipeSpace, *, seed: int) -> list[Recipe]:
    """Return recipes drawn evenly from a space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=RandomSampler(seed=seed % 2**32))
    return [suggest_recipe(study.ask(), space) for _ in range(_TRIALS_LOOKED_AT)]
