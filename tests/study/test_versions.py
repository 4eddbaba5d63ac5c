"""A report names the versions that its study really ran on."""

from __future__ import annotations

from storage.records import SittingRecord
from study.versions import package_versions, versions_used


def sitting(**versions: str) -> SittingRecord:
    return SittingRecord(
        owner="ada:1:", device="cpu", began_at_seconds=0, seen_at_seconds=1, versions=versions
    )


def test_every_version_that_a_worker_ran_on_is_named_once() -> None:
    sittings = [
        sitting(torch="2.13.0", peft="0.19"),
        sitting(torch="2.12.1", peft="0.19"),
        sitting(torch="2.13.0"),
    ]
    assert versions_used(sittings) == {"torch": "2.13.0, 2.12.1", "peft": "0.19"}


def test_those_of_a_study_that_recorded_none_are_those_installed() -> None:
    assert versions_used([sitting()]) == versions_used([]) == package_versions()
