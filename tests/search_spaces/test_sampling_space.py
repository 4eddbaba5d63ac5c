"""What a trial's sampling may be: presets by name or family, or a matrix of settings."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.recipes import GREEDY, TRUNCATIONS, Sampling, SettingError
from search_spaces.presets import DEFAULT_PRESETS, FAMILIES, PRESETS, find_preset, name_presets
from search_spaces.sampling_space import DEFAULT_MATRIX, SamplingSpace, suggest_sampling
from search_spaces.settings import Choices, Range, Setting, fixed

MIROSTAT: Mapping[str, Setting] = {**DEFAULT_MATRIX, "mirostat_tau": Choices(values=(0.0, 5.0))}


def ask(space: SamplingSpace, seed: int) -> tuple[Sampling, dict[str, object]]:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return suggest_sampling(trial, space), trial.params


def test_every_default_preset_exists() -> None:
    assert set(DEFAULT_PRESETS) <= set(PRESETS)


def test_an_unknown_preset_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingError, match=r"no preset 'simple1'; did you mean 'simple-1'\?"):
        find_preset("simple1")


def test_every_preset_is_in_one_family_but_greedy() -> None:
    listed = [name for family in FAMILIES.values() for name in family]
    assert sorted([*listed, "greedy"]) == sorted(PRESETS)
    assert len(FAMILIES["june-2023"]) == 16
    assert all(name == sampling.name for name, sampling in PRESETS.items())


def test_a_preset_named_with_its_family_is_named_twice() -> None:
    with pytest.raises(SettingError, match="'Yara' is listed twice"):
        name_presets(["june-2023", "Yara"])


def test_a_single_preset_is_fixed() -> None:
    sampling, asked = ask(SamplingSpace(presets=("StarChat",)), 0)
    assert sampling == PRESETS["StarChat"]
    assert asked == {}


@given(seed=st.integers(0, 10_000))
def test_a_matrix_asks_only_for_what_has_a_say(seed: int) -> None:
    sampling, asked = ask(SamplingSpace(matrix=MIROSTAT), seed)
    names = {name.removeprefix("sampling.") for name in asked}
    assert {"do_sample", "repetition_penalty"} <= names
    if not sampling.do_sample:
        assert names == {"do_sample", "repetition_penalty"}
    elif sampling.mirostat_tau:
        assert "temperature" in names
        assert not names & set(TRUNCATIONS)
    else:
        assert {"temperature", "top_k", "top_p", "typical_p"} <= names
    for name in names:
        assert getattr(sampling, name) == asked[f"sampling.{name}"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ({"top_q": fixed(1)}, "there is no setting 'top_q'; the settings are do_sample"),
        ({"name": fixed("x")}, "there is no setting 'name'"),
        ({"top_k": fixed(2.5)}, "top_k: 2.5 is not allowed; it must be a whole number"),
        ({"top_k": fixed(-1)}, "top_k: -1 is not allowed; it must be at least 0"),
        ({"temperature": fixed("hot")}, "temperature: 'hot' is not allowed"),
        ({"do_sample": fixed(1)}, "do_sample: 1 is not allowed; write true or false"),
        ({"tfs": Range(low=0.5, high=1.5)}, "tfs: 1.5 is not allowed; it must be from 0 to 1"),
        ({"epsilon_cutoff": fixed(3)}, "epsilon_cutoff: 3 is not allowed; it must be at least 0"),
        ({"penalty_alpha": fixed(2.0)}, "penalty_alpha: 2.0 is not allowed; it must be from 0"),
        ({"penalty_alpha": fixed(0.6), "top_k": fixed(4)}, "penalty_alpha has a say only where"),
        (
            {"penalty_alpha": fixed(0.6), "do_sample": fixed(False)},
            "top_k: 0 is not allowed with penalty_alpha, which compares top_k candidates",
        ),
        (
            {"num_beams": Choices(values=(2, 4)), "mirostat_tau": fixed(5.0)},
            "num_beams: 2 is not allowed with mirostat_tau; leave one of them out",
        ),
        (
            {"temperature": Range(low=0.5, high=2.0), "dynatemp": Range(low=0.0, high=0.5)},
            "dynatemp: 0.5 is not allowed; it must be below the lowest temperature, 0.5",
        ),
        ({"num_beams": fixed(2), "xtc_probability": fixed(0.5)}, "num_beams: 2 is not allowed"),
        ({"early_stopping": fixed(1)}, "early_stopping: 1 is not allowed; write true or false"),
    ],
)
def test_a_wrong_matrix_is_refused_when_it_is_made(
    matrix: Mapping[str, Setting], message: str
) -> None:
    with pytest.raises(SettingError) as error:
        SamplingSpace(matrix=matrix)
    assert message in str(error.value)


def test_mirostat_is_not_combined_with_what_it_replaces() -> None:
    with pytest.raises(SettingError, match="top_k: 5 is not allowed; it must be 0"):
        Sampling(name="both", mirostat_tau=5.0, top_k=5)
    with pytest.raises(SettingError, match="do_sample: False is not allowed"):
        Sampling(name="greedy", mirostat_tau=5.0, do_sample=False)


@given(seed=st.integers(0, 10_000))
def test_contrastive_search_compares_candidates_only_where_nothing_is_drawn(seed: int) -> None:
    matrix: dict[str, Setting] = {
        **DEFAULT_MATRIX,
        "penalty_alpha": Choices(values=(0.0, 0.6)),
        "top_k": Choices(values=(4, 8)),
    }
    sampling, asked = ask(SamplingSpace(matrix=matrix), seed)
    assert ("sampling.penalty_alpha" in asked) == (not sampling.do_sample)
    assert ("sampling.top_k" in asked) == (sampling.do_sample or sampling.is_contrastive)
    assert not (sampling.do_sample and sampling.is_contrastive)


@given(seed=st.integers(0, 10_000))
def test_what_belongs_to_beams_is_asked_only_with_several(seed: int) -> None:
    matrix: dict[str, Setting] = {
        "do_sample": Choices(values=(False, True)),
        "mirostat_tau": Choices(values=(0.0, 5.0)),
        "num_beams": Choices(values=(1, 4)),
        "length_penalty": Range(low=0.5, high=2.0),
        "early_stopping": Choices(values=(False, True)),
    }
    sampling, asked = ask(SamplingSpace(matrix=matrix), seed)
    assert ("sampling.num_beams" in asked) == (not sampling.mirostat_tau)
    several = sampling.num_beams > 1
    assert ("sampling.length_penalty" in asked) == several
    assert ("sampling.early_stopping" in asked) == several


def test_contrastive_search_is_not_combined_with_drawing_nor_with_one_candidate() -> None:
    with pytest.raises(SettingError, match="do_sample: True is not allowed; it must be false"):
        Sampling(name="both", penalty_alpha=0.6, top_k=4)
    with pytest.raises(SettingError, match="top_k: 1 is not allowed; it must be at least 2"):
        Sampling(name="one", penalty_alpha=0.6, top_k=1, do_sample=False)


def test_a_preset_is_fitted_to_a_space_of_presets_or_of_settings() -> None:
    assert SamplingSpace(presets=("greedy", "Yara")).fit("greedy") == {"sampling": "greedy"}
    assert SamplingSpace(presets=("Yara", "StarChat")).fit("greedy") == {}
    assert SamplingSpace(presets=("greedy",)).fit("greedy") == {}
    fitted = SamplingSpace(matrix=DEFAULT_MATRIX).fit("greedy")
    assert fitted["sampling.do_sample"] is False
    study = optuna.create_study()
    study.enqueue_trial(fitted)
    sampling = suggest_sampling(study.ask(), SamplingSpace(matrix=DEFAULT_MATRIX))
    assert sampling.what_decides == GREEDY.what_decides
