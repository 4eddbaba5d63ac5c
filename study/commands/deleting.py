"""`remember delete`: removes a study from the database, and its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import optuna
import typer
from rich.text import Text

from storage.database import StudyStorage
from storage.deletion import delete_study
from storage.reader import list_studies
from study.commands.application import NameOption, OutOption, StorageOption, application, results
from study.commands.showing import opened_study
from study.mending import describe_workers, workers_at
from study.spec import ConfigurationError


@application.command()
def delete(
    name: NameOption = None,
    storage: StorageOption = None,
    out: OutOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a study by its --name: its trials and records, its adapters and its report."""
    if name is None:
        raise ConfigurationError("name: a study is deleted by its --name; name it")
    with opened_study(storage, name, out) as (opened, place):
        _check_name(opened, name)
        _refuse_while_at_work(opened, name)
        has_files = place.folder.is_dir()
        if not yes:
            files = f" and the folder {place.folder}" if has_files else ""
            typer.confirm(f"Delete study {name}{files}?", abort=True, err=True)
            _refuse_while_at_work(opened, name)  # somebody may have come meanwhile
        delete_study(opened, name)
        results.print(Text(f"deleted: study {name}"), soft_wrap=True)
        if has_files:
            _remove_folder(place.folder)
            results.print(Text(f"deleted: folder {place.folder}"), soft_wrap=True)


def _check_name(storage: StudyStorage, name: str) -> None:
    """Raise `ConfigurationError` if neither we nor Optuna know a study of this name."""
    ours = [study.name for study in list_studies(storage)]
    theirs = [study.study_name for study in optuna.get_all_study_summaries(storage)]
    if name not in (*ours, *theirs):
        there = f"there are: {', '.join(ours)}" if ours else "the database holds none"
        raise ConfigurationError(f"name: there is no study called {name!r} to delete; {there}")


def _refuse_while_at_work(storage: StudyStorage, name: str) -> None:
    workers = workers_at(storage, name)
    if workers:
        raise ConfigurationError(
            f"name: workers are at study {name!r} ({describe_workers(workers)}); stop them first"
        )


def _remove_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ConfigurationError(
            f"out: {folder} cannot be removed whole ({error}); the study is deleted, remove the "
            "rest by hand"
        ) from error
