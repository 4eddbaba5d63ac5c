"""Optuna's samplers, seeded for every asked trial: workers and restarts repeat no points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    GridSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from analysis.points import Reference
from search_spaces.grid import Grid
from study.asked_trials import asked_index
from study.sampler_view import view_of
from study.seeds import derive_seed

STARTUP_TRIALS = 8

SamplerName = Literal["tpe", "gp", "nsga2", "qmc", "random", "grid"]


class SeededSampler(BaseSampler):
    """A sampler by name, made anew for every trial.

    `tpe` is multivariate, grouped and with constant liar. A sampler that is seeded once starts its
    random numbers again in every process, and then repeats its first points. This one depends on
    the study's seed and the trial's index among the asked ones only (and on what the method has
    seen so far).

    With a `reference`, `tpe` learns from each trial's best point at a rung, as `view_of` has it.
    """

    def __init__(
        self,
        study_seed: int,
        method: SamplerName = "tpe",
        *,
        grid: Grid | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Choose the method; `grid` has the values of every setting, for `grid` alone.

        A `reference` is for studies with two objectives.

        Raises:
            ValueError: If there is a grid for another method, or none for `grid`.
        """
        if (method == "grid") != (grid is not None):
            raise ValueError(f"grid: it goes with the method grid and no other, not with {method}")
        self._study_seed = study_seed
        self._method = method
        self._grid = grid
        self._reference = reference if method == "tpe" else None
        self._indices: dict[int, int] = {}
        self._known: dict[int, FrozenTrial] = {}  # ended trials of the one study this is for

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the joint space of the settings, as the method groups them."""
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the jointly drawn settings."""
        sampler = self._of(study, trial)
        # The groups that sampling goes by are found while inferring.
        sampler.infer_relative_search_space(study, trial)
        if self._reference is None:
            return sampler.sample_relative(study, trial, search_space)
        seen = view_of(study, self._reference, known=self._known)
        return sampler.sample_relative(seen, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one setting drawn alone, as in the start-up trials."""
        seed = derive_seed(self._seed(study, trial), len(trial.params), "sampler")
        return self._make(seed).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let a grid choose the trial's cell."""
        self._of(study, trial).before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the method note what it needs of an ended trial."""
        # A grid would stop Optuna's own loop here, which is not the one that runs.
        if self._method != "grid":
            self._of(study, trial).after_trial(study, trial, state, values)

    def _seed(self, study: optuna.Study, trial: FrozenTrial) -> int:
        if trial.number not in self._indices:  # it is asked for with every setting
            trials = study.get_trials(deepcopy=False)
            self._indices[trial.number] = asked_index(trial.number, trials)
        return derive_seed(self._study_seed, self._indices[trial.number], "sampler")

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        return self._make(self._seed(study, trial))

    def _make(self, seed: int) -> BaseSampler:
        whole_study = derive_seed(self._study_seed, 0, "sampler")
        match self._method:
            case "tpe":
                return TPESampler(
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
            case "gp":
                return GPSampler(
                    n_startup_trials=STARTUP_TRIALS, seed=seed, warn_independent_sampling=False
                )
            case "nsga2":
                # With the usual fifty a study of a hundred trials would be random search.
                return NSGAIISampler(population_size=STARTUP_TRIALS, seed=seed)
            case "qmc":
                # Which point of the sequence is next is kept in the study.
                return QMCSampler(
                    scramble=True,
                    seed=whole_study,
                    independent_sampler=RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            case "random":
                return RandomSampler(seed=seed)
            case "grid":
                assert self._grid is not None
                # It shuffles its cells, of which a trial has that of its number.
                cells = {name: list(each) for name, each in self._grid.items()}
                return GridSampler(cells, seed=whole_study)
