"""The ways of searching that are compared: ours, its parts, and what others do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from benchmarks.search.grid_table import Cell
from benchmarks.search.world import Choice, Ledger, World
from data.front import hypervolume_contributions, non_dominated
from data.recipes import GREEDY
from search_spaces.settings import Value
from study.asked_trials import MEASURED_FROM
from study.free_points import FreePointsMode
from study.pruning import Rungs, SuccessiveHalving
from study.rung_vectors import (
    RungVector,
    is_inside,
    make_stamp,
    store_vector,
    vectors_at_rung,
)
from study.sampler import SamplerName, SeededSampler
from study.setting_up import FIRST_RUNG_TOKENS_PER_FACT
from study.spec import PrunerSpec

FACTS = 23  # that the grids' adapters were taught
MOST_TRIALS = 500  # of a search that does nothing but repeat itself
STARTUP = 5  # trials that the median pruner lets pass, Optuna's default
STUDYS_OWN = PrunerSpec()

Vector = tuple[float, float]
# Whether a trial goes on: its vector at a rung, and the others' there.
Decide = Callable[[World, RungVector, Sequence[RungVector]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way of searching.

    `decide` says at rungs whether a trial goes on; without it only finished trials are asked.
    `looks_inside`: between rungs, trials that beat the reference are asked too. `draws_epochs`:
    the sampler chooses after how many epochs a trial ends; otherwise all go for the most.
    `counts_rungs`: what was seen of a trial on its way counts as found. `samples_all`: a finished
    adapter is asked under every sampling. `told`: which of those points Optuna hears of.
    `starts`: a study's own starting points come first. `learns_from_best`: the sampler knows each
    trial by its best point at a rung.
    """

    name: str
    sampler: SamplerName = "tpe"
    decide: Decide | None = None
    first_rung_tokens: int = FIRST_RUNG_TOKENS_PER_FACT * FACTS
    spacing: float = STUDYS_OWN.spacing
    looks_inside: bool = False
    draws_epochs: bool = False
    counts_rungs: bool = True
    samples_all: bool = False
    told: FreePointsMode = "none"
    starts: bool = False
    learns_from_best: bool = False


def search(
    method: Method, world: World, seed: int, *, budget: float, starts: Sequence[Mapping[str, Any]]
) -> Ledger:
    """Return what a method spends and finds, up to a share of the grid's cost.

    Args:
        method: The method.
        world: Where to search.
        seed: Of the sampler.
        budget: Share of the grid's cost in seconds.
        starts: The points to try first, of a method that does.
    """
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=SeededSampler(
            seed, method.sampler, reference=world.reference if method.learns_from_best else None
        ),
    )
    for point in starts if method.starts else ():
        study.enqueue_trial(dict(point))
    ledger = Ledger(world)
    seen: dict[int, list[RungVector]] = {}
    endings: dict[Choice, TrialState] = {}
    first: dict[Choice, int] = {}
    while not ledger.is_complete(budget) and ledger.asked < MOST_TRIALS:
        trial = study.ask()
        choice = world.suggest(trial, epochs=None if method.draws_epochs else world.last_epoch)
        if choice not in endings:
            endings[choice] = _run(method, study, trial, choice, seen, ledger)
            ledger.ended(endings[choice], world.cell(choice.row, choice.epochs))
            first[choice] = trial.number
        # What was tried before is known and costs nothing.
        for vector in seen[first[choice]]:
            store_vector(trial, vector)
        chosen = world.cell(choice.row, choice.epochs, choice.sampling)
        if endings[choice] == TrialState.COMPLETE and chosen is not None:
            study.tell(trial, (chosen.recall, chosen.knowledge_loss))
        else:
            study.tell(trial, state=endings[choice])
        ledger.asked += 1
    return ledger


