"""Writes SEARCH.md and its figures from the grids and what was replayed on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from benchmarks.measuring import RESULTS
from benchmarks.search.grid_table import GridTable, read_table
from benchmarks.search.importance import Effect, effects
from benchmarks.search.world import World

PAGE = Path(__file__).parents[1] / "SEARCH.md"
FIGURES = Path(__file__).parents[2] / "docs"
_DRAWN = (
    "random search",
    "TPE without pruning",
    "TPE with median pruning",
    "MO-ASHA",
    "ours",
)
_COMPARED = (0.01, 0.02, 0.05, 0.1)  # shares of the cost
_RESAMPLES = 2000

_INTRODUCTION = """\
# The search, proved on complete grids

A study must find the same front as a complete grid for a small share of its cost. Here that is
tried: on two grids over the pocket model and the 2023 Oscars, every recipe of which was really
trained and asked, and by searches that are replayed on them. This page is written by
`python -m benchmarks.search.replay`; the grids by `python -m benchmarks.search.make_grid`, which
takes about two hours of two cores and can be stopped and run again. Nothing is typed in.

**Grids.** Every recipe is trained for 16 epochs and asked greedily after 1, 2, 3, 4, 6, 8, 10, 12,
14 and 16 of them, and after the last under eight presets too. *Recall* is over the validation
wordings, *knowledge loss* is greedy. Hypervolume is measured from the reference point of studies:
the base's recall and 0.05, a loss of 0.5.

**Cost.** That of a search is what its trials train and ask, at the mean seconds per token at which
the grid was made, as a share of the whole grid's. So asking is included. *Tokens* is the share of
the grid's trained tokens alone.

**Searches.** All choose from the same recipes. Random search and TPE without pruning also draw the
number of epochs, and a sampling where the grid has several; they ask finished adapters only. The
others train for all epochs unless they prune, and whatever was seen of a trial on its way counts
as found. What a search has tried before costs it nothing. *Median pruning* is OptunaHub's
multi-metric pruner with Optuna's median pruner, *MO-ASHA* is that of Schmucker et al. (2021) with
random search, both at our rungs: on `brief` they did worse with a first rung at half the tokens,
and no better with rungs twice or three times as far apart. *Ours* is what a study does, without
its starting points: its pruner, and TPE that knows each trial by its best point at a rung. The
rows below it change one thing each; *told ends alone* is TPE that knows pruned trials as pruned.
The rules of our pruner, what TPE learns from and the number of start-up trials (8, for all TPE
here) were chosen on the grid `brief`, so that its figures flatter ours; `default` was looked at
only to see that nothing got worse. Intervals: 95 %, by bootstrap over seeds.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """All searches of one method on one grid: `found` is (seeds, shares)."""

    method: str
    found: np.ndarray[Any, np.dtype[np.float64]]
    cost_of_enough: list[float | None]
    tokens_of_enough: list[float | None]
    asked: list[int]
    idle_to_the_end: list[int]


def write_page() -> Path:
    """Write the page and its figures; return the page's path."""
    results = json.loads((RESULTS / "search.json").read_text())
    grids = list(dict.fromkeys(one["grid"] for one in results["searches"]))
    lines = [_INTRODUCTION]
    for grid in grids:
        table = read_table(grid)
        curves = _curves(results, grid)
        lines += _say_grid(grid, table)
        lines += _say_searches(results, curves)
        lines.append(f"![Hypervolume against cost](../docs/search-{grid}.png)\n")
        lines += _say_importance(table)
        _draw(results, curves, grid)
    PAGE.write_text("\n".join(lines) + "\n")
    return PAGE


def _curves(results: dict[str, Any], grid: str) -> list[_Curve]:
    of_grid = [one for one in results["searches"] if one["grid"] == grid]
    methods = list(dict.fromkeys(one["method"] for one in of_grid))
    curves = []
    for method in methods:
        own = [one for one in of_grid if one["method"] == method]
        curves.append(
            _Curve(
                method=method,
                found=np.array([one["found"] for one in own]),
                cost_of_enough=[one["cost_of_enough"] for one in own],
                tokens_of_enough=[one["tokens_of_enough"] for one in own],
                asked=[one["asked"] for one in own],
                idle_to_the_end=[one["idle_to_the_end"] for one in own],
            )
        )
    return curves


