"""A whole model computed by the kernels as the stages do, and compared with the reference."""

from dataclasses import dataclass, field

import numpy as np

from tests import reference
from tests.kernels.comparison import assert_close
from tests.kernels.support import (
    BACKWARD,
    FORWARD,
    Guarded,
    Sizes,
    empty_weights,
    flat_ids,
    make_activations,
    make_scratch,
    make_weights,
)
from tests.reference import Ids, Tensors
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.common.embedding import embedding_backward
from threadloom.kernels.common.tensors import Weights
from threadloom.kernels.float32.embedding import embedding_forward
from threadloom.kernels.float32.gpt2 import blocks_backward, blocks_forward, head_backward, head_loss


@dataclass
class Model:
    """Weights, gradients, activations and scratch for micro-batches of one size."""

    sizes: Sizes
    tensors: Tensors
    logits_rows: int = 3
    memory: Guarded = field(default_factory=Guarded)

    def __post_init__(self) -> None:
        self.weights: Weights = make_weights(self.tensors, self.memory)
        self.grads: Weights = empty_weights(self.sizes, self.memory)
        self.acts = make_activations(self.sizes, self.memory)
        self.scratch = make_scratch(self.sizes, self.memory, self.logits_rows)

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        embedding_forward(self.weights.wte, self.weights.wpe, flat_ids(ids), self.sizes.tokens, self.acts.x[0])
        blocks_forward(self.weights, self.acts, self.sizes.sequences, self.sizes.heads)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses, without gradients."""
        return head_loss(self.weights, self.acts, flat_ids(targets), self.scratch.logits)

    def backward(self, ids: Ids, targets: Ids, scale: float, accumulate: bool) -> float:
        """Return the sum of the losses; write or add all gradients."""
        s, w, a, g, scratch = self.sizes, self.weights, self.acts, self.grads, self.scratch
        loss = head_backward(w, a, flat_ids(targets), scale, g, scratch, accumulate, single_writer())
        blocks_backward(w, a, g, scratch, s.sequences, s.heads, accumulate, single_writer())
        embedding_backward(flat_ids(ids), scratch.dx, s.tokens, g.wte, g.wpe, accumulate)
        return loss

    def check_gradients(self, expected: Tensors, tolerance: float = BACKWARD) -> None:
        """Compare every gradient with the reference's."""
        for name in Weights._fields:
            assert_close(getattr(self.grads, name), expected[name], tolerance, name)
        self.memory.check()


def check_model(sizes: Sizes, seed: int = 0, logits_rows: int = 3) -> None:
    """Compare activations, loss and every gradient of one micro-batch with the reference."""
    rng = np.random.default_rng(seed)
    model = Model(sizes, sizes.tensors(rng), logits_rows)
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    scale = 1.0 / sizes.rows
    expected_loss, expected = reference.loss_and_gradients(model.tensors, ids, targets, sizes.heads, scale)
    record = reference.forward(model.tensors, ids, sizes.heads)

    model.forward(ids)
    assert_close(model.acts.x[sizes.layers], record.x_final, FORWARD, "x_final")
    assert abs(model.loss(targets) / expected_loss - 1.0) < FORWARD
    assert abs(model.backward(ids, targets, scale, accumulate=False) / expected_loss - 1.0) < FORWARD
    model.check_gradients(expected)
