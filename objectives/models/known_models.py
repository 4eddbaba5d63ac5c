"""What is known of a model before its weights are read: from its configuration, or by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from data.model_profiles import find_profile
from objectives.models.base import ModelError
from objectives.models.gptq.checkpoint import find_gptq
from objectives.models.load import Precision, refusal_of_code
from objectives.models.loading import Loading
from objectives.models.machine.footprint import ModelShape, Storing, config_of, shape_of
from objectives.models.sources import POCKET, find_local, hint_at_short_name


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model as far as it is known without its weights; `folder` is None where it is not here.

    Its sizes may take Python code that comes with it, which runs only under `trust_remote_code`.
    """

    config: PretrainedConfig
    storing: Storing
    folder: Path | None
    trust_remote_code: bool = False

    @property
    def shape(self) -> ModelShape:
        """Return its sizes.

        Raises:
            ModelError: As `shape_of`.
        """
        return shape_of(self.config, trust_remote_code=self.trust_remote_code)


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
            had from the hub; or if its name is a path and no model is there.
    """
    source = find_local(name, loading)
    if name == POCKET or (source is not None and source.is_gguf):
        return None
    if str(loading.weights_file).endswith(".gguf"):
        return None  # which the hub has, and nobody knows what is in it
    dtype = getattr(torch, precision)
    code = loading.trust_remote_code
    if source is not None:
        config = _read_config(name, source.path, loading)
        layout = find_gptq(source.path, config, weights_file=loading.weights_file)
        group_size = None if layout is None else layout.group_size
        return KnownModel(
            config=config,
            storing=Storing(dtype=dtype, group_size=group_size),
            folder=source.path,
            trust_remote_code=code,
        )
    profile = find_profile(name)
    if profile is not None:
        storing = Storing(dtype=dtype, group_size=profile.group_size)
        return KnownModel(config=config_of(profile), storing=storing, folder=None)
    config = _read_config(name, name, loading)
    settings = getattr(config, "quantization_config", None) or {}
    storing = Storing(dtype=dtype, group_size=settings.get("group_size"))
    return KnownModel(config=config, storing=storing, folder=None, trust_remote_code=code)


def _read_config(name: str, source: str | Path, loading: Loading) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            source, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        if (refusal := refusal_of_code(error, name, loading)) is not None:
            raise refusal from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = hint_at_short_name(
            name, otherwise="name a folder, or a model that `remember models` lists"
        )
        raise ModelError(
            f"model: {name!r} cannot be planned for, because its configuration is not to be had: "
            f"{reason}; {remedy}"
        ) from error
