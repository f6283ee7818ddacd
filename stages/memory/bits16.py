"""The memory of training in bfloat16 and float16: packed weights, activations of half the size, backward's scratch.

Loaded by runs in 16 bits only, since it loads their kernels.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16 import Fp16UpcastScratch, ThreadScratch
from threadloom.kernels.bits16.attention import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.matmul import fp16_scratch_sizes, fp16_sums_size, packed_shape, transposed_part_size
from threadloom.pipeline import aligned_zeros
from threadloom.stages.config import Precision
from threadloom.stages.layouts import head_counts, layout_of
from threadloom.stages.layouts.bits16 import ArraySpec, ArraySpecs, bits16_layout_of
from threadloom.stages.memory import (
    DROPOUT_KEY_BYTES,
    MicroBatchSlot,
    allocate_starts,
    allocate_token_ids,
    logits_chunk_rows,
    starts_bytes,
    token_ids_bytes,
)
from threadloom.stages.models import Geometry, Shape, parameter_shapes

LOGITS_BYTES = 16 << 20
"""Upper bound of the bytes of one chunk's float32 logits; their gradient in 16 bits takes half as much."""
VOCABULARY_SLICE = 512
"""Columns of the vocabulary whose gradient is transposed at a time."""

_FLOAT = np.dtype(np.float32)


