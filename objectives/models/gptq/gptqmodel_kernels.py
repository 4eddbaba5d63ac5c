"""Loads a GPTQ checkpoint with gptqmodel's kernels instead of the built-in ones.

An extra: neither gptqmodel nor optimum is imported before it is asked for. Of gptqmodel's kernels
only the one that is made of torch operations passes back the right gradient on every device; the
one that it would choose for a CPU passes back none (`objectives/models/gptq/backward_check.py`).
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from objectives.models.base import LOADING_ERRORS, ModelError
from objectives.models.gptq.checkpoint import GptqLayout
from objectives.models.machine.memory import is_out_of_memory

_BACKEND = "gptq_torch"
_PACKAGES = ("gptqmodel", "optimum")

_BUILT_IN = "set loading.gptq = “built-in”"

_NAMED_AT_MOST = 5


def load_with_gptqmodel(
    folder: Path,
    config: PretrainedConfig,
    layout: GptqLayout,
    *,
    dtype: torch.dtype,
    device_map: Mapping[str, str | int],
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the model with gptqmodel's modules: evaluation mode, nothing trainable.

    They multiply in `dtype`, with weights that are computed in halves, and keep those for the
    backward pass: a pass that trains takes the memory of a dense model unless layers are computed
    again.

    Args:
        folder: Of the checkpoint.
        config: Of the model; is not changed.
        layout: What `find_gptq` returned for it.
        dtype: Of all weights that are not quantised.
        device_map: Devices of modules by name, "" for all others.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        ModelError: If gptqmodel is not installed or cannot read the checkpoint, or if the weights
            are not just those of the model.
    """
    missing_packages = [name for name in _PACKAGES if find_spec(name) is None]
    if missing_packages:
        raise ModelError(
            f"loading.gptq: “gptqmodel” is not allowed; {' and '.join(missing_packages)} must be "
            f"installed; pip install -e '.[gptq]', or {_BUILT_IN}"
        )
    own = copy.deepcopy(config)
    own.quantization_config = _settings(config, layout)
    own.transformers_weights = (layout.index or layout.files[0]).name
    try:
        with _kept_to_itself():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=own,
                dtype=dtype,
                device_map=dict(device_map),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"model: gptqmodel cannot read {folder}: {reason}; {_BUILT_IN}"
        ) from error
    # It says where this checkpoint's weights were, which is no property of the model.
    del model.config.transformers_weights
    _fill_groups(model, report, layout)
    _refuse_leftovers(report, layout)
    _put_in_order(model, trust_remote_code=trust_remote_code)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def _settings(config: PretrainedConfig, layout: GptqLayout) -> dict[str, Any]:
    """Return what transformers is to know of the quantisation: of the layout, and the kernel."""
    declared = getattr(config, "quantization_config", None) or {}
    return {
        # Names modules that were left out, for example, which the layout does not.
        **(declared if isinstance(declared, dict) else declared.to_dict()),
        "quant_method": "gptq",
        "bits": layout.bits,
        "group_size": layout.group_size,
        "desc_act": layout.act_order,
        "sym": layout.symmetric,
        "checkpoint_format": layout.checkpoint_format,
        "backend": _BACKEND,
    }


@contextmanager
def _kept_to_itself() -> Iterator[None]:
    """Import gptqmodel; what it and optimum print, warn of and set for others is kept from them.

    Importing it prints a banner where results of commands go, and sets variables of the
    environment, among them where child processes would look for models of the hub.
    """
    before = dict(os.environ)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gptqmodel  # noqa: F401 - transformers uses it; what is to be silenced comes now
            from logbar import LogBar

            LogBar.shared().setLevel("ERROR")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@torch.no_grad()
def _fill_groups(model: PreTrainedModel, report: dict[str, Any], layout: GptqLayout) -> None:
    """Say which group each input belongs to where a file of 2023 does not.

    Transformers leaves such a tensor as whatever was in memory. Without act-order, neighbours are
    in a group.
    """
    for name in [name for name in report["missing_keys"] if name.endswith(".g_idx")]:
        groups = model.get_buffer(name)
        size = len(groups) if layout.group_size == -1 else layout.group_size
        groups.copy_(torch.arange(len(groups), dtype=groups.dtype, device=groups.device) // size)
        report["missing_keys"].remove(name)


def _refuse_leftovers(report: dict[str, Any], layout: GptqLayout) -> None:
    """Check that nothing is missing, and that nothing was left out that matters."""
    left_out = [
        name
        for name in report["unexpected_keys"]
        # Models compute their rotary frequencies, and old files have zeros where no bias is.
        if not name.endswith("rotary_emb.inv_freq") and not _is_all_zero_bias(name, layout)
    ]
    for what, names in (("lacks", report["missing_keys"]), ("has no use for", left_out)):
        if names:
            shown = ", ".join(sorted(names)[:_NAMED_AT_MOST])
            raise ModelError(
                f"model: gptqmodel {what} {len(names)} tensors of the checkpoint: {shown}; "
                f"{_BUILT_IN}"
            )


def _put_in_order(model: PreTrainedModel, *, trust_remote_code: bool) -> None:
    """Let modules follow one another as the model's makers have them.

    Optimum puts them back in alphabetical order, and by their order an adapter's weights lie in a
    bank and in its checkpoints.
    """
    dense = copy.deepcopy(model.config)
    del dense.quantization_config
    with init_empty_weights():
        pattern = AutoModelForCausalLM.from_config(dense, trust_remote_code=trust_remote_code)
    for name, module in pattern.named_modules():
        children = model.get_submodule(name)._modules if module._modules else {}
        for child in module._modules:
            children[child] = children.pop(child)


def _is_all_zero_bias(name: str, layout: GptqLayout) -> bool:
    if not name.endswith(".bias"):
        return False
    for file in layout.files:
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118 - it is no mapping
                return not opened.get_tensor(name).any()
    return False
