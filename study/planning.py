"""Works out what a study would take, of memory and of time, without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import psutil

from data.recipes import Recipe
from data.scenarios import Scenario
from objectives.bank.bank import EpochTexts
from objectives.bank.probing import Probed, choose_slots, probe
from objectives.demand import demand_of, guess_tokens
from objectives.models.base import BaseModel, ModelError, context_tokens_of
from objectives.models.known_models import KnownModel, look_up
from objectives.models.load import Precision, default_precision
from objectives.models.machine.devices import default_device, list_devices
from objectives.models.machine.footprint import (
    Demand,
    Footprint,
    estimate,
)
from objectives.models.machine.memory import is_out_of_memory, release_memory
from objectives.models.machine.memory_limit import too_little_memory
from objectives.models.machine.placement import SPLIT
from objectives.paces import AskingPace, measure_asking_pace
from search_spaces.recipe_space import RecipeSpace, largest_recipe
from study.engine import load_engine
from study.judge_making import judge_config
from study.lengths import check_lengths
from study.memory import StudyMemory, longest_answer
from study.model_space import recipe_space_for
from study.place import Place
from study.planned_work import Work, add_up
from study.setting_up import (
    TRIALS_PER_SLOT,
    training_texts,
)
from study.spec import EngineSpec, StudySpec
from study.stored import load_study_scenario, read_stored


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The memory that a study is estimated to take on its device, in bytes.

    Where the model `is_spread`, over GPUs and main memory, all is of these together, `limit`
    included; only `peak` is of the fullest GPU.

    `slot` is what one more adapter takes while it trains, of which `adapter` are its weights,
    gradients and Adam's moments; `training` and `asking` are with `slots` adapters, the model
    included, and while `rows` prompts are asked at once, of which each takes `row`. `limit` is
    what may be used, None where nothing says; `peak` was measured on a GPU while `slots` trained.
    """

    weights: int
    adapter: int
    slot: int
    row: int
    slots: int
    rows: int
    training: int
    asking: int
    limit: int | None
    is_spread: bool = False
    peak: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePlan:
    """The seconds that a study is estimated to take at most; None is "not measured"."""

    train: float | None
    ask: float | None
    judge: float | None


