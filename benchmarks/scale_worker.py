"""Simulated workers: they do to the database what a real one does, and sleep where it trains.

`python -m benchmarks.scale_worker` reads a `CrewJob` as JSON, runs its workers as processes and
prints a `CrewResult` as JSON. The processes are forked from one that has imported everything, and
none of that is torch: many of them have to fit a small machine.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from threading import BrokenBarrierError
from typing import Any, Literal

import optuna
import psutil
from optuna.trial import TrialState
from pydantic import TypeAdapter
from sqlalchemy.pool import QueuePool

from analysis.points import Reference, front_points, study_points
from data import scoring
from data.measurements import Answer, Measurement, Verdict
from data.prompts import Prompt, fact_prompts
from data.recipes import GREEDY
from data.scenarios import load_scenario
from search_spaces.recipe_space import MOST_EPOCHS, named_space
from search_spaces.sampling_space import SamplingSpace
from storage.artifacts import StudyArtifacts
from storage.database import StudyStorage, open_storage
from storage.leases import Lease, LeaseBook
from storage.patience import Patience
from storage.reader import read_study
from storage.recorder import Recorder
from storage.records import Costs, Purpose
from study.assigning import Assigner, Assignment, Bounds
from study.goal import Goal, number_of
from study.presence import Presence
from study.pruning import SuccessiveHalving
from study.rung_vectors import (
    RungVector,
    make_stamp,
    store_vector,
    stored_vectors,
    vectors_at_rung,
)
from study.sampler import SeededSampler
from study.telling import tell_recorded, tell_trial

STUDY = "scale"
SEED = 0
GOAL = Goal()
REFERENCE = Reference(recall=0.05, knowledge_loss=0.5)
# What the default space asks of the pocket model.
SPACE = named_space("default", hidden_size=128, context_tokens=512, longest_qna_tokens=64)
SAMPLINGS = SamplingSpace()
_FIRST_RUNG_TOKENS, _SPACING = 16_100, 1.5  # those of 23 facts
_COURSES = 4  # how differently trials go
_LOOK_AGAIN_SECONDS = 1.0  # as a real worker does that has no trial
_START_TIMEOUT_SECONDS = 240.0

Step = Literal["asking", "recording", "shelving", "deciding", "ending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewJob:
    """What so many workers shall do: `trials` is the study's total, earlier ones included.

    A trial sleeps for `trial_seconds` in all and is measured at `rungs` rungs, the last of which
    is its end. Files that belong to trials go to `folder`.
    """

    url: str
    workers: int
    trials: int
    trial_seconds: float
    rungs: int
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTimes:
    """Seconds that a worker's main thread spent in calls of the storage and of Optuna for a trial.

    Within `asking_seconds` are `lock_wait_seconds`, waiting for the asking lock, and
    `lock_held_seconds`, holding it.
    """

    number: int
    asking_seconds: float
    recording_seconds: float
    shelving_seconds: float
    deciding_seconds: float
    ending_seconds: float
    lock_wait_seconds: float
    lock_held_seconds: float

    @property
    def storage_seconds(self) -> float:
        """Return the sum over all steps."""
        return (
            self.asking_seconds
            + self.recording_seconds
            + self.shelving_seconds
            + self.deciding_seconds
            + self.ending_seconds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """What one worker did since all of them began.

    `waits` counts messages about a lost database, `error` is why it ended before there was nothing
    to do, and `connections` those that it had open when it was done. `seconds` reach until the end
    of its last trial, `cpu_seconds` are its process's own.
    """

    trials: tuple[TrialTimes, ...]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    connections: int = 0
    waits: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewResult:
    """What all workers did; `busy_share` is that of the machine's cores, whoever kept them busy.

    `verdicts` is how many a greedy measurement has.
    """

    workers: tuple[WorkerResult, ...]
    busy_share: float
    verdicts: int


JOB = TypeAdapter(CrewJob)
RESULT = TypeAdapter(CrewResult)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a trial goes: what is measured at each rung, with the verdicts it rests on."""

    measurements: tuple[Measurement, ...]
    fact_verdicts: tuple[tuple[Verdict, ...], ...]
    probe_verdicts: tuple[tuple[Verdict, ...], ...]


