"""Forward and backward passes in float32."""

from threadloom import kernels
from threadloom.kernels import AccumulationTicket, Floats, Gpt2Constants, Scratch, Weights
from threadloom.stages.memory import Float32Memory, Float32Slot
from threadloom.stages.models import Geometry
from threadloom.stages.step import Gradient, Version
from threadloom.stages.step.float32.optimizer import Float32Update
from threadloom.stages.step.optimizers import Optimizer


class Float32Compute:
    """All arithmetic in float32, without packed weights. Implements `Compute`."""

    def __init__(self, geometry: Geometry, sequences: int) -> None:
        self.memory = Float32Memory(geometry, sequences)
        self._geometry = geometry
        self._constants = Gpt2Constants(geometry.heads)
        self._sequences = sequences

    def pack_from_master(self, version: Version) -> None:
        """Do nothing: GEMMs read the master."""

    def embed(self, version: Version, slot: Float32Slot) -> None:
        """Gather the embeddings."""
        w = version.weights
        kernels.embedding_forward(w.wte, w.wpe, slot.ids, self._geometry.context, slot.activations.x[0])

    def forward(self, version: Version, slot: Float32Slot) -> None:
        """Run all blocks in one compiled call."""
        kernels.blocks_forward(version.weights, slot.activations, self._sequences, self._constants)

    def backward(
        self, version: Version, slot: Float32Slot, scale: float, gradients: Weights, scratch: Scratch,
        ticket: AccumulationTicket,
    ) -> float:  # fmt: skip
        """Run the backward pass of head and blocks."""
        weights, acts, constants = version.weights, slot.activations, self._constants
        loss = kernels.head_backward(weights, acts, slot.targets, scale, gradients, scratch, constants, ticket)
        kernels.blocks_backward(weights, acts, gradients, scratch, self._sequences, constants, ticket)
        return float(loss)

    def input_gradient(self, scratch: Scratch) -> Floats:
        """Return the gradient of the input embeddings."""
        return scratch.dx

    def loss(self, version: Version, slot: Float32Slot, logits: Floats) -> float:
        """Run the head's forward pass."""
        weights, acts, targets = version.weights, slot.activations, slot.targets
        return float(kernels.head_loss(weights, acts, targets, self._constants, logits))

    def update_stage(self, gradient: Gradient, optimizer: Optimizer, shards: int) -> Float32Update:
        """Return the stage that updates the master."""
        return Float32Update(self._geometry, gradient, optimizer)
