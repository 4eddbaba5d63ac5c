"""Whole studies of a tiny world: what is told, what is kept, and what a restart may not change."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from analysis.costs import add_costs
from analysis.points import front_points, study_points
from data.measurements import Answer, Verdict
from data.scenarios import Scenario
from objectives.answers.request import AskingStopped
from objectives.judges.base import JudgeUnreachable
from objectives.judges.matcher import Matcher
from objectives.learn import Learning, Measured, Turn
from objectives.models.base import BaseModel
from search_spaces.recipe_space import RecipeSpace, suggest_recipe
from storage.leases import LeaseBook
from storage.reader import count_ended_epochs, read_study, read_verdicts
from storage.records import StudyRecord
from study import worker as worker_module
from study.assigning import TooManyFailures
from study.budget import Budget
from study.goal import Goal
from study.pruning import Decision, SuccessiveHalving
from study.rung_vectors import RungVector
from study.stopping import is_flat
from study.worker import DiskProblem

SitDown = Callable[..., AbstractContextManager[Any]]
Finish = Callable[[int], Any]
STUDY = "tiny"
IN_OPTUNA = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def read(sitting: Any) -> StudyRecord:
    return read_study(sitting.storage, STUDY)


def rung_vectors(trial: FrozenTrial) -> dict[str, RungVector]:
    return {
        key: RungVector.decode(value)
        for key, value in trial.system_attrs.items()
        if key.startswith("remember:rung:")
    }


def outcome(sitting: Any) -> list[tuple[Any, ...]]:
    """Return all that a study found and that neither clock nor folder can change."""
    return describe(sitting.study.get_trials(deepcopy=False))


def describe(trials: Sequence[FrozenTrial]) -> list[tuple[Any, ...]]:
    return [
        (trial.number, trial.state, trial.params, trial.values, rung_vectors(trial))
        for trial in trials
    ]


def test_every_asked_trial_ends_once_in_optuna_and_in_our_tables(finished: Finish) -> None:
    study = finished(4)
    ours, told = study.record.trials, study.told
    assert [trial.number for trial in ours] == [trial.number for trial in told] == [*range(4)]
    assert [IN_OPTUNA[trial.state] for trial in ours] == [trial.state for trial in told]
    assert [trial.asked_index for trial in ours] == [*range(4)]
    counts = Counter(trial.state for trial in ours)
    assert counts["complete"] + counts["pruned"] == 4
    assert counts["pruned"] > 0  # else the next tests would look at nothing
    assert Counter(state for _, state, _ in study.notes.ended) == counts
    assert sorted(number for number, _, _ in study.notes.ended) == [*range(4)]


def test_a_sitting_says_what_it_did(finished: Finish) -> None:
    study = finished(4)
    (effort,) = study.notes.efforts
    costs = add_costs(study.record).total
    assert effort.trained_tokens == costs.trained_tokens > 0
    assert effort.training_seconds > 0
    assert effort.asking_seconds > 0
    assert effort.slots == 2
    assert 0 <= effort.padding_share < 0.5


def test_the_base_is_measured_before_any_trial(finished: Finish) -> None:
    record = finished(4).record
    assert record.base is not None
    assert record.base.id < min(kept.id for trial in record.trials for kept in trial.measurements)
    assert record.base.measurement.knowledge_loss.value == 0


def test_a_study_whose_front_does_not_move_asks_no_more(sit_down: SitDown) -> None:
    with sit_down(trials=40, flat_trials=2) as sitting:
        assert sitting.run()
        asked = sitting.study.get_trials()
        assert 2 < len(asked) < 40
        assert all(trial.state.is_finished() for trial in asked)
        assert is_flat(asked, Goal(), sitting.worker.settings.reference, 2)


def test_rungs_ask_a_part_and_who_joins_a_front_was_asked_everything(
    sit_down: SitDown, pocket: BaseModel, scenario: Scenario
) -> None:
    partly = Learning(pocket, scenario, judge=Matcher(), slots=2, max_rank=8, rung_share=0.5)
    assert partly.rungs_ask_a_part
    with sit_down(trials=6) as sitting:
        sitting.worker.learning = partly
        assert sitting.run()
        record, told = read(sitting), sitting.study.get_trials()
        ids = {
            kept.id: count_asked(read_verdicts(sitting.storage, kept.id))
            for trial in record.trials
            for kept in trial.measurements
        }
    everything = (4 * len(partly.facts), 22)
    part = (2 * len(partly.facts), min(ids.values())[1])
    assert 20 <= part[1] < 22
    kept = [kept for trial in record.trials for kept in trial.measurements]
    assert {ids[k.id] for k in kept if k.purpose == "rung"} == {everything, part}
    assert {ids[k.id] for k in kept if k.purpose == "final"} == {everything}
    # Trials are compared by what all were asked at rungs, whatever was asked beside it.
    vectors = [vector for trial in told for vector in rung_vectors(trial).values()]
    for vector in vectors:
        answers = vector.recall * part[0]
        assert answers == pytest.approx(round(answers))
    assert all(vector.recall_of_all is not None for vector in vectors if vector.is_last)
    # What everything gave is kept beside it, for the sampler.
    assert any(vector.point != (vector.recall, vector.knowledge_loss) for vector in vectors)
    for trial, frozen in zip(record.trials, told, strict=True):
        if (last := rung_vectors(frozen).get("remember:rung:last")) is not None:
            final = trial.measurements[-1].measurement
            assert last.point == (final.recall.value, final.knowledge_loss.value)
    points = study_points(record)
    fronts = [
        point
        for some in (points, *([p for p in points if p.rehearses == r] for r in (True, False)))
        for point in front_points(some, sitting.worker.settings.reference)
    ]
    assert fronts
    assert {ids[point.measurement_id] for point in fronts} == {everything}


def count_asked(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Return how many answers about facts there are, and to how many probes."""
    phrasings = Counter(verdict.answer.prompt.phrasing for verdict in verdicts)
    return phrasings["validation"], phrasings["probe"]


