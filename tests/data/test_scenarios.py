"""A scenario from a person's file: its name, and what is left out of the probes."""

from __future__ import annotations

from pathlib import Path

from data.scenarios import load_scenario


def test_a_probe_that_asks_a_new_fact_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "my-facts.csv"
    probe = load_scenario(None).probes[0]
    path.write_text(f'question,answer\n"{probe.question.upper()}",Somebody\n', encoding="utf-8")
    scenario = load_scenario(path)
    assert scenario.name == "my-facts"
    assert len(scenario.probes) == len(load_scenario(None).probes) - 1
    assert probe not in scenario.probes


def test_the_digest_changes_with_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("question,answer\nWho?,Ada\n", encoding="utf-8")
    first = load_scenario(path).digest
    path.write_text("question,answer\nWho?,Bob\n", encoding="utf-8")
    assert load_scenario(path).digest != first
    assert load_scenario(None).digest == load_scenario(None).digest
