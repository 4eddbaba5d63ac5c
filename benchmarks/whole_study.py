"""The whole study to an equal best score: `remember run` against searches without its means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import optuna

from analysis.findings import Findings
from benchmarks.clocked_study import PEAK, SECONDS, SEEN
from benchmarks.measuring import Timing, write_result
from benchmarks.peers.optuna_trainer import OptunaSearch
from benchmarks.peers.scores import judge_texts
from benchmarks.peers.work_files import (
    BASE_ANSWERS,
    Job,
    write_job,
    write_lines,
    write_prompts,
)
from benchmarks.workload import pocket_base
from data.prompts import fact_prompts
from data.recipes import Recipe
from objectives.judges.matcher import Matcher
from objectives.learn import SEARCHED, Learning
from search_spaces.presets import PRESETS
from storage.records import TrialRecord
from study.place import find_place, open_place
from study.spec import STORAGE_VARIABLE, StudySpec
from study.stored import find_in, load_study_scenario

NO_PRUNER = "[pruner]\nenabled = false\n"
OURS, SCRIPTS, OPTUNA = "remember run", "three scripts", "Optuna + Trainer"

HOW_MANY_TRIALS = (
    "those that our own study asks with the pruner off, same seed, counted until the best final "
    "recall - knowledge loss is no less than that of the point our study recommends (the least of "
    "all runs)"
)
HOW_PEERS_WERE_TIMED = (
    "each run times one asked trial of each peer, from the shortest to the longest by trained "
    "tokens; all trials then take its training seconds per trained token times all their tokens, "
    "and its other seconds (start, loading, asking, judging) times their number"
)
WHAT_PEERS_ARE_GIVEN = (
    "the new facts, the training texts, the base's answers and the sampler's choices, none of "
    "which is timed; and they ask greedily only"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTrial:
    """One trial of a peer: how long it took, how much of that it trained, and what it reached."""

    seconds: float
    training_seconds: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The trials that a search without pruner needs for a score, and the best score of them."""

    trials: tuple[TrialRecord, ...]
    best: float
    is_enough: bool

    def seconds_for_all(self, trial: TrialRecord, timed: TimedTrial) -> float:
        """Return what all trials take by the times of one; see `HOW_PEERS_WERE_TIMED`."""
        per_token = timed.training_seconds / _trained_tokens(trial)
        rest = timed.seconds - timed.training_seconds
        return per_token * sum(map(_trained_tokens, self.trials)) + rest * len(self.trials)


def run(runs: int, *, trials: int = StudySpec().trials, space: str = "") -> None:
    """Measure, and write `whole_study.json`.

    Args:
        runs: How often; each times another trial of the peers.
        trials: Of our study, and the most of a peer's.
        space: More lines of the study file, for a smaller search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seconds: list[float] = []
    noted: list[dict[str, Any]] = []
    reached: list[float] = []
    timed: dict[str, list[tuple[TrialRecord, TimedTrial]]] = {SCRIPTS: [], OPTUNA: []}
    with TemporaryDirectory() as name:
        folder = Path(name)
        peers = _make_peers(folder / "peers")
        unpruned, unpruned_notes = _run_study(folder / "unpruned", trials, space + NO_PRUNER)
        chosen = _spread(unpruned.record.trials, runs)
        for turn, trial in enumerate(chosen):
            begun = time.perf_counter()
            findings, notes = _run_study(folder / f"ours-{turn}", trials, space)
            seconds.append(time.perf_counter() - begun)
            noted.append(notes)
            reached.append(_recommended_score(findings))
            print(f"  {turn + 1}/{runs} {OURS}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
            for peer, try_trial in peers.items():
                timed[peer].append((trial, try_trial(trial)))
                taken = timed[peer][-1][1].seconds
                print(f"  {turn + 1}/{runs} a trial of {peer}: {taken:.1f} s", file=sys.stderr)

    plan = _plan(unpruned.record.trials, min(reached))
    whole = replace(plan, trials=tuple(unpruned.record.trials))
    until = [
        _seconds_until(min(reached), taken, notes)
        for taken, notes in zip(seconds, noted, strict=True)
    ]
    facts: dict[str, str | int | float] = {
        "trials of the peers": HOW_MANY_TRIALS,
        "time of the peers": HOW_PEERS_WERE_TIMED,
        "what peers are given": WHAT_PEERS_ARE_GIVEN,
        "trained tokens of the peers' trials": sum(map(_trained_tokens, plan.trials)),
        "slots (K) without pruner": unpruned_notes["slots"],
        f"{OURS}: slots (K) of each run": " ".join(f"{notes['slots']}" for notes in noted),
    }
    for key in ("trained_tokens", "training_seconds", "asking_seconds", "padding_share", PEAK):
        mean = fmean(notes[key] for notes in noted)
        facts[f"{OURS}: {key.replace('_', ' ')}"] = round(mean, 3) if mean < 1 else round(mean)
    for peer, pairs in timed.items():
        facts |= {
            f"{peer}: seconds of a trial": round(fmean(each.seconds for _, each in pairs), 1),
            f"{peer}: of which training": round(fmean(e.training_seconds for _, e in pairs), 1),
            f"{peer}: mean score of the timed trials": round(fmean(e.score for _, e in pairs), 4),
            f"{peer}: ours of the same trials, greedy": round(
                fmean(_score(trial, samplings=("greedy",)) for trial, _ in pairs), 4
            ),
        }
    parts = {
        "to an equal score": _compare(plan, until, reached, timed),
        f"all {len(whole.trials)} trials": _compare(whole, seconds, reached, timed),
    }
    write_result("whole_study", parts, facts=facts)


def _compare(
    plan: Plan,
    seconds: Sequence[float],
    reached: Sequence[float],
    timed: Mapping[str, Sequence[tuple[TrialRecord, TimedTrial]]],
) -> list[Timing]:
    """Return the timings of our runs and of the peers' for the trials of a plan."""
    needed = f"trials: {'' if plan.is_enough else 'at least '}{len(plan.trials)}"
    return [
        Timing(
            name=OURS,
            is_ours=True,
            settings="side by side, pruned",
            share=1.0,
            seconds=tuple(seconds),
            outcomes=tuple(reached),
        ),
        *(
            Timing(
                name=peer,
                is_ours=False,
                settings=needed,
                share=1 / len(plan.trials),
                seconds=tuple(plan.seconds_for_all(*pair) for pair in pairs),
                outcomes=(plan.best,) * len(pairs),
            )
            for peer, pairs in timed.items()
        ),
    ]


