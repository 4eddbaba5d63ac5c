"""Runs the benchmarks and writes the table: `python -m benchmarks [--runs 5] [PART ...]`.

They run one after the other, each in a process of its own, so that memory and what the allocator
has learned are its own. From the repository's root, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

from benchmarks.measuring import RUNS
from benchmarks.one_part import run_part
from benchmarks.table import write_table

PARTS = (
    "training",
    "floor",
    "generation",
    "whole_study",
    "growth",
    "losing",
    "scale",
    "storage_share",
)


def main() -> int:
    """Run the chosen parts; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of every way; default: {RUNS}")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    context = multiprocessing.get_context("spawn")
    failed = []
    for part in arguments.parts or PARTS:
        print(part, file=sys.stderr, flush=True)
        begun = time.perf_counter()
        process = context.Process(target=run_part, args=(part, arguments.runs))
        process.start()
        process.join()
        print(f"{part}: {time.perf_counter() - begun:.0f} s in all", file=sys.stderr, flush=True)
        if process.exitcode:
            failed.append(part)
    write_table()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
