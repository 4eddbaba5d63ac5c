"""The ask/tell loop of one device: fills the bank's slots, trains, measures, prunes, tells."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from analysis.points import Point, Reference, front_points, may_join_front, study_points
from data.measurements import Measurement
from data.recipes import GREEDY, Recipe, Sampling
from objectives.answers.request import AskingStopped
from objectives.bank.checkpoint import (
    CHECKPOINT_FILE,
    CheckpointError,
    restore_checkpoint,
    save_checkpoint,
)
from objectives.judges.base import JudgeUnreachable
from objectives.learn import Learning, Measured, Turn
from objectives.models.machine.machine_load import measure_load
from search_spaces.recipe_space import RecipeSpace
from search_spaces.sampling_space import SamplingSpace
from storage.database import StudyStorage
from storage.leases import Lease, LeaseLost
from storage.reader import read_study
from storage.recorder import Recorder
from storage.records import Costs, Ending, TrialRecord, WorkerState
from study.adapter_shelf import AdapterShelf
from study.assigning import FAILURE, Assigner, Assignment, Bounds, NothingToDo, TooManyFailures
from study.free_points import FreePoints, FreePointsMode
from study.goal import Goal, number_of
from study.presence import Presence
from study.pruning import Rungs, SuccessiveHalving
from study.rung_deciding import RungDecider
from study.seeds import SeedPurpose, derive_seed
from study.telling import tell_recorded, tell_trial
from study.watching import Effort, RunningTrial, Watcher

# How often a worker without a trial looks whether another one has left it something to do.
WAITING_SECONDS = 1.0
# How often its sitting's figures are renewed while it does the same.
TELLING_SECONDS = 2.0


class DiskProblem(RuntimeError):
    """A checkpoint or an adapter could not be written; the message says where and what to do."""


@dataclass(slots=True, kw_only=True)
class _Occupant:
    """The trial in a slot; `last` is its latest greedy measurement."""

    trial: optuna.Trial
    lease: Lease
    recipe: Recipe
    sampling: Sampling
    asked_index: int
    begun: float
    rungs_done: int = 0
    generated_tokens: int = 0
    last: Measurement | None = None
    may_be_pruned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know of its study.

    Running trials are measured at `rungs`, and without them only at their end. `pruner` decides
    there, but of a study with one objective Optuna's own does. A finished adapter is asked under
    its own sampling and under `other_samplings`; `free_points` says what of all that goes into
    Optuna's study.
    """

    study: str
    bounds: Bounds
    seed: int
    space: RecipeSpace
    samplings: SamplingSpace
    goal: Goal
    rungs: Rungs | None
    pruner: SuccessiveHalving
    checkpoints: Path
    reference: Reference
    other_samplings: tuple[Sampling, ...] = ()
    free_points: FreePointsMode = "none"


