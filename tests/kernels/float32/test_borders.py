"""Documents packed into sequences: loss and every gradient are the sums of those of the documents alone."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest

from tests.error_bounds import llama_tensors, model_tensors, with_bounds
from tests.kernels.comparison import assert_distance
from tests.kernels.llama_model import LlamaFloat32
from tests.kernels.llama_support import LlamaCase
from tests.kernels.model import Model
from tests.kernels.support import Sizes, flat_ids
from tests.kernels.test_documents import documents_of, starts_of
from tests.reference import Ids, LlamaSizes, Tensors
from tests.rounding_marks import total
from threadloom.kernels.common import embedding_backward
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.float32.embedding import embedding_forward

LENGTHS = ((3, 1, 7), (11,), (6, 5))
TOKENS = 11


def of_documents(weights: Tensors, ids: Ids, targets: Ids, alone: Callable[[Ids, Ids], Tensors]) -> Tensors:
    """Return the sums of loss and gradients of the documents, each computed alone."""
    flat, wanted = ids.reshape(-1), targets.reshape(-1)
    parts = [alone(flat[rows][None], wanted[rows][None]) for rows in documents_of(LENGTHS)]
    return {name: reduce(total, (part[name] for part in parts)) for name in ("loss", *weights)}


class Packed:
    """A model on a micro-batch of packed documents."""

    def __init__(self, model: Any, *, positions: bool) -> None:
        self.model, self.positions, self.starts = model, positions, starts_of(LENGTHS)
        model.acts = model.acts._replace(starts=self.starts)

    def run(self, ids: Ids, targets: Ids, scale: float) -> float:
        """Return the sum of the losses; write all gradients."""
        m, sizes, ticket = self.model, self.model.sizes, single_writer(accumulate=False)
        if self.positions:
            embedding_forward(m.weights.wte, m.weights.wpe, flat_ids(ids), TOKENS, self.starts, m.acts.x[0])
            m.kernels.blocks_forward(m.weights, m.acts, sizes.sequences, sizes.constants)
        else:
            m.forward(ids)
        loss: float = m.kernels.head_backward(
            m.weights, m.acts, flat_ids(targets), scale, m.grads, m.scratch, sizes.constants, ticket
        )
        m.kernels.blocks_backward(m.weights, m.acts, m.grads, m.scratch, sizes.sequences, sizes.constants, ticket)
        if self.positions:
            embedding_backward(flat_ids(ids), m.scratch.dx, TOKENS, self.starts, m.grads.wte, m.grads.wpe, False)
        else:
            m.scatter(ids, False)
        return loss


def gpt2() -> tuple[Packed, Callable[[Ids, Ids], Tensors]]:
    sizes = Sizes(23, TOKENS + 2, layers=2, heads=2, channels=18, sequences=len(LENGTHS), tokens=TOKENS)
    tensors = sizes.tensors(np.random.default_rng(0))
    scale = 1 / sizes.rows
    return Packed(Model(sizes, tensors), positions=True), lambda i, t: model_tensors(tensors, i, t, sizes.heads, scale)


def llama() -> tuple[Packed, Callable[[Ids, Ids], Tensors]]:
    sizes = LlamaSizes(
        vocabulary=23, layers=2, channels=18, heads=4, kv_heads=2, head_size=6, mlp_width=13, qk_norm=True
    )
    tensors = sizes.random_tensors(np.random.default_rng(0))
    case = LlamaCase(sizes, len(LENGTHS), TOKENS, TOKENS + 2)
    scale = 1 / case.rows
    return Packed(LlamaFloat32(case, tensors), positions=False), lambda i, t: llama_tensors(tensors, i, t, sizes, scale)


@pytest.mark.parametrize("architecture", [gpt2, llama])
def test_packed_documents_equal_the_reference_of_each_alone(
    architecture: Callable[[], tuple[Packed, Callable[[Ids, Ids], Tensors]]],
) -> None:
    packed, alone = architecture()
    rng = np.random.default_rng(1)
    ids, targets = packed.model.sizes.ids(rng), packed.model.sizes.targets(rng)
    expected, bounds = with_bounds(lambda: of_documents(packed.model.tensors, ids, targets, alone))
    loss = packed.run(ids, targets, 1 / ids.size)
    assert_distance(abs(loss / float(expected.pop("loss")) - 1.0), bounds["loss"], "loss")
    packed.model.check_gradients(expected, bounds)


@pytest.mark.parametrize("architecture", [gpt2, llama])
def test_a_document_does_not_depend_on_its_neighbours(
    architecture: Callable[[], tuple[Packed, Callable[[Ids, Ids], Tensors]]],
) -> None:
    """Neither its activations nor the gradient of its embeddings, bit for bit."""
    packed, _ = architecture()
    rng, sizes = np.random.default_rng(2), packed.model.sizes
    ids, targets = sizes.ids(rng), sizes.targets(rng)
    for rows in documents_of(LENGTHS):
        found = []
        for _ in range(2):
            others, other_targets = sizes.ids(rng), sizes.targets(rng)
            others.reshape(-1)[rows], other_targets.reshape(-1)[rows] = ids.reshape(-1)[rows], targets.reshape(-1)[rows]
            packed.run(others, other_targets, 0.25)
            found.append((packed.model.acts.x[:, rows].copy(), packed.model.scratch.dx[rows].copy()))
        for first, second in zip(*found, strict=True):
            np.testing.assert_array_equal(first, second)


def test_sequences_of_one_document_have_the_bits_of_those_without_borders() -> None:
    """The same kernels compute both."""
    packed, _ = gpt2()
    model = packed.model
    model.acts = model.acts._replace(starts=np.zeros(len(LENGTHS) * TOKENS, np.int32))
    packed.starts = model.acts.starts
    rng = np.random.default_rng(3)
    ids, targets = model.sizes.ids(rng), model.sizes.targets(rng)
    loss = packed.run(ids, targets, 0.5)
    kept = {name: array.copy() for name, array in model.grads._asdict().items()}
    packed.starts = np.zeros(0, np.int32)
    model.acts = model.acts._replace(starts=packed.starts)
    assert packed.run(ids, targets, 0.5) == loss
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(model.grads, name), array)
