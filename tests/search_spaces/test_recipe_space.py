"""What a trial may choose: bounds are checked when the space is made, values are typed."""

from __future__ import annotations

from dataclasses import fields, replace

import optuna
import pytest

from data.recipes import Recipe, SettingError
from search_spaces.recipe_space import (
    RecipeSpace,
    build_recipe,
    lora_without_regret_rate,
    named_space,
    settings_of,
    suggest_recipe,
)
from search_spaces.sampling_space import DEFAULT_MATRIX, SamplingSpace
from search_spaces.settings import Choices, Range, Setting, Value, bounds, fixed
from search_spaces.starting_points import check_point, fit_to_space, starting_points

SPACE = named_space("default", hidden_size=128, context_tokens=512, longest_qna_tokens=40)
KNOWN = {point.name: point for point in starting_points(128)}


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
    only_greedy = SamplingSpace(presets=("greedy",))
    for point in starting_points(128):
        fitted = fit_to_space(point, narrow, SamplingSpace(presets=("greedy", "StarChat")))
        if fitted is None:
            assert point.is_exact
            continue
        assert fitted["learning_rate"] == 2e-4
        assert "rank" not in fitted
        assert fitted["sampling"] == "greedy"
        assert all(narrow.contains(n, v) for n, v in fitted.items() if n != "sampling")
        assert "sampling" not in (fit_to_space(point, narrow, only_greedy) or {})


def test_the_webuis_recipe_is_tried_whole_or_not_at_all() -> None:
    webui = KNOWN["webui June 2023"]
    assert fit_to_space(webui, SPACE, SamplingSpace()) is None
    # A model as wide as the webui's users had; its advised rate is near what they used.
    full = named_space("full", hidden_size=5120, context_tokens=2048, longest_qna_tokens=40)
    fitted = fit_to_space(webui, full, SamplingSpace())
    assert fitted == {**webui.settings, "sampling": "greedy"}
    named = check_point({"recipe": "webui June 2023"}, full, SamplingSpace(), KNOWN)
    assert named == fitted
    drawn = check_point(
        {"recipe": "webui June 2023", "sampling": "StarChat"}, full, SamplingSpace(), KNOWN
    )
    assert drawn == {**webui.settings, "sampling": "StarChat"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rnk": 8}, "start: there is no setting 'rnk'; did you mean 'rank'?"),
        ({"rank": 5}, "rank: 5 is not allowed; in this study's space it must be one of 4, 8,"),
        ({"epochs": 99}, "epochs: 99 is not allowed; in this study's space it must be one of 24"),
        (
            {"warmup_steps": 999},
            "warmup_steps: 999 is not allowed; in this study's space it must be from 0 to",
        ),
        ({"rank": 0}, "rank: 0 is not allowed; it must be at least 1"),
        ({"rslora": 0}, "rslora: 0 is not allowed; write true or false"),
        (
            {"batch_size": 8},
            "batch_size: 8 is not allowed; in this study's space it must be one of 4",
        ),
        ({"sampling": "Yara"}, "sampling: 'Yara' is not allowed; in this study it must be one of"),
        (
            {"recipe": "webui June 2023"},
            "start, webui June 2023: epochs: 3 is not allowed; in this study's space it must be "
            "one of 24; change the point, or widen this setting in [space]",
        ),
        (
            {"recipe": "webui 2023"},
            "start: there is no recipe 'webui 2023'; did you mean 'webui June 2023'?",
        ),
        (
            {"recipe": "knowledge packing", "rank": 8},
            "start: rank goes with no named recipe: with another value it would not be",
        ),
    ],
)
def test_a_point_that_no_trial_could_be_is_refused(
    settings: dict[str, Value], message: str
) -> None:
    with pytest.raises(SettingError) as error:
        check_point(settings, SPACE, SamplingSpace(), KNOWN)
    assert message in str(error.value)


def test_a_point_keeps_all_that_is_searched_of_it() -> None:
    settings: dict[str, Value] = {"rank": 8, "learning_rate": 2e-3, "sampling": "StarChat"}
    assert check_point({**settings, "batch_size": 4}, SPACE, SamplingSpace(), KNOWN) == settings
    with pytest.raises(SettingError, match="cannot name its sampling"):
        check_point(settings, SPACE, SamplingSpace(matrix=DEFAULT_MATRIX), KNOWN)


def test_brief_searches_the_six_settings_of_the_brief_alone_on_joined_texts() -> None:
    space = named_space("brief", hidden_size=128, context_tokens=512, longest_qna_tokens=45)
    searched = {
        field.name for field in fields(space) if len(set(bounds(space.setting(field.name)))) > 1
    }
    # The sixth is searched by measuring trials on their way to the most epochs.
    assert searched == {"rank", "alpha", "cutoff", "warmup_steps", "learning_rate"}
    assert space.epochs == fixed(24)
    assert space.packing == fixed("joined")
    assert space.cutoff == Choices(values=(45, 64, 128, 256))


def test_the_full_space_searches_every_setting() -> None:
    space = named_space("full", hidden_size=128, context_tokens=512, longest_qna_tokens=45)
    assert all(len(bounds(space.setting(field.name))) > 1 for field in fields(space))
    advised = lora_without_regret_rate(128)
    assert bounds(space.learning_rate) == pytest.approx((advised / 10, advised * 10), rel=1e-3)
    assert draw_recipe(space, 3) != draw_recipe(space, 4)
