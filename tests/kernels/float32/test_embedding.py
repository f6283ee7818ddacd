"""Embeddings: gather and scatter."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.kernels.comparison import assert_close
from tests.kernels.support import BACKWARD, FORWARD, Guarded, flat_ids, float32_numbers, random_shapes
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
    assert_close(out, reference.embedding_forward(wte, wpe, ids), FORWARD)
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
    d_wte, d_wpe = reference.embedding_backward(dx, ids, vocabulary, tokens + spare)
    before_wte, before_wpe = float32_numbers(rng, *d_wte.shape), float32_numbers(rng, *d_wpe.shape)
    out_wte = memory.copy(before_wte)
    out_wpe = memory.copy(before_wpe) if accumulate else memory.empty(*d_wpe.shape)
    in_dx = memory.copy(dx.reshape(-1, channels))
    embedding_backward(flat_ids(ids), in_dx, tokens, out_wte, out_wpe, accumulate)
    assert_close(out_wte, before_wte + d_wte, BACKWARD, "wte")
    assert_close(out_wpe, before_wpe + d_wpe if accumulate else d_wpe, BACKWARD, "wpe")
    if not accumulate:
        assert (out_wpe[tokens:] == 0.0).all()
    memory.check()
