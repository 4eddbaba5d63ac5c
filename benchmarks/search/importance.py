"""How much each setting matters in a complete grid, by PED-ANOVA and by plain marginal means."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from analysis.importance import rank_by_ped_anova
from benchmarks.search.grid_table import GridTable
from benchmarks.search.world import World
from data.recipes import GREEDY
from search_spaces.settings import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a setting does to a value: its share by PED-ANOVA, and what its values' means explain.

    `explained` is the share of the value's variance over the grid that lies between the means of
    the setting's values, averaged over all else; the rest is other settings and interactions.
    `means` are those means.
    """

    setting: str
    ped_anova: float
    explained: float
    means: dict[Value, float]


def effects(table: GridTable, objective: str) -> tuple[Effect, ...]:
    """Return what every setting does to the `recall` or the `knowledge loss`, the strongest first.

    Every recipe enters after every asked epoch, greedily; the epochs are a setting too. The loss
    is that of adapters that beat the reference's recall, for others lose little because they
    learned nothing.
    """
    reference = World(table).reference
    rows: list[dict[str, Value]] = []
    values: list[float] = []
    for row in table.rows:
        for cell in row.cells:
            if cell.sampling != GREEDY.name:
                continue
            if objective == "recall" or cell.recall > reference.recall:
                rows.append({**row.settings, "epochs": cell.epoch})
                values.append(cell.recall if objective == "recall" else cell.knowledge_loss)
    shares = rank_by_ped_anova(
        [{name: v if isinstance(v, str) else float(v) for name, v in r.items()} for r in rows],
        values,
        higher_is_better=objective == "recall",
    )
    return tuple(
        sorted(
            (_effect(name, share, rows, values) for name, share in shares.items()),
            key=lambda effect: -effect.explained,
        )
    )


def _effect(name: str, share: float, rows: list[dict[str, Value]], values: list[float]) -> Effect:
    groups: defaultdict[Value, list[float]] = defaultdict(list)
    for row, value in zip(rows, values, strict=True):
        groups[row[name]].append(value)
    mean = fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    between = sum(len(group) * (fmean(group) - mean) ** 2 for group in groups.values())
    return Effect(
        setting=name,
        ped_anova=share,
        explained=between / total if total else 0.0,
        means={value: fmean(group) for value, group in sorted(groups.items(), key=_by_value)},
    )


def _by_value(pair: tuple[Value, list[float]]) -> tuple[str, float]:
    value, _ = pair
    return (value, 0.0) if isinstance(value, str) else ("", float(value))
