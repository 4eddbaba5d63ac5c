"""A storage for every kind of database, and measurements to put into it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from storage.database import StudyStorage, open_storage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook, describe_this_process
from storage.reader import list_studies
from storage.recorder import Recorder

# A server's database joins the contract when its URL is given; its studies are deleted again.
_SERVERS = [os.environ["TEST_DB_URL"]] if "TEST_DB_URL" in os.environ else []


@pytest.fixture(
    scope="module", params=["sqlite", *_SERVERS], ids=lambda url: str(url).split(":")[0]
)
def _opened_storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StudyStorage]:
    file = tmp_path_factory.mktemp("storage") / "study.db"
    opened = open_storage(f"sqlite:///{file}" if request.param == "sqlite" else request.param)
    yield opened
    opened.close()


@pytest.fixture
def storage(_opened_storage: StudyStorage) -> Iterator[StudyStorage]:
    """Return a storage without studies."""
    yield _opened_storage
    for study in list_studies(_opened_storage):
        delete_study(_opened_storage, study.name)


@pytest.fixture
def recorder(storage: StudyStorage) -> Recorder:
    """Return the recorder of a study "oscars" that has just been created."""
    recorder = Recorder(storage, "oscars")
    recorder.create_study_record(
        config="trials = 40\n", fingerprint={"facts": "f1", "space": "s1"}, slots=8, seed=7
    )
    return recorder


@pytest.fixture
def lease(storage: StudyStorage, recorder: Recorder) -> Lease:
    """Return a lease of a minute on trial 3 of "oscars", held by this process."""
    held = LeaseBook(storage).acquire("oscars", 3, owner=describe_this_process(), seconds=60)
    assert held is not None
    return held
