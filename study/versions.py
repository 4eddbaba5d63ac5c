"""The versions of what a result depends on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version

from storage.records import SittingRecord

_PACKAGES = ("remember-me", "torch", "transformers", "peft", "optuna", "sqlalchemy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def versions_with(revision: str | None) -> dict[str, str]:
    """Return the versions of all that figures depend on, the model's commit included if any."""
    return package_versions() | ({} if revision is None else {"model revision": revision})


def versions_used(sittings: Iterable[SittingRecord]) -> dict[str, str]:
    """Return the versions that a study's workers ran on, by package; several where they differed.

    Without any record of them, those that are installed now.
    """
    used: dict[str, list[str]] = {}
    for sitting in sittings:
        for package, number in sitting.versions.items():
            if number not in used.setdefault(package, []):
                used[package].append(number)
    return {package: ", ".join(numbers) for package, numbers in used.items()} or package_versions()
