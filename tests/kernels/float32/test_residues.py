"""The output projection and the embedding of tokens that are sums of residues, against the reference."""

import numpy as np
import pytest

from tests.error_bounds import IN_FLOAT32, product_error
from tests.kernels.model import Model
from tests.kernels.residues import VOCABULARIES, Vocabulary, check_head
from tests.kernels.support import Sizes, flat_ids, float32_numbers
from tests.reference import Ids
from tests.reference.residues import residue_matrix
from threadloom.kernels.common import (
    NO_BORDERS,
    NO_TERMS,
    AccumulationTicket,
    LossTerms,
    residue_embedding_backward,
    residues_of,
)
from threadloom.kernels.float32.gpt2_residues import head_backward, head_loss
from threadloom.kernels.float32.residue_embedding import residue_embedding_forward

pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)
@pytest.mark.parametrize("chunk", [4, 99])
def test_loss_and_gradients_equal_the_reference(vocabulary: Vocabulary, chunk: int) -> None:
    sizes = Sizes(vocabulary.rows, context=5, layers=1, heads=2, channels=8, sequences=2, tokens=5)
    rng = np.random.default_rng(1)
    model = Model(sizes, sizes.tensors(rng), chunk + vocabulary.softmax_rows)
    x = float32_numbers(rng, sizes.rows, sizes.channels)
    model.acts.x[sizes.layers] = x

    def backward(targets: Ids, scale: float, terms: LossTerms, ticket: AccumulationTicket) -> float:
        constants = vocabulary.constants(sizes.heads, terms)
        return head_backward(
            model.weights, model.acts, flat_ids(targets), scale, model.grads, model.scratch, constants, ticket
        )

    def loss(targets: Ids) -> float:
        constants = vocabulary.constants(sizes.heads, NO_TERMS)
        return head_loss(model.weights, model.acts, flat_ids(targets), constants, model.scratch.logits)

    norm, factors = (model.tensors["lnf_weight"], model.tensors["lnf_bias"]), model.tensors["wte"]
    check_head(
        x, norm, factors, vocabulary, IN_FLOAT32, model.grads, model.scratch.dx, backward, loss, with_terms=chunk == 4
    )
    model.memory.check()


@pytest.mark.parametrize("vocabulary", [Vocabulary(60, (5, 11), 7), Vocabulary(9, (2, 3, 5), 0)], ids=str)
def test_the_embedding_is_the_product_and_its_gradient_the_transposed_one(vocabulary: Vocabulary) -> None:
    rng, matrix, residues = np.random.default_rng(2), residue_matrix(*vocabulary), residues_of(*vocabulary)
    factors, wpe, dx = (float32_numbers(rng, *shape) for shape in ((vocabulary.rows, 6), (4, 6), (12, 6)))
    ids = rng.integers(0, vocabulary.tokens, 12)
    out, gradient = np.empty((12, 6), np.float32), factors.astype(np.float32)
    residue_embedding_forward(
        factors.astype(np.float32), wpe.astype(np.float32), residues, flat_ids(ids), 4, NO_BORDERS, out
    )
    rows, positions = matrix[ids], np.tile(wpe, (3, 1))
    assert (np.abs(out - (rows @ factors + positions)) <= product_error(rows, factors, positions)).all()
    residue_embedding_backward(flat_ids(ids), dx.astype(np.float32), residues, gradient)
    expected, bound = rows.T @ dx + factors, product_error(rows.T, dx, factors)
    assert (np.abs(gradient - expected) <= bound).all()
