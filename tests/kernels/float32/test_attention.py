"""Causal self-attention, in sequences shorter and longer than a tile of queries."""

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from tests.error_bounds import attention_tensors, with_bounds
from tests.kernels.comparison import assert_close, assert_nan_from
from tests.kernels.long_sequences import LENGTHS, ONE_HEAD, SIZE, check_last_queries, last_queries, long_inputs
from tests.kernels.support import Guarded, float32_numbers, head_counts, random_shapes
from tests.reference import Array, Tensors
from threadloom.kernels.common.tensors import ATTENTION_TILE, AttentionActivations, HeadCounts
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.float32.attention import attention_backward, attention_forward


def check(sequences: int, heads: HeadCounts, size: int, tokens: int, spare: int = 0, spread: float = 1.0) -> None:
    """Hold forward and backward against the reference; `spare`: how much longer the context is than the sequence."""
    rng = np.random.default_rng([sequences, *heads, size, tokens])
    memory = Guarded()
    rows, channels, kv_width = sequences * tokens, heads.query * size, heads.key_value * size
    width = channels + 2 * kv_width
    in_qkv = memory.copy(spread * float32_numbers(rng, rows, width))
    qkv = in_qkv.astype(np.float64).reshape(sequences, tokens, width)
    out, lse = memory.empty(rows, channels), memory.empty(sequences, heads.query, tokens)
    scores = memory.empty(2, ATTENTION_TILE, tokens + spare)
    acts = AttentionActivations(in_qkv, out, lse)
    attention_forward(acts, sequences, heads, scores[0])
    d_out = float32_numbers(rng, sequences, tokens, channels)

    def results() -> Tensors:
        return attention_tensors(d_out, qkv, *heads)

    expected, bounds = with_bounds(results)
    assert_close(out, expected["out"], bounds["out"], "out")
    assert_close(lse, expected["lse"], bounds["lse"], "lse")

    d_qkv = memory.empty(rows, width)
    scores[...] = np.nan
    in_d_out = memory.copy(d_out.reshape(rows, channels))
    attention_backward(in_d_out, acts, sequences, heads, d_qkv, scores)
    parts = np.split(d_qkv, [channels, channels + kv_width], axis=1)
    for part, name in zip(parts, ("d_q", "d_k", "d_v"), strict=True):
        assert_close(part, expected[name], bounds[name], name)
    memory.check()


@random_shapes
@example(sequences=1, heads=HeadCounts(1, 1), size=1, tokens=1, spare=0)
@given(
    sequences=st.integers(1, 3),
    heads=head_counts(4),
    size=st.integers(1, 19),
    tokens=st.integers(1, 40),
    spare=st.integers(0, 3),
)
def test_random_shapes(sequences: int, heads: HeadCounts, size: int, tokens: int, spare: int) -> None:
    check(sequences, heads, size, tokens, spare)


@pytest.mark.parametrize("heads", [HeadCounts(3, 3), HeadCounts(3, 1)], ids=["heads", "group"])
@pytest.mark.parametrize("tokens", [ATTENTION_TILE - 1, ATTENTION_TILE, ATTENTION_TILE + 1, 3 * ATTENTION_TILE - 5])
def test_around_the_tile(tokens: int, heads: HeadCounts) -> None:
    check(sequences=2, heads=heads, size=5, tokens=tokens, spare=7)


def test_sharp_scores() -> None:
    """Scores in the tens, as trained models have: softmax is nearly one-hot."""
    check(sequences=2, heads=HeadCounts(2, 2), size=8, tokens=30, spread=4.0)


@pytest.mark.skipif(not JIT_ENABLED, reason="long sequences need the compiler")
@pytest.mark.parametrize("tokens", LENGTHS)
def test_thousands_of_tokens(tokens: int) -> None:
    qkv, d_out = long_inputs(tokens)
    expected, bounds = with_bounds(lambda: last_queries(d_out, qkv))
    out, lse = np.empty((tokens, SIZE), np.float32), np.empty((1, 1, tokens), np.float32)
    scores = np.full((2, ATTENTION_TILE, tokens), np.nan, np.float32)
    acts = AttentionActivations(qkv.astype(np.float32), out, lse)
    attention_forward(acts, 1, ONE_HEAD, scores[0])
    d_qkv = np.empty((tokens, 3 * SIZE), np.float32)
    attention_backward(d_out.astype(np.float32), acts, 1, ONE_HEAD, d_qkv, scores)
    check_last_queries(out, lse[0, 0], d_qkv, expected, bounds)


def forward(qkv: Floats, heads: int) -> Array:
    rows, width = qkv.shape
    out, lse = np.full((rows, width // 3), np.nan, np.float32), np.empty((1, heads, rows), np.float32)
    scores = np.empty((ATTENTION_TILE, rows), np.float32)
    attention_forward(AttentionActivations(qkv, out, lse), 1, HeadCounts(heads, heads), scores)
    return out.astype(np.float64)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns where the compiler is off
@pytest.mark.parametrize("position", [0, 5, 70, 99])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_nan_and_infinity_show_from_their_token_on(position: int, value: float) -> None:
    """Before it the output is what it was; from it on no output hides that something is wrong."""
    qkv = np.random.default_rng(0).standard_normal((100, 12), np.float32)
    clean = forward(qkv, 1)
    qkv[position, 4:8] = value  # the key
    out = forward(qkv, 1)
    assert_nan_from(position, out, clean, every=value != np.inf)
