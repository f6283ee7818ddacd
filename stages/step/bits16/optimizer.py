"""AdamW that leaves the packed forms of the new weights beside their master: one pass over the memory for both.

A shard is a run of parts. A part is some rows of one matrix, whole blocks of them because forms are packed by blocks,
or a stretch of the arena that has no form. Each element's new weight and moments are what `ApplyUpdate` makes, bit for
bit, so the number of shards has no part in the result here either.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from threadloom.kernels import Weights, adamw_update
from threadloom.kernels.bits16 import BLOCK, Form, Forms, adamw_update_packed, pack_rows
from threadloom.kernels.compiling import Floats
from threadloom.kernels.simd import fp16_from_float32
from threadloom.pipeline import Arena
from threadloom.stages.memory import UpdateShard
from threadloom.stages.memory.bits16 import MATRIX_FORMS
from threadloom.stages.models import Geometry, decayed_elements, parameter_shapes
from threadloom.stages.step import ApplyUpdate, Gradient, Moments

PART = 1 << 17
"""Elements of a part, about: half a MiB of each array, and a call of some tens of microseconds."""


@dataclass(frozen=True)
class Rows:
    """Rows `first` … `last` - 1 of one matrix; `layer` is None for one that has no layers."""

    name: str
    layer: int | None
    first: int
    last: int
    elements: int


@dataclass(frozen=True)
class Stretch:
    """Elements `start` … `stop` - 1 of the arena, decayed or not."""

    start: int
    stop: int
    decayed: bool

    @property
    def elements(self) -> int:
        """How many they are."""
        return self.stop - self.start


def matrix_forms(weights: Weights, forms: Forms) -> Iterator[tuple[Floats, Form, Form]]:
    """Yield every matrix that products read in other forms, layer by layer, with both of them."""
    for name, field in MATRIX_FORMS.items():
        master, form, form_t = getattr(weights, name), getattr(forms, field), getattr(forms, f"{field}_t")
        if master.ndim == 2:
            yield master, form, form_t
        else:
            yield from zip(master, form, form_t, strict=True)


def plan_parts(layout: Arena, decayed: int, shards: int) -> list[list[Rows | Stretch]]:
    """Cut a parameter arena, of which `decayed` elements are, into parts, and those into `shards` runs of like size."""
    parts: list[Rows | Stretch] = []
    for name in MATRIX_FORMS:
        shape = layout[name].shape
        rows, columns = shape[-2:]
        step = max(PART // columns // BLOCK, 1) * BLOCK
        layers: Iterable[int | None] = range(shape[0]) if len(shape) == 3 else [None]
        for layer in layers:
            for first in range(0, rows, step):
                last = min(first + step, rows)
                parts.append(Rows(name, layer, first, last, (last - first) * columns))
    start = layout.offset("wpe")
    parts.append(Stretch(start, start + layout["wpe"].size, True))
    parts.append(Stretch(decayed, layout.flat.size, False))
    ends = np.cumsum([part.elements for part in parts])
    cuts = [0, *(int(np.searchsorted(ends, ends[-1] * s / shards)) for s in range(1, shards)), len(parts)]
    return [parts[first:last] for first, last in pairwise(cuts)]


class PackedUpdate:
    """Applies AdamW to a shard, and packs its new weights: the stage `update` where products are bfloat16."""

    def __init__(self, geometry: Geometry, gradient: Gradient, moments: Moments, shards: int) -> None:
        self._gradient = Arena(parameter_shapes(geometry), buffer=gradient.flat)
        self._moments = moments
        self._parts = plan_parts(self._gradient, decayed_elements(geometry), shards)

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version, its forms and the moments; a skipped one is a copy."""
        for part in self._parts[shard.shard]:
            if isinstance(part, Rows):
                self._update_rows(part, shard)
            else:
                self._update_stretch(part, shard)
        return shard

    def _update_rows(self, part: Rows, shard: UpdateShard) -> None:
        def rows(arena: Arena) -> Floats:
            matrix = arena[part.name] if part.layer is None else arena[part.name][part.layer]
            found: Floats = matrix[part.first : part.last]
            return found

        forms, field = shard.target.packed, MATRIX_FORMS[part.name]
        form, form_t = getattr(forms, field), getattr(forms, f"{field}_t")
        if part.layer is not None:
            form, form_t = form[part.layer], form_t[part.layer]
        old, new = rows(shard.source.arena), rows(shard.target.arena)
        if shard.skipped:
            np.copyto(new, old)
            pack_rows(new, part.first, form, form_t)
            return
        m, v = rows(self._moments.m), rows(self._moments.v)
        adamw_update_packed(old, new, rows(self._gradient), m, v, part.first, form, form_t, shard.step)

    def _update_stretch(self, part: Stretch, shard: UpdateShard) -> None:
        at = slice(part.start, part.stop)
        old, new = shard.source.arena.flat[at], shard.target.arena.flat[at]
        if shard.skipped:
            np.copyto(new, old)
            return
        decayed = part.elements if part.decayed else 0
        gradient, m, v = (arena.flat[at] for arena in (self._gradient, self._moments.m, self._moments.v))
        adamw_update(old, new, gradient, m, v, decayed, shard.step)


class HalfUpdate(ApplyUpdate):
    """Applies AdamW to a shard, and rounds its new matrices: the stage `update` where products are float16."""

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version, its form and the moments."""
        done = super().__call__(shard)
        arena, (start, stop) = shard.target.arena, shard.span
        for name, field in MATRIX_FORMS.items():
            form, offset = getattr(shard.target.packed, field).reshape(-1), arena.offset(name)
            first, last = max(start, offset), min(stop, offset + form.size)
            if first < last:
                fp16_from_float32(arena.flat[first:last], form[first - offset : last - offset])
        return done
