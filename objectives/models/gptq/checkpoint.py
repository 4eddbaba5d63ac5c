"""Reads 4-bit GPTQ checkpoints, today's and those of 2023, into 4-bit linear modules.

It takes what auto-gptq, GPTQ-for-LLaMa and gptqmodel have written as safetensors. Nothing is taken
for granted that the tensors themselves can tell: sizes, bits and groups are checked against their
shapes, and what is missing or left over is refused by name.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from objectives.models.base import ModelError
from objectives.models.gptq.four_bit import FourBitLinear
from objectives.models.machine.placement import dispatch

_OTHER_READER = "set loading.gptq = \"gptqmodel\" (pip install -e '.[gptq]')"
_FORMATS = ("gptq", "gptq_v2")
_SETTINGS_FILE = "quantize_config.json"
_INDEX = ".safetensors.index.json"
_PICKLED = (".pt", ".pth", ".bin")

# Files are named like llama-13b-4bit-128g.safetensors.
_GROUP_SIZE_IN_NAME = re.compile(r"-(\d+)g(?![a-z])")

# gptqmodel takes one from each of eight zero points by one subtraction from the number that holds
# them, which borrows from the next where one is 0; the sum restores it.
_EIGHT_ONES = 0x11111111

_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqLayout:
    """Where a checkpoint's tensors are, and how they were quantised.

    `files` are one file or all shards, which `index` lists then. `group_size` is -1 where all
    inputs of a module are one group. `checkpoint_format` is "gptq", where zero points are stored
    minus one, "gptq_v2", or another that is not read here. `act_order` and `symmetric` are what
    the checkpoint says of itself, False where it says nothing.
    """

    files: tuple[Path, ...]
    index: Path | None
    bits: int
    group_size: int
    checkpoint_format: str
    act_order: bool
    symmetric: bool
    made_by_gptqmodel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A tensor in a file, of which only the header was read."""

    file: Path
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A quantised module, as the shapes of its tensors describe it."""

    name: str
    bits: int
    in_features: int
    out_features: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """One of the checkpoints in a folder: a file, or an index and its shards."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, _Stored]

    @property
    def is_quantised(self) -> bool:
        return any(name.endswith(".qweight") for name in self.tensors)


def find_gptq(
    folder: Path, config: PretrainedConfig, *, weights_file: str | None = None
) -> GptqLayout | None:
    """Return how a folder's GPTQ checkpoint is laid out; None if it holds no such checkpoint.

    Args:
        folder: With config.json and the weights.
        config: Read from it.
        weights_file: Which of several files, or which index of shards, holds the weights.

    Raises:
        ModelError: If it is one that cannot be read, or there are several.
    """
    source, settings = _settings(folder, config)
    if settings.get("quant_method", "gptq") != "gptq":
        return None
    checkpoints = _find_checkpoints(folder, weights_file)
    if not any(checkpoint.is_quantised for checkpoint in checkpoints):
        if not source or (checkpoints and weights_file is not None):
            return None
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
        there = f"; {', '.join(pickled)} are pickled and are not read" if pickled else ""
        raise ModelError(
            f"model: {folder} has no GPTQ weights as safetensors, and {source} says that it is a "
            f"GPTQ checkpoint{there}; name a folder whose weights are *.safetensors"
        )
    if len(checkpoints) > 1:
        names = ", ".join(checkpoint.path.name for checkpoint in checkpoints)
        raise ModelError(
            f"model: {folder} holds several checkpoints: {names}; say which in "
            f'loading.weights_file, for example "{checkpoints[0].path.name}"'
        )
    (checkpoint,) = checkpoints
    modules = _packed_modules(checkpoint.tensors)
    bits = max(module.bits for module in modules)
    if _number(settings, "bits", source) not in (None, bits):
        raise ModelError(
            f"model: bits {settings['bits']} of {source} is not allowed; the weights have {bits}; "
            f"mend {source}"
        )
    checkpoint_format = str(settings.get("checkpoint_format") or "gptq")
    if settings.get("is_marlin_format"):
        checkpoint_format = "marlin"
    group_size = _group_size(
        modules,
        declared=_number(settings, "group_size", source),
        source=source,
        file_name=checkpoint.path.name,
    )
    act_order = bool(settings.get("desc_act"))
    for module in modules:
        if act_order and module.groups > 1 and f"{module.name}.g_idx" not in checkpoint.tensors:
            raise ModelError(
                f"model: {checkpoint.path.name} lacks {module.name}.g_idx, without which desc_act "
                f"of {source} cannot be followed; take a file of the model that has it"
            )
    return GptqLayout(
        files=checkpoint.files,
        index=checkpoint.path if checkpoint.path.name.endswith(_INDEX) else None,
        bits=bits,
        group_size=group_size,
        checkpoint_format=checkpoint_format,
        act_order=act_order,
        symmetric=bool(settings.get("sym")),
        made_by_gptqmodel="gptqmodel" in str(settings.get("meta", "")),
    )


