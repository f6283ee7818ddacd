"""A vector times a matrix in packed bfloat16, for generation: the matrix is read once, in the order of its addresses.

`kernels.matmul.pack` describes the layout, which the GEMMs of a prompt read too, so that one copy serves both. A panel
of 32 outputs is one stream of memory; its sums stay in registers, and the vector in the first cache::

    panel, pair p:  | W[2p+1,0] W[2p,0] | W[2p+1,1] W[2p,1] | ...    even half: shifted up     * x[2p]
                                                                     odd half:  lower half 0   * x[2p+1]

The vector and the sums are float32. A panel's sums do not depend on the other panels.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, jit_kernel
from threadloom.kernels.matmul import PANEL, PackedBits, address_of, unpack_bf16
from threadloom.kernels.simd import (
    FLOAT32,
    FLOAT32_VECTOR,
    INT32_VECTOR,
    LANES,
    broadcast,
    float32_vector,
    from_bf16,
    fused_multiply_add,
    int64,
    load_float32,
    pointer,
    stack_buffer,
    store_float32,
    upcast_bf16,
    upcast_even,
    upcast_odd,
)

_VECTORS = PANEL // LANES
_PAIR_BYTES = 4 * PANEL
_LOW = np.uint32(0xFFFF)
_ZERO = np.float32(0.0)
_sums_space = stack_buffer(4 * PANEL)


@jit_kernel
def add_packed(x: Floats, weight: PackedBits, out: Floats) -> None:
    """Add ``x @ W`` to `out`: x (I,), `weight` the packed W (I, O), out (O,)."""
    _add_panels(x, weight, out)


@jit_kernel
def copy_packed_column(weight: PackedBits, number: int, target: Floats) -> None:
    """Write column `number` of the packed W (I, O) to `target` (I,)."""
    panel, column = weight[number // PANEL], number % PANEL
    for i in range(target.shape[0]):
        word = panel[i // 2, column] >> np.uint32(16 * (i % 2))
        target[i] = from_bf16(np.uint16(word & _LOW))


def _add_panels(x: Floats, weight: PackedBits, out: Floats) -> None:
    """Add ``x @ W`` to `out`; replaced when it is compiled."""
    out += x @ upcast_bf16(unpack_bf16(weight, x.shape[0], out.shape[0]))


@overload(_add_panels, jit_options=OVERLOAD_OPTIONS)
def _add_panels_compiled(x: Any, weight: Any, out: Any) -> Any:
    def compiled(x: Any, weight: Any, out: Any) -> Any:
        inner, columns = x.shape[0], out.shape[0]
        whole, pairs, panel_bytes = columns // PANEL, inner // 2, weight.shape[1] * _PAIR_BYTES
        words, row, sums = address_of(weight), address_of(x), address_of(out)
        for panel in range(whole):
            _add_panel(words + panel * panel_bytes, row, pairs, sums + panel * _PAIR_BYTES)
        if whole * PANEL < columns:
            space = _sums_space()
            for c in range(PANEL):
                store_float32(space, c, _ZERO)
            _add_panel(words + whole * panel_bytes, row, pairs, space)
            for c in range(columns - whole * PANEL):
                out[whole * PANEL + c] += load_float32(space, c)
        if inner % 2:
            for j in range(columns):
                out[j] += x[inner - 1] * from_bf16(np.uint16(weight[j // PANEL, pairs, j % PANEL] & _LOW))

    return compiled


@intrinsic
def _add_panel(typing_context: Any, words: Any, x: Any, pairs: Any, out: Any) -> Any:
    """Add the products of one panel's first `pairs` pairs of rows to 32 sums; all but `pairs` are addresses.

    Even and odd rows have sums of their own, so that the multiply-adds wait for each other half as long.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, x, pairs, out = arguments
        places = [int64(4 * LANES * v) for v in range(_VECTORS)]
        zero = float32_vector(0.0)
        even, odd = ([cgutils.alloca_once_value(builder, zero) for _ in places] for _ in range(2))
        with cgutils.for_range(builder, pairs) as loop:
            two = builder.add(x, builder.mul(loop.index, int64(8)))
            elements = [builder.load(pointer(builder, FLOAT32, two, int64(4 * half)), align=4) for half in range(2)]
            factors = [broadcast(builder, element, FLOAT32_VECTOR) for element in elements]
            line = builder.add(words, builder.mul(loop.index, int64(_PAIR_BYTES)))
            for place, low, high in zip(places, even, odd, strict=True):
                pair = builder.load(pointer(builder, INT32_VECTOR, line, place), align=4)
                for half, factor, total in ((upcast_even, factors[0], low), (upcast_odd, factors[1], high)):
                    product = fused_multiply_add(builder, half(builder, pair), factor, builder.load(total))
                    builder.store(product, total)
        for place, low, high in zip(places, even, odd, strict=True):
            target = pointer(builder, FLOAT32_VECTOR, out, place)
            total = builder.fadd(builder.load(low), builder.load(high))
            builder.store(builder.fadd(builder.load(target, align=4), total), target, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), codegen