NO_TIME = TimePlan(train=None, ask=None, judge=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """What a study would be and take; `notes` say how sure that is."""

    name: str
    model: str
    parameters: int
    precision: str
    device: str
    workers: int
    facts: int
    trials: int
    trained_tokens: int
    answers: int
    memory: MemoryPlan
    time: TimePlan
    notes: tuple[str, ...]


def plan_study(
    spec: StudySpec,
    place: Place,
    *,
    posts: Sequence[EngineSpec],
    announce: Callable[[str], None] = lambda _: None,
) -> StudyPlan:
    """Return what a study would take; nothing of it is run or written.

    A model that is on this machine and has room is loaded, and a few steps and one batch of
    prompts are timed. Of another one the memory alone is estimated, from its configuration or from
    what is known of it by name.

    Args:
        spec: The study.
        place: Where it would be.
        posts: Where each worker would compute.
        announce: Receives what is being done.

    Raises:
        ModelError: If nothing is known of the model, or its memory cannot be estimated.
        FactsError, SettingError, ConfigurationError: As running it would.
    """
    judge_config(spec.judge)
    scenario = load_study_scenario(spec)
    engine = posts[0]
    known = look_up(spec.model, spec.loading.options, precision=_precision(engine))
    room = _room(engine, workers=len(posts))
    if known is None or (known.folder is not None and _fits(known, room)):
        announce(f"loading {spec.model}")
        return _plan_measured(spec, place, scenario, posts, room, announce)
    return _plan_unmeasured(spec, place, scenario, posts, known, room)


def _precision(engine: EngineSpec) -> Precision:
    device = default_device() if engine.device == "auto" else engine.device
    return default_precision(device) if engine.dtype == "auto" else engine.dtype


def _room(engine: EngineSpec, *, workers: int) -> int | None:
    """Return the bytes that a worker may use, by the limit or by what there is."""
    limit = engine.memory_limit_bytes
    gpus = [gpu.total_bytes for gpu in list_devices() if gpu.total_bytes is not None]
    if engine.device == "cpu" or not gpus:
        return None if limit is None else limit // workers
    device = "cuda:0" if engine.device in ("auto", "cuda") else engine.device
    if _is_spread(engine):
        # What the GPUs have no room for waits in main memory.
        on_gpus = sum(min(total, limit or total) for total in gpus)
        return on_gpus + int(psutil.virtual_memory().available)
    total = next((gpu.total_bytes for gpu in list_devices() if gpu.name == device), None)
    return limit if total is None else min(total, limit or total)


def _is_spread(engine: EngineSpec) -> bool:
    """Return whether a model lies on all GPUs and in main memory, whose room counts together."""
    has_gpu = any(device.total_bytes is not None for device in list_devices())
    return engine.device == SPLIT and has_gpu


def _fits(known: KnownModel, room: int | None) -> bool:
    """Return whether a model's weights have room."""
    nothing = Demand(rank=1, step_tokens=1, prompt_tokens=1, answer_tokens=1)
    weights = estimate(known.shape, known.storing, nothing).weights.total
    return weights <= (psutil.virtual_memory().available if room is None else room)


def _plan_measured(
    spec: StudySpec,
    place: Place,
    scenario: Scenario,
    posts: Sequence[EngineSpec],
    room: int | None,
    announce: Callable[[str], None],
) -> StudyPlan:
    """Return the plan for a model that is loaded and tried out."""
    engine = posts[0]
    base = load_engine(spec, engine)
    check_lengths(scenario, base)
    space = recipe_space_for(spec, scenario, base)
    memory = StudyMemory(base, scenario, space, spec.sampling_space, engine, workers=len(posts))
    announce("training a few steps and asking a few prompts")
    stored = read_stored(place)
    probed = _try_slots(
        spec, base, scenario, space, memory, posts, None if stored is None else stored.slots
    )
    recipe = largest_recipe(space)
    texts = training_texts(scenario, recipe, 0)
    pace = measure_asking_pace(
        base, scenario, recipe, texts, gradient_checkpointing=engine.gradient_checkpointing
    )

    def count(text: str) -> int:
        return len(base.encode_prompt(text))

    work = add_up(spec, scenario, space, count, base)
    is_matched = spec.judge.kind == "matcher"
    return StudyPlan(
        name=place.name,
        model=base.name,
        parameters=memory.shape.parameters,
        precision=memory.storing.words,
        device=SPLIT if _is_spread(engine) else str(base.device),
        workers=len(posts),
        facts=len(scenario.facts),
        trials=work.trials,
        trained_tokens=work.trained_tokens,
        answers=work.verdicts,
        memory=_plan_memory(memory.footprint, probed.slots, engine, room, peak=probed.peak_bytes),
        time=_plan_time(work, probed, pace, workers=len(posts), is_matched=is_matched),
        notes=(
            "Times come from a few steps with the largest recipe and one batch of prompts here; "
            "expect them to be right within a factor of two.",
            "They are those of a study in which no trial is pruned and every trial is asked at "
            "its rungs only; pruning makes it shorter, trials that are worth a closer look are "
            "asked more often.",
            *(
                ()
                if is_matched
                else (
                    f"A judge of kind {spec.judge.kind!r} was not tried out; it gets up to "
                    f"{work.verdicts:,} answers, and what it takes of memory is not counted.",
                )
            ),
            *_say_cpu(base.device.type, room),
        ),
    )


def _try_slots(
    spec: StudySpec,
    base: BaseModel,
    scenario: Scenario,
    space: RecipeSpace,
    memory: StudyMemory,
    posts: Sequence[EngineSpec],
    stored_slots: int | None,
) -> Probed:
    """Return how fast as many slots train as the study has or would choose.

    Raises:
        ModelError: If not even one can train.
    """
    engine, recipe = posts[0], largest_recipe(space)
    texts_of = partial(training_texts, scenario, recipe)
    asked = spec.slots if stored_slots is None else stored_slots
    most = memory.most_slots(spec.trials // (TRIALS_PER_SLOT * len(posts)), asked=asked)
    tried: dict[int, Probed] = {}
    try:
        if asked is not None:
            return _probe_what_fits(base, recipe, texts_of, asked, engine)
        chosen = choose_slots(
            base,
            recipe,
            texts_of,
            most=most,
            gradient_checkpointing=engine.gradient_checkpointing,
            limit_bytes=engine.memory_limit_bytes,
            on_probed=lambda probed: tried.update({probed.slots: probed}),
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory.explain_too_little() from error
    return tried[chosen]


def _probe_what_fits(
    base: BaseModel,
    recipe: Recipe,
    texts_of: Callable[[int], EpochTexts],
    slots: int,
    engine: EngineSpec,
) -> Probed:
    """Return how fast so many slots train, or as many halves of them in turn as fit.

    Raises:
        torch.OutOfMemoryError: If not even one fits; on a CPU a RuntimeError.
    """
    while True:
        try:
            return probe(base, recipe, texts_of, slots, engine.gradient_checkpointing)
        except (RuntimeError, MemoryError) as error:
            if slots == 1 or not is_out_of_memory(error):
                raise
        release_memory()
        slots //= 2


def _context_tokens(known: KnownModel, name: str) -> int:
    tokens = context_tokens_of(known.config)
    if tokens is None:
        raise ModelError(
            f"model: {name!r} cannot be planned for, because its configuration does not say how "
            "many tokens it can read; fetch the whole model, whose tokenizer may say it"
        )
    return tokens


def _plan_unmeasured(
    spec: StudySpec,
    place: Place,
    scenario: Scenario,
    posts: Sequence[EngineSpec],
    known: KnownModel,
    room: int | None,
) -> StudyPlan:
    """Return the plan for a model of which only the shape is known.

    Raises:
        ModelError: If one adapter would not fit what a limit or a GPU allows.
    """
    engine, shape = posts[0], known.shape
    space = spec.recipe_space(
        hidden_size=shape.hidden,
        context_tokens=_context_tokens(known, spec.model),
        longest_qna_tokens=max(
            guess_tokens(f"Question: {fact.question} Answer: {fact.answer}")
            for fact in scenario.facts
        ),
    )
    demand = demand_of(
        scenario,
        largest_recipe(space),
        guess_tokens,
        answer_tokens=longest_answer(spec.sampling_space),
        gradient_checkpointing=engine.gradient_checkpointing,
    )
    footprint = estimate(shape, known.storing, demand)
    if room is not None and footprint.least > room:
        raise too_little_memory(
            shape,
            known.storing,
            demand,
            limit_bytes=room,
            is_set=engine.memory_limit_bytes is not None and not _is_spread(engine),
        )
    most = max(1, spec.trials // (TRIALS_PER_SLOT * len(posts)))
    fitting = most if room is None else max(1, min(most, footprint.slots_within(room)))
    work = add_up(spec, scenario, space, guess_tokens, None)
    reason = (
        "it is not on this machine" if known.folder is None else "its weights have no room here"
    )
    return StudyPlan(
        name=place.name,
        model=spec.model,
        parameters=shape.parameters,
        precision=known.storing.words,
        device=default_device() if engine.device == "auto" else engine.device,
        workers=len(posts),
        facts=len(scenario.facts),
        trials=work.trials,
        trained_tokens=work.trained_tokens,
        answers=work.verdicts,
        memory=_plan_memory(footprint, spec.slots or fitting, engine, room),
        time=NO_TIME,
        notes=(
            f"The model was not loaded: {reason}. Its memory is estimated from its shape, tokens "
            "are guessed from characters, and no time was measured.",
            "As many adapters as have room may be more than pay; a run tries that out.",
        ),
    )


def _plan_memory(
    footprint: Footprint,
    slots: int,
    engine: EngineSpec,
    room: int | None,
    *,
    peak: int | None = None,
) -> MemoryPlan:
    rows = footprint.rows_within(2**63 if room is None else room, slots=slots)
    return MemoryPlan(
        weights=footprint.weights.total,
        adapter=footprint.adapter,
        slot=footprint.slot,
        row=footprint.row,
        slots=slots,
        rows=rows,
        training=footprint.training(slots),
        asking=footprint.asking(slots, rows),
        limit=room,
        is_spread=_is_spread(engine),
        peak=peak,
    )


def _plan_time(
    work: Work, probed: Probed, pace: AskingPace, *, workers: int, is_matched: bool
) -> TimePlan:
    """Return the seconds of all work, shared among the workers."""
    asking = work.answers * pace.seconds_per_answer + work.probes * pace.seconds_per_probe
    return TimePlan(
        train=work.trained_tokens * probed.seconds_per_token / workers,
        ask=asking / workers,
        judge=work.verdicts * pace.seconds_per_match / workers if is_matched else None,
    )


def _say_cpu(device_type: str, room: int | None) -> tuple[str, ...]:
    if device_type != "cpu" or room is None:
        return ()
    return (
        "On a CPU a memory limit cannot be enforced: it bounds the adapters trained at once by "
        "the estimate. Python and torch themselves take about half a gigabyte besides.",
    )
