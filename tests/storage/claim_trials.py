"""One of several workers of a test: opens databases, pops enqueued trials and claims leases.

Arguments: a folder in which each worker says that it is ready, the number of workers to wait for,
and the URLs of the databases, one after the other. Prints a JSON object a line for each: numbers
popped, and leases won of 40 offered to all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import optuna

from storage.database import open_storage
from storage.leases import LeaseBook, describe_this_process
from storage.recorder import Recorder

TRIALS = 40


def wait_for_all(folder: Path, stage: str, workers: int) -> None:
    """Return when `workers` processes have come to the same stage, and fail if they never do."""
    (folder / f"{stage}-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob(f"{stage}-*"))) < workers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"another worker did not come to stage {stage!r}")
        time.sleep(0.005)


def race(url: str, folder: Path, workers: int) -> dict[str, list[int]]:
    """Race the other workers through every step that only one of them may win."""
    wait_for_all(folder, "open", workers)
    storage = open_storage(url)
    wait_for_all(folder, "create", workers)
    Recorder(storage, "race").create_study_record(config="", fingerprint={}, slots=1, seed=0)
    study = optuna.create_study(
        study_name="race",
        storage=storage,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    wait_for_all(folder, "enqueue", workers)
    for index in range(TRIALS // workers):
        study.enqueue_trial({"x": index})
    wait_for_all(folder, "pop", workers)
    popped = [study.ask().number for _ in range(TRIALS // workers)]
    leases, owner = LeaseBook(storage), describe_this_process()
    wait_for_all(folder, "claim", workers)
    claimed = [
        number
        for number in range(TRIALS)
        if leases.acquire("race", number, owner=owner, seconds=60) is not None
    ]
    wait_for_all(folder, "end", workers)  # an owner that had ended would lose its leases
    storage.close()
    return {"popped": popped, "claimed": claimed}


def main() -> None:
    """Race through one database after the other."""
    folder, workers, urls = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for index, url in enumerate(urls):
        stages = folder / str(index)
        stages.mkdir(exist_ok=True)
        print(json.dumps(race(url, stages, workers)))


if __name__ == "__main__":
    main()
