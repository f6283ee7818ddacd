"""The output projection of low rank by bands in bfloat16, against the reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.error_bounds import IN_BF16
from tests.kernels.banded import BANDS, ONE_BAND, banded_constants, check_head, flat_factors
from tests.kernels.bits16.formats import BF16, pack
from tests.kernels.bits16.model import Model16
from tests.kernels.support import Sizes, flat_ids, float32_numbers
from tests.reference import Array, Ids
from tests.reference.bands import Band, random_bands
from threadloom.kernels.bits16.gpt2_banded import BandedPackedWeights, BandedWeights16, head_backward, head_loss
from threadloom.kernels.common import AccumulationTicket, BandedWeights

pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before


@pytest.mark.parametrize("bands", [BANDS, ONE_BAND])
@pytest.mark.parametrize("logits_rows", [4, 99])
def test_loss_and_gradients_equal_the_reference(bands: list[tuple[int, int]], logits_rows: int) -> None:
    sizes = Sizes(sum(v for v, _ in bands), context=5, layers=1, heads=2, channels=8, sequences=2, tokens=5)
    rng = np.random.default_rng(1)
    model = Model16(sizes, BF16, sizes.tensors(rng), logits_rows)
    drawn = random_bands(bands, sizes.channels, rng)
    found = [(rounded(rows), None if basis is None else rounded(basis)) for rows, basis in drawn]
    factors = [model.pages.copy(numbers.astype(np.float32)) for numbers in flat_factors(drawn)]
    master = BandedWeights(*model.master, *factors)
    weights = BandedWeights16(master, packed_weights(model, found))
    grads = BandedWeights(*model.grads, *(model.floats(numbers.size) for numbers in factors))
    constants = banded_constants(bands, sizes.heads, sizes.channels)
    x = float32_numbers(rng, sizes.rows, sizes.channels)
    model.acts.x[...] = x

    def backward(targets: Ids, scale: float, ticket: AccumulationTicket) -> float:
        return head_backward(weights, model.acts, flat_ids(targets), scale, grads, model.scratch, constants, ticket)

    def loss(targets: Ids) -> float:
        return head_loss(weights, model.acts, flat_ids(targets), constants, model.scratch.logits)

    norm = model.tensors["lnf_weight"], model.tensors["lnf_bias"]
    check_head(x, norm, found, IN_BF16, grads, model.scratch.dx, backward, loss)


def rounded(numbers: Array) -> Array:
    """Return the nearest numbers in bfloat16."""
    return BF16.numbers(BF16.nearest(numbers))


def packed_weights(model: Model16, bands: Sequence[Band]) -> BandedPackedWeights:
    """Return the packed weights, those of the factors one after another, as the description says."""

    def words(matrices: list[Array]) -> NDArray[Any]:
        packed = [pack(np.ascontiguousarray(BF16.nearest(matrix))).ravel() for matrix in matrices]
        return model.pages.copy(np.concatenate([np.empty(0, np.uint32), *packed]))

    rows, bases = [rows for rows, _ in bands], [basis for _, basis in bands if basis is not None]
    of_factors = {
        "wte_rows": words(rows),
        "wte_rows_t": words([matrix.T for matrix in rows]),
        "wte_bases": words(bases),
        "wte_bases_t": words([matrix.T for matrix in bases]),
    }
    of_model = {name: array for name, array in model.weights.packed._asdict().items() if name != "wte_t"}
    return BandedPackedWeights(**of_model, **of_factors)
