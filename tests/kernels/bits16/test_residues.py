"""The output projection and the embedding of tokens that are sums of residues in 16 bits, against the reference."""

import numpy as np
import pytest

from tests.error_bounds import IN_BF16, IN_FP16, Storage, product_error
from tests.kernels.bits16.formats import BF16, FP16, Format
from tests.kernels.bits16.model import Model16
from tests.kernels.residues import VOCABULARIES, Vocabulary, check_head
from tests.kernels.support import Sizes, flat_ids, float32_numbers
from tests.reference import Ids
from tests.reference.residues import residue_matrix
from threadloom.kernels.bits16.gpt2_residues import head_backward, head_loss
from threadloom.kernels.bits16.residue_embedding import residue_embedding_forward
from threadloom.kernels.common import NO_BORDERS, NO_TERMS, AccumulationTicket, LossTerms, residues_of

pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before


@pytest.mark.parametrize(
    ("vocabulary", "chunk", "fmt", "storage"),
    [(VOCABULARIES[0], 4, BF16, IN_BF16), (VOCABULARIES[1], 99, BF16, IN_BF16), (VOCABULARIES[1], 4, FP16, IN_FP16)],
    ids=str,
)
def test_loss_and_gradients_equal_the_reference(
    vocabulary: Vocabulary, chunk: int, fmt: Format, storage: Storage
) -> None:
    sizes = Sizes(vocabulary.rows, context=5, layers=1, heads=2, channels=8, sequences=2, tokens=5)
    rng = np.random.default_rng(1)
    model = Model16(sizes, fmt, sizes.tensors(rng), chunk)
    rows = model.scratch.d_logits.shape[0] + vocabulary.softmax_rows
    scratch = model.scratch._replace(logits=model.floats(rows, vocabulary.rows))
    x = float32_numbers(rng, sizes.rows, sizes.channels)
    model.acts.x[...] = x

    def backward(targets: Ids, scale: float, terms: LossTerms, ticket: AccumulationTicket) -> float:
        constants = vocabulary.constants(sizes.heads, terms)
        return head_backward(
            model.weights, model.acts, flat_ids(targets), scale, model.grads, scratch, constants, ticket
        )

    def loss(targets: Ids) -> float:
        constants = vocabulary.constants(sizes.heads, NO_TERMS)
        return head_loss(model.weights, model.acts, flat_ids(targets), constants, scratch.logits)

    norm, factors = (model.tensors["lnf_weight"], model.tensors["lnf_bias"]), model.packed_tensors["wte"]
    check_head(
        x, norm, factors, vocabulary, storage, model.grads, model.scratch.dx, backward, loss, with_terms=chunk == 4
    )


@pytest.mark.parametrize("fmt", [BF16, FP16], ids=str)
def test_the_embedding_is_the_product(fmt: Format) -> None:
    vocabulary = Vocabulary(60, (5, 11), 7)
    sizes = Sizes(vocabulary.rows, context=4, layers=1, heads=2, channels=36, sequences=3, tokens=4)
    rng = np.random.default_rng(2)
    model, ids = Model16(sizes, fmt, sizes.tensors(rng)), rng.integers(0, vocabulary.tokens, 12)
    residue_embedding_forward(
        model.weights.packed.wte, model.weights.master.wpe, residues_of(*vocabulary), flat_ids(ids), 4, NO_BORDERS,
        model.acts.x,
    )  # fmt: skip
    rows, positions = residue_matrix(*vocabulary)[ids], np.tile(model.tensors["wpe"], (3, 1))
    factors = model.packed_tensors["wte"]
    error = np.abs(model.acts.x - (rows @ factors + positions))
    assert (error <= product_error(rows, factors, positions)).all()
