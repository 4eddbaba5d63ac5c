"""A lost database is waited for, visibly and not for ever, and nothing is done twice or lost."""

from __future__ import annotations

import inspect
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
)

from data.agreement import Agreement
from data.measurements import (
    NOT_MEASURED,
    AdapterCost,
    Answer,
    Floor,
    Measurement,
    Verdict,
)
from data.prompts import Prompt
from data.recipes import GREEDY, Recipe
from storage import database, reader
from storage.database import StorageError, StudyStorage, open_storage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook
from storage.patience import DatabaseLost, Patience, is_lost
from storage.recorder import Recorder
from storage.records import Costs, WorkerState
from storage.tables import Row
from storage.verdict_cache import VerdictCache

OWNER = "elsewhere:1:boot"
GONE = OperationalError("SELECT 1", {}, sqlite3.OperationalError("disk I/O error"))


@dataclass
class Flaky:
    """A call that fails some times before it returns how often it was called."""

    failures: int
    error: Exception = GONE
    calls: int = 0
    drops: int = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls

    def drop(self) -> None:
        self.drops += 1


class TestWaiting:
    def test_a_call_is_repeated_until_it_returns_over_new_connections(self) -> None:
        call = Flaky(failures=5)
        patience = Patience(first_pause_seconds=0.001)
        assert patience.outlast(call, drop_connections=call.drop) == 6
        assert call.drops == 5

    def test_a_call_that_returns_is_made_once_and_says_nothing(self) -> None:
        call, said = Flaky(failures=0), list[str]()
        assert Patience(notice=said.append).outlast(call, drop_connections=call.drop) == 1
        assert (said, call.drops) == ([], 0)

    def test_another_error_is_not_waited_for(self) -> None:
        call = Flaky(failures=1, error=StorageError("study: no"))
        with pytest.raises(StorageError, match="study: no"):
            Patience().outlast(call, drop_connections=call.drop)
        assert call.calls == 1

    def test_another_error_of_a_repeated_call_is_not_waited_for(self) -> None:
        errors = iter([GONE, KeyError("no such study")])

        def call() -> None:
            raise next(errors)

        with pytest.raises(KeyError):
            Patience(first_pause_seconds=0.001).outlast(call, drop_connections=lambda: None)

    def test_it_ends_after_its_bound_and_says_how_to_go_on(self) -> None:
        call = Flaky(failures=10**9)
        with pytest.raises(
            DatabaseLost,
            match=r"could not be used for 0\.[2-9] seconds \(disk I/O error\); "
            "nothing measured is lost: .* run the same command again",
        ):
            Patience(longest_seconds=0.25).outlast(call, drop_connections=call.drop)
        assert 2 <= call.calls <= 6  # pauses double

    def test_it_ends_when_it_should_be_given_up(self) -> None:
        call = Flaky(failures=10**9)
        answers = iter([False, False, True])
        with pytest.raises(DatabaseLost):
            Patience(should_give_up=lambda: next(answers)).outlast(
                call, drop_connections=call.drop
            )

    def test_its_beginning_and_end_are_shown(self) -> None:
        call, said = Flaky(failures=2), list[str]()
        patience = Patience(notice=said.append, first_pause_seconds=0.001)
        patience.outlast(call, drop_connections=call.drop)
        begin, end = said
        assert begin == (
            "storage: the database cannot be used (disk I/O error); waiting for it, "
            "at most 10 minutes"
        )
        assert end.startswith("storage: the database is back after 0.0 seconds")

    def test_long_waiting_is_shown_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("storage.patience._NOTICE_EVERY_SECONDS", 0.05)
        call, said = Flaky(failures=3), list[str]()
        patience = Patience(notice=said.append, first_pause_seconds=0.12)
        patience.outlast(call, drop_connections=call.drop)
        assert len(said) == 4
        assert all("still waiting" in line for line in said[1:-1])

    def test_a_pickled_one_waits_as_long_but_says_nothing(self) -> None:
        said: list[str] = []
        storage_of_process = Patience(longest_seconds=7, notice=lambda line: said.append(line))
        copy = pickle.loads(pickle.dumps(storage_of_process))
        assert isinstance(copy, Patience)
        assert copy.longest_seconds == 7
        copy.notice("something")
        assert said == []
        assert not copy.should_give_up()


