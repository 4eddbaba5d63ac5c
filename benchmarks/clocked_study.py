"""Runs `remember` and notes how long it trained and asked, when it saw what, and its peak memory.

`python -m benchmarks.clocked_study FILE ARGUMENTS...` is `remember ARGUMENTS...`; what was noted
goes to FILE as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measuring import peak_memory_mib
from data.measurements import Measurement
from study.commands import running
from study.commands.application import run_application
from study.live_view import LiveView
from study.watching import Effort

PEAK = "peak memory in MiB"
SECONDS, SEEN = "seconds", "seen"


def main() -> None:
    """Run the command line and end with its exit code."""
    begun = time.perf_counter()
    file, *arguments = sys.argv[1:]
    noted: dict[str, Any] = {}
    seen: list[tuple[float, float]] = []  # seconds since the start, recall - knowledge loss

    class NotingView(LiveView):
        """Notes what a person would read."""

        def trial_measured(self, number: int, measurement: Measurement) -> None:
            recall, loss = measurement.recall.value, measurement.knowledge_loss.value
            if recall is not None and loss is not None:
                seen.append((time.perf_counter() - begun, recall - loss))
            super().trial_measured(number, measurement)

        def sitting_ended(self, effort: Effort) -> None:
            noted.update(asdict(effort))
            super().sitting_ended(effort)

    setattr(running, "LiveView", NotingView)  # noqa: B010 # to a type checker it is no attribute
    code = run_application(arguments)
    noted |= {PEAK: round(peak_memory_mib()), SECONDS: time.perf_counter() - begun, SEEN: seen}
    Path(file).write_text(json.dumps(noted))
    sys.exit(code)


if __name__ == "__main__":
    main()