def _say_grid(grid: str, table: GridTable) -> Iterator[str]:
    world = World(table)
    searched = ", ".join(
        f"{_plain(name)} {', '.join(map(_value, values))}" for name, values in world.values.items()
    )
    cells = sum(len(row.cells) for row in table.rows)
    failed = sum(row.failure is not None for row in table.rows)
    yield f"\n## Grid `{grid}`\n"
    yield (
        f"{len(table.rows)} recipes ({searched}), {cells} cells, {failed} recipes failed; "
        f"{table.head.training_seconds / 60:.0f} min of training and "
        f"{table.head.asking_seconds / 60:.0f} min of asking, summed over processes. "
        f"The front has {len(world.front())} points, from recall "
        f"{world.front()[0][0]:.2f} at loss {world.front()[0][1]:.2f} down to "
        f"{world.front()[-1][0]:.2f} at {world.front()[-1][1]:.2f}; its hypervolume is "
        f"{world.hypervolume:.4f}, the best single cell's is {_best_cell(world):.0%} of that.\n"
    )


def _best_cell(world: World) -> float:
    return max(world.measure([point]) for point in world.front()) / world.hypervolume


def _say_searches(results: dict[str, Any], curves: Sequence[_Curve]) -> Iterator[str]:
    shares = results["shares"]
    yield "Share of the grid's hypervolume found at a share of its cost, median over the seeds:\n"
    yield "| search | " + " | ".join(f"{share:.2%}".replace(".00", "") for share in shares) + " |"
    yield "| --- |" + " --- |" * len(shares)
    for curve in curves:
        cells = (_median(curve.found[:, column]) for column in range(len(shares)))
        yield f"| {curve.method} | " + " | ".join(cells) + " |"
    yield (
        f"\nCost at which {results['enough']:.0%} was found, in how many of {results['seeds']} "
        "seeds it was within the last share above, trials asked by then or in all, and how many "
        "went to their end without having learned anything:\n"
    )
    yield "| search | cost, median | tokens, median | reached | trials | idle to the end |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for curve in curves:
        reached = sum(cost is not None for cost in curve.cost_of_enough)
        yield (
            f"| {curve.method} | {_median_cost(curve.cost_of_enough)} | "
            f"{_median_cost(curve.tokens_of_enough)} | {reached} | "
            f"{np.median(curve.asked):.0f} | {np.mean(curve.idle_to_the_end):.1f} |"
        )
    ours = next(curve for curve in curves if curve.method == "ours")
    yield (
        "\nOurs less each other search at equal cost and seed: median difference in share of "
        "hypervolume, and in how many seeds ours was ahead:\n"
    )
    chosen = [number for number, share in enumerate(shares) if share in _COMPARED]
    yield "| against | " + " | ".join(f"{shares[number]:.0%}" for number in chosen) + " |"
    yield "| --- |" + " --- |" * len(chosen)
    for curve in curves:
        if curve is ours:
            continue
        differences = ours.found - curve.found
        cells = (
            f"{_median(differences[:, number], signed=True)}; {(differences[:, number] > 0).sum()}"
            for number in chosen
        )
        yield f"| {curve.method} | " + " | ".join(cells) + " |"
    yield "\n" + _say_verdict(results, ours, curves) + "\n"


def _say_verdict(results: dict[str, Any], ours: _Curve, curves: Sequence[_Curve]) -> str:
    """Return in words when ours has enough, and whom it is ahead of at equal cost."""
    reached = sum(cost is not None for cost in ours.cost_of_enough)
    cost = _median_cost(ours.cost_of_enough)
    parts = [
        f"Ours has {results['enough']:.0%} of the hypervolume at {cost} of the grid's cost, in "
        f"{reached} of {results['seeds']} seeds within {results['shares'][-1]:.0%}."
    ]
    for number, share in enumerate(results["shares"]):
        if share not in _COMPARED:
            continue
        groups: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
        for curve in curves:
            if curve.method in _DRAWN and curve is not ours:
                low, high = _interval(ours.found[:, number] - curve.found[:, number])
                state = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
                groups[state].append(curve.method)
        said = "; ".join(f"{state} {_list(names)}" for state, names in groups.items() if names)
        parts.append(f"At {share:.0%} of the cost it is {said}.")
    return " ".join(parts)


