"""The judge behind a server: a real one on loopback that answers, fails, dawdles and lies."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from data.judge_config import EndpointConfig, JudgeConfig
from data.judge_prompts import EXAMINER, GRADER, WORDINGS
from data.measurements import Answer, Label
from objectives.answers.request import AskingStopped
from objectives.judges.base import Judge, JudgeError
from objectives.judges.build import make_judge
from objectives.judges.endpoint import Endpoint, EndpointJudge, read_verdict

MakeAnswer = Callable[..., Answer]

_KEY = "sk-test-0123456789abcdef"


class FakeServer:
    """An OpenAI-compatible server that replies as a function of rubric and request number says.

    A reply is (status, headers, body); None closes the connection in the middle of the body.
    """

    def __init__(self) -> None:
        self.respond: Callable[[str, int], tuple[int, dict[str, str], str] | None] = (
            lambda _rubric, _number: say("yes")
        )
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self.busy_seconds = 0.0
        self._at_once = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else every reply takes 40 ms

            def do_POST(self) -> None:
                fake._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(handler.headers["Authorization"])
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.busy_seconds)
            reply = self.respond(body["messages"][0]["content"], number)
            status, headers, text = reply or say("yes")
            data = text.encode()
            # It counts as served before the client can know: the next may come at once.
            with self._lock:
                self._at_once -= 1
            handler.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data if reply else data[: len(data) // 2])
            handler.close_connection = reply is None
        except OSError:
            handler.close_connection = True  # the client did not wait


def say(content: object) -> tuple[int, dict[str, str], str]:
    """Return a reply in which the model says something."""
    message = {"role": "assistant", "content": content}
    return 200, {}, json.dumps({"id": "x", "choices": [{"index": 0, "message": message}]})


def fail(status: int, message: str = "no", **headers: str) -> tuple[int, dict[str, str], str]:
    """Return a reply with an error."""
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, shown, json.dumps({"error": {"message": message, "code": None}})


class FakeTime:
    """A clock that only waiting moves on, and what was waited for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", _KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def times() -> FakeTime:
    return FakeTime()


def _endpoint(server: FakeServer, times: FakeTime, **fields: Any) -> Endpoint:
    given: dict[str, Any] = {"base_url": server.url, "model": "judge", "attempts": 3} | fields
    config = EndpointConfig(**given)
    return Endpoint(config, clock=lambda: times.now, sleep=times.sleep, draw=lambda: 1.0)


def _labels(judge: Judge, answers: Sequence[Answer]) -> list[Label]:
    return [verdict.label for verdict in judge.judge(answers)]


def _text_under_test(rubric: str) -> str:
    return str(json.loads(re.findall(r'^Answer under test[^"]*: (".*")$', rubric, re.M)[0]))


def test_yes_and_no_become_verdicts_in_the_answers_order(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    def respond(rubric: str, number: int) -> tuple[int, dict[str, str], str]:
        time.sleep(0.02 * (number % 3))  # replies overtake each other
        return say("Yes." if int(_text_under_test(rubric).split()[1]) % 3 == 0 else "no")

    server.respond = respond
    judge: Judge = EndpointJudge(_endpoint(server, times, concurrency=6))
    answers = [make_answer(f"number {number}") for number in range(20)]

    verdicts = judge.judge(answers)

    assert [verdict.answer for verdict in verdicts] == answers
    assert [verdict.label == "correct" for verdict in verdicts] == [n % 3 == 0 for n in range(20)]
    assert {verdict.judge for verdict in verdicts} == {judge.name}
    assert len(server.requests) == 20
    assert judge.judge([]) == ()


def test_a_request_is_short_and_draws_nothing(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    EndpointJudge(_endpoint(server, times), EXAMINER).judge([make_answer("Butler")])

    (request,) = server.requests
    assert request["model"] == "judge"
    assert request["temperature"] == 0
    assert request["max_tokens"] <= 16
    assert [message["role"] for message in request["messages"]] == ["user"]
    assert request["messages"][0]["content"].endswith(EXAMINER.instruction)


def test_an_answer_without_a_word_is_not_sent(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer(""), make_answer("...")]) == ["not_attempted"] * 2
    assert server.requests == []


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("yes", "correct"),
        (" YES!\n", "correct"),
        ("**Yes**", "correct"),
        ("“no.”", "incorrect"),
        ("`No`", "incorrect"),
        ("yes, because it names him", "unjudged"),
        ("Yes no", "unjudged"),
        ("yes/no", "unjudged"),
        ("correct", "unjudged"),
        ("ye s", "unjudged"),
        ("уes", "unjudged"),  # its first letter is Cyrillic
        ("", "unjudged"),
        (None, "unjudged"),
    ],
)
def test_only_yes_and_no_are_verdicts(reply: str | None, label: Label) -> None:
    assert read_verdict(reply) == label