def test_told_values_are_those_of_the_last_measurement(sit_down: SitDown) -> None:
    with sit_down(trials=4, prune=False, presets=("Shortwave",)) as sitting:
        assert sitting.run()
        record, told = read(sitting), sitting.study.get_trials()
        for trial, values in zip(record.trials, (t.values for t in told), strict=True):
            greedy, sampled = trial.measurements
            assert (greedy.measurement.sampling.name, greedy.purpose) == ("greedy", "final")
            assert (sampled.measurement.sampling.name, sampled.purpose) == ("Shortwave", "final")
            assert values == [
                sampled.measurement.recall.value,
                greedy.measurement.knowledge_loss.value,
            ]


def test_every_measurement_keeps_its_answers(finished: Finish) -> None:
    study = finished(4)
    for trial in study.record.trials:
        for kept in trial.measurements:
            verdicts = study.verdicts[kept.id]
            # 4 facts in 4 prompt styles, and 22 probes in one each.
            assert len(verdicts) == 4 * 4 + 22
            right = [v.is_correct for v in verdicts if v.answer.prompt.phrasing != "probe"]
            assert kept.measurement.recall.value == pytest.approx(sum(right) / 16)


def test_a_pruned_trial_has_numbers_and_a_reason(finished: Finish) -> None:
    study = finished(4)
    ours = {trial.number: trial for trial in study.record.trials}
    pruned = [trial for trial in study.told if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        last = ours[trial.number].measurements[-1].measurement
        assert trial.user_attrs["last_recall"] == last.recall.value
        assert trial.user_attrs["last_knowledge_loss"] == last.knowledge_loss.value
        assert trial.user_attrs["epochs_reached"] == last.epoch
        assert str(ours[trial.number].reason).startswith("rung ")


def test_costs_are_those_of_the_measurements(finished: Finish) -> None:
    for trial in finished(4).record.trials:
        assert trial.costs is not None
        last = trial.measurements[-1].measurement
        assert trial.costs.trained_tokens == last.trained_tokens
        assert trial.costs.last_epoch == last.epoch
        assert trial.costs.generated_tokens == sum(
            kept.measurement.generated_tokens for kept in trial.measurements
        )
        assert trial.costs.highest_learning_rate == trial.recipe.learning_rate  # no warm-up


def test_checkpoints_are_gone_when_a_study_has_ended(finished: Finish) -> None:
    assert not any(finished(4).checkpoints.glob("trial-*"))


def test_the_same_seed_and_slots_give_the_same_study(sit_down: SitDown, finished: Finish) -> None:
    outcomes = {"one": describe(finished(3).told)}
    for folder, seed in (("two", 0), ("three", 1)):
        with sit_down(trials=3, seed=seed, folder=folder) as sitting:
            assert sitting.run()
            outcomes[folder] = outcome(sitting)
    assert outcomes["one"] == outcomes["two"]
    parameters = {folder: [row[2] for row in rows] for folder, rows in outcomes.items()}
    assert parameters["one"] != parameters["three"]


@pytest.mark.parametrize("slots", [1, 2])
def test_two_sittings_give_the_study_that_one_gives(sit_down: SitDown, slots: int) -> None:
    with sit_down(trials=4, slots=slots, folder="one", prune=slots == 1) as sitting:
        assert sitting.run()
        expected = outcome(sitting)
    with sit_down(
        trials=4, slots=slots, folder="two", prune=slots == 1, stop_after_steps=13
    ) as sitting:
        assert not sitting.run()
        states = Counter(trial.state for trial in sitting.study.get_trials())
        assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] > 0
        assert states[TrialState.RUNNING] == slots
    with sit_down(trials=4, slots=slots, folder="two", prune=slots == 1) as sitting:
        assert sitting.run()
        assert outcome(sitting) == expected
        assert [resumed for _, resumed in sitting.notes.started].count(True) == slots


