"""The `remember` command: runs a subcommand and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 usage, 3 nothing usable, 130/143 signals."""
    signal.signal(signal.SIGINT, _leave)
    # Before any library reads it: nothing here needs a network unless a hub model is named.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*experimental.*")
    from study.commands.application import run_application

    sys.exit(run_application(sys.argv[1:]))


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once while modules are imported; later signals are the application's to handle."""
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
