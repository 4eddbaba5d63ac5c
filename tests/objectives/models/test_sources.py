"""Where a model is looked for, what is fetched of it, and what is said when it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import DryRunFileInfo, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data.model_profiles import load_profiles
from objectives.models import sources
from objectives.models.base import ModelError
from objectives.models.load import load_base_model
from objectives.models.loading import DEFAULT_LOADING, Loading
from objectives.models.sources import digest_weights, find_local, find_source

POCKET = Path(str(files("data") / "pocket"))
OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache, empty, with the hub itself out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_in_cache(hub: Path, hub_id: str, *commits: str) -> Path:
    """Put the pocket model into the cache under commits, the last on the main branch."""
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    for commit in commits:
        shutil.copytree(POCKET, repository / "snapshots" / commit)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commits[-1])
    (repository / "refs" / "old").write_text(commits[0])
    return repository / "snapshots"


def test_a_model_in_the_hubs_cache_is_found_offline_with_its_commit(hub: Path) -> None:
    snapshots = put_in_cache(hub, "some/model", OLD, NEW)
    source = find_source("some/model", DEFAULT_LOADING)
    assert (source.path, source.origin) == (snapshots / NEW, "some/model")
    assert source.revision == NEW
    assert digest_weights(source) == f"some/model@{NEW}"


def test_files_of_one_commit_that_hold_other_weights_have_other_digests(hub: Path) -> None:
    folder = put_in_cache(hub, "some/model", NEW) / NEW
    digests = set()
    for name in ("a.Q4_0.gguf", "a.Q8_0.gguf"):
        (folder / name).touch()
        source = find_source("some/model", Loading(weights_file=name))
        digests.add(digest_weights(source, name))
    assert digests == {f"some/model/a.Q4_0.gguf@{NEW}", f"some/model/a.Q8_0.gguf@{NEW}"}


@pytest.mark.parametrize("revision", ["old", OLD])
def test_a_pinned_revision_is_honoured_and_recorded(hub: Path, revision: str) -> None:
    put_in_cache(hub, "some/model", OLD, NEW)
    base = load_base_model("some/model", device="cpu", loading=Loading(revision=revision))
    assert base.revision == OLD
    assert base.digest == f"some/model@{OLD}"
    assert base.source == "some/model"
    assert load_base_model("some/model", device="cpu").revision == NEW


def test_a_profile_stands_for_its_hub_id(hub: Path) -> None:
    snapshots = put_in_cache(hub, load_profiles()["qwen3-0.6b"].hub_id, NEW)
    source = find_source("qwen3-0.6b", DEFAULT_LOADING)
    assert (source.name, source.origin) == ("qwen3-0.6b", "Qwen/Qwen3-0.6B")
    assert source.path == snapshots / NEW


def test_what_is_here_is_found_without_the_hub_as_it_is_with_it(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POCKET, "folder")
    Path("some.gguf").touch()
    put_in_cache(hub, "some/model", OLD, NEW)
    put_in_cache(hub, load_profiles()["qwen3-0.6b"].hub_id, NEW)
    names = ("pocket", "folder", "./folder", "some.gguf", "some/model", "qwen3-0.6b")
    for name, revision in (*((name, None) for name in names), ("some/model", "old")):
        loading = Loading(revision=revision)
        assert find_local(name, loading) == find_source(name, loading)


def test_a_repository_is_here_once_weights_that_may_be_read_are(hub: Path) -> None:
    folder = put_in_cache(hub, "some/model", NEW) / NEW
    named = Loading(weights_file="other.safetensors")
    assert find_local("some/model", named) is None
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert find_local("some/model", DEFAULT_LOADING) is None
    unpickling = find_local("some/model", Loading(pickled_weights=True))
    assert unpickling is not None
    assert unpickling.path == folder
    assert find_local("no/such-model", DEFAULT_LOADING) is None
    assert find_local("no name of a repository", DEFAULT_LOADING) is None


def test_a_folder_wins_over_a_profile_and_the_pocket_model_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("qwen3-0.6b", "pocket"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert find_source("qwen3-0.6b", DEFAULT_LOADING).path == Path("qwen3-0.6b")
    assert find_source("pocket", DEFAULT_LOADING).path == POCKET


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such-model", "`hf download no/such-model` puts it there. Or name a folder"),
        ("qwen3-0.6", "did you mean 'qwen3-0.6b'? Or name a folder"),
        ("pokcet", "did you mean 'pocket'?"),
        ("qwen3-8b", "'qwen3-8b' (Qwen/Qwen3-8B) cannot be loaded"),
        ("qwen3-8b", "`hf download Qwen/Qwen3-8B` puts it there."),
        ("Qwen/Qwen3-8B", "`hf download Qwen/Qwen3-8B` puts it there."),
    ],
)
def test_a_model_that_is_not_there_offline_is_explained(name: str, said: str) -> None:
    with pytest.raises(ModelError, match="the hub cannot be reached") as refused:
        find_source(name, DEFAULT_LOADING)
    assert said in str(refused.value)


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_there_offline_is_named(hub: Path) -> None:
    put_in_cache(hub, "some/model", NEW)
    with pytest.raises(ModelError, match="`hf download some/model --revision v2`"):
        find_source("some/model", Loading(revision="v2"))


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub/"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            GatedRepoError("gated", response=answer(403)),
            ("accept its licence at https://huggingface.co/some/modle", "HF_TOKEN"),
        ),
        (
            RevisionNotFoundError("none", response=answer(404)),
            ("loading.revision: 'v2' is no branch, tag or commit of some/modle",),
        ),
        (
            RepositoryNotFoundError("none", response=answer(401)),
            ("'some/modle' is nowhere", "private one takes an access token in HF_TOKEN"),
        ),
        (OSError(28, "No space left on device"), ("cannot be fetched", "No space left")),
        (HfHubHTTPError("down", response=answer(503)), ("cannot be fetched", "down")),
    ],
)
def test_what_the_hub_refuses_is_explained(
    error: Exception, said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(sources, "snapshot_download", refuse)
    with pytest.raises(ModelError) as refused:
        find_source("some/modle", Loading(revision="v2"))
    for part in said:
        assert part in str(refused.value)


def test_what_is_no_hub_id_is_explained() -> None:
    with pytest.raises(ModelError, match=r"'a/b/c' is nowhere"):
        find_source("a/b/c", DEFAULT_LOADING)


class Repository:
    """Files of a repository, of which those that are asked for come to be in a folder."""

    def __init__(self, folder: Path, *names: str) -> None:
        self._folder = folder / NEW
        self._names = names
        self.fetched: set[str] = set()

    def download(
        self,
        _hub_id: str,
        *,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        dry_run: bool = False,
        **_: object,
    ) -> str | list[DryRunFileInfo]:
        # As the hub's own client says: * stands for anything, a slash included.
        wanted = [
            name
            for name in self._names
            if any(fnmatch(name, each) for each in allow_patterns)
            and not any(fnmatch(name, each) for each in ignore_patterns)
        ]
        if dry_run:
            return [
                DryRunFileInfo(
                    commit_hash=NEW,
                    file_size=2,
                    filename=name,
                    local_path=str(self._folder / name),
                    is_cached=name in self.fetched,
                    will_download=name not in self.fetched,
                )
                for name in wanted
            ]
        for name in wanted:
            self.fetched.add(name)
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text("{}")
        return str(self._folder)


SMALL = {"config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
MORE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.safetensors",
    "modeling_own.py",
    "pytorch_model.bin",
    "training.log",
)


@pytest.mark.parametrize(
    ("names", "loading", "weights"),
    [
        (("model.safetensors",), Loading(), {"model.safetensors"}),
        (
            ("model.safetensors",),
            Loading(trust_remote_code=True),
            {"model.safetensors", "modeling_own.py"},
        ),
        # Pickled ones are left where they are if there are others.
        (("model.safetensors",), Loading(pickled_weights=True), {"model.safetensors"}),
        ((), Loading(pickled_weights=True), {"pytorch_model.bin"}),
        ((), Loading(), set()),
        (("llama-13b-4bit-128g.safetensors",), Loading(), {"llama-13b-4bit-128g.safetensors"}),
        (
            ("a.safetensors", "b.safetensors"),
            Loading(weights_file="b.safetensors"),
            {"b.safetensors"},
        ),
        (("a.Q4_0.gguf", "a.Q8_0.gguf"), Loading(weights_file="a.Q8_0.gguf"), {"a.Q8_0.gguf"}),
    ],
)
def test_only_what_is_read_is_fetched(
    names: tuple[str, ...],
    loading: Loading,
    weights: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = Repository(tmp_path, *SMALL, *MORE, *names)
    monkeypatch.setattr(sources, "snapshot_download", repository.download)
    source = find_source("some/model", loading)
    assert repository.fetched == SMALL | weights
    assert source.revision == NEW
    assert source.is_gguf == (loading.weights_file == "a.Q8_0.gguf")


@pytest.mark.parametrize("small", [("README.md",), ("config.json", "README.md")])
@pytest.mark.parametrize("pickled", [True, False])
def test_a_repository_of_gguf_files_says_to_name_one_and_fetches_none(
    small: tuple[str, ...], pickled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ggufs = ("b.Q8_0.gguf", "a.Q4_0.gguf", "parts/c.gguf")
    repository = Repository(tmp_path, *small, *ggufs)
    monkeypatch.setattr(sources, "snapshot_download", repository.download)
    with pytest.raises(ModelError) as refused:
        find_source("some/model", Loading(pickled_weights=pickled))
    assert str(refused.value) == (
        "model: 'some/model' has its weights as .gguf files, of which one must be named: "
        'loading.weights_file = "a.Q4_0.gguf" in the study file; there are a.Q4_0.gguf, '
        "b.Q8_0.gguf"
    )
    assert repository.fetched == set(small) - {"README.md"}


def test_a_file_that_a_repository_does_not_have_is_named_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path, "config.json", "model.safetensors", "model.Q4_0.gguf")
    monkeypatch.setattr(sources, "snapshot_download", repository.download)
    with pytest.raises(ModelError, match=r"no 'x\.bin' in .*; there are model\.Q4_0\.gguf, m"):
        find_source("some/model", Loading(weights_file="x.bin"))


def test_offline_the_gguf_files_in_the_cache_are_named(hub: Path) -> None:
    folder = put_in_cache(hub, "some/model", NEW) / NEW
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(ModelError, match=r'loading\.weights_file = "model\.gguf"'):
        find_source("some/model", DEFAULT_LOADING)


def _copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POCKET, tmp_path / "copy"))


def test_a_revision_of_a_folder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"loading\.revision: 'v2' is not allowed with 'pocket'"):
        find_source("pocket", Loading(revision="v2"))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_a_file_of_weights_outside_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"loading\.weights_file: .* without a path"):
        find_source("pocket", Loading(weights_file=name))


def test_a_file_of_weights_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"there is no 'modle\.safetensors' in 'pocket'; did you"):
        find_source("pocket", Loading(weights_file="modle.safetensors"))


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*none.gguf"):
        find_source(str(tmp_path / "none.gguf"), DEFAULT_LOADING)


def test_a_folder_of_gguf_files_says_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r'loading\.weights_file = "a\.gguf" .*/a\.gguf\'; there'):
        find_source(str(tmp_path), DEFAULT_LOADING)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"there are a\.gguf$"):
        find_source(str(tmp_path), DEFAULT_LOADING)
    assert find_source(str(tmp_path), Loading(pickled_weights=True)).path == tmp_path


def _other_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")


def _other_groups(folder: Path) -> None:
    (folder / "quantize_config.json").write_text("{}")


def _other_pieces(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"x")


@pytest.mark.parametrize("change", [_other_weights, _other_groups, _other_pieces])
def test_whatever_changes_answers_changes_the_digest(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = _copy(tmp_path)
    before = digest_weights(find_source(str(folder), DEFAULT_LOADING))
    assert before == digest_weights(find_source("pocket", DEFAULT_LOADING))
    change(folder)
    assert digest_weights(find_source(str(folder), DEFAULT_LOADING)) != before


def test_what_lies_beside_the_weights_does_not_change_the_digest(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    chosen = Loading(weights_file="model.safetensors")
    before = digest_weights(find_source(str(folder), chosen), chosen.weights_file)
    (folder / "README.md").write_text("Read me.")
    (folder / "tokenizer.model").write_bytes(b"x")  # tokenizer.json is what is read
    (folder / "other.safetensors").write_bytes(b"x")
    assert digest_weights(find_source(str(folder), chosen), chosen.weights_file) == before


def test_a_gguf_file_has_the_same_digest_under_any_name(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        digests.add(digest_weights(find_source(str(path), DEFAULT_LOADING)))
    assert len(digests) == 2
