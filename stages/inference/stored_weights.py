"""The weights that generation reads, in the number format in which they are fastest.

A step of generation reads each weight once, so the time is that of the memory: 4 bytes for a weight in float32, 2 in
bfloat16, 34/32 in blocks of 8 bits. Only matrices are converted; norms, biases and positions are in float32. A prompt
is processed with the same weights (`stages.inference.prompt`), so that the model's own are not needed any more.
"""

import enum
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.float32 import blocks8_from_float32, blocks8_shape
from threadloom.kernels.matmul import Op, PackedBits, pack_float32, packed_shape
from threadloom.pipeline import Arena
from threadloom.stages.layouts import ModelWeights, as_weights, layout_of
from threadloom.stages.models import Geometry, InitialWeights, Shape, parameter_shapes

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


_DTYPES: Mapping[DecodePrecision, "np.dtype[Any]"] = {
    DecodePrecision.FLOAT32: np.dtype(np.float32),
    DecodePrecision.BF16: np.dtype(np.uint32),
    DecodePrecision.INT8: np.dtype(np.int8),
}
_FORMATS = {dtype: precision for precision, dtype in _DTYPES.items()}


def resolved(precision: DecodePrecision, geometry: Geometry) -> DecodePrecision:
    """Return the precision, or what `AUTO` stands for."""
    if precision is not DecodePrecision.AUTO:
        return precision
    weights = sum(prod(shape) for shape in _matrix_shapes(geometry).values())
    return DecodePrecision.BF16 if 4 * weights > CACHED_BYTES else DecodePrecision.FLOAT32


def format_of(weights: ModelWeights) -> DecodePrecision:
    """Return the number format of the weights of a model."""
    return _FORMATS[weights.wte.dtype]


def stored_weights(weights: ModelWeights, geometry: Geometry, precision: DecodePrecision) -> ModelWeights:
    """Return the weights with their matrices in a number format; in float32, the same arrays.

    Otherwise all arrays are new, so that nothing refers to the memory of the weights.
    """
    chosen = resolved(precision, geometry)
    if chosen is DecodePrecision.FLOAT32:
        return weights
    names, found = layout_of(geometry).decode_matrices, dict[int, Any]()
    for name, tensor in weights._asdict().items():
        if id(tensor) not in found:  # a tied matrix is converted once
            found[id(tensor)] = _convert(_layers(tensor), tensor.shape, chosen) if name in names else tensor.copy()
    stored: ModelWeights = weights._replace(**{name: found[id(w)] for name, w in weights._asdict().items()})
    return stored


def read_stored(source: InitialWeights, geometry: Geometry, precision: DecodePrecision) -> ModelWeights:
    """Return the weights of a source with their matrices in a number format.

    Of the matrices in float32 no more than one is in memory, so the memory is that of the result and of the largest
    matrix at most.
    """
    chosen, shapes = resolved(precision, geometry), parameter_shapes(geometry)
    matrices = {} if chosen is DecodePrecision.FLOAT32 else _matrix_shapes(geometry)
    tensors: dict[str, Any] = dict(Arena({name: shape for name, shape in shapes.items() if name not in matrices}))
    source.write(tensors)
    for name in sorted(matrices, key=lambda name: -prod(shapes[name][-2:])):  # the largest one beside the fewest others
        tensors[name] = _convert(source.matrices(name), shapes[name], chosen)
    return as_weights(geometry, tensors)


def stored_bytes(geometry: Geometry, precision: DecodePrecision) -> int:
    """Return the bytes that `read_stored` takes at most: those of the result and of the largest matrix.

    A matrix (I, O) is counted twice, since it is transposed for 8 bits.
    """
    shapes, matrices = parameter_shapes(geometry), _matrix_shapes(geometry)
    others = sum(prod(shape) for name, shape in shapes.items() if name not in matrices)
    dtype = _DTYPES[resolved(precision, geometry)]
    stored = sum(prod(stored_shape(shape, dtype) or ()) for shape in matrices.values()) * dtype.itemsize
    return 4 * others + stored + 4 * max(prod(shape[-2:]) * (len(shape) - 1) for shape in matrices.values())


def stored_shape(shape: Shape, dtype: "np.dtype[np.generic]") -> Shape | None:
    """Return the shape of a matrix of a model in a number format; None if generation does not have the format."""
    if dtype == np.float32:
        return shape
    if dtype not in (np.uint32, np.int8):
        return None
    *layers, inner, outer = shape if len(shape) == 3 else shape[::-1]
    return (*layers, *(packed_shape if dtype == np.uint32 else blocks8_shape)(inner, outer))


def _matrix_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return the shapes of the matrices that are converted; one that is tied to another is not among them."""
    shapes = parameter_shapes(geometry)
    return {name: shapes[name] for name in layout_of(geometry).decode_matrices if name in shapes}


def _layers(tensor: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    return tensor if tensor.ndim == 3 else (tensor,)


def _convert(matrices: Iterable[NDArray[np.float32]], shape: Shape, precision: DecodePrecision) -> Any:
    """Return matrices in a number format: of one (V, C) its transpose, of one (I, O) for each layer (L, I, O) each."""
    dtype = _DTYPES[precision]
    stored = stored_shape(shape, dtype)
    assert stored is not None
    out = Arena({"matrix": stored}, dtype)["matrix"]
    write = _write_bf16 if precision is DecodePrecision.BF16 else _write_blocks8
    for matrix, target in zip(matrices, out if len(shape) == 3 else (out,), strict=True):
        write(matrix, Op.N if len(shape) == 3 else Op.T, target)
    return out


def _write_bf16(matrix: NDArray[np.float32], op: Op, out: PackedBits) -> None:
    pack_float32(matrix, op, out)


def _write_blocks8(matrix: NDArray[np.float32], op: Op, out: NDArray[np.int8]) -> None:
    blocks8_from_float32(matrix if op is Op.T else np.ascontiguousarray(matrix.T), out)
