"""The head of a model whose tokens are sums of residues, held against float64 in every number format."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.error_bounds import Storage, with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import with_ignored
from tests.reference import Array, Ids, Tensors
from tests.reference.residues import residue_head, residue_matrix
from threadloom.kernels.common import (
    NO_TERMS,
    AccumulationTicket,
    LossTerms,
    ResidueConstants,
    Weights,
    residue_softmax_rows,
    residues_of,
    single_writer,
)
from threadloom.kernels.common.tensors import NO_LORA


class Vocabulary(NamedTuple):
    """A vocabulary whose first tokens have rows of their own, and the others one for each residue."""

    tokens: int
    moduli: tuple[int, ...]
    own: int

    @property
    def rows(self) -> int:
        """Rows of the factors."""
        return self.own + sum(self.moduli)

    @property
    def softmax_rows(self) -> int:
        """Rows of the logits that are scratch of the softmax."""
        return residue_softmax_rows(residues_of(*self), self.rows)

    def constants(self, heads: int, terms: LossTerms) -> ResidueConstants:
        """Return the constants of a model."""
        return ResidueConstants(heads, NO_LORA, residues_of(*self), terms)


VOCABULARIES = [Vocabulary(4300, (13, 11), 4180), Vocabulary(97, (3, 5, 7), 0), Vocabulary(131, (131,), 1)]
"""Two moduli and rows of their own, which cross a part of the accumulation; three moduli; one, by which no row is
shared."""

SMOOTHING, Z_LOSS = 0.1, 1e-2
Backward = Callable[[Ids, float, LossTerms, AccumulationTicket], float]
"""Calls `head_backward` with targets, scale, terms of the loss and ticket."""


def check_head(
    x: Array, norm: tuple[Array, Array], factors: Array, vocabulary: Vocabulary, storage: Storage, grads: Weights,
    dx: Any, backward: Backward, loss_alone: Callable[[Ids], float], *, with_terms: bool,
) -> None:  # fmt: skip
    """Compare the losses, and the gradients of two micro-batches that are added, with the reference."""
    rng, scale = np.random.default_rng(9), 0.25
    targets = [with_ignored(rng.integers(0, vocabulary.tokens, len(x))) for _ in range(2)]
    matrix = residue_matrix(*vocabulary)
    weights = (SMOOTHING, Z_LOSS) if with_terms else (0.0, 0.0)
    terms = LossTerms(*weights, np.zeros(2)) if with_terms else NO_TERMS

    def results() -> Tensors:
        first, second = (residue_head(x, norm, factors, matrix, of, scale, weights) for of in targets)
        both = {name: first[name] + second[name] for name in ("factors", "lnf_weight", "lnf_bias")}
        return {**both, "dx": second["dx"], "loss": second["loss"]}

    expected, bounds = with_bounds(results, storage)
    backward(targets[0], scale, terms, single_writer(accumulate=False))
    loss = backward(targets[1], scale, terms, single_writer(accumulate=True))
    found = {"factors": grads.wte, "dx": dx, "loss": np.array(loss)}
    found |= {name: getattr(grads, name) for name in ("lnf_weight", "lnf_bias")}
    for name, tensor in expected.items():
        assert_close(found[name], tensor, bounds[name], name)
    assert_close(np.array(loss_alone(targets[1])), expected["loss"], bounds["loss"], "loss alone")
