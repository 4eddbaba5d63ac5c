"""Writes the model card of an exported adapter: its figures, its settings, how to load it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import ModelCardData

from analysis.confirmation import recall_on
from analysis.findings import Findings
from analysis.judging import say_judge
from analysis.points import Point
from analysis.results_markdown import escape_markdown, markdown_table
from analysis.wording import (
    MISSING,
    list_settings,
    say_counted,
    say_estimate,
    say_left_out,
    say_sampling,
    show_text,
)
from data.measurements import NOT_MEASURED, Estimate
from data.prompts import put_question

ExportFormat = Literal["peft", "merged", "gguf"]

_FIGURES_NOTE = (
    "In brackets: 95 % intervals. Recall is the share of questions about the facts that are "
    "answered right, in every prompt style; knowledge loss is the share of what the base answered "
    "right that is wrong now, a mean over the rings below. The search's figures flatter a little, "
    "for it chose the best of many."
)

_LIBRARIES: dict[ExportFormat, str] = {"peft": "peft", "merged": "transformers", "gguf": "gguf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was exported, and from which base.

    `base` is what the base is called, `hub_id` its repository on the hub if it has one, `revision`
    its commit there and `digest` what identifies its weights; `licence` is named where it is
    known. `files` is the file's or folder's own name. `max_lora_rank` is what vLLM must allow to
    serve the adapter, None where it cannot. `gguf_file` is the name of the `.gguf` file that the
    base was read from, if it was. `precision` is the type of a merged model's weights and
    `was_quantised` whether its base had fewer bits. `base_is_gptq` says that the base is a 4-bit
    GPTQ checkpoint.
    """

    format: ExportFormat
    files: str
    base: str
    hub_id: str | None = None
    revision: str | None = None
    digest: str | None = None
    licence: str | None = None
    max_lora_rank: int | None = None
    gguf_file: str | None = None
    precision: str | None = None
    was_quantised: bool = False
    base_is_gptq: bool = False


def render_card(
    findings: Findings, point: Point, export: Export, *, versions: Mapping[str, str]
) -> str:
    """Return the card as the hub expects it: YAML between dashes, then Markdown.

    Every text from outside is escaped, and no fact is told: only how many, and their digest.
    """
    record = findings.record
    sections = [
        f"---\n{_front_matter(export)}\n---",
        f"# {escape_markdown(record.name)}, trial {point.trial}",
        _introduction(findings, point, export),
        "## What it recalls, and what it forgot",
        _figures(findings, point),
        _rings(point),
        "## How to load it",
        _loading(export),
        "## How it was made",
        markdown_table(["setting", "value"], map(list, list_settings(point.recipe))),
        _provenance(findings, point, export, versions),
        "## Licence",
        _licence(export),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(export: Export) -> str:
    relation = {"peft": "adapter", "merged": "finetune", "gguf": "adapter"}[export.format]
    # What is None is left out. The hub takes only one of its own repositories for a base.
    data = ModelCardData(
        base_model=None if export.hub_id is None else show_text(export.hub_id),
        base_model_relation=None if export.hub_id is None else relation,
        library_name=_LIBRARIES[export.format],
        pipeline_tag="text-generation",
        tags=["lora", "remember-me", *(["gguf"] if export.format == "gguf" else [])],
    )
    return data.to_yaml(line_break="\n").strip()


def _introduction(findings: Findings, point: Point, export: Export) -> str:
    new = len(findings.subject.new)
    what = {
        "peft": "A LoRA adapter of",
        "merged": "A LoRA adapter merged into",
        "gguf": "A LoRA adapter (GGUF) of",
    }[export.format]
    return (
        f"{what} {escape_markdown(export.base)} that was taught {say_counted(new, 'fact')} in "
        f"{say_counted(point.epoch, 'epoch')}. {_standing(findings, point)}"
    )


def _standing(findings: Findings, point: Point) -> str:
    if point == findings.recommended:
        return "It is the member of its study's front that the study recommends."
    if point in findings.front:
        return "It is on its study's front, which recommends another."
    return "It is not on its study's front."


def _figures(findings: Findings, point: Point) -> str:
    base, confirmation = findings.base, findings.confirmation_of(point)
    apart = findings.asked_apart_of(point)
    was_asked_apart = apart is not point.measurement
    seeds = say_counted(confirmation.seeds, "fresh seed") if confirmation.seeds else "fresh seeds"
    rows: list[tuple[str, Estimate, Estimate]] = [
        ("in the search", point.measurement.recall, point.measurement.knowledge_loss),
        (
            "asked afterwards, in wordings kept aside",
            recall_on(apart, "test"),
            apart.knowledge_loss if was_asked_apart else NOT_MEASURED,
        ),
        (
            f"the recipe trained again with {seeds}",
            confirmation.recall,
            confirmation.knowledge_loss,
        ),
    ]
    table = markdown_table(
        ["measured", "recall", "knowledge loss"],
        [
            ["the base, untouched", say_estimate(base.recall) if base else MISSING, "0 %"],
            *([name, say_estimate(recall), say_estimate(loss)] for name, recall, loss in rows),
        ],
    )
    return f"{table}\n\n{_FIGURES_NOTE}\n\n{escape_markdown(f'Judge: {say_judge(findings)}')}"


def _rings(point: Point) -> str:
    return markdown_table(
        ["what the base knew", "asked", "known before", "lost", "gained", "loss"],
        [
            [
                escape_markdown(ring.ring),
                *map(str, (ring.asked, ring.known, ring.lost, ring.gained)),
                f"{say_estimate(ring.loss)}{say_left_out(ring)}",
            ]
            for ring in point.measurement.rings
        ],
    )


def _loading(export: Export) -> str:
    match export.format:
        case "peft":
            parts = [
                _load_with_peft(export),
                *_say_place(export),
                *_say_gptq(export),
                _serve_adapter(export),
            ]
        case "merged":
            parts = [_load_merged(export)]
        case "gguf":
            parts = [_run_in_llama_cpp(export)]
    prompt = put_question("<your question>", "qna").replace("\n", "\\n")
    return "\n\n".join([*parts, f"One of the ways in which it was asked: `{prompt}`"])


def _load_with_peft(export: Export) -> str:
    # A file without a repository lies beside the adapter, as the names of folders do.
    is_file = export.gguf_file is not None and export.base == export.gguf_file
    arguments = [_python_text("." if is_file else _base_of(export))]
    if export.gguf_file is not None:
        arguments.append(f"gguf_file={_python_text(export.gguf_file)}")
    if export.hub_id and export.revision:
        arguments.append(f"revision={_python_text(export.revision)}")
    return _fenced(
        "python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({', '.join(arguments)})",
        f"tokenizer = AutoTokenizer.from_pretrained({', '.join(arguments)})",
        f"model = PeftModel.from_pretrained(base, {_python_text(export.files)})",
    )


def _say_place(export: Export) -> list[str]:
    """Return where a base is that is not on the hub, whose name alone nothing can load."""
    if export.hub_id is not None:
        return []
    return [
        "The base is not on the hub: put the path of your copy in its place. The model that comes "
        "with remember-me is the folder `data/pocket` of its source."
    ]


def _say_gptq(export: Export) -> list[str]:
    """Return what it takes to load a base in 4 bits."""
    if not export.base_is_gptq:
        return []
    return [
        "The base is a 4-bit GPTQ checkpoint. transformers reads today's layout with the packages "
        "gptqmodel and optimum; remember-me (`remember ask`, `remember measure --adapter`) also "
        "reads that of 2023, and needs neither."
    ]


def _serve_adapter(export: Export) -> str:
    if export.max_lora_rank is None:
        return "vLLM cannot serve it as an adapter; a merged model it can."
    served = f"taught={export.files}"
    command = _fenced(
        "sh",
        f"vllm serve {_shell_word(_base_of(export))} --enable-lora "
        f"--max-lora-rank {export.max_lora_rank} --lora-modules {_shell_word(served)}",
    )
    return (
        "In vLLM it is the model `taught`. The folder keeps the rules that vLLM states for "
        f"adapters; it was not tried there.\n\n{command}"
    )


def _load_merged(export: Export) -> str:
    files = _python_text(export.files)
    python = _fenced(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained({files}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained({files})",
    )
    said = (
        f"It is a whole model with weights in {export.precision}. vLLM serves it "
        f"(`vllm serve`), and llama.cpp's convert_hf_to_gguf.py converts it."
    )
    if export.was_quantised:
        said += (
            " The base was quantised: its weights were dequantised and the adapter added to them, "
            f"so that they take {export.precision} again. The figures above were measured on the "
            "quantised base."
        )
    return f"{python}\n\n{said}"


def _run_in_llama_cpp(export: Export) -> str:
    base = "BASE.gguf" if export.gguf_file is None else _shell_word(export.gguf_file)
    command = _fenced("sh", f"llama-cli -m {base} --lora {_shell_word(export.files)}")
    if export.gguf_file is not None:
        return command
    return (
        f"{command}\n\nBASE.gguf is the base as a GGUF file, of any type; llama.cpp's "
        "convert_hf_to_gguf.py makes one."
    )


def _provenance(
    findings: Findings, point: Point, export: Export, versions: Mapping[str, str]
) -> str:
    record = findings.record
    trial = next(trial for trial in record.trials if trial.number == point.trial)
    lines = [
        f"base model: {export.base}",
        f"its revision: {export.revision or 'none recorded'}",
        f"its digest: {export.digest or 'not recorded'}",
        f"facts: {len(findings.subject.new)}, digest {record.fingerprint.get('facts', MISSING)}",
        f"sampling that it was measured under: {say_sampling(point.sampling)}",
        f"study seed {record.seed}, seed of the trial {trial.seed}",
        f"study begun {record.created_at:%Y-%m-%d %H:%M} UTC, "
        f"{say_counted(record.ended_trials, 'trial')}",
        *(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _licence(export: Export) -> str:
    named = (
        f"It is: {escape_markdown(export.licence)}."
        if export.licence
        else "Which that is, its own page says."
    )
    return (
        "This is derived from the base model, so that the base's licence applies to it, and its "
        f"rules on names and notices. {named}"
    )


def _base_of(export: Export) -> str:
    return export.hub_id or export.base


def _fenced(language: str, *lines: str) -> str:
    # All lines are ours or quoted on one line, so that none of them can end the fence.
    return "\n".join((f"```{language}", *lines, "```"))


def _python_text(text: str) -> str:
    return json.dumps(show_text(text), ensure_ascii=False)


def _shell_word(text: str) -> str:
    return shlex.quote(show_text(text))
