"""What the database takes of the default study: timed wherever its main thread may wait for it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TypeVar

import optuna

from benchmarks.measuring import RESULTS, write_result
from storage.patience import Patience
from storage.reader import read_study
from study import setting_up
from study.place import find_place, open_place
from study.spec import StudySpec
from study.watching import SilentWatcher

BAR = 0.02  # the most that the storage may take of a study
MOST_EXPENSIVE = 10

_Result = TypeVar("_Result")
# Modules through which calls of the storage pass.
_PASSED_THROUGH = ("storage.", "optuna.", "contextlib", __name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who called the storage: a function of ours, how often, and the seconds of all calls."""

    name: str
    calls: int
    seconds: float


class TimedPatience(Patience):
    """Adds up the seconds of calls that the main thread makes, those within others left out."""

    def __init__(
        self,
        *,
        notice: Callable[[str], None] = lambda _: None,
        should_give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(notice=notice, should_give_up=should_give_up)
        self.seconds_by_caller: defaultdict[str, float] = defaultdict(float)
        self.calls_by_caller: Counter[str] = Counter()
        self._is_within = False

    def outlast(
        self, call: Callable[[], _Result], *, drop_connections: Callable[[], None]
    ) -> _Result:
        """Do as `Patience.outlast` does, and note how long it took and who asked for it."""
        is_timed = threading.current_thread() is threading.main_thread() and not self._is_within
        if not is_timed:
            return super().outlast(call, drop_connections=drop_connections)
        self._is_within = True
        caller = _name_caller(sys._getframe(1))
        begun = time.perf_counter()
        try:
            return super().outlast(call, drop_connections=drop_connections)
        finally:
            self.seconds_by_caller[caller] += time.perf_counter() - begun
            self.calls_by_caller[caller] += 1
            self._is_within = False

    @property
    def seconds(self) -> float:
        """Return the seconds of all timed calls."""
        return sum(self.seconds_by_caller.values())

    def most_expensive(self, count: int = MOST_EXPENSIVE) -> list[Caller]:
        """Return so many callers at most, those first that took the most seconds in all."""
        names = sorted(self.seconds_by_caller, key=lambda n: -self.seconds_by_caller[n])
        return [
            Caller(
                name=name,
                calls=self.calls_by_caller[name],
                seconds=self.seconds_by_caller[name],
            )
            for name in names[:count]
        ]


def run(runs: int, *, spec: StudySpec | None = None, folder: Path = RESULTS) -> None:
    """Run the study once and write `storage_share.json`.

    Args:
        runs: Not used: within one study everything is done many times.
        spec: The study, if not the default one; its `out` and `storage` are replaced.
        folder: Where results are.
    """
    del runs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made: list[TimedPatience] = []

    def make_patience(
        *, notice: Callable[[str], None], should_give_up: Callable[[], bool]
    ) -> TimedPatience:
        made.append(TimedPatience(notice=notice, should_give_up=should_give_up))
        return made[-1]

    with TemporaryDirectory() as name:
        chosen = (spec or StudySpec()).model_copy(update={"out": name, "storage": None})
        place = find_place(chosen)
        setattr(setting_up, "Patience", make_patience)  # noqa: B010 # a class to a type checker
        begun = time.perf_counter()
        try:
            setting_up.run_study(
                chosen, place, SilentWatcher(), should_stop=lambda: False, announce=_say
            )
        finally:
            setattr(setting_up, "Patience", Patience)  # noqa: B010
        wall_seconds = time.perf_counter() - begun
        with closing(open_place(place)) as storage:
            record = read_study(storage, place.name)
    (patience,) = made
    trial_seconds = sum(trial.costs.seconds for trial in record.trials if trial.costs is not None)
    facts: dict[str, str | int | float] = {
        "trials": len(record.trials),
        "slots (K)": record.slots,
        "measurements": len(record.measurements),
        "seconds of the study": round(wall_seconds, 1),
        "seconds of all trials in their slots": round(trial_seconds, 1),
        "seconds in the storage": round(patience.seconds, 3),
        "share of the study's seconds": _share(patience.seconds, wall_seconds),
        "share of the trials' seconds": _share(patience.seconds, trial_seconds),
        f"bar of {BAR:.0%} of the trials' seconds": _judge(patience.seconds, trial_seconds),
        f"bar of {BAR:.0%} of the study's seconds": _judge(patience.seconds, wall_seconds),
    }
    for place_, caller in enumerate(patience.most_expensive(), start=1):
        facts[f"caller {place_}"] = (
            f"{caller.name}, {caller.seconds:.3f} s in {caller.calls} calls"
        )
    write_result("storage_share", {}, facts=facts, folder=folder)
    for fact, value in facts.items():
        _say(f"{fact}: {value}")


def _name_caller(frame: FrameType) -> str:
    """Return which function of ours called the storage, and what it called there."""
    called = "the storage"
    found: FrameType | None = frame
    while found is not None:
        module = str(found.f_globals.get("__name__", ""))
        if not module.startswith(_PASSED_THROUGH):
            return f"{module}.{found.f_code.co_qualname}: {called}"
        if found.f_code.co_name == "waiting":  # what `storage.patience.patient` wraps around
            called = str(found.f_locals["call"].__qualname__)
        elif module != __name__ and not found.f_code.co_name.startswith(("_", "<")):
            called = found.f_code.co_qualname
        found = found.f_back
    return called


def _share(seconds: float, of_seconds: float) -> str:
    return f"{seconds / of_seconds:.2%}" if of_seconds else "nothing ran"


def _judge(seconds: float, of_seconds: float) -> str:
    return "kept" if seconds < BAR * of_seconds else "missed"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
