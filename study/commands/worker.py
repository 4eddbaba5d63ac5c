"""`remember worker`: joins a study that is there, from any machine that reaches its database."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from study.commands.application import (
    Interrupted,
    OutOption,
    StorageOption,
    application,
    messages,
)
from study.commands.running import warn_of_untested
from study.commands.stop_signal import stop_signal
from study.crew import parent_is_gone, read_post
from study.engine import Post
from study.live_view import LiveView
from study.place import find_place
from study.setting_up import run_study
from study.spec import ConfigurationError, EngineSpec, StudySpec, load_spec
from study.stored import read_stored


@application.command()
def worker(
    storage: StorageOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the study to join.")] = None,
    out: OutOption = None,
    facts: Annotated[
        Path | None,
        typer.Option(help="The study's facts file, where it lies elsewhere on this machine."),
    ] = None,
    probes: Annotated[
        Path | None, typer.Option(help="Its probes file, where that lies elsewhere.")
    ] = None,
    rehearsal: Annotated[
        Path | None, typer.Option(help="Its file of known facts, where that lies elsewhere.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute, such as cuda:1; default: the study's.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads on the processor; default: the study's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder of the study's model, where it lies elsewhere on this machine."),
    ] = None,
    from_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Join a study with this machine's device, until its last trial has ended.

    Name the same --storage as the others, and as --out a folder that all of them share: what a
    worker that dies leaves there, others go on from.
    """
    if from_stdin:  # how `remember run --workers` starts its own
        spec, post = read_post(sys.stdin.read())
    else:
        elsewhere = {
            "facts": facts,
            "probes": probes,
            "rehearsal_facts": rehearsal,
            "model": model,
        }
        spec, joined = _specs_to_join(storage, name, out, elsewhere)
        engine = _engine_of(spec.engine, device=device, threads=threads)
        post = Post(engine=engine, joined=joined)
    place = find_place(spec)
    warn_of_untested(place.storage_url)
    stored = read_stored(place)
    ended = 0 if stored is None else stored.ended_trials
    with (
        stop_signal() as stop,
        LiveView(messages, trials=spec.trials, ended=ended) as view,
    ):
        is_finished = run_study(
            spec,
            place,
            view,
            should_stop=lambda: stop() or parent_is_gone(),
            announce=view.announce,
            post=post,
        )
    if not is_finished:
        messages.print("every running trial is saved")
        raise Interrupted(stop.code or 1)
    messages.print(Text("nothing is left to do; `remember report` writes what was found"))


def _specs_to_join(
    storage: str | None,
    name: str | None,
    out: Path | None,
    elsewhere: Mapping[str, Path | str | None],
) -> tuple[StudySpec, StudySpec]:
    """Return the spec of a study as this worker reaches it, and as it was made.

    Args:
        storage: As the flag says.
        name: As the flag says.
        out: As the flag says.
        elsewhere: Paths of the study's files on this machine; None where they are as recorded.

    Raises:
        ConfigurationError: If no study is named, or there is none of this name.
    """
    if name is None:
        raise ConfigurationError("name: a worker joins a study by its --name; name it")
    asked = load_spec(
        None, {"storage": storage, "name": name, "out": None if out is None else str(out)}
    )
    place = find_place(asked)
    record = read_stored(place)
    if record is None:
        raise ConfigurationError(
            f"name: there is no study called {name!r} at {place.shown_storage_url}; start it with "
            "`remember run`, then let workers join"
        )
    made = StudySpec.model_validate_json(record.config)
    here: dict[str, object] = {
        "storage": asked.storage or place.storage_url,
        "name": name,
        "out": made.out if out is None else asked.out,
        # Its points are enqueued already, and the address of their study is not recorded.
        "start_from": None if record.trials else made.start_from,
    }
    here |= {field: str(path) for field, path in elsewhere.items() if path is not None}
    return made.model_copy(update=here), made


def _engine_of(engine: EngineSpec, *, device: str | None, threads: int | None) -> EngineSpec:
    given = {"device": device, "threads": threads}
    values = engine.model_dump() | {
        key: value for key, value in given.items() if value is not None
    }
    return load_spec(None, {"engine": values}).engine