def gptq_on_meta(
    config: PretrainedConfig,
    layout: GptqLayout,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the model as `load_gptq` makes it, but without its weights, to plan where they go.

    All that the checkpoint holds is on the meta device; what a model computes for itself, as the
    frequencies of rotary embeddings, is there.

    Raises:
        ModelError: If the checkpoint does not fit the model, or is of a kind that is not read.
    """
    return _skeleton(
        config,
        layout,
        _headers(layout.files),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def load_gptq(
    folder: Path,
    config: PretrainedConfig,
    layout: GptqLayout,
    *,
    dtype: torch.dtype,
    device_map: Mapping[str, str | int],
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the model with its weights: evaluation mode, nothing trainable.

    Tensors are read one by one, each to where it stays. Its `config` no longer says that the
    model is quantised, for transformers and PEFT would look for gptqmodel's modules then.

    Args:
        folder: Of the checkpoint; its settings for generation are read.
        config: Of the model; is not changed.
        layout: What `find_gptq` returned for it.
        dtype: Of all weights that are not quantised; scales stay as they are in the file.
        device_map: The device of every part of the model, as `plan_device_map` returns it for
            what `gptq_on_meta` does.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        ModelError: If the checkpoint does not fit the model, or is of a kind that is not read.
    """
    tensors = _headers(layout.files)
    model = _skeleton(config, layout, tensors, dtype=dtype, trust_remote_code=trust_remote_code)
    _read_tensors(model, tensors, device_map)
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            _finish(module, name, layout, _device(f"{name}.g_idx", device_map))
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        _put(model, name, buffer.to(_device(name, device_map)))
    _tie(model, tensors)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return dispatch(model.eval().requires_grad_(False), device_map)


def _settings(folder: Path, config: PretrainedConfig) -> tuple[str, dict[str, Any]]:
    """Return which file says how the weights were quantised, and what; "" if none does."""
    declared = getattr(config, "quantization_config", None)
    if declared is not None:
        return "config.json", dict(declared if isinstance(declared, dict) else declared.to_dict())
    path = folder / _SETTINGS_FILE
    if not path.is_file():
        return "", {}
    return _SETTINGS_FILE, _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path} cannot be read: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"model: {path} does not hold fields with values; fetch it again")
    return content


def _number(settings: Mapping[str, Any], field: str, source: str) -> int | None:
    value = settings.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ModelError(
        f"model: {field} {value!r} of {source} is not allowed; it must be a whole number; "
        f"mend {source}"
    )


def _find_checkpoints(folder: Path, weights_file: str | None) -> list[_Checkpoint]:
    """Return the folder's checkpoints, or only the one that was named, if it is of safetensors."""
    if weights_file is not None:
        return _find_named(folder, weights_file)
    indices = sorted(folder.glob(f"*{_INDEX}"))
    shards = {index: _shards(index) for index in indices}
    listed = {file for files in shards.values() for file in files}
    found = {index: shards[index] for index in indices}
    for file in sorted(folder.glob("*.safetensors")):
        if file not in listed and not file.name.startswith("adapter_"):
            found[file] = (file,)
    return [
        _Checkpoint(path=path, files=files, tensors=_headers(files))
        for path, files in found.items()
    ]


