"""GGML's types: weights as the bytes that llama.cpp's files hold, and the values those stand for.

The older types (q4_0 to q8_0) and halves are `gguf`'s own functions. K-quants (q2_k to q6_k) can
only be read with it; they are made by ggml's own code, which the package `xllamacpp` contains.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from objectives.models.base import ModelError

if TYPE_CHECKING:  # an extra: whoever needs none of this need not install it
    from gguf import GGMLQuantizationType

GgmlType = Literal[
    "f32",
    "f16",
    "bf16",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
]
GGML_TYPES: tuple[GgmlType, ...] = get_args(GgmlType)

Bytes = npt.NDArray[np.uint8]


def require_gguf() -> ModuleType:
    """Return the package `gguf`.

    Raises:
        ModelError: If it is not installed.
    """
    return _require("gguf", "to read and write GGML types and .gguf files")


def require_xllamacpp() -> ModuleType:
    """Return the package `xllamacpp`.

    Raises:
        ModelError: If it is not installed.
    """
    return _require("xllamacpp", "to run llama.cpp and to make K-quants")


def _require(package: str, what_for: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"{package}: the package is not installed, which it takes {what_for}; "
            "pip install -e '.[gguf]'"
        ) from error


def type_of(ggml_type: GgmlType) -> GGMLQuantizationType:
    """Return what `gguf` calls a type."""
    name = ggml_type.upper()
    return cast("GGMLQuantizationType", require_gguf().GGMLQuantizationType[name])


def block_of(ggml_type: GgmlType) -> tuple[int, int]:
    """Return how many weights of a row share a block, and how many bytes a block has."""
    weights, size = require_gguf().GGML_QUANT_SIZES[type_of(ggml_type)]
    return int(weights), int(size)


def bits_per_weight(ggml_type: GgmlType) -> float:
    """Return how many bits a weight takes, scales included: 4.5 for q4_0."""
    weights, size = block_of(ggml_type)
    return 8 * size / weights


def quantise(weight: Tensor, ggml_type: GgmlType) -> Bytes:
    """Return the bytes (rows, bytes of a row) of a weight (rows, columns).

    They are those of `llama-quantize` without an importance matrix.

    Raises:
        ModelError: If the rows are no whole number of blocks, a weight is not finite, or the type
            cannot be made with what is installed.
    """
    rows = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    block, _ = block_of(ggml_type)
    if rows.shape[-1] % block:
        raise ModelError(
            f"quantisation: {ggml_type} is not allowed for rows of {rows.shape[-1]} weights; they "
            f"must be a multiple of {block}; choose "
            + ("a type of smaller blocks, such as q4_0" if block > 32 else "f16")
        )
    if not np.isfinite(rows).all():
        raise ModelError(f"quantisation: {ggml_type} is not allowed for weights that are infinite")
    if ggml_type.endswith("_k"):
        return quantise_by_ggml(rows, ggml_type)
    # A scale that no half can hold gives infinite values, which are found where they are read.
    with np.errstate(all="ignore"):
        packed = require_gguf().quantize(rows, type_of(ggml_type))
    return cast("Bytes", np.ascontiguousarray(packed).view(np.uint8))


def dequantise(rows: Bytes, ggml_type: GgmlType) -> npt.NDArray[np.float32]:
    """Return the values (rows, columns) of bytes (rows, bytes of a row).

    They are infinite or no numbers where a scale is too large for a half.
    """
    with np.errstate(all="ignore"):
        values = require_gguf().dequantize(rows, type_of(ggml_type))
    return cast("npt.NDArray[np.float32]", values)


def through_type(weight: Tensor, ggml_type: GgmlType) -> Tensor:
    """Return what a weight (rows, columns) is once it was quantised, where and as it was.

    The values are rounded to the weight's own floating point type, which fp32 holds exactly.

    Raises:
        ModelError: As `quantise`, or if a weight is larger than the type can hold.
    """
    values = torch.from_numpy(dequantise(quantise(weight, ggml_type), ggml_type))
    if not bool(values.isfinite().all()):
        raise ModelError(
            f"quantisation: {ggml_type} is not allowed for weights as large as "
            f"{float(weight.abs().max()):.3g}; their scales must fit a half, at most 65504"
        )
    return values.view(weight.shape).to(weight)


def quantise_by_ggml(rows: npt.NDArray[np.float32], ggml_type: GgmlType) -> Bytes:
    """Return the bytes (rows, bytes of a row) that ggml itself makes of rows of whole blocks.

    Raises:
        ModelError: If `xllamacpp` is not installed, or hides ggml.
    """
    block, size = block_of(ggml_type)
    count, width = math.prod(rows.shape[:-1]), rows.shape[-1]
    packed = np.empty((count, width // block * size), dtype=np.uint8)
    written = _ggml().ggml_quantize_chunk(
        int(type_of(ggml_type)),
        rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        packed.ctypes.data_as(ctypes.c_void_p),
        0,
        count,
        width,
        None,
    )
    assert written == packed.nbytes, "ggml's blocks have another size than gguf's"
    return packed


@cache
def _ggml() -> ctypes.CDLL:
    """Return ggml itself, whose functions the library of `xllamacpp` exports.

    Raises:
        ModelError: If it is not installed, or hides them.
    """
    library = ctypes.CDLL(str(require_xllamacpp().xllamacpp.__file__))
    try:
        function = library.ggml_quantize_chunk
    except AttributeError as error:
        raise ModelError(
            "xllamacpp: this version does not show ggml's ggml_quantize_chunk, so that K-quants "
            "cannot be made with it; choose q4_0, q4_1, q5_0, q5_1 or q8_0"
        ) from error
    # ggml.h: type, src, dst, start, nrows, n_per_row, importance matrix; returns bytes written.
    function.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_float),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    function.restype = ctypes.c_size_t
    return library
