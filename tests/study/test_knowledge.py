"""What a study asks and rehearses beside its facts: by model, study file and the user's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common_facts import load_common_known_facts, load_common_probes
from data.scenarios import load_scenario
from data.world_facts import PROBES_PER_RING, load_known_facts, load_probes
from study.commands.application import run_application
from study.spec import ConfigurationError, StudySpec, load_spec
from study.stored import facts_digest, load_study_scenario

FACTS = "question,answer\nWho was Ann Other?,the queen of Tarvia\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_study_keeps_its_scenario() -> None:
    assert facts_digest(load_study_scenario(StudySpec())) == "e41114964b54"
    assert load_study_scenario(StudySpec()) == load_scenario(None)


@pytest.mark.parametrize(
    ("model", "knowledge", "is_pocket"),
    [
        ("pocket", "auto", True),
        ("some/model", "auto", False),
        ("pocket", "common", False),
        ("some/model", "pocket", True),
    ],
)
def test_the_shipped_probes_go_by_the_model_unless_the_study_file_names_them(
    model: str, knowledge: str, is_pocket: bool
) -> None:
    path = write("study.toml", f'model = "{model}"\nknowledge = "{knowledge}"\n')
    scenario = load_study_scenario(load_spec(path, {}))
    assert scenario.probes == (load_probes() if is_pocket else load_common_probes())
    known = load_known_facts() if is_pocket else load_common_known_facts()
    assert scenario.known_facts == known


def test_own_files_are_read_by_their_names_in_the_study_file() -> None:
    write("probes.csv", "question,answer\nWhat is the capital of Norland?,Vessa\n")
    write("known.csv", "question,answer\nWho is mayor of Vessa?,Tom Reed\n")
    path = write(
        "study.toml",
        'probes = "probes.csv"\nprobes_mode = "replace"\nrehearsal_facts = "known.csv"\n',
    )
    scenario = load_study_scenario(load_spec(path, {}))
    assert [probe.answer for probe in scenario.probes] == ["Vessa"]
    assert scenario.known_facts[:-1] == load_known_facts()
    assert scenario.known_facts[-1].answer == "Tom Reed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('probes_mode = "replace"', "probes_mode: replace goes with a file of probes"),
        ('probes_mode = "instead"', "probes_mode: 'instead' is not allowed"),
        ('knowledge = "world"', "knowledge: 'world' is not allowed"),
        ('rehearsal = "known.csv"', "rehearsal: there is no such key; did you mean 'rehearsal_f"),
    ],
)
def test_a_mistake_in_the_study_file_is_explained(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_spec(write("study.toml", text), {})
    assert said in str(caught.value)


@pytest.mark.parametrize("command", ["run", "measure"])
def test_a_probe_that_is_rehearsed_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write("facts.csv", FACTS)
    write("probes.csv", "question,answer\nWhat is the capital of Norland?,Vessa\n")
    write("known.csv", "question,answer\nwhat is the capital of norland?,Vessa\n")
    arguments = ["facts.csv", "--probes", "probes.csv", "--rehearsal", "known.csv"]
    assert run_application([command, *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: known.csv: question: row 1" in said
    assert "asks the same as probe 1 of probes.csv" in said
    assert not Path("runs").exists()


def test_own_probes_are_measured_and_a_ring_with_few_known_ones_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("facts.csv", FACTS)
    write("probes.csv", "question,answer,ring\nWhere does Ann live?,in Vessa,domain\n")
    monkeypatch.setattr("data.scoring.MIN_KNOWN_PER_RING", 30)
    monkeypatch.setattr("analysis.wording.MIN_KNOWN_PER_RING", 30)
    command = ["measure", "facts.csv", "--probes", "probes.csv"]
    assert run_application([*command, "--json"]) == 0
    rings = json.loads(capsys.readouterr().out)["rings"]
    assert {ring["ring"]: ring["asked"] for ring in rings} == PROBES_PER_RING | {"domain": 51}
    assert [ring["ring"] for ring in rings if not ring["in_mean"]] == ["manners"]
    assert run_application(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    left_out = "0 gained; not in the mean, fewer than 30 known"
    assert f"manners 0 of 24 known lost, {left_out}" in shown
    assert shown.count("not in the mean") == 1
