"""The roofline of a kernel: the time below which it cannot go, from what it must compute and what it must move.

After Williams, Waterman and Patterson (Roofline, CACM 52(4), 2009). Matrix products have the peak of the product that
the precision multiplies with; all other arithmetic is float32 in every precision, and has that of the float32 product.
The bandwidth is that of arrays as large as what the kernel works on: a micro-batch is sized to stay in a cache, as do
all parameters of a small model, so the bandwidth of memory would be no floor. Between two measured sizes it is the
smaller one's, since larger arrays are no faster. All is pure arithmetic on figures that others measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from threadloom.stages.config import Precision
from threadloom.stages.models import Geometry, parameter_count

FLOAT, SHORT = 4, 2  # bytes


@dataclass(frozen=True)
class Level:
    """The bandwidth of one core on arrays that take so many bytes together."""

    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class ProductPeak:
    """The product of one precision."""

    precision: Precision
    one: float  # GFLOP/s of one core
    all: float  # of all at once


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at best, as measured in this run."""

    cores: int
    gemm_one: float  # GFLOP/s of one core, float32
    gemm_all: float  # of all at once
    stream_one: float  # GB/s of memory, one core
    stream_all: float
    levels: tuple[Level, ...]  # one core; from the smallest to the largest
    others: tuple[ProductPeak, ...] = ()
    """Products of other precisions; only those that a measured configuration uses."""

    def product(self, precision: Precision) -> ProductPeak:
        """Return the peak of what multiplies in a precision: float16 is widened, and multiplied as float32."""
        if precision in (Precision.FLOAT32, Precision.FP16):
            return ProductPeak(Precision.FLOAT32, self.gemm_one, self.gemm_all)
        return next(peak for peak in self.others if peak.precision is precision)

    def bandwidth(self, working_set: float) -> float:
        """Return what one core's GB/s on so many bytes cannot exceed: that of the largest level that is no larger."""
        if not self.levels:
            return self.stream_one
        smaller = [level for level in self.levels if level.bytes <= working_set]
        return (smaller[-1] if smaller else self.levels[0]).gb_per_s


@dataclass(frozen=True)
class Work:
    """What one call of a kernel must do, whoever writes it: the floor knows nothing of the implementation."""

    flops: float
    bytes: float
    """Each input read once and each output written once (an output that is added to counts twice)."""
    products: float = 0.0
    """Those of the `flops` that are matrix products."""
    held: float = 0.0
    """Bytes of all arrays, each once, where that is not `bytes`, as one that is changed in place moves twice; or 0."""

    @property
    def working_set(self) -> float:
        """Bytes that stay in a cache if it holds so many."""
        return self.held or self.bytes


@dataclass(frozen=True)
class KernelTime:
    """A kernel's measured time on one core, beside its floor."""

    name: str
    calls: int
    """Calls in one update."""
    work: Work
    seconds: float
    """Of one call, the median."""
    spread: tuple[float, float]
    """The lower and the upper quartile of the calls."""
    floor: float
    """Seconds that one call takes at least: `bound` says because of what."""
    bound: str
    """'compute' or 'bandwidth'."""
    part_of: str | None = None
    """The whole that it is a part of; None for a whole, and wholes sum up to an update."""
    arithmetic: float = 0.0
    """Seconds that the arithmetic of one call takes at its peaks, whatever bounds the floor."""

    @property
    def above_floor(self) -> float:
        """How many times its floor it takes; 1 at best."""
        return self.seconds / self.floor if self.floor > 0 else 0.0

    @property
    def of_peak(self) -> float:
        """The share of the peaks that its arithmetic achieves."""
        return self.arithmetic / self.seconds if self.seconds > 0 else 0.0

    @property
    def gflop_per_s(self) -> float:
        """Achieved arithmetic."""
        return self.work.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def gb_per_s(self) -> float:
        """Achieved traffic, in bytes that must move: not what moves in fact."""
        return self.work.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def per_update(self) -> float:
        """Seconds of one core in an update."""
        return self.calls * self.seconds

    @property
    def lost(self) -> float:
        """Seconds of one core in an update above the floor: where there is something to gain."""
        return self.calls * max(0.0, self.seconds - self.floor)


def arithmetic_of(work: Work, peaks: Peaks, precision: Precision = Precision.FLOAT32) -> float:
    """Return the seconds of the arithmetic on one core: products at the precision's peak, the rest at float32's."""
    product = peaks.product(precision)
    return work.products / (product.one * 1e9) + (work.flops - work.products) / (peaks.gemm_one * 1e9)


def floor_of(work: Work, peaks: Peaks, precision: Precision = Precision.FLOAT32) -> tuple[float, str]:
    """Return the least seconds of a call on one core, and what bounds it: the larger of arithmetic and traffic."""
    compute = arithmetic_of(work, peaks, precision)
    moving = work.bytes / (peaks.bandwidth(work.working_set) * 1e9)
    return (compute, "compute") if compute >= moving else (moving, "bandwidth")


def floor_of_steps(
    steps: Sequence[tuple[Work, int]], peaks: Peaks, precision: Precision = Precision.FLOAT32
) -> tuple[float, str]:
    """Return the floor of steps that follow each other, each done so many times, and what bounds most of it."""
    bounds = {"compute": 0.0, "bandwidth": 0.0}
    for work, times in steps:
        seconds, bound = floor_of(work, peaks, precision)
        bounds[bound] += times * seconds
    return sum(bounds.values()), max(bounds, key=lambda bound: bounds[bound])


def flops_per_token(geometry: Geometry) -> float:
    """Return the design's figure: 6 (P - P_positions) + 6 L T d, with causal attention's products counted once."""
    matrices = parameter_count(geometry) - geometry.context * geometry.channels
    return 6.0 * matrices + 6.0 * geometry.layers * geometry.context * geometry.channels


def gemm_work(
    rows: int, columns: int, inner: int, *, adds: bool = False, operand: int = FLOAT, result: int = FLOAT
) -> Work:
    """Return the work of a product (rows, inner) @ (inner, columns).

    `adds`: to what is there. `operand`, `result`: bytes of a number of either factor, and of the result.
    """
    held = operand * (rows * inner + inner * columns) + result * rows * columns
    moved = held + (result * rows * columns if adds else 0)
    flops = 2.0 * rows * columns * inner
    return Work(flops, float(moved), flops, float(held) if adds else 0.0)


def attention_work(sequences: int, context: int, channels: int, *, backward: bool, number: int = FLOAT) -> Work:
    """Return the work of causal attention: half of the full products, two forward and four backward.

    `number`: bytes of a number of what it reads and writes.
    """
    rows = sequences * context
    flops = (4.0 if backward else 2.0) * rows * context * channels
    moved = rows * channels * ((1 + 1 + 3 + 3) if backward else (3 + 1))
    return Work(flops, float(number * moved), flops)


def total(parts: Sequence[tuple[Work, int]]) -> Work:
    """Return the work of several kernels, each done so many times."""
    flops, moved, products, held = (
        sum(getattr(work, name) * times for work, times in parts)
        for name in ("flops", "bytes", "products", "working_set")
    )
    return Work(flops, moved, products, held if held != moved else 0.0)
