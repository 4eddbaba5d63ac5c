"""A storage for every kind of database, and measurements to put into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import StudyStorage, open_storage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook, describe_this_process
from storage.reader import list_studies
from storage.recorder import Recorder
from tests.storage.postgresql_server import fresh_database, running_postgresql

KINDS = ["sqlite", "server"]


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Return the URL of a database server, on which every test makes its own databases."""
    with running_postgresql() as url:
        yield url


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of every kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return fresh_database(request.getfixturevalue("server_url"))


@pytest.fixture(scope="module", params=KINDS)
def _opened_storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StudyStorage]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('storage')}/study.db"
    else:
        url = fresh_database(request.getfixturevalue("server_url"))
    opened = open_storage(url)
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
