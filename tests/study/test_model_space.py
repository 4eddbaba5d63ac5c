"""A space leaves out target modules that the model has none of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from objectives.models.base import BaseModel
from search_spaces.recipe_space import RecipeSpace
from search_spaces.settings import Choices, fixed
from study.model_space import fit_target_modules
from study.spec import ConfigurationError
from tests.objectives.architectures import make_architecture


def test_a_model_with_an_mlp_leaves_the_space_as_it_is(
    pocket: BaseModel, space: RecipeSpace
) -> None:
    assert fit_target_modules(space, pocket) is space


def test_of_a_mixture_of_experts_only_attention_is_searched(
    pocket: BaseModel, space: RecipeSpace
) -> None:
    mixtral = make_architecture("mixtral", pocket.tokenizer)
    for listed, left in (
        (("attention", "mlp", "all"), ("attention",)),
        (("mlp", "all"), ("all",)),
        (("query+value", "attention"), ("query+value", "attention")),
    ):
        asked = replace(space, target_modules=Choices(values=listed))
        fitted = fit_target_modules(asked, mixtral)
        assert fitted == replace(asked, target_modules=Choices(values=left))
    with pytest.raises(ConfigurationError, match=r"space\.target_modules: 'mlp' is not allowed"):
        fit_target_modules(replace(space, target_modules=fixed("mlp")), mixtral)
