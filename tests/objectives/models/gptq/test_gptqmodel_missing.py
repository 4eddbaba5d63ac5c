"""Without gptqmodel, asking for its kernels says how to get them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from objectives.models.base import ModelError
from objectives.models.gptq.checkpoint import GptqLayout
from objectives.models.gptq.gptqmodel_kernels import load_with_gptqmodel


@pytest.mark.parametrize("missing", ["gptqmodel", "optimum"])
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    layout = GptqLayout(
        files=(tmp_path / "model.safetensors",),
        index=None,
        bits=4,
        group_size=128,
        checkpoint_format="gptq",
        act_order=False,
        symmetric=False,
        made_by_gptqmodel=False,
    )
    with pytest.raises(
        ModelError, match=rf"{missing}.* must be installed; pip install .*\[gptq\]"
    ):
        load_with_gptqmodel(
            tmp_path, LlamaConfig(), layout, dtype=torch.float32, device_map={"": "cpu"}
        )
