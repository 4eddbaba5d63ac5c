"""The ask/tell loop of one device: fills the bank's slots, trains, measures, prunes, tells."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from analysis.points import Point, Reference, front_points
from data.measurements import Measurement
from data.recipes import GREEDY, Recipe, Sampling
from objectives.bank.checkpoint import CHECKPOINT_FILE, restore_checkpoint, save_checkpoint
from objectives.judges.base import JudgeUnreachable
from objectives.learn import Learning, Measured, Turn
from search_spaces.recipe_space import RecipeSpace, suggest_recipe
from search_spaces.sampling_space import SamplingSpace, suggest_sampling
from storage.database import StudyStorage
from storage.leases import Lease, LeaseBook, LeaseLost, describe_this_process
from storage.reader import count_ended_epochs, read_sittings, read_study
from storage.recorder import Recorder
from storage.records import Costs, Ending, TrialRecord
from study.adapter_shelf import AdapterShelf
from study.asked_trials import asked_index, asked_trials
from study.budget import Budget, sum_sittings
from study.free_points import FreePoints, FreePointsMode
from study.goal import Goal
from study.optuna_pruning import decide_by_optuna
from study.pruning import Decision, Rungs, SuccessiveHalving
from study.rung_vectors import (
    RungVector,
    is_inside,
    make_stamp,
    store_vector,
    stored_vectors,
    vectors_at_rung,
)
from study.seeds import SeedPurpose, derive_seed
from study.stopping import is_flat
from study.watching import Effort, RunningTrial, Watcher

LEASE_SECONDS = 120.0


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
    """What a worker needs to know of its study; `trials` is the study's total of asked trials.

    Running trials are measured at `rungs`, and without them only at their end. `pruner` decides
    there, but of a study with one objective Optuna's own does. A finished adapter is asked under
    its own sampling and under `other_samplings`; `free_points` says what of all that goes into
    Optuna's study. No trial is asked any more once `flat_trials` in a row have brought nothing.
    """

    study: str
    trials: int
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
    flat_trials: int | None = None
    budget: Budget = field(default_factory=Budget)


@dataclass(slots=True)
class Worker:
    """Runs trials until the study has its total or its budget is used up.

    The order of events depends on the seed and the number of slots only, so the same study run
    again in one sitting gives the same trials and values.
    """

    settings: WorkerSettings
    study: optuna.Study
    storage: StudyStorage
    learning: Learning
    recorder: Recorder
    shelf: AdapterShelf
    watcher: Watcher
    should_stop: Callable[[], bool] = lambda: False
    _occupants: dict[int, _Occupant] = field(default_factory=dict)
    _owner: str = field(default_factory=describe_this_process)
    _leases: LeaseBook = field(init=False)
    _sitting_id: int = field(init=False)
    _effort: Effort = field(init=False)
    _renewed: float = field(default_factory=time.monotonic)
    _taken_up: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._leases = LeaseBook(self.storage)

    def run(self) -> bool:
        """Run until the total or the budget is reached; return False when asked to stop before.

        On a stop, and when the budget is used up, every running trial is checkpointed and given
        back, so that the next run goes on from there.
        """
        self._effort = Effort(slots=self.learning.bank.slots)
        self._sitting_id = self.recorder.begin_sitting(
            owner=self._owner, device=str(self.learning.bank.base.device)
        )
        has_finished = self._run()
        self._effort.padding_share = self.learning.bank.padding_share
        self.watcher.sitting_ended(self._effort)
        return has_finished

    def _run(self) -> bool:
        self._take_up_interrupted()
        may_have_room, may_be_spent = True, True
        while not self.should_stop():
            if may_be_spent and (reason := self._used_up()) is not None:
                held = len(self._occupants)
                self._give_back()
                saved = f"; {held} trials are saved, a larger one lets them go on" if held else ""
                self.watcher.stopped_early(reason + saved)
                return True
            if may_have_room:
                self._fill_slots()
            if not self._occupants:
                # Another worker may have died meanwhile, or have left more than there are slots.
                self._take_up_interrupted()
            if not self._occupants:
                asked = asked_trials(self.study.get_trials(deepcopy=False))
                if len(asked) < self.settings.trials:
                    self.watcher.stopped_early(
                        f"the last {self.settings.flat_trials} trials brought nothing"
                    )
                return True
            held = len(self._occupants)
            # Of those taken up again, some were saved before they could be measured.
            ended = self._saved_at_epoch_end() or self._step()
            self.watcher.stepped(self._describe_running())
            due = [slot for slot in ended if self._is_due(slot)]
            if due:
                self._measure(due)
            is_renewed = not due and time.monotonic() - self._renewed > LEASE_SECONDS / 4
            if is_renewed:
                self._renew_leases()
            may_be_spent = bool(ended) or is_renewed
            may_have_room = len(self._occupants) < held
        self._give_back()
        return False

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

    def _take_up_interrupted(self) -> None:
        """Put trials of workers that are gone into slots; tell those that had only to be told."""
        recorded = {
            trial.number: trial for trial in read_study(self.storage, self.settings.study).trials
        }
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if len(self._occupants) == self.learning.bank.slots:
                break
            lease = self._acquire(frozen.number)
            if lease is None:
                continue
            record = recorded.get(frozen.number)
            if record is not None and record.state != "running":
                self._tell_recorded(record)
                self._leases.release(lease)
            else:
                trial = optuna.Trial(self.study, frozen._trial_id)
                self._occupy(trial, lease, resumed=True, record=record)

    def _fill_slots(self) -> None:
        while len(self._occupants) < self.learning.bank.slots:
            asked = asked_trials(self.study.get_trials(deepcopy=False))
            if len(asked) >= self.settings.trials or self._is_flat(asked):
                return
            trial = self.study.ask()
            lease = self._acquire(trial.number)
            if lease is not None:
                self._occupy(trial, lease, resumed=False)

    def _used_up(self) -> str | None:
        """Return why the budget allows no more, or None."""
        budget, study = self.settings.budget, self.settings.study
        if not budget.is_bounded:
            return None
        self.recorder.prolong_sitting(self._sitting_id)
        epochs = count_ended_epochs(self.storage, study) + sum(
            self.learning.bank.progress(slot).epoch for slot in self._occupants
        )
        return budget.used_up(sum_sittings(read_sittings(self.storage, study), epochs=epochs))

    def _is_flat(self, trials: Sequence[FrozenTrial]) -> bool:
        settings = self.settings
        return settings.flat_trials is not None and is_flat(
            trials, settings.goal, settings.reference, settings.flat_trials
        )

    def _acquire(self, number: int) -> Lease | None:
        return self._leases.acquire(
            self.settings.study, number, owner=self._owner, seconds=LEASE_SECONDS
        )

    def _occupy(
        self,
        trial: optuna.Trial,
        lease: Lease,
        *,
        resumed: bool,
        record: TrialRecord | None = None,
    ) -> None:
        slot = next(s for s in range(self.learning.bank.slots) if s not in self._occupants)
        occupant = _Occupant(
            trial=trial,
            lease=lease,
            recipe=suggest_recipe(trial, self.settings.space),
            sampling=suggest_sampling(trial, self.settings.samplings),
            asked_index=asked_index(trial.number, self.study.get_trials(deepcopy=False)),
            begun=time.monotonic(),
        )
        seed = self._seed(occupant, "training")
        self.recorder.record_trial_started(
            lease,
            asked_index=occupant.asked_index,
            recipe=occupant.recipe,
            sampling=occupant.sampling,
            seed=seed,
        )
        checkpoint = self._checkpoint(trial.number)
        if resumed and (checkpoint / CHECKPOINT_FILE).exists():
            texts = partial(self.learning.epoch_texts, occupant.recipe, seed)
            restore_checkpoint(self.learning.bank, slot, checkpoint, texts, recipe=occupant.recipe)
        else:
            # What lies there now belongs to a study that was deleted, or was never finished.
            shutil.rmtree(checkpoint, ignore_errors=True)
            self.learning.begin(slot, occupant.recipe, seed=seed)
        # What lies beyond the checkpoint is measured again, for it was not decided upon.
        trained_tokens = self.learning.bank.progress(slot).trained_tokens
        occupant.rungs_done = max(
            (
                vector.rung + 1
                for vector in self._vectors().get(trial.number, ())
                if vector.trained_tokens <= trained_tokens
            ),
            default=0,
        )
        occupant.last = _last_greedy(record, trained_tokens)
        if self.learning.bank.progress(slot).is_at_epoch_end:
            self._taken_up.append(slot)
        self._occupants[slot] = occupant
        self.watcher.trial_started(trial.number, occupant.recipe, resumed=resumed)

    def _is_due(self, slot: int) -> bool:
        progress = self.learning.bank.progress(slot)
        if progress.failure is not None or progress.finished:
            return True
        return self._is_at_new_rung(slot) or self._is_worth_a_look(slot)

    def _is_at_new_rung(self, slot: int) -> bool:
        rungs, tokens = self.settings.rungs, self.learning.bank.progress(slot).trained_tokens
        return rungs is not None and rungs.rungs_reached(tokens) > self._occupants[slot].rungs_done

    def _is_worth_a_look(self, slot: int) -> bool:
        """Return whether a trial between rungs is likely to be a point that counts."""
        rungs, last = self.settings.rungs, self._occupants[slot].last
        if rungs is None or last is None:
            return False
        has_grown = (
            self.learning.bank.progress(slot).trained_tokens
            >= rungs.inside_spacing * last.trained_tokens
        )
        return has_grown and is_inside(
            self.settings.reference,
            _number(last.recall.value),
            _number(last.knowledge_loss.value),
        )

    def _measure(self, due: list[int]) -> None:
        """Measure all due slots in one batch, then end or keep each."""
        bank = self.learning.bank
        alive = [slot for slot in due if bank.progress(slot).failure is None]
        turns = [
            Turn(
                slot=slot,
                noise_seed=self._seed(self._occupants[slot], "noise"),
                samplings=self._samplings(slot) if bank.progress(slot).finished else (),
            )
            for slot in alive
        ]
        begun = time.monotonic()
        try:
            measured_turns = self.learning.measure(turns) if turns else []
        except JudgeUnreachable:
            self._give_back()
            raise
        self._effort.asking_seconds += time.monotonic() - begun
        # Asking may have taken longer than a lease lasts, and so may a suspended machine.
        self._renew_leases()
        for slot in due:
            if slot in self._occupants and slot not in alive:
                self._end(slot, "failed", reason=bank.progress(slot).failure)
        results = {
            slot: measured
            for slot, measured in zip(alive, measured_turns, strict=True)
            if slot in self._occupants
        }
        for slot, measured in results.items():
            self._record(slot, measured)
        slots = {self._occupants[slot].trial.number: slot for slot in results}
        points = self.shelf.update(bank, slots)
        self._add_free_points([point for point in points if point.trial in slots], points)
        for slot, measured in results.items():
            self._decide(slot, measured)

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

    def _record(self, slot: int, measured: tuple[Measured, ...]) -> None:
        """Record measurements, and at a new rung or the end the vector to compare by."""
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
        greedy = measured[0].measurement
        occupant.last = greedy
        rungs = self.settings.rungs
        occupant.may_be_pruned = self._is_at_new_rung(slot)
        if rungs is not None and (occupant.may_be_pruned or progress.finished):
            occupant.rungs_done = rungs.rungs_reached(progress.trained_tokens)
            vector = RungVector(
                rung=occupant.rungs_done - 1,
                epoch=progress.epoch,
                trained_tokens=progress.trained_tokens,
                recall=_number(greedy.recall.value),
                knowledge_loss=_number(greedy.knowledge_loss.value),
                is_last=progress.finished,
                stamp=make_stamp(self.settings.reference),
            )
            store_vector(occupant.trial, vector)

    def _decide(self, slot: int, measured: tuple[Measured, ...]) -> None:
        occupant, progress = self._occupants[slot], self.learning.bank.progress(slot)
        if progress.finished:
            own = (m.measurement for m in measured if m.measurement.sampling == occupant.sampling)
            self._end(slot, "complete", values=self._values(next(own)))
            return
        decision = self._decide_at_rung(occupant) if occupant.may_be_pruned else None
        if decision is None or decision.keep:
            save_checkpoint(self.learning.bank, slot, self._checkpoint(occupant.trial.number))
        else:
            self._end(slot, "pruned", reason=decision.reason)

    def _decide_at_rung(self, occupant: _Occupant) -> Decision:
        settings = self.settings
        assert settings.rungs is not None  # without rungs, only finished trials are due
        vectors = self._vectors()
        rung = occupant.rungs_done - 1
        newcomer = next(v for v in vectors.pop(occupant.trial.number) if v.rung == rung)
        if settings.goal.is_single:
            (score,) = settings.goal.values(newcomer.recall, newcomer.knowledge_loss)
            return decide_by_optuna(
                occupant.trial, newcomer, score, reduction=settings.pruner.reduction
            )
        return settings.pruner.decide(newcomer, vectors_at_rung(rung, vectors))

    def _values(self, measurement: Measurement) -> tuple[float, ...]:
        return self.settings.goal.values(
            _number(measurement.recall.value), _number(measurement.knowledge_loss.value)
        )

    def _end(
        self,
        slot: int,
        state: Ending,
        *,
        reason: str | None = None,
        values: tuple[float, ...] | None = None,
    ) -> None:
        """Record and tell the end of a trial, and free its slot."""
        occupant, progress = self._occupants[slot], self.learning.bank.progress(slot)
        if occupant.last is not None:
            # Numbers that the dashboard can sort by, also for pruned trials. They come first:
            # after a crash a recorded end is told and nothing else.
            occupant.trial.set_user_attr("last_recall", occupant.last.recall.value)
            occupant.trial.set_user_attr("last_knowledge_loss", occupant.last.knowledge_loss.value)
            occupant.trial.set_user_attr("epochs_reached", progress.epoch)
            loss = _number(occupant.last.knowledge_loss.value)
            self.settings.goal.constrain(occupant.trial, loss)
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
        self._tell(occupant.trial.number, state, values)
        self._leases.release(occupant.lease)
        self.learning.bank.release(slot)
        shutil.rmtree(self._checkpoint(occupant.trial.number), ignore_errors=True)
        del self._occupants[slot]
        self.watcher.trial_ended(occupant.trial.number, state, reason)

    def _tell(self, number: int, state: Ending, values: tuple[float, ...] | None) -> None:
        match state:
            case "complete":
                self.study.tell(number, values=values)
            case "pruned":
                self.study.tell(number, state=TrialState.PRUNED)
            case "failed":
                self.study.tell(number, state=TrialState.FAIL)

    def _tell_recorded(self, record: TrialRecord) -> None:
        """Tell a trial whose end was recorded but not told before its worker died."""
        assert record.state != "running"
        values = None
        if record.state == "complete":
            last = [m.measurement for m in record.measurements if m.purpose == "final"]
            chosen = next(m for m in last if m.sampling == record.sampling)
            values = self._values(chosen)
        self._tell(record.number, record.state, values)
        shutil.rmtree(self._checkpoint(record.number), ignore_errors=True)

    def _give_back(self) -> None:
        """Checkpoint every running trial and release it."""
        self._renew_leases()
        for slot, occupant in self._occupants.items():
            save_checkpoint(self.learning.bank, slot, self._checkpoint(occupant.trial.number))
            self._leases.release(occupant.lease)
            self.learning.bank.release(slot)
        self._occupants.clear()

    def _renew_leases(self) -> None:
        """Keep the trials for some time more; leave those that another worker has taken over."""
        self._renewed = time.monotonic()
        self.recorder.prolong_sitting(self._sitting_id)
        for slot, occupant in list(self._occupants.items()):
            try:
                self._leases.renew(occupant.lease, seconds=LEASE_SECONDS)
            except LeaseLost:
                self.learning.bank.release(slot)
                del self._occupants[slot]

    def _vectors(self) -> dict[int, list[RungVector]]:
        """Return the rung vectors of all trials that did not fail, by trial."""
        return {
            frozen.number: stored_vectors(frozen)
            for frozen in self.study.get_trials(deepcopy=False)
            if frozen.state != TrialState.FAIL
        }

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


def _number(value: float | None) -> float:
    """Return a value for Optuna; what could not be measured is NaN, which it takes as failed."""
    return float("nan") if value is None else value


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
