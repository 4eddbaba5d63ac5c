"""Optuna's TPE under a seed per asked trial, so that workers and restarts never repeat points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from study.seeds import derive_seed

STARTUP_TRIALS = 12


class SeededSampler(BaseSampler):
    """Multivariate, grouped TPE with constant liar, made anew for every trial.

    A sampler that is seeded once starts its random numbers again in every process, and then
    repeats its first points. This one depends on the study's seed and the trial's index only (and
    TPE on what it has seen so far).
    """

    def __init__(self, study_seed: int) -> None:
        self._study_seed = study_seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the joint space of the settings, as TPE groups them."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the jointly drawn settings."""
        sampler = self._of(trial)
        # The groups that sampling goes by are found while inferring.
        sampler.infer_relative_search_space(study, trial)
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one setting drawn alone, as in the start-up trials."""
        seed = derive_seed(self._seed(trial), len(trial.params), "sampler")
        return self._tpe(seed).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let TPE note what it needs of an ended trial."""
        self._of(trial).after_trial(study, trial, state, values)

    def _seed(self, trial: FrozenTrial) -> int:
        return derive_seed(self._study_seed, trial.number, "sampler")

    def _of(self, trial: FrozenTrial) -> TPESampler:
        return self._tpe(self._seed(trial))

    @staticmethod
    def _tpe(seed: int) -> TPESampler:
        return TPESampler(
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )
