"""The stage `update` in 16 bits: new master weights and their packed copy in one pass over the memory.

For bfloat16 a shard is a list of parts. A part is a range of rows of one matrix, in whole blocks because weights are
packed by blocks, or a range of the arena that is not packed. New weights and moments have the bits of `Float32Update`,
so here too the number of shards does not affect the result.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.bits16 import BLOCK, PackedPair, pack_rows
from threadloom.kernels.simd import fp16_from_float32
from threadloom.pipeline import Arena
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.memory import MatrixRows, UpdateShard, matrix_rows
from threadloom.stages.models import Geometry, decayed_elements, derived_tensors
from threadloom.stages.step import Gradient
from threadloom.stages.step.optimizers import MasterUpdate, Optimizer, trained_elements

PART = 1 << 17
"""Approximate elements of a part: half a MiB of each array, and a kernel call of some tens of microseconds."""


@dataclass(frozen=True)
class ArenaRange:
    """Elements `start` … `stop` - 1 of the arena."""

    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def packed_matrices(
    fields: Mapping[str, str], weights: ModelWeights, packed: Any
) -> Iterator[tuple[Floats, PackedPair]]:
    """Yield (master, packed pair) of packed matrices, layer by layer; `fields` maps fields of `weights` to theirs."""
    for name, field in fields.items():
        matrix = getattr(weights, name)
        for layer in range(matrix.shape[0]) if matrix.ndim == 3 else [None]:
            yield matrix if layer is None else matrix[layer], packed_pair(packed, field, layer)


def packed_pair(packed: Any, field: str, layer: int | None) -> PackedPair:
    """Return the packed weights of one matrix; `layer` is None for a matrix without layers."""
    of_field = getattr(packed, field)
    pair = PackedPair(of_field, getattr(packed, f"{field}_t", of_field[:0]))
    return pair if layer is None else PackedPair(pair.packed[layer], pair.packed_t[layer])


def plan_parts(layout: Arena, geometry: Geometry, shards: int) -> list[list[MatrixRows | ArenaRange]]:
    """Split a parameter arena into parts, and the parts into `shards` consecutive groups of similar size."""
    packed, decayed = bits16_layout_of(geometry).packed_fields(geometry), decayed_elements(geometry, layout.keys())
    parts: list[MatrixRows | ArenaRange] = []
    for name, tensor in layout.items():
        start = layout.offset(name)
        if name in derived_tensors(geometry):
            continue
        if name in packed:
            parts += matrix_rows(name, tensor.shape, max(PART // tensor.shape[-1] // BLOCK, 1) * BLOCK)
        elif start < decayed:
            parts += _ranges(start, start + tensor.size)
    parts += _ranges(decayed, trained_elements(geometry, layout))
    ends = np.cumsum([part.elements for part in parts])
    cuts = [0, *(int(np.searchsorted(ends, ends[-1] * s / shards)) for s in range(1, shards)), len(parts)]
    return [parts[first:last] for first, last in pairwise(cuts)]


def _ranges(start: int, stop: int) -> Iterator[ArenaRange]:
    for first in range(start, stop, PART):
        yield ArenaRange(first, min(first + PART, stop))


class Bf16Update:
    """Applies the optimizer to a shard and packs its new weights as bfloat16."""

    def __init__(self, geometry: Geometry, gradient: Gradient, optimizer: Optimizer, shards: int) -> None:
        self._gradient = gradient.arena
        self._optimizer = optimizer
        self._master = MasterUpdate(geometry, gradient.arena, optimizer)
        self._fields = bits16_layout_of(geometry).packed_fields(geometry)
        self._parts = plan_parts(self._gradient, geometry, shards)

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version, packed weights included; a skipped update copies the old one."""
        for part in self._parts[shard.shard]:
            if isinstance(part, MatrixRows):
                self._update_rows(part, shard)
            else:
                self._master.apply(shard, part.start, part.stop)
        return shard

    def _update_rows(self, part: MatrixRows, shard: UpdateShard) -> None:
        pair = packed_pair(shard.target.packed, self._fields[part.name], part.layer)
        old, new = part.of(shard.source.arena), part.of(shard.target.arena)
        if shard.skipped:
            np.copyto(new, old)
            pack_rows(new, part.first, pair)
            return
        state = map(part.of, self._optimizer.state.values())
        optimizer, step = self._optimizer, shard.step
        if optimizer.rates:
            step = optimizer.step_of(step, optimizer.rates[part.name])
        optimizer.update_packed(old, new, part.of(self._gradient), *state, part.first, pair, step)
        if average := optimizer.average:
            weights = new if optimizer.master is None else part.of(optimizer.master)
            average.take(part.of(average.arena), weights, shard.target.scaler.applied)


class Fp16Update:
    """Applies the optimizer to a shard and rounds its new matrices to float16."""

    def __init__(self, geometry: Geometry, gradient: Gradient, optimizer: Optimizer) -> None:
        self._master = MasterUpdate(geometry, gradient.arena, optimizer)
        self._fields = bits16_layout_of(geometry).packed_fields(geometry)

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version, packed weights included; a skipped update copies the old one."""
        self._master.apply(shard, *shard.span)
        arena, (start, stop) = shard.target.arena, shard.span
        for name, field in self._fields.items():
            if name not in shard.target.trained:
                continue
            packed, offset = getattr(shard.target.packed, field).reshape(-1), arena.offset(name)
            first, last = max(start, offset), min(stop, offset + packed.size)
            if first < last:
                fp16_from_float32(arena.flat[first:last], packed[first - offset : last - offset])
        return shard
