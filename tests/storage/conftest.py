"""A storage for every kind of database, and measurements to put into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import StudyStorage, open_storage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook, describe_this_process
from storage.reader import list_studies
from storage.recorder import Recorder

# A server's database joins the contract when its URL is given; its studies are deleted again.
_SERVERS = [os.environ["TEST_DB_URL"]] if "TEST_DB_URL" in os.environ else []


@pytest.fixture(params=["sqlite", *_SERVERS], ids=lambda url: url.split(":")[0])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StudyStorage]:
    """Return an empty storage."""
    is_file = request.param == "sqlite"
    opened = open_storage(f"sqlite:///{tmp_path}/study.db" if is_file else request.param)
    yield opened
    for study in list_studies(opened):
        delete_study(opened, study.name)
    opened.close()


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
