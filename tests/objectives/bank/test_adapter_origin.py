"""An adapter says which base it was trained in, and another base refuses it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.bank.loading import BASE_DIGEST, read_origin
from objectives.models.base import BaseModel, ModelError

EpochTexts = Callable[[int], Sequence[str]]

RECIPE = Recipe(epochs=1, rank=4, alpha=8, cutoff=64, warmup_steps=0, learning_rate=1e-2)


@pytest.fixture
def adapter(base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path) -> Path:
    bank = Bank(base, slots=1, max_rank=4)
    bank.admit(0, RECIPE, texts(0), seed=0)
    bank.step()
    export_adapter(bank, 0, tmp_path / "adapter")
    return tmp_path / "adapter"


def load(base: BaseModel, adapter: Path, **options: bool) -> None:
    Bank(base, slots=1, max_rank=8).load(0, adapter, **options)


def change_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_base_is_told_by_source_revision_and_digest(
    base: BaseModel, texts: Callable[[int], EpochTexts], tmp_path: Path
) -> None:
    of_hub = dataclasses.replace(base, source="org/model", digest="org/model@12", revision="12")
    bank = Bank(of_hub, slots=1, max_rank=4)
    bank.admit(0, RECIPE, texts(0), seed=0)
    export_adapter(bank, 0, tmp_path / "adapter")
    origin = read_origin(tmp_path / "adapter")
    assert (origin.source, origin.revision) == ("org/model", "12")
    assert origin.digest == "org/model@12"


def test_what_is_told_stands_in_one_order_so_that_equal_adapters_are_equal_files(
    adapter: Path,
) -> None:
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    header = weights[8 : 8 + int.from_bytes(weights[:8], "little")]
    assert list(json.loads(header)["__metadata__"]) == ["format", "remember_base_digest"]


def test_another_base_of_the_same_shapes_is_refused_unless_told_otherwise(
    base: BaseModel, adapter: Path
) -> None:
    load(base, adapter)
    another = dataclasses.replace(base, digest="0" * 64)
    with pytest.raises(ModelError, match=r"was trained in another base \(files tiny-digest, and"):
        load(another, adapter)
    load(another, adapter, any_base=True)


def test_a_commit_of_the_hub_is_not_compared_with_a_hash_of_files(
    base: BaseModel, adapter: Path
) -> None:
    load(dataclasses.replace(base, digest="org/model@12"), adapter)


@pytest.mark.parametrize(
    ("other", "remedy"),
    [
        ("org/model@13", r'read that commit: loading\.revision = "12", or --revision 12, or, if'),
        ("org/model/b.gguf@13", "name the model that it was trained in, or, if"),
        ("org/another@12", "name the model that it was trained in, or, if"),
    ],
)
def test_another_commit_of_the_same_repository_is_told_from_another_model(
    base: BaseModel, adapter: Path, other: str, remedy: str
) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={BASE_DIGEST: "org/model@12"})
    said = f"another base \\(org/model@12, and this is {other}\\); {remedy}"
    with pytest.raises(ModelError, match=said):
        load(dataclasses.replace(base, digest=other), adapter)


def test_an_adapter_from_elsewhere_names_no_base_and_is_measured_by_its_shapes(
    base: BaseModel, adapter: Path
) -> None:
    weights = adapter / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    assert read_origin(adapter).digest is None
    load(dataclasses.replace(base, digest="another"), adapter)


def test_pickled_weights_are_not_read(base: BaseModel, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load(base, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.raises(ModelError, match=r"adapter_model\.bin is pickled.*safe_serialization"):
        load(base, adapter)


def test_an_adapter_for_a_changed_vocabulary_is_refused(base: BaseModel, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    embeddings = {"base_model.model.model.embed_tokens.weight": torch.zeros(100, 32)}
    save_file(load_file(weights) | embeddings, weights)
    with pytest.raises(ModelError, match=r"embeddings of its own .*100 rows.*vocabulary"):
        load(base, adapter)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
    ],
)
def test_settings_that_change_what_the_weights_mean_are_refused(
    base: BaseModel, adapter: Path, changes: dict[str, Any], named: str
) -> None:
    change_config(adapter, **changes)
    with pytest.raises(ModelError, match=f"was trained with {named}"):
        load(base, adapter)
