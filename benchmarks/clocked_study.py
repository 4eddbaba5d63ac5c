"""Runs `remember` and notes how long it trained and asked, and its peak memory.

`python -m benchmarks.clocked_study FILE ARGUMENTS...` is `remember ARGUMENTS...`; what was noted
goes to FILE as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measuring import peak_memory_mib
from study.commands import running
from study.commands.application import run_application
from study.live_view import LiveView
from study.watching import Effort

PEAK = "peak memory in MiB"


def main() -> None:
    """Run the command line and end with its exit code."""
    file, *arguments = sys.argv[1:]
    noted: dict[str, float] = {}

    class NotingView(LiveView):
        """Notes what a person would read at the end of the run."""

        def sitting_ended(self, effort: Effort) -> None:
            noted.update(asdict(effort))
            super().sitting_ended(effort)

    setattr(running, "LiveView", NotingView)  # noqa: B010 # to a type checker it is no attribute
    code = run_application(arguments)
    noted[PEAK] = round(peak_memory_mib())
    Path(file).write_text(json.dumps(noted))
    sys.exit(code)


if __name__ == "__main__":
    main()