def _find_named(folder: Path, weights_file: str) -> list[_Checkpoint]:
    """Return the checkpoint that was named, none if it is not of safetensors.

    Others need not be complete: of a repository only what is named is fetched, and all indices.
    """
    path = folder / weights_file
    if not path.is_file():
        names = ", ".join(sorted(each.name for each in folder.glob("*.safetensors*"))) or "none"
        raise ModelError(
            f"loading.weights_file: {weights_file!r} is not allowed; {folder} holds no such file "
            f"of weights, only: {names}"
        )
    if not path.name.endswith((".safetensors", _INDEX)):
        return []
    files = _shards(path) if path.name.endswith(_INDEX) else (path,)
    return [_Checkpoint(path=path, files=files, tensors=_headers(files))]


def _shards(index: Path) -> tuple[Path, ...]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"model: {index} names no shards in weight_map; fetch it again")
    files = tuple(index.parent / name for name in sorted(set(map(str, places.values()))))
    for file in files:
        if not file.is_file():
            raise ModelError(f"model: {file}, which {index.name} lists, is missing; fetch it")
    return files


def _headers(files: Iterable[Path]) -> dict[str, _Stored]:
    """Return what tensors the files hold, without reading them."""
    tensors = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    tensors[name] = _Stored(
                        file=file, shape=tuple(part.get_shape()), kind=str(part.get_dtype())
                    )
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model: {file} cannot be read: {error}; fetch it again") from error
    return tensors


def _packed_modules(tensors: Mapping[str, _Stored]) -> list[_Packed]:
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return [_measure(name, tensors) for name in names]


def _measure(name: str, tensors: Mapping[str, _Stored]) -> _Packed:
    """Return what the shapes of a module's tensors say about it."""
    if f"{name}.zeros" in tensors:
        raise ModelError(
            f"model: {name} has unpacked zeros, as before March 2023, which are not read; take a "
            "newer file of the model, with qzeros"
        )
    stored = {}
    for part in ("qweight", "qzeros", "scales"):
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None:
            raise ModelError(
                f"model: {name}.{part} is missing from the weights; fetch the model again"
            )
        stored[part] = tensor
    shapes = [tensor.shape for tensor in stored.values()]
    kinds = [tensor.kind for tensor in stored.values()]
    if [len(shape) for shape in shapes] == [2, 2, 2] and kinds[:2] == ["I32", "I32"]:
        (rows, out_features), (groups, zero_columns), (scale_rows, scale_columns) = shapes
        bits = 32 * zero_columns // max(out_features, 1)
        if (
            (scale_rows, scale_columns) == (groups, out_features)
            and 1 < bits <= 8
            and bits * out_features == 32 * zero_columns
            and 32 * rows % bits == 0
            and groups <= 32 * rows // bits
        ):
            return _Packed(
                name=name,
                bits=bits,
                in_features=32 * rows // bits,
                out_features=out_features,
                groups=groups,
            )
    shown = ", ".join(
        f"{part} {list(tensor.shape)} {tensor.kind}" for part, tensor in stored.items()
    )
    raise ModelError(
        f"model: the tensors of {name} are not laid out as GPTQ's: {shown}; AWQ's, for example, "
        "are not read"
    )


def _group_size(
    modules: Iterable[_Packed], *, declared: int | None, source: str, file_name: str
) -> int:
    """Return how many inputs share a scale, -1 for all, such that all modules fit.

    n inputs make g groups of s, the last of which may be smaller, if ceil(n / s) is g: if s is at
    least n / g and less than n / (g - 1).
    """
    modules = list(modules)
    if declared is not None and (declared == -1 or declared > 0):
        for module in modules:
            size = module.in_features if declared == -1 else declared
            if math.ceil(module.in_features / size) != module.groups:
                raise ModelError(
                    f"model: group_size {declared} of {source} is not allowed; {module.name} has "
                    f"{module.in_features} inputs in {module.groups} groups; mend {source}"
                )
        return declared
    if declared is not None:
        raise ModelError(
            f"model: group_size {declared} of {source} is not allowed; it must be at least 1, or "
            f"-1 for one group of all inputs; mend {source}"
        )
    if all(module.groups == 1 for module in modules):
        return -1
    least = max(math.ceil(module.in_features / module.groups) for module in modules)
    below = min(
        module.in_features / (module.groups - 1) for module in modules if module.groups > 1
    )
    named = _GROUP_SIZE_IN_NAME.search(file_name)
    if named is not None and least <= int(named[1]) < below:
        return int(named[1])
    # The least that fits is meant if all groups are equally large then.
    divides = all(module.in_features % least == 0 or module.groups == 1 for module in modules)
    if least < below and divides:
        return least
    raise ModelError(
        f"model: the group size of {file_name} cannot be told from its tensors; put it into "
        f'{_SETTINGS_FILE} beside it: {{"bits": 4, "group_size": …}}'
    )


