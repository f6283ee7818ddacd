"""The embedding of bands of low rank, and the gradients of its factors, against float64."""

import numpy as np

from tests.error_bounds import gamma
from tests.kernels.banded import flat_factors
from tests.kernels.comparison import assert_within
from tests.kernels.support import Guarded, float32_numbers
from tests.reference.bands import factor_gradients, random_bands, whole_embedding
from threadloom.kernels.common import BandFactors, bands_of
from threadloom.kernels.float32 import derive_bands, fold_bands

SIZES, CHANNELS = [(5, 24), (31, 7), (70, 3)], 24


def test_the_embedding_and_the_gradients_of_its_factors() -> None:
    """Half of the tokens do not occur, and the scratch holds fewer rows than occur."""
    memory, rng = Guarded(), np.random.default_rng(2)
    bands = random_bands(SIZES, CHANNELS, rng)
    factors = BandFactors(*map(memory.copy, flat_factors(bands)))
    places = bands_of(SIZES, CHANNELS)
    embedding = memory.empty(106, CHANNELS)
    derive_bands(factors, places, embedding)
    sizes = whole_embedding([(abs(rows), None if basis is None else abs(basis)) for rows, basis in bands])
    assert_within(embedding, whole_embedding(bands), gamma(CHANNELS) * sizes, "embedding")

    d_embedding = float32_numbers(rng, 106, CHANNELS)
    d_embedding[rng.permutation(106)[:53]] = 0.0
    before = [float32_numbers(rng, array.size) for array in factors]
    grads = BandFactors(*map(memory.copy, before))
    fold_bands(memory.copy(d_embedding), factors, places, grads, memory.empty(3, 8, CHANNELS))
    expected = factor_gradients(d_embedding, bands)
    positive = [(abs(rows), None if basis is None else abs(basis)) for rows, basis in bands]
    for found, start, change, size in zip(
        grads, before, expected, factor_gradients(abs(d_embedding), positive), strict=True
    ):
        assert_within(found, start + change, gamma(106 + CHANNELS) * (abs(start) + size))
    memory.check()
