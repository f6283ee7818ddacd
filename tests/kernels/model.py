"""A whole model computed by the kernels as the stages do, and compared with the reference."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tests import reference
from tests.error_bounds import model_bounds
from tests.kernels.comparison import assert_close, assert_distance
from tests.kernels.support import (
    Guarded,
    Sizes,
    clear_outside_blocks,
    empty_weights,
    flat_ids,
    make_activations,
    make_scratch,
    make_weights,
)
from tests.reference import Array, Ids, Tensors
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.embedding import embedding_backward
from threadloom.kernels.common.protocol import ModelKernels
from threadloom.kernels.common.tensors import Weights
from threadloom.kernels.float32 import gpt2
from threadloom.kernels.float32.embedding import embedding_forward
from threadloom.kernels.float32.gpt2 import blocks_forward, head_loss


class MicroBatchModel(ABC):
    """A model in any number format, with its memory for micro-batches of one size."""

    kernels: ClassVar[ModelKernels[Any, Any, Any, Any, Any]]
    sizes: Any  # of the model and of a micro-batch: `Sizes`, or that of another architecture
    weights: Any
    acts: Any
    scratch: Any
    grads: Any

    @abstractmethod
    def forward(self, ids: Ids) -> None:
        """Fill the activations."""

    @abstractmethod
    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses without gradients; the activations stay valid for `backward`."""

    def backward(self, ids: Ids, targets: Ids, scale: float, accumulate: bool) -> float:
        """Return the sum of the losses; write or add all gradients."""
        s, w, a, g, scratch = self.sizes, self.weights, self.acts, self.grads, self.scratch
        ticket = single_writer(accumulate=accumulate)
        loss = self.kernels.head_backward(w, a, flat_ids(targets), scale, g, scratch, s.constants, ticket)
        self.kernels.blocks_backward(w, a, g, scratch, s.sequences, s.constants, ticket)
        self.scatter(ids, accumulate)
        return loss

    def scatter(self, ids: Ids, accumulate: bool) -> None:
        """Write or add the gradients of the embeddings."""
        g = self.grads
        embedding_backward(flat_ids(ids), self.scratch.dx, self.sizes.tokens, NO_BORDERS, g.wte, g.wpe, accumulate)


def check_bits_after_another_batch(fresh: MicroBatchModel, used: MicroBatchModel, rng: np.random.Generator) -> None:
    """Compare losses and gradients of a batch with those of a model that has processed another batch before."""
    sizes = fresh.sizes
    ids, targets = sizes.ids(rng), sizes.ids(rng)
    used.forward(sizes.ids(rng))
    used.backward(sizes.ids(rng), sizes.ids(rng), 7.0, accumulate=False)
    losses = []
    for model in (fresh, used):
        model.forward(ids)
        losses.append((model.loss(targets), model.backward(ids, targets, 1.0, accumulate=False)))
    assert losses[0] == losses[1]
    for name, gradient in fresh.grads._asdict().items():
        np.testing.assert_array_equal(gradient, getattr(used.grads, name), name)


def check_frozen(
    model_with: Callable[[frozenset[str]], MicroBatchModel], names: set[str], rng: np.random.Generator
) -> None:
    """Compare the gradients of models in which some tensors are frozen with those of one in which all are trained.

    `model_with` returns a model without gradients of these tensors, of the same weights each time. One tensor after
    another is frozen, and all but one. The others' gradients and the input's keep their bits, over two micro-batches.
    """
    whole = model_with(frozenset())
    batches = [(whole.sizes.ids(rng), whole.sizes.ids(rng)) for _ in range(2)]

    def run(model: MicroBatchModel) -> tuple[list[float], dict[str, bytes]]:
        losses = []
        for number, (ids, targets) in enumerate(batches):
            model.forward(ids)
            losses.append(model.backward(ids, targets, 0.5, accumulate=number > 0))
        arrays = {name: array for name, array in model.grads._asdict().items() if array.size}
        return losses, {name: array.tobytes() for name, array in {**arrays, "dx": model.scratch.dx}.items()}

    losses, gradients = run(whole)
    assert names <= gradients.keys()
    for name in sorted(names):
        for frozen in (frozenset({name}), frozenset(names - {name})):
            found_losses, found = run(model_with(frozen))
            assert found_losses == losses, name
            assert names & found.keys() == names - frozen
            for other, bits in found.items():
                assert bits == gradients[other], (name, other)


