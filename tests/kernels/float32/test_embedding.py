"""Embeddings: gather and scatter."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import Guarded, flat_ids, float32_numbers, random_shapes
from tests.reference import Tensors
from tests.rounding_marks import total
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.embedding import embedding_backward, token_embedding_backward
from threadloom.kernels.float32.embedding import embedding_forward, token_embedding_forward

SHAPES = {
    "vocabulary": st.integers(1, 40),
    "channels": st.integers(1, 37),
    "sequences": st.integers(1, 4),
    "tokens": st.integers(1, 13),
    "spare": st.integers(0, 4),
}


@random_shapes
@given(**SHAPES)
def test_forward(vocabulary: int, channels: int, sequences: int, tokens: int, spare: int) -> None:
    rng = np.random.default_rng(0)
    memory = Guarded()
    wte, wpe = float32_numbers(rng, vocabulary, channels), float32_numbers(rng, tokens + spare, channels)
    ids = rng.integers(0, vocabulary, (sequences, tokens))
    out = memory.empty(sequences * tokens, channels)
    embedding_forward(memory.copy(wte), memory.copy(wpe), flat_ids(ids), tokens, NO_BORDERS, out)
    np.testing.assert_array_equal(out.reshape(*ids.shape, channels), (wte[ids] + wpe[:tokens]).astype(np.float32))
    memory.check()


@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@given(**SHAPES)
def test_backward(accumulate: bool, vocabulary: int, channels: int, sequences: int, tokens: int, spare: int) -> None:
    """The token embedding is always added to; the positions are when `accumulate`."""
    rng = np.random.default_rng(1)
    memory = Guarded()
    dx = float32_numbers(rng, sequences, tokens, channels)
    ids = rng.integers(0, vocabulary, (sequences, tokens))
    before_wte, before_wpe = (float32_numbers(rng, count, channels) for count in (vocabulary, tokens + spare))
    out_wte = memory.copy(before_wte)
    out_wpe = memory.copy(before_wpe) if accumulate else memory.empty(*before_wpe.shape)
    in_dx = memory.copy(dx.reshape(-1, channels))
    embedding_backward(flat_ids(ids), in_dx, tokens, NO_BORDERS, out_wte, out_wpe, accumulate)

    def results() -> Tensors:
        d_wte, d_wpe = reference.embedding_backward(dx, ids, vocabulary, tokens + spare)
        return {"wte": total(before_wte, d_wte), "wpe": total(before_wpe, d_wpe) if accumulate else d_wpe}

    expected, bounds = with_bounds(results)
    assert_close(out_wte, expected["wte"], bounds["wte"], "wte")
    assert_close(out_wpe, expected["wpe"], bounds["wpe"], "wpe")
    if not accumulate:
        assert (out_wpe[tokens:] == 0.0).all()
    memory.check()


@random_shapes
@given(**SHAPES)
def test_forward_without_positions(vocabulary: int, channels: int, sequences: int, tokens: int, spare: int) -> None:
    rng = np.random.default_rng(2)
    memory = Guarded()
    wte = float32_numbers(rng, vocabulary, channels)
    ids = flat_ids(rng.integers(0, vocabulary, (sequences, tokens)))
    out = memory.empty(ids.size, channels)
    token_embedding_forward(memory.copy(wte), ids, out)
    np.testing.assert_array_equal(out, wte[ids])
    memory.check()


@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@given(**SHAPES)
def test_backward_without_positions(
    accumulate: bool, vocabulary: int, channels: int, sequences: int, tokens: int, spare: int
) -> None:
    """To the bits the sums of the rows in their order; memory full of NaN is overwritten unless `accumulate`."""
    rng = np.random.default_rng(3)
    memory = Guarded()
    ids = flat_ids(rng.integers(0, vocabulary, (sequences, tokens)))
    dx = memory.copy(float32_numbers(rng, ids.size, channels))
    before = float32_numbers(rng, vocabulary, channels) if accumulate else np.zeros((vocabulary, channels))
    d_wte = memory.copy(before) if accumulate else memory.empty(vocabulary, channels)
    token_embedding_backward(ids, dx, d_wte, accumulate)
    expected = before.astype(np.float32)
    for token, row in zip(ids, dx, strict=True):
        expected[token] += row
    np.testing.assert_array_equal(d_wte, expected)
    memory.check()


def test_gradients_of_embeddings_that_are_not_trained() -> None:
    """They have no elements; the other embedding's gradient is the same."""
    rng = np.random.default_rng(4)
    ids = flat_ids(rng.integers(0, 5, (2, 3)))
    dx = np.asarray(float32_numbers(rng, 6, 7), np.float32)
    whole = np.zeros((5, 7), np.float32), np.zeros((4, 7), np.float32)
    embedding_backward(ids, dx, 3, NO_BORDERS, *whole, False)
    for frozen in range(2):
        found = [np.zeros((0, 0) if i == frozen else of.shape, np.float32) for i, of in enumerate(whole)]
        embedding_backward(ids, dx, 3, NO_BORDERS, found[0], found[1], False)
        np.testing.assert_array_equal(found[1 - frozen], whole[1 - frozen])
    token_embedding_backward(ids, dx, np.zeros((0, 0), np.float32), False)
