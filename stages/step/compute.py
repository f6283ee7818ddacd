"""The protocol of a number format's arithmetic, and the weights that it reads.

The stages decide when something is computed and from which version of the weights; a `Compute` performs the arithmetic.
`stages.step.float32` and `stages.step.bits16` implement it; `stages.training.compute_for` chooses between them.
"""

from collections.abc import Callable, Container
from typing import Any, Protocol

from threadloom.kernels import AccumulationTicket, Floats, single_writer
from threadloom.kernels.common import NO_TERMS, LossTerms, model_parts
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.memory import MicroBatchSlot, PrecisionMemory, UpdateShard
from threadloom.stages.models import Geometry
from threadloom.stages.step.optimizers import Optimizer
from threadloom.stages.step.reducer import Gradient


class Version(Protocol):
    """One version of the weights: a bank, or a model opened for reading."""

    @property
    def weights(self) -> ModelWeights:
        """The float32 master."""

    @property
    def packed(self) -> Any:
        """The packed weights, written by `Compute.pack_from_master` and by updates; None if GEMMs read the master."""


class Compute(Protocol):
    """Arithmetic of one number format, for micro-batches of one size. Stateless: any thread may call it."""

    @property
    def memory(self) -> PrecisionMemory:
        """Sizes and allocation of the arrays that the methods take."""

    def pack_from_master(self, version: Version, names: Container[str] | None = None) -> None:
        """Compute the packed weights from the master: for weights that do not come from an update of this run.

        `names` are the tensors to pack, by default all; those that other threads read meanwhile must be left out.
        """

    def pack_matrix(self, packed: Any, name: str, layer: int | None, matrix: Floats) -> None:
        """Write the packed weights of one matrix; `layer` is None for a tensor that is not stacked."""

    def pack_rows(self, packed: Any, name: str, layer: int | None, first: int, rows: Floats) -> None:
        """Write the packed weights of rows of one matrix, from row `first` on, if it has any.

        `first` is a multiple of 32, and so is the number of rows unless they are the last ones.
        """

    def embed(self, version: Version, slot: Any) -> None:
        """Write the input embeddings to the start of the slot's residual stream."""

    def forward(self, version: Version, slot: Any) -> None:
        """Run all transformer blocks and fill the slot's activations."""

    def backward(
        self,
        version: Version,
        slot: Any,
        scale: float,
        gradients: ModelWeights,
        scratch: Any,
        ticket: AccumulationTicket,
        terms: LossTerms = NO_TERMS,
    ) -> float:
        """Return the sum of the token losses, and write the gradient of that sum, with its `terms`, times `scale`.

        The gradient is written to `gradients`, or added in the order of `ticket`. The gradient of the input embeddings
        is not scattered: it stays in `input_gradient(scratch)`, one row per token.
        """

    def input_gradient(self, scratch: Any) -> Floats:
        """Return the gradient of the input embeddings that `backward` left in `scratch`, (R, C)."""

    def loss(self, version: Version, slot: Any, logits: Floats) -> float:
        """Return the sum of the token losses after `forward`; `logits` is scratch of `memory.logits_shape`."""

    def update_stage(
        self, gradient: Gradient, optimizer: Optimizer, shards: int
    ) -> Callable[[UpdateShard], UpdateShard]:
        """Return the stage that applies the optimizer to one of `shards` shards and keeps packed weights up to date."""


def backward_with_embeddings(
    compute: Compute, geometry: Geometry, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights,
    scratch: Any, accumulate: bool = False,
) -> float:  # fmt: skip
    """Run the whole backward pass, input embeddings included, for the only writer of `gradients`."""
    loss = compute.backward(version, slot, scale, gradients, scratch, single_writer(accumulate=accumulate))
    dx = compute.input_gradient(scratch)
    layout_of(geometry).scatter_input_gradient(
        slot.ids, dx, geometry.context, slot.starts, gradients, accumulate=accumulate
    )
    return loss


def needs_blocks(geometry: Geometry, gradients: ModelWeights) -> bool:
    """Return True if a gradient depends on the backward pass of the blocks: that of a tensor below the head."""
    of_head = layout_of(geometry).of_head
    return any(gradient.size > 0 for name, gradient in gradients._asdict().items() if name not in of_head)


def skip_blocks(geometry: Geometry, ticket: AccumulationTicket) -> None:
    """Mark the parts of the blocks as done after `head_backward`: they write no gradient."""
    ticket.done_count[0] = ticket.base + model_parts(geometry.projection_rows, geometry.layers)
