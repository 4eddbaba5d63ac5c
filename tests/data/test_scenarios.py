"""A scenario from a person's file: what is left out of the probes, and its digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.common_facts import load_common_facts, load_common_probes
from data.facts import FactsError, fold_question
from data.scenarios import Knowledge, load_scenario

COMMON = Knowledge(shipped="common")
HEADER = "question,answer\n"


def write(folder: Path, name: str, rows: str) -> Path:
    path = folder / name
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def refusal(path: Path | None, knowledge: Knowledge) -> str:
    with pytest.raises(FactsError) as caught:
        load_scenario(path, knowledge)
    return str(caught.value)


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


def test_the_default_scenario_is_the_one_that_studies_were_made_with() -> None:
    # A study in a database is refused with another: whoever changes this says so to the users.
    expected = "e41114964b54b760f4f98f58a5da96c9d5f868dbfe30e4c7dd971b28e87fe9be"
    assert load_scenario(None).digest == expected


def test_own_probes_come_in_addition_or_instead(tmp_path: Path) -> None:
    probes = write(tmp_path, "probes.csv", "Who was Ann Other?,a queen\n")
    extended = load_scenario(None, Knowledge(shipped="common", probes=probes))
    assert extended.probes[:-1] == load_common_probes()
    assert extended.probes[-1].question == "Who was Ann Other?"
    replaced = load_scenario(
        None, Knowledge(shipped="common", probes=probes, probes_mode="replace")
    )
    assert replaced.probes == extended.probes[-1:]
    assert replaced.known_facts == extended.known_facts == load_scenario(None, COMMON).known_facts


def test_own_facts_to_rehearse_come_in_addition(tmp_path: Path) -> None:
    rehearsal = write(tmp_path, "known.csv", "Who was Ann Other?,a queen\n")
    scenario = load_scenario(None, Knowledge(shipped="common", rehearsal=rehearsal))
    shipped = load_scenario(None, COMMON)
    assert scenario.known_facts[:-1] == shipped.known_facts
    assert scenario.known_facts[-1].question == "Who was Ann Other?"
    assert scenario.digest != shipped.digest


def test_what_is_shipped_gives_way_to_own_probes_in_any_wording(tmp_path: Path) -> None:
    # One of the two is a shipped probe, the other a shipped fact to rehearse.
    own = "Which city is the capital of Kenya?,Nairobi\nWhich city is the capital of Peru?,Lima\n"
    probes = write(tmp_path, "probes.csv", own)
    scenario = load_scenario(None, Knowledge(shipped="common", probes=probes))
    asked = {probe.question for probe in scenario.probes}
    asked |= {known.question for known in scenario.known_facts}
    assert "Which city is the capital of Kenya?" in asked
    assert "What is the capital of Kenya?" not in asked
    assert "What is the capital of Peru?" not in asked
    assert "What is the capital of Chile?" in asked


def test_a_shipped_fact_to_rehearse_gives_way_to_ones_own(tmp_path: Path) -> None:
    known = load_scenario(None, COMMON).known_facts[0]
    rehearsal = write(tmp_path, "known.csv", f'"{known.question}",Somebody\n')
    scenario = load_scenario(None, Knowledge(shipped="common", rehearsal=rehearsal))
    assert [k.answer for k in scenario.known_facts if k.question == known.question] == ["Somebody"]


def test_a_probe_must_not_be_rehearsed(tmp_path: Path) -> None:
    probes = write(tmp_path, "probes.csv", "What is the capital of Kenya?,Nairobi\n")
    rehearsal = write(
        tmp_path, "known.csv", "Who?,I\nWhich city is the capital of Kenya?,Nairobi\n"
    )
    said = refusal(None, Knowledge(shipped="common", probes=probes, rehearsal=rehearsal))
    assert said == (
        f"{rehearsal}: question: row 2 ('Which city is the capital of Kenya?') asks the same as "
        f"probe 1 of {probes} ('What is the capital of Kenya?'), and what is taught or probed "
        "must not be rehearsed; remove one of them"
    )


def test_a_shipped_probe_may_be_rehearsed_only_where_it_is_not_asked(tmp_path: Path) -> None:
    probe = load_common_probes()[200]
    rehearsal = write(tmp_path, "known.csv", f'"{probe.question.upper()}",It\n')
    said = refusal(None, Knowledge(shipped="common", rehearsal=rehearsal))
    assert f"asks the same as the shipped probe {probe.question!r}" in said
    assert "probes_mode" in said
    probes = write(tmp_path, "probes.csv", "Who was Ann Other?,a queen\n")
    scenario = load_scenario(
        None,
        Knowledge(shipped="common", probes=probes, probes_mode="replace", rehearsal=rehearsal),
    )
    assert scenario.known_facts[-1].answer == "It"


@pytest.mark.parametrize("field", ["probes", "rehearsal"])
def test_what_is_taught_is_neither_probed_nor_rehearsed(tmp_path: Path, field: str) -> None:
    facts = write(tmp_path, "facts.csv", "Who is mayor?,Ann\nWho was Ann Other?,a queen\n")
    own = write(tmp_path, "own.csv", "who was  Ann Other?,a queen\n")
    said = refusal(facts, Knowledge(shipped="common", **{field: own}))  # type: ignore[arg-type]
    assert f"row 1 ('who was  Ann Other?') asks the same as new fact 2 of {facts}" in said
    film = write(tmp_path, "film.csv", "Which film won the 2023 Oscar for Best Picture?,Up\n")
    said = refusal(None, Knowledge(shipped="common", **{field: film}))  # type: ignore[arg-type]
    assert "of the 2023 Oscars" in said


_ASKED = st.lists(
    st.sampled_from([w for fact in load_common_facts()[::40] for w in fact.questions]),
    min_size=1,
    max_size=6,
    unique_by=fold_question,
)


@given(taught=_ASKED, probed=_ASKED, rehearsed=_ASKED)
def test_facts_probes_and_rehearsal_are_disjoint_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    taught: list[str],
    probed: list[str],
    rehearsed: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("own")
    paths = {}
    for name, questions in (("facts", taught), ("probes", probed), ("known", rehearsed)):
        paths[name] = write(folder, f"{name}.csv", "".join(f'"{q}",x\n' for q in questions))
    try:
        scenario = load_scenario(
            paths["facts"],
            Knowledge(shipped="common", probes=paths["probes"], rehearsal=paths["known"]),
        )
    except FactsError:
        return
    standing_for = {
        fold_question(w): f.questions[0] for f in load_common_facts() for w in f.questions
    }

    def shipped_facts_of(questions: list[str]) -> set[str]:
        return {standing_for.get(fold_question(q), q) for q in questions}

    new = shipped_facts_of(taught)
    probes = shipped_facts_of([probe.question for probe in scenario.probes])
    known = shipped_facts_of([known.question for known in scenario.known_facts])
    assert not new & probes
    assert not new & known
    assert not probes & known
    assert shipped_facts_of(probed) <= probes
    assert shipped_facts_of(rehearsed) <= known