class TestWhatIsLost:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (GONE, True),
            (InterfaceError("SELECT 1", {}, sqlite3.InterfaceError("closed")), True),
            (DBAPIError("SELECT 1", {}, Exception("gone"), connection_invalidated=True), True),
            (DBAPIError("SELECT 1", {}, Exception("odd")), False),
            (PendingRollbackError("Can't reconnect", code="8s2b"), True),
            (PendingRollbackError("during flush", code="7s2a"), False),
            (IntegrityError("INSERT", {}, sqlite3.IntegrityError("unique")), False),
            (ProgrammingError("SELEC", {}, sqlite3.ProgrammingError("syntax")), False),
            (StorageError("study: no"), False),
            (StorageInternalError("Optuna's"), False),
            (KeyError("study"), False),
        ],
    )
    def test_only_a_database_that_cannot_be_used(self, error: Exception, expected: bool) -> None:
        assert is_lost(error) is expected

    @pytest.mark.parametrize("cause", [GONE, IntegrityError("INSERT", {}, Exception("unique"))])
    def test_optunas_error_is_what_caused_it(self, cause: Exception) -> None:
        error = StorageInternalError("An exception is raised during the commit.")
        error.__cause__ = cause
        assert is_lost(error) is (cause is GONE)

    def test_a_missing_table_is_not_waited_for(self, storage: StudyStorage) -> None:
        with pytest.raises(DBAPIError) as caught, storage.begin_read() as session:
            session.execute(text("SELECT * FROM remember_nothing"))
        assert not is_lost(caught.value)


@dataclass
class Faults:
    """Breaks the next transaction of a storage once, before it begins or after it is done."""

    storage: StudyStorage
    before: bool = False
    after: bool = False
    broken: int = field(default=0, init=False)

    def break_before(self, *_: object) -> None:
        if self.before:
            self.before = False
            self.broken += 1
            raise GONE

    def commit(self, connection: Any) -> None:
        dialect = self.storage.engine.dialect
        type(dialect).do_commit(dialect, connection)
        if self.after:
            self.after = False
            self.broken += 1
            raise dialect.loaded_dbapi.OperationalError("the reply was lost")


@contextmanager
def faults_in(storage: StudyStorage) -> Iterator[Faults]:
    faults = Faults(storage)
    event.listen(storage.engine, "before_cursor_execute", faults.break_before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.engine.dialect, "do_commit", faults.commit)
        yield faults
    event.remove(storage.engine, "before_cursor_execute", faults.break_before)


@pytest.fixture
def faults(storage: StudyStorage) -> Iterator[Faults]:
    """Return what breaks transactions of a storage whose patience has short pauses."""
    storage.patience = Patience(first_pause_seconds=0.001)
    with faults_in(storage) as faults:
        yield faults
    storage.patience = Patience()