@pytest.mark.parametrize("content", ["It depends.", "yes\nno", None, ""])
def test_a_verdict_in_unexpected_words_is_unjudged_and_not_asked_for_again(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer, content: str | None
) -> None:
    server.respond = lambda _rubric, _number: say(content)
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer("Butler")]) == ["unjudged"]
    assert len(server.requests) == 1
    assert judge.unreachable_reason is None


_BROKEN: dict[str, tuple[int, dict[str, str], str] | None] = {
    "too many requests": fail(429),
    "a fault": fail(500),
    "overload": fail(503),
    "its own time-out": fail(408),
    "a conflict": fail(409),
    "half an answer": None,
    "half a JSON text": (200, {}, '{"choices": [{"mess'),
    "another JSON text": (200, {}, '{"ok": true}'),
    "no choices": (200, {}, '{"choices": []}'),
    "a list": (200, {}, "[1]"),
    "a deep list": (200, {}, "[" * 100_000),
    "a page": (200, {"Content-Type": "text/html"}, "<html>yes</html>"),
    "content that is no text": say({"yes": 1}),
    "nothing": (200, {}, ""),
}


@pytest.mark.parametrize("reply", _BROKEN.values(), ids=_BROKEN)
def test_a_passing_fault_is_asked_again_after_growing_waits(
    server: FakeServer,
    times: FakeTime,
    make_answer: MakeAnswer,
    reply: tuple[int, dict[str, str], str] | None,
) -> None:
    server.respond = lambda _rubric, number: reply if number < 2 else say("yes")
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer("Butler")]) == ["correct"]
    assert times.waits == [0.5, 1.0]
    assert judge.unreachable_reason is None


@pytest.mark.parametrize("reply", _BROKEN.values(), ids=_BROKEN)
def test_a_lasting_fault_leaves_an_answer_unjudged_and_says_why(
    server: FakeServer,
    times: FakeTime,
    make_answer: MakeAnswer,
    reply: tuple[int, dict[str, str], str] | None,
) -> None:
    server.respond = lambda _rubric, _number: reply
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer("Butler")]) == ["unjudged"]
    assert len(server.requests) == 3
    reason = judge.unreachable_reason
    assert reason is not None
    assert reason.startswith(f"{server.url}: 1 of 1 requests got no reply; the last: ")
    assert _KEY not in reason


