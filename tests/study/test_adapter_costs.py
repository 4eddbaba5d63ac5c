"""What the adapters on a front take is measured once, from their files, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from analysis.findings import Findings, find
from analysis.verdict import Subject
from data.measurements import AdapterCost
from objectives.answers.request import AskingStopped
from objectives.bank.adapter_size import adapter_size
from storage.reader import read_adapter_costs, read_study
from study.adapter_costs import measure_adapter_costs, unmeasured
from tests.study.conftest import REFERENCE, STUDY, Sitting

# Inputs and outputs of the pocket model's modules, over four layers.
WIDTHS = {"all": 10_240, "attention": 4_096, "mlp": 6_144}


@pytest.fixture
def searched(sit_down: Callable[..., AbstractContextManager[Sitting]]) -> Iterator[Sitting]:
    with sit_down(trials=3, prune=False) as sitting:
        assert sitting.run()
        yield sitting


def found(sitting: Sitting) -> Findings:
    return find(
        read_study(sitting.storage, STUDY),
        Subject(model="pocket", new=sitting.worker.learning.facts, known=()),
        REFERENCE,
        adapter_costs=read_adapter_costs(sitting.storage, STUDY),
    )


def measure(sitting: Sitting, *, stop: bool = False) -> tuple[AdapterCost, ...]:
    worker = sitting.worker
    measure_adapter_costs(worker.recorder, worker.learning, found(sitting), lambda: stop)
    return read_adapter_costs(sitting.storage, STUDY)


def require_empty(sitting: Sitting, folder: str | None) -> None:
    """Fail unless the first slot is free, by putting an adapter there."""
    assert folder is not None
    sitting.worker.learning.bank.load(0, Path(folder))


def test_every_member_is_measured_once_and_the_bank_is_empty_again(searched: Sitting) -> None:
    members = {(p.trial, p.epoch): p for p in found(searched).front if p.adapter is not None}
    assert members, "or there is nothing to measure"
    costs = measure(searched)
    assert {(cost.trial, cost.epoch) for cost in costs} == set(members)
    for cost in costs:
        point = members[cost.trial, cost.epoch]
        recipe, folder = point.recipe, point.adapter
        assert cost.parameters == recipe.rank * WIDTHS[recipe.target_modules]
        assert folder is not None
        assert cost.file_bytes == (Path(folder) / "adapter_model.safetensors").stat().st_size
        assert cost.file_bytes > 4 * cost.parameters
        assert cost.tokens_per_second > 0
        assert cost.base_tokens_per_second > 0
    assert measure(searched) == costs
    require_empty(searched, next(iter(members.values())).adapter)


def test_whoever_is_told_to_stop_stops_and_leaves_the_bank_empty(searched: Sitting) -> None:
    with pytest.raises(AskingStopped):
        measure(searched, stop=True)
    assert read_adapter_costs(searched.storage, STUDY) == ()
    require_empty(searched, unmeasured(found(searched))[0].adapter)


def test_an_adapter_that_is_gone_is_passed_over(searched: Sitting, tmp_path: Path) -> None:
    findings = found(searched)
    gone = tuple(replace(point, adapter=str(tmp_path / "gone")) for point in findings.front)
    nothing = replace(
        findings,
        front=gone,
        recommended=None,
        front_with_rehearsal=(),
        front_without_rehearsal=(),
    )
    assert not unmeasured(nothing)


def test_a_size_is_that_of_the_tensors(searched: Sitting) -> None:
    folder = unmeasured(found(searched))[0].adapter
    assert folder is not None
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
        expected = sum(tensors.get_tensor(name).numel() for name in names)
    assert adapter_size(Path(folder)).parameters == expected