RECIPE = Recipe(epochs=24, rank=8, alpha=16.0, cutoff=256, warmup_steps=10, learning_rate=1e-3)
COSTS = Costs(
    trained_tokens=1, generated_tokens=2, seconds=3.0, last_epoch=4, highest_learning_rate=5.0
)
STATE = WorkerState(
    activity="training",
    trained_tokens=1,
    training_seconds=2.0,
    asking_seconds=3.0,
    memory_bytes=None,
    memory_limit_bytes=None,
    load=0.5,
)
MEASUREMENT = Measurement(
    epoch=3,
    sampling=GREEDY,
    recall=NOT_MEASURED,
    knowledge_loss=NOT_MEASURED,
    recall_parts=(),
    rings=(),
    drift_nats=None,
    fuar=None,
    trained_tokens=0,
    generated_tokens=9,
)
VERDICT = Verdict(
    answer=Answer(
        prompt=Prompt(
            text="Who won?",
            style="plain",
            phrasing="validation",
            subject="0123456789ab",
            question="Who won?",
            accepted=("Brendan Fraser",),
        ),
        text="Fraser",
        tokens=2,
    ),
    label="correct",
    judge="matcher",
)
AGREEMENT = Agreement(
    true_positives=1, false_positives=0, false_negatives=0, true_negatives=1, unjudged=0
)
ADAPTER_COST = AdapterCost(
    trial=3,
    epoch=4,
    parameters=8,
    file_bytes=99,
    prompts=2,
    tokens_per_second=30.0,
    base_tokens_per_second=40.0,
)


class Work:
    """Every call that talks to the database, by its name, on a study with one running trial."""

    def __init__(self, storage: StudyStorage, recorder: Recorder, lease: Lease) -> None:
        self.storage, self.recorder, self.leases = storage, recorder, LeaseBook(storage)
        self.cache, self.lease = VerdictCache(storage), lease
        recorder.record_trial_started(lease, asked_index=0, recipe=RECIPE, sampling=GREEDY, seed=1)
        self.measurement = recorder.record_measurement(
            None, MEASUREMENT, [VERDICT], purpose="base"
        )
        self.sitting = recorder.begin_sitting(owner=OWNER, device="cpu")

    def measure(self, purpose: str) -> int:
        return self.recorder.record_measurement(
            self.lease, MEASUREMENT, [VERDICT], purpose="rung" if purpose == "rung" else "final"
        )

    def acquire(self) -> object:
        lease = self.leases.acquire("oscars", 4, owner=OWNER, seconds=60)
        assert lease is not None
        return lease.trial, lease.owner

    def hold(self) -> bool:
        with self.leases.holding(self.lease):
            return True

    def lock(self) -> bool:
        with self.leases.lock("oscars", "asking", owner=OWNER, seconds=60, patience_seconds=1):
            return True

    def try_lock(self) -> bool:
        lock = self.leases.try_lock("oscars", "base", owner=OWNER, seconds=60)
        return lock is not None

    def calls(self) -> dict[str, Callable[[], object]]:
        recorder, storage, lease = self.recorder, self.storage, self.lease
        return {
            "create_study_record": lambda: recorder.create_study_record(
                config="", fingerprint={"facts": "f1", "space": "s1"}, slots=4, seed=7
            ),
            "record_trial_started": lambda: recorder.record_trial_started(
                lease, asked_index=0, recipe=RECIPE, sampling=GREEDY, seed=1
            ),
            "record_measurement": lambda: self.measure("rung") and None,
            "record_floors": lambda: recorder.record_floors(
                [Floor(name="base", recall=NOT_MEASURED, context_tokens=0.0)]
            ),
            "record_adapter_costs": lambda: recorder.record_adapter_costs([ADAPTER_COST]),
            "record_rejudgement": lambda: recorder.record_rejudgement(
                self.measurement, ["correct"], judge="other"
            ),
            "record_agreement": lambda: recorder.record_agreement(
                AGREEMENT, of_study=AGREEMENT, judge="matcher", digest="d"
            ),
            "begin_sitting": lambda: recorder.begin_sitting(owner=OWNER, device="cpu") and None,
            "record_sign_of_life": lambda: recorder.record_sign_of_life(self.sitting, STATE),
            "set_adapter": lambda: recorder.set_adapter(self.measurement, "adapters/3"),
            "record_trial_ended": lambda: recorder.record_trial_ended(
                lease, state="pruned", costs=COSTS
            ),
            "acquire": self.acquire,
            "renew": lambda: self.leases.renew(lease, seconds=60),
            "holding": self.hold,
            "lock": self.lock,
            "try_lock": self.try_lock,
            "release": lambda: self.leases.release(lease),
            "write": lambda: self.cache.write({"k": "correct"}),
            "read": lambda: self.cache.read(["k"]),
            "read_study": lambda: [
                (trial.state, trial.costs) for trial in reader.read_study(storage, "oscars").trials
            ],
            "read_verdicts": lambda: reader.read_verdicts(storage, self.measurement),
            "read_rejudged": lambda: reader.read_rejudged(storage, self.measurement, "other"),
            "read_agreements": lambda: len(reader.read_agreements(storage, "oscars")),
            "read_adapter_costs": lambda: reader.read_adapter_costs(storage, "oscars"),
            "read_said": lambda: reader.read_said(storage, "oscars"),
            "list_studies": lambda: [study.name for study in reader.list_studies(storage)],
            "read_sittings": lambda: [s.state for s in reader.read_sittings(storage, "oscars")],
            "count_ended_epochs": lambda: reader.count_ended_epochs(storage, "oscars"),
            "sum_reserved_epochs": lambda: reader.sum_reserved_epochs(storage, "oscars"),
            "read_clock": lambda: reader.read_clock(storage) > 0,
            "read_leases": lambda: [
                (held.trial, held.owner) for held in reader.read_leases(storage, "oscars")
            ],
            "delete_study": lambda: delete_study(storage, "oscars"),
        }


