"""`remember doctor`: says what this machine offers and what stands in the way, with the remedy."""

from __future__ import annotations

import shutil

import psutil
import torch
import typer
from rich.table import Table
from rich.text import Text

from objectives.models.devices import driver_gpus, list_devices, unused_gpu_remedy
from storage.database import StorageError
from storage.reader import list_studies
from study.commands.application import (
    FAILED,
    NameOption,
    OutOption,
    StorageOption,
    application,
    results,
)
from study.place import find_place, open_place
from study.spec import load_spec
from study.versions import package_versions


@application.command()
def doctor(storage: StorageOption = None, name: NameOption = None, out: OutOption = None) -> None:
    """Check torch, devices, memory, disk and database, and say what to do."""
    table = Table(box=None, show_header=False, pad_edge=False)
    problems: list[str] = []
    for package, version in package_versions().items():
        table.add_row(package, version)
    table.add_row(
        "torch build", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    )
    for gpu in driver_gpus():
        table.add_row("driver lists", Text(gpu))
    for device in list_devices():
        memory = (
            ""
            if device.free_bytes is None or device.total_bytes is None
            else f", {_gigabytes(device.free_bytes)} of {_gigabytes(device.total_bytes)} free"
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
    if place.has_database:
        try:
            opened = open_place(place)
            table.add_row(
                "database",
                Text(f"{place.shown_storage_url}, {len(list_studies(opened))} studies"),
            )
            opened.close()
        except StorageError as error:
            problems.append(str(error))
    else:
        table.add_row("database", Text(f"none yet at {place.shown_storage_url}; a run makes it"))
    results.print(table)
    for problem in problems:
        results.print(Text.assemble(("problem: ", "bold red"), problem), soft_wrap=True)
    if problems:
        raise typer.Exit(FAILED)
    results.print(Text("nothing stands in the way", style="green"))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
