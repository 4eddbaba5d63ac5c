"""The table of a running study: what it says, and that no text in it does anything."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from analysis.points import front_points, study_points
from analysis.status_table import show_status
from analysis.workforce import StudyStatus, WorkerStatus
from storage.records import WorkerState
from tests.analysis.conftest import REFERENCE, StudyMaker

STATE = WorkerState(
    activity="training",
    trained_tokens=246_900,
    training_seconds=200.0,
    asking_seconds=2.0,
    memory_bytes=1_260_000_000,
    memory_limit_bytes=16_400_000_000,
    load=1.75,
)
WORKER = WorkerStatus(
    owner="ada:4711:boot/1",
    device="cuda:1",
    slots=2,
    trials=(3, 12),
    state=STATE,
    silent_seconds=3.0,
)
STATUS = StudyStatus(
    study="oscars",
    total=40,
    counts={"complete": 9, "pruned": 3, "failed": 0, "running": 2},
    workers=(WORKER,),
    trials_per_hour=1234.0,
    seconds_left=7500.0,
    best=None,
)


def drawn(status: StudyStatus) -> str:
    """Return what a terminal of many columns receives, colours included."""
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, color_system="truecolor")
    console.print(show_status(status))
    return file.getvalue()


def shown(status: StudyStatus) -> list[str]:
    """Return the lines that a file receives, each with single spaces."""
    file = io.StringIO()
    Console(file=file, width=200).print(show_status(status))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def row(worker: WorkerStatus) -> str:
    return shown(replace(STATUS, workers=(worker,)))[-1]


def test_progress_rate_and_time_left_are_one_line() -> None:
    assert shown(STATUS)[0] == (
        "oscars: 12 of 40 trials ended (9 complete, 3 pruned, 2 running), 1,234 an hour, about "
        "2 h 05 min left"
    )


def test_what_is_not_known_is_left_out() -> None:
    nothing = replace(
        STATUS,
        counts={"complete": 0, "pruned": 0, "failed": 0, "running": 0},
        workers=(),
        trials_per_hour=None,
        seconds_left=None,
    )
    assert shown(nothing) == ["oscars: 0 of 40 trials ended", "no worker is at it"]


def test_a_worker_is_a_row() -> None:
    assert shown(STATUS)[1] == "worker device trials tokens/s memory load doing"
    assert row(WORKER) == "ada:4711 cuda:1 3, 12 1,234 1.3 of 16 GB 1.8 training"


def test_a_worker_that_has_said_nothing_yet_is_starting() -> None:
    assert row(replace(WORKER, state=None, trials=())) == (
        "ada:4711 cuda:1 – (of 2 slots) – – – starting"
    )


def test_what_a_system_does_not_tell_is_a_dash() -> None:
    state = replace(STATE, training_seconds=0.0, memory_limit_bytes=None, load=None)
    assert row(replace(WORKER, state=state, trials=(3,))) == (
        "ada:4711 cuda:1 3 (of 2 slots) – 1.3 GB – training"
    )


def test_a_long_silence_is_shown() -> None:
    assert row(replace(WORKER, silent_seconds=59.0)).endswith(" training")
    assert row(replace(WORKER, silent_seconds=90.0)).endswith(" training, silent for 1 min 30 s")


def test_the_best_so_far_is_shown_with_its_intervals(maker: StudyMaker) -> None:
    maker.add((4, 0.90, 0.10))
    (best,) = front_points(study_points(maker.study()), REFERENCE)
    assert shown(replace(STATUS, best=best))[1] == (
        "best so far: trial 0 after 4 epochs, recall 90 % (85–95 %), knowledge loss 10 % (5–15 %)"
    )


def test_untrusted_text_is_shown_and_does_nothing() -> None:
    rude = "[bold red]x[/] [link=http://rude.example]y[/link] \x1b]0;taken\x07 \u202egnp.exe"
    worker = replace(
        WORKER,
        owner=f"{rude}:1:boot",
        device="[red]cpu[/red]\x1b[2J",
        state=replace(STATE, activity=f"[blink]{rude}"),
    )
    written = drawn(replace(STATUS, study=rude, workers=(worker,)))
    plain = written.replace("\x1b[0m", "").replace("\x1b[2m", "")  # of the table's own heading
    assert "\x1b" not in plain
    assert "\u202e" not in plain
    for part in ("[bold red]x[/]", "[link=http://rude.example]y[/link]", "\\x1b]0;taken\\x07"):
        assert plain.count(part) == 3
    assert "[red]cpu[/red]\\x1b[2J" in plain
    assert "[blink]" in plain


def test_the_peak_stands_beside_what_is_held_now() -> None:
    peak = replace(STATE, peak_memory_bytes=2_040_000_000)
    assert "1.3 of 16 GB, peak 2.0" in row(replace(WORKER, state=peak))
    assert "peak" not in row(WORKER)