def _median(values: Any, *, signed: bool = False) -> str:
    low, high = _interval(np.asarray(values))
    sign = "+" if signed else ""
    return f"{np.median(values):{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(values, (_RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def _median_cost(costs: Sequence[float | None]) -> str:
    """Return the median where more than half of the searches had enough."""
    values = np.array([np.inf if cost is None else cost for cost in costs])
    middle = np.sort(values)[len(values) // 2]
    if not np.isfinite(middle):
        return "not reached"
    low, high = _interval(np.minimum(values, 1e9))
    upper = f"{high:.1%}" if high < 1 else "not reached"
    return f"{np.median(values):.1%} ({low:.1%} to {upper})"


def _say_importance(table: GridTable) -> Iterator[str]:
    yield "What matters: PED-ANOVA's share, and the share of the variance between the means.\n"
    yield "| setting | recall: PED-ANOVA | marginal | means | loss: PED-ANOVA | marginal | means |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    recall, loss = effects(table, "recall"), effects(table, "knowledge loss")
    on_loss = {effect.setting: effect for effect in loss}
    for effect in recall:
        other = on_loss.get(effect.setting)
        yield (
            f"| {_plain(effect.setting)} | {effect.ped_anova:.0%} | {effect.explained:.0%} | "
            f"{_means(effect)} | "
            + (
                f"{other.ped_anova:.0%} | {other.explained:.0%} | {_means(other)} |"
                if other is not None
                else "not measured | | |"
            )
        )
    yield ""
    yield _in_words("recall", recall, "recalls most", highest=True)
    yield _in_words("knowledge loss", loss, "loses least", highest=False) + "\n"


def _in_words(objective: str, found: Sequence[Effect], best: str, *, highest: bool) -> str:
    choose = max if highest else min
    strong = [effect for effect in found if effect.explained >= 0.05]
    weak = [effect for effect in found if effect.explained < 0.01]

    def say(effect: Effect) -> str:
        value = choose(effect.means, key=lambda value: effect.means[value])
        return f"{_plain(effect.setting)} ({effect.explained:.0%}; {_value(value)} {best})"

    parts = [f"For the {objective}, what matters by itself is {_list(map(say, strong))}"]
    if weak:
        parts.append(f"what does not: {_list(_plain(effect.setting) for effect in weak)}")
    rest = 1 - sum(effect.explained for effect in found)
    parts.append(f"{rest:.0%} of the variance is in how settings go together")
    return "; ".join(parts) + "."


def _list(names: Iterable[str]) -> str:
    *most, last = list(names) or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def _means(effect: Effect) -> str:
    return ", ".join(f"{_value(value)}: {mean:.2f}" for value, mean in effect.means.items())


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _value(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _draw(results: dict[str, Any], curves: Sequence[_Curve], grid: str) -> None:
    """Draw hypervolume against cost with the middle half of the seeds."""
    figure = go.Figure()
    shares = [100 * share for share in results["shares"]]
    colors = ("#8c8c8c", "#4c78a8", "#72b7b2", "#f2a541", "#d62728")
    for method, color in zip(_DRAWN, colors, strict=True):
        curve = next(curve for curve in curves if curve.method == method)
        low, middle, high = np.quantile(curve.found, (0.25, 0.5, 0.75), axis=0)
        figure.add_scatter(
            x=[*shares, *reversed(shares)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=color,
            opacity=0.15,
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=shares, y=middle, name=method, line={"color": color, "width": 2.5}, mode="lines"
        )
    figure.update_layout(
        template="plotly_white",
        width=760,
        height=440,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        title=f"Grid “{grid}”: median over {results['seeds']} seeds, band: middle half",
        legend={"x": 0.98, "y": 0.02, "xanchor": "right", "yanchor": "bottom"},
    )
    figure.update_xaxes(type="log", title="cost, % of the whole grid’s", tickvals=shares)
    lowest = min(np.quantile(c.found, 0.25, axis=0).min() for c in curves if c.method in _DRAWN)
    figure.update_yaxes(
        title="share of the grid’s hypervolume", range=[np.floor(10 * lowest) / 10, 1.01]
    )
    figure.write_image(FIGURES / f"search-{grid}.png", scale=2)
