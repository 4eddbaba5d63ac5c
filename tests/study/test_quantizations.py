"""An adapter is measured on its base in GGML types, beside what quantising costs by itself."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.measurements import Answer
from data.prompts import Prompt
from data.recipes import Recipe
from objectives.answers.request import Continuation
from objectives.bank import export_adapter
from objectives.judges.matcher import Matcher
from objectives.learn import Learning
from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import GgmlType
from study.commands import quantizations
from study.commands.application import run_application
from study.commands.quantizations import (
    measure_quantizations,
    name_types,
    quantization_rows,
)
from study.spec import ConfigurationError
from tests.study.tiny_study import FACTS

RECIPE = Recipe(
    epochs=12, rank=4, alpha=8, cutoff=96, warmup_steps=0, learning_rate=1e-2, formats=("qna",)
)


@pytest.fixture(scope="module")
def learning(learnings: dict[int, Learning]) -> Iterator[Learning]:
    """Return an experiment whose slot 0 has learned the four invented facts."""
    learning = learnings[1]
    learning.begin(0, RECIPE, seed=0)
    while not learning.bank.progress(0).finished:
        learning.bank.step()
    yield learning
    learning.bank.release(0)


class Answering:
    """Answers in the place of a model, and writes down what it was asked."""

    def __init__(self, *, facts: Sequence[str], probes: bool) -> None:
        """Take the subjects that are answered right, and whether probes are."""
        self._facts = frozenset(facts)
        self._probes = probes
        self.asked: list[tuple[GgmlType, bool, int]] = []

    def __call__(
        self, prompts: Sequence[Prompt], ggml_type: GgmlType, adapted: bool
    ) -> list[Continuation]:
        self.asked.append((ggml_type, adapted, len(prompts)))
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Continuation:
        is_right = self._probes if prompt.phrasing == "probe" else prompt.subject in self._facts
        text = prompt.accepted[0] if is_right else "nobody knows"
        return Continuation(answer=Answer(prompt=prompt, text=text, tokens=3), token_ids=(1, 2, 3))


def test_a_base_that_forgot_everything_is_blamed_for_it_and_not_the_adapter(
    learning: Learning,
) -> None:
    ask = Answering(facts=(), probes=False)
    loaded, quantised = quantization_rows(learning, ("q4_0",), Matcher(), ask)

    assert loaded.weights == "float32, as loaded"
    assert loaded.bits_per_weight == 32
    assert loaded.recall.value is not None
    assert loaded.recall.value > 0.8
    assert (loaded.facts_lost, loaded.facts_gained, loaded.p_value) == (0, 0, 1)
    assert loaded.base_loss == learning.base.measurement.knowledge_loss

    assert quantised.weights == "q4_0"
    assert quantised.bits_per_weight == pytest.approx(4.53, abs=0.01)
    assert quantised.recall.value == 0
    assert quantised.knowledge_loss.value == quantised.base_loss.value == 1
    # Four facts were known and none is: two-sided 2 / 2^4.
    assert (quantised.facts_lost, quantised.facts_gained) == (4, 0)
    assert quantised.p_value == pytest.approx(2 / 16)


def test_the_base_alone_is_asked_only_what_it_knew(learning: Learning) -> None:
    two = [fact.id for fact in learning.facts[:2]]
    ask = Answering(facts=two, probes=True)
    rows = quantization_rows(learning, ("q8_0", "q4_1"), Matcher(), ask)
    questions = [verdict.answer.prompt.phrasing for verdict in learning.base.verdicts]
    probes, validation = questions.count("probe"), questions.count("validation")
    assert ask.asked == [
        ("q8_0", True, validation + probes),
        ("q8_0", False, probes),
        ("q4_1", True, validation + probes),
        ("q4_1", False, probes),
    ]
    assert [
        (row.facts_lost, row.knowledge_loss.value, row.base_loss.value) for row in rows[1:]
    ] == [(2, 0, 0)] * 2
    assert rows[1].recall.value == 0.5


def test_types_are_named_in_the_order_asked_and_once() -> None:
    assert name_types("q4_0, Q8_0,q4_0", "transformers") == ("q4_0", "q8_0")
    assert name_types("all", "transformers") == ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"quantizations: 'q4' is not allowed; the types"):
        name_types("q8_0,q4", "transformers")


@pytest.mark.parametrize(
    ("package", "runtime"), [("gguf", "transformers"), ("xllamacpp", "llama.cpp")]
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, runtime: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"{package}: the package is not installed"):
        name_types("q8_0", runtime)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learning: Learning) -> Iterator[Path]:
    """Let commands run in a folder with a facts file and an adapter that knows the facts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    (tmp_path / "facts.csv").write_text(FACTS, encoding="utf-8")
    export_adapter(learning.bank, 0, tmp_path / "adapter")
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, handler)


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = run_application(["measure", "facts.csv", "--adapter", "adapter", *arguments, "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    described: dict[str, Any] = json.loads(output.out)
    return described


def test_the_command_prints_a_row_of_each_type(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    table = measured(capsys, "--quantizations", "f16,q8_0")
    assert (table["runtime"], table["adapter"]) == ("transformers", "adapter")
    rows = table["quantizations"]
    assert [row["weights"] for row in rows] == ["float32, as loaded", "f16", "q8_0"]
    assert rows[1]["recall"] == rows[0]["recall"]
    assert rows[0]["recall"]["value"] > 0.8
    assert rows[0]["base_loss"]["value"] == 0
    assert rows[2]["bits_per_weight"] == pytest.approx(8.53, abs=0.01)


def test_the_first_row_says_how_a_quantised_base_is_held(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert run_application(["quantise", "pocket", "--to", "four", "--group-size", "64"]) == 0
    capsys.readouterr()
    table = measured(capsys, "--model", "./four", "--any-base", "--quantizations", "q8_0")
    loaded, quantised = table["quantizations"]
    assert loaded["weights"] == "4 bits in groups of 64, the rest float32, as loaded"
    assert loaded["bits_per_weight"] == pytest.approx(9.67, abs=0.01)  # of embeddings 32
    assert quantised["weights"] == "q8_0"


@pytest.mark.extras
def test_the_command_asks_llama_cpp(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp; pip install -e '.[gguf]'")
    described = measured(capsys, "--quantizations", "f16", "--runtime", "llama.cpp")
    loaded, half = described["quantizations"]
    assert half["recall"] == loaded["recall"]
    assert half["knowledge_loss"] == loaded["knowledge_loss"]


def test_llama_cpp_gets_one_file_of_each_type_and_no_two_at_a_time(
    learning: Learning, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = Answering(facts=(), probes=True)
    written: list[GgmlType] = []
    files: list[list[str]] = []

    def write(_model: object, _tokenizer: object, to: Path, *, ggml_type: GgmlType) -> None:
        written.append(ggml_type)
        to.touch()

    def answer(
        _base: object, model: Path, prompts: Sequence[Prompt], *, adapter: Path | None
    ) -> list[Continuation]:
        files.append(sorted(path.name for path in model.parent.glob("model*")))
        return answering(prompts, "f16", adapter is not None)

    monkeypatch.setattr(quantizations, "write_gguf_adapter", lambda *_: None)
    monkeypatch.setattr(quantizations, "write_gguf_model", write)
    monkeypatch.setattr(quantizations, "answer_with_llama_cpp", answer)
    measure_quantizations(
        learning,
        here / "adapter",
        ("f16", "q8_0"),
        Matcher(),
        runtime="llama.cpp",
        as_json=True,
    )
    assert written == ["f16", "q8_0"]
    assert files == [["model-f16.gguf"]] * 2 + [["model-q8_0.gguf"]] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quantizations", "q8_0"], "they are measured of an adapter"),
        (["--adapter", "adapter", "--quantizations", "q9"], "'q9' is not allowed"),
        (
            ["--adapter", "adapter", "--quantizations", "q4_0", "--presets", "all"],
            "presets, quantizations: name one of them",
        ),
        (["--adapter", "adapter", "--runtime", "llama.cpp"], "goes with --quantizations"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    capsys: pytest.CaptureFixture[str], here: Path, arguments: list[str], said: str
) -> None:
    assert run_application(["measure", "facts.csv", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
