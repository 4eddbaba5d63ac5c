"""What an adapter takes is shown beside the front, and said to be missing where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from analysis.report import render_report
from analysis.resources import (
    RESOURCE_TITLES,
    DeviceUse,
    device_uses,
    resource_rows,
    say_device_uses,
)
from analysis.results_markdown import render_results
from analysis.wording import say_bytes
from data.measurements import AdapterCost
from storage.records import SittingRecord, WorkerState

if TYPE_CHECKING:
    from analysis.findings import Findings
    from tests.analysis.conftest import StudyMaker

COST = AdapterCost(
    trial=1,
    epoch=8,
    parameters=81_920,
    file_bytes=333_000,
    prompts=32,
    tokens_per_second=1_234.5,
    base_tokens_per_second=2_000.0,
)
STATE = WorkerState(
    activity="training",
    trained_tokens=10_000,
    training_seconds=4.0,
    asking_seconds=1.0,
    memory_bytes=1,
    memory_limit_bytes=None,
    load=None,
    peak_memory_bytes=1_500_000_000,
)


def sitting(device: str, state: WorkerState | None, *, slots: int = 4) -> SittingRecord:
    return SittingRecord(
        owner="ada:1:boot",
        device=device,
        began_at_seconds=0.0,
        seen_at_seconds=9.0,
        slots=slots,
        state=state,
    )


@pytest.fixture
def findings(three_trials: StudyMaker) -> Findings:
    return replace(
        three_trials.findings(),
        adapter_costs=(COST,),
        sittings=(sitting("cuda:0 (<b>Card</b>)", STATE),),
    )


def test_a_member_that_was_measured_has_its_figures_and_the_others_say_so(
    findings: Findings,
) -> None:
    rows = resource_rows(findings)
    assert all(len(row) == len(RESOURCE_TITLES) for row in rows)
    # Epoch 8 of trial 0, then 8 and 4 of trial 1; a trial took 2.5 seconds for each of 8 epochs.
    assert rows == (
        ("0", "8", "8,000", "20 s", *["not measured"] * 4),
        ("1", "8", "8,000", "20 s", "81,920", "333 kB", "1,234", "2,000"),
        ("1", "4", "4,000", "20 s", *["not measured"] * 4),
    )


def test_workers_of_one_kind_of_device_count_together() -> None:
    more = replace(STATE, trained_tokens=2_000, training_seconds=2.0, peak_memory_bytes=None)
    sittings = [
        sitting("cuda:0 (H100)", STATE),
        sitting("cpu", None, slots=2),
        sitting("cuda:1 (H100)", more, slots=8),
    ]
    assert device_uses(sittings) == (
        DeviceUse(
            device="cuda (H100)",
            slots=8,
            trained_tokens_per_second=2_000.0,  # 12,000 tokens in 6 seconds
            peak_memory_bytes=1_500_000_000,
        ),
        DeviceUse(device="cpu", slots=2, trained_tokens_per_second=None, peak_memory_bytes=None),
    )


def test_a_worker_is_described_in_a_sentence(findings: Findings) -> None:
    assert say_device_uses(findings) == (
        "On cuda (<b>Card</b>) a worker trains 2,500 tokens a second, with 4 adapters at once 625 "
        "of each. Its peak memory: 1.5 GB.",
    )
    nothing = replace(findings, sittings=(sitting("cpu", None),))
    assert say_device_uses(nothing) == (
        "On cpu a worker's training speed was not measured. Its peak memory: not measured.",
    )


def test_both_pages_show_it(findings: Findings) -> None:
    page = render_results(findings, verdicts_of=lambda _: (), versions={})
    assert "| 1 | 8 | 8,000 | 20 s | 81,920 | 333 kB | 1,234 | 2,000 |" in page
    assert "&lt;b&gt;Card&lt;/b&gt;" in page
    assert "peak memory: 1.5 GB" in page
    report = render_report(findings, verdicts_of=lambda _: (), versions={})
    for said in ("What an adapter takes", "81,920", "333 kB", "&lt;b&gt;Card", "1.5 GB"):
        assert said in report
    assert "<b>Card" not in page + report


def test_an_empty_study_says_nothing_of_it(maker: StudyMaker) -> None:
    findings = maker.findings()
    assert not resource_rows(findings)
    assert not say_device_uses(findings)
    page = render_results(findings, verdicts_of=lambda _: (), versions={})
    report = render_report(findings, verdicts_of=lambda _: (), versions={})
    assert "What an adapter takes" not in page + report


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, "not measured"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (333_000, "333 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (7_256_000_000, "7.3 GB"),
        (9_960_000_000, "10 GB"),
        (24_000_000_000, "24 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_amounts_of_memory_have_two_or_three_digits(count: int | None, said: str) -> None:
    assert say_bytes(count) == said
