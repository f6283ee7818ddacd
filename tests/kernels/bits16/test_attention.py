"""Causal self-attention on 16-bit numbers, against float64 on the same rounded inputs."""

from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from numpy.typing import DTypeLike, NDArray

from tests.error_bounds import IN_BF16, IN_FP16, Storage, attention_tensors, with_bounds
from tests.kernels.allocations import allocations
from tests.kernels.bits16.support import Pages, nearest, numbers, on_path, paths_here
from tests.kernels.comparison import assert_close, assert_nan_from
from tests.kernels.support import head_counts, random_shapes
from tests.reference import Array, Tensors
from threadloom.kernels.bits16.attention.layer import attention_backward, attention_forward
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.common.tensors import AttentionActivations, HeadCounts
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.simd.features import DotPath

Bits = NDArray[Any]


class Format(NamedTuple):
    """One 16-bit format."""

    kind: DTypeLike
    storage: Storage

    def bits(self, values: Array) -> Bits:
        """Return the numbers in this format."""
        if self.kind == np.uint16:
            return nearest(values.astype(np.float32))
        return values.astype(np.float16).view(np.int16)

    def numbers(self, bits: Bits) -> Array:
        """Return what bits stand for."""
        if self.kind == np.uint16:
            return numbers(bits)
        return np.ascontiguousarray(bits).view(np.float16).astype(np.float64)


BFLOAT16 = Format(np.uint16, IN_BF16)
FLOAT16 = Format(np.int16, IN_FP16)


def scratch_of(pages: Pages, context: int, size: int, heads: HeadCounts, fmt: Format) -> AttentionScratch:
    shapes = attention_scratch_shapes(context, size, heads, fmt.kind)
    return AttentionScratch(**{name: pages.empty(shape, dtype) for name, (shape, dtype) in shapes.items()})


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_scratch_of_one_format_is_less_of_that_for_both(fmt: Format) -> None:
    """Of the same types and dimensions, so that the kernels are compiled for one form of it."""
    heads = HeadCounts(4, 2)
    both, one = attention_scratch_shapes(90, 48, heads), attention_scratch_shapes(90, 48, heads, fmt.kind)
    assert list(one) == list(both) == list(AttentionScratch._fields)
    for name, (shape, dtype) in one.items():
        assert (shape, dtype) in {both[name], ((0,) * len(both[name][0]), both[name][1])}
    assert (one["upcast"] == both["upcast"]) == (fmt is FLOAT16)
    assert (one["columns"] == both["columns"]) == (fmt is BFLOAT16)
    without_groups = attention_scratch_shapes(90, 48, HeadCounts(4, 4))
    assert {name for name in both if both[name] != without_groups[name]} == {"group_sums"}


def check(
    sequences: int,
    heads: HeadCounts,
    size: int,
    tokens: int,
    spare: int = 0,
    at_end: bool = True,
    spread: float = 1.0,
    fmt: Format = BFLOAT16,
) -> tuple[Bits, Bits, Bits]:
    """Hold forward and backward against the reference; `spare`: how much longer the context is than the sequence."""
    rng = np.random.default_rng([sequences, *heads, size, tokens])
    pages = Pages(at_end)
    rows, channels, kv_width = sequences * tokens, heads.query * size, heads.key_value * size
    width = channels + 2 * kv_width
    qkv = pages.copy(fmt.bits(spread * rng.standard_normal((rows, width))))
    out = pages.empty((rows, channels), fmt.kind)
    lse = pages.empty((sequences, heads.query, tokens), np.float32)
    acts = AttentionActivations(qkv, out, lse)
    attention_forward(acts, sequences, heads, scratch_of(pages, tokens + spare, size, heads, fmt))
    exact = fmt.numbers(qkv).reshape(sequences, tokens, width)
    d_out = pages.copy(fmt.bits(rng.standard_normal((rows, channels))))
    d_qkv = pages.empty((rows, width), fmt.kind)
    scratch = scratch_of(pages, tokens + spare, size, heads, fmt)
    attention_backward(d_out, acts, sequences, heads, d_qkv, scratch)
    d_exact = fmt.numbers(d_out).reshape(sequences, tokens, channels)

    def results() -> Tensors:
        return attention_tensors(d_exact, exact, *heads)

    expected, bounds = with_bounds(results, fmt.storage)
    found = {"out": fmt.numbers(out), "lse": lse}
    parts = np.split(fmt.numbers(d_qkv), [channels, channels + kv_width], axis=1)
    found |= dict(zip(("d_q", "d_k", "d_v"), parts, strict=True))
    for name, tensor in found.items():
        assert_close(tensor, expected[name], bounds[name], name)
    return out, lse, d_qkv