def test_waits_are_spread_so_that_workers_do_not_come_in_step(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(500)
    draws = iter([0.0, 0.5])
    config = EndpointConfig(base_url=server.url, model="judge", attempts=3)
    endpoint = Endpoint(
        config, clock=lambda: times.now, sleep=times.sleep, draw=lambda: next(draws)
    )

    EndpointJudge(endpoint).judge([make_answer("Butler")])

    assert times.waits == [0.25, 0.75]


def test_retry_after_is_honoured_by_all_requests(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, number: say("yes") if number else fail(429, Retry_After="7")
    judge = EndpointJudge(_endpoint(server, times, concurrency=1))

    assert _labels(judge, [make_answer("a"), make_answer("b")]) == ["correct", "correct"]
    assert times.now == pytest.approx(1007)


def test_retry_after_may_be_a_date(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, number: (
        say("yes") if number else fail(503, Retry_After=formatdate(time.time() + 20, usegmt=True))
    )

    assert _labels(EndpointJudge(_endpoint(server, times)), [make_answer("a")]) == ["correct"]
    assert 1015 < times.now <= 1021


@pytest.mark.parametrize("header", ["soon", "-5", "nan", "1e9", "9" * 400, "", "٣"])
def test_a_senseless_retry_after_is_ignored(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer, header: str
) -> None:
    server.respond = lambda _rubric, number: (
        say("yes") if number else fail(429, Retry_After=header.encode().decode("latin-1"))
    )

    assert _labels(EndpointJudge(_endpoint(server, times)), [make_answer("a")]) == ["correct"]
    assert times.waits == [0.5]


def test_a_server_that_wants_an_hour_is_not_waited_for(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(429, Retry_After="3600")
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer("a")]) == ["unjudged"]
    assert times.waits == []
    assert len(server.requests) == 1
    assert "HTTP status 429" in str(judge.unreachable_reason)


def test_a_dawdling_server_is_left_after_the_time_out(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.busy_seconds = 3.0
    judge = EndpointJudge(_endpoint(server, times, timeout_seconds=0.1, attempts=2))
    started = time.monotonic()

    assert _labels(judge, [make_answer("a")]) == ["unjudged"]

    assert time.monotonic() - started < 2.5
    assert len(server.requests) == 2
    assert "none within 0.1 s" in str(judge.unreachable_reason)


def test_a_dawdling_server_is_not_waited_for_once_it_is_to_stop(
    server: FakeServer, make_answer: MakeAnswer
) -> None:
    server.busy_seconds = 4.0
    config = EndpointConfig(base_url=server.url, model="judge", timeout_seconds=60, concurrency=2)
    # It is to stop once there is something to wait for.
    judge = EndpointJudge(Endpoint(config, should_stop=lambda: len(server.requests) == 2))
    answers = [make_answer(text) for text in ("a", "b", "c", "d")]
    started = time.monotonic()

    with pytest.raises(AskingStopped):
        judge.judge(answers)

    assert time.monotonic() - started < 3.5
    assert len(server.requests) == 2
    server.busy_seconds = 0.0
    assert [verdict.label for verdict in judge.judge(answers)] == ["correct"] * 4


def test_a_server_that_is_not_there_leaves_answers_unjudged(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    endpoint = _endpoint(server, times, base_url="http://127.0.0.1:9/v1")
    judge = EndpointJudge(endpoint)

    assert _labels(judge, [make_answer("a")]) == ["unjudged"]
    assert "the connection failed" in str(judge.unreachable_reason)


def test_a_dead_server_is_not_hammered_and_asked_again_later(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(500)
    judge = EndpointJudge(_endpoint(server, times, concurrency=1))
    answers = [make_answer(f"number {number}") for number in range(50)]

    assert _labels(judge, answers) == ["unjudged"] * 50
    assert len(server.requests) == 3 * 3
    assert "50 of 50 requests" in str(judge.unreachable_reason)

    assert _labels(judge, answers) == ["unjudged"] * 50
    assert len(server.requests) == 9

    times.now += 61
    assert _labels(judge, answers) == ["unjudged"] * 50
    assert len(server.requests) == 12

    times.now += 61
    server.respond = lambda _rubric, _number: say("yes")
    assert _labels(judge, answers) == ["correct"] * 50
    assert "150 of 200 requests" in str(judge.unreachable_reason)


def test_requests_in_flight_stop_when_the_server_is_down(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(500)
    judge = EndpointJudge(_endpoint(server, times, concurrency=8))

    labels = _labels(judge, [make_answer(f"number {number}") for number in range(50)])

    assert labels == ["unjudged"] * 50
    # The third that is given up ends it; two more have begun in place of those before it.
    assert len(server.requests) <= (8 + 2) * 3


def test_single_failures_between_successes_do_not_count_as_dead(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda rubric, _number: (
        fail(500) if int(_text_under_test(rubric).split()[1]) % 2 else say("no")
    )
    judge = EndpointJudge(_endpoint(server, times, concurrency=1, attempts=1))

    labels = _labels(judge, [make_answer(f"number {number}") for number in range(20)])

    assert labels == ["incorrect", "unjudged"] * 10
    assert "10 of 20 requests" in str(judge.unreachable_reason)


def test_no_more_requests_run_at_once_than_allowed(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.busy_seconds = 0.02
    answers = [make_answer(f"number {number}") for number in range(24)]

    EndpointJudge(_endpoint(server, times, concurrency=3)).judge(answers)

    assert server.most_at_once == 3


def test_the_rate_bounds_every_attempt(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, number: fail(500) if number == 0 else say("yes")
    endpoint = _endpoint(server, times, concurrency=1, requests_per_minute=30)

    for wording in WORDINGS:
        EndpointJudge(endpoint, wording).judge([make_answer("a"), make_answer("b")])

    assert len(server.requests) == 5  # of which one is a second attempt
    assert times.now == pytest.approx(1000 + 4 * 2)


def test_the_rate_holds_by_the_real_clock(server: FakeServer, make_answer: MakeAnswer) -> None:
    config = EndpointConfig(
        base_url=server.url, model="judge", requests_per_minute=1200, concurrency=8
    )

    started = time.monotonic()

    EndpointJudge(Endpoint(config)).judge([make_answer(f"number {n}") for n in range(8)])

    assert server.times[-1] - started >= 7 * 0.05 - 0.01


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error_that_does_not_show_it(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer, status: int
) -> None:
    server.respond = lambda _rubric, _number: fail(status, f"Incorrect API key: {_KEY}")
    judge = EndpointJudge(_endpoint(server, times))

    with pytest.raises(JudgeError, match=r"key_variable: .* refuses the key") as caught:
        judge.judge([make_answer("a"), make_answer("b")])

    assert "OPENAI_API_KEY" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert _KEY not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert times.waits == []


def test_a_missing_key_is_asked_for_by_its_variable(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(401)
    judge = EndpointJudge(_endpoint(server, times, key_variable="NOT_SET_ANYWHERE"))

    with pytest.raises(JudgeError, match=r"variable NOT_SET_ANYWHERE is not set; set it"):
        judge.judge([make_answer("a")])


def test_the_key_is_sent_where_there_is_one_and_kept_nowhere(
    server: FakeServer,
    times: FakeTime,
    make_answer: MakeAnswer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", f" {_KEY}-mine\n")
    endpoint = _endpoint(server, times, key_variable="MY_KEY")
    keyless = _endpoint(server, times, key_variable="NOT_SET_ANYWHERE")

    for one in (endpoint, keyless):
        EndpointJudge(one).judge([make_answer("a")])

    assert server.keys == [f"Bearer {_KEY}-mine", None]
    assert _KEY not in repr(endpoint) + repr(endpoint.config) + repr(vars(endpoint))


def test_a_key_with_strange_characters_is_refused_without_showing_it(
    server: FakeServer,
    times: FakeTime,
    make_answer: MakeAnswer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nsecret…")

    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds characters") as caught:
        EndpointJudge(_endpoint(server, times)).judge([make_answer("a")])

    assert "secret" not in str(caught.value)


def test_an_unknown_model_names_the_field_and_the_remedy(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(404)

    with pytest.raises(JudgeError, match=r"judge\.endpoint\.model: .* has no 'judge' .* /v1"):
        EndpointJudge(_endpoint(server, times)).judge([make_answer("a")])


def test_another_refusal_repeats_what_the_server_says_without_key_and_controls(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    server.respond = lambda _rubric, _number: fail(400, f"max_tokens\x1b[2J {_KEY} " + "x" * 999)

    with pytest.raises(JudgeError, match=r"HTTP status 400.*max_tokens \[2J … x+") as caught:
        EndpointJudge(_endpoint(server, times)).judge([make_answer("a")])

    assert len(str(caught.value)) < 500


def test_a_text_that_the_server_filters_is_unjudged_and_no_fault_of_the_setup(
    server: FakeServer, times: FakeTime, make_answer: MakeAnswer
) -> None:
    body = json.dumps({"error": {"message": "filtered", "code": "content_filter"}})
    server.respond = lambda rubric, _number: (
        (400, {}, body) if _text_under_test(rubric) == "a" else say("yes")
    )
    judge = EndpointJudge(_endpoint(server, times))

    assert _labels(judge, [make_answer("a"), make_answer("b")]) == ["unjudged", "correct"]


def test_a_naive_model_that_obeys_raw_lines_is_not_reached_by_any_attack(
    server: FakeServer, times: FakeTime, attacks: list[Answer]
) -> None:
    """It says yes to whatever looks like a verdict, a speaker or a template's token."""
    line = r"(?im)^\W*(?:verdict|grade|score|label|result|reply|assistant|system|human|user)\s*:"
    tokens = r"<\|?/?\w+\|?>|<｜|\[/?INST\]|<<SYS>>|###|```|\"\"\"|<end_of_turn>|\]\]>|<!--"
    exposed = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
    naive = re.compile(f"{line}|{tokens}|{exposed}")
    harmless = {wording.opening for wording in WORDINGS} | {w.instruction for w in WORDINGS}

    def respond(rubric: str, _number: int) -> tuple[int, dict[str, str], str]:
        lines = rubric.splitlines()
        assert len(lines) == 5
        assert {lines[0], lines[-1]} <= harmless
        return say("yes" if naive.search(rubric) else "no")

    server.respond = respond
    config = JudgeConfig(
        kind="cascade", endpoint=EndpointConfig(base_url=server.url, model="naive", concurrency=8)
    )
    judge = make_judge(config, loader=lambda name: pytest.fail(name))
    alone = EndpointJudge(_endpoint(server, times, concurrency=8), GRADER)

    assert {verdict.label for verdict in judge.judge(attacks)} == {"incorrect", "not_attempted"}
    labels = _labels(alone, attacks)
    assert set(labels) <= {"incorrect", "not_attempted", "unjudged"}
    assert labels.count("incorrect") > 90
    # The naive model would fall for many of them, were they not fenced.
    assert sum(naive.search(answer.text) is not None for answer in attacks) > 30
