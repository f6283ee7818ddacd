"""The roofline model: the minimum time of a kernel, from the arithmetic it must do and the bytes it must move.

After Williams, Waterman and Patterson (Roofline, CACM 52(4), 2009). GEMM is compared with the peak of the GEMM that the
precision uses; all other arithmetic is float32 in every precision and is compared with the peak of float32 GEMM. The
bandwidth is that measured with arrays of the size of the kernel's working set: a micro-batch is sized to stay in a
cache, as do all parameters of a small model, so that the bandwidth of memory would be no bound. Between two measured
sizes the rate of the smaller one applies, because larger arrays are no faster. This module only computes; `peaks` and
`kernel_case` measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from threadloom.stages.config import Precision
from threadloom.stages.models import Geometry, architecture_of, multiplied_parameters, parameter_shapes

FLOAT, SHORT = 4, 2
"""Bytes per float32 and per 16-bit element."""


@dataclass(frozen=True)
class BandwidthLevel:
    """The bandwidth of one core with arrays of `bytes` bytes together."""

    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class GemmPeak:
    """The peak rate of the GEMM of one precision."""

    precision: Precision
    one: float  # GFLOP/s on one core
    all: float  # GFLOP/s on all cores together


@dataclass(frozen=True)
class Peaks:
    """The best rates of the machine, measured in this run."""

    cores: int
    gemm_one: float  # GFLOP/s on one core, float32
    gemm_all: float  # GFLOP/s on all cores together
    stream_one: float  # GB/s of memory, one core
    stream_all: float
    levels: tuple[BandwidthLevel, ...]  # one core; from the smallest to the largest
    others: tuple[GemmPeak, ...] = ()
    """GEMM of other precisions; only those that a measured configuration uses."""

    def gemm(self, precision: Precision) -> GemmPeak:
        """Return the peak of the GEMM that a precision uses. Float16 is upcast and uses that of float32."""
        if precision in (Precision.FLOAT32, Precision.FP16):
            return GemmPeak(Precision.FLOAT32, self.gemm_one, self.gemm_all)
        return next(peak for peak in self.others if peak.precision is precision)

    def bandwidth(self, working_set: float) -> float:
        """Return the bandwidth of one core for a working set in bytes: that of the largest measured size within it."""
        if not self.levels:
            return self.stream_one
        smaller = [level for level in self.levels if level.bytes <= working_set]
        return (smaller[-1] if smaller else self.levels[0]).gb_per_s


@dataclass(frozen=True)
class KernelWork:
    """The work that one call of a kernel must do, independent of the implementation."""

    flops: float
    bytes: float
    """Each input read once and each output written once; an output that is added to counts twice."""
    products: float = 0.0
    """The part of `flops` in matrix multiplies."""
    held: float = 0.0
    """Size of all arrays if it differs from `bytes`: an array changed in place is read and written. 0: equal to it."""

    @property
    def working_set(self) -> float:
        """Bytes of cache in which the kernel's arrays fit."""
        return self.held or self.bytes


@dataclass(frozen=True)
class KernelTime:
    """The measured time of a kernel on one core, and its roofline bound."""

    name: str
    calls: int
    """Calls per update."""
    work: KernelWork
    seconds: float
    """Median time of one call."""
    spread: tuple[float, float]
    """Lower and upper quartile of the times."""
    floor: float
    """Roofline bound: the minimum seconds of one call."""
    bound: str
    """'compute' or 'bandwidth': the resource that determines the bound."""
    part_of: str | None = None
    """The kernel that calls this one; None for a top-level kernel. Top-level kernels add up to an update."""
    arithmetic: float = 0.0
    """Seconds that the arithmetic of one call takes at the peak rates."""

    @property
    def above_floor(self) -> float:
        """Measured time relative to the roofline bound; at best 1."""
        return self.seconds / self.floor if self.floor > 0 else 0.0

    @property
    def of_peak(self) -> float:
        """Achieved share of the peak arithmetic rate."""
        return self.arithmetic / self.seconds if self.seconds > 0 else 0.0

    @property
    def gflop_per_s(self) -> float:
        """Achieved arithmetic rate."""
        return self.work.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def gb_per_s(self) -> float:
        """Achieved bandwidth, counting the bytes that must move, not those that do."""
        return self.work.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def per_update(self) -> float:
        """Seconds of one core per update."""
        return self.calls * self.seconds

    @property
    def lost(self) -> float:
        """Seconds of one core per update above the roofline bound: the possible gain."""
        return self.calls * max(0.0, self.seconds - self.floor)


