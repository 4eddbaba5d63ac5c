"""Finds a model by name: the pocket model, a profile, a folder, a .gguf file, or a hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data.model_profiles import load_profiles
from data.nearest_name import hint_at
from objectives.models.base import ModelError
from objectives.models.loading import Loading

POCKET = "pocket"

# Configuration, tokenizer and chat templates. Weights in other formats lie beside them in many
# repositories, or in folders.
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_SAFE_WEIGHTS = "*.safetensors"
_INDEX = ".index.json"  # names the files that weights are spread over
_PICKLED_WEIGHTS = "pytorch_model*.bin"
_CODE = "*.py"
_NEVER = ("*/*", "consolidated*", "adapter_*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model is: a local folder or a .gguf file.

    `name` is what the person asked for; `origin` is what others find it by: a hub id, or the path.
    `revision` is the commit of a hub repository, else None.
    """

    name: str
    path: Path
    origin: str
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Return whether it is one file in llama.cpp's format."""
        return _is_gguf(self.path)


def find_source(name: str, loading: Loading) -> Source:
    """Return where a model is, fetched from the hub if it has to be.

    Of a repository only what is read is fetched: safetensors and what belongs to them; pickled
    weights and code only where `loading` allows them.

    Args:
        name: "pocket", a profile's name, a folder, a .gguf file, or a hub id.
        loading: Which revision and which file, and what is allowed.

    Raises:
        ModelError: If it is not there, or the licence of a gated repository was not accepted.
    """
    if loading.weights_file is not None and Path(loading.weights_file).name != (
        loading.weights_file
    ):
        raise ModelError(
            f"loading.weights_file: {loading.weights_file!r} is not allowed; it must be the name "
            "of a file that lies right in the model's folder, without a path"
        )
    path = Path(name).expanduser()
    is_local = path.is_dir() or path.is_absolute() or name.startswith(".") or _is_gguf(path)
    if name != POCKET and not is_local:
        return _fetch(name, loading)
    if loading.revision is not None:
        raise ModelError(
            f"loading.revision: {loading.revision!r} is not allowed with {name!r}, which is not "
            "read from the hub; leave it out"
        )
    if name == POCKET:
        path = Path(str(files("data") / "pocket"))
    if _is_gguf(path):
        if not path.is_file():
            raise ModelError(f"model: there is no file {name!r}; check the path")
    else:
        path = _choose_in(path, name, loading)
    return Source(name=name, path=path, origin=str(path))


def digest_weights(source: Source, weights_file: str | None = None) -> str:
    """Return what identifies a model's weights: the hub's commit, or a hash of its files.

    Args:
        source: Where it is.
        weights_file: The one file of weights that is read, where the folder has several; those of
            a repository are different weights under one commit.
    """
    if source.revision is not None:
        file = "" if weights_file is None else f"/{weights_file}"
        return f"{source.origin}{file}@{source.revision}"
    digest = hashlib.sha256()
    if source.is_gguf:
        digest.update(_hash(source.path))  # by any name
    else:
        for path in _identifying_files(source.path, weights_file):
            digest.update(path.name.encode())
            digest.update(_hash(path))
    return digest.hexdigest()


def _identifying_files(folder: Path, weights_file: str | None) -> Iterable[Path]:
    wanted = _weights_pattern(weights_file)
    weights = [path for path in folder.glob("*") if fnmatch(path.name, wanted)]
    weights = weights or list(folder.glob(_PICKLED_WEIGHTS))
    named = ["config.json", "tokenizer.json", "quantize_config.json"]
    if not (folder / "tokenizer.json").is_file():
        named.append("tokenizer.model")
    return sorted({*weights, *(path for each in named if (path := folder / each).is_file())})


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _weights_pattern(weights_file: str | None) -> str:
    """Return which files of weights are read: all safetensors, or the one that is named."""
    is_all = weights_file is None or weights_file.endswith(_INDEX)
    return _SAFE_WEIGHTS if is_all else str(weights_file)


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


def _choose_in(folder: Path, name: str, loading: Loading) -> Path:
    """Return a folder, or the .gguf file in it that the person names.

    Raises:
        ModelError: If it holds no model, or not the file that is named.
    """
    chosen = loading.weights_file
    if chosen is not None and not (folder / chosen).is_file():
        there = [path.name for kind in (_SAFE_WEIGHTS, "*.gguf") for path in folder.glob(kind)]
        listed = f"there are {', '.join(sorted(there))}" if there else "there is none"
        raise ModelError(
            f"loading.weights_file: there is no {chosen!r} in {name!r}; "
            + hint_at(chosen, there, otherwise=listed)
        )
    if chosen is not None and _is_gguf(Path(chosen)):
        return folder / chosen
    if not (folder / "config.json").is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        raise ModelError(
            f"model: {name!r} is not a model folder (no config.json in it); "
            + (
                f"name one of its files, {', '.join(ggufs)}"
                if ggufs
                else "name a folder that a Hugging Face model was saved to, a hub id, a name that "
                f"`remember models` lists, or “{POCKET}”"
            )
        )
    return folder


def _fetch(name: str, loading: Loading) -> Source:
    """Return a hub repository's files as they lie in the hub's cache, fetched where missing."""
    profile = load_profiles().get(name)
    hub_id = name if profile is None else profile.hub_id
    wanted = [*_SMALL_FILES, _weights_pattern(loading.weights_file)]
    if loading.trust_remote_code:
        wanted.append(_CODE)
    folder = _download(name, hub_id, loading.revision, wanted)
    if loading.pickled_weights and not any(folder.glob(_SAFE_WEIGHTS)):
        folder = _download(name, hub_id, loading.revision, [*wanted, _PICKLED_WEIGHTS])
    return Source(
        name=name,
        path=_choose_in(folder, name, loading),
        origin=hub_id,
        revision=folder.name,
    )


def _download(name: str, hub_id: str, revision: str | None, wanted: list[str]) -> Path:
    asked = f"model: {name!r}" if name == hub_id else f"model: {name!r} ({hub_id})"
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=list(_NEVER)
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{asked} is gated: accept its licence at https://huggingface.co/{hub_id}, and put an "
            "access token of your account into the environment variable HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"loading.revision: {revision!r} is no branch, tag or commit of {hub_id}; see "
            f"https://huggingface.co/{hub_id}/commits"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        nearest = hint_at(
            name,
            (POCKET, *load_profiles()),
            otherwise="name a folder, a hub id, or one that `remember models` lists; a private "
            "one takes an access token in HF_TOKEN",
        )
        raise ModelError(
            f"{asked} is nowhere: no folder, no profile, and the hub has none; {nearest}"
        ) from error
    except LocalEntryNotFoundError as error:
        at = "" if revision is None else f" --revision {revision}"
        remedy = f"where there is a network, `hf download {hub_id}{at}` puts it there."
        if name not in load_profiles():
            remedy = hint_at(name, (POCKET, *load_profiles()), otherwise=remedy)
        raise ModelError(
            f"{asked} cannot be loaded: it is not in the hub's cache on this machine, and the hub "
            f"cannot be reached; {remedy} Or name a folder that holds config.json, the tokenizer "
            "and *.safetensors weights"
        ) from error
    except (OSError, EntryNotFoundError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{asked} cannot be fetched: {reason}") from error
