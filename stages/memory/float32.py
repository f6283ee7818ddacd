"""The memory of training in float32: GEMMs read the master weights, activations are float32.

Shapes are computed from the geometry; all arrays are allocated before the first step.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from threadloom.pipeline import Arena
from threadloom.stages.layouts import layout_of
from threadloom.stages.memory.precision_memory import (
    DROPOUT_KEY_BYTES,
    MicroBatchSlot,
    allocate_starts,
    allocate_token_ids,
    logits_chunk_rows,
    starts_bytes,
    token_ids_bytes,
)
from threadloom.stages.models import Geometry, Shape

LOGITS_BYTES = 32 << 20
"""Upper bound of the bytes of one chunk's logits; the output projection processes a micro-batch chunk by chunk."""
_FLOAT_BYTES = 4


class Float32Memory:
    """Arrays of training in float32. Implements `PrecisionMemory`."""

    def __init__(self, geometry: Geometry, sequences: int, *, borders: bool = False) -> None:
        """Compute the sizes for micro-batches of `sequences`; with `borders` slots have those of documents."""
        self._borders = borders
        self._layout = layout = layout_of(geometry)
        self._rows = sequences * geometry.context
        self._activations = layout.activation_shapes(geometry, sequences)
        self._of_one_layer = layout.activation_shapes(replace(geometry, layers=1), sequences)
        columns = geometry.projection_rows
        logits_rows = logits_chunk_rows(columns, self._rows, LOGITS_BYTES) + layout.softmax_rows
        self._scratch = {**layout.scratch_shapes(geometry, sequences), "logits": (logits_rows, columns)}

    @property
    def slot_bytes(self) -> int:
        """Size of one slot."""
        return self._slot_bytes(self._activations)

    @property
    def evaluation_slot_bytes(self) -> int:
        """Size of a slot with the activations of one layer."""
        return self._slot_bytes(self._of_one_layer)

    def _slot_bytes(self, activations: Mapping[str, Shape]) -> int:
        tokens = token_ids_bytes(self._rows) + starts_bytes(self._rows, borders=self._borders)
        return tokens + _bytes(activations) + DROPOUT_KEY_BYTES

    @property
    def scratch_bytes(self) -> int:
        """Size of the scratch of one backward pass."""
        return _bytes(self._scratch)

    @property
    def logits_shape(self) -> Shape:
        """Shape of the scratch of a loss without gradient."""
        return self._scratch["logits"]

    @property
    def packed_names(self) -> Set[str]:
        """No names: GEMMs read the master."""
        return frozenset()

    def packed_bytes(self, names: Set[str]) -> int:
        """Return 0: GEMMs read the master."""
        return 0

    def allocate_packed(self, names: Set[str] | None = None) -> None:
        """Return None: GEMMs read the master."""

    def allocate_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of one micro-batch in flight."""
        return self._slot(self._activations)

    def allocate_evaluation_slot(self) -> MicroBatchSlot:
        """Allocate the arrays of a micro-batch that has no backward pass."""
        return self._slot(self._of_one_layer)

    def _slot(self, activations: Mapping[str, Shape]) -> MicroBatchSlot:
        (ids, targets), key = allocate_token_ids(self._rows), np.zeros(1, np.uint64)
        starts = allocate_starts(self._rows, borders=self._borders)
        acts = self._layout.activations(**Arena(activations), dropout_key=key, starts=starts)
        return MicroBatchSlot(ids, targets, acts, key, starts)

    def allocate_scratch(self) -> Any:
        """Allocate the scratch of one backward pass."""
        return self._layout.scratch(**Arena(self._scratch))

    @property
    def member_scratch_bytes(self) -> int:
        """Size of the scratch of one member of a team."""
        return _bytes(self._of_member)

    def allocate_member_scratch(self) -> Mapping[str, Any]:
        """Allocate a member's scratch for scores of attention."""
        return dict(Arena(self._of_member))

    @property
    def _of_member(self) -> Mapping[str, Shape]:
        return {"scores": self._scratch["scores"]}


def _bytes(shapes: Mapping[str, Shape]) -> int:
    return sum(map(prod, shapes.values())) * _FLOAT_BYTES
