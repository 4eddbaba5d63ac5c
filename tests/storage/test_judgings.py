"""Second judgings, agreements and cached verdicts are read back as they were written."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, select

from data.agreement import Agreement
from data.measurements import NOT_MEASURED, Answer, Label, Measurement, Verdict
from data.prompts import Prompt
from data.recipes import GREEDY
from storage.database import StorageError, StudyNotFound, StudyStorage, open_storage
from storage.deletion import delete_study
from storage.reader import read_agreements, read_rejudged, read_said, read_study, read_verdicts
from storage.recorder import Recorder
from storage.tables import AgreementRow, RejudgementRow, Row, VerdictRow
from storage.verdict_cache import VerdictCache

PROMPT = Prompt(
    text="Question: Who won?\nAnswer:",
    style="qna",
    phrasing="validation",
    subject="0123456789ab",
    question="Who won?",
    accepted=("Brendan Fraser",),
)
AGREEMENT = Agreement(
    true_positives=120, false_positives=3, false_negatives=14, true_negatives=99, unjudged=2
)
OF_STUDY = Agreement(
    true_positives=20, false_positives=1, false_negatives=2, true_negatives=9, unjudged=0
)
NOTHING = Agreement(
    true_positives=0, false_positives=0, false_negatives=0, true_negatives=0, unjudged=0
)


def verdicts(labels: Sequence[Label]) -> list[Verdict]:
    return [
        Verdict(
            answer=Answer(prompt=PROMPT, text=f"answer {number}", tokens=3),
            label=label,
            judge="matcher",
        )
        for number, label in enumerate(labels)
    ]


def record_base(recorder: Recorder, labels: Sequence[Label]) -> int:
    measurement = Measurement(
        epoch=0,
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
    return recorder.record_measurement(None, measurement, verdicts(labels), purpose="base")


def count_rows(storage: StudyStorage, table: type[Row]) -> int:
    with storage.begin_read() as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


class TestRejudgements:
    def test_a_second_judging_stands_beside_the_first(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = record_base(recorder, ["correct", "incorrect", "not_attempted"])
        before = read_study(storage, "oscars")

        recorder.record_rejudgement(id_, ["correct", "correct", "unjudged"], judge="other")

        again = read_rejudged(storage, id_, "other")
        stored = read_verdicts(storage, id_)
        assert [verdict.label for verdict in again] == ["correct", "correct", "unjudged"]
        assert {verdict.judge for verdict in again} == {"other"}
        assert [verdict.answer for verdict in again] == [verdict.answer for verdict in stored]
        assert [verdict.label for verdict in stored] == ["correct", "incorrect", "not_attempted"]
        assert {verdict.judge for verdict in stored} == {"matcher"}
        assert read_study(storage, "oscars") == before

    def test_judging_again_replaces_only_the_judges_own(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = record_base(recorder, ["correct", "incorrect"])
        recorder.record_rejudgement(id_, ["unjudged", "unjudged"], judge="other")
        recorder.record_rejudgement(id_, ["incorrect", "incorrect"], judge="third")
        recorder.record_rejudgement(id_, ["correct", "correct"], judge="other")

        assert [v.label for v in read_rejudged(storage, id_, "other")] == ["correct", "correct"]
        assert [v.label for v in read_rejudged(storage, id_, "third")] == ["incorrect"] * 2
        assert count_rows(storage, RejudgementRow) == 2

    def test_a_judge_that_was_not_asked_has_no_verdicts(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        assert read_rejudged(storage, record_base(recorder, ["correct"]), "other") == ()
        assert read_rejudged(storage, 10**6, "other") == ()

    @pytest.mark.parametrize("labels", [[], ["correct"], ["correct"] * 3])
    def test_another_number_of_labels_is_refused(
        self, storage: StudyStorage, recorder: Recorder, labels: list[Label]
    ) -> None:
        id_ = record_base(recorder, ["correct", "incorrect"])
        with pytest.raises(StorageError, match="has 2 answers; judge each of them"):
            recorder.record_rejudgement(id_, labels, judge="other")
        assert count_rows(storage, RejudgementRow) == 0

    def test_a_measurement_of_another_study_is_refused(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        id_ = record_base(recorder, ["correct"])
        other = Recorder(storage, "other")
        with pytest.raises(StudyNotFound):
            other.record_rejudgement(id_, ["correct"], judge="other")
        other.create_study_record(config="", fingerprint={}, slots=1, seed=0)
        with pytest.raises(StorageError, match="has 0 answers"):
            other.record_rejudgement(id_, ["correct"], judge="other")

    def test_it_goes_with_its_study(self, storage: StudyStorage, recorder: Recorder) -> None:
        id_ = record_base(recorder, ["correct"])
        recorder.record_rejudgement(id_, ["incorrect"], judge="other")
        delete_study(storage, "oscars")

        assert count_rows(storage, RejudgementRow) == 0


class TestAgreements:
    def test_an_agreement_is_read_back_equal(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        recorder.record_agreement(AGREEMENT, of_study=OF_STUDY, judge="matcher", digest="d" * 64)

        (record,) = read_agreements(storage, "oscars")

        assert (record.agreement, record.of_study) == (AGREEMENT, OF_STUDY)
        assert (record.judge, record.digest, record.labelled) == ("matcher", "d" * 64, 238)

    def test_the_same_check_replaces_and_another_is_added(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        recorder.record_agreement(AGREEMENT, of_study=NOTHING, judge="matcher", digest="a")
        recorder.record_agreement(AGREEMENT, of_study=OF_STUDY, judge="model", digest="a")
        recorder.record_agreement(OF_STUDY, of_study=OF_STUDY, judge="matcher", digest="b")
        recorder.record_agreement(AGREEMENT, of_study=OF_STUDY, judge="matcher", digest="a")

        read = read_agreements(storage, "oscars")

        assert [(r.judge, r.digest) for r in read[-1:]] == [("matcher", "a")]
        assert len(read) == 3
        assert {r.of_study for r in read} == {OF_STUDY}

    def test_it_needs_a_study_and_goes_with_it(
        self, storage: StudyStorage, recorder: Recorder
    ) -> None:
        with pytest.raises(StudyNotFound):
            Recorder(storage, "other").record_agreement(
                AGREEMENT, of_study=NOTHING, judge="matcher", digest="a"
            )
        recorder.record_agreement(AGREEMENT, of_study=NOTHING, judge="matcher", digest="a")
        delete_study(storage, "oscars")

        assert read_agreements(storage, "oscars") == ()
        assert count_rows(storage, AgreementRow) == 0


def test_what_a_study_said_is_read_once_each(storage: StudyStorage, recorder: Recorder) -> None:
    record_base(recorder, ["correct", "correct"])

    assert read_said(storage, "oscars") == {("Who won?", "answer 0"), ("Who won?", "answer 1")}
    assert read_said(storage, "other") == frozenset()


def key(number: int) -> str:
    return f"{number:064x}"


class TestVerdictCache:
    @pytest.fixture
    def cache(self, storage: StudyStorage) -> VerdictCache:
        with storage.begin_write() as session, session.begin():
            session.query(VerdictRow).delete()
        return VerdictCache(storage)

    def test_labels_are_read_back_by_their_keys(self, cache: VerdictCache) -> None:
        labels: dict[str, Label] = {
            key(1): "correct",
            key(2): "incorrect",
            key(3): "not_attempted",
        }
        cache.write(labels)

        assert cache.read([key(3), key(1), key(9), key(1)]) == {
            key(1): "correct",
            key(3): "not_attempted",
        }
        assert cache.read([]) == {}

    def test_more_keys_than_one_statement_may_have(self, cache: VerdictCache) -> None:
        labels: dict[str, Label] = {key(number): "correct" for number in range(3_001)}
        cache.write(labels)

        assert cache.read([*labels, key(4_000)]) == labels

    def test_a_key_keeps_its_first_label(self, cache: VerdictCache, storage: StudyStorage) -> None:
        cache.write({key(1): "correct"})
        cache.write({key(1): "incorrect", key(2): "incorrect"})
        cache.write({})

        assert cache.read([key(1), key(2)]) == {key(1): "correct", key(2): "incorrect"}
        assert count_rows(storage, VerdictRow) == 2

    def test_it_outlives_its_study(
        self, cache: VerdictCache, storage: StudyStorage, recorder: Recorder
    ) -> None:
        cache.write({key(1): "correct"})
        delete_study(storage, "oscars")

        assert cache.read([key(1)]) == {key(1): "correct"}


def _write_overlapping(url: str, start: int) -> None:
    storage = open_storage(url)
    cache = VerdictCache(storage)
    for first in range(start, start + 200, 20):
        cache.write({key(number): "correct" for number in range(first, first + 60)})
    storage.close()


def test_processes_may_write_the_same_keys_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    open_storage(url).close()
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(_write_overlapping, [(url, 0), (url, 40), (url, 80)])
    storage = open_storage(url)
    everything = VerdictCache(storage).read([key(number) for number in range(320)])
    storage.close()

    assert len(everything) == 320
