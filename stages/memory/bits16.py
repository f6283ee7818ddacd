"""The memory of training in 16 bits: packed forms of the weights, activations of half the size, backward's scratch."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.attention import attention_scratch_shapes
from threadloom.kernels.matmul import fp16_scratch_sizes, fp16_sums_size, packed_shape
from threadloom.pipeline import aligned_zeros
from threadloom.stages.config import Precision
from threadloom.stages.models import Geometry, Shape, parameter_shapes

LOGITS_BYTES = 16 << 20
"""Most bytes that the float32 logits of one chunk of rows take; their rounded gradient takes half as many."""
SLICE = 512
"""Columns of the vocabulary whose gradient is transposed at a time."""

MATRIX_FORMS = {
    "wte": "wte",
    "qkv_weight": "qkv",
    "attn_proj_weight": "attn_proj",
    "fc_weight": "fc",
    "mlp_proj_weight": "mlp_proj",
}
"""The matrices that products read in a form of their own, and the field of `Forms`; its twin ends in ``_t``."""

Kinds = dict[str, tuple[Shape, np.dtype[Any]]]
"""Shape and type of named arrays."""

_FLOAT = np.dtype(np.float32)


def low_activation_kinds(geometry: Geometry, sequences: int, short: np.dtype[Any]) -> Kinds:
    """Return shape and type of every field of `LowActivations`; `short` is uint16 (bfloat16) or int16 (float16)."""
    n, c, f, t, b = geometry.layers, geometry.channels, geometry.hidden, geometry.context, sequences
    r = b * t
    return {
        "x": ((r, c), _FLOAT),
        "normed1": ((n, r, c), short),
        "rstd1": ((n, r), _FLOAT),
        "qkv": ((n, r, 3 * c), short),
        "attn": ((n, r, c), short),
        "attn_lse": ((n, b, geometry.heads, t), _FLOAT),
        "normed2": ((n, r, c), short),
        "rstd2": ((n, r), _FLOAT),
        "fc": ((n, r, f), short),
        "h": ((r, c), short),
        "gelu": ((r, f), short),
    }


def low_scratch_kinds(geometry: Geometry, sequences: int, short: np.dtype[Any]) -> Kinds:
    """Return shape and type of every field of `LowScratch`."""
    c, f, v = geometry.channels, geometry.hidden, geometry.vocabulary
    r = sequences * geometry.context
    chunk = low_logits_rows(v, r)
    return {
        "dx": ((r, c), _FLOAT),
        "dx_low": ((r, c), short),
        "dh": ((r, c), _FLOAT),
        "d_attn": ((r, c), short),
        "d_qkv": ((r, 3 * c), short),
        "d_fc": ((r, f), short),
        "gelu": ((r, f), short),
        "turned": ((f, r), short),
        "logits": ((chunk, v), _FLOAT),
        "d_logits": ((chunk, v), short),
        "d_logits_turned": ((min(SLICE, v), chunk), short),
        "h": ((r, c), short),
        "normed": ((r, c), short),
        "rstd": ((r,), _FLOAT),
        "d_bias": ((c,), _FLOAT),
    }


def attention_kinds(geometry: Geometry, short: np.dtype[Any]) -> Kinds:
    """Return shape and type of every field of `AttentionScratch`."""
    shapes = attention_scratch_shapes(geometry.context, geometry.channels // geometry.heads, short)
    return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def low_logits_rows(vocabulary: int, rows: int) -> int:
    """Return how many rows' logits are made at a time: as many as fit in `LOGITS_BYTES`, in chunks of like size."""
    most = max(LOGITS_BYTES // (4 * vocabulary), 1)
    chunks = -(-rows // most)
    return -(-rows // chunks)


def packed_kinds(geometry: Geometry) -> Kinds:
    """Return shape and type of every field of `Forms` for bfloat16: packed words, two a weight in each direction."""
    v, n, c, f = geometry.vocabulary, geometry.layers, geometry.channels, geometry.hidden

    def both(name: str, inner: int, outer: int) -> dict[str, Shape]:
        return {name: (n, *packed_shape(inner, outer)), f"{name}_t": (n, *packed_shape(outer, inner))}

    shapes: dict[str, Shape] = {"wte": packed_shape(v, c), "wte_t": packed_shape(c, v)}
    shapes |= both("qkv", c, 3 * c) | both("attn_proj", c, c) | both("fc", c, f) | both("mlp_proj", f, c)
    return {name: (shape, np.dtype(np.uint32)) for name, shape in shapes.items()}


def half_kinds(geometry: Geometry) -> Kinds:
    """Return shape and type of the forms for float16: each matrix as it lies in its master."""
    shapes, kind = parameter_shapes(geometry), np.dtype(np.int16)
    return {field: (shapes[name], kind) for name, field in MATRIX_FORMS.items()}


def wide_kinds(geometry: Geometry, sequences: int) -> Kinds:
    """Return shape and type of every field of `Wide`, for the largest of float16's products."""
    v, c, f = geometry.vocabulary, geometry.channels, geometry.hidden
    r = sequences * geometry.context
    chunk = low_logits_rows(v, r)
    linear = [(r, 3 * c, c), (r, c, c), (r, f, c), (r, c, f), (r, c, 3 * c)]  # rows, columns, inner
    outer = [(i, o, r) for i, o in ((c, 3 * c), (c, c), (c, f), (f, c))]
    head = [(chunk, v, c), (chunk, c, v), (min(SLICE, v), c, chunk)]
    sizes = [fp16_scratch_sizes(*product) for product in linear + outer + head]
    sums = max(fp16_sums_size(rows, columns) for rows, columns, _ in linear)
    return {
        "a": ((max(a for a, _ in sizes),), _FLOAT),
        "b": ((max(b for _, b in sizes),), _FLOAT),
        "sums": ((sums,), _FLOAT),
    }


NOTHING_WIDE: Kinds = {"a": ((0,), _FLOAT), "b": ((0,), _FLOAT), "sums": ((0,), _FLOAT)}
"""`Wide` where products widen nothing."""


def short_type(precision: Precision) -> np.dtype[Any]:
    """Return the integer type that holds the bits of a 16-bit precision, as `kernels.simd.scalar` tells them apart."""
    return np.dtype(np.int16 if precision is Precision.FP16 else np.uint16)


def array_bytes(kinds: Kinds) -> int:
    """Return the bytes of arrays of these kinds."""
    return sum(prod(shape) * kind.itemsize for shape, kind in kinds.values())


def allocate(kinds: Kinds) -> Mapping[str, NDArray[Any]]:
    """Return zeroed arrays of these kinds, each beginning on a cache line."""
    return {name: aligned_zeros(prod(shape), kind).reshape(shape) for name, (shape, kind) in kinds.items()}
