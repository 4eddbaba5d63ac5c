"""The ways of searching that are compared: ours, its parts, and what others do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from study.pruning import Rungs, RungVector, SuccessiveHalving, make_stamp, vectors_at_rung
from study.sampler import SamplerName, SeededSampler

FACTS = 23
FIRST_RUNG_TOKENS = 350 * FACTS  # as a study of the grid's facts has it
REDUCTION = 3
STARTUP = 5  # trials that the median pruner lets pass, Optuna's default

Vector = tuple[float, float]
# Whether a trial goes on after an epoch, given all vectors by trial and epoch, its own included.
Decide = Callable[["Seen", int, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the trials of a search have shown at the epochs at which they were asked greedily."""

    world: World
    cells: Mapping[int, Mapping[int, Cell]]  # by trial, then by epoch
    rung_vectors: Mapping[int, Sequence[RungVector]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way of searching.

    `asks_every_epoch` asks a running trial after every epoch, otherwise at rungs; `decide` says
    then whether it goes on. `counts_rungs`: what was seen of a trial on its way counts as found.
    `samples_all`: a finished adapter is asked under every sampling. `told`: which of those points
    Optuna hears of. `starts`: a study's own starting points come first.
    """

    name: str
    sampler: SamplerName = "tpe"
    decide: Decide | None = None
    asks_every_epoch: bool = False
    fixed_epochs: bool = False
    counts_rungs: bool = False
    samples_all: bool = False
    told: FreePointsMode = "none"
    starts: bool = False
    constrained: bool = False
    rung_epochs: tuple[int, ...] = ()


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
        directions=["maximize", "minimize"], sampler=SeededSampler(seed, method.sampler)
    )
    for point in starts if method.starts else ():
        study.enqueue_trial(dict(point))
    ledger = Ledger(world)
    rungs = Rungs(first_rung_tokens=FIRST_RUNG_TOKENS, reduction=REDUCTION)
    cells: dict[int, dict[int, Cell]] = {}
    vectors: dict[int, list[RungVector]] = {}
    seen = Seen(world=world, cells=cells, rung_vectors=vectors)
    while not ledger.is_complete(budget):
        trial = study.ask()
        choice = world.suggest(trial, epochs=world.last_epoch if method.fixed_epochs else None)
        own, own_vectors = cells.setdefault(trial.number, {}), vectors.setdefault(trial.number, [])
        tokens = rungs_done = 0
        state = TrialState.COMPLETE
        for epoch in (epoch for epoch in world.epochs if epoch <= choice.epochs):
            cell = world.cell(choice.row, epoch)
            if cell is None:
                state = TrialState.FAIL
                break
            ledger.train(cell.trained_tokens - tokens)
            tokens = cell.trained_tokens
            is_last = epoch == choice.epochs
            reached = rungs.rungs_reached(tokens)
            if not is_last and not (
                method.decide is not None
                and (
                    method.asks_every_epoch
                    or epoch in method.rung_epochs
                    or (not method.rung_epochs and reached > rungs_done)
                )
            ):
                continue
            rungs_done = reached
            own[epoch] = cell
            own_vectors.append(_vector(world, cell, reached - 1, is_last=is_last))
            is_own = is_last and choice.sampling == GREEDY.name
            ledger.ask(cell, counts=is_own or method.counts_rungs)
            if not is_own:
                _tell_free(method, study, world, trial, cell, ledger)
            if is_last:
                _finish(method, study, world, trial, choice, ledger)
            elif method.decide is not None and not method.decide(seen, trial.number, epoch):
                state = TrialState.PRUNED
                break
        if method.constrained and own:
            last = own[max(own)]
            box = world.reference
            trial.set_constraint(
                "reference",
                max(0, box.recall - last.recall + 1e-6)
                + max(0, last.knowledge_loss - box.knowledge_loss + 1e-6),
            )
        if state == TrialState.COMPLETE:
            chosen = world.cell(choice.row, choice.epochs, choice.sampling)
            assert chosen is not None
            study.tell(trial, (chosen.recall, chosen.knowledge_loss))
        else:
            study.tell(trial, state=state)
        ledger.asked += 1
    return ledger


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


def _finish(
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
    params["epochs"] = world.epochs.index(cell.epoch)
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
            system_attrs={
                "constraints:reference": max(0, world.reference.recall - cell.recall + 1e-6)
                + max(0, cell.knowledge_loss - world.reference.knowledge_loss + 1e-6)
            }
            if method.constrained
            else None,
        )
    )


def halve_against_reference(seen: Seen, trial: int, epoch: int) -> bool:
    """Decide as a study does."""
    pruner = SuccessiveHalving(reference=seen.world.reference, reduction=REDUCTION)
    vectors = dict(seen.rung_vectors)
    newcomer = next(v for v in vectors.pop(trial) if v.epoch == epoch)
    return pruner.decide(newcomer, vectors_at_rung(newcomer.rung, vectors)).keep


def spare_slow(seen: Seen, trial: int, epoch: int) -> bool:
    pruner = SuccessiveHalving(reference=seen.world.reference, reduction=REDUCTION)
    vectors = dict(seen.rung_vectors)
    newcomer = next(v for v in vectors.pop(trial) if v.epoch == epoch)
    others = vectors_at_rung(newcomer.rung, vectors)
    box = seen.world.reference
    if newcomer.rung == 0 and newcomer.recall <= box.recall and newcomer.knowledge_loss < box.knowledge_loss:
        return True
    return pruner.decide(newcomer, others).keep


def out_only(seen: Seen, trial: int, epoch: int) -> bool:
    """prune only beyond the tolerated loss, or nothing learned at rung >= 1"""
    vectors = dict(seen.rung_vectors)
    newcomer = next(v for v in vectors.pop(trial) if v.epoch == epoch)
    box = seen.world.reference
    if newcomer.knowledge_loss >= box.knowledge_loss: return False
    if newcomer.rung >= 1 and newcomer.recall <= box.recall: return False
    return True


def never(seen: Seen, trial: int, epoch: int) -> bool:
    return True


def halve_by_fronts(seen: Seen, trial: int, epoch: int) -> bool:
    """Decide as MO-ASHA does (Schmucker et al. 2021): fronts, within each the farthest first.

    There is no reference point, and a rung with fewer than `REDUCTION` entries does not decide.
    """
    vectors = dict(seen.rung_vectors)
    newcomer = next(v for v in vectors.pop(trial) if v.epoch == epoch)
    others = vectors_at_rung(newcomer.rung, vectors)
    points = [(v.recall, v.knowledge_loss) for v in (newcomer, *others)]
    if len(points) < REDUCTION:
        return True
    return 0 in order_by_fronts(points)[: max(1, len(points) // REDUCTION)]


def order_by_fronts(points: Sequence[Vector]) -> list[int]:
    """Return positions from best to worst: front by front, each by an epsilon-net.

    The net takes the first point, then always the one farthest from those it has.
    """
    order: list[int] = []
    left = list(range(len(points)))
    while left:
        front = [left[i] for i in non_dominated([points[i] for i in left])]
        values = set(points[i] for i in front)
        front += [i for i in left if i not in front and points[i] in values]  # equal points
        net = [front.pop(0)]
        while front:
            farthest = max(front, key=lambda i: min(math.dist(points[i], points[j]) for j in net))
            front.remove(farthest)
            net.append(farthest)
        order += net
        left = [i for i in left if i not in net]
    return order


def stop_below_median(seen: Seen, trial: int, epoch: int) -> bool:
    """Decide as OptunaHub's multi-metric pruner does with the median pruner.

    All vectors at an epoch are ranked by fronts, ties by hypervolume contribution; a trial whose
    best rank is worse than the median of the others' goes, unless it is on the front.
    """
    at_epoch = {number: by[epoch] for number, by in seen.cells.items() if epoch in by}
    if len(at_epoch) - 1 < STARTUP:
        return True
    points = [(cell.recall, cell.knowledge_loss) for cell in at_epoch.values()]
    position = list(at_epoch).index(trial)
    if position in non_dominated(points):
        return True
    ranks = _ranks(points)
    others = [rank for i, rank in enumerate(ranks) if i != position]
    return ranks[position] <= median(others)


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


EXPERIMENTS = tuple(
    Method(name=f"x {dn} told={told} con={con} fix={fix} rungs={re}", decide=d, counts_rungs=True, told=told, constrained=con, fixed_epochs=fix, rung_epochs=re)
    for dn, d in (("halve", halve_against_reference), ("slow", spare_slow), ("out", out_only), ("never", never))
    for told in ("none", "all")
    for con in (False, True)
    for fix in (False, True)
    for re in ((), (2, 4, 8))
)
METHODS = (
    Method(name="random search", sampler="random"),
    Method(name="TPE without pruning"),
    Method(
        name="TPE, median pruning",
        decide=stop_below_median,
        asks_every_epoch=True,
        counts_rungs=True,
    ),
    Method(
        name="MO-ASHA",
        sampler="random",
        decide=halve_by_fronts,
        fixed_epochs=True,
        counts_rungs=True,
    ),
    Method(name="ours, only last epochs count", decide=halve_against_reference),
    Method(name="ours", decide=halve_against_reference, counts_rungs=True),
    Method(
        name="ours, most epochs always",
        decide=halve_against_reference,
        counts_rungs=True,
        fixed_epochs=True,
    ),
    Method(
        name="ours, all samplings asked",
        decide=halve_against_reference,
        counts_rungs=True,
        samples_all=True,
    ),
    Method(
        name="ours, rungs on the front told",
        decide=halve_against_reference,
        counts_rungs=True,
        told="front",
    ),
    Method(
        name="ours, all rungs told",
        decide=halve_against_reference,
        counts_rungs=True,
        told="all",
    ),
    Method(
        name="ours with its starting points",
        decide=halve_against_reference,
        counts_rungs=True,
        starts=True,
    ),
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
