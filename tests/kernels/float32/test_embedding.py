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
from threadloom.kernels.common.embedding import embedding_backward
from threadloom.kernels.float32.embedding import embedding_forward

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
    embedding_forward(memory.copy(wte), memory.copy(wpe), flat_ids(ids), tokens, out)
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
    embedding_backward(flat_ids(ids), in_dx, tokens, out_wte, out_wpe, accumulate)

    def results() -> Tensors:
        d_wte, d_wpe = reference.embedding_backward(dx, ids, vocabulary, tokens + spare)
        return {"wte": total(before_wte, d_wte), "wpe": total(before_wpe, d_wpe) if accumulate else d_wpe}

    expected, bounds = with_bounds(results)
    assert_close(out_wte, expected["wte"], bounds["wte"], "wte")
    assert_close(out_wpe, expected["wpe"], bounds["wpe"], "wpe")
    if not accumulate:
        assert (out_wpe[tokens:] == 0.0).all()
    memory.check()