@dataclass
class Model(MicroBatchModel):
    """Weights, gradients, activations and scratch for micro-batches of one size."""

    sizes: Sizes
    tensors: Tensors
    logits_rows: int = 3
    frozen: frozenset[str] = frozenset()
    kernels: ClassVar[ModelKernels[Any, Any, Any, Any, Any]] = gpt2
    memory: Guarded = field(default_factory=Guarded)

    def __post_init__(self) -> None:
        self.weights: Weights = make_weights(self.tensors, self.memory)
        self.grads: Weights = empty_weights(self.sizes, self.memory, self.frozen)
        clear_outside_blocks(self.grads, self.sizes.lora)
        self.acts = make_activations(self.sizes, self.memory)
        self.scratch = make_scratch(self.sizes, self.memory, self.logits_rows)

    def forward(self, ids: Ids) -> None:
        """Fill the activations."""
        embedding_forward(
            self.weights.wte, self.weights.wpe, flat_ids(ids), self.sizes.tokens, NO_BORDERS, self.acts.x[0]
        )
        blocks_forward(self.weights, self.acts, self.sizes.sequences, self.sizes.constants)

    def loss(self, targets: Ids) -> float:
        """Return the sum of the losses, without gradients."""
        return head_loss(self.weights, self.acts, flat_ids(targets), self.sizes.constants, self.scratch.logits)

    def check_gradients(self, expected: Tensors, bounds: Mapping[str, float]) -> None:
        """Compare every gradient with the reference's."""
        for name, tensor in expected.items():
            assert_close(getattr(self.grads, name), tensor, bounds[name], name)
        self.memory.check()


class Case(NamedTuple):
    """A micro-batch, the results of the reference, and how far the kernels' may be from them."""

    tensors: Tensors
    ids: Ids
    targets: Ids
    loss: float
    x_final: Array
    gradients: Tensors
    bounds: dict[str, float]


@lru_cache(maxsize=8)  # in chunks of every size
def make_case(sizes: Sizes, seed: int) -> Case:
    """Return a random micro-batch, whose loss is the mean of the tokens'."""
    rng = np.random.default_rng(seed)
    tensors, ids, targets = sizes.tensors(rng), sizes.ids(rng), sizes.targets(rng)
    scale = 1.0 / sizes.rows
    record = reference.forward(tensors, ids, sizes.heads, sizes.lora)
    loss = float(reference.cross_entropy_forward(record.logits, targets).sum())
    gradients, _ = reference.backward(tensors, record, targets, scale)
    bounds = model_bounds(tensors, ids, targets, sizes.heads, scale, lora=sizes.lora)
    return Case(tensors, ids, targets, loss, record.x_final, gradients, bounds)


def check_model(sizes: Sizes, seed: int = 0, logits_rows: int = 3) -> None:
    """Compare activations, loss and every gradient of one micro-batch with the reference."""
    case = make_case(sizes, seed)
    model = Model(sizes, case.tensors, logits_rows)
    model.forward(case.ids)
    assert_close(model.acts.x[sizes.layers], case.x_final, case.bounds["x_final"], "x_final")
    assert_distance(abs(model.loss(case.targets) / case.loss - 1.0), case.bounds["loss"], "loss alone")
    loss = model.backward(case.ids, case.targets, 1.0 / sizes.rows, accumulate=False)
    assert_distance(abs(loss / case.loss - 1.0), case.bounds["loss"], "loss")
    model.check_gradients(case.gradients, case.bounds)
