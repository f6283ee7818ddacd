"""Loops over elements are vectorised in every number format, on every processor: their loads and stores are inlined."""

from typing import Any

import numpy as np
import pytest

from tests.kernels.bits16.formats import EVERY_FORMAT, Format
from tests.kernels.machine_code import innermost_loops, vector_bits
from tests.targets.observer import machine_code
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.head_norm import HeadNormWeights, head_norm_backward, head_norm_forward
from threadloom.kernels.common.rotary import rotary_backward, rotary_forward
from threadloom.kernels.common.swiglu import swiglu_backward, swiglu_forward
from threadloom.kernels.common.tensors import HeadCounts
from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")


@pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
def test_loops_are_vectorised(fmt: Format) -> None:
    """By at least the 128 bits that every target has."""
    heads, size, angles = HeadCounts(1, 1), 2, np.ones((1, 1), np.float32)
    qkv, raw, out = (np.zeros((1, columns), fmt.kind) for columns in (6, 4, 3))
    weights = HeadNormWeights(np.ones(2, np.float32), np.ones(2, np.float32))
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (swiglu_forward, (qkv, out)),
        (swiglu_backward, (qkv, out, qkv.copy(), out.copy())),
        (rotary_forward, (qkv, heads, size, angles, angles, 1, NO_BORDERS)),
        (rotary_backward, (qkv, heads, size, angles, angles, 1, NO_BORDERS)),
        (head_norm_forward, (qkv, raw, weights, 1e-6, heads, size)),
        (head_norm_backward, (qkv, raw, weights, 1e-6, heads, size, weights, False)),
    ]
    for kernel, arguments in calls:
        kernel(*arguments)
        types = next(types for types in kernel.signatures if str(types[0]).startswith(f"array({fmt.kind.name},"))
        code = machine_code(kernel, types)
        assert vector_bits(code) >= 128, kernel
        assert not any("call" in line for loop in innermost_loops(code) for line in loop), kernel
