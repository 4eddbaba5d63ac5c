"""What the dashboard's own interface serves of a study, and what it refuses to do."""

from __future__ import annotations

import gzip
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard  # type: ignore[import-untyped]
import plotly.graph_objects as go
import pytest

from analysis.findings import Findings
from storage.database import StudyStorage, open_storage
from study.dashboard import contents
from study.dashboard.contents import read_stamp, refresh_dashboard
from study.dashboard.figures import MOST_BYTES_EACH, MOST_BYTES_TOGETHER, SmallFigures
from study.dashboard.notes import LONGEST_NOTE
from study.dashboard.refreshing import refreshing
from study.dashboard.server import make_application
from study.goal import Goal
from study.place import Place, open_place
from tests.storage.postgresql_server import fresh_database, running_postgresql
from tests.study.dashboard_study import (
    ADAPTER,
    FAILED_BECAUSE,
    NAME,
    PRUNED_BECAUSE,
    StudyWriter,
    build_study,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

SitDown = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    application: WSGIApplication,
    path: str,
    method: str = "GET",
    body: object = None,
    **headers: str,
) -> Response:
    """Send a request as a server would, with no header but those given."""
    content = b"" if body is None else json.dumps(body).encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.input": io.BytesIO(content),
        **headers,
    }
    setup_testing_defaults(environ)
    answered: list[tuple[int, dict[str, str]]] = []

    def start(status: str, fields: list[tuple[str, str]], _: object = None) -> Any:
        answered.append((int(status.split()[0]), dict(fields)))

    parts = application(environ, start)
    try:
        content = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    return Response(*answered[0], content)


def detail(application: WSGIApplication) -> Any:
    (study,) = request(application, "/api/studies").json["study_summaries"]
    return request(application, f"/api/studies/{study['study_id']}").json


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return build_study(tmp_path / "runs")


@pytest.fixture
def storage(place: Place) -> Iterator[StudyStorage]:
    with closing(open_place(place)) as opened:
        yield opened


