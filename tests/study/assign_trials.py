"""One of several workers of a test: takes trials from the assigner and ends them without a model.

Arguments: a folder in which each worker says that it is ready, the number of workers to wait for,
the URL of the database, and as JSON what the study may take: `trials`, `epochs`. With `dies_with`
the worker is gone as soon as it holds so many. Prints a JSON object of what it was given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna

from analysis.points import Reference
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Choices, Range, fixed
from storage.database import StudyStorage, open_storage
from storage.recorder import Recorder
from storage.records import Costs, TrialRecord
from study.assigning import Assigner, Assignment, Bounds
from study.budget import Budget
from study.goal import Goal
from study.presence import Presence
from study.sampler import SeededSampler
from study.telling import tell_recorded, tell_trial
from tests.storage.claim_trials import wait_for_all

STUDY = "assigned"
SEED = 5
GOAL = Goal()
REFERENCE = Reference(recall=0.05, knowledge_loss=0.9)
SLOTS = 2
SPACE = RecipeSpace(
    epochs=Range(low=2, high=6),
    rank=Choices(values=(2, 4, 8)),
    alpha=fixed(8),
    cutoff=fixed(96),
    warmup_steps=fixed(0),
    learning_rate=Range(low=1e-4, high=1e-2, log=True),
    target_modules=Choices(values=("mlp", "all")),
    formats=fixed("qna"),
    paraphrases=fixed(1),
    rehearsal=Choices(values=(0, 1)),
    batch_size=fixed(2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A trial that the assigner handed out."""

    number: int
    asked_index: int
    seed: int
    is_taken_up: bool
    params: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one worker was given, and why there was no more."""

    given: tuple[Given, ...]
    reason: str | None


def open_study(storage: StudyStorage) -> optuna.Study:
    """Return the study, made where it is not there yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Recorder(storage, STUDY).create_study_record(config="", fingerprint={}, slots=SLOTS, seed=SEED)
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        directions=GOAL.directions,
        sampler=SeededSampler(SEED, reference=REFERENCE),
        load_if_exists=True,
    )


def make_assigner(
    study: optuna.Study, storage: StudyStorage, presence: Presence, bounds: Bounds
) -> Assigner:
    """Return what hands trials out to a worker."""

    def tell(record: TrialRecord) -> None:
        # One that another worker ended since it was seen running is told already; these trials
        # have no measurements to tell again.
        if not study.get_trials(deepcopy=False)[record.number].state.is_finished():
            tell_recorded(study, record, GOAL)

    return Assigner(
        study=study,
        storage=storage,
        recorder=Recorder(storage, STUDY),
        presence=presence,
        bounds=bounds,
        space=SPACE,
        samplings=SamplingSpace(presets=("greedy",)),
        goal=GOAL,
        reference=REFERENCE,
        seed=SEED,
        tell_recorded=tell,
    )


def costs_after(epochs: int) -> Costs:
    """Return the costs of a trial that ended after so many epochs."""
    return Costs(
        trained_tokens=100 * epochs,
        generated_tokens=10,
        seconds=0.1,
        last_epoch=epochs,
        highest_learning_rate=1e-3,
    )


def end_trial(
    found: Assignment, study: optuna.Study, storage: StudyStorage, presence: Presence
) -> None:
    """End a trial: every other one is pruned after half of its epochs."""
    is_pruned = found.asked_index % 2 == 1
    Recorder(storage, STUDY).record_trial_ended(
        found.lease,
        state="pruned" if is_pruned else "complete",
        costs=costs_after(found.recipe.epochs // (2 if is_pruned else 1)),
    )
    if is_pruned:
        tell_trial(study, found.trial.number, "pruned", None)
    else:
        recall = 1 / (1 + found.asked_index)
        tell_trial(study, found.trial.number, "complete", (recall, recall / 2))
    presence.release(found.lease)


def work(storage: StudyStorage, bounds: Bounds, dies_with: int | None) -> Told:
    """Take trials and end them until there are no more; several are held at a time."""
    study = open_study(storage)
    held: list[Assignment] = []
    given: list[Given] = []
    with Presence(
        storage, Recorder(storage, STUDY), STUDY, device="none", slots=SLOTS
    ) as presence:
        assigner = make_assigner(study, storage, presence, bounds)
        while True:
            found = assigner.next([each.trial.number for each in held])
            if isinstance(found, Assignment):
                held.append(found)
                given.append(
                    Given(
                        number=found.trial.number,
                        asked_index=found.asked_index,
                        seed=found.seed,
                        is_taken_up=found.is_taken_up,
                        params=found.trial.params,
                    )
                )
            elif not held:
                if not found.others_run:
                    return Told(given=tuple(given), reason=found.reason)
                time.sleep(0.02)
            if len(held) == dies_with:
                print(json.dumps(asdict(Told(given=tuple(given), reason=None))), flush=True)
                os._exit(9)
            if held and (len(held) == SLOTS or not isinstance(found, Assignment)):
                end_trial(held.pop(0), study, storage, presence)


def main(arguments: Sequence[str]) -> None:
    """Work at the study of a database."""
    folder, workers, url, options = arguments
    asked = json.loads(options)
    bounds = Bounds(trials=asked["trials"], budget=Budget(epochs=asked.get("epochs")))
    wait_for_all(Path(folder), "open", int(workers))
    with closing(open_storage(url)) as storage:
        told = work(storage, bounds, asked.get("dies_with"))
        print(json.dumps(asdict(told)))
        wait_for_all(Path(folder), "end", int(workers))


if __name__ == "__main__":
    main(sys.argv[1:])