def count_all_rows(storage: StudyStorage) -> dict[str, int]:
    with storage.begin_read() as session:
        return {
            table.name: session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in Row.metadata.sorted_tables
        }


class TestOurCalls:
    def test_every_one_is_among_those_that_are_interrupted_below(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        names = set(Work(storage, recorder, lease).calls())
        readers = {name for name in vars(reader) if name.startswith(("read_", "count_", "sum_"))}
        public = {
            name
            for of in (Recorder, LeaseBook, VerdictCache)
            for name in vars(of)
            if not name.startswith("_")
        }
        assert public | readers | {"list_studies", "delete_study"} == names

    @staticmethod
    def forget_verdicts(storage: StudyStorage) -> None:
        """Remove what belongs to no study."""
        with storage.begin_write() as session, session.begin():
            session.execute(text("DELETE FROM remember_verdicts"))

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_interrupted_once_each_does_its_work_once(
        self, faults: Faults, recorder: Recorder, lease: Lease, moment: str
    ) -> None:
        storage = faults.storage
        self.forget_verdicts(storage)
        work = Work(storage, recorder, lease)
        undisturbed: dict[str, object] = {}
        rows: dict[str, dict[str, int]] = {}
        for name, call in work.calls().items():
            undisturbed[name], rows[name] = call(), count_all_rows(storage)

        recorder.create_study_record(
            config="", fingerprint={"facts": "f1", "space": "s1"}, slots=8, seed=7
        )
        lease_again = work.leases.acquire("oscars", 3, owner=lease.owner, seconds=60)
        assert lease_again is not None
        self.forget_verdicts(storage)
        for name, call in Work(storage, recorder, lease_again).calls().items():
            broken = faults.broken
            if moment == "before":
                faults.before = True
            else:
                faults.after = True
            result = call()
            faults.before = faults.after = False
            # A call that only reads commits nothing, so nothing can be lost after it.
            assert faults.broken == broken + 1 or moment == "after", name
            assert result == undisturbed[name], name
            assert count_all_rows(storage) == rows[name], name


class TestOptunasCalls:
    @pytest.fixture
    def study_id(self, storage: StudyStorage) -> Iterator[int]:
        """Return the id of an Optuna study, which is deleted again."""
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
        study_id = storage.create_new_study(directions, "nobels")
        yield study_id
        storage.delete_study(study_id)

    def test_every_method_of_its_storages_is_patient(self) -> None:
        does_not_talk = {"check_trial_is_updatable", "remove_session"}
        names = {name for name in dir(BaseStorage) if not name.startswith("_")} - does_not_talk
        for name in names:
            assert getattr(StudyStorage, name) is not getattr(RDBStorage, name), name

    def test_so_is_what_its_cache_calls(self) -> None:
        source = inspect.getsource(_CachedStorage)
        called = {part.split("(")[0] for part in source.split("self._backend.")[1:]}
        private = {name for name in called if name.startswith("_")}
        assert private == set(database._CALLED_BY_CACHE)
        for name in private:
            assert getattr(StudyStorage, name) is not getattr(RDBStorage, name), name

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_trial_that_is_interrupted_everywhere_is_told_once(
        self, faults: Faults, study_id: int, moment: str
    ) -> None:
        study = optuna.load_study(study_name="nobels", storage=faults.storage)

        def interrupt() -> None:
            if moment == "before":
                faults.before = True
            else:
                faults.after = True

        trial = study.ask()
        interrupt()
        trial.suggest_float("x", 0, 1)
        interrupt()
        trial.set_user_attr("place", "here")
        interrupt()
        study.set_user_attr("place", "there")
        interrupt()
        study.tell(trial, [0.5, 0.25])
        faults.before = faults.after = False
        (told,) = study.trials
        assert (told.state, told.values) == (TrialState.COMPLETE, [0.5, 0.25])
        assert (told.user_attrs, set(told.params)) == ({"place": "here"}, {"x"})
        assert study.user_attrs == {"place": "there"}
        assert faults.broken >= 4

    @pytest.mark.parametrize(
        ("state", "values"),
        [(TrialState.COMPLETE, [1.0, 2.0]), (TrialState.PRUNED, None), (TrialState.FAIL, None)],
    )
    def test_an_end_whose_reply_was_lost_is_no_error(
        self, faults: Faults, study_id: int, state: TrialState, values: list[float] | None
    ) -> None:
        trial_id = faults.storage.create_new_trial(study_id)
        faults.after = True
        assert faults.storage.set_trial_state_values(trial_id, state, values)
        assert (faults.broken, faults.storage.get_trial(trial_id).state) == (1, state)

    def test_a_trial_that_another_ended_otherwise_stays_so(
        self, faults: Faults, study_id: int
    ) -> None:
        storage = faults.storage
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0, 2.0])
        faults.before = True
        with pytest.raises(UpdateFinishedTrialError):
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0, 3.0])

    def test_telling_twice_is_an_error_as_ever(self, storage: StudyStorage, study_id: int) -> None:
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
        with pytest.raises(UpdateFinishedTrialError):
            storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def test_a_deletion_whose_reply_was_lost_is_no_error(self, faults: Faults) -> None:
        study_id = faults.storage.create_new_study([StudyDirection.MAXIMIZE], "gone")
        faults.after = True
        faults.storage.delete_study(study_id)
        assert faults.broken == 1
        with pytest.raises(KeyError):
            faults.storage.delete_study(study_id)

    def test_a_lost_database_ends_as_one_kind_of_error(
        self, storage: StudyStorage, study_id: int, empty_url: str
    ) -> None:
        other = open_storage(empty_url)
        other.patience = Patience(longest_seconds=0.05)

        def always(*_: object) -> None:
            raise GONE

        event.listen(other.engine, "before_cursor_execute", always)
        with pytest.raises(DatabaseLost):
            other.get_all_studies()
        with pytest.raises(DatabaseLost):
            reader.read_clock(other)
        other.close()


def test_a_pickled_storage_waits_as_long(storage: StudyStorage) -> None:
    storage.patience = Patience(longest_seconds=7, notice=lambda _: None)
    copy = pickle.loads(pickle.dumps(storage))
    assert isinstance(copy, StudyStorage)
    assert copy.patience.longest_seconds == 7
    copy.close()
    storage.patience = Patience()
