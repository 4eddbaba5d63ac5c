"""Crashes, full disks and lost leases leave the old checkpoint or adapter or the new, whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from data.recipes import Recipe
from objectives import durable_files
from objectives.bank import (
    Bank,
    export_adapter,
    restore_checkpoint,
    save_checkpoint,
)
from objectives.models.base import BaseModel

EpochTexts = Callable[[int], Sequence[str]]
Save = Callable[..., None]

RECIPE = Recipe(epochs=4, rank=3, alpha=6, cutoff=64, warmup_steps=0, learning_rate=3e-3)


class Crash(BaseException):
    """The moment at which a process is gone."""


class Lost(Exception):
    """What a lease raises that is no longer held."""


@pytest.fixture(params=["checkpoint", "adapter"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bank(base: BaseModel, texts: Callable[[int], EpochTexts]) -> Bank:
    """Return a bank with a trial in slot 0 that has taken a step."""
    bank = Bank(base, slots=2, max_rank=3)
    bank.admit(0, RECIPE, texts(0), seed=9)
    bank.step()
    return bank


@pytest.fixture
def save(bank: Bank, kind: str, tmp_path: Path) -> Save:
    return partial(
        save_checkpoint if kind == "checkpoint" else export_adapter, bank, 0, tmp_path / "kept"
    )


@pytest.fixture
def is_whole(
    bank: Bank, kind: str, tmp_path: Path, texts: Callable[[int], EpochTexts]
) -> Callable[[int], bool]:
    """Return what tells whether what is kept can be used and is of the step given."""
    steps: dict[int, torch.Tensor] = {}

    def look(step: int) -> bool:
        if bank.progress(0).steps == step:
            steps[step] = bank.snapshot(0).weights
        bank.release(1)
        if kind == "checkpoint":
            restore_checkpoint(bank, 1, tmp_path / "kept", texts(0))
            return bank.progress(1).steps == step and torch.equal(
                bank.snapshot(1).weights, steps[step]
            )
        bank.load(1, tmp_path / "kept")
        saved = load_file(tmp_path / "kept" / "adapter_model.safetensors")
        name = "model.layers.0.self_attn.q_proj"
        # The first columns of a slot's weights are the first module's A.
        down = steps[step][:, : saved[f"base_model.model.{name}.lora_A.weight"].shape[1]]
        return torch.equal(saved[f"base_model.model.{name}.lora_A.weight"], down)

    return look


def names_beside(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def write_half(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """During it the system refuses to write larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_os_error_and_the_old_one_stays(
    bank: Bank,
    save: Save,
    is_whole: Callable[[int], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="No space left on device"):
            save()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    save()
    assert is_whole(1)
    bank.step()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save()
    assert caught.value.errno == errno.ENOSPC
    assert names_beside(tmp_path) == []
    assert is_whole(1)
    save()
    assert is_whole(2)


def test_what_the_system_says_about_a_write_is_told(
    bank: Bank, save: Save, is_whole: Callable[[int], bool], tmp_path: Path
) -> None:
    save()
    assert is_whole(1)
    bank.step()
    with files_up_to(2_000), pytest.raises(OSError, match="File too large") as caught:
        save()
    assert caught.value.errno == errno.EFBIG
    assert names_beside(tmp_path) == []
    assert is_whole(1)


def test_others_may_read_what_is_written(save: Save, tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    save()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 1
    assert {path.stat().st_mode for path in written} == {ordinary.stat().st_mode}


def test_a_disk_that_is_full_after_the_weights_keeps_the_old_adapter(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    export_adapter(bank, 0, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bank.step()

    def refuse(_config: object, folder: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)

    monkeypatch.setattr(LoraConfig, "save_pretrained", refuse)
    with pytest.raises(OSError, match="No space left"):
        export_adapter(bank, 0, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("moment", ["writing", "on disk", "renaming", "renamed"])
def test_a_crash_at_any_moment_leaves_the_old_one_or_the_new_one(
    bank: Bank,
    save: Save,
    is_whole: Callable[[int], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    save()
    assert is_whole(1)
    bank.step()

    def crash(*_arguments: object, **_more: object) -> None:
        raise Crash

    def sync_or_crash(path: Path) -> None:
        is_renamed = path == tmp_path or (path.name == "kept" and not path.name.startswith("."))
        if moment == ("renamed" if is_renamed else "on disk"):
            raise Crash

    class CrashWhenHeld:
        def __enter__(self) -> None:
            if moment == "renaming":
                raise Crash

        def __exit__(self, *_: object) -> None: ...

    with monkeypatch.context() as patched:
        if moment == "writing":
            patched.setattr(Path, "write_bytes", crash)
        patched.setattr(durable_files, "sync", sync_or_crash)
        # What a crashed process cannot do either.
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Crash):
            save(may_replace=CrashWhenHeld())
    assert is_whole(2 if moment == "renamed" else 1)
    save()
    assert is_whole(2)


def test_a_lease_is_held_while_the_new_one_takes_its_place_and_no_longer(
    bank: Bank, save: Save, is_whole: Callable[[int], bool], tmp_path: Path
) -> None:
    save()
    assert is_whole(1)
    bank.step()
    seen: list[bool] = []

    @contextmanager
    def lease() -> Iterator[None]:
        snapshot = _content(tmp_path / "kept")
        yield
        seen.append(_content(tmp_path / "kept") != snapshot)

    save(may_replace=lease())
    assert seen == [True]
    assert is_whole(2)


def test_a_lost_lease_keeps_what_the_new_owner_wrote(
    bank: Bank, save: Save, is_whole: Callable[[int], bool], tmp_path: Path
) -> None:
    save()
    assert is_whole(1)
    bank.step()

    class LostLease:
        def __enter__(self) -> None:
            raise Lost("trial 3 is another worker's by now")

        def __exit__(self, *_: object) -> None: ...

    with pytest.raises(Lost, match="another worker's"):
        save(may_replace=LostLease())
    assert names_beside(tmp_path) == []
    assert is_whole(1)


def test_a_lease_that_cannot_be_given_back_is_an_error_with_the_new_one_in_place(
    bank: Bank, save: Save, is_whole: Callable[[int], bool], tmp_path: Path
) -> None:
    save()

    class Broken:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            raise Lost("the database is gone")

    bank.step()
    with pytest.raises(Lost):
        save(may_replace=Broken())
    assert names_beside(tmp_path) == []
    assert is_whole(2)


def test_a_file_takes_its_name_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.gguf"
    with durable_files.filled_file(path) as unfinished:
        unfinished.write_text("one")
        assert not path.exists()
    with durable_files.filled_file(path) as unfinished:
        unfinished.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert [each.name for each in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("written", ["", "half of it"])
def test_a_file_that_is_not_written_to_its_end_is_gone_and_the_old_one_stays(
    tmp_path: Path, written: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("one")

    def write() -> None:
        with durable_files.filled_file(path) as unfinished:
            if written:
                unfinished.write_text(written)
            raise Lost("the disk is full")

    with pytest.raises(Lost):
        write()
    assert path.read_text() == "one"
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_swapped_with_or_without_the_systems_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if at_once:
        if not durable_files._exchange_at_once(new, old):
            pytest.skip("this file system cannot swap names")
    else:
        monkeypatch.setattr(durable_files, "_exchange_at_once", lambda *_: False)
        durable_files._exchange(new, old)
    assert (old / "name").read_text() == "new"
    assert (new / "name").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_a_swap_that_fails_half_way_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_files, "_exchange_at_once", lambda *_: False)
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(FileNotFoundError):
        durable_files._exchange(tmp_path / "gone", old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_swapped_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable_files._exchange(tmp_path / "one", tmp_path / "other")


def _content(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}
