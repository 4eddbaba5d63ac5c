"""What is raised when the database cannot be used."""

from __future__ import annotations


class StorageError(RuntimeError):
    """The database cannot be used; the message names it, without its password, and says why."""


class StudyNotFound(StorageError):
    """The database holds no study of the asked name."""


def root_cause(error: BaseException) -> str:
    """Return the driver's own words in one line; SQLAlchemy's would add statements and a link."""
    while (cause := error.__cause__ or getattr(error, "orig", None)) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
