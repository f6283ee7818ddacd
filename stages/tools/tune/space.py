"""What `threadloom tune` varies: the settings, as one value each, and the alternatives to a value."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from threadloom.stages.config import Config, Gemm, Precision, ThreadsConfig, flatten
from threadloom.stages.resolve import MAX_LANES

Value = int | Gemm

KEYS: Mapping[str, str] = {
    "micro_batch": "micro_batch",
    "lanes": "lanes",
    "gemm": "gemm",
    "blas": "threads.blas",
    "forward": "threads.forward",
    "backward": "threads.backward",
    "reduce": "threads.reduce",
    "update": "threads.update",
    "slots": "slots",
    "channel_capacity": "channel_capacity",
}
"""Field of a Choice → the setting that it stands for."""
ROUNDING = ("micro_batch", "lanes", "gemm", "blas")
"""The fields that change in which order numbers are summed, and with it the last bits of the weights."""
OWN_PRODUCT = (Precision.BF16, Precision.BF16X3)
"""Precisions that multiply in their own way, whatever `gemm` and the threads of BLAS are."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value for every setting that is tuned."""

    micro_batch: int
    lanes: int
    gemm: Gemm
    blas: int
    forward: int
    backward: int
    reduce: int
    update: int
    slots: int
    channel_capacity: int

    @classmethod
    def of(cls, resolved: Config) -> "Choice":
        """Return the tuned settings of a resolved configuration."""
        values = flatten(resolved)
        return cls(**{name: values[key] for name, key in KEYS.items()})

    def differences(self, other: "Choice") -> dict[str, Value]:
        """Return, by field, the values that are not those of `other`."""
        return {name: value for name in KEYS if (value := getattr(self, name)) != getattr(other, name)}

    def changed(self, **values: Value) -> "Choice":
        """Return the choice with other values; slots keep their distance from the threads that need them."""
        other = msgspec.structs.replace(self, **values)
        if "slots" in values:
            return other
        workers = other.forward + other.backward
        distance = self.slots - self.forward - self.backward  # below 0 where a batch has fewer micro-batches
        return msgspec.structs.replace(other, slots=max(workers + distance, min(workers, self.slots)))


_THREADS = ("forward", "backward", "reduce", "update", "blas")


def fill_open(config: Config, choice: Choice) -> Config:
    """Return the configuration with the choice in the settings that it leaves open; the others stay."""
    threads = config.threads
    counts = {name: getattr(threads, name) or getattr(choice, name) for name in _THREADS}
    return msgspec.structs.replace(
        config,
        micro_batch=config.micro_batch or choice.micro_batch,
        lanes=config.lanes or choice.lanes,
        gemm=config.gemm or choice.gemm,
        slots=config.slots or choice.slots,
        channel_capacity=config.channel_capacity or choice.channel_capacity,
        threads=ThreadsConfig(embed=threads.embed, **counts),
    )


def pinned(config: Config) -> dict[str, Value]:
    """Return, by field of a Choice, the tuned settings that the configuration does not leave open."""
    values = flatten(config)
    return {name: values[key] for name, key in KEYS.items() if values[key] is not None}


def asked_for(choice: Choice, base: Choice) -> dict[str, Value]:
    """Return what to ask for to come from `base` to `choice`: slots that follow from the threads are left out."""
    values = choice.differences(base)
    rest = {name: value for name, value in values.items() if name != "slots"}
    return rest if base.changed(**rest) == choice else values


def described(values: Mapping[str, Value]) -> str:
    """Return settings as a person gives them to --set; nothing: the defaults."""
    return " ".join(f"{KEYS[name]}={worded(value)}" for name, value in values.items()) or "the defaults"


def worded(value: Value) -> str:
    """Return a value as a person gives it."""
    return value.value if isinstance(value, Gemm) else str(value)


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
    alternatives: Callable[[Choice, Facts], Iterator[Choice]]
    """The most promising first: a short budget reaches no further."""


def _micro_batches(base: Choice, facts: Facts) -> Iterator[Choice]:
    sizes = [size for size in range(1, facts.batch_size + 1) if facts.batch_size % size == 0]
    near = sorted(sizes, key=lambda size: abs(math.log(size / base.micro_batch)))
    for size in near[:6]:
        lanes = min(base.lanes, facts.sequences // size)
        choice = base.changed(micro_batch=size, lanes=lanes, backward=min(base.backward, facts.writers(size, lanes)))
        # Slots that sufficed for fewer micro-batches may be too few for these.
        needed = min(choice.forward + choice.backward, facts.sequences // size)
        yield choice.changed(slots=max(choice.slots, needed))


def _flow_threads(base: Choice, facts: Facts) -> Iterator[Choice]:
    counts = sorted({1, math.ceil(facts.cores / 2), facts.cores}, reverse=True)
    for forward in counts:
        for backward in counts:
            most = facts.writers(base.micro_batch, base.lanes)
            yield base.changed(forward=forward, backward=min(backward, most))


def _lanes(base: Choice, facts: Facts) -> Iterator[Choice]:
    most = min(max(MAX_LANES, base.lanes), facts.sequences // base.micro_batch)
    for lanes in sorted({1, 2, facts.cores, facts.cores + 1, 2 * facts.cores}, key=lambda n: (abs(n - base.lanes), n)):
        if lanes <= most:
            yield base.changed(lanes=lanes, backward=min(facts.cores, facts.writers(base.micro_batch, lanes)))


def _gemms(base: Choice, facts: Facts) -> Iterator[Choice]:
    for gemm in facts.gemms:
        yield base.changed(gemm=gemm, blas=1 if gemm is Gemm.NUMBA else base.blas)


def _blas(base: Choice, facts: Facts) -> Iterator[Choice]:
    if facts.gemms and base.gemm is Gemm.BLAS and facts.cores > 1:
        yield base.changed(blas=1)
        yield base.changed(blas=facts.cores, forward=1, backward=1)
        yield base.changed(blas=facts.cores)


def _slots(base: Choice, facts: Facts) -> Iterator[Choice]:
    workers = base.forward + base.backward
    for spare in (1, 2, 4, 0, 8):
        yield base.changed(slots=workers + spare)


def _stream_threads(base: Choice, facts: Facts) -> Iterator[Choice]:
    for reduce in (facts.cores, 1):
        for update in (facts.cores, 1):
            yield base.changed(reduce=reduce, update=update)


def _capacities(base: Choice, facts: Facts) -> Iterator[Choice]:
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