def _run(
    method: Method,
    study: optuna.Study,
    trial: optuna.Trial,
    choice: Choice,
    seen: dict[int, list[RungVector]],
    ledger: Ledger,
) -> TrialState:
    """Train one trial up to its end or as far as it may go; add its rung vectors to `seen`."""
    world, vectors = ledger.world, seen.setdefault(trial.number, [])
    rungs = Rungs(
        first_rung_tokens=method.first_rung_tokens,
        spacing=method.spacing,
        inside_spacing=STUDYS_OWN.inside_spacing,
    )
    tokens = rungs_done = 0
    last: Cell | None = None
    for epoch in (epoch for epoch in world.epochs if epoch <= choice.epochs):
        cell = world.cell(choice.row, epoch)
        if cell is None:
            return TrialState.FAIL
        ledger.train(cell.trained_tokens - tokens)
        tokens = cell.trained_tokens
        reached = rungs.rungs_reached(tokens)
        is_end = epoch == choice.epochs
        at_rung = method.decide is not None and reached > rungs_done
        if not (
            is_end or at_rung or (method.looks_inside and _counts(world, last, tokens, rungs))
        ):
            continue
        last = cell
        is_own = is_end and choice.sampling == GREEDY.name
        ledger.ask(cell, counts=is_own or method.counts_rungs)
        if not is_own:
            _tell_free(method, study, world, trial, cell, ledger)
        if is_end or at_rung:
            rungs_done = reached
            vectors.append(_vector(world, cell, reached - 1, is_last=is_end))
        if at_rung and not is_end and method.decide is not None:
            newcomer = vectors[-1]
            others = {n: v for n, v in seen.items() if n != trial.number}
            if not method.decide(world, newcomer, vectors_at_rung(newcomer.rung, others)):
                return TrialState.PRUNED
    _ask_samplings(method, study, world, trial, choice, ledger)
    return TrialState.COMPLETE


def _counts(world: World, last: Cell | None, tokens: int, rungs: Rungs) -> bool:
    """Return whether a trial between rungs is asked, as a study's worker does."""
    return (
        last is not None
        and tokens >= rungs.inside_spacing * last.trained_tokens
        and is_inside(world.reference, last.recall, last.knowledge_loss)
    )


def _vector(world: World, cell: Cell, rung: int, *, is_last: bool) -> RungVector:
    return RungVector(
        rung=rung,
        epoch=cell.epoch,
        trained_tokens=cell.trained_tokens,
        recall=cell.recall,
        knowledge_loss=cell.knowledge_loss,
        is_last=is_last,
        stamp=make_stamp(world.reference),
    )


def _ask_samplings(
    method: Method,
    study: optuna.Study,
    world: World,
    trial: optuna.Trial,
    choice: Choice,
    ledger: Ledger,
) -> None:
    """Ask a finished adapter under its own sampling, and under all others if the method does."""
    at_end = choice.epochs == world.last_epoch
    names = world.samplings if method.samples_all and at_end else (choice.sampling,)
    for name in names:
        cell = world.cell(choice.row, choice.epochs, name)
        if name != GREEDY.name and cell is not None:
            ledger.ask(cell, counts=True)
            if name != choice.sampling:
                _tell_free(method, study, world, trial, cell, ledger)


def _tell_free(
    method: Method,
    study: optuna.Study,
    world: World,
    trial: optuna.Trial,
    cell: Cell,
    ledger: Ledger,
) -> None:
    """Let Optuna hear of a point that was measured along a trial's way."""
    value = (cell.recall, cell.knowledge_loss)
    if method.told == "none" or (method.told == "front" and value not in ledger.points):
        return
    params = dict(trial.params)
    spaces = dict(trial.distributions)
    if "epochs" in params:
        params["epochs"] = world.epochs.index(cell.epoch)
    elif cell.epoch != world.last_epoch:
        return  # no point of a space without epochs
    if cell.epoch == world.last_epoch:
        params["sampling"] = cell.sampling
    else:
        params.pop("sampling", None)
        spaces.pop("sampling", None)
    study.add_trial(
        create_trial(
            values=value,
            params=params,
            distributions=spaces,
            user_attrs={MEASURED_FROM: trial.number},
        )
    )


def halve_against_reference(
    world: World, newcomer: RungVector, others: Sequence[RungVector]
) -> bool:
    """Decide as a study does."""
    pruner = SuccessiveHalving(
        reference=world.reference,
        reduction=STUDYS_OWN.reduction,
        minimum_entries=STUDYS_OWN.minimum_entries,
    )
    return pruner.decide(newcomer, others).keep


