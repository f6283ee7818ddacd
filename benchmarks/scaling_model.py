"""A model of the time of an update as a function of the number of cores, fitted to two measurements.

    t(n) = serial + micro · Q(n) + memory · (1 + (n − 1) κ) / n

- `serial`: the constant part of an update: handoffs, the norm, publishing, the pipeline bubble (fill and drain).
- `micro`: one micro-batch through forward and backward on one core. Q(n) counts rounds, not micro-batches: for I
  micro-batches on n cores there are ⌈I / n⌉ rounds of forward, a third of the work, and ⌈I / min(n, writers)⌉ rounds of
  backward, two thirds. A separate lane is written by one thread at a time, so there are as many writers as lanes;
  threads that share a lane work concurrently on consecutive parts of the model.
- `memory`: the reduction and AdamW on one core. Their data exceed the caches, so the cores share a bandwidth:
  b(n) = b(1) · n / (1 + (n − 1) κ), with the limit b(1) / κ. With κ = 0 it never saturates, with κ = 1 one core
  saturates it.

Assumptions: no overlap of forward and backward (τ = 0), micro-batches of equal cost, arithmetic as fast on every core
as on one (no lower clock, no shared cache or execution unit: two hardware threads of a core are not two cores), and no
other load. A measurement below the prediction violates one of them. All times are in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FORWARD_SHARE = 1.0 / 3.0
"""Share of forward in the arithmetic of an update: backward has two matrix multiplies for each of forward's."""


@dataclass(frozen=True)
class UpdateWork:
    """The parts of an update."""

    micro_batches: int
    lanes: int
    stream_bytes: float
    """Bytes that the reduction and AdamW move through memory."""
    writers: int = 0
    """Maximum number of threads in backward at once; 0: one per lane."""


@dataclass(frozen=True)
class Scaling:
    """The fitted model."""

    workload: UpdateWork
    serial: float  # seconds per update
    micro: float  # seconds per micro-batch on one core, forward and backward
    memory: float  # seconds of the streaming passes on one core
    saturation: float  # κ, 0 to 1

    def seconds(self, cores: int) -> float:
        """Return the seconds of an update."""
        return self.serial + self.micro * rounds(self.workload, cores) + self.memory * shared(self.saturation, cores)

    def speedup(self, cores: int) -> float:
        """Return the speed relative to one core."""
        return self.seconds(1) / self.seconds(cores)

    def efficiency(self, cores: int) -> float:
        """Return the speed-up divided by the number of cores."""
        return self.speedup(cores) / cores


def rounds(workload: UpdateWork, cores: int) -> float:
    """Return Q(n): the maximum number of micro-batches per core, with weights 1/3 for forward and 2/3 for backward."""
    writers = min(cores, workload.writers or workload.lanes)
    forward, backward = -(-workload.micro_batches // cores), -(-workload.micro_batches // writers)
    return FORWARD_SHARE * forward + (1.0 - FORWARD_SHARE) * backward


def shared(saturation: float, cores: int) -> float:
    """Return the time of a memory-bound pass on `cores` cores relative to one core."""
    return (1.0 + (cores - 1) * saturation) / cores


def saturation_of(one: float, two: float) -> float:
    """Return κ, in 0 to 1, from the bandwidth of one core and of two together. Raises ValueError if one is 0."""
    if one <= 0 or two <= 0:
        raise ValueError(f"bandwidths must be above 0, got {one} and {two}")
    return min(1.0, max(0.0, 2.0 * one / two - 1.0))


def fit(workload: UpdateWork, measured: Mapping[int, float], bandwidth_one: float, bandwidth_two: float) -> Scaling:
    """Return the model that agrees with the seconds of an update on 1 and on 2 cores.

    `measured` maps cores to seconds, and must contain 1 and 2; bandwidths are in bytes per second. Two equations
    determine `serial` and `micro`. If `serial` would be negative (two cores more than twice as fast, by noise or by the
    cache of the second core), it is 0 and `micro` follows from the measurement on one core. Raises ValueError if a time
    is missing, or shorter than the memory traffic alone takes.
    """
    if not {1, 2} <= measured.keys():
        raise ValueError(f"the prediction needs 1 and 2 cores, got {sorted(measured)}")
    saturation = saturation_of(bandwidth_one, bandwidth_two)
    memory = workload.stream_bytes / bandwidth_one
    rest = {cores: measured[cores] - memory * shared(saturation, cores) for cores in (1, 2)}
    if min(rest.values()) <= 0:
        raise ValueError(
            f"an update of {measured[1]:.4f} s cannot stream {workload.stream_bytes:.3g} bytes at {bandwidth_one:.3g}/s"
        )
    long, short = rounds(workload, 1), rounds(workload, 2)
    micro = (rest[1] - rest[2]) / (long - short) if long > short else 0.0
    serial = rest[1] - micro * long
    if serial < 0:
        micro, serial = rest[1] / long, 0.0
    elif micro <= 0:  # no gain from a second core: one micro-batch, or cores that are busy with other programs
        micro, serial = 0.0, rest[1]
    return Scaling(workload, serial, micro, memory, saturation)
