"""Models by short names: where each is found, its shape, and what its weights take."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from types import MappingProxyType

_PLAIN_BITS = 16
# A group of GPTQ has a 16-bit scale and a 4-bit zero point for each output.
_GROUP_BITS = 16 + 4

_NAMED_IN_A_MESSAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A model that is known by a short name: its place on the hub, and its shape.

    `parameters` counts tied embeddings once. The linear layers of the decoder have `bits` each,
    quantised in groups of `group_size` if that is given; all else has 16. Whoever fetches a
    `gated` model must have accepted its licence.
    """

    name: str
    hub_id: str
    architecture: str
    parameters: int
    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    context_tokens: int
    licence: str
    tied_embeddings: bool = False
    gated_mlp: bool = True
    bits: int = _PLAIN_BITS
    group_size: int | None = None
    gated: bool = False
    note: str = ""

    @property
    def linear_parameters(self) -> int:
        """Return the weights of the decoder's linear layers, the ones that are quantised."""
        attention = 2 * self.head_size * (self.heads + self.key_value_heads)
        mlp = (3 if self.gated_mlp else 2) * self.intermediate_size
        return self.layers * self.hidden_size * (attention + mlp)

    def weight_bytes(self, *, bits: int | None = None, group_size: int | None = None) -> int:
        """Return the bytes of all weights, by default at the profile's own precision.

        Args:
            bits: Of each weight of a linear layer; everything else keeps 16.
            group_size: Of the groups in which those are quantised, if they are.
        """
        if bits is None:
            bits, group_size = self.bits, self.group_size
        linear = self.linear_parameters
        group_bits = 0 if group_size is None else linear * _GROUP_BITS // group_size
        plain = self.parameters - linear
        return (linear * bits + group_bits + plain * _PLAIN_BITS) // 8


@cache
def load_profiles() -> Mapping[str, ModelProfile]:
    """Return the packaged profiles by their names, in the table's order."""
    text = files("data").joinpath("model_profiles.toml").read_text(encoding="utf-8")
    return MappingProxyType(
        {name: ModelProfile(name=name, **values) for name, values in tomllib.loads(text).items()}
    )


def find_profile(name: str) -> ModelProfile | None:
    """Return the profile of a model by its short name or its hub id; None if there is none."""
    profiles = load_profiles().values()
    return next((each for each in profiles if name in (each.name, each.hub_id)), None)


def largest_profiles(fits: Callable[[ModelProfile], bool]) -> list[ModelProfile]:
    """Return the largest models that fit, largest first, as many as a message names: three."""
    by_size = sorted(load_profiles().values(), key=lambda each: -each.parameters)
    return list(islice(filter(fits, by_size), _NAMED_IN_A_MESSAGE))
