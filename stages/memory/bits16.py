"""The memory of training in bfloat16 and float16: packed weights, activations of half the size, backward's scratch.

Loaded by runs in 16 bits only, since it loads their kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16 import Activations16, Fp16UpcastScratch, PackedWeights, Scratch16, ThreadScratch
from threadloom.kernels.bits16.attention import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.common import HeadCounts
from threadloom.kernels.matmul import fp16_scratch_sizes, fp16_sums_size, packed_shape
from threadloom.pipeline import aligned_zeros
from threadloom.stages.config import Precision
from threadloom.stages.memory import (
    MicroBatchSlot,
    allocate_token_ids,
    logits_chunk_rows,
    token_ids_bytes,
)
from threadloom.stages.models import Geometry, Shape, parameter_shapes

LOGITS_BYTES = 16 << 20
"""Upper bound of the bytes of one chunk's float32 logits; their gradient in 16 bits takes half as much."""
VOCABULARY_SLICE = 512
"""Columns of the vocabulary whose gradient is transposed at a time."""

PACKED_FIELDS = {
    "wte": "wte",
    "qkv_weight": "qkv",
    "attn_proj_weight": "attn_proj",
    "fc_weight": "fc",
    "mlp_proj_weight": "mlp_proj",
}
"""Matrices with packed weights → field of `PackedWeights`. The field with the suffix ``_t`` is the packed transpose."""

ArraySpecs = dict[str, tuple[Shape, np.dtype[Any]]]
"""Name → shape and dtype."""

_FLOAT = np.dtype(np.float32)