@dataclass(slots=True)
class Worker:
    """Runs trials until the study has its total or its budget is used up.

    Any number of workers share a study. With one, the order of events depends on the seed and the
    number of slots only, so the same study run again in one sitting gives the same trials and
    values.
    """

    settings: WorkerSettings
    study: optuna.Study
    storage: StudyStorage
    learning: Learning
    recorder: Recorder
    presence: Presence
    shelf: AdapterShelf
    watcher: Watcher
    should_stop: Callable[[], bool] = lambda: False
    _occupants: dict[int, _Occupant] = field(default_factory=dict)
    _assigner: Assigner = field(init=False)
    _rungs: RungDecider = field(init=False)
    _effort: Effort = field(init=False)
    _taken_up: list[int] = field(default_factory=list)
    _told: str = ""
    _told_at: float = 0.0

    def __post_init__(self) -> None:
        settings = self.settings
        self._rungs = RungDecider(
            study=self.study,
            goal=settings.goal,
            reference=settings.reference,
            rungs=settings.rungs,
            pruner=settings.pruner,
        )
        self._assigner = Assigner(
            study=self.study,
            storage=self.storage,
            recorder=self.recorder,
            presence=self.presence,
            bounds=settings.bounds,
            space=settings.space,
            samplings=settings.samplings,
            goal=settings.goal,
            reference=settings.reference,
            seed=settings.seed,
            tell_recorded=self._tell_recorded,
        )

    def run(self) -> bool:
        """Run until the total or the budget is reached; return False when asked to stop before.

        On a stop, and when the budget is used up, every running trial is checkpointed and given
        back, so that the next run goes on from there. Where other workers still run trials, this
        one waits for them to end, and takes up what they leave.

        Raises:
            TooManyFailures: If one trial after the other failed; running ones are saved.
            JudgeUnreachable: If no verdict was to be had; running trials are saved.
            DiskProblem: If a checkpoint or an adapter could not be written.
            DatabaseLost: If the database was waited for in vain.
        """
        self._effort = Effort(slots=self.learning.bank.slots)
        try:
            has_finished = self._run()
        except (TooManyFailures, JudgeUnreachable):
            self._give_back()
            raise
        self._effort.padding_share = self.learning.bank.padding_share
        self.watcher.sitting_ended(self._effort)
        return has_finished

    def _run(self) -> bool:
        may_have_room, may_be_spent = True, True
        nothing = NothingToDo(others_run=False)
        while not self.should_stop():
            self._drop_lost()
            if may_be_spent and (reason := self._assigner.why_used_up()) is not None:
                held = len(self._occupants)
                self._give_back()
                saved = f"; {held} trials are saved, a larger one lets them go on" if held else ""
                self.watcher.stopped_early(reason + saved)
                return self._wait_until_alone()
            if may_have_room:
                nothing = self._fill_slots()
            if not self._occupants:
                if nothing.others_run:
                    self._wait()
                    continue
                if nothing.reason is not None:
                    self.watcher.stopped_early(nothing.reason)
                return True
            held = len(self._occupants)
            # Of those taken up again, some were saved before they could be measured.
            ended = self._saved_at_epoch_end() or self._step()
            self.watcher.stepped(self._describe_running())
            due = [slot for slot in ended if self._is_due(slot)]
            if due and not self._measure(due):
                break
            self._tell_state("training")
            may_be_spent = bool(ended)
            may_have_room = len(self._occupants) < held
        self._give_back()
        return False

    def _wait(self) -> None:
        """Pause until it is time to look again for a trial that another worker has left."""
        self._tell_state("waiting for other workers")
        until = time.monotonic() + WAITING_SECONDS
        while time.monotonic() < until and not self.should_stop():
            time.sleep(WAITING_SECONDS / 10)

    def _wait_until_alone(self) -> bool:
        """Wait until no worker runs a trial; return False when asked to stop before."""
        while self._assigner.others_run(()):
            self._wait()
            if self.should_stop():
                return False
        return True

    def _saved_at_epoch_end(self) -> tuple[int, ...]:
        """Return, once, the slots that were taken up where an epoch had just ended."""
        slots = tuple(slot for slot in self._taken_up if slot in self._occupants)
        self._taken_up.clear()
        return slots

    def _step(self) -> tuple[int, ...]:
        bank = self.learning.bank
        before = {slot: bank.progress(slot).trained_tokens for slot in self._occupants}
        begun = time.monotonic()
        ended = bank.step()
        self._effort.training_seconds += time.monotonic() - begun
        self._effort.trained_tokens += sum(
            bank.progress(slot).trained_tokens - tokens for slot, tokens in before.items()
        )
        return ended

    def _fill_slots(self) -> NothingToDo:
        """Fill the empty slots; return why there was nothing for the last of them."""
        while len(self._occupants) < self.learning.bank.slots:
            found = self._assigner.next([each.trial.number for each in self._occupants.values()])
            if isinstance(found, NothingToDo):
                return found
            self._occupy(found)
        return NothingToDo(others_run=False)

    def _occupy(self, found: Assignment) -> None:
        """Put a trial into an empty slot, from its checkpoint where there is one."""
        slot = next(s for s in range(self.learning.bank.slots) if s not in self._occupants)
        number, bank = found.trial.number, self.learning.bank
        occupant = _Occupant(
            trial=found.trial,
            lease=found.lease,
            recipe=found.recipe,
            sampling=found.sampling,
            asked_index=found.asked_index,
            begun=time.monotonic(),
        )
        self._occupants[slot] = occupant
        self.watcher.trial_started(number, found.recipe, resumed=found.is_taken_up)
        try:
            if not (found.is_taken_up and self._restore(slot, found)):
                # What lies there belongs to a study that was deleted, or was never finished.
                shutil.rmtree(self._checkpoint(number), ignore_errors=True)
                self.learning.begin(slot, found.recipe, seed=found.seed)
        except ValueError as error:  # a recipe that cannot work here is no reason to stop
            self._end(slot, "failed", reason=f"{type(error).__name__}: {error}")
            return
        trained_tokens = bank.progress(slot).trained_tokens
        if found.is_taken_up:
            occupant.rungs_done = self._rungs.rungs_done(number, trained_tokens)
            occupant.last = _last_greedy(found.record, trained_tokens)
        if bank.progress(slot).is_at_epoch_end:
            self._taken_up.append(slot)

    def _restore(self, slot: int, found: Assignment) -> bool:
        """Put a trial into a slot as it was saved; return False if there is nothing usable."""
        checkpoint = self._checkpoint(found.trial.number)
        if not (checkpoint / CHECKPOINT_FILE).exists():
            return False
        texts = partial(self.learning.epoch_texts, found.recipe, found.seed)
        try:
            restore_checkpoint(self.learning.bank, slot, checkpoint, texts, recipe=found.recipe)
        except CheckpointError as error:
            self.watcher.warned(f"{error}; trial {found.trial.number} begins anew")
            return False
        return True

    def _is_due(self, slot: int) -> bool:
        progress, occupant = self.learning.bank.progress(slot), self._occupants[slot]
        if progress.failure is not None or progress.finished:
            return True
        tokens = progress.trained_tokens
        return self._rungs.is_at_new_rung(tokens, occupant.rungs_done) or (
            self._rungs.is_worth_a_look(tokens, occupant.last)
        )

    def _measure(self, due: list[int]) -> bool:
        """Measure all due slots in one batch, then end or keep each; return False if stopped."""
        bank = self.learning.bank
        alive = [slot for slot in due if bank.progress(slot).failure is None]
        turns = [
            Turn(
                slot=slot,
                noise_seed=self._seed(self._occupants[slot], "noise"),
                samplings=self._samplings(slot) if bank.progress(slot).finished else (),
                is_part=not bank.progress(slot).finished,
            )
            for slot in alive
        ]
        self._tell_state("asking")
        begun = time.monotonic()
        try:
            measured_turns = self.learning.measure(turns) if turns else []
            compared = {
                turn.slot: (
                    measured[0].measurement if turn.is_part else self.learning.on_part(measured[0])
                )
                for turn, measured in zip(turns, measured_turns, strict=True)
            }
            measured_turns = self._ask_candidates_everything(turns, measured_turns)
        except AskingStopped:
            return False
        self._effort.asking_seconds += time.monotonic() - begun
        # Leases are kept alive meanwhile, but not on a machine that was suspended.
        self.presence.refresh()
        self._drop_lost()
        for slot in due:
            if slot in self._occupants and slot not in alive:
                self._end(slot, "failed", reason=bank.progress(slot).failure)
        results = {
            slot: measured
            for slot, measured in zip(alive, measured_turns, strict=True)
            if slot in self._occupants
        }
        for slot, measured in list(results.items()):
            try:
                self._record(slot, measured, compared[slot])
            except LeaseLost:
                self._drop(slot)
                del results[slot]
            except UpdateFinishedTrialError:  # as can be done by hand in the dashboard
                self._end(slot, "failed", reason="somebody else told Optuna that it has ended")
                del results[slot]
        slots = {self._occupants[slot].trial.number: slot for slot in results}
        points = self.shelf.update(bank, slots)
        self._warn()
        self._add_free_points([point for point in points if point.trial in slots], points)
        for slot, measured in results.items():
            self._decide(slot, measured)
        return True

    def _ask_candidates_everything(
        self, turns: Sequence[Turn], measured_turns: list[tuple[Measured, ...]]
    ) -> list[tuple[Measured, ...]]:
        """Return the measurements, those on a part replaced that would join the front.

        So every member of a front was asked everything, while most trials are not: what the front
        beats on a part of the questions is never a member of it.
        """
        if not self.learning.rungs_ask_a_part:
            return measured_turns
        points = study_points(read_study(self.storage, self.settings.study))
        # Adapters with and without rehearsal have fronts of their own as well.
        candidates = [
            number
            for number, (turn, measured) in enumerate(zip(turns, measured_turns, strict=True))
            if turn.is_part
            and may_join_front(
                measured[0].measurement,
                [
                    point
                    for point in points
                    if point.rehearses == (self._occupants[turn.slot].recipe.rehearsal > 0)
                ],
                self.settings.reference,
            )
        ]
        whole = [replace(turns[number], is_part=False) for number in candidates]
        replaced = list(measured_turns)
        for number, measured in zip(
            candidates, self.learning.measure(whole) if whole else [], strict=True
        ):
            part = measured_turns[number][0].measurement
            self._occupants[turns[number].slot].generated_tokens += part.generated_tokens
            replaced[number] = measured
        return replaced

    def _samplings(self, slot: int) -> tuple[Sampling, ...]:
        """Return under what a finished adapter is asked, its own sampling first."""
        own = self._occupants[slot].sampling
        return (own, *(other for other in self.settings.other_samplings if other != own))

    def _add_free_points(self, new: Sequence[Point], points: Sequence[Point]) -> None:
        settings = self.settings
        if settings.free_points == "none":
            return
        if settings.free_points == "front":
            front = front_points(points, settings.reference)
            new = [point for point in new if point in front]
        FreePoints(
            study=self.study,
            goal=settings.goal,
            space=settings.space,
            samplings=settings.samplings,
        ).add(new)

    def _record(self, slot: int, measured: tuple[Measured, ...], compared: Measurement) -> None:
        """Record measurements, and at a new rung or the end the vector to compare by.

        That is of the greedy one on the questions that all are asked at rungs, `compared`, also
        where everything was asked.
        """
        occupant, progress = self._occupants[slot], self.learning.bank.progress(slot)
        for each in measured:
            occupant.generated_tokens += each.measurement.generated_tokens
            self.recorder.record_measurement(
                occupant.lease,
                each.measurement,
                each.verdicts,
                purpose="final" if progress.finished else "rung",
            )
            self.watcher.trial_measured(occupant.trial.number, each.measurement)
        occupant.last = measured[0].measurement
        occupant.may_be_pruned = self._rungs.is_at_new_rung(
            progress.trained_tokens, occupant.rungs_done
        )
        if self.settings.rungs is not None and (occupant.may_be_pruned or progress.finished):
            occupant.rungs_done = self._rungs.keep_vector(
                occupant.trial, progress, compared, measured[0].measurement
            )

    def _decide(self, slot: int, measured: tuple[Measured, ...]) -> None:
        occupant, progress = self._occupants[slot], self.learning.bank.progress(slot)
        if progress.finished:
            own = (m.measurement for m in measured if m.measurement.sampling == occupant.sampling)
            self._end(slot, "complete", values=self.settings.goal.values_of(next(own)))
            return
        decision = None
        if occupant.may_be_pruned:
            decision = self._rungs.decide(occupant.trial, occupant.rungs_done - 1)
        if decision is None or decision.keep:
            self._save(slot)
        else:
            self._end(slot, "pruned", reason=decision.reason)

    def _end(
        self,
        slot: int,
        state: Ending,
        *,
        reason: str | None = None,
        values: tuple[float, ...] | None = None,
    ) -> None:
        """Record and tell the end of a trial, and free its slot; a lost one is only left."""
        occupant, progress = self._occupants[slot], self.learning.bank.progress(slot)
        trial = occupant.trial
        try:
            self.presence.hold(occupant.lease)
            # What Optuna takes of running trials only comes first: after a crash a recorded end
            # is told and nothing else.
            with suppress(UpdateFinishedTrialError):  # told by somebody else, by hand
                failure = reason if state == "failed" else None
                self._describe_end(trial, occupant.last, progress.epoch, failure)
            self.recorder.record_trial_ended(
                occupant.lease,
                state=state,
                reason=reason,
                costs=Costs(
                    trained_tokens=progress.trained_tokens,
                    generated_tokens=occupant.generated_tokens,
                    seconds=time.monotonic() - occupant.begun,
                    last_epoch=progress.epoch,
                    highest_learning_rate=progress.highest_learning_rate,
                ),
            )
        except LeaseLost:
            self._drop(slot)
            return
        tell_trial(self.study, trial.number, state, values)
        shutil.rmtree(self._checkpoint(trial.number), ignore_errors=True)
        self.presence.release(occupant.lease)
        self.learning.bank.release(slot)
        del self._occupants[slot]
        self.watcher.trial_ended(trial.number, state, reason)
        self._warn()

    def _describe_end(
        self, trial: optuna.Trial, last: Measurement | None, epoch: int, failure: str | None
    ) -> None:
        """Give a trial what the dashboard shows and sorts by, also of pruned ones."""
        self.shelf.keep_curve(trial.number)
        if last is not None:
            trial.set_user_attr("last_recall", last.recall.value)
            trial.set_user_attr("last_knowledge_loss", last.knowledge_loss.value)
            trial.set_user_attr("epochs_reached", epoch)
            self.settings.goal.constrain(trial, number_of(last.knowledge_loss))
        if failure is not None:
            trial.set_user_attr(FAILURE, failure)

    def _warn(self) -> None:
        """Pass on what the shelf could not keep."""
        for problem in self.shelf.take_problems():
            self.watcher.warned(problem)

    def _tell_recorded(self, record: TrialRecord) -> None:
        """Tell a trial whose end was recorded but not told before its worker died."""
        tell_recorded(self.study, record, self.settings.goal)
        shutil.rmtree(self._checkpoint(record.number), ignore_errors=True)

    def _save(self, slot: int) -> None:
        """Write a trial's checkpoint, unless another worker has taken the trial over."""
        occupant = self._occupants[slot]
        with _explained_when_full():
            save_checkpoint(
                self.learning.bank,
                slot,
                self._checkpoint(occupant.trial.number),
                may_replace=self.presence.leases.holding(occupant.lease),
            )

    def _give_back(self) -> None:
        """Checkpoint every running trial and release it."""
        self.presence.renew()
        self._drop_lost()
        for slot, occupant in list(self._occupants.items()):
            try:
                self._save(slot)
            except LeaseLost:
                self._drop(slot)
                continue
            self.presence.release(occupant.lease)
            self.learning.bank.release(slot)
            del self._occupants[slot]

    def _drop_lost(self) -> None:
        """Stop the trials that other workers have taken over."""
        lost = self.presence.lost_trials()
        for slot, occupant in list(self._occupants.items()):
            if occupant.trial.number in lost:
                self._drop(slot)

    def _drop(self, slot: int) -> None:
        """Stop a trial that another worker has taken over, without telling or writing of it."""
        occupant = self._occupants.pop(slot)
        self.presence.forget(occupant.lease)
        self.learning.bank.release(slot)

    def _tell_state(self, activity: str) -> None:
        now = time.monotonic()
        if activity == self._told and now - self._told_at < TELLING_SECONDS:
            return
        self._told, self._told_at = activity, now
        effort, load = self._effort, measure_load(self.learning.bank.base.device)
        self.presence.tell(
            WorkerState(
                activity=activity,
                trained_tokens=effort.trained_tokens,
                training_seconds=effort.training_seconds,
                asking_seconds=effort.asking_seconds,
                memory_bytes=load.memory_bytes,
                memory_limit_bytes=load.memory_limit_bytes,
                load=load.load,
            )
        )

    def _seed(self, occupant: _Occupant, purpose: SeedPurpose) -> int:
        return derive_seed(self.settings.seed, occupant.asked_index, purpose)

    def _checkpoint(self, number: int) -> Path:
        return self.settings.checkpoints / f"trial-{number:04d}"

    def _describe_running(self) -> list[RunningTrial]:
        running = []
        for slot, occupant in self._occupants.items():
            progress = self.learning.bank.progress(slot)
            running.append(
                RunningTrial(
                    number=occupant.trial.number,
                    recipe=occupant.recipe,
                    sampling=occupant.sampling,
                    epoch=progress.epoch,
                    trained_tokens=progress.trained_tokens,
                    loss_nats=progress.loss_nats,
                    last=occupant.last,
                )
            )
        return running


def _last_greedy(record: TrialRecord | None, trained_tokens: int) -> Measurement | None:
    """Return a trial's latest greedy measurement up to so many tokens, or None."""
    measurements = () if record is None else record.measurements
    return max(
        (
            kept.measurement
            for kept in measurements
            if kept.measurement.sampling == GREEDY
            and kept.measurement.trained_tokens <= trained_tokens
        ),
        key=lambda measurement: measurement.trained_tokens,
        default=None,
    )


@contextmanager
def _explained_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskProblem(
            f"{error.filename or 'a file'} cannot be written ({error.strerror or error}); free "
            "some space and run the same command again: the study goes on from what was saved "
            "before"
        ) from error
