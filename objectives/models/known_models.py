"""What is known of a model before its weights are read: from its configuration, or by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PretrainedConfig

from data.model_profiles import ModelProfile, load_profiles
from objectives.models.base import ModelError
from objectives.models.gptq.checkpoint import find_gptq
from objectives.models.load import Precision
from objectives.models.loading import Loading
from objectives.models.machine.footprint import Storing, config_of
from objectives.models.sources import POCKET


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model as far as it is known without its weights; `folder` is None where it is not here."""

    config: PretrainedConfig
    storing: Storing
    folder: Path | None


def look_up(name: str, loading: Loading, *, precision: Precision) -> KnownModel | None:
    """Return what is known of a model; None of one that must be loaded to tell, or that is wrong.

    Of a hub repository that is not in the cache nothing but the configuration is fetched, and not
    even that where the name is a profile's.

    Args:
        name: As in `load_base_model`.
        loading: Which revision and file, and what is allowed.
        precision: Of weights that are not quantised.

    Raises:
        ModelError: If it is neither here nor known by name, and its configuration is not to be
            had from the hub.
    """
    if name == POCKET or any(str(each).endswith(".gguf") for each in (name, loading.weights_file)):
        return None
    dtype = getattr(torch, precision)
    path = Path(name).expanduser()
    profile = load_profiles().get(name)
    folder = path if path.is_dir() else _cached_folder(name, profile, loading)
    if folder is not None:
        config = _read_config(name, folder, loading)
        layout = find_gptq(folder, config, weights_file=loading.weights_file)
        group_size = None if layout is None else layout.group_size
        return KnownModel(
            config=config, storing=Storing(dtype=dtype, group_size=group_size), folder=folder
        )
    if _is_path(name):
        return None  # loading it says what is wrong
    if profile is not None:
        storing = Storing(dtype=dtype, group_size=profile.group_size)
        return KnownModel(config=config_of(profile), storing=storing, folder=None)
    config = _read_config(name, name, loading)
    settings = getattr(config, "quantization_config", None) or {}
    storing = Storing(dtype=dtype, group_size=settings.get("group_size"))
    return KnownModel(config=config, storing=storing, folder=None)


def _is_path(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~"))


def _cached_folder(name: str, profile: ModelProfile | None, loading: Loading) -> Path | None:
    """Return where the hub's cache holds the model with its weights; None if it does not."""
    if _is_path(name):
        return None
    hub_id = name if profile is None else profile.hub_id
    try:
        found = try_to_load_from_cache(hub_id, "config.json", revision=loading.revision)
    except HFValidationError:  # reading its configuration says what is wrong
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if any(folder.glob("*.safetensors")) else None


def _read_config(name: str, source: str | Path, loading: Loading) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            source, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"model: {name!r} cannot be planned for, because its configuration is not to be had: "
            f"{reason}; name a folder, or a model that `remember models` lists"
        ) from error