def make_courses(rungs: int) -> tuple[Course, ...]:
    """Return measurements as large as those of the default study, for several ways to go."""
    scenario = load_scenario(None)
    asked = fact_prompts(scenario.facts, ("validation",))
    probes = tuple(probe.prompt() for probe in scenario.probes)
    before_facts = _answer(asked, Random(0), right=0.0)
    before = _answer(probes, Random(0), right=1.0)
    courses = []
    for course in range(_COURSES):
        chance = Random(course)
        measurements, of_facts, of_probes = [], [], []
        for rung in range(rungs):
            progress = (rung + 1) / rungs
            facts = _answer(asked, chance, right=progress * (0.4 + 0.15 * course))
            kept = _answer(probes, chance, right=1 - progress * 0.1 * (course + 1))
            rings = scoring.ring_changes(before, kept)
            measurements.append(
                Measurement(
                    epoch=max(1, MOST_EPOCHS * (rung + 1) // rungs),
                    sampling=GREEDY,
                    recall=scoring.score_recall(facts),
                    knowledge_loss=scoring.knowledge_loss(rings),
                    recall_parts=scoring.recall_parts(facts),
                    rings=rings,
                    drift_nats=0.1,
                    fuar=scoring.fuar(rings, before_facts, facts),
                    trained_tokens=int(_FIRST_RUNG_TOKENS * _SPACING**rung),
                    generated_tokens=sum(v.answer.tokens for v in (*facts, *kept)),
                )
            )
            of_facts.append(facts)
            of_probes.append(kept)
        courses.append(
            Course(
                measurements=tuple(measurements),
                fact_verdicts=tuple(of_facts),
                probe_verdicts=tuple(of_probes),
            )
        )
    return tuple(courses)


def _answer(prompts: Sequence[Prompt], chance: Random, *, right: float) -> tuple[Verdict, ...]:
    """Return verdicts of which about a share is right."""
    return tuple(
        Verdict(
            answer=Answer(
                prompt=prompt,
                text=prompt.accepted[0] if is_right else "someone else, as far as is known",
                tokens=6,
            ),
            label="correct" if is_right else "incorrect",
            judge="matcher",
        )
        for prompt in prompts
        for is_right in (chance.random() < right,)
    )


class TimedLeases(LeaseBook):
    """Notes how long the lock of its study was waited for, and how long it was held."""

    def __init__(self, storage: StudyStorage) -> None:
        super().__init__(storage)
        self.wait_seconds = 0.0
        self.held_seconds = 0.0

    @contextmanager
    def lock(self, *args: Any, **options: Any) -> Iterator[Lease]:
        """Hold a lock as `LeaseBook.lock` does."""
        begun = time.perf_counter()
        taken = begun
        try:
            with super().lock(*args, **options) as lease:
                taken = time.perf_counter()
                yield lease
        finally:
            self.wait_seconds += taken - begun
            self.held_seconds += time.perf_counter() - taken


class SimulatedWorker:
    """Takes trials and brings them to their end, call by call as `study.worker.Worker` does.

    No trial is pruned, whatever is decided, so that all cost the same. What a study's shelf and
    its rungs do to the database is written out here, for their modules import torch.
    """

    def __init__(
        self, job: CrewJob, storage: StudyStorage, presence: Presence, courses: Sequence[Course]
    ) -> None:
        self._job = job
        self._storage = storage
        self._presence = presence
        self._courses = courses
        self._recorder = Recorder(storage, STUDY)
        self._leases = TimedLeases(storage)
        presence.leases = self._leases
        self._study = open_study(storage)
        self._assigner = Assigner(
            study=self._study,
            storage=storage,
            recorder=self._recorder,
            presence=presence,
            bounds=Bounds(trials=job.trials),
            space=SPACE,
            samplings=SAMPLINGS,
            goal=GOAL,
            reference=REFERENCE,
            seed=SEED,
            tell_recorded=lambda record: tell_recorded(self._study, record, GOAL),
        )
        self._pruner = SuccessiveHalving(reference=REFERENCE)
        self._artifacts = StudyArtifacts(Path(job.folder), storage, STUDY)
        self._seconds: defaultdict[Step, float] = defaultdict(float)

    def run_trial(self) -> TrialTimes | None:
        """Run one trial and return its times; None when there is none and no other worker runs."""
        self._seconds.clear()
        self._leases.wait_seconds = self._leases.held_seconds = 0.0
        while True:
            with self._timed("asking"):
                found = self._assigner.next(())
            if isinstance(found, Assignment):
                break
            if not found.others_run:
                return None
            time.sleep(_LOOK_AGAIN_SECONDS)
        course = self._courses[found.asked_index % len(self._courses)]
        begun = time.monotonic()
        for rung in range(self._job.rungs):
            time.sleep(self._job.trial_seconds / self._job.rungs)
            self._pass_rung(found, course, rung)
        self._end(found, course, seconds=time.monotonic() - begun)
        return TrialTimes(
            number=found.trial.number,
            asking_seconds=self._seconds["asking"],
            recording_seconds=self._seconds["recording"],
            shelving_seconds=self._seconds["shelving"],
            deciding_seconds=self._seconds["deciding"],
            ending_seconds=self._seconds["ending"],
            lock_wait_seconds=self._leases.wait_seconds,
            lock_held_seconds=self._leases.held_seconds,
        )

    def _pass_rung(self, found: Assignment, course: Course, rung: int) -> None:
        is_last = rung == self._job.rungs - 1
        measurement = course.measurements[rung]
        purpose: Purpose = "final" if is_last else "rung"
        facts, probes = course.fact_verdicts[rung], course.probe_verdicts[rung]
        with self._timed("recording"):
            self._presence.refresh()
            self._recorder.record_measurement(
                found.lease, measurement, (*facts, *probes), purpose=purpose
            )
            if is_last and found.sampling != GREEDY:
                sampled = replace(measurement, sampling=found.sampling)
                self._recorder.record_measurement(found.lease, sampled, facts, purpose=purpose)
            store_vector(
                found.trial,
                RungVector(
                    rung=rung,
                    epoch=measurement.epoch,
                    trained_tokens=measurement.trained_tokens,
                    recall=number_of(measurement.recall),
                    knowledge_loss=number_of(measurement.knowledge_loss),
                    is_last=is_last,
                    stamp=make_stamp(REFERENCE),
                ),
            )
        with self._timed("shelving"):
            self._shelve(found.trial.number, measurement.epoch)
        if not is_last:
            with self._timed("deciding"):
                self._decide(found.trial.number, rung)
                with self._leases.holding(found.lease):
                    pass  # a real worker puts its checkpoint in place here

    def _shelve(self, number: int, epoch: int) -> None:
        """Note which adapters lie on the front, as the study's shelf does."""
        points = study_points(read_study(self._storage, STUDY))
        front = front_points(points, REFERENCE)
        kept = {(point.trial, point.epoch) for point in front}
        for point in points:
            if point.adapter is not None and (point.trial, point.epoch) not in kept:
                for artifact in self._artifacts.list(point.trial):
                    if artifact.filename == point.adapter:
                        self._artifacts.remove(artifact.id)
                self._recorder.set_adapter(point.measurement_id, None)
        for point in front:
            if (point.trial, point.epoch) == (number, epoch) and point.adapter is None:
                name = f"adapter-trial-{number:04d}-epoch-{epoch:04d}.zip"
                self._recorder.set_adapter(point.measurement_id, name)
                self._artifacts.upload(number, name, lambda file: file.write(b"adapter"))

    def _decide(self, number: int, rung: int) -> None:
        """Decide as `RungDecider` does in a study with two objectives."""
        vectors = {
            frozen.number: stored_vectors(frozen)
            for frozen in self._study.get_trials(deepcopy=False)
            if frozen.state != TrialState.FAIL
        }
        newcomer = next(vector for vector in vectors.pop(number) if vector.rung == rung)
        self._pruner.decide(newcomer, vectors_at_rung(rung, vectors))

    def _end(self, found: Assignment, course: Course, *, seconds: float) -> None:
        trial, last = found.trial, course.measurements[-1]
        with self._timed("ending"):
            self._presence.hold(found.lease)
            record = next(
                record
                for record in read_study(self._storage, STUDY).trials
                if record.number == trial.number
            )
            curve = "".join(f"{kept.measurement.recall.value}\n" for kept in record.searched)
            self._artifacts.upload(
                trial.number,
                f"curve-trial-{trial.number:04d}.jsonl",
                lambda file: file.write(curve.encode()),
            )
            trial.set_user_attr("last_recall", last.recall.value)
            trial.set_user_attr("last_knowledge_loss", last.knowledge_loss.value)
            trial.set_user_attr("epochs_reached", last.epoch)
            GOAL.constrain(trial, number_of(last.knowledge_loss))
            self._recorder.record_trial_ended(
                found.lease,
                state="complete",
                costs=Costs(
                    trained_tokens=last.trained_tokens,
                    generated_tokens=sum(m.generated_tokens for m in course.measurements),
                    seconds=seconds,
                    last_epoch=last.epoch,
                    highest_learning_rate=found.recipe.learning_rate,
                ),
            )
            tell_trial(self._study, trial.number, "complete", GOAL.values_of(last))
            self._presence.release(found.lease)

    @contextmanager
    def _timed(self, step: Step) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] += time.perf_counter() - begun


