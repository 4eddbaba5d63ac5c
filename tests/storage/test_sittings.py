"""Sittings: who works on a study, where, with what, and for how long."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from data.recipes import GREEDY, Recipe
from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.leases import Lease, LeaseBook
from storage.reader import count_ended_epochs, read_clock, read_sittings, sum_reserved_epochs
from storage.recorder import Recorder
from storage.records import Costs, SittingRecord, WorkerState

ADA = "elsewhere-1:100:boot"
ADAS_NEIGHBOUR = "elsewhere-1:101:boot"
BEN = "elsewhere-2:100:boot"
TRAINING = WorkerState(
    activity="training",
    trained_tokens=2**40,
    training_seconds=12.5,
    asking_seconds=0.1 + 0.2,
    memory_bytes=2**36,
    memory_limit_bytes=None,
    load=None,
)


def only_sitting(storage: StudyStorage) -> SittingRecord:
    (sitting,) = read_sittings(storage, "oscars")
    return sitting


def last_seen_seconds_ago(storage: StudyStorage, seconds: float) -> None:
    with storage.begin_write() as session, session.begin():
        session.execute(
            text("UPDATE remember_sittings SET seen_at_seconds = seen_at_seconds - :seconds"),
            {"seconds": seconds},
        )


class TestSittings:
    def test_a_new_one_is_read_back(self, storage: StudyStorage, recorder: Recorder) -> None:
        versions = {"torch": "2.13.0", "python": "3.11.7"}
        id_ = recorder.begin_sitting(owner=ADA, device="cuda:1", slots=4, versions=versions)
        sitting = only_sitting(storage)
        assert sitting.versions == versions
        now = read_clock(storage)
        assert (sitting.id, sitting.owner, sitting.device, sitting.slots) == (
            id_,
            ADA,
            "cuda:1",
            4,
        )
        assert (sitting.state, sitting.ended_at_seconds) == (None, None)
        assert now - 5 < sitting.began_at_seconds <= sitting.seen_at_seconds <= now

    def test_every_beginning_is_another_sitting(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        ids = [recorder.begin_sitting(owner=ADA, device="cpu") for _ in range(2)]
        assert [sitting.id for sitting in read_sittings(storage, "oscars")] == ids

    def test_it_needs_a_study(self, storage: StudyStorage) -> None:
        with pytest.raises(StudyNotFound):
            Recorder(storage, "nobels").begin_sitting(owner=ADA, device="cpu")

    def test_a_sign_of_life_moves_only_the_time_it_was_seen(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = recorder.begin_sitting(owner=ADA, device="cpu")
        before = only_sitting(storage)
        time.sleep(0.05)
        recorder.record_sign_of_life(id_)
        seen = only_sitting(storage)
        recorder.record_sign_of_life(id_)
        prolonged = only_sitting(storage)
        assert before.seen_at_seconds < seen.seen_at_seconds <= prolonged.seen_at_seconds
        assert prolonged.began_at_seconds == before.began_at_seconds
        assert (prolonged.state, prolonged.ended_at_seconds) == (None, None)

    def test_the_last_state_is_read_back_equal(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = recorder.begin_sitting(owner=ADA, device="cpu")
        recorder.record_sign_of_life(id_, TRAINING)
        assert only_sitting(storage).state == TRAINING
        recorder.record_sign_of_life(id_)
        assert only_sitting(storage).state == TRAINING

    def test_its_end_is_by_the_databases_clock(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = recorder.begin_sitting(owner=ADA, device="cpu")
        recorder.record_sign_of_life(id_, TRAINING, has_ended=True)
        ended = only_sitting(storage).ended_at_seconds
        assert ended is not None
        assert read_clock(storage) - 5 < ended <= read_clock(storage)
        recorder.record_sign_of_life(id_)
        assert only_sitting(storage).ended_at_seconds == ended

    def test_a_sign_for_another_study_changes_nothing(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = recorder.begin_sitting(owner=ADA, device="cpu")
        other = Recorder(storage, "nobels")
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        before = only_sitting(storage)
        other.record_sign_of_life(id_, TRAINING, has_ended=True)
        assert only_sitting(storage) == before


class TestSeveralHosts:
    @pytest.fixture
    def is_file(self, storage: StudyStorage) -> bool:
        """Return whether the database is a file, which hosts cannot share."""
        return storage.engine.dialect.name == "sqlite"

    def test_a_file_is_used_by_one_at_a_time_and_a_server_by_all(
        self, storage: StudyStorage, recorder: Recorder, is_file: bool
    ) -> None:
        recorder.begin_sitting(owner=ADA, device="cpu")
        other = Recorder(storage, "nobels")  # locks are the whole file's
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        if is_file:
            with pytest.raises(
                StorageError,
                match=r"host elsewhere-1 uses this SQLite .*elsewhere-2 .* use PostgreSQL",
            ):
                other.begin_sitting(owner=BEN, device="cpu")
            assert read_sittings(storage, "nobels") == ()
        else:
            other.begin_sitting(owner=BEN, device="cpu")
            assert len(read_sittings(storage, "nobels")) == 1

    def test_workers_of_one_host_share_a_file(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        recorder.begin_sitting(owner=ADA, device="cuda:0")
        recorder.begin_sitting(owner=ADAS_NEIGHBOUR, device="cuda:1")
        assert len(read_sittings(storage, "oscars")) == 2

    def test_a_host_that_has_left_is_in_nobodys_way(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = recorder.begin_sitting(owner=ADA, device="cpu")
        recorder.record_sign_of_life(id_, has_ended=True)
        recorder.begin_sitting(owner=BEN, device="cpu")

    def test_a_host_that_was_not_seen_for_three_minutes_is_in_nobodys_way(
        self, storage: StudyStorage, recorder: Recorder, is_file: bool
    ) -> None:
        recorder.begin_sitting(owner=ADA, device="cpu")
        last_seen_seconds_ago(storage, 170)
        if is_file:
            with pytest.raises(StorageError, match=r"seen 17\d seconds ago"):
                recorder.begin_sitting(owner=BEN, device="cpu")
        last_seen_seconds_ago(storage, 11)
        recorder.begin_sitting(owner=BEN, device="cpu")


class TestEpochs:
    def test_running_trials_reserve_all_that_their_recipe_asks_for(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        assert sum_reserved_epochs(storage, "oscars") == 0
        recipe = Recipe(
            epochs=24, rank=8, alpha=16.0, cutoff=256, warmup_steps=10, learning_rate=1e-3
        )
        second = LeaseBook(storage).acquire("oscars", 4, owner=lease.owner, seconds=60)
        assert second is not None
        for index, held in enumerate((lease, second)):
            recorder.record_trial_started(
                held, asked_index=index, recipe=recipe, sampling=GREEDY, seed=1
            )
        assert (sum_reserved_epochs(storage, "oscars"), count_ended_epochs(storage, "oscars")) == (
            48,
            0,
        )
        costs = Costs(
            trained_tokens=1,
            generated_tokens=2,
            seconds=3.0,
            last_epoch=9,
            highest_learning_rate=1e-3,
        )
        recorder.record_trial_ended(second, state="pruned", costs=costs)
        assert sum_reserved_epochs(storage, "oscars") == 24 + 9
        assert count_ended_epochs(storage, "oscars") == 9
        assert sum_reserved_epochs(storage, "nobels") == 0
