"""The output projection of low rank by bands, against the reference."""

import numpy as np
import pytest

from tests.error_bounds import IN_FLOAT32
from tests.kernels.banded import BANDS, ONE_BAND, banded_constants, check_head, flat_factors
from tests.kernels.model import Model
from tests.kernels.support import Sizes, flat_ids, float32_numbers
from tests.reference import Ids
from tests.reference.bands import random_bands
from threadloom.kernels.common import AccumulationTicket, BandedWeights
from threadloom.kernels.float32.gpt2_banded import head_backward, head_loss


@pytest.mark.parametrize("bands", [BANDS, ONE_BAND])
@pytest.mark.parametrize("logits_rows", [4, 99])
def test_loss_and_gradients_equal_the_reference(bands: list[tuple[int, int]], logits_rows: int) -> None:
    sizes = Sizes(sum(v for v, _ in bands), context=5, layers=1, heads=2, channels=8, sequences=2, tokens=5)
    rng = np.random.default_rng(1)
    model = Model(sizes, sizes.tensors(rng), logits_rows)
    found = random_bands(bands, sizes.channels, rng)
    factors = [model.memory.copy(numbers) for numbers in flat_factors(found)]
    weights = BandedWeights(*model.weights, *factors)
    grads = BandedWeights(*model.grads, *(model.memory.empty(numbers.size) for numbers in factors))
    constants = banded_constants(bands, sizes.heads, sizes.channels)
    x = float32_numbers(rng, sizes.rows, sizes.channels)
    model.acts.x[sizes.layers] = x

    def backward(targets: Ids, scale: float, ticket: AccumulationTicket) -> float:
        return head_backward(weights, model.acts, flat_ids(targets), scale, grads, model.scratch, constants, ticket)

    def loss(targets: Ids) -> float:
        return head_loss(weights, model.acts, flat_ids(targets), constants, model.scratch.logits)

    norm = model.tensors["lnf_weight"], model.tensors["lnf_bias"]
    check_head(x, norm, found, IN_FLOAT32, grads, model.scratch.dx, backward, loss)
    model.memory.check()
