"""Keeps the dashboard's contents fresh from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.database import StudyStorage
from study.dashboard.contents import StudyStamp, read_stamp, refresh_dashboard
from study.place import Place

REFRESH_SECONDS = 60.0


@contextmanager
def refreshing(
    storage: StudyStorage,
    place: Place,
    *,
    say: Callable[[str], None],
    every_seconds: float = REFRESH_SECONDS,
) -> Iterator[None]:
    """During it the contents are refreshed: at once, and then when the study has changed.

    What goes wrong is told through `say`, once, and tried again the next time.
    """
    ended = threading.Event()

    def go_on() -> None:
        last: StudyStamp | None = None
        told = ""
        while True:
            try:
                stamp = read_stamp(storage, place.name)
                if stamp != last:
                    refresh_dashboard(storage, place)
                    last = stamp
            except Exception as error:  # whatever it is, the dashboard itself goes on
                problem = f"notes and figures could not be refreshed: {error}"
                if problem != told:
                    say(problem)
                told = problem
            if ended.wait(every_seconds):
                return

    thread = threading.Thread(target=go_on, name="dashboard contents", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # A refresh takes about a second; one that waits for a lost database is left behind.
        thread.join(timeout=5.0)
