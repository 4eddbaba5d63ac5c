"""The files through which the three scripts hand work on: a recipe with its texts, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data.prompts import Prompt
from data.recipes import Recipe
from search_spaces.recipe_space import build_recipe, settings_of

JOB, PROMPTS, BASE_ANSWERS, ANSWERS = "job.json", "prompts.jsonl", "base.jsonl", "answers.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a trial trains: its recipe and the texts of every epoch, in order."""

    recipe: Recipe
    epoch_texts: tuple[tuple[str, ...], ...]


def write_job(folder: Path, job: Job) -> None:
    """Write what `read_job` reads."""
    written = {"recipe": settings_of(job.recipe), "epoch_texts": job.epoch_texts}
    (folder / JOB).write_text(json.dumps(written))


def read_job(folder: Path) -> Job:
    """Return the job of a folder."""
    read = json.loads((folder / JOB).read_text())
    return Job(
        recipe=build_recipe(read["recipe"]), epoch_texts=tuple(map(tuple, read["epoch_texts"]))
    )


def write_lines(path: Path, values: Iterable[object]) -> None:
    """Write one JSON value a line."""
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))


def write_prompts(folder: Path, prompts: Iterable[Prompt]) -> None:
    """Write what `read_prompts` reads."""
    write_lines(folder / PROMPTS, map(asdict, prompts))


def read_prompts(folder: Path) -> list[Prompt]:
    """Return the prompts of a folder, in order."""
    read = [json.loads(line) for line in (folder / PROMPTS).read_text().splitlines()]
    return [Prompt(**{**prompt, "accepted": tuple(prompt["accepted"])}) for prompt in read]


def read_texts(path: Path) -> list[str]:
    """Return the answers of a file, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()]
