"""Finds the linear modules of a base model that adapters may be attached to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from data.recipes import TargetModules
from objectives.models.base import ModelError

Part = Literal["attention", "mlp"]

# The last part of a module's name, for models built like Llama (Mistral, Qwen, Gemma ...).
PART_OF_SUFFIX: dict[str, Part] = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
_QUERY_AND_VALUE = ("q_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModule:
    """A linear module of the base by its full name, for example `model.layers.0.mlp.up_proj`."""

    name: str
    module: nn.Module
    part: Part
    in_features: int
    out_features: int

    @property
    def suffix(self) -> str:
        """Return the last part of the name, which is what PEFT calls a target module."""
        return self.name.rpartition(".")[2]

    def is_target_of(self, targets: TargetModules) -> bool:
        """Return whether a recipe with these target modules trains an adapter here."""
        if targets == "query+value":
            return self.suffix in _QUERY_AND_VALUE
        return targets in ("all", self.part)


def find_linear_modules(model: nn.Module) -> tuple[LinearModule, ...]:
    """Return every module that adapters may be attached to: attention first, then mlp.

    In that order those of any `TargetModules` are neighbours: query and value come first of all.
    What counts is the name and that the module says how many features go in and out, so that
    quantised linear modules are found like plain ones.

    Raises:
        ModelError: If attention or mlp modules are missing, with the names that were found.
    """
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
    }
    found = [
        LinearModule(
            name=name,
            module=module,
            part=PART_OF_SUFFIX[suffix],
            in_features=int(module.in_features),
            out_features=int(module.out_features),
        )
        for name, module in linear.items()
        if (suffix := name.rpartition(".")[2]) in PART_OF_SUFFIX
    ]
    missing = {"attention", "mlp"} - {module.part for module in found}
    if missing:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        raise ModelError(
            f"target modules: the model has no {' and no '.join(sorted(missing))} modules that "
            f"adapters can be attached to (known names: {', '.join(PART_OF_SUFFIX)}); its linear "
            f"modules are: {names}; use a model built like Llama"
        )
    return tuple(sorted(found, key=lambda m: (m.part == "mlp", not m.is_target_of("query+value"))))
