"""A scenario from a person's file: what is left out of the probes, and its digest."""

from __future__ import annotations

from pathlib import Path

from data.scenarios import load_scenario


def test_a_probe_that_asks_a_new_fact_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "my-facts.csv"
    probe = load_scenario(None).probes[0]
    path.write_text(f'question,answer\n"{probe.question.upper()}",Somebody\n', encoding="utf-8")
    scenario = load_scenario(path)
    assert len(scenario.probes) == len(load_scenario(None).probes) - 1
    assert probe not in scenario.probes


def test_the_digest_changes_with_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("question,answer\nWho?,Ada\n", encoding="utf-8")
    first = load_scenario(path).digest
    path.write_text("question,answer\nWho?,Bob\n", encoding="utf-8")
    assert load_scenario(path).digest != first
    assert load_scenario(None).digest == load_scenario(None).digest


def test_another_wording_of_a_known_fact_takes_its_probe_too(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "question,answer\nWhich city is the capital of Kenya?,Lagos\n", encoding="utf-8"
    )
    scenario = load_scenario(path)
    asked = {probe.question for probe in scenario.probes}
    asked |= {known.question for known in scenario.known_facts}
    assert "What is the capital of Kenya?" not in asked
    assert "What is the capital of Peru?" in asked


def test_no_rehearsed_sum_is_a_probed_one_turned_round() -> None:
    scenario = load_scenario(None)
    probed = {probe.question for probe in scenario.probes}
    for known in scenario.known_facts:
        words = known.question.rstrip("?").split()
        if "plus" in words:
            a, b = words[2], words[4]
            assert f"What is {b} plus {a}?" not in probed
