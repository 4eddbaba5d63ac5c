"""Compares our GPTQ reader with auto-gptq: `make parity-auto-gptq`.

Two environments cannot share a process. This one writes checkpoints and what our reader makes of
them; the other one reads them with auto-gptq, compares, and prints a table (`legacy.py`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.auto_gptq.expecting import write_checkpoints


def main() -> int:
    """Return the exit code: 0 if all agrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, required=True, help="interpreter of auto-gptq's environment"
    )
    python = parser.parse_args().python
    if not python.is_file():
        parser.error(f"--python: {python} is not there; `make parity-auto-gptq` makes it")
    with TemporaryDirectory() as folder:
        write_checkpoints(Path(folder))
        script = Path(__file__).with_name("legacy.py")
        return subprocess.run([python, "-W", "ignore", script, folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
