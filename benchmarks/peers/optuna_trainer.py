"""Optuna around Trainer and PEFT in one process: the usual script of a hyperparameter search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna

from benchmarks.peers.answering import answer_in_batches
from benchmarks.peers.scores import judge_texts, score
from benchmarks.peers.trainer import train_with_trainer
from benchmarks.peers.work_files import Job
from benchmarks.text_batches import batch_texts
from data.measurements import Verdict
from data.prompts import Prompt
from data.recipes import Recipe
from objectives.models.base import BaseModel
from search_spaces.recipe_space import RecipeSpace, settings_of, suggest_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class OptunaSearch:
    """A search with TPE that keeps its trials in memory.

    `make_job` writes a recipe's texts; `base_verdicts` are those of the untouched model.
    """

    base: BaseModel
    space: RecipeSpace
    prompts: Sequence[Prompt]
    base_verdicts: Sequence[Verdict]
    make_job: Callable[[Recipe], Job]

    def try_recipe(self, recipe: Recipe) -> tuple[float, float, float]:
        """Run one trial, of this recipe; return its recall, knowledge loss, and training time."""
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0)
        )
        study.enqueue_trial(settings_of(recipe))
        study.optimize(self._objective, n_trials=1)
        (trial,) = study.trials
        recall, loss = trial.values
        return recall, loss, trial.user_attrs["training_seconds"]

    def _objective(self, trial: optuna.Trial) -> tuple[float, float]:
        recipe = suggest_recipe(trial, self.space)
        batches = batch_texts(self.base, recipe, self.make_job(recipe).epoch_texts)
        begun = time.perf_counter()
        adapted, _ = train_with_trainer(self.base.source, recipe, batches, pad_id=self.base.pad_id)
        trial.set_user_attr("training_seconds", time.perf_counter() - begun)
        texts = [prompt.text for prompt in self.prompts]
        answers = answer_in_batches(adapted.eval(), self.base, texts)
        return score(self.base_verdicts, judge_texts(self.prompts, answers))
