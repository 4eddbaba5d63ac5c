"""Where a study lives: its name, its folder and its database."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from storage.database import StudyStorage, holds_studies, open_storage, show_url, sqlite_file
from storage.patience import Patience
from study.spec import ConfigurationError, StudySpec

DATABASE_FILE = "remember.db"
OSCARS_2023 = "oscars-2023"  # what a study without a facts file is named after


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a study lives: its name, its folder, its database."""

    name: str
    folder: Path
    storage_url: str

    @property
    def shown_storage_url(self) -> str:
        """Return the database's URL without its password."""
        return show_url(self.storage_url)

    @property
    def has_database(self) -> bool:
        """Return whether there is a database that holds studies; it is not made to find out."""
        return holds_studies(self.storage_url)

    @property
    def adapters(self) -> Path:
        """Return the folder of the front's adapters."""
        return self.folder / "adapters"

    @property
    def artifacts(self) -> Path:
        """Return the folder of the files that Optuna's artifact API keeps with trials."""
        return self.folder / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the running trials' checkpoints."""
        return self.folder / "checkpoints"


def find_place(spec: StudySpec) -> Place:
    """Return where a study of this spec lives; nothing is created.

    Raises:
        ConfigurationError: If the output folder cannot be written to.
    """
    facts = OSCARS_2023 if spec.facts is None else Path(spec.facts).stem
    derived = re.sub(r"[^\w .-]+", "-", f"{facts}-{Path(spec.model).name}").strip(" .-")
    name = spec.name or derived[:100] or "study"
    out = Path(spec.out)
    folder = (out / name).absolute()
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise ConfigurationError(
            f"out: {spec.out!r} cannot be a folder ({error.strerror}); name another with --out"
        ) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigurationError(
            f"out: {spec.out!r} cannot be written to ({existing} is not a writable folder); "
            "name another folder with --out"
        )
    return Place(
        name=name,
        folder=out / name,
        storage_url=spec.storage or f"sqlite:///{out / DATABASE_FILE}",
    )


def open_place(place: Place, *, patience: Patience | None = None) -> StudyStorage:
    """Return the opened storage, after making the output folder if it lies there.

    With `patience` a database that is lost later is waited for as that says.

    Raises:
        ConfigurationError: If the folder cannot be made.
        StorageError: If the database cannot be used.
    """
    out, file = place.folder.parent, sqlite_file(place.storage_url)
    if file is not None and file.parent == out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"out: {str(out)!r} cannot be made ({error.strerror}); name another with --out"
            ) from error
    storage = open_storage(place.storage_url)
    if patience is not None:
        storage.patience = patience
    return storage
