"""GELU and its gradient at every bfloat16 number, against float64.

The bounds allow the float32 arithmetic, a few thousandths of a rounding to bfloat16, and that rounding, 2**-8. So a
pass that is 2 % off fails by a factor of five.
"""

from typing import Any

import numpy as np
import pytest

from tests.kernels.bits16.formats import BF16, FLOAT, Shorts
from tests.kernels.bits16.test_layers import gelu_parts
from tests.kernels.comparison import within
from tests.kernels.machine_code import vector_bits
from tests.reference import Array
from tests.targets.observer import machine_code
from threadloom.kernels.bits16.gelu import gelu_backward, gelu_forward
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.compiling.target import TARGET
from threadloom.kernels.matmul import linear_gelu_bf16, prepare_bf16

EVERY = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def every_number() -> tuple[Shorts, Array]:
    """Return all bfloat16 numbers up to 1e12 as bits and as values; 0 in place of larger ones, whose cube overflows."""
    kept = np.where((EVERY & 0x7FFF) <= 0x5368, EVERY, np.uint16(0))
    return kept, BF16.numbers(kept)


def through_gelu(x: Shorts) -> Shorts:
    out = np.zeros_like(x)
    gelu_forward(x, out)
    return out


def through_product(x: Shorts) -> Shorts:
    """Return the GELU that the product itself applies: x times the identity, packed."""
    if JIT_ENABLED:
        prepare_bf16()
    inner = x.shape[1]
    identity = np.zeros((inner // 32, inner // 2, 32), np.uint32)
    for k in range(inner):
        identity[k // 32, k // 2, k % 32] = 0x3F80 << 16 * (k % 2)
    before, out = np.zeros_like(x), np.zeros_like(x)
    no_input, no_weight = np.zeros((x.shape[0], 0), np.uint16), np.zeros((inner // 32, 0, 32), np.uint32)
    linear_gelu_bf16(x, identity, no_input, no_weight, np.zeros(0, np.float32), before, out)
    normal = np.abs(BF16.numbers(x)) >= 2.0**-126
    np.testing.assert_array_equal(BF16.numbers(before)[normal], BF16.numbers(x)[normal])
    return out


@pytest.mark.parametrize("forward", [through_gelu, through_product], ids=["pass", "in a product"])
def test_forward(forward: Any) -> None:
    x, v = every_number()
    found = BF16.numbers(forward(x))
    s, y, _, error_s = gelu_parts(v)
    assert within(found, y, 1.01 * (np.abs(v) * error_s + 2 * FLOAT * np.abs(y)) + BF16.rounding(y))
    usual = (np.abs(v) > 2.0**-120) & (np.abs(y) > 2.0**-120) & (s > 2.0**-120)
    assert np.abs(found[usual] / y[usual] - 1.0).max() < 1.02 * 2.0**-8


def test_backward() -> None:
    x, v = every_number()
    d, again, nothing = np.full(x.shape, 0x3F80, np.uint16), np.zeros_like(x), np.zeros(0, np.float32)
    d_bias = np.zeros(x.shape[1], np.float32)
    kept = d.copy()
    gelu_backward(x, d, again, d_bias, False)
    gelu_backward(x, kept, again, nothing, False)
    np.testing.assert_array_equal(d, kept)
    np.testing.assert_array_equal(again, through_gelu(x))
    s, y, slope, error_s = gelu_parts(v)
    second = np.abs(y) * (1.0 - s) * slope
    error = error_s + (np.abs(v) * error_s + 2 * FLOAT * np.abs(y)) * (1.0 - s) * slope
    error += np.abs(y) * slope * np.minimum(error_s + FLOAT, (1.0 - s) * 2.0**24) + 8 * FLOAT * (s + second)
    expected = s + y * (1.0 - s) * slope
    assert within(BF16.numbers(d), expected, 1.01 * error + BF16.rounding(expected))
    assert np.abs(BF16.numbers(d) - expected).max() < 1.14 * 2.0**-8, "the derivative is at most 1.13"
    rough = (x.shape[0] + 2) * FLOAT * np.abs(expected).sum(axis=0)
    assert within(d_bias, expected.sum(axis=0), error.sum(axis=0) + 1.01 * rough)


def test_not_a_number_stays_one_and_infinity_is_kept() -> None:
    x = np.array([[0x7FC0, 0xFFC0, 0x7F81, 0x7F80, 0x3F80]], np.uint16)
    found = BF16.numbers(through_gelu(x))[0]
    assert np.isnan(found[:3]).all()
    assert found[3] == np.inf
    assert np.isfinite(found[4])


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")
def test_loops_have_vectors_of_full_width() -> None:
    """The instruction that rounds must not make LLVM choose narrower ones, as it does in loops of little arithmetic."""
    x, d_bias = np.zeros((1, 8), np.uint16), np.zeros(8, np.float32)
    gelu_forward(x, x.copy())
    gelu_backward(x, x.copy(), x.copy(), d_bias, False)
    for kernel in (gelu_forward, gelu_backward):
        compiled: Any = kernel
        types = next(types for types in compiled.signatures if str(types[0]).startswith("array(uint16,"))
        assert vector_bits(machine_code(compiled, types)) >= (256 if TARGET.get("avx2") else 128)
