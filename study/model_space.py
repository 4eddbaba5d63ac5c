"""What a study's trials may train of its model: the study file's space, fitted to the model."""

from __future__ import annotations

from dataclasses import replace

from data.scenarios import Scenario
from objectives.models.base import BaseModel
from objectives.models.linear_modules import find_linear_modules
from search_spaces.recipe_space import RecipeSpace
from search_spaces.settings import Choices, bounds
from study.lengths import longest_qna_tokens
from study.spec import ConfigurationError, StudySpec


def recipe_space_for(spec: StudySpec, scenario: Scenario, base: BaseModel) -> RecipeSpace:
    """Return the recipes that a study may try on its model.

    Raises:
        ConfigurationError, SettingError: As `StudySpec.recipe_space` and `fit_target_modules`.
        ModelError: If the model has no modules for adapters at all.
    """
    space = spec.recipe_space(
        hidden_size=base.hidden_size,
        context_tokens=base.context_tokens,
        longest_qna_tokens=longest_qna_tokens(scenario, base),
    )
    return fit_target_modules(space, base)


def fit_target_modules(space: RecipeSpace, base: BaseModel) -> RecipeSpace:
    """Return the space without target modules that the model has none of.

    A mixture of experts whose experts are parameters has adapters at its attention only, so that
    nothing is left of "mlp", and "all" is "attention".

    Raises:
        ConfigurationError: If nothing is left to choose.
        ModelError: If the model has no modules for adapters at all.
    """
    if any(module.part == "mlp" for module in find_linear_modules(base.model)):
        return space
    listed = bounds(space.target_modules)
    left = [value for value in listed if value != "mlp"]
    if "attention" in left and "all" in left:
        left.remove("all")
    if not left:
        raise ConfigurationError(
            f"space.target_modules: 'mlp' is not allowed; the experts of {base.name} take no "
            "adapters, only its attention does; name 'attention'"
        )
    return replace(space, target_modules=Choices(values=tuple(left)))
