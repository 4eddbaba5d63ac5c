"""Serves optuna-dashboard on a study's opened storage and on its files."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard  # type: ignore[import-untyped]

from storage.artifacts import ArtifactFolder
from storage.database import StudyStorage
from study.dashboard.read_only import mend_requests, only_reading
from study.place import Place
from study.spec import ConfigurationError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class StudyFolders:
    """Optuna's artifact store over the folders of all studies beside one of them.

    The dashboard shows every study of a database and asks a single store for their files.
    """

    def __init__(self, own: Path) -> None:
        self._own = ArtifactFolder(own)
        self._name = own.name
        self._studies = own.parent.parent

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the opened file of an artifact of any of the studies.

        Raises:
            ArtifactNotFound: If none of them has it.
        """
        return self._find(artifact_id).open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact into the folder of the study that was named."""
        self._own.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact of any of the studies.

        Raises:
            ArtifactNotFound: If none of them has it.
        """
        self._find(artifact_id).remove(artifact_id)

    def _find(self, artifact_id: str) -> ArtifactFolder:
        if self._own.size_bytes(artifact_id) is None:
            for folder in self._studies.glob(f"*/{self._name}"):
                store = ArtifactFolder(folder)
                if store.size_bytes(artifact_id) is not None:
                    return store
        return self._own


def make_application(
    storage: StudyStorage, place: Place, *, read_only: bool = False
) -> WSGIApplication:
    """Return the dashboard as a WSGI application, with `read_only` one that changes nothing."""
    dashboard: WSGIApplication = optuna_dashboard.wsgi(
        storage, artifact_store=StudyFolders(place.artifacts)
    )
    application = mend_requests(dashboard)
    return only_reading(application) if read_only else application


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def listening(application: WSGIApplication, host: str, port: int) -> Iterator[WSGIServer]:
    """Open the port for an application, which `serve_forever` of what is yielded then serves.

    Requests are answered in threads, and the port is closed at the end. Port 0 is any free one.

    Raises:
        ConfigurationError: If the host or the port cannot be had.
    """
    try:
        server = make_server(
            host,
            port,
            application,
            server_class=_ThreadingServer6 if ":" in host else _ThreadingServer,
            handler_class=_QuietHandler,
        )
    except OSError as error:
        raise ConfigurationError(_explain(error, host, port)) from error
    with server:
        yield server


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser that keeps its connection open holds up nothing


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


def _explain(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"host: {host!r} is no address of this machine; name one, such as 127.0.0.1"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port: {port} of {host} is in use already, perhaps by another dashboard; "
                "name another with --port (0 takes any free one)"
            )
        case errno.EADDRNOTAVAIL:
            return f"host: {host!r} is no address of this machine; name one, such as 127.0.0.1"
        case errno.EACCES:
            return f"port: {port} may not be opened by this user; name one above 1023 with --port"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"port: {port} of {host} cannot be opened ({reason}); name another with --port"
