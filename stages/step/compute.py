"""What one precision computes with: its memory for a micro-batch, its kernels, its way to make new weights.

The stages know when something is computed and with which version; a `Compute` knows how. There is one in float32 here,
and one in 16 bits in `stages.step.bits16.compute`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from threadloom import kernels
from threadloom.kernels import AccumulationTicket, Floats, Scratch, Weights, single_writer
from threadloom.stages.config import Precision
from threadloom.stages.memory import Float32Slot, Slot, UpdateShard, allocate_scratch, logits_rows
from threadloom.stages.models import Geometry, Shape
from threadloom.stages.step.optimizer import ApplyUpdate, Moments
from threadloom.stages.step.reducer import Gradient


class Version(Protocol):
    """One version of the weights: a bank, or a model that was opened for reading."""

    @property
    def weights(self) -> Weights:
        """The float32 master."""

    @property
    def packed(self) -> Any:
        """The packed weights, filled by `pack_from_master` and by the update; None if products read the master."""


class Compute(Protocol):
    """The arithmetic of one precision, for micro-batches of one size. It has no state: any thread may call it."""

    def allocate_slot(self) -> Slot:
        """Allocate the arrays of one micro-batch in flight."""

    def allocate_scratch(self) -> Any:
        """Allocate what the backward pass of one lane needs: a named tuple of arrays."""

    def allocate_packed(self) -> Any:
        """Allocate the derived forms of one bank's weights: a named tuple of arrays, or None."""

    def pack_from_master(self, version: Version) -> None:
        """Make the forms from the master: for weights that no update of this run has made."""

    def embed(self, version: Version, slot: Any) -> None:
        """Write token plus position embeddings to the start of the slot's residual stream."""

    def forward(self, version: Version, slot: Any) -> None:
        """Run all blocks: fill the slot's activations."""

    def backward(
        self,
        version: Version,
        slot: Any,
        scale: float,
        gradients: Weights,
        scratch: Any,
        accumulate: bool,
        ticket: AccumulationTicket,
    ) -> float:
        """Return the sum of the losses; write, or add in its `ticket`, the gradient of that sum times `scale`.

        That of the input embeddings is left as it reaches them, one row a token, in `input_gradient`.
        """

    def input_gradient(self, scratch: Any) -> Floats:
        """Return where `backward` left the gradient of the input embeddings, (R, C)."""

    def logits_shape(self) -> Shape:
        """Return the shape of the float32 scratch that `loss` needs."""

    def loss(self, version: Version, slot: Any, logits: Floats) -> float:
        """Return the sum of the losses after `forward`, without a gradient."""

    def make_update(self, gradient: Gradient, moments: Moments, shards: int) -> Callable[[UpdateShard], UpdateShard]:
        """Return the stage that applies AdamW to one of so many shards and keeps the forms in step."""


class Float32Compute:
    """Everything in float32; no derived forms. Implements `Compute`."""

    def __init__(self, geometry: Geometry, sequences: int) -> None:
        self._geometry = geometry
        self._sequences = sequences

    def allocate_slot(self) -> Float32Slot:
        """Allocate the arrays of one micro-batch."""
        return Float32Slot.allocate(self._geometry, self._sequences)

    def allocate_scratch(self) -> Scratch:
        """Allocate backward's scratch."""
        return allocate_scratch(self._geometry, self._sequences)

    def allocate_packed(self) -> None:
        """Products read the master itself."""
        return

    def pack_from_master(self, version: Version) -> None:
        """There is nothing to derive."""

    def embed(self, version: Version, slot: Float32Slot) -> None:
        """Gather the embeddings."""
        w = version.weights
        kernels.embedding_forward(w.wte, w.wpe, slot.ids, self._geometry.context, slot.activations.x[0])

    def forward(self, version: Version, slot: Float32Slot) -> None:
        """Run all blocks in one call, so that the worker stays in compiled code."""
        kernels.blocks_forward(version.weights, slot.activations, self._sequences, self._geometry.heads)

    def backward(
        self, version: Version, slot: Float32Slot, scale: float, gradients: Weights, scratch: Scratch, accumulate: bool,
        ticket: AccumulationTicket,
    ) -> float:  # fmt: skip
        """Run head and blocks backwards."""
        weights, acts, heads = version.weights, slot.activations, self._geometry.heads
        loss = kernels.head_backward(weights, acts.x[-1], slot.targets, scale, gradients, scratch, accumulate, ticket)
        kernels.blocks_backward(weights, acts, gradients, scratch, self._sequences, heads, accumulate, ticket)
        return float(loss)

    def input_gradient(self, scratch: Scratch) -> Floats:
        """Return where `backward` left the gradient of the input embeddings."""
        return scratch.dx

    def logits_shape(self) -> Shape:
        """Return (rows of a chunk, V)."""
        vocabulary = self._geometry.vocabulary
        return logits_rows(vocabulary, self._sequences * self._geometry.context), vocabulary

    def loss(self, version: Version, slot: Float32Slot, logits: Floats) -> float:
        """Run the head alone."""
        acts = slot.activations
        return float(kernels.head_loss(version.weights, acts.x[-1], slot.targets, acts.h, logits))

    def make_update(self, gradient: Gradient, moments: Moments, shards: int) -> ApplyUpdate:
        """Return the stage of AdamW alone."""
        return ApplyUpdate(self._geometry, gradient, moments)


def backward_with_embeddings(
    compute: Compute, geometry: Geometry, version: Version, slot: Slot, scale: float, gradients: Weights, scratch: Any,
    accumulate: bool = False,
) -> float:  # fmt: skip
    """Run the whole backward pass, embeddings included, for a caller who is alone with `gradients`."""
    loss = compute.backward(version, slot, scale, gradients, scratch, accumulate, single_writer())
    dx = compute.input_gradient(scratch)
    kernels.embedding_backward(slot.ids, dx, geometry.context, gradients.wte, gradients.wpe, accumulate)
    return loss


def compute_for(precision: Precision, geometry: Geometry, sequences: int) -> Compute:
    """Return what computes in a resolved precision; bf16x3 is float32 with another matrix product."""
    if precision in (Precision.FLOAT32, Precision.BF16X3):
        return Float32Compute(geometry, sequences)
    from threadloom.stages.step.bits16 import Bits16Compute  # its kernels are loaded by those who use them

    return Bits16Compute(precision, geometry, sequences)
