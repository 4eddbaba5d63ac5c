"""Reads a LoRA adapter in PEFT's format from a folder, whoever trained it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from objectives.models.base import ModelError
from objectives.models.linear_modules import LinearModule

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# In the metadata of the weights, which others pass over: the base that they were trained in.
BASE_DIGEST = "remember_base_digest"

_PICKLED_FILES = ("adapter_model.bin", "adapter_model.pt")

# What PEFT saves whole of a model whose vocabulary was resized.
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "lm_head.weight")

# Settings of PEFT under which weights of a plain adapter's names and shapes mean something else.
_OTHER_MEANINGS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "layer_replication",
)

# The name of a weight in PEFT's files.
WEIGHT_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMatrices:
    """One module's adapter: `down` (rank, in) and `up` (rank, out), which includes the scale."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which base an adapter was trained in, as far as its folder says.

    `source` is the base's folder or hub id and `revision` its commit on the hub. `digest`
    identifies its weights; only this program writes one.
    """

    source: str | None
    revision: str | None
    digest: str | None


def read_adapter(
    folder: Path,
    modules: tuple[LinearModule, ...],
    *,
    max_rank: int,
    base_digest: str | None = None,
) -> dict[str, LoadedMatrices]:
    """Return the matrices of every module that the adapter in `folder` changes, by module name.

    Args:
        folder: As PEFT writes it.
        modules: Those of the base that adapters may be attached to.
        max_rank: The largest rank that fits.
        base_digest: Identifies the base: an adapter that names another one is refused. None leaves
            it at shapes, as for an adapter that names none.

    Raises:
        ModelError: If files are missing or are not a plain LoRA adapter, if the adapter changes
            anything but `modules`, if shapes or ranks do not fit, or if it was trained in another
            base.
    """
    config = read_config(folder)
    if base_digest is not None:
        require_base(folder, base_digest)
    _require_weights(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter: {folder / WEIGHTS_FILE} cannot be read: {error}") from error
    module_of = {module.name: module for module in modules}
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = WEIGHT_KEY.fullmatch(key)
        if match is None or match["module"] not in module_of:
            if key.endswith(_EMBEDDINGS):
                raise ModelError(
                    f"adapter: {folder} brings embeddings of its own ({key!r}, "
                    f"{tensor.shape[0]} rows), as adapters for a changed vocabulary do; use one "
                    "that leaves the model's vocabulary as it is"
                )
            raise ModelError(
                f"adapter: {folder} changes {key!r}, which this program cannot apply; it must be "
                "a plain LoRA adapter of this model's attention and mlp modules"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise ModelError(f"adapter: {folder / WEIGHTS_FILE} holds no adapter weights")
    return {
        name: _check_matrices(folder, config, module_of[name], pair, max_rank)
        for name, pair in sides.items()
    }


def adapter_rank(folder: Path) -> int:
    """Return the largest rank of the adapter in `folder`: what a bank needs to load it.

    Raises:
        ModelError: If the folder holds no LoRA adapter.
    """
    config = read_config(folder)
    return int(max((config.r, *config.rank_pattern.values())))


def read_origin(folder: Path) -> Origin:
    """Return which base the adapter in `folder` was trained in.

    Raises:
        ModelError: If the folder holds no LoRA adapter in safetensors.
    """
    config = read_config(folder)
    _require_weights(folder)
    return Origin(
        source=config.base_model_name_or_path,
        revision=config.revision,
        digest=_base_digest(folder),
    )


def _base_digest(folder: Path) -> str | None:
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            digest: str | None = (file.metadata() or {}).get(BASE_DIGEST)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter: {folder / WEIGHTS_FILE} cannot be read: {error}") from error
    return digest


def require_base(folder: Path, digest: str) -> None:
    """Refuse an adapter that says it was trained in another base than the one of this digest.

    Raises:
        ModelError: If it says so, or its weights cannot be read.
    """
    _require_weights(folder)
    trained_in = _base_digest(folder)
    # A commit on the hub cannot be compared with the hash of a folder's files.
    if trained_in is None or trained_in == digest or ("@" in trained_in) != ("@" in digest):
        return
    files, _, commit = trained_in.rpartition("@")
    if files and files == digest.rpartition("@")[0]:
        remedy = f'read that commit: loading.revision = "{commit}", or --revision {commit}'
    else:
        remedy = "name the model that it was trained in"
    raise ModelError(
        f"adapter: {folder} was trained in another base ({_shorten(trained_in)}, and this is "
        f"{_shorten(digest)}); {remedy}, or, if this one has the same weights in another form, "
        "say so with --any-base"
    )


def _shorten(digest: str) -> str:
    return digest if "@" in digest else f"files {digest[:12]}"


def _require_weights(folder: Path) -> None:
    if (folder / WEIGHTS_FILE).is_file():
        return
    for name in _PICKLED_FILES:
        if (folder / name).is_file():
            raise ModelError(
                f"adapter: {folder / name} is pickled, and such a file may contain code that is "
                "run when it is read; only safetensors are read: load it with PEFT where you "
                "trust it, and save it again with save_pretrained(safe_serialization=True)"
            )
    raise ModelError(f"adapter: {folder} has no {WEIGHTS_FILE}; name a folder that PEFT wrote")


def read_config(folder: Path) -> LoraConfig:
    """Return the settings of the adapter in `folder`.

    Raises:
        ModelError: If they are not there or not those of a plain LoRA adapter.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"adapter: {folder} has no {CONFIG_FILE}; name a folder that PEFT wrote")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"adapter: {folder / CONFIG_FILE} cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"adapter: {folder} is of type {config.peft_type}; it must be LORA")
    unusual = [name for name in _OTHER_MEANINGS if getattr(config, name, None)]
    if unusual:
        raise ModelError(
            f"adapter: {folder} was trained with {', '.join(unusual)}, which this program cannot "
            "apply; it must be a plain LoRA adapter"
        )
    return config


def _check_matrices(
    folder: Path,
    config: LoraConfig,
    module: LinearModule,
    pair: dict[str, Tensor],
    max_rank: int,
) -> LoadedMatrices:
    if set(pair) != {"A", "B"}:
        raise ModelError(f"adapter: {folder} has only one of lora_A and lora_B of {module.name}")
    down, up = pair["A"].float(), pair["B"].float()
    rank = down.shape[0]
    if rank > max_rank:
        raise ModelError(
            f"adapter: {folder} has rank {rank} at {module.name}; at most {max_rank} fits; make "
            "the bank with a larger max_rank"
        )
    expected = (rank, module.in_features), (module.out_features, rank)
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise ModelError(
            f"adapter: {folder} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} at "
            f"{module.name}; this model needs {expected[0]} and {expected[1]}; it was trained on "
            "another model"
        )
    pattern = get_pattern_key(config.alpha_pattern.keys(), module.name)
    alpha = config.alpha_pattern.get(pattern, config.lora_alpha)
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return LoadedMatrices(down=down, up=up.T * scale)
