"""Variants of Numba's float32 GEMM, and which of them each kind of product uses; every variant gives the same bits.

Which variant is fastest depends on the processor: on Zen 5 the tile that reads A in place is, on Emerald Rapids a
taller tile with A packed and the next lines prefetched, on Zen 3 a low one likewise (docs/performance.md). All sum each
element along k in the same order, in the same depths, so the choice changes only the time: it is no part of a run's
trajectory, and a run may be resumed with another one.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum

from threadloom.kernels.compiling import ProcessSwitch, jit_kernel
from threadloom.kernels.matmul.operands import GemmArgs, Op
from threadloom.kernels.simd import HAS_AVX2, LANES


class GemmVariant(Enum):
    """How Numba's float32 GEMM multiplies. Tall tiles need the registers of AVX-512; elsewhere they are low ones."""

    IN_PLACE = "in-place"  # A read in place, unless it is transposed and many panels use it
    PACKED = "packed"  # A packed once a block
    PACKED_PREFETCH = "packed-prefetch"  # and the tile of the result and the next panel of B prefetched
    TALL = "tall"  # A packed, tiles of 14 rows
    TALL_PREFETCH = "tall-prefetch"


VARIANTS = tuple(GemmVariant)[: 5 if LANES == 16 else 3]
"""The variants that differ on this processor."""


class ProductKind(Enum):
    """Kind of a product, by which its variant is chosen."""

    FORWARD = "forward"  # x @ W
    INPUT_GRADIENT = "input gradient"  # dy @ W.T
    WEIGHT_GRADIENT = "weight gradient"  # x.T @ dy
    VOCABULARY = "vocabulary"  # any product with a wide result, as the logits


WIDE = 4096
"""Columns of a result from which a product is of the kind `VOCABULARY`."""
SMALL = 64
"""Columns, or terms of a sum, up to which a product is always computed in place, as those within attention are."""

IN_PLACE = 0
PACKED_PREFETCH, TALL, TALL_PREFETCH = 2, 3, 4  # indices of the members, as compiled code reads them

DEFAULT_VARIANT = GemmVariant.PACKED_PREFETCH if HAS_AVX2 and LANES == 8 else GemmVariant.IN_PLACE
"""The variant of every kind that was not measured: low tiles of AVX2 do too little per row of A to read it in place."""
_members, _default = tuple(GemmVariant), DEFAULT_VARIANT
_forward = ProcessSwitch("threadloom_variant_forward", _members, _default)
_input = ProcessSwitch("threadloom_variant_input_gradient", _members, _default)
_weight = ProcessSwitch("threadloom_variant_weight_gradient", _members, _default)
_vocabulary = ProcessSwitch("threadloom_variant_vocabulary", _members, _default)
_SWITCHES: Mapping[ProductKind, ProcessSwitch[GemmVariant]] = {
    ProductKind.FORWARD: _forward,
    ProductKind.INPUT_GRADIENT: _input,
    ProductKind.WEIGHT_GRADIENT: _weight,
    ProductKind.VOCABULARY: _vocabulary,
}
_read_forward, _read_input, _read_weight, _read_vocabulary = (switch.read for switch in _SWITCHES.values())


@jit_kernel
def variant_of(p: GemmArgs) -> int:
    """Return the index of the variant of a product; in compiled code only."""
    if p.columns <= SMALL or p.inner <= SMALL:
        return IN_PLACE
    if p.columns >= WIDE:
        return _read_vocabulary()
    if p.op_a == Op.T:
        return _read_weight()
    if p.op_b == Op.T:
        return _read_input()
    return _read_forward()


def current_variants() -> dict[ProductKind, GemmVariant]:
    """Return the variant of each kind of product in this process."""
    return {kind: switch.current for kind, switch in _SWITCHES.items()}


@contextmanager
def gemm_variants(chosen: Mapping[ProductKind, GemmVariant]) -> Iterator[None]:
    """Let the kinds of product in `chosen` use these variants of Numba's GEMM within the ``with`` block.

    Every variant gives the same bits. The choice is process-wide: enter it while no other thread is inside a kernel.
    """
    with ExitStack() as switches:
        for kind, variant in chosen.items():
            switches.enter_context(_SWITCHES[kind].set_to(variant))
        yield