def _skeleton(
    config: PretrainedConfig,
    layout: GptqLayout,
    tensors: Mapping[str, _Stored],
    *,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Return the model without its weights, after checking that the tensors are just those."""
    if layout.checkpoint_format not in _FORMATS:
        raise ModelError(
            f"model: checkpoint_format {layout.checkpoint_format!r} is not allowed; the built-in "
            f"reader takes {' and '.join(_FORMATS)}; {_OTHER_READER}"
        )
    modules = _packed_modules(tensors)
    for module in modules:
        if module.bits != 4:
            raise ModelError(
                f"model: {module.bits}-bit weights of {module.name} are not allowed; the built-in "
                f"reader takes 4 bits; {_OTHER_READER}"
            )
    own = copy.deepcopy(config)
    if hasattr(own, "quantization_config"):
        del own.quantization_config
    try:
        # Buffers are made as usual, because no file holds what a model computes for itself.
        with init_empty_weights(include_buffers=False):
            model = cast(
                PreTrainedModel,
                AutoModelForCausalLM.from_config(
                    own, dtype=dtype, trust_remote_code=trust_remote_code
                ),
            )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"model: {getattr(config, 'model_type', '')!r} is not a model that the built-in GPTQ "
            f"reader can make: {error}; {_OTHER_READER}"
        ) from error
    model.tie_weights()  # again, because emptying took the tensors apart
    for packed in modules:
        _replace(model, packed, layout)
    _untie_what_is_stored(model, tensors)
    _require_all_and_no_more(model, tensors)
    return model


def _replace(model: PreTrainedModel, packed: _Packed, layout: GptqLayout) -> None:
    """Put an empty 4-bit module in the place of a dense one."""
    try:
        dense = model.get_submodule(packed.name)
    except AttributeError:
        dense = None
    if not isinstance(dense, nn.Linear | Conv1D):
        raise ModelError(
            f"model: {packed.name} is quantised in the weights, and {type(model).__name__} has no "
            f"linear module of that name; {_OTHER_READER}"
        )
    # GPT-2's modules hold their weights transposed.
    sizes = tuple(dense.weight.shape if isinstance(dense, Conv1D) else dense.weight.shape[::-1])
    if sizes != (packed.in_features, packed.out_features):
        raise ModelError(
            f"model: {packed.name} has {packed.in_features} inputs and {packed.out_features} "
            f"outputs in the weights, and {sizes[0]} and {sizes[1]} by config.json; the files are "
            "not of one model"
        )
    module = FourBitLinear(
        packed.in_features,
        packed.out_features,
        group_size=layout.group_size,
        bias=dense.bias is not None,
        zero_points_less_one=layout.checkpoint_format == "gptq" and not layout.made_by_gptqmodel,
        device=torch.device("meta"),
    )
    model.set_submodule(packed.name, module)


def _output_weight(model: PreTrainedModel) -> str:
    """Return the name of what may be tied to the token embeddings; "" where there is nothing."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    return f"{names[0]}.weight" if names and hasattr(head, "weight") else ""


def _untie_what_is_stored(model: PreTrainedModel, tensors: Mapping[str, _Stored]) -> None:
    """Give the output a tensor of its own where it is in the file; `_tie` may undo it."""
    name = _output_weight(model)
    if name in tensors:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=False)


