"""Lets a model compute with the weights that a GGML file of it would have, and then not any more.

Which weights those are follows `llama-quantize --pure`: all matrices are of the type named, the
embedding and the output among them; norms, biases and position embeddings stay. Without `--pure`
that program makes the output, or an embedding that serves as such, a q6_k or q8_0 instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from objectives.models.base import ModelError
from objectives.models.gguf.ggml_types import (
    GgmlType,
    bits_per_weight,
    through_type,
    type_of,
)
from objectives.models.gptq.four_bit import FourBitLinear


def matrix_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules whose weights are quantised, by name: linear ones and the embedding.

    Modules that share a weight, as a tied embedding and output do, are all there.

    Raises:
        ModelError: If the model has matrices in other modules, or not in this process's memory.
    """
    embedding = model.get_input_embeddings()
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | FourBitLinear) or module is embedding:
            if not isinstance(module, FourBitLinear):
                _require_plain(name, module)
            found[name] = module
        elif not isinstance(module, nn.Embedding):
            _refuse_other_matrices(name, module)
    return found


@contextmanager
def quantised_weights(model: PreTrainedModel, ggml_type: GgmlType) -> Iterator[None]:
    """During it the model computes with its weights quantised, in its own floating point type.

    Adapters stay attached, for modules stay who they are. Of a GPTQ checkpoint the dequantised
    weights are quantised, so that it takes the memory of a dense model meanwhile. Afterwards all
    is bit by bit as it was.

    Raises:
        ModelError: If the type does not fit a weight, or the model is not made of linear modules.
    """
    type_of(ggml_type)  # what is not installed is said before anything is changed
    modules = matrix_modules(model)
    originals: dict[int, tuple[Tensor, Tensor]] = {}
    forwards: list[tuple[nn.Module, object]] = []
    try:
        for name, module in modules.items():
            if isinstance(module, FourBitLinear):
                dense = _quantised_dense(module, ggml_type, name, model.dtype)
                forwards.append((module, vars(module).get("forward")))
                # The module itself stays, because adapters are attached to it.
                vars(module)["forward"] = dense.forward
            elif id(weight := module.weight) not in originals:
                assert isinstance(weight, nn.Parameter)
                values = _through(weight, ggml_type, name)
                originals[id(weight)] = weight, weight.detach().to("cpu", copy=True)
                _fill(weight, values)
        yield
    finally:
        for weight, original in originals.values():
            _fill(weight, original)
        for module, forward in forwards:
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


def dense_weight(module: nn.Module) -> Tensor:
    """Return the weight (out, in) of a linear module, or (tokens, features) of an embedding."""
    if isinstance(module, FourBitLinear):
        return module.dequantise(torch.float32).T.contiguous()
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def dense_shape(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of what `dense_weight` gives, without making it."""
    if isinstance(module, FourBitLinear):
        return module.out_features, module.in_features
    assert isinstance(module.weight, Tensor)
    return tuple(module.weight.shape)


def mean_bits_per_weight(model: PreTrainedModel, ggml_type: GgmlType | None) -> float:
    """Return how many bits a weight of the model takes, scales included, as a mean.

    Args:
        model: Where the weights are.
        ggml_type: That of its matrices in a file, in which all else is fp32; None means as the
            model is in memory.
    """
    matrices = matrix_modules(model).values()
    plain = {id(module.weight) for module in matrices if not isinstance(module, FourBitLinear)}
    of_type = None if ggml_type is None else bits_per_weight(ggml_type)
    sizes: list[tuple[int, float]] = []  # how many weights, and the bits of each
    for parameter in model.parameters():
        bits = float(8 * parameter.element_size())
        if of_type is not None:
            bits = of_type if id(parameter) in plain else 32.0
        sizes.append((parameter.numel(), bits))
    for module in matrices:
        if isinstance(module, FourBitLinear):
            count = module.in_features * module.out_features
            stored = 8 * sum(buffer.nbytes for buffer in module.buffers()) / count
            sizes.append((count, stored if of_type is None else of_type))
    return sum(count * bits for count, bits in sizes) / sum(count for count, _ in sizes)


def _quantised_dense(
    module: FourBitLinear, ggml_type: GgmlType, name: str, dtype: torch.dtype
) -> nn.Linear:
    weight = _through(dense_weight(module), ggml_type, name).to(dtype)
    dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        dense.bias = nn.Parameter(module.bias.to(dtype), requires_grad=False)
    return dense


def _through(weight: Tensor, ggml_type: GgmlType, name: str) -> Tensor:
    try:
        return through_type(weight, ggml_type)
    except ModelError as error:
        raise ModelError(f"{error} ({name})") from error


@torch.no_grad()
def _fill(weight: Tensor, values: Tensor) -> None:
    """Put values into a weight where it lies, so that whatever shares it has them, too."""
    weight.copy_(values)


def _require_plain(name: str, module: nn.Module) -> None:
    """Refuse a weight that is packed in a way of its own, or that is not here to be read."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta:
        raise ModelError(
            f"quantisation: the weights of {name} are not in memory but moved in for each pass; "
            "load the model where all of it fits, for example on the CPU"
        )
    shape = (
        (module.out_features, module.in_features)
        if isinstance(module, nn.Linear)
        else tuple(weight.shape)
    )
    if tuple(weight.shape) != shape or not weight.is_floating_point():
        raise ModelError(
            f"quantisation: {name} is a {type(module).__name__}, which is quantised already; "
            'load the model in full precision, or a GPTQ checkpoint with gptq = "built-in"'
        )


def _refuse_other_matrices(name: str, module: nn.Module) -> None:
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    packed = isinstance(getattr(module, "in_features", None), int)
    large = [field for field, tensor in own.items() if tensor.ndim > 1 and tensor.numel() > 0]
    if large and (packed or any(isinstance(own[field], nn.Parameter) for field in large)):
        raise ModelError(
            f"quantisation: {name} is a {type(module).__name__}, whose {', '.join(large)} are not "
            "those of a plain linear module; load a dense model built like Llama, or a GPTQ "
            'checkpoint with gptq = "built-in"'
        )