def activation_specs(geometry: Geometry, sequences: int, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of every field of `Activations16`; `storage` is uint16 (bfloat16) or int16 (float16)."""
    n, c, f, t, b = geometry.layers, geometry.channels, geometry.hidden, geometry.context, sequences
    r = b * t
    return {
        "x": ((r, c), _FLOAT),
        "normed1": ((n, r, c), storage),
        "rstd1": ((n, r), _FLOAT),
        "qkv": ((n, r, 3 * c), storage),
        "attn": ((n, r, c), storage),
        "attn_lse": ((n, b, geometry.heads, t), _FLOAT),
        "normed2": ((n, r, c), storage),
        "rstd2": ((n, r), _FLOAT),
        "fc": ((n, r, f), storage),
        "h": ((r, c), storage),
        "gelu": ((r, f), storage),
    }


def scratch_specs(geometry: Geometry, sequences: int, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of every field of `Scratch16`."""
    c, f, v = geometry.channels, geometry.hidden, geometry.vocabulary
    r = sequences * geometry.context
    chunk = logits_chunk_rows(v, r, LOGITS_BYTES)
    return {
        "dx": ((r, c), _FLOAT),
        "dx16": ((r, c), storage),
        "dh": ((r, c), _FLOAT),
        "d_attn": ((r, c), storage),
        "d_qkv": ((r, 3 * c), storage),
        "d_fc": ((r, f), storage),
        "gelu": ((r, f), storage),
        "transposed": ((f, r), storage),
        "logits": ((chunk, v), _FLOAT),
        "d_logits": ((chunk, v), storage),
        "d_logits_t": ((min(VOCABULARY_SLICE, v), chunk), storage),
        "h": ((r, c), storage),
        "normed": ((r, c), storage),
        "rstd": ((r,), _FLOAT),
        "d_bias": ((c,), _FLOAT),
    }


def attention_specs(geometry: Geometry, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of every field of `AttentionScratch`."""
    heads = HeadCounts(geometry.heads, geometry.heads)
    shapes = attention_scratch_shapes(geometry.context, geometry.channels // geometry.heads, heads, storage)
    return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def packed_bf16_specs(geometry: Geometry) -> ArraySpecs:
    """Return shape and dtype of the packed weights for bfloat16: pairs in uint32, each matrix and its transpose."""
    v, n, c, f = geometry.vocabulary, geometry.layers, geometry.channels, geometry.hidden

    def both(name: str, inner: int, outer: int) -> dict[str, Shape]:
        return {name: (n, *packed_shape(inner, outer)), f"{name}_t": (n, *packed_shape(outer, inner))}

    shapes: dict[str, Shape] = {"wte": packed_shape(v, c), "wte_t": packed_shape(c, v)}
    shapes |= both("qkv", c, 3 * c) | both("attn_proj", c, c) | both("fc", c, f) | both("mlp_proj", f, c)
    return {name: (shape, np.dtype(np.uint32)) for name, shape in shapes.items()}


def packed_fp16_specs(geometry: Geometry) -> ArraySpecs:
    """Return shape and dtype of the packed weights for float16: each matrix in the layout of its master."""
    shapes, kind = parameter_shapes(geometry), np.dtype(np.int16)
    return {field: (shapes[name], kind) for name, field in PACKED_FIELDS.items()}


def upcast_specs(geometry: Geometry, sequences: int) -> ArraySpecs:
    """Return shape and dtype of every field of `Fp16UpcastScratch`, for the largest of float16's GEMMs."""
    v, c, f = geometry.vocabulary, geometry.channels, geometry.hidden
    r = sequences * geometry.context
    chunk = logits_chunk_rows(v, r, LOGITS_BYTES)
    linear = [(r, 3 * c, c), (r, c, c), (r, f, c), (r, c, f), (r, c, 3 * c)]  # rows, columns, inner
    outer = [(i, o, r) for i, o in ((c, 3 * c), (c, c), (c, f), (f, c))]
    head = [(chunk, v, c), (chunk, c, v), (min(VOCABULARY_SLICE, v), c, chunk)]
    sizes = [fp16_scratch_sizes(*gemm) for gemm in linear + outer + head]
    sums = max(fp16_sums_size(rows, columns) for rows, columns, _ in linear)
    return {
        "a": ((max(a for a, _ in sizes),), _FLOAT),
        "b": ((max(b for _, b in sizes),), _FLOAT),
        "sums": ((sums,), _FLOAT),
    }


EMPTY_UPCAST_SCRATCH: ArraySpecs = {"a": ((0,), _FLOAT), "b": ((0,), _FLOAT), "sums": ((0,), _FLOAT)}
"""`Fp16UpcastScratch` for bfloat16, whose GEMMs upcast no operand."""


def specs_bytes(specs: ArraySpecs) -> int:
    """Return the bytes of arrays of these shapes and dtypes."""
    return sum(prod(shape) * kind.itemsize for shape, kind in specs.values())


def allocate(specs: ArraySpecs) -> Mapping[str, NDArray[Any]]:
    """Return zeroed arrays of these shapes and dtypes, each starting on a cache line."""
    return {name: aligned_zeros(prod(shape), kind).reshape(shape) for name, (shape, kind) in specs.items()}


@dataclass(frozen=True)
class Bits16Slot(MicroBatchSlot):
    """A slot whose activations have 16 bits, with the scratch of its forward pass."""

    activations: Activations16


class Bits16Memory:
    """Arrays of training in bfloat16 or float16. Implements `PrecisionMemory`."""

    def __init__(self, precision: Precision, geometry: Geometry, sequences: int) -> None:
        fp16 = precision is Precision.FP16
        storage = np.dtype(np.int16 if fp16 else np.uint16)  # `kernels.simd.scalar` distinguishes formats by dtype
        self._fp16 = fp16
        self._rows = sequences * geometry.context
        self._activations = activation_specs(geometry, sequences, storage)
        self._scratch = scratch_specs(geometry, sequences, storage)
        self._attention = attention_specs(geometry, storage)
        self._upcast = upcast_specs(geometry, sequences) if fp16 else EMPTY_UPCAST_SCRATCH
        self._packed = packed_fp16_specs(geometry) if fp16 else packed_bf16_specs(geometry)

    @property
    def packed_bytes(self) -> int:
        """Size of one bank's packed weights."""
        return specs_bytes(self._packed)

    @property
    def slot_bytes(self) -> int:
        """Size of one slot, scratch of its forward pass included."""
        return token_ids_bytes(self._rows) + specs_bytes(self._activations) + self._thread_scratch_bytes

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch of one backward pass."""
        return specs_bytes(self._scratch) + self._thread_scratch_bytes

    @property
    def logits_shape(self) -> Shape:
        """Shape of the scratch of a loss without gradient."""
        return self._scratch["logits"][0]

    def allocate_packed(self) -> PackedWeights:
        """Allocate packed weights: two arrays per matrix for bfloat16; one for float16, which serves both fields."""
        views = allocate(self._packed)
        names = (name.removesuffix("_t") if self._fp16 else name for name in PackedWeights._fields)
        return PackedWeights(*(views[name] for name in names))

    def allocate_slot(self) -> Bits16Slot:
        """Allocate the arrays of one micro-batch in flight."""
        ids, targets = allocate_token_ids(self._rows)
        return Bits16Slot(ids, targets, Activations16(**allocate(self._activations), thread=self._thread_scratch()))

    def allocate_scratch(self) -> Scratch16:
        """Allocate the scratch of one backward pass."""
        return Scratch16(**allocate(self._scratch), thread=self._thread_scratch())

    def _thread_scratch(self) -> ThreadScratch:
        attention, upcast = allocate(self._attention), allocate(self._upcast)
        return ThreadScratch(AttentionScratch(**attention), Fp16UpcastScratch(**upcast))

    @property
    def _thread_scratch_bytes(self) -> int:
        return specs_bytes(self._attention) + specs_bytes(self._upcast)
