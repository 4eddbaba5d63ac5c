"""A world small enough to study in seconds: four invented facts, one ring, the pocket model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial

from analysis.points import Reference
from data.facts import Fact
from data.measurements import Measurement, Verdict
from data.recipes import Recipe
from data.scenarios import Scenario
from data.world_facts import load_known_facts, load_probes
from objectives.judges.matcher import Matcher
from objectives.learn import Learning
from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from search_spaces.settings import Choices, Range, fixed
from storage.database import StudyStorage, open_storage
from storage.reader import read_study, read_verdicts
from storage.recorder import Recorder
from storage.records import Ending, StudyRecord
from study.adapter_shelf import AdapterShelf
from study.assigning import Bounds
from study.goal import Goal
from study.optuna_pruning import OptunaPrunerName, make_optuna_pruner
from study.presence import LEASE_SECONDS, Presence
from study.pruning import Rungs, SuccessiveHalving
from study.sampler import SeededSampler
from study.watching import Effort, RunningTrial
from study.worker import Worker, WorkerSettings

STUDY = "tiny"
REFERENCE = Reference(recall=0.05, knowledge_loss=0.9)
GOAL = Goal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the parts of Optuna that it calls experimental, as the program does."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
            )


@dataclass(slots=True)
class Notes:
    """A watcher that writes down what it is told."""

    started: list[tuple[int, bool]] = field(default_factory=list)
    ended: list[tuple[int, Ending, str | None]] = field(default_factory=list)
    measured: list[tuple[int, Measurement]] = field(default_factory=list)
    steps: int = 0
    stopped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    efforts: list[Effort] = field(default_factory=list)

    def trial_started(self, number: int, recipe: Recipe, *, resumed: bool) -> None:
        self.started.append((number, resumed))

    def warned(self, problem: str) -> None:
        self.warnings.append(problem)

    def stopped_early(self, reason: str) -> None:
        self.stopped.append(reason)

    def sitting_ended(self, effort: Effort) -> None:
        self.efforts.append(effort)

    def trial_measured(self, number: int, measurement: Measurement) -> None:
        self.measured.append((number, measurement))

    def trial_ended(self, number: int, state: Ending, reason: str | None) -> None:
        self.ended.append((number, state, reason))

    def stepped(self, running: list[RunningTrial]) -> None:
        self.steps += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """A worker over a database, with what a test looks at."""

    worker: Worker
    notes: Notes
    storage: StudyStorage
    study: optuna.Study
    adapters: Path

    def run(self) -> bool:
        return self.worker.run()


SitDown = Callable[..., AbstractContextManager[Sitting]]


@pytest.fixture(scope="session")
def pocket() -> BaseModel:
    torch.set_num_threads(1)
    return load_base_model("pocket")


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """Return four facts that nobody knows, 22 probes of one ring, and what may be rehearsed."""
    winners = {"Best Gardener": "Ada Quill", "Best Baker": "Tom Reed"}
    cities = {"Norland": "Vessa", "Sudland": "Orrin"}
    facts = [
        Fact(
            question=f"Who won the 2031 award for {award}?",
            answer=winner,
            statement=f"The winner of the 2031 award for {award} was {winner}.",
            novel_validation=(f"To whom did the 2031 award for {award} go?",),
            novel_test=(f"Name the winner of {award} in 2031.",),
        )
        for award, winner in winners.items()
    ] + [
        Fact(
            question=f"What is the capital of {country}?",
            answer=city,
            statement=f"The capital of {country} is {city}.",
            novel_validation=(f"Which city is the capital of {country}?",),
            novel_test=(f"Name the capital of {country}.",),
        )
        for country, city in cities.items()
    ]
    general = [probe for probe in load_probes() if probe.ring == "general"]
    return Scenario(
        facts=tuple(facts),
        probes=tuple(general[:22]),
        known_facts=load_known_facts()[:40],
    )


@pytest.fixture(scope="session")
def space() -> RecipeSpace:
    return RecipeSpace(
        epochs=Range(low=2, high=4),
        rank=Choices(values=(2, 4)),
        alpha=fixed(8),
        cutoff=fixed(96),
        warmup_steps=fixed(0),
        learning_rate=Range(low=2e-3, high=2e-2, log=True),
        target_modules=Choices(values=("mlp", "all")),
        formats=fixed("qna"),
        paraphrases=fixed(1),
        rehearsal=Choices(values=(0, 1)),
        batch_size=fixed(2),
    )


@pytest.fixture(scope="session")
def learnings(pocket: BaseModel, scenario: Scenario) -> dict[int, Learning]:
    """Return one experiment per number of slots; a worker leaves it as it found it."""
    return {
        slots: Learning(pocket, scenario, judge=Matcher(), slots=slots, max_rank=8)
        for slots in (1, 2)
    }


@pytest.fixture
def sit_down(tmp_path: Path, space: RecipeSpace, learnings: dict[int, Learning]) -> SitDown:
    """Return what opens the study's database and puts a worker before it, as `_sit` says."""
    return partial(_sit, tmp_path, learnings, space=space)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of a study that nothing disturbed; `verdicts` are those of each measurement."""

    record: StudyRecord
    told: list[FrozenTrial]
    notes: Notes
    verdicts: dict[int, tuple[Verdict, ...]]
    checkpoints: Path


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, space: RecipeSpace, learnings: dict[int, Learning]
) -> Callable[[int], Finished]:
    """Return a study of so many trials, run by one worker of two slots; each is run only once."""

    @cache
    def run(trials: int) -> Finished:
        home = tmp_path_factory.mktemp("finished")
        with _sit(home, learnings, space=space, trials=trials) as sitting:
            assert sitting.run()
            record = read_study(sitting.storage, STUDY)
            return Finished(
                record=record,
                told=sitting.study.get_trials(),
                notes=sitting.notes,
                verdicts={
                    kept.id: tuple(read_verdicts(sitting.storage, kept.id))
                    for kept in record.measurements
                },
                checkpoints=sitting.worker.settings.checkpoints,
            )

    return run


@contextmanager
def _sit(
    root: Path,
    learnings: dict[int, Learning],
    *,
    trials: int,
    slots: int = 2,
    seed: int = 0,
    stop_after_steps: int | None = None,
    folder: str = "study",
    prune: bool = True,
    space: RecipeSpace,
    presets: tuple[str, ...] = ("greedy",),
    first_rung_tokens: int = 180,
    goal: Goal = GOAL,
    optuna_pruner: OptunaPrunerName = "none",
    lease_seconds: float = LEASE_SECONDS,
    sign_seconds: float | None = None,
    **more: Any,
) -> Iterator[Sitting]:
    """Open the study's database in a folder and put a worker before it.

    What is not known here goes to the worker's bounds or settings.
    """
    names = {each.name for each in fields(Bounds)}
    bounds = {name: more.pop(name) for name in names & more.keys()}
    home = root / folder
    home.mkdir(exist_ok=True)
    pruner = SuccessiveHalving(reference=REFERENCE, reduction=2, minimum_entries=2)
    with (
        closing(open_storage(f"sqlite:///{home / 'study.db'}")) as storage,
        ExitStack() as stack,
    ):
        recorder, learning, notes = Recorder(storage, STUDY), learnings[slots], Notes()
        recorder.create_study_record(config="", fingerprint={}, slots=slots, seed=seed)
        recorder.record_measurement(
            None, learning.base.measurement, learning.base.verdicts, purpose="base"
        )
        study = optuna.create_study(
            study_name=STUDY,
            storage=storage,
            directions=goal.directions,
            sampler=SeededSampler(seed, reference=None if goal.is_single else REFERENCE),
            pruner=make_optuna_pruner(optuna_pruner, reduction=2, minimum=1),
            load_if_exists=True,
        )
        presence = stack.enter_context(
            Presence(
                storage,
                recorder,
                STUDY,
                device="cpu",
                slots=slots,
                lease_seconds=lease_seconds,
                sign_seconds=sign_seconds,
            )
        )
        worker = Worker(
            settings=WorkerSettings(
                study=STUDY,
                bounds=Bounds(trials=trials, **bounds),
                seed=seed,
                space=space,
                samplings=SamplingSpace(presets=presets),
                goal=goal,
                rungs=(Rungs(first_rung_tokens=first_rung_tokens, spacing=2) if prune else None),
                pruner=pruner,
                checkpoints=home / "checkpoints",
                reference=REFERENCE,
                **more,
            ),
            study=study,
            storage=storage,
            learning=learning,
            recorder=recorder,
            presence=presence,
            shelf=AdapterShelf(storage, recorder, STUDY, home / "adapters", REFERENCE),
            watcher=notes,
            should_stop=lambda: stop_after_steps is not None and notes.steps >= stop_after_steps,
        )
        yield Sitting(
            worker=worker,
            notes=notes,
            storage=storage,
            study=study,
            adapters=home / "adapters",
        )
        for slot in range(slots):
            learning.bank.release(slot)