def test_tpe_goes_on_in_a_second_sitting_as_in_the_first(
    sit_down: SitDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.sampler.STARTUP_TRIALS", 2)
    with sit_down(trials=4, slots=1, folder="one") as sitting:
        assert sitting.run()
        expected = outcome(sitting)
    for stop in (14, 5, None):
        with sit_down(trials=4, slots=1, folder="two", stop_after_steps=stop) as sitting:
            assert sitting.run() == (stop is None)
            found = outcome(sitting)
    assert found == expected


def test_a_stopped_trial_goes_on_from_its_checkpoint(sit_down: SitDown) -> None:
    with sit_down(trials=2, stop_after_steps=3, prune=False) as sitting:
        assert not sitting.run()
        steps = sitting.notes.steps
    with sit_down(trials=2, prune=False) as sitting:
        assert sitting.run()
        steps += sitting.notes.steps
        recipes = [trial.recipe for trial in read(sitting).trials]
    # A step is taken by both slots at once; an epoch of 4 facts in batches of 2 has 2 steps, or 4
    # with rehearsal. Starting again would add the three steps of the first sitting.
    assert steps == max(recipe.epochs * (4 if recipe.rehearsal else 2) for recipe in recipes)


class _Killed(BaseException):
    """Ends a worker as a kill does: nothing is saved or given back."""


def kill_at(name: str, call: int, patch: pytest.MonkeyPatch) -> None:
    """Let a method or a function of the worker kill it instead of doing its n-th call."""
    calls = iter(range(1, 1000))
    place: Any = worker_module.Worker if name.startswith("_") else worker_module
    original = getattr(place, name)

    def kill(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise _Killed
        return original(*arguments, **named)

    patch.setattr(place, name, kill)


def prune_all_but_the_first(
    _pruner: SuccessiveHalving, newcomer: RungVector, others: Sequence[RungVector]
) -> Decision:
    return Decision(keep=newcomer.rung == 0 or not others, reason="place 2 of 2")


def test_a_kill_between_any_two_writes_changes_nothing(
    sit_down: SitDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuccessiveHalving, "decide", prune_all_but_the_first)
    with sit_down(trials=3, slots=1, first_rung_tokens=80, folder="whole") as sitting:
        assert sitting.run()
        expected = outcome(sitting)
        attributes = [trial.user_attrs for trial in sitting.study.get_trials()]
        assert [trial.state for trial in read(sitting).trials][1:] == ["pruned", "pruned"]
    for method, call in (
        ("_occupy", 1),  # asked and recorded, not begun
        ("_record", 2),  # measured, not recorded
        ("_decide", 1),  # recorded, not decided
        ("_end", 1),  # decided that it is complete, not ended
        ("tell_trial", 1),  # ended, not told
        ("_end", 1),  # decided to prune, not ended
        ("tell_trial", 2),  # told, and then another ended, not told
    ):
        with (
            sit_down(trials=3, slots=1, first_rung_tokens=80, folder="killed") as sitting,
            monkeypatch.context() as now,
        ):
            kill_at(method, call, now)
            with pytest.raises(_Killed):
                sitting.run()
    with sit_down(trials=3, slots=1, first_rung_tokens=80, folder="killed") as sitting:
        assert sitting.run()
        assert outcome(sitting) == expected
        assert [trial.user_attrs for trial in sitting.study.get_trials()] == attributes
        identities = [
            (kept.trial, kept.purpose, kept.measurement.epoch)
            for trial in read(sitting).trials
            for kept in trial.measurements
        ]
        assert len(set(identities)) == len(identities)


def test_interrupted_trials_beyond_the_slots_are_not_lost(sit_down: SitDown) -> None:
    with sit_down(trials=3, slots=2, stop_after_steps=1) as sitting:
        assert not sitting.run()
        # A second worker of the same study had a trial too.
        sitting.study.ask()
    with sit_down(trials=3, slots=1) as sitting:
        assert sitting.run()
        assert all(trial.state.is_finished() for trial in sitting.study.get_trials())


def test_an_unfinished_or_foreign_checkpoint_does_not_stop_a_study(sit_down: SitDown) -> None:
    with sit_down(trials=2, stop_after_steps=1) as sitting:
        assert not sitting.run()
        folders = sorted(sitting.worker.settings.checkpoints.iterdir())
        (folders[0] / "checkpoint.safetensors").unlink()  # as after a kill before the rename
        foreign = folders[1].with_name("trial-0002")
        foreign.mkdir()
        (foreign / "checkpoint.safetensors").write_bytes(b"of a study that was deleted")
    with sit_down(trials=3) as sitting:
        assert sitting.run()


def test_a_trial_whose_loss_is_not_a_number_fails_and_its_neighbour_does_not(
    sit_down: SitDown, space: RecipeSpace, monkeypatch: pytest.MonkeyPatch
) -> None:

    def diverge(trial: Any, space: RecipeSpace) -> Any:
        recipe = suggest_recipe(trial, space)
        return replace(recipe, learning_rate=1e30) if trial.number == 0 else recipe

    with sit_down(trials=2, prune=False, folder="alone") as sitting:
        assert sitting.run()
        expected = outcome(sitting)[1]
    monkeypatch.setattr("study.assigning.suggest_recipe", diverge)
    with sit_down(trials=2, prune=False) as sitting:
        assert sitting.run()
        failed, neighbour = read(sitting).trials
        assert sitting.study.trials[0].state == TrialState.FAIL
        assert failed.state == "failed"
        assert "learning rate" in str(failed.reason)
        assert failed.costs is not None
        assert neighbour.state == "complete"
        assert outcome(sitting)[1] == expected


def test_a_study_outlives_its_leases_while_it_is_suspended(sit_down: SitDown) -> None:
    with sit_down(trials=2, lease_seconds=0.5, sign_seconds=3600) as sitting:
        suspended = _MeasuresAfter(sitting.worker.learning, _outlast_a_lease)
        sitting.worker.learning = suspended
        assert sitting.run()
        assert all(trial.state != "running" for trial in read(sitting).trials)


def test_a_worker_that_measures_for_longer_than_a_lease_keeps_its_trials(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=2, lease_seconds=0.5, prune=False) as sitting:
        offered: list[Any] = []

        def offer_trial_0() -> None:
            _outlast_a_lease()
            book = LeaseBook(sitting.storage)
            offered.append(book.acquire(STUDY, 0, owner="elsewhere:1:", seconds=600))

        sitting.worker.learning = _MeasuresAfter(sitting.worker.learning, offer_trial_0)
        assert sitting.run()
        assert offered
        assert not any(offered[:1])
        assert [trial.state for trial in read(sitting).trials] == ["complete", "complete"]


def test_a_trial_that_another_worker_took_over_is_left_to_it_until_that_one_is_gone(
    sit_down: SitDown,
) -> None:
    def take_over_trial_0() -> None:
        if not taken:
            _outlast_a_lease()
            book = LeaseBook(sitting.storage)
            taken.append(book.acquire(STUDY, 0, owner="elsewhere:1:", seconds=2.5))

    taken: list[Any] = []
    with sit_down(trials=3, prune=False, lease_seconds=0.5, sign_seconds=3600) as sitting:
        sitting.worker.learning = _MeasuresAfter(sitting.worker.learning, take_over_trial_0)
        assert sitting.run()
        assert taken != [None]
        assert [number for number, _, _ in sitting.notes.ended][-1] == 0
        assert [resumed for number, resumed in sitting.notes.started if number == 0] == [
            False,
            True,
        ]
        assert [trial.state for trial in read(sitting).trials] == ["complete"] * 3
        identities = [
            (kept.trial, kept.purpose, kept.measurement.epoch)
            for trial in read(sitting).trials
            for kept in trial.measurements
        ]
        assert len(set(identities)) == len(identities)


def test_nothing_is_told_of_a_trial_that_was_lost_between_measuring_and_its_end(
    sit_down: SitDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = worker_module.Worker._end
    taken: list[Any] = []

    def lose_and_end(self: Any, slot: int, *arguments: Any, **named: Any) -> None:
        lease = self._occupants[slot].lease
        if lease.trial == 0 and not taken:
            self.presence.leases.release(lease)
            book = LeaseBook(self.storage)
            taken.append(book.acquire(STUDY, 0, owner="elsewhere:1:", seconds=2))
        original(self, slot, *arguments, **named)
        if lease.trial == 0 and len(taken) == 1:
            (frozen,) = [t for t in self.study.get_trials() if t.number == 0]
            taken.append((frozen.state, dict(frozen.user_attrs)))

    monkeypatch.setattr(worker_module.Worker, "_end", lose_and_end)
    with sit_down(trials=1, slots=1, prune=False) as sitting:
        assert sitting.run()
        assert taken[1] == (TrialState.RUNNING, {})
        assert [trial.state for trial in read(sitting).trials] == ["complete"]


def test_a_recipe_that_cannot_work_fails_with_its_reason_and_the_study_goes_on(
    sit_down: SitDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learning.begin

    def refuse(self: Learning, slot: int, recipe: Any, *, seed: int) -> None:
        if not refused:
            refused.append(slot)
            raise ValueError("target_modules: none of them is there")
        original(self, slot, recipe, seed=seed)

    refused: list[int] = []
    monkeypatch.setattr(Learning, "begin", refuse)
    with sit_down(trials=3) as sitting:
        assert sitting.run()
        failed, *others = read(sitting).trials
        assert failed.state == "failed"
        assert "none of them is there" in str(failed.reason)
        assert sitting.study.trials[0].user_attrs["failure"] == failed.reason
        assert all(trial.state in ("complete", "pruned") for trial in others)


def test_failures_in_a_row_stop_a_study_and_it_goes_on_once_the_cause_is_mended(
    sit_down: SitDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Learning, slot: int, recipe: Any, *, seed: int) -> None:
        raise ValueError("the disk of the tokenizer is on fire")

    with sit_down(trials=9, failures_in_a_row=3) as sitting, monkeypatch.context() as broken:
        broken.setattr(Learning, "begin", refuse)
        with pytest.raises(TooManyFailures, match=r"3 trials in a row .*on fire"):
            sitting.run()
        assert [trial.state for trial in read(sitting).trials] == ["failed"] * 3
    with sit_down(trials=5, failures_in_a_row=3) as sitting:
        assert sitting.run()
        assert [trial.state == "failed" for trial in read(sitting).trials] == [
            *[True] * 3,
            *[False] * 2,
        ]


def test_a_stop_while_asking_saves_the_trials_and_nothing_is_asked_twice(
    sit_down: SitDown, finished: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = describe(finished(3).told)
    with sit_down(trials=3) as sitting:

        def stop() -> None:
            raise AskingStopped

        sitting.worker.learning = _MeasuresAfter(sitting.worker.learning, stop)
        assert not sitting.run()
        assert all(trial.state == "running" for trial in read(sitting).trials)
    with sit_down(trials=3) as sitting:
        assert sitting.run()
        assert outcome(sitting) == expected


def test_a_disk_without_room_ends_the_worker_with_a_message_and_loses_nothing(
    sit_down: SitDown, finished: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.safetensors")

    expected = describe(finished(3).told)
    with sit_down(trials=3) as sitting, monkeypatch.context() as full:
        full.setattr(worker_module, "save_checkpoint", fail)
        with pytest.raises(DiskProblem, match=r"checkpoint\.safetensors cannot be written"):
            sitting.run()
    with sit_down(trials=3) as sitting:
        assert sitting.run()
        assert outcome(sitting) == expected


def _outlast_a_lease() -> None:
    time.sleep(0.7)


class _MeasuresAfter:
    """A Learning that lets something happen before it measures."""

    def __init__(self, learning: Learning, before: Callable[[], None]) -> None:
        self._learning = learning
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learning, name)

    def measure(self, turns: Sequence[Turn]) -> list[tuple[Measured, ...]]:
        self._before()
        return self._learning.measure(turns)


def test_a_budget_of_epochs_is_never_exceeded_and_a_larger_one_lets_the_study_go_on(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=4, slots=1, folder="whole") as sitting:
        assert sitting.run()
        expected = outcome(sitting)
    with sit_down(trials=4, slots=1, budget=Budget(epochs=6)) as sitting:
        assert sitting.run()
        assert "the budget of 6 epochs has" in sitting.notes.stopped[0]
        epochs = count_ended_epochs(sitting.storage, STUDY)
        assert 6 - 4 < epochs <= 6  # a trial of this space takes at most 4
        steps = sitting.notes.steps
    with sit_down(trials=4, slots=1, budget=Budget(epochs=6)) as sitting:
        assert sitting.run()  # nothing is left to do
        assert sitting.notes.steps == 0 < steps
    with sit_down(trials=4, slots=1, budget=Budget(epochs=1000)) as sitting:
        assert sitting.run()
        assert sitting.notes.stopped == []
        assert outcome(sitting) == expected


def test_hours_that_are_used_up_end_a_study_before_its_first_step(sit_down: SitDown) -> None:
    for budget in (Budget(hours=1e-9), Budget(device_hours=1e-9)):
        with sit_down(trials=3, budget=budget) as sitting:
            assert sitting.run()
            assert sitting.notes.steps == 0
            assert "hours is used up" in sitting.notes.stopped[0]


def test_optunas_own_pruners_decide_in_a_study_with_one_objective(sit_down: SitDown) -> None:
    goal = Goal(loss_weight=0.5)
    with sit_down(trials=6, goal=goal, optuna_pruner="successive_halving") as sitting:
        assert sitting.run()
        record, told = read(sitting), sitting.study.get_trials()
    states = Counter(trial.state for trial in told)
    assert states[TrialState.PRUNED] > 0
    assert states[TrialState.COMPLETE] > 0
    for trial, frozen in zip(record.trials, told, strict=True):
        last = trial.measurements[-1].measurement
        assert last.recall.value is not None
        assert last.knowledge_loss.value is not None
        score = last.recall.value - 0.5 * last.knowledge_loss.value
        if frozen.state == TrialState.COMPLETE:
            assert frozen.value == pytest.approx(score)
        else:
            assert list(frozen.intermediate_values.values())[-1] == pytest.approx(score)


def test_every_ended_trial_says_how_far_it_breaks_the_bound(sit_down: SitDown) -> None:
    with sit_down(trials=4, goal=Goal(max_knowledge_loss=0.3)) as sitting:
        assert sitting.run()
        for trial in sitting.study.get_trials():
            violation = trial.user_attrs["last_knowledge_loss"] - 0.3
            assert trial.constraints["max_knowledge_loss"] == pytest.approx(violation)
            assert trial.system_attrs["constraints"] == [pytest.approx(violation)]


class FailingJudge:
    """The matcher behind a line that goes dead after so many answers; 0 is not at all."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.unreachable_reason: str | None = None

    @property
    def name(self) -> str:
        return "matcher"

    def judge(self, answers: Sequence[Answer]) -> tuple[Verdict, ...]:
        self.left -= len(answers)
        verdicts = Matcher().judge(answers)
        if self.left >= 0:
            return verdicts
        self.unreachable_reason = "connection refused"
        return tuple(replace(verdict, label="unjudged") for verdict in verdicts)


@pytest.mark.parametrize("answers", [0, 200])
def test_trials_wait_for_a_judge_that_gives_no_reply_and_nothing_is_scored_without_it(
    sit_down: SitDown, finished: Finish, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    expected = finished(3).record.trials
    with sit_down(trials=3) as sitting, monkeypatch.context() as dead:
        dead.setattr(sitting.worker.learning, "_judge", FailingJudge(answers))
        with pytest.raises(JudgeUnreachable, match="connection refused"):
            sitting.run()
        waiting = read(sitting).trials
        assert any(trial.state == "running" for trial in waiting)
        assert not any(
            verdict.label == "unjudged"
            for trial in waiting
            for kept in trial.measurements
            for verdict in read_verdicts(sitting.storage, kept.id)
        )
    with sit_down(trials=3) as sitting:
        assert sitting.run()
        resumed = read(sitting).trials
    for was, now in zip(expected, resumed, strict=True):
        assert (now.recipe, now.state, now.reason) == (was.recipe, was.state, was.reason)
        assert [kept.measurement for kept in now.measurements] == [
            kept.measurement for kept in was.measurements
        ]


def test_a_trial_that_somebody_ends_by_hand_is_closed_and_the_study_goes_on(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=3, slots=2) as sitting:

        def tell_trial_0() -> None:
            sitting.study.tell(0, state=TrialState.FAIL, skip_if_finished=True)

        sitting.worker.learning = _MeasuresAfter(sitting.worker.learning, tell_trial_0)
        assert sitting.run()
        first, *others = read(sitting).trials
        assert first.state == "failed"
        assert "somebody else" in str(first.reason)
        assert all(trial.state in ("complete", "pruned") for trial in others)
        assert sitting.study.trials[0].state == TrialState.FAIL


def test_a_trial_whose_checkpoint_is_damaged_begins_anew_with_the_same_end(
    sit_down: SitDown,
) -> None:
    with sit_down(trials=2, folder="undisturbed") as sitting:
        assert sitting.run()
        expected = outcome(sitting)
    with sit_down(trials=2, stop_after_steps=3) as sitting:
        assert not sitting.run()
        folder = sitting.worker.settings.checkpoints / "trial-0000"
        (folder / "checkpoint.safetensors").write_bytes(b"half of it")
    with sit_down(trials=2) as sitting:
        assert sitting.run()
        assert "cannot be read" in sitting.notes.warnings[0]
        assert "trial 0 begins anew" in sitting.notes.warnings[0]
        assert outcome(sitting) == expected