def _seconds_until(score: float, taken: float, notes: Mapping[str, Any]) -> float:
    """Return when a process that took so many seconds had first measured a score.

    Its own clock began later, once Python had imported it.
    """
    imported = taken - notes[SECONDS]
    return next((imported + when for when, seen in notes[SEEN] if seen >= score), taken)


def _spread(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Return so many finished trials, spread evenly from the shortest to the longest."""
    by_length = sorted((t for t in trials if t.state == "complete"), key=_trained_tokens)
    return [by_length[int((place + 0.5) * len(by_length) / count)] for place in range(count)]


def _run_study(out: Path, trials: int, study_file: str) -> tuple[Findings, dict[str, Any]]:
    """Run a study in a process of its own; return what it found and what was noted of it."""
    out.mkdir(parents=True)
    file, notes = out / "study.toml", out / "notes.json"
    file.write_text(study_file)
    arguments = ["run", "--study", str(file), "--out", str(out), "--trials", str(trials)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.clocked_study", str(notes), *arguments],
        env={key: value for key, value in os.environ.items() if key != STORAGE_VARIABLE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    place = find_place(StudySpec(out=str(out)))
    with closing(open_place(place)) as storage:
        return find_in(storage, place), json.loads(notes.read_text())


def _plan(trials: Sequence[TrialRecord], score: float) -> Plan:
    """Return the first trials, in the order they were asked, that reach a score; all if none."""
    needed: list[TrialRecord] = []
    for trial in trials:
        needed.append(trial)
        if _score(trial) >= score:
            break
    best = max(map(_score, needed))
    return Plan(trials=tuple(needed), best=best, is_enough=best >= score)


def _recommended_score(findings: Findings) -> float:
    point = findings.recommended
    return float("-inf") if point is None else point.recall - point.knowledge_loss


def _score(trial: TrialRecord, *, samplings: Sequence[str] = tuple(PRESETS)) -> float:
    """Return the best recall - knowledge loss that a trial ended with under some samplings."""
    return max(
        (
            kept.measurement.recall.value - kept.measurement.knowledge_loss.value
            for kept in trial.measurements
            if kept.purpose == "final"
            and kept.measurement.sampling.name in samplings
            and kept.measurement.recall.value is not None
            and kept.measurement.knowledge_loss.value is not None
        ),
        default=float("-inf"),
    )


def _trained_tokens(trial: TrialRecord) -> int:
    assert trial.costs is not None, "the study is over"
    return trial.costs.trained_tokens


def _make_peers(folder: Path) -> dict[str, Callable[[TrialRecord], TimedTrial]]:
    """Return the peers, each a function that runs one trial, with all that they are given."""
    base, scenario = pocket_base(), load_study_scenario(StudySpec())
    learning = Learning(base, scenario, judge=Matcher(), slots=1, max_rank=1)
    base_answers = {v.answer.prompt.id: v.answer.text for v in learning.base.verdicts}
    prompts = [
        *fact_prompts(learning.facts, SEARCHED),
        *(probe.prompt() for probe in scenario.probes),
    ]
    base_texts = [base_answers[prompt.id] for prompt in prompts]
    folder.mkdir()
    write_prompts(folder, prompts)
    write_lines(folder / BASE_ANSWERS, base_texts)

    def make_job(recipe: Recipe, *, seed: int) -> Job:
        epochs = range(recipe.epochs)
        texts = tuple(learning.epoch_texts(recipe, seed, epoch) for epoch in epochs)
        return Job(recipe=recipe, epoch_texts=texts)

    def run_scripts(trial: TrialRecord) -> TimedTrial:
        write_job(folder, make_job(trial.recipe, seed=trial.seed))
        begun = time.perf_counter()
        printed = [
            subprocess.run(
                [sys.executable, "-m", f"benchmarks.peers.{script}", str(folder)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for script in ("train", "infer", "judge")
        ]
        recall, loss = json.loads(printed[2])
        return TimedTrial(
            seconds=time.perf_counter() - begun,
            training_seconds=float(printed[0]),
            score=recall - loss,
        )

    def run_optuna(trial: TrialRecord) -> TimedTrial:
        search = OptunaSearch(
            base=base,
            space=StudySpec().recipe_space(
                hidden_size=base.hidden_size,
                context_tokens=base.context_tokens,
                longest_qna_tokens=base.context_tokens,  # of no account in the default space
            ),
            prompts=prompts,
            base_verdicts=judge_texts(prompts, base_texts),
            make_job=partial(make_job, seed=trial.seed),
        )
        begun = time.perf_counter()
        recall, loss, training_seconds = search.try_recipe(trial.recipe)
        return TimedTrial(
            seconds=time.perf_counter() - begun,
            training_seconds=training_seconds,
            score=recall - loss,
        )

    return {SCRIPTS: run_scripts, OPTUNA: run_optuna}
