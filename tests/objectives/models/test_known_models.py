"""What is known of a model without its weights, wherever it is."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from objectives.models.base import ModelError
from objectives.models.gptq.writing import save_gptq
from objectives.models.known_models import KnownModel, look_up
from objectives.models.load import load_base_model
from objectives.models.loading import DEFAULT_LOADING, Loading
from objectives.models.machine.footprint import Storing, shape_of_model
from tests.objectives.own_code import bring_code

POCKET = Path(str(files("data") / "pocket"))


def known(name: str, loading: Loading = DEFAULT_LOADING) -> KnownModel:
    found = look_up(name, loading, precision="float32")
    assert found is not None
    return found


def test_a_folder_is_known_by_its_configuration() -> None:
    pocket = load_base_model("pocket", device="cpu")
    found = known(str(POCKET))
    assert found.folder == POCKET
    assert found.storing == Storing(dtype=torch.float32)
    assert found.shape == shape_of_model(pocket.model)


@pytest.mark.parametrize("name", ["pocket", "some.gguf"])
def test_what_only_its_file_tells_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.gguf").touch()
    assert look_up(name, DEFAULT_LOADING, precision="float32") is None


def test_a_path_where_nothing_is_is_refused_as_loading_would(tmp_path: Path) -> None:
    for load in (known, load_base_model):
        with pytest.raises(ModelError, match="is not a model folder"):
            load(str(tmp_path / "nothing"))


def test_sizes_that_take_a_models_own_code_are_known_where_it_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pocket = load_base_model("pocket", device="cpu")
    dense = Path(shutil.copytree(POCKET, tmp_path / "dense"))
    four = tmp_path / "four"
    save_gptq(pocket.model, pocket.tokenizer, four, group_size=128, layout="current")
    for folder, group_size in ((dense, None), (four, 128)):
        bring_code(folder)
        with pytest.raises(ModelError, match=r"allow it by loading\.trust_remote_code = true"):
            known(str(folder))
        found = known(str(folder), Loading(trust_remote_code=True))
        assert type(found.config).__name__ == "OwnConfig"
        assert found.storing.group_size == group_size
        assert found.shape == shape_of_model(pocket.model)
