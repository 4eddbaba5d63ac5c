"""What was measured of every recipe of a grid, and its file: a line of JSON each, compressed."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from search_spaces.settings import Value

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """An adapter after some epochs, asked under a sampling.

    Recall is over the validation wordings, knowledge loss is greedy. `trained_tokens` counts from
    the first epoch on, `generated_tokens` what this asking took, probes included if greedy.
    """

    epoch: int
    sampling: str
    recall: float
    knowledge_loss: float
    trained_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A recipe with all its cells; `settings` are those that the grid varies.

    `failure` says why training stopped before the last epoch; the cells beyond are missing.
    """

    number: int
    settings: Mapping[str, Value]
    cells: tuple[Cell, ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a table is of, and how long it took: seconds of all processes together.

    `made_from` is a digest of the space, the samplings, the model, the facts and the measurement.
    """

    grid: str
    made_from: str
    base_recall: float
    training_seconds: float
    asking_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTable:
    """A complete grid."""

    head: Head
    rows: tuple[Row, ...]


def encode_row(row: Row) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(asdict(row))


def decode_row(line: str) -> Row:
    """Return the row that `encode_row` wrote."""
    values = json.loads(line)
    values["cells"] = tuple(Cell(**cell) for cell in values["cells"])
    return Row(**values)


def write_table(head: Head, rows: Sequence[Row], folder: Path = TABLES) -> Path:
    """Write a table, its rows by number; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{head.grid}.jsonl.xz"
    lines = [json.dumps(asdict(head)), *map(encode_row, sorted(rows, key=lambda r: r.number))]
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    return path


def read_table(grid: str, folder: Path = TABLES) -> GridTable:
    """Return the table of a grid by its name."""
    head, *rows = _lines((folder / f"{grid}.jsonl.xz").read_bytes())
    return GridTable(head=Head(**json.loads(head)), rows=tuple(map(decode_row, rows)))


def _lines(compressed: bytes) -> Iterable[str]:
    return lzma.decompress(compressed).decode().splitlines()
