"""Estimates the memory that training and asking take, from a model's configuration alone.

Nothing is loaded: the model is made without weights ("meta"). Weights are exact; what a pass takes
is counted tensor by tensor for models built like Llama, and for others it is a rough bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from data.model_profiles import ModelProfile
from objectives.models.base import LOADING_ERRORS, ModelError
from objectives.models.linear_modules import find_linear_modules

_FLOAT32_BYTES = 4
_FLOAT16_BYTES = 2
_CODES_PER_BYTE = 2

# An adapter's weights, their gradients, and Adam's two moments of them.
_TENSORS_PER_ADAPTER = 4

# Beside the layers: what the embedding gives, the last norm's input and output, what of it is read
# by the head, and the gradient of each of the last two.
_HIDDEN_STATES_BESIDE_LAYERS = 6

# What `objectives.answers` does: so many rows at once, so much room in each row's cache beyond
# what was read, and half of the rows begin while the other half goes on.
MOST_ROWS = 512
_ROOM_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSize:
    """The sizes of a linear module that may be quantised."""

    in_features: int
    out_features: int
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a causal language model; weights and parameters are counted in numbers.

    `linears` are all linear modules but the head. `head` is 0 where the head is the embeddings.
    `query_width` and `key_width` are heads times features of the queries and of the keys, and
    `adapter_width` what one rank of an adapter of all modules has.
    """

    parameters: int
    embeddings: int
    head: int
    linears: tuple[LinearSize, ...]
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    vocabulary: int
    adapter_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Storing:
    """How a model is held: its floating point type, and the linear modules perhaps in 4 bits.

    `group_size` is how many inputs share a scale in 4 bits; None where nothing is quantised, -1
    where all inputs of a module do.
    """

    dtype: torch.dtype
    group_size: int | None = None

    @property
    def words(self) -> str:
        """Return it in words, for example "4 bits in groups of 128, the rest bfloat16"."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.group_size is None:
            return dtype
        groups = "" if self.group_size == -1 else f" in groups of {self.group_size}"
        return f"4 bits{groups}, the rest {dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is done with a model at most.

    Adapters of `rank` train on `step_tokens` predicted tokens each in a step; prompts of
    `prompt_tokens` are asked for answers of `answer_tokens`.
    """

    rank: int
    step_tokens: int
    prompt_tokens: int
    answer_tokens: int
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Where a model's weights lie, in bytes; `other` are norms and biases."""

    linears: int
    embeddings: int
    head: int
    other: int

    @property
    def total(self) -> int:
        """Return the bytes of all weights."""
        return self.linears + self.embeddings + self.head + self.other


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory that a model, its training and its asking take, in bytes.

    Args:
        weights: Of the model.
        adapter: Of a slot whether it trains or not: weights, gradients and Adam's moments.
        activations: Of a slot's step: what its backward pass needs of the layers.
        logits: Of a slot's step: the logits, their softmax, and the gradients of both.
        passing: Of a pass, however many slots it has: the dense copy of one 4-bit module.
        row: Of a row that is asked: its key/value cache, its logits, and reading its prompt.
    """

    weights: WeightBytes
    adapter: int
    activations: int
    logits: int
    passing: int
    row: int

    @property
    def slot(self) -> int:
        """Return what one more slot takes while it trains."""
        return self.adapter + self.activations + self.logits

    def training(self, slots: int) -> int:
        """Return what training so many adapters in one pass takes, the model included."""
        return self.weights.total + self.passing + slots * self.slot

    def asking(self, slots: int, rows: int) -> int:
        """Return what asking so many rows of so many adapters takes, the model included."""
        return self.weights.total + self.passing + slots * self.adapter + rows * self.row

    def slots_within(self, limit_bytes: int) -> int:
        """Return how many slots can train within a limit; 0 if not even one can."""
        left = limit_bytes - self.training(0)
        return max(0, left // self.slot)

    def rows_within(self, limit_bytes: int, *, slots: int) -> int:
        """Return how many rows are asked at once within a limit: 512, or halves of it; or 0."""
        rows = MOST_ROWS
        while rows and self.asking(slots, rows) > limit_bytes:
            rows //= 2
        return rows

    @property
    def least(self) -> int:
        """Return the least with which a study can be run: one slot, and one row asked."""
        return max(self.training(1), self.asking(1, 1))


def shape_of(config: PretrainedConfig, *, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of the causal language model of a configuration, without loading it.

    Args:
        config: The configuration.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        ModelError: If it is none whose sizes are told, or has no modules for adapters.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"model: its memory cannot be estimated, because a {config.model_type!r} model cannot "
            f"be made from its configuration: {error}"
        ) from error
    model.tie_weights()
    return shape_of_model(model)


def shape_of_model(model: PreTrainedModel) -> ModelShape:
    """Return the shape of a model, loaded or not, dense or quantised.

    Raises:
        ModelError: If its configuration does not tell a size, or it has no modules for adapters.
    """
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    linears = {
        module: LinearSize(
            in_features=module.in_features,
            out_features=module.out_features,
            has_bias=getattr(module, "bias", None) is not None,
        )
        for module in model.modules()
        if isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
        and module is not head
    }
    packed = {id(parameter) for module in linears for parameter in module.parameters()}
    modules = find_linear_modules(model)
    text = model.config.get_text_config()
    heads = int(_size(text, "num_attention_heads"))
    head_features = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters() if id(p) not in packed)
        + sum(map(_count, linears.values())),
        embeddings=embeddings.numel(),
        head=0 if head.weight is embeddings else head.weight.numel(),
        linears=tuple(linears.values()),
        layers=int(_size(text, "num_hidden_layers")),
        hidden=int(_size(text, "hidden_size")),
        # Configurations call it by many names; it is what the last feed-forward module reads.
        intermediate=max(
            (module.in_features for module in modules if module.part == "mlp"),
            default=4 * int(_size(text, "hidden_size")),
        ),
        query_width=heads * int(head_features),
        key_width=int(key_heads) * int(head_features),
        vocabulary=int(_size(text, "vocab_size")),
        adapter_width=sum(module.in_features + module.out_features for module in modules),
    )


def storing_of(model: PreTrainedModel) -> Storing:
    """Return how a loaded model is held."""
    group_sizes = (getattr(module, "group_size", None) for module in model.modules())
    return Storing(
        dtype=model.dtype,
        group_size=next((size for size in group_sizes if isinstance(size, int)), None),
    )


def _count(linear: LinearSize) -> int:
    return linear.out_features * (linear.in_features + linear.has_bias)


def config_of(profile: ModelProfile) -> PretrainedConfig:
    """Return the configuration of a model that is known by name, as far as sizes go."""
    return AutoConfig.for_model(
        profile.architecture,
        hidden_size=profile.hidden_size,
        num_hidden_layers=profile.layers,
        num_attention_heads=profile.heads,
        num_key_value_heads=profile.key_value_heads,
        head_dim=profile.head_size,
        intermediate_size=profile.intermediate_size,
        vocab_size=profile.vocabulary,
        max_position_embeddings=profile.context_tokens,
        tie_word_embeddings=profile.tied_embeddings,
        pad_token_id=None,  # the defaults may lie beyond a smaller vocabulary
    )


def _size(config: PretrainedConfig, name: str) -> Any:
    if getattr(config, name, None) is None:
        raise ModelError(
            f"model: its memory cannot be estimated, because its configuration names no {name}"
        )
    return getattr(config, name)


def estimate(shape: ModelShape, storing: Storing, demand: Demand) -> Footprint:
    """Return the memory that a demand takes of a model that is held in such a way."""
    size = storing.dtype.itemsize
    return Footprint(
        weights=_weigh(shape, storing),
        adapter=_TENSORS_PER_ADAPTER * _FLOAT32_BYTES * demand.rank * shape.adapter_width,
        activations=demand.step_tokens * _activations_per_token(shape, size, demand),
        logits=demand.step_tokens * _logits_per_token(shape, size),
        passing=_passing(shape, storing),
        row=_row(shape, size, demand),
    )


def _weigh(shape: ModelShape, storing: Storing) -> WeightBytes:
    size = storing.dtype.itemsize
    numbers = sum(each.in_features * each.out_features for each in shape.linears)
    biases = sum(each.out_features for each in shape.linears if each.has_bias)
    other = (shape.parameters - numbers - shape.embeddings - shape.head) * size
    if storing.group_size is not None:
        # A 4-bit module's biases are halves, as its scales are.
        other += biases * (_FLOAT16_BYTES - size)
    return WeightBytes(
        linears=(
            numbers * size
            if storing.group_size is None
            else sum(four_bit_bytes(each, storing.group_size) for each in shape.linears)
        ),
        embeddings=shape.embeddings * size,
        head=shape.head * size,
        other=other,
    )


def four_bit_bytes(linear: LinearSize, group_size: int) -> int:
    """Return the bytes of a GPTQ module without its bias, as `FourBitLinear` holds it.

    They are the codes, a zero point of 4 bits and a scale of 16 for every group and output, and
    every input's group as an int32.
    """
    groups = 1 if group_size == -1 else -(-linear.in_features // group_size)
    codes = linear.in_features * linear.out_features // _CODES_PER_BYTE
    zeros = groups * linear.out_features // _CODES_PER_BYTE
    scales = groups * linear.out_features * _FLOAT16_BYTES
    return codes + zeros + scales + 4 * linear.in_features


def _activations_per_token(shape: ModelShape, size: int, demand: Demand) -> int:
    """Return what the layers keep of a token for the backward pass.

    Frozen weights need nothing of what they multiply. What is kept of a layer is: each of its two
    norms' input in fp32; the adapters' inputs in fp32, which query, key and value share and the
    two upper feed-forward modules, too; what the seven adapters' upper halves read; queries, keys,
    values and what attention gives; and of the feed-forward part the gate before and after its
    activation and what it is multiplied by.

    With gradient checkpointing a layer keeps its input only, and one layer at a time is whole.
    """
    reads = 2 * shape.hidden + shape.query_width + shape.intermediate
    layer = (
        _FLOAT32_BYTES * (2 * shape.hidden + reads + 7 * demand.rank)
        + size * (2 * shape.query_width + 2 * shape.key_width)
        + size * 3 * shape.intermediate
    )
    beside = _HIDDEN_STATES_BESIDE_LAYERS * size * shape.hidden
    if demand.gradient_checkpointing:
        # The logits' own memory is free again when the first layer is whole.
        whole = max(0, layer + size * shape.vocabulary - _logits_per_token(shape, size))
        return shape.layers * size * shape.hidden + whole + beside
    return shape.layers * layer + beside


def _logits_per_token(shape: ModelShape, size: int) -> int:
    """Return what the loss of a token takes: logits, their softmax in fp32, and two gradients."""
    return shape.vocabulary * (size + 3 * _FLOAT32_BYTES)


def _passing(shape: ModelShape, storing: Storing) -> int:
    """Return the dense copy of the largest 4-bit module, and its codes as single bytes."""
    if storing.group_size is None:
        return 0
    largest = max(each.in_features * each.out_features for each in shape.linears)
    return largest * (storing.dtype.itemsize + 1)


def _row(shape: ModelShape, size: int, demand: Demand) -> int:
    """Return what a row takes while it is asked, if its answer is as long as it may be.

    Its cache has two tensors a layer, with room to grow. Half of the rows begin at once: they are
    read layer by layer, and after that joined with the others by copying the caches of both.
    """
    cached = 2 * shape.layers * shape.key_width * size
    layer = size * (
        2 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width + 2 * shape.intermediate
    ) + _FLOAT32_BYTES * (shape.hidden + 2 * shape.intermediate)
    logits = shape.vocabulary * (size + 2 * _FLOAT32_BYTES)
    return (
        cached * (demand.prompt_tokens + demand.answer_tokens + _ROOM_TOKENS)
        + demand.prompt_tokens * max(layer, cached) // 2
        + logits
    )
