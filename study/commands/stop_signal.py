"""Turns Ctrl-C, SIGTERM and a lost terminal into a request to stop that long work asks for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from study.commands.application import Interrupted, messages, results


@dataclass(slots=True)
class StopRequest:
    """Which signal asked for a stop, as an exit code; None while none did."""

    code: int | None = None

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self.code is not None


@contextmanager
def stop_signal() -> Iterator[StopRequest]:
    """During it the first Ctrl-C or SIGTERM asks for a clean stop, the second stops at once.

    So does a terminal that hangs up, as that of a lost ssh connection; nothing is written to it
    any more. A process that shall outlive its terminal, as under `nohup`, does.
    """
    stop = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if number == hang_up:
            for console in (messages, results):
                console.quiet = True
        if stop.code is not None:
            raise Interrupted(128 + number)
        stop.code = 128 + number

    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        numbers.append(hang_up)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
