"""The weights that generation reads, in the number format in which they are fastest.

A step of generation reads each weight once, so the time is that of the memory: 4 bytes for a weight in float32, 2 in
bfloat16, 34/32 in blocks of 8 bits. Only matrices are converted; norms, biases and positions are in float32. A prompt
is processed with the same weights (`stages.inference.prompt`), so that the model's own are not needed any more.
"""

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.float32 import blocks8_from_float32, blocks8_shape
from threadloom.kernels.matmul import Op, PackedBits, pack_float32, packed_shape
from threadloom.pipeline import Arena
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.models import Geometry, Shape

CACHED_BYTES = 1 << 25
"""Bytes of float32 matrices up to which `AUTO` keeps them: a processor's cache may hold them. Not measured at run time,
so that the text of a seed does not depend on the machine's speed."""


class DecodePrecision(enum.Enum):
    """The number format of the weights and of the cached keys and values during generation."""

    FLOAT32 = "float32"
    """Everything in float32."""
    BF16 = "bf16"
    """Weights, keys and values in bfloat16: each is off by 2**-9 of itself at most."""
    INT8 = "int8"
    """Weights in 8 bits by blocks of 32, each off by 0.4 % of the largest of its block at most; keys and values in
    bfloat16."""
    AUTO = "auto"
    """BF16 if the matrices take more than 32 MiB in float32, otherwise FLOAT32."""


def resolved(precision: DecodePrecision, weights: ModelWeights, geometry: Geometry) -> DecodePrecision:
    """Return the precision, or what `AUTO` stands for."""
    if precision is not DecodePrecision.AUTO:
        return precision
    matrices = {id(matrix): matrix.nbytes for matrix in _matrices(weights, geometry).values()}
    return DecodePrecision.BF16 if sum(matrices.values()) > CACHED_BYTES else DecodePrecision.FLOAT32


def stored_weights(weights: ModelWeights, geometry: Geometry, precision: DecodePrecision) -> ModelWeights:
    """Return the weights with their matrices in a number format; in float32, the same arrays.

    Otherwise all arrays are new, so that nothing refers to the memory of the weights.
    """
    chosen = resolved(precision, weights, geometry)
    if chosen is DecodePrecision.FLOAT32:
        return weights
    convert = _as_bf16 if chosen is DecodePrecision.BF16 else _as_blocks8
    fields, found = _matrices(weights, geometry), dict[int, Any]()
    for name, tensor in weights._asdict().items():
        if id(tensor) not in found:  # a tied matrix is converted once
            found[id(tensor)] = convert(tensor) if name in fields else tensor.copy()
    stored: ModelWeights = weights._replace(**{name: found[id(w)] for name, w in weights._asdict().items()})
    return stored


def stored_shape(shape: Shape, dtype: "np.dtype[np.generic]") -> Shape | None:
    """Return the shape of a matrix of a model in a number format; None if generation does not have the format."""
    if dtype == np.float32:
        return shape
    if dtype not in (np.uint32, np.int8):
        return None
    *layers, inner, outer = shape if len(shape) == 3 else shape[::-1]
    return (*layers, *(packed_shape if dtype == np.uint32 else blocks8_shape)(inner, outer))


def _matrices(weights: ModelWeights, geometry: Geometry) -> dict[str, NDArray[np.float32]]:
    return {name: getattr(weights, name) for name in layout_of(geometry).decode_matrices}


def _as_bf16(matrix: NDArray[np.float32]) -> PackedBits:
    """Return packed matrices: of a matrix (V, C) its transpose, of one for each layer (L, I, O) each."""
    out: PackedBits = _allocated(matrix, np.uint32)
    if matrix.ndim == 2:
        pack_float32(matrix, Op.T, out)
        return out
    for layer, packed in zip(matrix, out, strict=True):
        pack_float32(layer, Op.N, packed)
    return out


def _as_blocks8(matrix: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return matrices in blocks, as `_as_bf16`."""
    out: NDArray[np.int8] = _allocated(matrix, np.int8)
    if matrix.ndim == 2:
        blocks8_from_float32(matrix, out)
        return out
    for layer, blocks in zip(matrix, out, strict=True):
        blocks8_from_float32(np.ascontiguousarray(layer.T), blocks)
    return out


def _allocated(matrix: NDArray[np.float32], dtype: "type[np.generic]") -> Any:
    shape = stored_shape(matrix.shape, np.dtype(dtype))
    assert shape is not None
    return Arena({"matrix": shape}, dtype)["matrix"]
