"""What `threadloom tune` varies: the settings, as one value each, and the alternatives to a value."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from threadloom.stages.config import Gemm, Precision
from threadloom.stages.resolve import MAX_LANES, TunedSettings, Value

ROUNDING = ("micro_batch", "lanes", "gemm", "blas")
"""The fields that change in which order numbers are summed, and with it the last bits of the weights."""
OWN_PRODUCT = (Precision.BF16, Precision.BF16X3)
"""Precisions that multiply in their own way, whatever `gemm` and the threads of BLAS are."""


def asked_for(choice: TunedSettings, base: TunedSettings) -> dict[str, Value]:
    """Return what to ask for to come from `base` to `choice`: slots that follow from the threads are left out."""
    values = choice.differences(base)
    rest = {name: value for name, value in values.items() if name != "slots"}
    return rest if base.changed(**rest) == choice else values


@dataclass(frozen=True)
class Facts:
    """What the alternatives follow from."""

    cores: int
    batch_size: int
    sequences: int  # of one update
    gemms: tuple[Gemm, ...]  # the products that can be had; none: it does not matter which
    shared_lanes: bool = False

    def writers(self, micro_batch: int, lanes: int) -> int:
        """Return how many threads can be in backward at once."""
        return self.sequences // micro_batch if self.shared_lanes else lanes


@dataclass(frozen=True)
class Axis:
    """One thing to vary."""

    name: str
    alternatives: Callable[[TunedSettings, Facts], Iterator[TunedSettings]]
    """The most promising first: a short budget reaches no further."""


def _micro_batches(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    sizes = [size for size in range(1, facts.batch_size + 1) if facts.batch_size % size == 0]
    near = sorted(sizes, key=lambda size: abs(math.log(size / base.micro_batch)))
    for size in near[:6]:
        lanes = min(base.lanes, facts.sequences // size)
        choice = base.changed(micro_batch=size, lanes=lanes, backward=min(base.backward, facts.writers(size, lanes)))
        # Slots that sufficed for fewer micro-batches may be too few for these.
        needed = min(choice.forward + choice.backward, facts.sequences // size)
        yield choice.changed(slots=max(choice.slots, needed))


def _flow_threads(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    counts = sorted({1, math.ceil(facts.cores / 2), facts.cores}, reverse=True)
    for forward in counts:
        for backward in counts:
            most = facts.writers(base.micro_batch, base.lanes)
            yield base.changed(forward=forward, backward=min(backward, most))


def _lanes(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    most = min(max(MAX_LANES, base.lanes), facts.sequences // base.micro_batch)
    for lanes in sorted({1, 2, facts.cores, facts.cores + 1, 2 * facts.cores}, key=lambda n: (abs(n - base.lanes), n)):
        if lanes <= most:
            yield base.changed(lanes=lanes, backward=min(facts.cores, facts.writers(base.micro_batch, lanes)))


def _gemms(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    for gemm in facts.gemms:
        yield base.changed(gemm=gemm, blas=1 if gemm is Gemm.NUMBA else base.blas)


def _blas(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    if facts.gemms and base.gemm is Gemm.BLAS and facts.cores > 1:
        yield base.changed(blas=1)
        yield base.changed(blas=facts.cores, forward=1, backward=1)
        yield base.changed(blas=facts.cores)


def _slots(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    workers = base.forward + base.backward
    for spare in (1, 2, 4, 0, 8):
        yield base.changed(slots=workers + spare)


def _stream_threads(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    for reduce in (facts.cores, 1):
        for update in (facts.cores, 1):
            yield base.changed(reduce=reduce, update=update)


def _capacities(base: TunedSettings, facts: Facts) -> Iterator[TunedSettings]:
    for capacity in (1, 2, 4):
        yield base.changed(channel_capacity=capacity)


AXES = (
    Axis("micro-batch", _micro_batches),
    Axis("forward and backward threads", _flow_threads),
    Axis("matrix product", _gemms),
    Axis("lanes", _lanes),
    Axis("BLAS threads", _blas),
    Axis("slots", _slots),
    Axis("reduce and update threads", _stream_threads),
    Axis("channel capacity", _capacities),
)
"""What is varied, the most promising first: a short budget ends before the last ones."""
