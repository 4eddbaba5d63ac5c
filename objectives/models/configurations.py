"""Reads a model's configuration without its weights."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from objectives.models.base import ModelError
from objectives.models.loading import Loading
from objectives.models.sources import find_source


def read_configuration(name: str, loading: Loading) -> PretrainedConfig:
    """Return the configuration of a model that `load_base_model` loads by this name.

    Raises:
        ModelError: If it is not there or cannot be read.
    """
    source = find_source(name, loading)
    folder, file = (
        (source.path.parent, source.path.name) if source.is_gguf else (source.path, None)
    )
    of_gguf = {} if file is None else {"gguf_file": file}
    try:
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=loading.trust_remote_code, **of_gguf
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"model: the configuration of {name!r} cannot be read: {error}; name a model that "
            "loads"
        ) from error