def open_study(storage: StudyStorage) -> optuna.Study:
    """Return the study of a storage, made where it is not there yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Recorder(storage, STUDY).create_study_record(config="", fingerprint={}, slots=1, seed=SEED)
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        directions=GOAL.directions,
        sampler=SeededSampler(SEED, reference=REFERENCE),
        load_if_exists=True,
    )


def _work(job: CrewJob, courses: Sequence[Course], barrier: Barrier) -> WorkerResult:
    """Take part in a job once everyone is there; what goes wrong is part of the result."""
    done: list[TrialTimes] = []
    notices: list[str] = []
    try:
        with closing(open_storage(job.url)) as storage:
            storage.patience = Patience(notice=notices.append)
            recorder = Recorder(storage, STUDY)
            open_study(storage)
            with Presence(storage, recorder, STUDY, device="none", slots=1) as presence:
                worker = SimulatedWorker(job, storage, presence, courses)
                barrier.wait(_START_TIMEOUT_SECONDS)
                begun, cpu_begun = time.monotonic(), time.process_time()
                seconds = 0.0
                while (times := worker.run_trial()) is not None:
                    done.append(times)
                    seconds = time.monotonic() - begun
                return WorkerResult(
                    trials=tuple(done),
                    seconds=seconds,
                    cpu_seconds=time.process_time() - cpu_begun,
                    connections=_count_connections(storage),
                    waits=len(notices),
                )
    except Exception as error:  # it is counted, and the other workers go on
        barrier.abort()
        return WorkerResult(
            trials=tuple(done), waits=len(notices), error=f"{type(error).__name__}: {error}"
        )


def _count_connections(storage: StudyStorage) -> int:
    pool = storage.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedin() + pool.checkedout()


def run_crew(job: CrewJob) -> CrewResult:
    """Run the workers of a job, each in a process, and return what they did."""
    courses = make_courses(job.rungs)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(job.workers + 1)
    running: list[tuple[ForkProcess, Connection]] = []
    for _ in range(job.workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(theirs, job, courses, barrier))
        process.start()
        theirs.close()
        running.append((process, ours))
    # Where a worker failed before it came here, nobody begins and each says why.
    with suppress(BrokenBarrierError):
        barrier.wait(_START_TIMEOUT_SECONDS)
    before = psutil.cpu_times()
    results = []
    for process, ours in running:
        try:
            results.append(ours.recv())
        except EOFError:
            results.append(WorkerResult(trials=(), error="its process ended without a word"))
        process.join()
    return CrewResult(
        workers=tuple(results),
        busy_share=_busy_share(before, psutil.cpu_times()),
        verdicts=len(courses[0].fact_verdicts[0]) + len(courses[0].probe_verdicts[0]),
    )


def _report(to: Connection, job: CrewJob, courses: Sequence[Course], barrier: Barrier) -> None:
    to.send(_work(job, courses, barrier))


def _busy_share(before: Any, after: Any) -> float:
    """Return the share of all cores' time between two readings in which they were busy."""
    spent = {name: getattr(after, name) - getattr(before, name) for name in before._fields}
    # Linux counts the time of guests twice: it is part of user's.
    total = sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return 1 - idle / total if total > 0 else 0.0


def main() -> None:
    """Do the job that standard input describes."""
    result = run_crew(JOB.validate_json(sys.stdin.read()))
    sys.stdout.write(RESULT.dump_json(result).decode())


if __name__ == "__main__":
    main()
