"""`remember export`: an adapter of the front as a PEFT folder, a whole model or a GGUF file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from analysis.files import write_whole
from analysis.findings import Findings
from analysis.model_card import Export, ExportFormat, render_card
from analysis.wording import say_counted
from data.model_profiles import find_profile
from objectives.bank.gguf_adapter import write_gguf_adapter
from objectives.bank.loading import read_origin
from objectives.bank.merging import merge_adapter, save_merged
from objectives.bank.vllm_format import max_lora_rank
from objectives.durable_files import filled_folder
from objectives.models.base import BaseModel, ModelError
from objectives.models.configurations import read_configuration
from objectives.models.known_models import look_up
from objectives.models.sources import POCKET, find_local
from storage.reader import read_sittings
from study.commands.application import (
    NameOption,
    OutOption,
    StorageOption,
    application,
    messages,
    results,
)
from study.commands.showing import TrialArgument, find_adapter, opened_study
from study.engine import load_engine
from study.fingerprint import precision_of
from study.spec import ConfigurationError, EngineSpec, StudySpec
from study.stored import find_in
from study.versions import versions_used

CARD_FILE = "README.md"


@application.command()
def export(
    trial: TrialArgument,
    to: Annotated[
        Path,
        typer.Option("--to", help="Folder to write, or file.gguf; it must not exist yet."),
    ],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="“peft”: the adapter as PEFT and vLLM read it; “merged”: the whole model with "
            "the adapter in its weights; “gguf”: the adapter for llama.cpp.",
        ),
    ] = "peft",
    storage: StorageOption = None,
    name: NameOption = None,
    out: OutOption = None,
) -> None:
    """Write the adapter of a trial on the front with a model card that tells its figures."""
    with opened_study(storage, name, out) as (opened, place):
        findings = find_in(opened, place)
        versions = versions_used(read_sittings(opened, place.name))
    point = find_adapter(findings, trial)
    assert point.adapter is not None
    adapter = Path(point.adapter)
    _refuse_existing(to, format)
    if not adapter.is_dir():
        raise ConfigurationError(
            f"trial: the adapter's folder {adapter} is gone; it was moved or deleted"
        )
    spec = StudySpec.model_validate_json(findings.record.config)
    described = _describe(spec, adapter, to, format)
    write_card = partial(render_card, findings, point, versions=versions)
    try:
        match format:
            case "peft":
                _copy(adapter, to, write_card(described))
            case "merged":
                base = _load_to_merge(spec, findings)
                _merge(base, adapter, described, to, write_card)
            case "gguf":
                _write_gguf(spec, adapter, to, write_card(described))
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"to: {to} cannot be written: {reason}") from error
    results.print(
        Text(f"{to} (trial {trial} after {say_counted(point.epoch, 'epoch')})"), soft_wrap=True
    )


def _refuse_existing(to: Path, format: ExportFormat) -> None:
    if format == "gguf" and to.suffix != ".gguf":
        raise ConfigurationError(f"to: {to} is not allowed; name a file that ends in .gguf")
    what = "file" if format == "gguf" else "folder"
    if to.exists():
        raise ConfigurationError(f"to: {to} exists already; name a {what} that does not")
    if format == "gguf" and _card_beside(to).exists():
        raise ConfigurationError(
            f"to: {_card_beside(to)}, where the model card goes, exists already; name another "
            "file, or move it away"
        )


def _card_beside(file: Path) -> Path:
    """Return where the card of a single file goes: a README.md there may be another's."""
    return file.with_suffix(".md")


def _describe(spec: StudySpec, adapter: Path, to: Path, format: ExportFormat) -> Export:
    origin = read_origin(adapter)
    hub_id = origin.source if origin.revision is not None else None
    try:
        rank = max_lora_rank(adapter)
    except ModelError as error:
        messages.print(Text(str(error)), soft_wrap=True)
        rank = None
    profile = None if hub_id is None else find_profile(hub_id)
    licence = None if profile is None else profile.licence
    # A path on this machine tells others nothing.
    base = hub_id or (spec.model if "/" not in spec.model else Path(spec.model).name)
    weights = Path(spec.loading.weights_file or spec.model)
    return Export(
        format=format,
        files=to.name,
        base=base,
        hub_id=hub_id,
        revision=origin.revision,
        digest=origin.digest,
        licence="MIT" if spec.model == POCKET else licence,
        max_lora_rank=rank,
        gguf_file=weights.name if weights.suffix == ".gguf" else None,
        base_is_gptq=_is_gptq(spec),
    )


def _is_gptq(spec: StudySpec) -> bool:
    """Return whether the base is a GPTQ checkpoint, as far as this machine has it."""
    try:
        if find_local(spec.model, spec.loading.options) is None:
            return False
        known = look_up(spec.model, spec.loading.options, precision="float16")
    except ModelError:
        return False  # it was moved; the adapter is exported all the same
    return known is not None and known.storing.group_size is not None


def _copy(adapter: Path, to: Path, card: str) -> None:
    with filled_folder(to) as folder:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _merge(
    base: BaseModel, adapter: Path, export: Export, to: Path, write_card: Callable[[Export], str]
) -> None:
    was_quantised = merge_adapter(base, adapter)
    merged = replace(export, precision=base.precision, was_quantised=was_quantised)
    with filled_folder(to) as folder:
        save_merged(base, folder)
        (folder / CARD_FILE).write_text(write_card(merged), encoding="utf-8")
    if was_quantised:
        messages.print(
            Text(
                f"{base.name} is quantised: its weights were dequantised, and the whole model is "
                f"in {base.precision} now"
            ),
            soft_wrap=True,
        )


def _load_to_merge(spec: StudySpec, findings: Findings) -> BaseModel:
    """Return a study's base in main memory, in the precision that the study computed in."""
    messages.print(Text(f"loading {spec.model}"))
    engine = EngineSpec(
        device="cpu",
        dtype=precision_of(findings.record.fingerprint),
        threads=spec.engine.threads,
    )
    # The weights of other kernels than ours cannot be written.
    loading = spec.loading.model_copy(update={"gptq": "built-in"})
    return load_engine(spec.model_copy(update={"loading": loading}), engine)


def _write_gguf(spec: StudySpec, adapter: Path, to: Path, card: str) -> None:
    """Write an adapter as a GGUF file, and its card beside it, completely or not at all."""
    config = read_configuration(spec.model, spec.loading.options)
    write_gguf_adapter(adapter, config, to)
    try:
        write_whole(_card_beside(to), card)
    except OSError:
        to.unlink()
        raise
