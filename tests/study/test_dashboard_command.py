"""What the flags of `remember dashboard` refuse, and what it warns of."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import pytest

from study.commands.application import run_application
from study.dashboard.server import is_loopback, listening
from study.spec import ConfigurationError
from tests.study.dashboard_study import build_study


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def message(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return " ".join(output.err.split())


def test_a_port_that_is_taken_is_refused(
    capsys: pytest.CaptureFixture[str], taken_port: int
) -> None:
    build_study(Path("runs"))
    assert run_application(["dashboard", "--port", str(taken_port)]) == 2
    assert message(capsys) == (
        f"error: port: {taken_port} of 127.0.0.1 is in use already, perhaps by another dashboard; "
        "name another with --port (0 takes any free one)"
    )


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_a_host_that_is_not_this_machine_is_refused(
    capsys: pytest.CaptureFixture[str], host: str
) -> None:
    build_study(Path("runs"))
    assert run_application(["dashboard", "--port", "0", "--host", host]) == 2
    assert f"host: '{host}' is no address of this machine" in message(capsys)


def test_a_port_beyond_all_ports_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["dashboard", "--port", "65536"]) == 2
    assert "65535" in message(capsys)


def test_without_a_database_the_remedy_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_application(["dashboard"]) == 2
    assert "there is no database" in message(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "is_warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--read-only"], False),
        ([], False),
    ],
)
def test_whoever_opens_it_to_others_is_warned_unless_it_is_read_only(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    is_warned: bool,
) -> None:
    build_study(Path("runs"))
    monkeypatch.setattr("socketserver.BaseServer.serve_forever", lambda *_: None)
    assert run_application(["dashboard", "--port", "0", *flags]) == 0
    said = message(capsys)
    assert ("the dashboard has no login" in said) == is_warned
    assert ("delete every study; add --read-only" in said) == is_warned
    assert "study shown at http://" in said


@pytest.mark.parametrize(("flags", "code"), [(["--read-only"], 405), ([], 204)])
def test_what_listens_refuses_changes_if_asked_to(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], code: int
) -> None:
    build_study(Path("runs"))
    answered = []

    def delete_study(server: WSGIServer) -> None:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as client:
            client.request("DELETE", "/api/studies/1")
            answered.append(client.getresponse().status)
        thread.join()

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", delete_study)
    assert run_application(["dashboard", "--port", "0", *flags]) == 0
    assert answered == [code]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_counts_as_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_port_that_needs_more_rights_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("study.dashboard.server.make_server", refuse)
    with (
        pytest.raises(ConfigurationError, match="name one above 1023"),
        listening(lambda *_: [], "127.0.0.1", 80),
    ):
        pass
