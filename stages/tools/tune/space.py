"""The search space of `threadloom tune`: its dimensions, and the alternatives to a choice along each."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from threadloom.stages.config import Gemm, Precision
from threadloom.stages.resolve import MAX_LANES, TunedSettings, TunedValue

ROUNDING = ("micro_batch", "lanes", "gemm", "blas")
"""Fields that change the order of floating-point sums, and so the last bits of the weights."""
SEPARATE_GEMM = (Precision.BF16, Precision.BF16X3)
"""Precisions with a separate GEMM, which `gemm_backend` and the threads of BLAS do not affect."""


def overrides_from(base: TunedSettings, choice: TunedSettings) -> dict[str, TunedValue]:
    """Return the settings that turn `base` into `choice`, without slots that follow from the threads."""
    values = choice.differences(base)
    rest = {name: value for name, value in values.items() if name != "slots"}
    return rest if base.changed(**rest) == choice else values


@dataclass(frozen=True)
class Limits:
    """The machine and the batch, which limit the alternatives."""

    cores: int  # those that the stages may use, one thread on each
    batch_size: int
    sequences: int  # per update
    gemms: tuple[Gemm, ...]  # usable float32 GEMM backends; empty: the precision uses none of them
    shared_lanes: bool = False

    def writers(self, micro_batch: int, lanes: int) -> int:
        """Return the number of threads that can be in backward at once."""
        return self.sequences // micro_batch if self.shared_lanes else lanes


@dataclass(frozen=True)
class Dimension:
    """A group of settings that vary together."""

    name: str
    alternatives: Callable[[TunedSettings, Limits], Iterator[TunedSettings]]
    """Yields alternatives, the most promising first, because a short budget ends the search early."""


def _micro_batches(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    sizes = [size for size in range(1, limits.batch_size + 1) if limits.batch_size % size == 0]
    near = sorted(sizes, key=lambda size: abs(math.log(size / base.micro_batch)))
    for size in near[:6]:
        lanes = min(base.lanes, limits.sequences // size)
        choice = base.changed(micro_batch=size, lanes=lanes, backward=min(base.backward, limits.writers(size, lanes)))
        # More micro-batches may need more slots.
        needed = min(max(choice.forward, choice.backward), limits.sequences // size)
        yield choice.changed(slots=max(choice.slots, needed))


def _flow_threads(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    counts = sorted({1, math.ceil(limits.cores / 2), limits.cores}, reverse=True)
    for forward in counts:
        for backward in counts:
            most = limits.writers(base.micro_batch, base.lanes)
            yield base.changed(forward=forward, backward=min(backward, most))


def _lanes(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    most = min(max(MAX_LANES, base.lanes), limits.sequences // base.micro_batch)
    for lanes in sorted(
        {1, 2, limits.cores, limits.cores + 1, 2 * limits.cores}, key=lambda n: (abs(n - base.lanes), n)
    ):
        if lanes <= most:
            yield base.changed(lanes=lanes, backward=min(limits.cores, limits.writers(base.micro_batch, lanes)))


def _gemms(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    for gemm in limits.gemms:
        yield base.changed(gemm=gemm, blas=1 if gemm is Gemm.NUMBA else base.blas)


def _blas(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    if limits.gemms and base.gemm is Gemm.BLAS and limits.cores > 1:
        yield base.changed(blas=1)
        yield base.changed(blas=limits.cores, forward=1, backward=1)
        yield base.changed(blas=limits.cores)
        half = limits.cores // 2
        if half > 1:  # a few stage threads, each with a few threads of BLAS
            yield base.changed(blas=half, forward=2, backward=min(2, limits.writers(base.micro_batch, base.lanes)))


def _slots(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    workers = max(base.forward, base.backward)
    for spare in (1, 2, 4, 0, 8):
        yield base.changed(slots=workers + spare)


def _stream_threads(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    for reduce in (limits.cores, 1):
        for update in (limits.cores, 1):
            yield base.changed(reduce=reduce, update=update)


def _capacities(base: TunedSettings, limits: Limits) -> Iterator[TunedSettings]:
    for capacity in (1, 4, 2, 8, 16):
        yield base.changed(channel_capacity=capacity)


DIMENSIONS = (
    Dimension("micro-batch", _micro_batches),
    Dimension("forward and backward threads", _flow_threads),
    Dimension("GEMM", _gemms),
    Dimension("lanes", _lanes),
    Dimension("BLAS threads", _blas),
    Dimension("slots", _slots),
    Dimension("reduce and update threads", _stream_threads),
    Dimension("channel capacity", _capacities),
)
"""The dimensions, the most promising first, because a short budget ends the search early."""
