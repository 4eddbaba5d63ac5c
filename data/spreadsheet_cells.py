"""Keeps a spreadsheet from taking a text in a table for a formula, and takes that back."""

from __future__ import annotations

import re

# What a formula begins with, also in the wide forms of an East Asian keyboard.
_STARTS = r"=+\-@\uff1d\uff0b\uff0d\uff20"
_LIKE_A_FORMULA = re.compile(rf"'*[{_STARTS}]")
_GUARDED = re.compile(rf"'+[{_STARTS}]")


def guard_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet computes: an apostrophe before what could be.

    One before an apostrophe that could have been put there, too, so that all can be taken back.
    """
    return f"'{text}" if _LIKE_A_FORMULA.match(text) else text


def unguard_cell(cell: str) -> str:
    """Return the text that `guard_cell` made a cell of; a spreadsheet may have done it before."""
    return cell[1:] if _GUARDED.match(cell) else cell
