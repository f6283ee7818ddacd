"""What computes in 16 bits: bfloat16 (packed products), and float16 (widened ones). See `stages.step.compute`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from threadloom.kernels import AccumulationTicket, Floats, Weights
from threadloom.kernels.bits16 import (
    Forms,
    LowActivations,
    LowScratch,
    Wide,
    Workspace,
    blocks_backward_low,
    blocks_forward_low,
    embedding_forward_low,
    head_backward_low,
    head_loss_low,
    pack_rows,
)
from threadloom.kernels.bits16.attention import AttentionScratch
from threadloom.kernels.simd import fp16_from_float32
from threadloom.pipeline import Arena
from threadloom.stages.config import Precision
from threadloom.stages.memory import Slot, UpdateShard, arrays_bytes
from threadloom.stages.memory.bits16 import (
    NOTHING_WIDE,
    allocate,
    attention_kinds,
    half_kinds,
    low_activation_kinds,
    low_logits_rows,
    low_scratch_kinds,
    packed_kinds,
    short_type,
    wide_kinds,
)
from threadloom.stages.models import Geometry, Shape
from threadloom.stages.step import Gradient, Moments, Version
from threadloom.stages.step.bits16.optimizer import HalfUpdate, PackedUpdate, matrix_forms


class LaneWork(NamedTuple):
    """What backward needs for one lane."""

    scratch: LowScratch
    work: Workspace


@dataclass(frozen=True)
class Bits16Slot(Slot):
    """A slot whose activations are 16 bits wide."""

    activations: LowActivations
    work: Workspace

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return super().nbytes + arrays_bytes((self.activations, self.work))


class Bits16Compute:
    """Activations and products in 16 bits, masters and sums in float32. Implements `stages.step.compute.Compute`."""

    def __init__(self, precision: Precision, geometry: Geometry, sequences: int) -> None:
        self._half = precision is Precision.FP16
        self._short = short_type(precision)
        self._geometry = geometry
        self._sequences = sequences

    def allocate_slot(self) -> Bits16Slot:
        """Allocate the arrays of one micro-batch."""
        rows = self._sequences * self._geometry.context
        tokens = Arena({"ids": (rows,), "targets": (rows,)}, np.int32)
        views = allocate(low_activation_kinds(self._geometry, self._sequences, self._short))
        activations = LowActivations(*(views[name] for name in LowActivations._fields))
        return Bits16Slot(tokens["ids"], tokens["targets"], activations, self._workspace())

    def allocate_scratch(self) -> LaneWork:
        """Allocate backward's scratch."""
        views = allocate(low_scratch_kinds(self._geometry, self._sequences, self._short))
        return LaneWork(LowScratch(*(views[name] for name in LowScratch._fields)), self._workspace())

    def _workspace(self) -> Workspace:
        attention = allocate(attention_kinds(self._geometry, self._short))
        kinds = wide_kinds(self._geometry, self._sequences) if self._half else NOTHING_WIDE
        wide = allocate(kinds)
        return Workspace(
            AttentionScratch(*(attention[name] for name in AttentionScratch._fields)),
            Wide(*(wide[name] for name in Wide._fields)),
        )

    def allocate_packed(self) -> Forms:
        """Allocate the forms of a bank: packed twice for bfloat16, one for both directions for float16."""
        views = allocate(half_kinds(self._geometry) if self._half else packed_kinds(self._geometry))
        return Forms(*(views[name.removesuffix("_t") if self._half else name] for name in Forms._fields))

    def pack_from_master(self, version: Version) -> None:
        """Round every matrix, and pack those of bfloat16."""
        for master, form, form_t in matrix_forms(version.weights, version.packed):
            if self._half:
                fp16_from_float32(master.reshape(-1), form.reshape(-1))
            else:
                pack_rows(master, 0, form, form_t)

    def embed(self, version: Version, slot: Bits16Slot) -> None:
        """Gather the embeddings from the packed form."""
        wpe, context = version.weights.wpe, self._geometry.context
        embedding_forward_low(version.packed.wte, wpe, slot.ids, context, slot.activations.x)

    def forward(self, version: Version, slot: Bits16Slot) -> None:
        """Run all blocks in one call."""
        weights, acts, heads = version.weights, slot.activations, self._geometry.heads
        blocks_forward_low(weights, version.packed, acts, slot.work, self._sequences, heads)

    def backward(
        self, version: Version, slot: Bits16Slot, scale: float, gradients: Weights, scratch: LaneWork, accumulate: bool,
        ticket: AccumulationTicket,
    ) -> float:  # fmt: skip
        """Run head and blocks backwards."""
        weights, forms, acts, (s, work) = version.weights, version.packed, slot.activations, scratch
        loss = head_backward_low(weights, forms, acts.x, slot.targets, scale, gradients, s, work, accumulate, ticket)
        heads = self._geometry.heads
        blocks_backward_low(weights, forms, acts, gradients, s, work, self._sequences, heads, accumulate, ticket)
        return float(loss)

    def input_gradient(self, scratch: LaneWork) -> Floats:
        """Return where `backward` left the gradient of the input embeddings."""
        return scratch.scratch.dx

    def logits_shape(self) -> Shape:
        """Return (rows of a chunk, V)."""
        vocabulary = self._geometry.vocabulary
        return low_logits_rows(vocabulary, self._sequences * self._geometry.context), vocabulary

    def loss(self, version: Version, slot: Bits16Slot, logits: Floats) -> float:
        """Run the head alone; the slot's first normalised rows are no longer needed, and serve as scratch."""
        a, weights, forms = slot.activations, version.weights, version.packed
        return float(head_loss_low(weights, forms, a.x, slot.targets, a.normed1[0], a.h, a.rstd1[0], logits, slot.work))

    def make_update(self, gradient: Gradient, moments: Moments, shards: int) -> Callable[[UpdateShard], UpdateShard]:
        """Return the stage of AdamW that makes the new weights' forms as it goes."""
        if self._half:
            return HalfUpdate(self._geometry, gradient, moments)
        return PackedUpdate(self._geometry, gradient, moments, shards)