def halve_by_fronts(world: World, newcomer: RungVector, others: Sequence[RungVector]) -> bool:
    """Decide as MO-ASHA does (Schmucker et al. 2021): fronts, within each the farthest first.

    There is no reference point, and a rung with fewer than three entries does not decide.
    """
    points = _points(newcomer, others)
    if len(points) < STUDYS_OWN.reduction:
        return True
    return 0 in order_by_fronts(points)[: max(1, len(points) // STUDYS_OWN.reduction)]


def stop_below_median(world: World, newcomer: RungVector, others: Sequence[RungVector]) -> bool:
    """Decide as OptunaHub's multi-metric pruner does with the median pruner.

    All vectors at a rung are ranked by fronts, ties by hypervolume contribution; a trial whose
    rank is worse than the median of the others' goes, unless it is on the front.
    """
    points = _points(newcomer, others)
    if len(others) < STARTUP or 0 in non_dominated(points):
        return True
    own, *ranks = _ranks(points)
    return own <= median(ranks)


def _points(newcomer: RungVector, others: Sequence[RungVector]) -> list[Vector]:
    return [(vector.recall, vector.knowledge_loss) for vector in (newcomer, *others)]


def order_by_fronts(points: Sequence[Vector]) -> list[int]:
    """Return positions from best to worst: front by front, each by an epsilon-net.

    The net takes the first point, then always the one farthest from those it has.
    """
    order: list[int] = []
    left = list(range(len(points)))
    while left:
        front = [left[i] for i in non_dominated([points[i] for i in left])]
        values = {points[i] for i in front}
        front += [i for i in left if i not in front and points[i] in values]  # equal points
        net = [front.pop(0)]
        while front:
            farthest = max(front, key=lambda i: min(math.dist(points[i], points[j]) for j in net))
            front.remove(farthest)
            net.append(farthest)
        order += net
        left = [i for i in left if i not in net]
    return order


def _ranks(points: Sequence[Vector]) -> list[int]:
    """Return each point's rank, 0 is best, by fronts and hypervolume contribution within one."""
    worst = (min(p[0] for p in points) - 0.1, max(p[1] for p in points) + 0.1)
    ranks = [0] * len(points)
    left, next_rank = list(range(len(points))), 0
    while left:
        front = [left[i] for i in non_dominated([points[i] for i in left])]
        contributions = hypervolume_contributions([points[i] for i in front], worst)
        order = sorted(zip(contributions, front, strict=True), key=lambda pair: -pair[0])
        for _, i in order:
            ranks[i] = next_rank
            next_rank += 1
        left = [i for i in left if i not in front]
    return ranks


OURS = Method(
    name="ours", decide=halve_against_reference, looks_inside=True, learns_from_best=True
)

METHODS = (
    Method(name="random search", sampler="random", draws_epochs=True),
    Method(name="TPE without pruning", draws_epochs=True),
    Method(name="TPE with median pruning", decide=stop_below_median),
    Method(name="MO-ASHA", sampler="random", decide=halve_by_fronts),
    replace(OURS, name="ours, only ends count", counts_rungs=False, draws_epochs=True),
    OURS,
    replace(OURS, name="ours, epochs drawn", draws_epochs=True),
    replace(OURS, name="ours, rungs alone", looks_inside=False),
    replace(OURS, name="ours, told ends alone", learns_from_best=False),
    replace(OURS, name="ours, all samplings asked", samples_all=True),
    replace(OURS, name="ours, front told to TPE", told="front"),
    replace(OURS, name="ours, all told to TPE", told="all"),
    replace(OURS, name="ours with starting points", starts=True),
)


def nearest_start(world: World, settings: Mapping[str, Value]) -> dict[str, Any]:
    """Return a starting point as a choice in a grid: the nearest value of each setting it names.

    Numbers are compared by their ratio; a text that the grid does not have is left out.
    """
    point: dict[str, Any] = {}
    for name, value in settings.items():
        values: tuple[Value, ...] = (
            world.epochs if name == "epochs" else world.values.get(name, ())
        )
        if not values:
            continue
        if isinstance(value, str):
            if value in values:
                point[name] = value
            continue
        distances = [abs(math.log((float(v) + 1e-9) / (float(value) + 1e-9))) for v in values]
        point[name] = distances.index(min(distances))
    return point
