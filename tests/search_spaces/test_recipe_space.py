"""What a trial may choose: bounds are checked when the space is made, values are typed."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from data.recipes import Recipe, SettingError
from search_spaces.presets import DEFAULT_PRESETS, PRESETS, find_preset
from search_spaces.recipe_space import (
    RecipeSpace,
    build_recipe,
    default_space,
    lora_without_regret_rate,
    settings_of,
    suggest_recipe,
)
from search_spaces.sampling_space import suggest_sampling
from search_spaces.settings import Choices, Range, Setting, fixed
from search_spaces.starting_points import fit_to_space, starting_points

SPACE = default_space(hidden_size=128, context_tokens=512)


def draw_recipe(space: RecipeSpace, seed: int) -> Recipe:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return suggest_recipe(study.ask(), space)


@pytest.mark.parametrize("seed", range(20))
def test_a_suggested_recipe_lies_in_the_space_and_round_trips(seed: int) -> None:
    recipe = draw_recipe(SPACE, seed)
    settings = settings_of(recipe)
    assert all(SPACE.contains(name, value) for name, value in settings.items())
    assert build_recipe(settings) == recipe


def test_fixed_settings_are_not_suggested() -> None:
    study = optuna.create_study()
    trial = study.ask()
    recipe = suggest_recipe(trial, replace(SPACE, epochs=fixed(7), rank=fixed(4)))
    assert (recipe.epochs, recipe.rank) == (7, 4)
    assert not {"epochs", "rank", "batch_size"} & set(trial.params)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("rank", fixed(0), "rank: 0 is not allowed; it must be at least 1"),
        ("rank", Choices(values=(4, 2.5)), "rank: 2.5 is not allowed; it must be a whole number"),
        ("learning_rate", Range(low=-1.0, high=0.1), "learning_rate: -1.0 is not allowed"),
        ("learning_rate", fixed("fast"), "learning_rate: 'fast' is not allowed"),
        ("epochs", Range(low=9, high=3), "epochs: the range from 9 to 3 is empty"),
        ("learning_rate", Range(low=0.0, high=0.1, log=True), "with log; it must be above 0"),
        ("formats", fixed("statement+poem"), "formats: 'poem' is not allowed"),
        ("rehearsal", Choices(values=()), "rehearsal: the list is empty"),
        ("alpha", Choices(values=(8, 8)), "names a value twice"),
        ("rslora", fixed("false"), "rslora: 'false' is not allowed; write true or false"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_field_value_and_bound(
    name: str, setting: Setting, message: str
) -> None:
    with pytest.raises(SettingError) as error:
        replace(SPACE, **{name: setting})
    assert message in str(error.value)


def test_the_advised_learning_rate_follows_the_published_formula() -> None:
    # 5e-5 * 10 * (2000 / 4096) ** 0.781, stated as 2.9e-4 for a Llama of hidden size 4096
    assert lora_without_regret_rate(4096) == pytest.approx(2.9e-4, rel=0.02)
    assert lora_without_regret_rate(2000) == pytest.approx(5e-4)


def test_the_learning_rates_of_the_default_space_surround_the_advised_one() -> None:
    setting = SPACE.learning_rate
    assert isinstance(setting, Range)
    assert setting.low < lora_without_regret_rate(128) < setting.high


def test_starting_points_are_cut_to_the_space_and_hold_no_unknown_name() -> None:
    narrow = replace(SPACE, learning_rate=Range(low=1e-4, high=2e-4, log=True), rank=fixed(8))
    for point in starting_points(128):
        fitted = fit_to_space(point, narrow, ("greedy", "StarChat"))
        assert fitted["learning_rate"] == 2e-4
        assert "rank" not in fitted
        assert fitted["sampling"] == "greedy"
        assert all(narrow.contains(n, v) for n, v in fitted.items() if n != "sampling")
    assert all(
        "sampling" not in fit_to_space(p, narrow, ("greedy",)) for p in starting_points(128)
    )


def test_every_default_preset_exists() -> None:
    assert set(DEFAULT_PRESETS) <= set(PRESETS)


def test_an_unknown_preset_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingError, match=r"no preset 'simple1'; did you mean 'simple-1'\?"):
        find_preset("simple1")


def test_a_single_preset_is_fixed() -> None:
    trial = optuna.create_study().ask()
    assert suggest_sampling(trial, ["StarChat"]) == PRESETS["StarChat"]
    assert trial.params == {}