def logits_specs(geometry: Geometry, chunk: int, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of the logits of `chunk` rows and of their gradient, fields of every scratch."""
    v = geometry.projection_rows
    return {
        "logits": ((chunk + layout_of(geometry).softmax_rows, v), _FLOAT),
        "d_logits": ((chunk, v), storage),
        "d_logits_t": ((min(VOCABULARY_SLICE, v), chunk), storage),
    }


def attention_specs(geometry: Geometry, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of every field of `AttentionScratch`."""
    size = geometry.attn_width // geometry.heads
    shapes = attention_scratch_shapes(geometry.context, size, head_counts(geometry), storage)
    return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def packed_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return name → shape of the matrices that have packed weights; (L, 0, 0) of adapters that the model lacks."""
    shapes, missing = parameter_shapes(geometry), (geometry.layers, 0, 0)
    return {name: shapes.get(name, missing) for name in bits16_layout_of(geometry).packed_fields(geometry)}


def _without_elements(spec: ArraySpec) -> ArraySpec:
    """Return the specification of packed weights with the same axes and no element; the axis of layers, if any, stays.

    Axes and dtype are parts of the types that kernels are compiled for.
    """
    shape, kind = spec
    if len(shape) == 1:
        return (0,), kind
    layered = len(shape) == (4 if kind == np.uint32 else 3)
    return ((shape[0], 0, *shape[2:]) if layered else (0, *shape[1:])), kind


def packed_bf16_specs(geometry: Geometry, *, small: bool = False) -> ArraySpecs:
    """Return shape and dtype of the packed weights for bfloat16: pairs in uint32, each matrix and its transpose.

    With `small` there are no transposes of the matrices of which the backward pass can make them.
    """
    layout, kind = bits16_layout_of(geometry), np.dtype(np.uint32)
    fields, specs = layout.packed_fields(geometry), ArraySpecs()
    for name, (*layers, inner, outer) in packed_shapes(geometry).items():
        field, transposed = fields[name], ((*layers, *packed_shape(outer, inner)), kind)
        specs[field] = ((*layers, *packed_shape(inner, outer)), kind)
        specs[f"{field}_t"] = _without_elements(transposed) if small and field in layout.repacked else transposed
    specs = {field: spec for field, spec in specs.items() if field in layout.packed._fields}
    for name, words in layout.flat_packed(geometry).items():
        specs |= {name: ((words,), kind), f"{name}_t": ((words,), kind)}
    return specs


def packed_fp16_specs(geometry: Geometry) -> ArraySpecs:
    """Return shape and dtype of the packed weights for float16: each matrix in the layout of its master."""
    fields, kind = bits16_layout_of(geometry).packed_fields(geometry), np.dtype(np.int16)
    return {fields[name]: (shape, kind) for name, shape in packed_shapes(geometry).items()}


def lora_sums_specs(activations: ArraySpecs) -> ArraySpecs:
    """Return shape and dtype of ``ThreadScratch.lora_sums``, for the largest input of an adapter's second matrix."""
    sizes = [prod(shape[1:]) for name, (shape, _) in activations.items() if name.endswith("_xa")]
    return {"lora_sums": ((max(sizes),), _FLOAT)}


def transposed_part_specs(geometry: Geometry, *, small: bool) -> ArraySpecs:
    """Return shape and dtype of ``ThreadScratch.packed_t``: for `small` memory, in bfloat16."""
    layout, shapes = bits16_layout_of(geometry), packed_shapes(geometry)
    fields = layout.packed_fields(geometry)
    sizes = [transposed_part_size(*shape[1:]) for name, shape in shapes.items() if fields[name] in layout.repacked]
    return {"packed_t": ((max(sizes) if small else 0,), np.dtype(np.uint32))}


def upcast_specs(geometry: Geometry, rows: int, chunk: int) -> ArraySpecs:
    """Return shape and dtype of every field of `Fp16UpcastScratch`, for the largest of float16's GEMMs."""
    v, c = geometry.projection_rows, geometry.channels
    layers = [shape[1:] for shape in packed_shapes(geometry).values() if len(shape) == 3]
    linear = [(rows, o, i) for i, o in layers] + [(rows, i, o) for i, o in layers]  # rows, columns, inner
    outer = [(i, o, rows) for i, o in layers]
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


class Bits16Memory:
    """Arrays of training in bfloat16 or float16. Implements `PrecisionMemory`."""

    def __init__(
        self, precision: Precision, geometry: Geometry, sequences: int, *, small: bool = False, borders: bool = False
    ) -> None:
        """Compute the sizes for micro-batches of `sequences`; with `borders` slots have those of documents.

        With `small` two things that backward can recompute, with the same bits, are not held: the packed transposes of
        the layers' matrices in bfloat16, and the largest activation of every layer but the last.
        """
        fp16 = precision is Precision.FP16
        storage = np.dtype(np.int16 if fp16 else np.uint16)  # `kernels.simd.scalar` distinguishes formats by dtype
        self._fp16, self._borders = fp16, borders
        self._layout = layout = bits16_layout_of(geometry)
        self._fields = layout.packed_fields(geometry) | {name: name for name in layout.flat_packed(geometry)}
        self._rows = rows = sequences * geometry.context
        chunk = logits_chunk_rows(geometry.projection_rows, rows, LOGITS_BYTES)
        self._activations = layout.activation_specs(geometry, sequences, storage, small=small)
        self._of_one_layer = layout.activation_specs(replace(geometry, layers=1), sequences, storage)
        self._scratch = layout.scratch_specs(geometry, sequences, storage) | logits_specs(geometry, chunk, storage)
        self._attention = attention_specs(geometry, storage)
        self._upcast = upcast_specs(geometry, rows, chunk) if fp16 else EMPTY_UPCAST_SCRATCH
        sums = lora_sums_specs(self._activations)
        self._of_forward = sums | transposed_part_specs(geometry, small=False)
        self._of_backward = sums | transposed_part_specs(geometry, small=small and not fp16)
        self._packed = packed_fp16_specs(geometry) if fp16 else packed_bf16_specs(geometry, small=small)

    @property
    def packed_names(self) -> Set[str]:
        """Names of the matrices."""
        return self._fields.keys()

    def packed_bytes(self, names: Set[str]) -> int:
        """Return the size of the packed weights of some tensors."""
        return specs_bytes(self._packed_specs(names))

    @property
    def slot_bytes(self) -> int:
        """Size of one slot, scratch of its forward pass included."""
        return self._slot_bytes(self._activations)

    @property
    def evaluation_slot_bytes(self) -> int:
        """Size of a slot with the activations of one layer."""
        return self._slot_bytes(self._of_one_layer)

    def _slot_bytes(self, activations: ArraySpecs) -> int:
        arrays = specs_bytes(activations) + self._thread_scratch_bytes(self._of_forward)
        return (
            token_ids_bytes(self._rows) + starts_bytes(self._rows, borders=self._borders) + arrays + DROPOUT_KEY_BYTES
        )

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch of one backward pass."""
        return specs_bytes(self._scratch) + self._thread_scratch_bytes(self._of_backward)

    @property
    def logits_shape(self) -> Shape:
        """Shape of the scratch of a loss without gradient."""
        return self._scratch["logits"][0]

    def allocate_packed(self, names: Set[str] | None = None) -> Any:
        """Allocate packed weights: two arrays per matrix for bfloat16; one for float16, which serves both fields."""
        kind, shared = self._layout.packed, self._layout.shared_packed
        wanted = self._packed if names is None else self._packed_specs(names)
        views = allocate({name: wanted.get(name, _without_elements(spec)) for name, spec in self._packed.items()})

        def array(field: str) -> NDArray[Any]:
            name = field.removesuffix("_t") if self._fp16 else field
            return views[name if name in views else shared[name]]

        return kind(*map(array, kind._fields))

    def _packed_specs(self, names: Set[str]) -> ArraySpecs:
        fields = {field for name, field in self._fields.items() if name in names}
        return {name: spec for name, spec in self._packed.items() if name.removesuffix("_t") in fields}

    def allocate_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of one micro-batch in flight, with the scratch of its forward pass."""
        return self._slot(self._activations)

    def allocate_evaluation_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of a micro-batch that has no backward pass."""
        return self._slot(self._of_one_layer)

    def _slot(self, specs: ArraySpecs) -> MicroBatchSlot:
        (ids, targets), key = allocate_token_ids(self._rows), np.zeros(1, np.uint64)
        thread = self._thread_scratch(self._of_forward)
        starts = allocate_starts(self._rows, borders=self._borders)
        activations = self._layout.activations(**allocate(specs), dropout_key=key, starts=starts, thread=thread)
        return MicroBatchSlot(ids, targets, activations, key, starts)

    def allocate_scratch(self) -> Any:
        """Allocate the scratch of one backward pass."""
        return self._layout.scratch(**allocate(self._scratch), thread=self._thread_scratch(self._of_backward))

    @property
    def member_scratch_bytes(self) -> int:
        """Size of the scratch of one member of a team."""
        return specs_bytes(self._of_member) + self._thread_scratch_bytes(self._of_backward)

    def allocate_member_scratch(self) -> Mapping[str, Any]:
        """Allocate a member's scratch of a thread, a slice of the vocabulary, and sums that nobody reads."""
        return {**allocate(self._of_member), "thread": self._thread_scratch(self._of_backward)}

    @property
    def _of_member(self) -> ArraySpecs:
        return {name: self._scratch[name] for name in ("d_logits_t", "unused") if name in self._scratch}

    def _thread_scratch(self, own: ArraySpecs) -> ThreadScratch:
        attention, upcast = allocate(self._attention), allocate(self._upcast)
        return ThreadScratch(AttentionScratch(**attention), Fp16UpcastScratch(**upcast), **allocate(own))

    def _thread_scratch_bytes(self, own: ArraySpecs) -> int:
        return specs_bytes(self._attention) + specs_bytes(self._upcast) + specs_bytes(own)
