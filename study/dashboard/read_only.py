"""Wraps the dashboard's application: what it cannot take is mended, and changes may be refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

READING = ("GET", "HEAD")
REFUSAL = (
    "This dashboard is read-only: nothing can be changed or deleted here. "
    "Start `remember dashboard` without --read-only to do so."
)


def mend_requests(application: WSGIApplication) -> WSGIApplication:
    """Return the application with a default for the header without which it fails.

    optuna-dashboard 0.21 answers requests for its script with an error unless they say which
    encodings they accept; health checks and some proxies do not.
    """

    def mended(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        return application(environ, start_response)

    return mended


def only_reading(application: WSGIApplication) -> WSGIApplication:
    """Return the application with every request refused that may change something.

    What is refused is answered with 405 and, as the dashboard's own errors, JSON with a `reason`.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING:
            return application(environ, start_response)
        body = json.dumps({"reason": REFUSAL}).encode()
        start_response(
            "405 Method Not Allowed",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Allow", ", ".join(READING)),
            ],
        )
        return [body]

    return guarded
