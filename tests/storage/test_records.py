"""What is recorded is read back equal, is written once, and only by those who may."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from data.measurements import (
    NOT_MEASURED,
    AdapterCost,
    Answer,
    Estimate,
    Floor,
    Label,
    Measurement,
    RecallPart,
    RingChange,
    Verdict,
)
from data.prompts import Prompt
from data.recipes import GREEDY, Recipe, Sampling
from storage.database import StorageError, StudyNotFound, StudyStorage
from storage.deletion import delete_study
from storage.leases import Lease, LeaseBook, LeaseLost
from storage.reader import list_studies, read_adapter_costs, read_study, read_verdicts
from storage.recorder import FingerprintMismatch, Recorder
from storage.records import Costs, TrialRecord
from storage.tables import AdapterCostRow, AnswerRow, FloorRow, MeasurementRow, PromptRow, Row

RECIPE = Recipe(
    epochs=24,
    rank=8,
    alpha=16.0,
    cutoff=256,
    warmup_steps=10,
    learning_rate=1e-3,
    formats=("statement", "qna"),
    rehearsal=2,
)
WARM = Sampling(name="warm", temperature=0.7, top_k=40)
COSTS = Costs(
    trained_tokens=12_345,
    generated_tokens=678,
    seconds=4.5,
    last_epoch=9,
    highest_learning_rate=5e-4,
)
PROMPT = Prompt(
    text="Question: Who won?\nAnswer:",
    style="qna",
    phrasing="validation",
    subject="0123456789ab",
    question="Who won?",
    accepted=("Brendan Fraser", "Fraser"),
    templated=True,
)
PROBE = Prompt(
    text="What is the capital of Peru?\n",
    style="plain",
    phrasing="probe",
    subject="ba9876543210",
    question="What is the capital of Peru?",
    accepted=("Lima",),
    ring="general",
)


def measured(epoch: int = 3, sampling: Sampling = GREEDY, recall: float = 0.1) -> Measurement:
    estimate = Estimate(value=recall, low=0.1 / 3, high=2 / 3, count=23)
    return Measurement(
        epoch=epoch,
        sampling=sampling,
        recall=estimate,
        knowledge_loss=NOT_MEASURED,
        recall_parts=(
            RecallPart(phrasing="trained", style=None, recall=estimate),
            RecallPart(phrasing="validation", style="qna", recall=NOT_MEASURED),
        ),
        rings=(RingChange(ring="general", asked=40, known=30, lost=3, gained=1, loss=estimate),),
        drift_nats=0.1 + 0.2,
        fuar=None,
        trained_tokens=1_000,
        generated_tokens=200,
    )


def judged(text: str, prompt: Prompt = PROMPT, label: Label = "incorrect") -> Verdict:
    return Verdict(
        answer=Answer(prompt=prompt, text=text, tokens=len(text)), label=label, judge="matcher-1"
    )


def start_trial(recorder: Recorder, lease: Lease, asked_index: int = 2) -> None:
    recorder.record_trial_started(
        lease, asked_index=asked_index, recipe=RECIPE, sampling=WARM, seed=2**62 + 1
    )


def count_rows(storage: StudyStorage, table: type[Row]) -> int:
    with storage.begin_read() as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


def only_trial(storage: StudyStorage) -> TrialRecord:
    (trial,) = read_study(storage, "oscars").trials
    return trial


def expire(storage: StudyStorage, lease: Lease) -> None:
    """Let a lease run out without anyone taking it over."""
    LeaseBook(storage).renew(lease, seconds=0.01)
    time.sleep(0.05)


class TestStudyRecord:
    def test_it_is_read_back(self, storage: StudyStorage, recorder: Recorder) -> None:
        study = read_study(storage, "oscars")
        assert (study.name, study.config, study.slots, study.seed) == (
            "oscars",
            "trials = 40\n",
            8,
            7,
        )
        assert study.fingerprint == {"facts": "f1", "space": "s1"}
        assert abs(study.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert (study.base, study.base_measurements, study.trials) == (None, (), ())

    def test_creating_it_again_keeps_its_slots_and_takes_the_new_config(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        before = read_study(storage, "oscars")
        slots = recorder.create_study_record(
            config="trials = 80\n", fingerprint={"space": "s1", "facts": "f1"}, slots=4, seed=7
        )
        assert slots == 8
        assert read_study(storage, "oscars") == replace(before, config="trials = 80\n")

    @pytest.mark.parametrize(
        ("fingerprint", "seed", "difference"),
        [
            ({"facts": "f2", "space": "s1"}, 7, r"\(facts was f1, now f2\)"),
            ({"facts": "f1"}, 7, r"\(space was s1, now absent\)"),
            ({"facts": "f1", "judge": "j", "space": "s1"}, 7, r"\(judge was absent, now j\)"),
            ({"facts": "f2", "space": "s1"}, 8, r"\(facts was f1, now f2; seed was 7, now 8\)"),
        ],
    )
    def test_another_study_of_the_same_name_is_refused_and_changes_nothing(
        self,
        storage: StudyStorage,
        recorder: Recorder,
        fingerprint: dict[str, str],
        seed: int,
        difference: str,
    ) -> None:
        before = read_study(storage, "oscars")
        with pytest.raises(FingerprintMismatch, match=difference):
            recorder.create_study_record(
                config="other", fingerprint=fingerprint, slots=8, seed=seed
            )
        assert read_study(storage, "oscars") == before

    def test_an_unknown_study_is_answered_with_the_known_ones(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        with pytest.raises(StudyNotFound, match="none called 'nobels'; there are: oscars"):
            read_study(storage, "nobels")

    def test_an_empty_database_says_so(self, storage: StudyStorage) -> None:
        assert list_studies(storage) == ()
        with pytest.raises(StudyNotFound, match="the database holds none"):
            read_study(storage, "oscars")


class TestTrialRecord:
    def test_a_running_trial_is_read_back(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        assert only_trial(storage) == TrialRecord(
            number=3,
            asked_index=2,
            state="running",
            reason=None,
            recipe=RECIPE,
            sampling=WARM,
            seed=2**62 + 1,
            costs=None,
            measurements=(),
        )

    def test_starting_it_again_changes_nothing(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        before = only_trial(storage)
        recorder.record_trial_started(
            lease, asked_index=9, recipe=replace(RECIPE, rank=1), sampling=GREEDY, seed=1
        )
        assert only_trial(storage) == before

    def test_two_trials_cannot_have_one_asked_index(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        second = LeaseBook(storage).acquire("oscars", 4, owner=lease.owner, seconds=60)
        assert second is not None
        with pytest.raises(StorageError, match=r"asked_index: 2 .* belongs to trial 3"):
            start_trial(recorder, second)

    def test_its_end_is_read_back_and_written_once(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        recorder.record_trial_ended(lease, state="pruned", costs=COSTS, reason="dominated: 0.1")
        recorder.record_trial_ended(lease, state="complete", costs=replace(COSTS, seconds=9.0))
        trial = only_trial(storage)
        assert (trial.state, trial.reason, trial.costs) == ("pruned", "dominated: 0.1", COSTS)

    def test_trials_are_counted_by_state(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        recorder.record_trial_ended(lease, state="failed", costs=COSTS, reason="out of memory")
        (summary,) = list_studies(storage)
        assert (summary.name, summary.slots, summary.seed) == ("oscars", 8, 7)
        assert summary.trials == {"running": 0, "complete": 0, "pruned": 0, "failed": 1}


class TestMeasurements:
    def test_they_are_read_back_equal_and_in_order_of_epoch(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        last = recorder.record_measurement(
            lease, measured(9, WARM), [judged("a")], purpose="final", adapter="adapters/3"
        )
        first = recorder.record_measurement(lease, measured(3), [], purpose="rung")
        records = only_trial(storage).measurements
        assert [(r.id, r.trial, r.purpose, r.adapter, r.measurement) for r in records] == [
            (first, 3, "rung", None, measured(3)),
            (last, 3, "final", "adapters/3", measured(9, WARM)),
        ]
        assert abs(records[0].recorded_at - datetime.now(UTC)) < timedelta(minutes=1)

    def test_numbers_that_are_not_finite_survive(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        diverged = replace(measured(), drift_nats=math.nan, fuar=math.inf)
        recorder.record_measurement(lease, diverged, [], purpose="rung")
        (record,) = only_trial(storage).measurements
        assert record.measurement.drift_nats is not None
        assert math.isnan(record.measurement.drift_nats)
        assert record.measurement.fuar == math.inf

    def test_the_columns_repeat_the_two_objectives(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        recorder.record_measurement(lease, measured(recall=0.25), [], purpose="rung")
        with storage.begin_read() as session:
            (row,) = session.scalars(select(MeasurementRow))
            assert (row.recall, row.knowledge_loss) == (0.25, None)

    def test_a_repeated_one_replaces_nothing(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        first = recorder.record_measurement(lease, measured(), [judged("a")], purpose="rung")
        again = recorder.record_measurement(
            lease, measured(recall=0.9), [judged("b"), judged("c")], purpose="rung"
        )
        assert again == first
        assert [record.measurement for record in only_trial(storage).measurements] == [measured()]
        assert read_verdicts(storage, first) == (judged("a"),)
        assert count_rows(storage, AnswerRow) == 1

    def test_other_epochs_samplings_purposes_and_versions_are_other_measurements(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        recorder.record_measurement(lease, measured(3), [], purpose="rung")
        recorder.record_measurement(lease, measured(9), [], purpose="rung")
        recorder.record_measurement(lease, measured(3, WARM), [], purpose="rung")
        recorder.record_measurement(lease, measured(3), [], purpose="final")
        recorder.record_measurement(lease, replace(measured(3), version=2), [], purpose="rung")
        assert len({record.id for record in only_trial(storage).measurements}) == 5

    def test_the_greedy_base_is_the_reference_and_is_written_once(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        recorder.record_measurement(None, measured(0, WARM), [], purpose="base")
        greedy = recorder.record_measurement(None, measured(0), [judged("a")], purpose="base")
        again = recorder.record_measurement(None, measured(0, recall=0.9), [], purpose="base")
        study = read_study(storage, "oscars")
        assert again == greedy
        assert study.base is not None
        assert (study.base.id, study.base.trial, study.base.measurement) == (
            greedy,
            None,
            measured(0),
        )
        assert len(study.base_measurements) == 2

    def test_the_base_of_a_study_without_a_record_is_refused(self, storage: StudyStorage) -> None:
        with pytest.raises(StudyNotFound, match="'nobels' has no record"):
            Recorder(storage, "nobels").record_measurement(None, measured(0), [], purpose="base")

    def test_an_adapter_can_be_set_and_removed(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        measurement = recorder.record_measurement(lease, measured(), [], purpose="final")
        recorder.set_adapter(measurement, "adapters/3")
        assert only_trial(storage).measurements[0].adapter == "adapters/3"
        recorder.set_adapter(measurement, None)
        assert only_trial(storage).measurements[0].adapter is None


class TestFloors:
    BASE = Floor(name="base", recall=measured().recall, context_tokens=0.0)
    ALL = Floor(
        name="all facts", recall=NOT_MEASURED, context_tokens=None, reason="632 tokens, 512 fit"
    )
    BEST = Floor(name="best fact", recall=measured(recall=0.7).recall, context_tokens=71 / 3)

    def test_they_are_read_back_equal_and_in_order(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        assert read_study(storage, "oscars").floors == ()
        recorder.record_floors([self.BASE, self.ALL, self.BEST])
        assert read_study(storage, "oscars").floors == (self.BASE, self.ALL, self.BEST)

    def test_each_is_written_once(self, storage: StudyStorage, recorder: Recorder) -> None:
        recorder.record_floors([self.BASE])
        recorder.record_floors([replace(self.BASE, context_tokens=9.0), self.BEST])
        assert read_study(storage, "oscars").floors == (self.BASE, self.BEST)

    def test_they_belong_to_their_study_and_leave_with_it(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        other = Recorder(storage, "nobels")
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        recorder.record_floors([self.BASE, self.BEST])
        other.record_floors([self.ALL])
        delete_study(storage, "oscars")
        assert read_study(storage, "nobels").floors == (self.ALL,)
        assert count_rows(storage, FloorRow) == 1

    def test_those_of_a_study_without_a_record_are_refused(self, storage: StudyStorage) -> None:
        with pytest.raises(StudyNotFound, match="'nobels' has no record"):
            Recorder(storage, "nobels").record_floors([self.BASE])


class TestAdapterCosts:
    COST = AdapterCost(
        trial=3,
        epoch=8,
        parameters=40_960,
        file_bytes=2**33,
        prompts=32,
        tokens_per_second=0.1 + 0.2,
        base_tokens_per_second=1e6,
    )

    def test_they_are_read_back_equal_and_each_is_written_once(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        assert read_adapter_costs(storage, "oscars") == ()
        earlier = replace(self.COST, epoch=4)
        recorder.record_adapter_costs([self.COST, earlier])
        recorder.record_adapter_costs([replace(self.COST, prompts=1)])
        assert read_adapter_costs(storage, "oscars") == (earlier, self.COST)

    def test_they_belong_to_their_study_and_leave_with_it(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        other = Recorder(storage, "nobels")
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        recorder.record_adapter_costs([self.COST])
        other.record_adapter_costs([replace(self.COST, trial=0)])
        delete_study(storage, "oscars")
        assert [cost.trial for cost in read_adapter_costs(storage, "nobels")] == [0]
        assert count_rows(storage, AdapterCostRow) == 1

    def test_those_of_a_study_without_a_record_are_refused(self, storage: StudyStorage) -> None:
        with pytest.raises(StudyNotFound, match="'nobels' has no record"):
            Recorder(storage, "nobels").record_adapter_costs([self.COST])


class TestVerdicts:
    def test_they_are_read_back_equal_and_in_order(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        verdicts = (
            judged("Lima", PROBE, "correct"),
            judged("I do not know.", PROMPT, "not_attempted"),
            judged("", PROMPT, "unjudged"),  # the same prompt answered twice
        )
        measurement = recorder.record_measurement(None, measured(0), verdicts, purpose="base")
        assert read_verdicts(storage, measurement) == verdicts

    def test_a_prompt_is_stored_once_in_a_study(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        for epoch in (0, 1):
            recorder.record_measurement(
                None,
                measured(epoch),
                [judged("a"), judged("b"), judged("c", PROBE)],
                purpose="base",
            )
        assert count_rows(storage, PromptRow) == 2
        assert count_rows(storage, AnswerRow) == 6

    def test_prompts_of_one_text_with_other_accepted_answers_stay_apart(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        verdicts = (judged("a"), judged("a", replace(PROMPT, accepted=("Austin Butler",))))
        measurement = recorder.record_measurement(None, measured(0), verdicts, purpose="base")
        assert read_verdicts(storage, measurement) == verdicts

    def test_an_unknown_measurement_has_none(self, storage: StudyStorage) -> None:
        assert read_verdicts(storage, 12_345) == ()

    def test_a_character_that_not_every_database_holds_is_replaced(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        measurement = recorder.record_measurement(
            None, measured(0), [judged("Li\x00ma")], purpose="base"
        )
        assert read_verdicts(storage, measurement) == (judged("Li\ufffdma"),)

    epochs = itertools.count()
    # Databases of servers know no NUL, and text that came from bytes holds no lone surrogate.
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(answers=st.lists(texts | st.sampled_from(["'; DROP TABLE x; --", '🏆“\\"’\r\n\t'])))
    def test_odd_text_survives(
        self, storage: StudyStorage, recorder: Recorder, answers: list[str]
    ) -> None:
        verdicts = tuple(
            judged(text, replace(PROMPT, text=text, question=text, accepted=(text, "x")))
            for text in answers
        )
        measurement = recorder.record_measurement(
            None, measured(next(self.epochs)), verdicts, purpose="base"
        )
        assert read_verdicts(storage, measurement) == verdicts


class TestLostLease:
    def test_the_old_owner_of_a_trial_can_write_nothing(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        start_trial(recorder, lease)
        expire(storage, lease)
        new = LeaseBook(storage).acquire("oscars", 3, owner="elsewhere:1:boot", seconds=60)
        assert new is not None
        before = read_study(storage, "oscars")
        with pytest.raises(LeaseLost):
            recorder.record_measurement(lease, measured(), [judged("a")], purpose="rung")
        with pytest.raises(LeaseLost):
            recorder.record_trial_ended(lease, state="complete", costs=COSTS)
        with pytest.raises(LeaseLost):
            start_trial(recorder, lease)
        assert read_study(storage, "oscars") == before
        assert (count_rows(storage, AnswerRow), count_rows(storage, PromptRow)) == (0, 0)
        recorder.record_measurement(new, measured(), [judged("a")], purpose="rung")
        assert len(only_trial(storage).measurements) == 1

    def test_an_expired_lease_writes_nothing(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        expire(storage, lease)
        with pytest.raises(LeaseLost, match="has expired"):
            start_trial(recorder, lease)
        assert read_study(storage, "oscars").trials == ()

    def test_a_lease_of_another_study_is_refused(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        with pytest.raises(ValueError, match="for study 'oscars', not 'nobels'"):
            start_trial(Recorder(storage, "nobels"), lease)


class TestOneTransaction:
    def test_a_measurement_whose_answers_cannot_be_written_is_not_there_either(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        unreadable = judged("\ud800")  # no database takes half a character
        with pytest.raises(UnicodeEncodeError):
            recorder.record_measurement(
                None, measured(0), [judged("a", PROBE), unreadable], purpose="base"
            )
        assert read_study(storage, "oscars").base is None
        assert count_rows(storage, PromptRow) == 0


class TestDeletion:
    def test_nothing_of_the_study_remains_and_others_stay(
        self, storage: StudyStorage, recorder: Recorder, lease: Lease
    ) -> None:
        optuna.create_study(study_name="oscars", storage=storage)
        other = Recorder(storage, "nobels")
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        kept = other.record_measurement(None, measured(0), [judged("a")], purpose="base")
        start_trial(recorder, lease)
        recorder.record_measurement(lease, measured(), [judged("a")], purpose="rung")
        delete_study(storage, "oscars")
        assert [study.name for study in list_studies(storage)] == ["nobels"]
        assert read_verdicts(storage, kept) == (judged("a"),)
        assert (count_rows(storage, AnswerRow), count_rows(storage, PromptRow)) == (1, 1)
        assert optuna.get_all_study_names(storage) == []

    def test_a_deletion_that_was_cut_short_can_be_repeated(self, storage: StudyStorage) -> None:
        optuna.create_study(study_name="oscars", storage=storage)
        delete_study(storage, "oscars")
        assert optuna.get_all_study_names(storage) == []

    def test_an_unknown_study_is_named(self, storage: StudyStorage) -> None:
        with pytest.raises(StudyNotFound, match="none called 'oscars' to delete"):
            delete_study(storage, "oscars")