def _tie(model: PreTrainedModel, tensors: Mapping[str, _Stored]) -> None:
    """Let output and token embeddings be one tensor, if they are to be and nothing contradicts."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    name = _output_weight(model)
    embedded = model.get_input_embeddings().weight
    is_its_own = name in tensors and not torch.equal(
        model.get_output_embeddings().weight.to(embedded.device), embedded
    )
    if not name or is_its_own:
        model.config.tie_word_embeddings = False
    else:
        model.tie_weights()


def _require_all_and_no_more(model: PreTrainedModel, tensors: Mapping[str, _Stored]) -> None:
    """Check that a file's tensors are those of the model, before any is read."""
    expected = model.state_dict(keep_vars=True)
    present = {id(expected[name]) for name in tensors if name in expected}
    _refuse(
        "lacks",
        [
            name
            for name, tensor in expected.items()
            # A tied tensor has two names, and g_idx follows from the group size.
            if name not in tensors and id(tensor) not in present and not name.endswith(".g_idx")
        ],
    )
    _refuse(
        "holds what the model has no place for:",
        [
            name
            for name in tensors
            if name not in expected
            and not _is_computed(name, model)
            and not _is_added_bias(name, tensors)
        ],
    )
    for name, tensor in expected.items():
        if name in tensors and tensors[name].shape != tuple(tensor.shape):
            raise ModelError(
                f"model: {name} has the shape {list(tensors[name].shape)} in the weights, and "
                f"{list(tensor.shape)} by config.json; the files are not of one model"
            )


def _refuse(what: str, names: Collection[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:_NAMED_AT_MOST])
        more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
        raise ModelError(
            f"model: the checkpoint {what} {shown}{more}; fetch the model again, or "
            f"{_OTHER_READER}"
        )


def _is_computed(name: str, model: PreTrainedModel) -> bool:
    """Return whether a tensor was once saved that models now compute for themselves."""
    patterns = ("rotary_emb.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or ()))
    return any(re.search(pattern, name) for pattern in patterns)


def _is_added_bias(name: str, tensors: Mapping[str, _Stored]) -> bool:
    """Return whether it is a quantised module's bias: old files have zeros where none is."""
    module, _, part = name.rpartition(".")
    packed = tensors.get(f"{module}.scales")
    return part == "bias" and packed is not None and tensors[name].shape == packed.shape[1:]


def _read_tensors(
    model: PreTrainedModel, tensors: Mapping[str, _Stored], device_map: Mapping[str, str | int]
) -> None:
    """Read every tensor that the model has a place for to where it stays."""
    expected = model.state_dict(keep_vars=True)
    for file in dict.fromkeys(stored.file for stored in tensors.values()):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if name in expected:
                    # Scales and biases of quantised modules keep the precision they were saved in.
                    owner = model.get_submodule(name.rpartition(".")[0])
                    keeps = isinstance(owner, FourBitLinear) and not name.endswith(".g_idx")
                    tensor = opened.get_tensor(name)
                    dtype = tensor.dtype if keeps else expected[name].dtype
                    # A copy, because what was read is a view of the file.
                    place = _device(name, device_map)
                    _put(model, name, tensor.to(device=place, dtype=dtype, copy=True))
                elif _is_added_bias(name, tensors) and not _is_computed(name, model):
                    bias = opened.get_tensor(name)
                    if bias.any():
                        _put(model, name, bias.to(_device(name, device_map), copy=True))


def _finish(module: FourBitLinear, name: str, layout: GptqLayout, device: torch.device) -> None:
    """Derive a module's missing groups, check those it has, and read its zero points rightly."""
    groups = module.sequential_groups(device)
    if module.g_idx.is_meta:
        module.g_idx = groups
    elif not torch.equal(module.g_idx.sort().values, groups):
        raise ModelError(
            f"model: {name}.g_idx does not give every group {module.group_size} inputs, which "
            "its group_size asks for; fetch the model again"
        )
    if layout.checkpoint_format == "gptq" and layout.made_by_gptqmodel:
        module.qzeros += _EIGHT_ONES


def _put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Let a parameter or buffer of the model be this tensor."""
    owner_name, _, part = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    is_parameter = part in owner._parameters
    setattr(owner, part, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _device(name: str, device_map: Mapping[str, str | int]) -> torch.device:
    """Return where a tensor belongs: what is said of the innermost module that is named."""
    module = name
    while module and module not in device_map:
        module = module.rpartition(".")[0]
    device = device_map[module]
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
