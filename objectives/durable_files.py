"""Writes files so that a crash or a full disk leaves the old ones or the new ones, whole."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

MayReplace = AbstractContextManager[object]

# Of Linux's renameat2(2): paths that are not relative to an open folder, and to swap both names.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write tensors to a file, and return once it is on the disk; equal ones give equal bytes.

    They are copied in memory, because the library's own way to a file makes one that only its
    owner may read, and another user's worker may have to.

    Raises:
        OSError: If it cannot be written, for example because the disk is full.
    """
    path.write_bytes(_sort_metadata(save(dict(tensors), metadata)))
    sync(path)


def _sort_metadata(data: bytes) -> bytes:
    """Return a safetensors file with metadata in order; the library writes it in any."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return data[:8] + text.ljust(length) + data[8 + length :]  # spaces fill up a header


def sync(path: Path) -> None:
    """Return once a file, or which names a folder has, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def unfinished_name(path: Path) -> Path:
    """Return a name beside a path for what is still to be written there; a new one every time."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def filled_file(path: Path, *, may_replace: MayReplace | None = None) -> Iterator[Path]:
    """Give a name to write a file under, which takes the name `path` then, and goes on an error.

    What was called so before is replaced, or stays where an error is raised.

    Args:
        path: What to write; its folder is made if it is not there.
        may_replace: Held while the file takes its name and no longer; if entering raises, nothing
            has moved.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        sync(unfinished)
        with may_replace or nullcontext():
            unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def filled_folder(folder: Path, *, may_replace: MayReplace | None = None) -> Iterator[Path]:
    """Give an empty folder that takes the name `folder` once it is filled, and goes on an error.

    What was called so before is replaced as a whole, or stays where an error is raised.

    Args:
        folder: What to write.
        may_replace: As in `filled_file`.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(folder)
    unfinished.mkdir()
    try:
        yield unfinished
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        with may_replace or nullcontext():
            if folder.exists():
                _exchange(unfinished, folder)
            else:
                unfinished.rename(folder)
        sync(folder.parent)
    finally:
        # By now it is the folder that was replaced, if there was one.
        shutil.rmtree(unfinished, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two files or folders take each other's names, at once where the system can."""
    if _exchange_at_once(one, other):
        return
    # Elsewhere nothing has the name for a moment, and an error is undone.
    aside = unfinished_name(other)
    other.rename(aside)
    try:
        one.rename(other)
    except BaseException:
        aside.rename(other)
        raise
    aside.rename(one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Return whether the names were swapped in one step; if not, nothing has moved."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old one
        return False
    if not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system that cannot
        return False
    raise OSError(number, os.strerror(number), str(other))
