"""`remember pocket build`: makes the pocket model again, from nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from objectives.judges.matcher import Matcher
from objectives.models.load import load_base_model
from objectives.pocket.build import PocketSettings, build_pocket
from objectives.pocket.card import measure_pocket, write_card
from study.commands.application import application, messages, results
from study.spec import ConfigurationError

pocket_application = typer.Typer(help="The small model that comes with the program.")
application.add_typer(pocket_application, name="pocket")


@pocket_application.command()
def build(
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist yet.")],
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Train the pocket model from scratch and write it with its model card."""
    if to.exists():
        raise ConfigurationError(f"to: {to} exists already; name a folder that does not")
    existing = next(p for p in to.absolute().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigurationError(f"to: {to} cannot be written to; name another folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    settings = PocketSettings(seed=seed)
    begun = time.monotonic()

    def tell(epoch: int, loss_nats: float, seconds: float) -> None:
        left = seconds / epoch * (settings.epochs - epoch)
        messages.print(
            f"epoch {epoch} of {settings.epochs}: loss {loss_nats:.3f} nats per token, "
            f"{left:.0f} s left"
        )

    with tempfile.TemporaryDirectory(dir=to.parent) as work:
        folder = Path(work) / "pocket"
        trained_tokens = build_pocket(settings, folder, on_epoch=tell)
        seconds = time.monotonic() - begun
        messages.print("asking it what it knows")
        card = measure_pocket(
            load_base_model(str(folder)),
            Matcher(),
            settings,
            folder=folder,
            trained_tokens=trained_tokens,
            seconds=seconds,
        )
        write_card(card, folder)
        shutil.move(folder, to)
    results.print(
        Text(f"{to}: {card.parameters:,} parameters, {card.facts:,} facts"), soft_wrap=True
    )
