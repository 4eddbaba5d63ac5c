"""One of several workers of a test: counts in a file under a study's lock, or holds it for ever.

Arguments: the database's URL, a file with a number, and how often to add 1 to it. With 0 times the
lock is held until the process is killed; "held" is printed as soon as it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from storage.database import open_storage
from storage.leases import LeaseBook, describe_this_process


def main() -> None:
    """Do to the file what only one process at a time may do."""
    url, counter, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    storage = open_storage(url)
    leases, owner = LeaseBook(storage), describe_this_process()
    for _ in range(times):
        with leases.lock(
            "oscars", "asking", owner=owner, seconds=60, patience_seconds=60, poll_seconds=0.005
        ):
            number = int(counter.read_text())
            time.sleep(0.005)  # time for another process to read the same number
            counter.write_text(str(number + 1))
    if times == 0:
        with leases.lock("oscars", "asking", owner=owner, seconds=600, patience_seconds=60):
            print("held", flush=True)
            time.sleep(600)
    storage.close()


if __name__ == "__main__":
    main()