def arithmetic_seconds(work: KernelWork, peaks: Peaks, precision: Precision = Precision.FLOAT32) -> float:
    """Return the seconds of the arithmetic on one core: GEMM at the precision's peak, the rest at that of float32."""
    gemm = peaks.gemm(precision)
    return work.products / (gemm.one * 1e9) + (work.flops - work.products) / (peaks.gemm_one * 1e9)


def roofline_bound(work: KernelWork, peaks: Peaks, precision: Precision = Precision.FLOAT32) -> tuple[float, str]:
    """Return the minimum seconds of a call on one core, and the resource that determines them: compute or bandwidth."""
    compute = arithmetic_seconds(work, peaks, precision)
    moving = work.bytes / (peaks.bandwidth(work.working_set) * 1e9)
    return (compute, "compute") if compute >= moving else (moving, "bandwidth")


def roofline_bound_of_steps(
    steps: Sequence[tuple[KernelWork, int]], peaks: Peaks, precision: Precision = Precision.FLOAT32
) -> tuple[float, str]:
    """Return the bound of consecutive steps, each (work, repetitions), and the resource that determines most of it."""
    bounds = {"compute": 0.0, "bandwidth": 0.0}
    for work, times in steps:
        seconds, bound = roofline_bound(work, peaks, precision)
        bounds[bound] += times * seconds
    return sum(bounds.values()), max(bounds, key=lambda bound: bounds[bound])


def flops_per_token(geometry: Geometry, frozen: frozenset[str] = frozenset()) -> float:
    """Return 6 P + 4 F + 6 L T H D: the usual count, with the products of causal attention counted once.

    P is the number of the trained parameters, F of the `frozen` ones, whose gradient is not computed. Both leave out
    the tables that are only looked up, such as position embeddings.
    """
    attention = geometry.layers * geometry.context * geometry.attn_width
    held = frozen.difference(architecture_of(geometry).gathered(geometry))
    without = sum(prod(shape) for name, shape in parameter_shapes(geometry).items() if name in held)
    return 6.0 * multiplied_parameters(geometry) - 2.0 * without + 6.0 * attention


def gemm_work(
    rows: int, columns: int, inner: int, *, adds: bool = False, operand: int = FLOAT, result: int = FLOAT
) -> KernelWork:
    """Return the work of (rows, inner) @ (inner, columns).

    `adds`: the result is added to its array. `operand`, `result`: bytes per element of the operands and the result.
    """
    held = operand * (rows * inner + inner * columns) + result * rows * columns
    moved = held + (result * rows * columns if adds else 0)
    flops = 2.0 * rows * columns * inner
    return KernelWork(flops, float(moved), flops, float(held) if adds else 0.0)


def attention_work(sequences: int, geometry: Geometry, *, backward: bool, element: int = FLOAT) -> KernelWork:
    """Return the work of causal attention: half of the full products, two in forward and four in backward.

    `element`: bytes per element of its inputs and outputs.
    """
    rows = sequences * geometry.context
    flops = (4.0 if backward else 2.0) * rows * geometry.context * geometry.attn_width
    moved = rows * (geometry.qkv_width + geometry.attn_width) * (2 if backward else 1)
    return KernelWork(flops, float(element * moved), flops)


def total(parts: Sequence[tuple[KernelWork, int]]) -> KernelWork:
    """Return the sum of (work, repetitions) pairs."""
    flops, moved, products, held = (
        sum(getattr(work, name) * times for work, times in parts)
        for name in ("flops", "bytes", "products", "working_set")
    )
    return KernelWork(flops, moved, products, held if held != moved else 0.0)
