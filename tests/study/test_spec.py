"""The study file: what wins over what, and how each mistake is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.recipes import SettingError
from search_spaces.presets import FAMILIES, name_presets
from search_spaces.sampling_space import DEFAULT_MATRIX
from search_spaces.settings import Choices, Range
from study.spec import ConfigurationError, StudySpec, load_spec


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 'trials = 7\nstorage = "sqlite:///file.db"\n')
    assert load_spec(path, {"trials": None}).trials == 7
    assert load_spec(path, {"trials": 9}).trials == 9
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///environment.db")
    assert load_spec(path, {}).storage == "sqlite:///environment.db"
    assert load_spec(path, {"storage": "sqlite:///flag.db"}).storage == "sqlite:///flag.db"


def test_settings_of_the_file_narrow_fix_and_list_the_space(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[space]\nepochs = 5\nrank = [4, 8]\n"
        "learning_rate = { low = 1e-4, high = 1e-2, log = true }\n",
    )
    space = load_spec(path, {}).recipe_space(
        hidden_size=128, context_tokens=512, longest_qna_tokens=40
    )
    assert space.epochs == Choices(values=(5,))
    assert space.rank == Choices(values=(4, 8))
    assert space.learning_rate == Range(low=1e-4, high=1e-2, log=True)


def test_a_matrix_searches_what_the_file_names_beside_the_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "sampling = ['matrix']\n[sampling_matrix]\ntop_k = 0\nmirostat_tau = [0.0, 5.0]\n",
    )
    matrix = load_spec(path, {}).sampling_space.matrix
    assert matrix["top_k"] == Choices(values=(0,))
    assert matrix["mirostat_tau"] == Choices(values=(0.0, 5.0))
    assert matrix["temperature"] == DEFAULT_MATRIX["temperature"]


def test_a_family_stands_for_its_presets(tmp_path: Path) -> None:
    space = load_spec(write(tmp_path, "sampling = ['greedy', 'later']"), {}).sampling_space
    assert name_presets(space.presets) == ("greedy", *FAMILIES["later"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails = 4", "trails: there is no such key; did you mean 'trials'?"),
        (
            "[pruner]\nreductoin = 3",
            "pruner.reductoin: there is no such key; did you mean 'reduction'?",
        ),
        ("trials = 0", "trials: 0 is not allowed: Input should be greater than or equal to 1"),
        ("slots = 'many'", "slots: 'many' is not allowed"),
        ("sampling = ['greddy']", "there is no preset 'greddy'; did you mean 'greedy'?"),
        ("sampling = ['Creativ']", "there is no preset 'Creativ'; did you mean 'Creative'?"),
        ("sampling = ['novelai', 'NovelAI-Genesis']", "'NovelAI-Genesis' is listed twice"),
        ("sampling = ['matrix', 'greedy']", "'matrix' goes with no preset; write it alone"),
        ("[sampling_matrix]\ntop_k = 5", 'it is read only with sampling = ["matrix"]'),
        (
            "sampling = ['matrix']\n[sampling_matrix]\ntop_q = 0.5",
            "sampling_matrix: there is no setting 'top_q'",
        ),
        (
            "sampling = ['matrix']\n[sampling_matrix]\ntop_p = { low = 0.5, high = 2.0 }",
            "top_p: 2.0 is not allowed; it must be above 0 and at most 1",
        ),
        (
            "sampling = ['matrix']\n[sampling_matrix]\ntemperature = { low = 2, high = 1 }",
            "temperature: the range from 2 to 1 is empty",
        ),
        ("named_space = 'breif'", "named_space: 'breif' is not allowed"),
        ("seed = -1", "seed: -1 is not allowed"),
        ("[engine]\ndtype = 'float8'", "engine.dtype: 'float8' is not allowed"),
        ("[engine]\ndevice = 'gpu'", "engine.device: 'gpu' is not allowed"),
        ("[engine]\nthreads = 0", "engine.threads: 0 is not allowed"),
        ("[engine]\ncheckpointing = true", "did you mean 'gradient_checkpointing'?"),
        ("[reference]\nknowledge_loss = 2.0", "reference.knowledge_loss: 2.0 is not allowed"),
        ("schema_version = 9", "schema_version: 9 is not allowed"),
        ("trials = ", "is not valid TOML"),
        (
            "[space]\nepochs = { low = 1, hig = 3 }",
            "space.epochs.hig: there is no such key; did you mean 'high'?",
        ),
        ("[space]\nepochs = { low = 1, high = 'x' }", "space.epochs.high: 'x' is not allowed"),
    ],
)
def test_a_wrong_study_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_spec(write(tmp_path, text), {})
    assert message in str(error.value)


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        load_spec(tmp_path / "none.toml", {})


def test_an_unknown_setting_of_the_space_is_explained(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, "[space]\nlearning_rat = 1e-3"), {})
    with pytest.raises(ConfigurationError, match="did you mean 'learning_rate'"):
        spec.recipe_space(hidden_size=128, context_tokens=512, longest_qna_tokens=40)


def test_a_setting_beyond_its_bounds_is_refused(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, "[space]\nrank = 0"), {})
    with pytest.raises(SettingError, match="rank: 0 is not allowed"):
        spec.recipe_space(hidden_size=128, context_tokens=512, longest_qna_tokens=40)


def test_a_spec_survives_being_stored() -> None:
    spec = load_spec(None, {"trials": 3, "model": "some/model"})
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GB", 24 * 10**9),
        ("12GiB", 12 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("500MB", 5 * 10**8),
        ("64 KiB", 2**16),
        ("0.5TB", 5 * 10**11),
    ],
)
def test_a_memory_limit_is_read_in_powers_of_ten_or_of_two(text: str, count: int) -> None:
    spec = load_spec(None, {"engine.memory_limit": text})
    assert spec.engine.memory_limit_bytes == count


def test_without_a_memory_limit_there_is_none() -> None:
    assert load_spec(None, {}).engine.memory_limit_bytes is None


@pytest.mark.parametrize("text", ["24", "24G", "GB", "24gb", "-1GB", "0GB", "24 GB please"])
def test_a_memory_limit_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"engine\.memory_limit: '{text}' is not allowed: .* above 0 and its unit, .*“24GB”",
    ):
        load_spec(None, {"engine.memory_limit": text})


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu ", "SPLIT"])
def test_a_device_of_no_known_kind_is_refused_and_the_kinds_are_named(device: str) -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.device: .* “cpu”, “cuda”, .* “split”"):
        load_spec(None, {"engine.device": device})
