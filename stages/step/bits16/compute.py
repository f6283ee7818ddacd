"""Forward and backward passes in bfloat16 (packed GEMMs) and float16 (operands upcast to float32)."""

from collections.abc import Callable

from threadloom.kernels import AccumulationTicket, Floats, Gpt2Constants, Weights
from threadloom.kernels.bits16 import (
    Scratch16,
    Weights16,
    blocks_backward,
    blocks_forward,
    embedding_forward,
    head_backward,
    head_loss,
    pack_rows,
)
from threadloom.kernels.matmul import prepare_bf16
from threadloom.kernels.simd import fp16_from_float32
from threadloom.stages.config import Precision
from threadloom.stages.memory import UpdateShard
from threadloom.stages.memory.bits16 import Bits16Memory, Bits16Slot
from threadloom.stages.models import Geometry
from threadloom.stages.step import Gradient, Version
from threadloom.stages.step.bits16.optimizer import Bf16Update, Fp16Update, packed_matrices
from threadloom.stages.step.optimizers import Optimizer


class Bits16Compute:
    """Activations and GEMM operands in 16 bits, masters and sums in float32. Implements `Compute`."""

    def __init__(self, precision: Precision, geometry: Geometry, sequences: int) -> None:
        self.memory = Bits16Memory(precision, geometry, sequences)
        self._fp16 = precision is Precision.FP16
        self._geometry = geometry
        self._constants = Gpt2Constants(geometry.heads)
        self._sequences = sequences
        if not self._fp16:
            prepare_bf16()

    def pack_from_master(self, version: Version) -> None:
        """Round every matrix to 16 bits, and pack the bfloat16 ones."""
        for master, pair in packed_matrices(version.weights, version.packed):
            if self._fp16:
                fp16_from_float32(master.reshape(-1), pair.packed.reshape(-1))
            else:
                pack_rows(master, 0, pair)

    def embed(self, version: Version, slot: Bits16Slot) -> None:
        """Gather the embeddings from the packed token embedding."""
        wpe, context = version.weights.wpe, self._geometry.context
        embedding_forward(version.packed.wte, wpe, slot.ids, context, slot.activations.x)

    def forward(self, version: Version, slot: Bits16Slot) -> None:
        """Run all blocks in one compiled call."""
        blocks_forward(_weights(version), slot.activations, self._sequences, self._constants)

    def backward(
        self, version: Version, slot: Bits16Slot, scale: float, gradients: Weights, scratch: Scratch16,
        ticket: AccumulationTicket,
    ) -> float:  # fmt: skip
        """Run the backward pass of head and blocks."""
        weights, acts, constants = _weights(version), slot.activations, self._constants
        loss = head_backward(weights, acts, slot.targets, scale, gradients, scratch, constants, ticket)
        blocks_backward(weights, acts, gradients, scratch, self._sequences, constants, ticket)
        return float(loss)

    def input_gradient(self, scratch: Scratch16) -> Floats:
        """Return the gradient of the input embeddings."""
        return scratch.dx

    def loss(self, version: Version, slot: Bits16Slot, logits: Floats) -> float:
        """Run the head's forward pass; a backward pass must not follow."""
        return float(head_loss(_weights(version), slot.activations, slot.targets, self._constants, logits))

    def update_stage(
        self, gradient: Gradient, optimizer: Optimizer, shards: int
    ) -> Callable[[UpdateShard], UpdateShard]:
        """Return the stage that updates master and packed weights."""
        if self._fp16:
            return Fp16Update(self._geometry, gradient, optimizer)
        return Bf16Update(self._geometry, gradient, optimizer, shards)


def _weights(version: Version) -> Weights16:
    return Weights16(version.weights, version.packed)
