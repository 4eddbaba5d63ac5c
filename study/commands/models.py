"""`remember models`: lists the models that have short names, and what their weights take."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from data.model_profiles import ModelProfile, load_profiles
from study.commands.application import JsonOption, application, results


@application.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that a study can name in short, with the memory that their weights take."""
    profiles = load_profiles().values()
    if as_json:
        listed = [asdict(each) | {"weight_bytes": each.weight_bytes()} for each in profiles]
        results.print_json(json.dumps({"models": listed}))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("name", "hub id", "parameters", "weights", "context", "licence", ""):
        table.add_column(
            heading,
            justify="right" if heading in ("parameters", "weights", "context") else "left",
            overflow="fold",
            no_wrap=heading in ("name", "parameters"),  # a name is there to be copied
        )
    for profile in sorted(profiles, key=ModelProfile.weight_bytes):
        table.add_row(*map(Text, _row(profile)))
    results.print(table)
    results.print(
        Text(
            "Weights at the precision they are stored in, 16 bits or 4; training and asking take "
            "more: `remember run --dry-run --model NAME` says how much. Any other causal language "
            "model goes by its hub id, folder or .gguf file.",
            style="dim",
        ),
        soft_wrap=True,
    )


def _row(profile: ModelProfile) -> tuple[str, ...]:
    remarks = (["gated"] if profile.gated else []) + ([profile.note] if profile.note else [])
    return (
        profile.name,
        profile.hub_id,
        _say_parameters(profile.parameters),
        f"{profile.weight_bytes() / 1e9:.1f} GB, {profile.bits} bit",
        str(profile.context_tokens),
        profile.licence,
        "; ".join(remarks),
    )


def _say_parameters(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 0.95e9 else f"{count / 1e6:.0f} M"
