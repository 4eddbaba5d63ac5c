"""Shows a study with several workers in the terminal: what they say, and a table of them."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from analysis.status_table import show_status
from study.standing import Onlooker

_READ_SECONDS = 2.0  # the database is read no more often


class CrewView:
    """Prints what the workers say; on a terminal a table of them stands below."""

    def __init__(self, console: Console, onlooker: Onlooker) -> None:
        self._console = console
        self._onlooker = onlooker
        self._read_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> CrewView:
        """Start drawing."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing and leave the terminal clean."""
        self._live.stop()

    def say(self, words: str) -> None:
        """Print what a worker says; it may be any text."""
        self._console.print(Text(words), soft_wrap=True)

    def look(self) -> None:
        """Draw the workers anew, every few seconds at most."""
        if not self._console.is_terminal or time.monotonic() - self._read_at < _READ_SECONDS:
            return
        self._read_at = time.monotonic()
        status = self._onlooker.look()
        if status is not None:
            self._live.update(show_status(status), refresh=True)
