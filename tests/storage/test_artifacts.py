"""Artifacts are whole or not there, keep within their budget, and can be removed at any time."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path
from typing import BinaryIO

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound

from storage.artifacts import Artifact, ArtifactError, ArtifactFolder, Refusal, StudyArtifacts
from storage.database import StudyStorage
from storage.recorder import Recorder

ID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def study(storage: StudyStorage, recorder: Recorder) -> optuna.Study:
    """Return Optuna's study "oscars" with one running trial, number 0."""
    created = optuna.create_study(
        study_name="oscars", storage=storage, directions=["maximize", "minimize"]
    )
    created.ask()
    return created


@pytest.fixture
def artifacts(tmp_path: Path, storage: StudyStorage, study: optuna.Study) -> StudyArtifacts:
    return StudyArtifacts(tmp_path / "artifacts", storage, "oscars", limit_bytes=1000)


def keep(artifacts: StudyArtifacts, content: bytes, name: str = "curve.jsonl") -> Artifact:
    uploaded = artifacts.upload(0, name, lambda file: file.write(content))
    assert isinstance(uploaded, Artifact)
    return uploaded


def files(artifacts: StudyArtifacts) -> list[str]:
    return [path.name for path, _ in artifacts.store.files()]


class TestUpload:
    def test_optuna_lists_and_downloads_it(
        self, tmp_path: Path, study: optuna.Study, artifacts: StudyArtifacts
    ) -> None:
        uploaded = artifacts.upload(
            0, "curve.jsonl", lambda file: file.write(b"one\n"), mimetype="application/jsonl"
        )
        assert isinstance(uploaded, Artifact)
        assert (uploaded.trial, uploaded.filename, uploaded.size_bytes) == (0, "curve.jsonl", 4)
        trial = study.get_trials()[0]
        (listed,) = get_all_artifact_meta(trial, storage=study._storage)
        assert (listed.artifact_id, listed.filename, listed.mimetype, listed.encoding) == (
            uploaded.id,
            "curve.jsonl",
            "application/jsonl",
            None,
        )
        download_artifact(
            artifact_store=FileSystemArtifactStore(tmp_path / "artifacts"),
            artifact_id=uploaded.id,
            file_path=str(tmp_path / "copy"),
        )
        assert (tmp_path / "copy").read_bytes() == b"one\n"
        assert artifacts.list() == artifacts.list(0) == (uploaded,)
        assert artifacts.list(1) == ()

    def test_the_file_is_complete_before_the_database_mentions_it(
        self, artifacts: StudyArtifacts
    ) -> None:
        seen = []

        def write(file: BinaryIO) -> None:
            file.write(b"half")
            seen.append((artifacts.list(), [name.endswith(".part") for name in files(artifacts)]))

        artifacts.upload(0, "adapter.zip", write)
        assert seen == [((), [True])]
        assert [name.endswith(".part") for name in files(artifacts)] == [False]

    def test_an_upload_of_the_same_name_takes_the_place_of_the_earlier_one(
        self, artifacts: StudyArtifacts
    ) -> None:
        keep(artifacts, b"first")
        other = keep(artifacts, b"other", "adapter.zip")
        second = keep(artifacts, b"second")
        assert artifacts.list() == (other, second)
        assert sorted(files(artifacts)) == sorted([other.id, second.id])

    def test_a_crash_while_writing_leaves_nothing(self, artifacts: StudyArtifacts) -> None:
        def write(file: BinaryIO) -> None:
            file.write(b"half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            artifacts.upload(0, "adapter.zip", write)
        assert files(artifacts) == []
        assert artifacts.list() == ()

    def test_a_trial_that_has_ended_takes_nothing(
        self, study: optuna.Study, artifacts: StudyArtifacts
    ) -> None:
        study.tell(0, values=[0.5, 0.1])
        refused = artifacts.upload(0, "curve.jsonl", lambda file: file.write(b"late"))
        assert refused == Refusal(reason="curve.jsonl was not kept: trial 0 has ended already")
        assert files(artifacts) == []

    def test_an_unknown_trial_is_an_error_and_leaves_nothing(
        self, artifacts: StudyArtifacts
    ) -> None:
        with pytest.raises(KeyError):
            artifacts.upload(7, "curve.jsonl", lambda file: file.write(b"whose?"))
        assert files(artifacts) == []


class TestBudget:
    def test_up_to_the_limit_is_kept_and_a_byte_more_is_refused(
        self, artifacts: StudyArtifacts
    ) -> None:
        first = keep(artifacts, b"x" * 999)
        assert artifacts.total_bytes == 999
        second = keep(artifacts, b"x", "last.txt")
        refused = artifacts.upload(0, "more.txt", lambda file: file.write(b"x" * 60_000))
        assert isinstance(refused, Refusal)
        assert refused.reason.startswith("more.txt of trial 0 (0.1 MB) was not kept: ")
        assert "would exceed their 0.0 MB by 0.1 MB; remove some, or allow more" in refused.reason
        assert artifacts.list() == (first, second)
        assert artifacts.total_bytes == 1000

    def test_what_is_removed_makes_room(self, artifacts: StudyArtifacts) -> None:
        large = keep(artifacts, b"x" * 900)
        assert isinstance(
            artifacts.upload(0, "next", lambda file: file.write(b"x" * 200)), Refusal
        )
        assert artifacts.remove(large.id)
        keep(artifacts, b"x" * 200, "next")

    def test_what_another_worker_is_writing_counts(self, artifacts: StudyArtifacts) -> None:
        with artifacts.store.writing(ID) as file:
            file.write(b"x" * 900)
            file.flush()
            refused = artifacts.upload(0, "mine", lambda other: other.write(b"x" * 200))
        assert isinstance(refused, Refusal)
        assert artifacts.total_bytes == 900


class TestRemoving:
    def test_it_is_removed_from_a_trial_that_has_ended(
        self, study: optuna.Study, artifacts: StudyArtifacts
    ) -> None:
        kept = keep(artifacts, b"stays", "curve.jsonl")
        gone = keep(artifacts, b"goes", "adapter.zip")
        study.tell(0, values=[0.5, 0.1])
        assert artifacts.remove(gone.id)
        assert artifacts.list() == (kept,)
        assert files(artifacts) == [kept.id]
        # Read anew, for Optuna keeps what it has read of trials that have ended.
        (frozen,) = artifacts._storage.get_all_trials(study._study_id)
        assert [key for key in frozen.system_attrs if key.startswith("artifacts:")] == [
            f"artifacts:{kept.id}"
        ]
        assert frozen.values == [0.5, 0.1]

    def test_removing_it_again_does_nothing(self, artifacts: StudyArtifacts) -> None:
        kept = keep(artifacts, b"once")
        assert artifacts.remove(kept.id)
        assert not artifacts.remove(kept.id)

    def test_one_whose_file_is_gone_is_listed_without_a_size_and_can_be_removed(
        self, artifacts: StudyArtifacts
    ) -> None:
        kept = keep(artifacts, b"lost")
        artifacts.store.remove(kept.id)
        (listed,) = artifacts.list()
        assert (listed.id, listed.size_bytes) == (kept.id, None)
        assert artifacts.remove(kept.id)
        assert artifacts.list() == ()

    def test_another_study_keeps_its_own(
        self, tmp_path: Path, storage: StudyStorage, artifacts: StudyArtifacts
    ) -> None:
        kept = keep(artifacts, b"ours")
        Recorder(storage, "nobels").create_study_record(config="", fingerprint={}, slots=1, seed=0)
        optuna.create_study(study_name="nobels", storage=storage)
        other = StudyArtifacts(tmp_path / "other", storage, "nobels", limit_bytes=1000)
        assert other.list() == ()
        assert not other.remove(kept.id)
        assert artifacts.list() == (kept,)

    def test_what_was_removed_in_the_dashboard_is_not_listed(
        self, study: optuna.Study, artifacts: StudyArtifacts
    ) -> None:
        kept = keep(artifacts, b"clicked away")
        trial = study.get_trials()[0]
        study._storage.set_trial_system_attr(trial._trial_id, f"artifacts:{kept.id}", "null")
        assert artifacts.list() == ()


class TestLeftovers:
    def test_they_are_old_files_that_nothing_mentions(self, artifacts: StudyArtifacts) -> None:
        kept = keep(artifacts, b"known")
        artifacts.store.write(ID, io.BytesIO(b"of a deleted study"))
        (unfinished := artifacts.store.path(ID).with_name(".x.part")).write_bytes(b"of a crash")
        assert artifacts.leftovers() == ()  # they may be uploads that are under way
        long_ago = time.time() - 7200
        for path, _ in artifacts.store.files():
            os.utime(path, (long_ago, long_ago))
        assert artifacts.leftovers() == (unfinished, artifacts.store.path(ID))
        assert artifacts.store.path(kept.id).exists()

    def test_there_are_none_without_a_folder(self, artifacts: StudyArtifacts) -> None:
        assert artifacts.leftovers(older_than_seconds=0) == ()
        assert artifacts.total_bytes == 0


class TestDiskTrouble:
    def test_a_full_disk_is_one_message_and_leaves_nothing(
        self, artifacts: StudyArtifacts
    ) -> None:
        def write(file: BinaryIO) -> None:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(ArtifactError) as caught:
            artifacts.upload(0, "adapter.zip", write)
        message = str(caught.value)
        assert message.startswith("artifact: adapter.zip of trial 0 cannot be written to ")
        assert "(No space left on device; " in message
        assert " MB are free there)" in message
        assert "free some space" in message
        assert "all that was measured is in the database" in message
        assert files(artifacts) == []
        assert artifacts.list() == ()

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
    def test_a_disk_that_is_found_full_only_when_written_to(
        self, artifacts: StudyArtifacts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The operating system itself says so, at the flush at the end.
        def onto_full_device(path: Path, mode: str = "r") -> BinaryIO:
            path.touch()
            return io.open("/dev/full", "wb")  # noqa: UP020 - Path.open itself is replaced

        with monkeypatch.context() as full:
            full.setattr(Path, "open", onto_full_device)
            with pytest.raises(ArtifactError, match="No space left on device"):
                artifacts.upload(0, "adapter.zip", lambda file: file.write(b"x" * 100))
        assert files(artifacts) == []

    def test_a_file_in_place_of_the_folder(
        self, tmp_path: Path, artifacts: StudyArtifacts
    ) -> None:
        (tmp_path / "artifacts").write_text("a file")
        with pytest.raises(ArtifactError, match=r"cannot be written to .*artifacts"):
            artifacts.upload(0, "adapter.zip", lambda file: file.write(b"x"))


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> ArtifactFolder:
        return ArtifactFolder(tmp_path / "artifacts")

    def test_what_is_written_is_read(self, folder: ArtifactFolder) -> None:
        folder.write(ID, io.BytesIO(b"content"))
        with folder.open_reader(ID) as file:
            assert file.read() == b"content"
        folder.remove(ID)
        with pytest.raises(ArtifactNotFound):
            folder.open_reader(ID)
        with pytest.raises(ArtifactNotFound):
            folder.remove(ID)

    @pytest.mark.parametrize("artifact_id", ["../secret", "/etc/passwd", "", "a/b", "..", "a\n"])
    def test_an_id_names_no_file_elsewhere(
        self, tmp_path: Path, folder: ArtifactFolder, artifact_id: str
    ) -> None:
        (tmp_path / "secret").write_text("secret")
        with pytest.raises(ArtifactNotFound):
            folder.open_reader(artifact_id)
        with pytest.raises(ValueError, match="is not an artifact's id"):
            folder.write(artifact_id, io.BytesIO(b"x"))
        assert (tmp_path / "secret").read_text() == "secret"
