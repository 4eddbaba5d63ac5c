"""`remember measure --quantizations`: does what an adapter learned survive a quantised base?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from rich.text import Text

from analysis.quantization_table import QuantizationRow, show_quantizations
from data.intervals import mcnemar_p_value
from data.measurements import Verdict
from data.prompts import Prompt
from data.recipes import GREEDY
from data.scoring import knowledge_loss, known_facts, ring_changes, score_recall
from objectives.answers.generate import generate
from objectives.answers.llama_cpp import answer_with_llama_cpp
from objectives.answers.request import BASE, Continuation, Request
from objectives.bank.gguf_adapter import write_gguf_adapter
from objectives.judges.base import Judge, judge_answers
from objectives.learn import Learning
from objectives.models.gguf.ggml_types import GGML_TYPES, GgmlType, require_gguf, require_xllamacpp
from objectives.models.gguf.ggml_weights import mean_bits_per_weight, quantised_weights
from objectives.models.gguf.writing import write_gguf_model
from objectives.models.machine.footprint import storing_of
from study.commands.application import messages, results
from study.spec import ConfigurationError

Runtime = Literal["transformers", "llama.cpp"]

# What "all" means: the types that people share files of and that need no rows of 256 weights.
_USUAL: tuple[GgmlType, ...] = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

_SLOT = 0

# Answers prompts on a base of one type: the adapter's, or without it the base's own.
Ask = Callable[[Sequence[Prompt], GgmlType, bool], Sequence[Continuation]]


def name_types(names: str, runtime: Runtime) -> tuple[GgmlType, ...]:
    """Return the types named with commas, each once, or the usual ones for "all".

    Raises:
        ConfigurationError: If there is no such type.
        ModelError: If a package that this takes is not installed.
    """
    require_gguf()
    if runtime == "llama.cpp":
        require_xllamacpp()
    if names.strip() == "all":
        return _USUAL
    there: dict[str, GgmlType] = {each: each for each in GGML_TYPES}
    asked = dict.fromkeys(name.strip().lower() for name in names.split(","))
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise ConfigurationError(
            f"quantizations: {unknown[0]!r} is not allowed; the types are "
            f"{', '.join(GGML_TYPES)}, or “all” for {', '.join(_USUAL)}"
        )
    return tuple(there[name] for name in asked)


def measure_quantizations(
    learning: Learning,
    adapter: Path,
    types: Sequence[GgmlType],
    judge: Judge,
    *,
    runtime: Runtime,
    as_json: bool,
) -> None:
    """Ask the adapter in slot 0 on its base as loaded and in every type, and print a row of each.

    Args:
        learning: Asked its base already; has the adapter in slot 0.
        adapter: The adapter's folder.
        types: What to quantise the base to.
        judge: Decides about the answers.
        runtime: What computes the answers of quantised bases.
        as_json: Whether to print one JSON object instead of a table.

    Raises:
        ModelError: If a type does not fit the model, or llama.cpp cannot run it.
    """
    base = learning.bank.base
    with TemporaryDirectory(prefix="remember-gguf-") as folder:
        ask = _ask_llama_cpp(learning, adapter, Path(folder))
        if runtime == "transformers":
            ask = _ask_transformers(learning)
        rows = quantization_rows(learning, types, judge, ask)
    if as_json:
        described = {
            "model": base.name,
            "adapter": str(adapter),
            "runtime": runtime,
            "quantizations": [asdict(row) for row in rows],
        }
        results.print_json(json.dumps(described))
    else:
        results.print(show_quantizations(rows, runtime=runtime))


def quantization_rows(
    learning: Learning, types: Sequence[GgmlType], judge: Judge, ask: Ask
) -> tuple[QuantizationRow, ...]:
    """Return what the adapter in slot 0 recalls and loses: first as loaded, then in every type."""
    base = learning.bank.base
    asked = [verdict.answer.prompt for verdict in learning.base.verdicts]
    prompts = [prompt for prompt in asked if prompt.phrasing in ("validation", "probe")]
    probes = [prompt for prompt in asked if prompt.phrasing == "probe"]

    def judged(continuations: Sequence[Continuation]) -> tuple[Verdict, ...]:
        return judge_answers(judge, [each.answer for each in continuations])

    def row(
        weights: str, bits: float, adapted: Sequence[Verdict], untouched: Sequence[Verdict]
    ) -> QuantizationRow:
        known_here = known_facts(adapted)
        lost, gained = len(known - known_here), len(known_here - known)
        return QuantizationRow(
            weights=weights,
            bits_per_weight=bits,
            recall=score_recall(adapted),
            knowledge_loss=knowledge_loss(ring_changes(learning.base.verdicts, adapted)),
            base_loss=knowledge_loss(ring_changes(learning.base.verdicts, untouched)),
            facts_lost=lost,
            facts_gained=gained,
            p_value=mcnemar_p_value(lost, gained),
        )

    with messages.status(Text(f"asking {base.name} as loaded")):
        as_loaded = judged(_generate(learning, prompts, adapted=True))
    known = known_facts(as_loaded)
    bits = mean_bits_per_weight(base.model, None)
    held = storing_of(base.model).words
    rows = [row(f"{held}, as loaded", bits, as_loaded, learning.base.verdicts)]
    for ggml_type in types:
        with messages.status(Text(f"asking {base.name} as {ggml_type}")):
            adapted = judged(ask(prompts, ggml_type, True))
            untouched = judged(ask(probes, ggml_type, False))
        bits = mean_bits_per_weight(base.model, ggml_type)
        rows.append(row(ggml_type, bits, adapted, untouched))
    return tuple(rows)


def _generate(
    learning: Learning, prompts: Sequence[Prompt], *, adapted: bool
) -> Sequence[Continuation]:
    slot = _SLOT if adapted else BASE
    requests = [Request(prompt=each, slot=slot, sampling=GREEDY, seed=0) for each in prompts]
    return generate(learning.bank.base, requests, router=learning.bank)


def _ask_transformers(learning: Learning) -> Ask:
    def ask(
        prompts: Sequence[Prompt], ggml_type: GgmlType, adapted: bool
    ) -> Sequence[Continuation]:
        with quantised_weights(learning.bank.base.model, ggml_type):
            return _generate(learning, prompts, adapted=adapted)

    return ask


def _ask_llama_cpp(learning: Learning, adapter: Path, folder: Path) -> Ask:
    """Return what asks llama.cpp; files it needs are written to `folder` as they are needed."""
    base = learning.bank.base

    def ask(
        prompts: Sequence[Prompt], ggml_type: GgmlType, adapted: bool
    ) -> Sequence[Continuation]:
        model, own = folder / f"model-{ggml_type}.gguf", folder / "adapter.gguf"
        if not own.exists():
            write_gguf_adapter(adapter, base.model.config, own)
        if not model.exists():
            for other in folder.glob("model-*"):
                other.unlink()  # each is as large as the model
            write_gguf_model(base.model, base.tokenizer, model, ggml_type=ggml_type)
        return answer_with_llama_cpp(base, model, prompts, adapter=own if adapted else None)

    return ask
