"""The `remember` command: runs a subcommand and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
import warnings


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 usage, 3 nothing usable, 130/143 signals."""
    # Before any library reads it: nothing here needs a network unless a hub model is named.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*experimental.*")
    from study.commands.application import run_application

    sys.exit(run_application(sys.argv[1:]))


if __name__ == "__main__":
    main()
