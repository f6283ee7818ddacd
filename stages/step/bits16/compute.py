"""Forward and backward passes in bfloat16 (packed GEMMs) and float16 (operands upcast to float32)."""

from collections.abc import Callable, Container
from typing import Any

import numpy as np

from threadloom.kernels import AccumulationTicket, Floats
from threadloom.kernels.bits16 import PackedPair, pack_rows, prepare_lora
from threadloom.kernels.common import NO_TERMS, LossTerms, prepare_dropout
from threadloom.kernels.matmul import prepare_bf16
from threadloom.kernels.simd import fp16_from_float32
from threadloom.stages.config import NO_DROPOUT, DropoutConfig, Precision
from threadloom.stages.layouts import ModelWeights, field_of, layout_of
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.memory import MicroBatchSlot, UpdateShard
from threadloom.stages.memory.bits16 import Bits16Memory
from threadloom.stages.models import Geometry
from threadloom.stages.step import (
    EmbeddingDropout,
    Gradient,
    Version,
    block_rates,
    has_dropout,
    needs_blocks,
    skip_blocks,
)
from threadloom.stages.step.bits16.optimizer import Bf16Update, Fp16Update, packed_matrices, packed_pair
from threadloom.stages.step.optimizers import Optimizer


class Bits16Compute:
    """Activations and GEMM operands in 16 bits, masters and sums in float32. Implements `Compute`."""

    def __init__(
        self,
        precision: Precision,
        geometry: Geometry,
        sequences: int,
        *,
        recompute: bool = False,
        borders: bool = False,
        dropout: DropoutConfig = NO_DROPOUT,
    ) -> None:
        self.memory = Bits16Memory(precision, geometry, sequences, small=recompute, borders=borders)
        self._fp16 = precision is Precision.FP16
        self._layout = bits16_layout_of(geometry)
        self._kernels = self._layout.kernels
        self._constants = layout_of(geometry).constants(geometry)._replace(dropout=block_rates(dropout))
        self._dropout = EmbeddingDropout(dropout.embedding)
        self._fields = self._layout.packed_fields(geometry)
        self._geometry = geometry
        self._sequences = sequences
        dtype = np.int16 if self._fp16 else np.uint16
        if not self._fp16:
            prepare_bf16()
        if geometry.lora:
            prepare_lora(dtype)
        if has_dropout(geometry, dropout):
            prepare_dropout(dtype)

    def pack_from_master(self, version: Version, names: Container[str] | None = None) -> None:
        """Round the matrices `names` that have packed weights, by default all, to 16 bits; pack the bfloat16 ones."""
        wanted = {name: field for name, field in self._fields.items() if names is None or name in names}
        fields = {field_of(self._geometry, name): field for name, field in wanted.items()}
        for master, pair in packed_matrices(fields, version.weights, version.packed):
            if master.size:  # frozen matrices may have no master
                self._pack(master, pair)
        if names is None or any(name in names for name in self._layout.flat_packed(self._geometry)):
            self._layout.pack_flat(self._geometry, version.weights, version.packed)

    def pack_matrix(self, packed: Any, name: str, layer: int | None, matrix: Floats) -> None:
        """Round a matrix to 16 bits, and pack a bfloat16 one."""
        self._pack(matrix, packed_pair(packed, self._fields[name], layer))

    def pack_rows(self, packed: Any, name: str, layer: int | None, first: int, rows: Floats) -> None:
        """Round rows of a matrix to 16 bits, and pack bfloat16 ones."""
        if name in self._fields:
            self._pack(rows, packed_pair(packed, self._fields[name], layer), first)

    def _pack(self, rows: Floats, pair: PackedPair, first: int = 0) -> None:
        if self._fp16:
            fp16_from_float32(rows.reshape(-1), pair.packed[first : first + len(rows)].reshape(-1))
        else:
            pack_rows(rows, first, pair)

    def embed(self, version: Version, slot: MicroBatchSlot) -> None:
        """Gather the embeddings."""
        weights, context = self._weights(version), self._geometry.context
        self._layout.embed(weights, slot.ids, context, slot.starts, slot.activations.x)
        self._dropout.drop(slot.activations.x, slot)

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks in one compiled call."""
        self._kernels.blocks_forward(self._weights(version), slot.activations, self._sequences, self._constants)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained."""
        weights, acts, constants = self._weights(version), slot.activations, self._constants
        if terms is not NO_TERMS:
            constants = constants._replace(loss=terms)
        loss = self._kernels.head_backward(weights, acts, slot.targets, scale, gradients, scratch, constants, ticket)
        if needs_blocks(self._geometry, gradients):
            self._kernels.blocks_backward(weights, acts, gradients, scratch, self._sequences, constants, ticket)
        else:
            skip_blocks(self._geometry, ticket)
        self._dropout.drop(scratch.dx, slot)
        return float(loss)

    def input_gradient(self, scratch: Any) -> Floats:
        """Return the gradient of the input embeddings."""
        dx: Floats = scratch.dx
        return dx

    def loss(self, version: Version, slot: MicroBatchSlot, logits: Floats) -> float:
        """Run the head's forward pass; a backward pass must not follow."""
        weights, acts = self._weights(version), slot.activations
        return float(self._kernels.head_loss(weights, acts, slot.targets, self._constants, logits))

    def update_stage(
        self, gradient: Gradient, optimizer: Optimizer, shards: int
    ) -> Callable[[UpdateShard], UpdateShard]:
        """Return the stage that updates master and packed weights."""
        if self._fp16:
            return Fp16Update(self._geometry, gradient, optimizer)
        return Bf16Update(self._geometry, gradient, optimizer, shards)

    def _weights(self, version: Version) -> Any:
        return self._layout.weights(version.weights, version.packed)
