"""Finds a model by name: the pocket model, a profile, a folder, a .gguf file, or a hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data.model_profiles import find_profile, load_profiles
from data.nearest_name import hint_at
from objectives.models.base import ModelError
from objectives.models.loading import Loading

POCKET = "pocket"

# Configuration, tokenizer and chat templates. Weights in other formats lie beside them in many
# repositories, or in folders.
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_SAFE_WEIGHTS = "*.safetensors"
_GGUF_WEIGHTS = "*.gguf"
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
    _require_file_name(loading)
    return _fetch(name, loading) if _is_on_hub(name) else _open(name, loading)


def find_local(name: str, loading: Loading) -> Source | None:
    """Return where a model is as `find_source` does, but without fetching anything.

    A repository is here where the hub's cache has its configuration and weights that `loading`
    allows to read.

    Returns:
        None if it is only on the hub, or nowhere.

    Raises:
        ModelError: If the name is a path and no model is there.
    """
    _require_file_name(loading)
    if not _is_on_hub(name):
        return _open(name, loading)
    hub_id = _hub_id(name)
    try:
        found = try_to_load_from_cache(hub_id, "config.json", revision=loading.revision)
    except HFValidationError:  # whoever fetches it says what is wrong
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    if loading.weights_file is not None:
        is_here = (folder / loading.weights_file).is_file()
    else:
        is_here = _has_weights(folder, loading)
    return _cached(folder, name, loading) if is_here else None


def _require_file_name(loading: Loading) -> None:
    if loading.weights_file is not None and Path(loading.weights_file).name != (
        loading.weights_file
    ):
        raise ModelError(
            f"loading.weights_file: {loading.weights_file!r} is not allowed; it must be the name "
            "of a file that lies right in the model's folder, without a path"
        )


def _is_on_hub(name: str) -> bool:
    """Return whether a name is a repository's, or a profile's that stands for one."""
    path = Path(name).expanduser()
    is_path = path.is_dir() or path.is_absolute() or name.startswith(".") or _is_gguf(path)
    return name != POCKET and not is_path


def _hub_id(name: str) -> str:
    profile = find_profile(name)
    return name if profile is None else profile.hub_id


def hint_at_short_name(name: str, *, otherwise: str) -> str:
    """Return a hint at the short name that is meant, or `otherwise` where none can be."""
    # No short name has a slash.
    if "/" in name or find_profile(name) is not None:
        return otherwise
    return hint_at(name, (POCKET, *load_profiles()), otherwise=otherwise)


def _open(name: str, loading: Loading) -> Source:
    """Return the pocket model, a folder or a .gguf file."""
    if loading.revision is not None:
        raise ModelError(
            f"loading.revision: {loading.revision!r} is not allowed with {name!r}, which is not "
            "read from the hub; leave it out"
        )
    path = Path(str(files("data") / "pocket")) if name == POCKET else Path(name).expanduser()
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


def _choose_in(folder: Path, name: str, loading: Loading, *, hub_id: str | None = None) -> Path:
    """Return a folder, or the .gguf file in it that the person names.

    Args:
        folder: Where what is read lies.
        name: What the person asked for.
        loading: Which file.
        hub_id: The repository that the folder was fetched from; files of weights that are not read
            are there only.

    Raises:
        ModelError: If it holds no model, not the file that is named, or only .gguf files of which
            none is named.
    """
    chosen = loading.weights_file
    if chosen is not None and not (folder / chosen).is_file():
        there = _list_weights(folder, hub_id)
        listed = f"there are {', '.join(there)}" if there else "there is none"
        raise ModelError(
            f"loading.weights_file: there is no {chosen!r} in {name!r}; "
            + hint_at(chosen, there, otherwise=listed)
        )
    if chosen is not None and _is_gguf(Path(chosen)):
        return folder / chosen
    if not _has_weights(folder, loading):
        _refuse_unnamed_gguf(name, _list_weights(folder, hub_id), is_on_hub=hub_id is not None)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model: {name!r} is not a model folder (no config.json in it); name a folder that a "
            "Hugging Face model was saved to, a hub id, a name that `remember models` lists, or "
            f"“{POCKET}”"
        )
    return folder


def _has_weights(folder: Path, loading: Loading) -> bool:
    """Return whether a folder has weights that may be read and need not be named."""
    kinds = [_SAFE_WEIGHTS, *([_PICKLED_WEIGHTS] if loading.pickled_weights else [])]
    return any(path for kind in kinds for path in folder.glob(kind))


def _refuse_unnamed_gguf(name: str, weights: Iterable[str], *, is_on_hub: bool) -> None:
    ggufs = [file for file in weights if fnmatch(file, _GGUF_WEIGHTS)]
    if ggufs:
        raise ModelError(
            f"model: {name!r} has its weights as .gguf files, of which one must be named: "
            f'loading.weights_file = "{ggufs[0]}" in the study file'
            + ("" if is_on_hub else f", or the model {str(Path(name) / ggufs[0])!r}")
            + f"; there are {', '.join(ggufs)}"
        )


def _list_weights(folder: Path, hub_id: str | None) -> list[str]:
    """Return the names of safetensors and .gguf files in a folder, or in its repository.

    If the hub cannot be reached, it is those in the folder.
    """
    kinds = [_SAFE_WEIGHTS, _GGUF_WEIGHTS]
    if hub_id is not None:
        try:
            there = snapshot_download(
                hub_id,
                revision=folder.name,
                allow_patterns=kinds,
                ignore_patterns=list(_NEVER),
                dry_run=True,
            )
            return sorted(file.filename for file in there)
        except OSError:
            pass
    return sorted(path.name for kind in kinds for path in folder.glob(kind))


def _fetch(name: str, loading: Loading) -> Source:
    """Return a hub repository's files as they lie in the hub's cache, fetched where missing."""
    hub_id = _hub_id(name)
    wanted = [*_SMALL_FILES, _weights_pattern(loading.weights_file)]
    if loading.trust_remote_code:
        wanted.append(_CODE)
    folder = _download(name, hub_id, loading.revision, wanted)
    if loading.pickled_weights and not any(folder.glob(_SAFE_WEIGHTS)):
        folder = _download(name, hub_id, loading.revision, [*wanted, _PICKLED_WEIGHTS])
    return _cached(folder, name, loading)


def _cached(folder: Path, name: str, loading: Loading) -> Source:
    """Return a folder of the hub's cache, which has the name of its commit."""
    return Source(
        name=name,
        path=_choose_in(folder, name, loading, hub_id=_hub_id(name)),
        origin=_hub_id(name),
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
        remedy = hint_at_short_name(
            name, otherwise=f"where there is a network, `hf download {hub_id}{at}` puts it there."
        )
        raise ModelError(
            f"{asked} cannot be loaded: it is not in the hub's cache on this machine, and the hub "
            f"cannot be reached; {remedy} Or name a folder that holds config.json, the tokenizer "
            "and *.safetensors weights"
        ) from error
    except (OSError, EntryNotFoundError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{asked} cannot be fetched: {reason}") from error
