"""Turns a study file into a running study: scenario, model, space, storage, worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

import optuna

from data.formats import epoch_documents
from data.probes import MIN_KNOWN_PER_RING
from data.recipes import Recipe
from data.scenarios import Scenario
from objectives.answers.request import AskingStopped, refuse_to_go_on
from objectives.bank.probing import choose_slots
from objectives.floors import measure_floors
from objectives.judges.base import Judge
from objectives.learn import Learning
from objectives.models.base import BaseModel
from objectives.models.machine.machine_load import describe_device, measure_peak
from objectives.models.machine.memory import is_out_of_memory
from objectives.models.machine.placement import devices_of
from search_spaces.grid import count_cells, make_grid
from search_spaces.presets import find_preset
from search_spaces.recipe_space import RecipeSpace, largest_recipe
from storage.artifacts import StudyArtifacts
from storage.database import StudyStorage
from storage.patience import Patience
from storage.reader import read_study
from storage.recorder import Recorder
from storage.records import TrialRecord
from study.adapter_costs import measure_adapter_costs
from study.adapter_shelf import AdapterShelf
from study.assigning import Bounds
from study.budget import Budget
from study.confirming import confirm
from study.engine import Post, load_engine
from study.fingerprint import fingerprint_of
from study.judge_making import LateCache, judge_config, make_study_judge
from study.lengths import check_lengths
from study.memory import StudyMemory
from study.model_space import recipe_space_for
from study.opening import first_points, open_optuna_study
from study.place import Place, open_place
from study.presence import Presence
from study.pruning import Rungs, SuccessiveHalving
from study.repeating import planned_repeats, train_again
from study.rung_share import rung_share_of
from study.spec import ConfigurationError, EngineSpec, StudySpec
from study.stored import (
    find_in,
    load_study_scenario,
    read_stored,
    reference_of,
)
from study.watching import Watcher
from study.worker import Worker, WorkerSettings

# Trained tokens per new fact at the first rung; slow recipes begin to answer then or at the next.
FIRST_RUNG_TOKENS_PER_FACT = 700


# A study asks so many trials per slot or more, so that most are asked with others' results known.
TRIALS_PER_SLOT = 5


class NothingToLearn(Exception):
    """The base model knows every fact already."""


def run_study(
    spec: StudySpec,
    place: Place,
    watcher: Watcher,
    *,
    should_stop: Callable[[], bool],
    announce: Callable[[str], None],
    post: Post | None = None,
) -> bool:
    """Run or resume a study; return False when it was asked to stop before its end.

    Everything that can be wrong with the input is found before anything is written. With several
    workers each calls this; they share the trials, and one of them trains the chosen again.

    Args:
        spec: What to study.
        place: Where.
        watcher: Is told of trials.
        should_stop: Asked all the time.
        announce: Receives what is being done beside trials.
        post: Where this worker computes; by default as the spec says, alone.

    Raises:
        NothingToLearn: If the base knows every fact.
        TooManyFailures, JudgeUnreachable, DiskProblem, DatabaseLost: See `Worker.run`.
    """
    try:
        return _run_study(
            spec,
            place,
            watcher,
            should_stop=should_stop,
            announce=announce,
            post=post or Post(engine=spec.engine),
        )
    except AskingStopped:
        return False


def _run_study(
    spec: StudySpec,
    place: Place,
    watcher: Watcher,
    *,
    should_stop: Callable[[], bool],
    announce: Callable[[str], None],
    post: Post,
) -> bool:
    judge_config(spec.judge)  # what is wrong with it is found before anything is loaded
    scenario = load_study_scenario(spec)
    announce(f"loading {spec.model}")
    base = load_engine(spec, post.engine)
    check_lengths(scenario, base)
    space = recipe_space_for(spec, scenario, base)
    rung_share = rung_share_of(spec, scenario, base, make_rungs(spec, len(scenario.facts)))
    samplings = spec.sampling_space
    grid = make_grid(space, samplings) if spec.sampler == "grid" else None
    points = first_points(spec, space, samplings, base)
    stored = read_stored(place)
    slots = (
        _slots_to_start(spec, base, scenario, space, announce, should_stop, post=post)
        if stored is None
        else stored.slots
    )
    patience = Patience(notice=announce, should_give_up=should_stop)
    with ExitStack() as stack:
        storage, cache = None, LateCache()
        if place.has_database:
            storage = stack.enter_context(closing(open_place(place, patience=patience)))
            cache.keep_in(storage)
        judge = make_study_judge(spec.judge, post.engine, cache, should_stop)
        announce(f"asking {base.name} what it knows")
        learning = _ask_base(
            post.engine,
            base,
            scenario,
            judge,
            slots=slots,
            max_rank=space.max_rank,
            rung_share=rung_share,
            should_stop=should_stop,
        )
        if storage is None:
            storage = stack.enter_context(closing(open_place(place, patience=patience)))
            cache.keep_in(storage)
        recorder, made = Recorder(storage, place.name), post.joined or spec
        recorded_slots = recorder.create_study_record(
            config=made.recorded.model_dump_json(),
            fingerprint=fingerprint_of(
                made, scenario, base, space, samplings, judge, rung_share=rung_share
            ),
            slots=slots,
            seed=spec.seed,
        )
        learning.use_slots(recorded_slots)  # another worker may have been first, with its own
        place.folder.mkdir(parents=True, exist_ok=True)
        presence = stack.enter_context(
            Presence(
                storage,
                recorder,
                place.name,
                device=describe_device(base.device),
                slots=recorded_slots,
                revision=base.revision,
                measure_peak=partial(measure_peak, devices_of(base.model)),
            )
        )
        recorder.record_measurement(
            None, learning.base.measurement, learning.base.verdicts, purpose="base"
        )
        reference = reference_of(spec, learning.base.measurement.recall.value)
        with presence.lock("asking"):
            study = open_optuna_study(storage, spec, place.name, grid, points, reference)
            _check_not_deleted(study, recorded=() if stored is None else stored.trials)
        worker = Worker(
            settings=WorkerSettings(
                study=place.name,
                bounds=Bounds(
                    trials=spec.trials if grid is None else min(spec.trials, count_cells(grid)),
                    budget=Budget(**spec.budget.model_dump()),
                    flat_trials=spec.flat_trials,
                    failures_in_a_row=spec.failures_in_a_row,
                ),
                seed=spec.seed,
                space=space,
                samplings=samplings,
                goal=spec.goal,
                rungs=make_rungs(spec, len(learning.facts)),
                pruner=SuccessiveHalving(
                    reference=reference,
                    reduction=spec.pruner.reduction,
                    minimum_entries=spec.pruner.minimum_entries,
                ),
                checkpoints=place.checkpoints,
                reference=reference,
                other_samplings=(
                    tuple(map(find_preset, samplings.presets))
                    if spec.asked_samplings == "all"
                    else ()
                ),
                free_points=spec.free_points,
            ),
            study=study,
            storage=storage,
            learning=learning,
            recorder=recorder,
            presence=presence,
            shelf=AdapterShelf(
                storage,
                recorder,
                place.name,
                place.adapters,
                reference,
                StudyArtifacts(
                    place.artifacts,
                    storage,
                    place.name,
                    limit_bytes=int(spec.artifacts_gigabytes * 1e9),
                ),
            ),
            watcher=watcher,
            should_stop=should_stop,
        )
        if not worker.run():
            return False
        return _ask_apart(
            spec, place, storage, recorder, presence, learning, judge, should_stop, announce
        )


def _check_not_deleted(study: optuna.Study, recorded: Sequence[TrialRecord]) -> None:
    """Refuse to go on where Optuna's part of a study was deleted, as its dashboard can.

    Raises:
        ConfigurationError: If we have records of trials that Optuna does not know.
    """
    known = {trial.number for trial in study.get_trials(deepcopy=False)}
    missing = sorted({trial.number for trial in recorded} - known)
    if missing:
        raise ConfigurationError(
            f"name: {len(missing)} trials of study {study.study_name!r} were deleted in Optuna, "
            "and our records of them remain; remove those with `remember delete --name "
            f"{study.study_name}`, or choose another name"
        )


def _ask_apart(
    spec: StudySpec,
    place: Place,
    storage: StudyStorage,
    recorder: Recorder,
    presence: Presence,
    learning: Learning,
    judge: Judge,
    should_stop: Callable[[], bool],
    announce: Callable[[str], None],
) -> bool:
    """Ask what needs the search to have ended, by one worker; return False if it was stopped.

    That are the floors, the test wordings, what the adapters take, and the chosen members trained
    again.
    """
    lock = presence.try_lock("confirming")
    if lock is None:
        announce("another worker asks the test wordings and trains the best again; leaving")
        return True
    presence.tell_activity("asking the test wordings")
    if not read_study(storage, place.name).floors and not should_stop():
        announce("asking the base with the facts in its prompt")
        recorder.record_floors(
            measure_floors(
                learning.bank.base,
                learning.facts,
                judge=judge,
                base_recall=learning.base.measurement.recall,
                should_stop=should_stop,
            )
        )
    announce("asking the best adapters the test wordings")
    findings = find_in(storage, place)
    if not confirm(storage, recorder, learning, findings, should_stop):
        return False
    announce("measuring what the best adapters take")
    measure_adapter_costs(recorder, learning, findings, should_stop)
    presence.tell_activity("training the best again")
    has_finished = train_again(
        planned_repeats(findings, learning, seeds=spec.confirming_seeds),
        study=place.name,
        storage=storage,
        recorder=recorder,
        learning=learning,
        should_stop=should_stop,
        progressed=lambda done, of: announce(f"trained again with fresh seeds: {done} of {of}"),
    )
    presence.release(lock)
    return has_finished


def _ask_base(
    engine: EngineSpec,
    base: BaseModel,
    scenario: Scenario,
    judge: Judge,
    *,
    slots: int,
    max_rank: int,
    rung_share: float,
    should_stop: Callable[[], bool],
) -> Learning:
    """Return the experiment, made by asking the base what it knows.

    Raises:
        NothingToLearn: If it knows every fact.
        ConfigurationError: If it knows too little to lose any of it.
    """
    learning = Learning(
        base,
        scenario,
        judge=judge,
        slots=slots,
        max_rank=max_rank,
        gradient_checkpointing=engine.gradient_checkpointing,
        rung_share=rung_share,
        should_stop=should_stop,
    )
    if not learning.facts:
        raise NothingToLearn(
            f"{base.name} already knows all {len(scenario.facts)} facts; nothing to teach"
        )
    if learning.base.measurement.knowledge_loss.value is None:
        raise ConfigurationError(
            f"model: {base.name} knows fewer than {MIN_KNOWN_PER_RING} probes of every ring, so "
            "that its knowledge loss cannot be measured; name a model that knows more"
        )
    return learning


def _slots_to_start(
    spec: StudySpec,
    base: BaseModel,
    scenario: Scenario,
    space: RecipeSpace,
    announce: Callable[[str], None],
    should_stop: Callable[[], bool],
    *,
    post: Post,
) -> int:
    """Return the slots of a new study: as the file says, or as many as pay on this machine.

    They are those of each of its workers.

    Raises:
        ModelError: If the memory does not suffice for one, or for as many as the file says.
    """
    memory = StudyMemory(
        base, scenario, space, spec.sampling_space, post.engine, workers=post.workers
    )
    most = memory.most_slots(spec.trials // (TRIALS_PER_SLOT * post.workers), asked=spec.slots)
    if spec.slots is not None:
        return spec.slots
    announce("trying out how many trials to train at once")
    recipe = largest_recipe(space)
    try:
        return choose_slots(
            base,
            recipe,
            partial(training_texts, scenario, recipe),
            most=most,
            gradient_checkpointing=post.engine.gradient_checkpointing,
            limit_bytes=post.engine.memory_limit_bytes,
            on_probed=lambda _: refuse_to_go_on(should_stop),
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory.explain_too_little() from error


def training_texts(
    scenario: Scenario, recipe: Recipe, seed: int
) -> Callable[[int], Sequence[str]]:
    """Return what gives the texts of a trial's epochs if the base knows all known facts."""

    def texts_of(epoch: int) -> Sequence[str]:
        documents = epoch_documents(
            scenario.facts, scenario.known_facts, recipe, seed=seed, epoch=epoch
        )
        return [document.text for document in documents]

    return texts_of


def make_rungs(spec: StudySpec, facts: int) -> Rungs | None:
    """Return when the trials of a study with so many new facts are measured; None if only last."""
    if not spec.pruner.enabled:
        return None
    return Rungs(
        first_rung_tokens=spec.pruner.first_rung_tokens or FIRST_RUNG_TOKENS_PER_FACT * facts,
        spacing=spec.pruner.spacing,
        inside_spacing=spec.pruner.inside_spacing,
    )