sizes = st.sampled_from([1, 5, 7, 16, 32, 33, 48, 64, 80, 96, 128])


@random_shapes
@example(sequences=1, heads=HeadCounts(1, 1), size=1, tokens=1, spare=0, at_end=True)
@example(sequences=2, heads=HeadCounts(6, 2), size=16, tokens=1, spare=0, at_end=False)
@example(sequences=1, heads=HeadCounts(3, 1), size=256, tokens=67, spare=5, at_end=True)
@example(sequences=1, heads=HeadCounts(2, 1), size=202, tokens=33, spare=0, at_end=False)
@given(
    sequences=st.integers(1, 3),
    heads=head_counts(2),
    size=sizes,
    tokens=st.integers(1, 140),
    spare=st.integers(0, 40),
    at_end=st.booleans(),
)
def test_random_shapes(sequences: int, heads: HeadCounts, size: int, tokens: int, spare: int, at_end: bool) -> None:
    check(sequences, heads, size, tokens, spare, at_end)


@pytest.mark.parametrize("path", paths_here())
@pytest.mark.parametrize("heads", [HeadCounts(2, 2), HeadCounts(6, 2)], ids=["heads", "groups"])
@pytest.mark.parametrize(("size", "tokens"), [(32, 64), (48, 97), (80, 70), (5, 33), (64, 31)])
def test_every_path(path: DotPath, heads: HeadCounts, size: int, tokens: int) -> None:
    with on_path(path):
        check(2, heads, size, tokens, at_end=tokens % 2 == 0)


def test_a_long_sequence() -> None:
    check(1, HeadCounts(3, 1), 64, 300)


def test_sharp_scores() -> None:
    """Scores in the tens, as trained models have: softmax is nearly one-hot."""
    check(sequences=2, heads=HeadCounts(2, 2), size=8, tokens=30, spread=4.0)


@random_shapes
@given(sequences=st.integers(1, 2), heads=head_counts(2), size=sizes, tokens=st.integers(1, 90))
def test_float16(sequences: int, heads: HeadCounts, size: int, tokens: int) -> None:
    check(sequences, heads, size, tokens, fmt=FLOAT16)


def test_threads_get_the_same_bits() -> None:
    results: list[tuple[Bits, Bits, Bits]] = []
    threads = [Thread(target=lambda: results.append(check(2, HeadCounts(4, 2), 32, 75))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    for result in results:
        for found, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(found, first)


def forward(qkv: Bits, count: int) -> Array:
    rows, width = qkv.shape
    heads = HeadCounts(count, count)
    out, lse = np.zeros((rows, width // 3), np.uint16), np.empty((1, count, rows), np.float32)
    scratch = scratch_of(Pages(True), rows, width // 3 // count, heads, BFLOAT16)
    attention_forward(AttentionActivations(qkv, out, lse), 1, heads, scratch)
    return numbers(out)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns where the compiler is off
@pytest.mark.parametrize("position", [0, 5, 70, 99])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_nan_and_infinity_show_from_their_token_on(position: int, value: float) -> None:
    """Before it the output is what it was; from it on no output hides that something is wrong."""
    values = np.random.default_rng(0).standard_normal((100, 12), np.float32)
    qkv = nearest(values)
    clean = forward(qkv, 1)
    qkv[position, 4:8] = 0x7FC0 if value > 0 else 0xFFC0  # the key
    if value == np.inf:
        qkv[position, 4:8] = 0x7F80
    out = forward(qkv, 1)
    assert_nan_from(position, out, clean, every=value != np.inf)


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_nothing_is_allocated(fmt: Format) -> None:
    rng, pages = np.random.default_rng(7), Pages(True)
    heads = HeadCounts(4, 2)
    qkv, d_out = fmt.bits(rng.standard_normal((40, 64))), fmt.bits(rng.standard_normal((40, 32)))
    out, d_qkv, lse = np.empty_like(d_out), np.empty_like(qkv), np.empty((2, 4, 20), np.float32)
    acts, scratch = AttentionActivations(qkv, out, lse), scratch_of(pages, 20, 8, heads, fmt)
    assert allocations(attention_forward, acts, 2, heads, scratch) == 0
    assert allocations(attention_backward, d_out, acts, 2, heads, d_qkv, scratch) == 0
