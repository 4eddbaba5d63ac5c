"""`remember doctor`: says what this machine offers and what stands in the way, with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Annotated

import psutil
import typer
from rich.table import Table
from rich.text import Text

from objectives.models.machine.devices import (
    cuda_build,
    driver_gpus,
    free_bytes,
    list_devices,
    unused_gpu_remedy,
)
from storage.artifacts import ArtifactError
from storage.database import StorageError, StudyStorage
from storage.reader import list_studies
from storage.records import StudySummary
from study.commands.application import (
    FAILED,
    NameOption,
    OutOption,
    StorageOption,
    application,
    results,
)
from study.mending import Finding, examine
from study.place import Place, find_place, open_place
from study.spec import ConfigurationError, load_spec
from study.versions import package_versions


@application.command()
def doctor(
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Put right what a study's crashes left behind.")
    ] = False,
) -> None:
    """Check torch, devices, memory, disk and database, and what crashes left behind."""
    table = Table(box=None, show_header=False, pad_edge=False)
    problems: list[str] = []
    for package, version in package_versions().items():
        table.add_row(package, version)
    table.add_row("torch build", f"CUDA {build}" if (build := cuda_build()) else "CPU only")
    for gpu in driver_gpus():
        table.add_row("driver lists", Text(gpu))
    for device in list_devices():
        memory = (
            ""
            if device.total_bytes is None
            else f", {_gigabytes(free_bytes(device.name))} of "
            f"{_gigabytes(device.total_bytes)} free"
        )
        table.add_row(device.name, f"{device.kind}{memory}")
    table.add_row("memory free", _gigabytes(psutil.virtual_memory().available))
    remedy = unused_gpu_remedy()
    if remedy is not None:
        problems.append(remedy)
    place = find_place(
        load_spec(
            None, {"storage": storage, "name": name, "out": None if out is None else str(out)}
        )
    )
    existing = next(
        p for p in (place.folder.parent, *place.folder.absolute().parents) if p.exists()
    )
    table.add_row(
        "disk free", Text(f"{_gigabytes(shutil.disk_usage(existing).free)} at {existing}")
    )
    where = place.shown_storage_url
    with ExitStack() as stack:
        opened: StudyStorage | None = None
        studies: tuple[StudySummary, ...] = ()
        try:
            if place.has_database:
                opened = stack.enter_context(closing(open_place(place)))
                studies = list_studies(opened)
                number = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
                table.add_row("database", Text(f"{where}, {number}"))
            else:
                table.add_row("database", Text(f"none yet at {where}; a run makes it"))
        except StorageError as error:
            opened = None
            problems.append(str(error))
            table.add_row("database", Text(f"{where}, which cannot be used"))
        results.print(table)
        for problem in problems:
            _say("problem", "bold red", problem)
        is_well = not problems
        if opened is not None:
            findings = _examine(opened, studies, name, place)
            is_well &= _show_findings(findings, mend=mend)
        elif name is not None and not problems:
            raise ConfigurationError(_no_such_study(name, (), where))
    if not is_well:
        raise typer.Exit(FAILED)
    results.print(Text("nothing stands in the way", style="green"))


def _examine(
    storage: StudyStorage,
    studies: Sequence[StudySummary],
    name: str | None,
    place: Place,
) -> tuple[Finding, ...]:
    """Return what is amiss with the named study, or with every study of the database.

    Raises:
        ConfigurationError: If there is no study of this name.
    """
    names = [study.name for study in studies if name is None or study.name == name]
    if name is not None and not names:
        raise ConfigurationError(_no_such_study(name, studies, place.shown_storage_url))
    return tuple(
        replace(finding, message=f"study {each}: {finding.message}")
        for each in names
        for finding in examine(
            storage, replace(place, name=each, folder=place.folder.parent / each)
        )
    )


def _no_such_study(name: str, studies: Sequence[StudySummary], where: str) -> str:
    names = ", ".join(study.name for study in studies)
    there = f"there are: {names}" if names else "there is none; run one with `remember run`"
    return f"name: there is no study called {name!r} at {where}; {there}"


def _show_findings(findings: Sequence[Finding], *, mend: bool) -> bool:
    """Show what was found, mending it if asked; return whether all is well now."""
    unmended = 0
    for finding in findings:
        if finding.mend is None:
            _say("note", "bold", finding.message)
        elif not mend:
            unmended += 1
            _say("found", "yellow", finding.message)
        else:
            try:
                finding.mend()
            except (OSError, ArtifactError) as error:  # the others can be mended all the same
                unmended += 1
                _say("not mended", "bold red", f"{finding.message}. That failed: {error}")
            else:
                _say("mended", "green", finding.message)
    if unmended and not mend:
        results.print("run it again with --mend to put this right")
    return not unmended


def _say(kind: str, style: str, words: str) -> None:
    results.print(Text.assemble((f"{kind}: ", style), words), soft_wrap=True)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
