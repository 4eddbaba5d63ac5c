"""The versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

_PACKAGES = ("remember-me", "torch", "transformers", "peft", "optuna", "sqlalchemy")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