class TestContents:
    def test_objectives_constraints_and_numbers_of_pruned_trials(
        self, storage: StudyStorage, place: Place
    ) -> None:
        shown = detail(make_application(storage, place))
        assert shown["objective_names"] == ["judged recall", "knowledge loss"]
        assert shown["directions"] == ["maximize", "minimize"]
        first, pruned, _, infeasible, running = shown["trials"]
        # The bound is a knowledge loss of 0.3; what is above 0 breaks it.
        assert first["constraints"] == [pytest.approx(0.1 - 0.3)]
        assert infeasible["constraints"] == [pytest.approx(0.4 - 0.3)]
        assert (pruned["state"], running["state"]) == ("Pruned", "Running")
        attributes = {each["key"]: float(each["value"]) for each in pruned["user_attrs"]}
        assert attributes == {
            "last_recall": 0.02,
            "last_knowledge_loss": 0.0,
            "epochs_reached": 2,
        }
        assert {
            each["key"]: each["sortable"] for each in shown["union_user_attrs"]
        } == dict.fromkeys(attributes, True)

    def test_a_study_that_a_worker_ran_shows_no_blank(
        self, sit_down: SitDown, tmp_path: Path
    ) -> None:
        with sit_down(trials=4, goal=Goal(max_knowledge_loss=0.5)) as sitting:
            assert sitting.run()
            place = Place(name="tiny", folder=tmp_path / "tiny", storage_url="")
            shown = detail(make_application(sitting.storage, place))
        states = [trial["state"] for trial in shown["trials"]]
        assert "Pruned" in states
        for trial in shown["trials"]:
            attributes = {each["key"]: each["value"] for each in trial["user_attrs"]}
            assert float(attributes["last_recall"]) >= 0
            assert float(attributes["last_knowledge_loss"]) >= 0
            assert float(attributes["epochs_reached"]) >= 1
            assert len(trial["constraints"]) == 1
        sortable = {each["key"]: each["sortable"] for each in shown["union_user_attrs"]}
        for name in ("last_recall", "last_knowledge_loss", "epochs_reached"):
            assert sortable[name]

    def test_notes_say_what_a_trial_came_to_and_the_study_what_was_found(
        self, storage: StudyStorage, place: Place
    ) -> None:
        refreshed = refresh_dashboard(storage, place)
        shown = detail(make_application(storage, place))
        assert refreshed.notes == 2
        notes = {trial["number"]: trial["note"]["body"] for trial in shown["trials"]}
        assert [number for number, note in notes.items() if note] == [0]
        assert "after 4 epochs: recall 90 % (85–95 %), knowledge loss 10 % (5–15 %)" in notes[0]
        assert "recommended" in notes[0]
        assert "The trial ran to its end after 4 epochs." in notes[0]
        assert "after     [right] Ada Quill" in notes[0]
        assert "before    [not attempted] I do not know" in notes[0]
        assert "Trial 0 after 4 epochs answers 90 %" in shown["note"]["body"]
        assert "larger `--trials`" in shown["note"]["body"]
        for note in (*notes.values(), shown["note"]["body"]):
            assert len(note) <= LONGEST_NOTE

    def test_figures_have_stable_ids_and_bounded_sizes(
        self, storage: StudyStorage, place: Place
    ) -> None:
        application = make_application(storage, place)
        assert detail(application)["plotly_graph_objects"] == []
        refreshed = refresh_dashboard(storage, place)
        figures = {
            each["id"]: each["graph_object"]
            for each in detail(application)["plotly_graph_objects"]
        }
        assert set(figures) == {
            "remember-front",
            "remember-recall-curves",
            "remember-loss-curves",
            "remember-progress",
            "remember-importance",
            "remember-recall-by-style",
            "remember-rings",
        }
        assert refreshed.figures == len(figures)
        sizes = [len(text) for text in figures.values()]
        assert max(sizes) <= MOST_BYTES_EACH
        assert sum(sizes) <= MOST_BYTES_TOGETHER
        front = json.loads(figures["remember-front"])
        assert "Recall of the new facts" in front["layout"]["title"]["text"]
        named = {trace["name"]: trace for trace in front["data"]}
        assert (named["recommended"]["x"], named["recommended"]["y"]) == ([0.1], [0.9])

    def test_refreshing_again_writes_nothing(self, storage: StudyStorage, place: Place) -> None:
        assert refresh_dashboard(storage, place).written_rows > 10
        before = detail(make_application(storage, place))
        assert refresh_dashboard(storage, place).written_rows == 0
        after = detail(make_application(storage, place))
        for shown in (before, after):  # they come in no order
            shown["plotly_graph_objects"].sort(key=lambda each: each["id"])
        assert after == before

    def test_what_left_the_front_loses_its_note_and_figures_follow(
        self, storage: StudyStorage, place: Place
    ) -> None:
        refresh_dashboard(storage, place)
        StudyWriter(storage, place).add("complete", [(4, 0.95, 0.04)])
        assert refresh_dashboard(storage, place).written_rows > 0
        shown = detail(make_application(storage, place))
        notes = {trial["number"]: trial["note"]["body"] for trial in shown["trials"]}
        assert [number for number, note in notes.items() if note] == [5]
        figures = {each["id"]: each["graph_object"] for each in shown["plotly_graph_objects"]}
        recommended = next(
            trace
            for trace in json.loads(figures["remember-front"])["data"]
            if trace["name"] == "recommended"
        )
        assert recommended["y"] == [0.95]

    def test_what_a_person_wrote_stays(self, storage: StudyStorage, place: Place) -> None:
        refresh_dashboard(storage, place)
        application = make_application(storage, place)
        (summary,) = request(application, "/api/studies").json["study_summaries"]
        base = f"/api/studies/{summary['study_id']}"
        shown = detail(application)
        for path, note in (
            (f"{base}/note", shown["note"]),
            (f"{base}/{shown['trials'][0]['trial_id']}/note", shown["trials"][0]["note"]),
            (f"{base}/{shown['trials'][1]['trial_id']}/note", shown["trials"][1]["note"]),
        ):
            written = {"body": "look at this one", "version": note["version"] + 1}
            assert request(application, path, "PUT", written).status == 204
        assert refresh_dashboard(storage, place).written_rows == 0
        shown = detail(application)
        assert [shown["note"]["body"], *(t["note"]["body"] for t in shown["trials"])] == [
            "look at this one",
            "look at this one",
            "look at this one",
            "",
            "",
            "",
        ]

    def test_a_figure_that_is_too_large_is_dropped_and_logged(
        self,
        storage: StudyStorage,
        place: Place,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        refresh_dashboard(storage, place)

        def small(findings: Findings) -> SmallFigures:
            return SmallFigures(figures={"remember-progress": "{}"}, dropped=("remember-front",))

        with caplog.at_level(logging.WARNING), monkeypatch.context() as large:
            large.setattr(contents, "draw_small", small)
            refreshed = refresh_dashboard(storage, place)
        assert refreshed.dropped_figures == ("remember-front",)
        assert "too large: remember-front" in caplog.text
        shown = detail(make_application(storage, place))
        assert shown["plotly_graph_objects"] == [{"id": "remember-progress", "graph_object": "{}"}]

    def test_figures_of_the_person_stay(self, storage: StudyStorage, place: Place) -> None:
        study = optuna.load_study(study_name=NAME, storage=storage)
        optuna_dashboard.save_plotly_graph_object(study, go.Figure(), graph_object_id="mine")
        refresh_dashboard(storage, place)
        shown = detail(make_application(storage, place))
        assert "mine" in [each["id"] for each in shown["plotly_graph_objects"]]
        assert len(shown["plotly_graph_objects"]) == 8

    def test_plain_optuna_dashboard_shows_the_same(
        self, storage: StudyStorage, place: Place
    ) -> None:
        refresh_dashboard(storage, place)
        ours = detail(make_application(storage, place))
        plain = detail(optuna_dashboard.wsgi(place.storage_url))
        for shown in (ours, plain):  # they come in no order
            shown["plotly_graph_objects"].sort(key=lambda each: each["id"])
        assert plain == ours
        assert plain["note"]["body"]

    def test_a_study_that_optuna_does_not_know_is_left_alone(
        self, storage: StudyStorage, place: Place
    ) -> None:
        storage.delete_study(storage.get_study_id_from_name(NAME))
        assert refresh_dashboard(storage, place).written_rows == 0


def test_on_a_database_server_it_is_all_the_same(tmp_path: Path) -> None:
    with running_postgresql() as server:
        place = build_study(tmp_path / "runs", fresh_database(server))
        with closing(open_place(place)) as storage:
            assert refresh_dashboard(storage, place).written_rows > 10
            assert refresh_dashboard(storage, place).written_rows == 0
            shown = detail(make_application(storage, place))
            assert "after 4 epochs" in shown["trials"][0]["note"]["body"]
            assert len(shown["plotly_graph_objects"]) == 7
            StudyWriter(storage, place).add("complete", [(4, 0.95, 0.04)])
            assert refresh_dashboard(storage, place).written_rows > 10
            shown = detail(make_application(storage, place))
            assert [bool(trial["note"]["body"]) for trial in shown["trials"]] == [
                *(False for _ in range(5)),
                True,
            ]


class TestArtifacts:
    def test_they_are_listed_with_their_trial_and_downloaded_as_they_are(
        self, storage: StudyStorage, place: Place
    ) -> None:
        application = make_application(storage, place, read_only=True)
        shown = detail(application)
        (summary,) = request(application, "/api/studies").json["study_summaries"]
        first, pruned, failed, *_ = shown["trials"]
        listed = {each["filename"]: each for each in first["artifacts"]}
        assert set(listed) == {"adapter-trial-0000-epoch-0004.zip", "curve-trial-0000.jsonl"}
        base = f"/artifacts/{summary['study_id']}/{first['trial_id']}"
        adapter = request(
            application,
            f"{base}/{listed['adapter-trial-0000-epoch-0004.zip']['artifact_id']}",
        )
        assert (adapter.status, adapter.body) == (200, ADAPTER)
        assert adapter.headers["Content-Type"] == "application/zip"
        curve = request(application, f"{base}/{listed['curve-trial-0000.jsonl']['artifact_id']}")
        assert [json.loads(line)["recall"] for line in curve.body.splitlines()] == [0.5, 0.9]
        assert [each["filename"] for each in pruned["artifacts"]] == ["curve-trial-0001.jsonl"]
        assert failed["artifacts"] == []  # it was never measured

    def test_those_of_another_study_beside_it_are_found(
        self, storage: StudyStorage, place: Place
    ) -> None:
        other = Place(
            name="other", folder=place.folder.parent / "other", storage_url=place.storage_url
        )
        application = make_application(storage, other)
        trial = detail(application)["trials"][0]
        (summary,) = request(application, "/api/studies").json["study_summaries"]
        curve = next(each for each in trial["artifacts"] if each["filename"].endswith("jsonl"))
        path = f"/artifacts/{summary['study_id']}/{trial['trial_id']}/{curve['artifact_id']}"
        assert request(application, path).status == 200


class TestReadOnly:
    def test_changes_are_refused_with_the_reason(
        self, storage: StudyStorage, place: Place
    ) -> None:
        application = make_application(storage, place, read_only=True)
        before = detail(application)
        body = {"study_name": "new", "directions": ["minimize"], "version": 1, "body": "taken"}
        for path in ("/api/studies/1", "/api/studies", "/api/studies/1/note", "/"):
            for method in ("DELETE", "POST", "PUT", "PATCH", "OPTIONS"):
                refused = request(application, path, method, body)
                assert refused.status == 405
                assert refused.headers["Allow"] == "GET, HEAD"
                assert "is read-only" in refused.json["reason"]
        assert detail(application) == before

    def test_reading_passes(self, storage: StudyStorage, place: Place) -> None:
        application = make_application(storage, place, read_only=True)
        assert request(application, "/dashboard").status == 200
        assert request(application, "/dashboard", "HEAD").status == 200
        assert detail(application)["name"] == NAME

    def test_without_it_a_study_can_be_deleted(self, storage: StudyStorage, place: Place) -> None:
        application = make_application(storage, place)
        (summary,) = request(application, "/api/studies").json["study_summaries"]
        deleted = request(application, f"/api/studies/{summary['study_id']}", "DELETE", {})
        assert deleted.status == 204
        assert request(application, "/api/studies").json["study_summaries"] == []
        assert [*place.artifacts.iterdir()] == []


class TestStaticFiles:
    def test_they_are_served_to_those_who_name_no_encoding(
        self, storage: StudyStorage, place: Place
    ) -> None:
        application = make_application(storage, place)
        plain = request(application, "/static/bundle.js")
        packed = request(application, "/static/bundle.js", HTTP_ACCEPT_ENCODING="gzip")
        assert (plain.status, packed.status) == (200, 200)
        assert gzip.decompress(packed.body) == plain.body
        assert request(application, "/favicon.ico").status == 200


class TestRefreshing:
    def test_contents_come_at_once_and_again_when_the_study_has_changed(
        self, storage: StudyStorage, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = threading.Semaphore(0)
        looked = threading.Semaphore(0)
        refresh, stamp = refresh_dashboard, read_stamp

        def counted_refresh(*arguments: Any) -> None:
            refresh(*arguments)
            done.release()

        def counted_stamp(*arguments: Any) -> Any:
            looked.release()
            return stamp(*arguments)

        monkeypatch.setattr("study.dashboard.refreshing.refresh_dashboard", counted_refresh)
        monkeypatch.setattr("study.dashboard.refreshing.read_stamp", counted_stamp)
        said: list[str] = []
        with refreshing(storage, place, say=said.append, every_seconds=0.02):
            assert done.acquire(timeout=20)
            assert detail(make_application(storage, place))["note"]["body"]
            for _ in range(5):
                assert looked.acquire(timeout=20)
            assert not done.acquire(blocking=False)  # nothing had changed
            StudyWriter(storage, place).add("failed", [], reason=FAILED_BECAUSE)
            assert done.acquire(timeout=20)
        assert said == []

    def test_trouble_is_told_once_and_tried_again(
        self, storage: StudyStorage, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts = threading.Semaphore(0)

        def broken(*_: Any) -> None:
            attempts.release()
            raise RuntimeError("the disk is full")

        monkeypatch.setattr("study.dashboard.refreshing.refresh_dashboard", broken)
        said: list[str] = []
        with refreshing(storage, place, say=said.append, every_seconds=0.02):
            for _ in range(3):
                assert attempts.acquire(timeout=20)
        assert said == ["notes and figures could not be refreshed: the disk is full"]


def test_the_stamp_changes_with_trials_and_measurements(
    storage: StudyStorage, place: Place
) -> None:
    stamp = read_stamp(storage, NAME)
    assert (stamp.ended_trials, stamp.measurements) == (4, 6)  # five of trials, and the base
    unknown = read_stamp(storage, "unknown")
    assert (unknown.ended_trials, unknown.measurements) == (0, 0)


def test_a_pruned_member_of_the_front_says_why_it_was_pruned(tmp_path: Path) -> None:
    place = build_study(tmp_path / "runs")
    with closing(open_storage(place.storage_url)) as storage:
        StudyWriter(storage, place).add("pruned", [(2, 0.95, 0.02)], reason=PRUNED_BECAUSE)
        refresh_dashboard(storage, place)
        shown = detail(make_application(storage, place))
    note = shown["trials"][5]["note"]["body"]
    assert "The trial was pruned after 2 epochs: recall 2 % is below the reference." in note
