"""`remember quantise`: writes a model in 4 bits, as a GPTQ checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from objectives.models.gptq.writing import save_gptq
from study.commands.application import RevisionOption, application, messages, results
from study.engine import load_engine
from study.spec import ConfigurationError, EngineSpec, load_spec

# The checkpoint holds nothing finer than halves, and a large model in fp32 takes twice as much.
_ENGINE = EngineSpec(device="cpu", dtype="float16")


@application.command()
def quantise(
    model: Annotated[
        str,
        typer.Argument(
            help="“pocket”, a name that `remember models` lists, a model folder, a .gguf file, or "
            "a hub id."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist yet.")],
    group_size: Annotated[
        int, typer.Option(help="Inputs that share a scale; -1 for all of a module.")
    ] = 128,
    layout: Annotated[
        Literal["current", "2023"],
        typer.Option(help="How the folder is laid out: as today, or as in 2023."),
    ] = "current",
    study: Annotated[
        Path | None,
        typer.Option(help="Study file (TOML) that says how the model is read: its [loading]."),
    ] = None,
    revision: RevisionOption = None,
) -> None:
    """Write a model with its weights in 4 bits, each rounded to the nearest, in GPTQ's format."""
    if to.exists():
        raise ConfigurationError(f"to: {to} exists already; name a folder that does not")
    spec = load_spec(study, {"model": model, "loading.revision": revision})
    base = load_engine(spec, _ENGINE)
    messages.print(
        "rounding to nearest, which is coarser than GPTQ: for a large model take a checkpoint "
        "that was quantised with a text"
    )
    try:
        save_gptq(base.model, base.tokenizer, to, group_size=group_size, layout=layout)
    except OSError as error:
        raise ConfigurationError(f"to: {to} cannot be written: {error.strerror}") from error
    size = sum(path.stat().st_size for path in to.iterdir())
    results.print(Text(f"{to} ({size / 1e6:.1f} MB)"), soft_wrap=True)
