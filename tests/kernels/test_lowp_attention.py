"""Causal self-attention on 16-bit numbers, against float64 on the same rounded inputs."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from kernels.lowp_attention import (
    AttentionScratch,
    attention_backward_low,
    attention_forward_low,
    attention_scratch_shapes,
)
from tests import reference
from tests.kernels.lowp_support import Pages, numbers, random_bits
from tests.kernels.support import distance, random_shapes

ROUNDING = 2.0**-9
"""Largest relative error of one rounding to bfloat16; its root mean square is about half of it.

An output is a sum of products of once-rounded probabilities, rounded once itself: its relative L2 distance is at most
2 * ROUNDING, and usually 0.6 of one. The gradients have d_scores, differences of rounded numbers (the output that
backward reads is rounded), and a rounding of their own.
"""
FORWARD, BACKWARD = 2 * ROUNDING, 6 * ROUNDING


def scratch_of(pages: Pages, context: int, size: int) -> AttentionScratch:
    shapes = attention_scratch_shapes(context, size)
    return AttentionScratch(**{name: pages.empty(shape, dtype) for name, (shape, dtype) in shapes.items()})


def check(sequences: int, heads: int, size: int, tokens: int, spare: int = 0, at_end: bool = True) -> None:
    """Hold forward and backward against the reference; `spare`: how much longer the context is than the sequence."""
    rng = np.random.default_rng([sequences, heads, size, tokens])
    pages = Pages(at_end)
    rows, channels = sequences * tokens, heads * size
    qkv = pages.copy(random_bits(rng, rows, 3 * channels))
    out = pages.empty((rows, channels), np.uint16)
    lse = pages.empty((sequences, heads, tokens), np.float32)
    attention_forward_low(qkv, sequences, heads, out, lse, scratch_of(pages, tokens + spare, size))
    exact = numbers(qkv).reshape(sequences, tokens, 3 * channels)
    expected, expected_lse = reference.attention_forward(exact, heads)
    assert distance(numbers(out), expected) <= FORWARD
    assert np.abs(lse - expected_lse).max() <= 1e-5 * max(1.0, np.abs(expected_lse).max())

    d_out = pages.copy(random_bits(rng, rows, channels))
    d_qkv = pages.empty((rows, 3 * channels), np.uint16)
    scratch = scratch_of(pages, tokens + spare, size)
    attention_backward_low(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)
    d_exact = numbers(d_out).reshape(sequences, tokens, channels)
    expected_d = reference.attention_backward(d_exact, exact, heads).reshape(rows, 3 * channels)
    found_d = numbers(d_qkv)
    assert distance(found_d, expected_d) <= BACKWARD
    if tokens >= 4:  # a token that sees itself only has no gradient by its query and key: they have no size to compare
        for part in range(3):
            columns = slice(part * channels, (part + 1) * channels)
            assert distance(found_d[:, columns], expected_d[:, columns]) <= BACKWARD, "qkv"[part]


@random_shapes
@example(sequences=1, heads=1, size=1, tokens=1, spare=0)
@given(
    sequences=st.integers(1, 3),
    heads=st.integers(1, 3),
    size=st.sampled_from([1, 5, 7, 16, 32, 48, 64, 80]),
    tokens=st.integers(1, 90),
    spare=st.integers(0, 3),
)
def test_random_shapes(sequences: int, heads: int, size: int, tokens: int, spare: int) -> None:
    check(sequences, heads, size, tokens, spare)
