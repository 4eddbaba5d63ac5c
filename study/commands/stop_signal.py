"""Turns Ctrl-C and SIGTERM into a request to stop that long work asks for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from study.commands.application import Interrupted


@dataclass(slots=True)
class StopRequest:
    """Which signal asked for a stop, as an exit code; None while none did."""

    code: int | None = None

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self.code is not None


@contextmanager
def stop_signal() -> Iterator[StopRequest]:
    """During it the first Ctrl-C or SIGTERM asks for a clean stop, the second stops at once."""
    stop = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.code is not None:
            raise Interrupted(128 + number)
        stop.code = 128 + number

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
