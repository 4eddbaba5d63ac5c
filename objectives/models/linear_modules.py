"""Finds the linear modules of a base model that adapters may be attached to."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data.recipes import TargetModules
from objectives.models.base import ModelError

Part = Literal["attention", "mlp"]

# The last part of a module's name, where it alone says to which part of a layer it belongs. The
# module around others says it, such as GPT-2's `c_proj` and GPT-NeoX's `dense`.
PART_OF_SUFFIX: dict[str, Part] = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
# As `PART_OF_SUFFIX`, for models that are not built like Llama.
_PART_OF_OTHER_SUFFIX: dict[str, Part] = {
    "qkv_proj": "attention",
    "query_key_value": "attention",
    "c_attn": "attention",
    "Wqkv": "attention",
    "gate_up_proj": "mlp",
    "dense_h_to_4h": "mlp",
    "dense_4h_to_h": "mlp",
    "fc1": "mlp",
    "fc2": "mlp",
    "fc_in": "mlp",
    "fc_out": "mlp",
    "c_fc": "mlp",
}
# What a module around others is called, in models that nobody has told this program of.
_PART_AROUND: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"attn|attention", re.IGNORECASE), "attention"),
    (re.compile(r"mlp|feed_?forward|ffn|shared_experts?", re.IGNORECASE), "mlp"),
)

_QUERY_OR_VALUE = frozenset({"q_proj", "v_proj", "query", "value", "q_b_proj", "kv_b_proj"})
# Query, key and value in one: as in PEFT's defaults they stand for query and value. Where no name
# is known, all of attention does.
_FUSED = frozenset({"qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv"})

# Decoder layers are numbered: `model.layers.0.self_attn.q_proj`, `transformer.h.0.attn.c_attn`.
_IN_LAYER = re.compile(r"(?:^|.*?\.)\d+\.(?P<within>.+)")

# What reads images or sounds, attends to them, or chooses among experts; and experts that are
# modules of their own: of each token's experts only a few compute it.
_LEFT_OUT = re.compile(
    r"(?:^|\.)(?:vision|visual|image|img|video|audio|speech|encoder|cross_?attn|cross_?attention"
    r"|crossattention|encoder_attn|experts\.|router|gate$|shared_expert_gate$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModule:
    """A linear module of the base by its full name, for example `model.layers.0.mlp.up_proj`.

    `is_query_or_value` says that it makes queries or values, alone or with others. `is_transposed`
    says that its weight is (in, out), as GPT-2's are.
    """

    name: str
    module: nn.Module
    part: Part
    in_features: int
    out_features: int
    is_query_or_value: bool
    is_transposed: bool = False

    @property
    def suffix(self) -> str:
        """Return the last part of the name."""
        return _suffix(self.name)

    def is_target_of(self, targets: TargetModules) -> bool:
        """Return whether a recipe with these target modules trains an adapter here."""
        if targets == "query+value":
            return self.is_query_or_value
        return targets in ("all", self.part)


def find_linear_modules(model: nn.Module) -> tuple[LinearModule, ...]:
    """Return every module that adapters may be attached to: attention first, then mlp.

    In that order those of any `TargetModules` are neighbours: query and value come first of all.
    What counts is that a module stands in a layer of the decoder, what it or the module around it
    is called, and that it says how many features go in and out, so that quantised linear modules
    are found like plain ones. A model whose experts are parameters and no modules, as those of a
    mixture of experts are, has adapters at its attention and at experts that all tokens share.

    Raises:
        ModelError: If attention or mlp modules are missing, with the names that were found.
    """
    linear = {
        name: (module, features)
        for name, module in _decoder_modules(model)
        if (features := _features(module)) is not None
    }
    parts = {name: part for name in linear if (part := _part(name)) is not None}
    missing = {"attention", "mlp"} - set(parts.values())
    if _has_experts(model):
        missing.discard("mlp")
    if missing:
        names = ", ".join(sorted(set(map(_suffix, linear)))) or "none"
        raise ModelError(
            f"target modules: the model has no {' and no '.join(sorted(missing))} modules that "
            "adapters can be attached to, which are linear modules of numbered layers whose own "
            f"name or the one around them says so; its linear modules are: {names}; use a model "
            "built like Llama, GPT-NeoX, Phi, OPT or GPT-2"
        )
    makes_query_or_value = {
        name for name in parts if _suffix(name) in _QUERY_OR_VALUE | _FUSED
    } or {name for name, part in parts.items() if part == "attention"}
    found = [
        LinearModule(
            name=name,
            module=linear[name][0],
            part=part,
            in_features=linear[name][1][0],
            out_features=linear[name][1][1],
            is_query_or_value=name in makes_query_or_value,
            is_transposed=isinstance(linear[name][0], Conv1D),
        )
        for name, part in parts.items()
    ]
    return tuple(sorted(found, key=lambda m: (m.part == "mlp", not m.is_query_or_value)))


def name_targets(model: nn.Module, trained: Collection[str]) -> list[str]:
    """Return the shortest names by which PEFT finds just these modules of a model, sorted.

    PEFT's rule: a module is a target if it has the name, or its name ends with a dot and it. So
    one word is enough for most; GPT-2's `c_proj` of attention alone is `attn.c_proj`.

    Args:
        model: What they are modules of.
        trained: Their full names.
    """
    chosen = set(trained)
    others = [name for name, _ in model.named_modules() if name not in chosen]
    # A dot before each name, and one rule is enough.
    endings_of_others = {
        f".{name}"[place:]
        for name in others
        for place, sign in enumerate(f".{name}")
        if sign == "."
    }
    names: set[str] = set()
    for name in chosen:
        words = name.split(".")
        endings = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        names.add(next((e for e in endings if f".{e}" not in endings_of_others), name))
    return sorted(names)


def _decoder_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a model's modules by full name, without what it has beside its decoder of text."""
    modules = list(model.named_modules())
    if not isinstance(model, PreTrainedModel):
        return modules
    decoder = model.get_decoder()
    within = {id(module) for module in decoder.modules()} if decoder is not None else set()
    return [(name, module) for name, module in modules if id(module) in within] or modules


def _features(module: nn.Module) -> tuple[int, int] | None:
    """Return how many features go in and out of a linear module; None of any other."""
    if isinstance(module, Conv1D):  # GPT-2's name for a linear module with its weight transposed
        return int(module.nx), int(module.nf)
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    return None


def _part(name: str) -> Part | None:
    """Return which part of a decoder layer a linear module belongs to; None if to none."""
    in_layer = _IN_LAYER.match(name)
    if in_layer is None or _LEFT_OUT.search(name):
        return None
    around, _, suffix = in_layer["within"].rpartition(".")
    by_itself = PART_OF_SUFFIX.get(suffix) or _PART_OF_OTHER_SUFFIX.get(suffix)
    by_place = (part for pattern, part in _PART_AROUND if pattern.search(around))
    return by_itself or next(by_place, None)


def _has_experts(model: nn.Module) -> bool:
    return any(_suffix(name) == "experts" for name, _ in model.named_modules())


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]
