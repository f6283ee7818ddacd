"""Forward and backward passes in float32."""

from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import AccumulationTicket, Floats
from threadloom.kernels.common import IGNORED_TARGET, NO_TERMS, LossTerms, prepare_dropout
from threadloom.kernels.float32 import prepare_lora
from threadloom.stages.config import NO_DROPOUT, DropoutConfig
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.memory import Float32Memory, MicroBatchSlot
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
from threadloom.stages.step.float32.optimizer import Float32Update
from threadloom.stages.step.optimizers import Optimizer


class Float32Compute:
    """All arithmetic in float32, without packed weights. Implements `Compute`."""

    def __init__(
        self, geometry: Geometry, sequences: int, *, borders: bool = False, dropout: DropoutConfig = NO_DROPOUT
    ) -> None:
        self.memory = Float32Memory(geometry, sequences, borders=borders)
        self._layout = layout_of(geometry)
        self._kernels = self._layout.kernels
        self._constants = self._layout.constants(geometry)._replace(dropout=block_rates(dropout))
        self._dropout = EmbeddingDropout(dropout.embedding)
        self._geometry = geometry
        self._sequences = sequences
        if geometry.lora:
            prepare_lora()
        if has_dropout(geometry, dropout):
            prepare_dropout(np.float32)

    def pack_from_master(self, version: Version, names: Container[str] | None = None) -> None:
        """Do nothing: GEMMs read the master."""

    def pack_matrix(self, packed: Any, name: str, layer: int | None, matrix: Floats) -> None:
        """Do nothing: GEMMs read the master."""

    def pack_rows(self, packed: Any, name: str, layer: int | None, first: int, rows: Floats) -> None:
        """Do nothing: GEMMs read the master."""

    def embed(self, version: Version, slot: MicroBatchSlot) -> None:
        """Gather the embeddings."""
        self._layout.embed(version.weights, slot.ids, self._geometry.context, slot.starts, slot.activations.x[0])
        self._dropout.drop(slot.activations.x[0], slot)

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks in one compiled call."""
        self._kernels.blocks_forward(version.weights, slot.activations, self._sequences, self._constants)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained."""
        weights, acts, constants = version.weights, slot.activations, self._constants
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
        """Run the head's forward pass."""
        return float(self._kernels.head_loss(version.weights, slot.activations, slot.targets, self._constants, logits))

    def logits_of_rows(self, version: Version, slot: MicroBatchSlot, rows: NDArray[np.intp], logits: Floats) -> None:
        """Write the logits (n, V) of n rows after `forward`, which must not be more than `memory.logits_shape` has."""
        acts = slot.activations
        x = acts.x[self._geometry.layers % len(acts.x)][rows]  # as in a micro-batch of these rows alone
        chosen = acts._replace(x=x[None], h=acts.h[: len(rows)])
        no_targets = np.full(len(rows), IGNORED_TARGET, np.int32)
        # The rows are one chunk, whose logits remain in the scratch of the loss.
        self._kernels.head_loss(version.weights, chosen, no_targets, self._constants, logits)

    def update_stage(self, gradient: Gradient, optimizer: Optimizer, shards: int) -> Float32Update:
        """Return the stage that updates the master."""
        return Float32Update(self._geometry, gradient, optimizer)
