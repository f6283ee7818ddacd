"""How the time of an update falls with the cores: a small model whose constants come from two measurements.

    t(n) = serial + micro · Q(n) + memory · (1 + (n − 1) κ) / n

- `serial`: what happens once an update whatever the cores: hops, the norm, publishing, the pipeline's empty moment.
- `micro`: one micro-batch through forward and backward on one core. Q(n) counts rounds, not micro-batches: of I
  micro-batches on n cores ⌈I / n⌉ rounds of forward, a third of the work, and ⌈I / min(n, writers)⌉ rounds of
  backward, two thirds. A lane of its own is written by one thread at a time, so there are as many writers as lanes;
  threads that share a lane follow each other through the parts of the model, and all of them work at once.
- `memory`: the reduction and AdamW on one core. They stream more than caches hold, so cores share a bandwidth:
  b(n) = b(1) · n / (1 + (n − 1) κ), which ends at b(1) / κ. κ = 0 never saturates, κ = 1 is full with one core.

Assumptions: no overlap of forward and backward (τ = 0), micro-batches of equal cost, arithmetic that runs on each core
as fast as on one (no lower clock, no shared cache or execution unit: two hardware threads of a core are not two cores),
and no other program. A measurement below the prediction says which of these fails. Seconds throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FORWARD_SHARE = 1.0 / 3.0
"""Of the arithmetic of an update: backward makes two products for each of forward's."""


@dataclass(frozen=True)
class Workload:
    """What an update consists of."""

    micro_batches: int
    lanes: int
    stream_bytes: float
    """What the reduction and AdamW move through memory."""
    writers: int = 0
    """Threads that can be in backward at once, cores enough given; 0: one a lane."""


@dataclass(frozen=True)
class Scaling:
    """The model with its constants."""

    workload: Workload
    serial: float  # s an update
    micro: float  # s of one micro-batch on one core, forward and backward
    memory: float  # s of the streaming passes on one core
    saturation: float  # κ, 0 to 1

    def seconds(self, cores: int) -> float:
        """Return the time of an update."""
        return self.serial + self.micro * rounds(self.workload, cores) + self.memory * shared(self.saturation, cores)

    def speedup(self, cores: int) -> float:
        """Return how many times as fast as one core."""
        return self.seconds(1) / self.seconds(cores)

    def efficiency(self, cores: int) -> float:
        """Return the speed-up as a share of the cores."""
        return self.speedup(cores) / cores


def rounds(workload: Workload, cores: int) -> float:
    """Return Q(n): the longest row of micro-batches that one core has to go through, backward counted twice forward."""
    writers = min(cores, workload.writers or workload.lanes)
    forward, backward = -(-workload.micro_batches // cores), -(-workload.micro_batches // writers)
    return FORWARD_SHARE * forward + (1.0 - FORWARD_SHARE) * backward


def shared(saturation: float, cores: int) -> float:
    """Return the time of a memory-bound pass on so many cores, as a share of its time on one."""
    return (1.0 + (cores - 1) * saturation) / cores


def saturation_of(one: float, two: float) -> float:
    """Return κ from the bandwidth of one core and of two at once, within 0 and 1 (ValueError where one is none)."""
    if one <= 0 or two <= 0:
        raise ValueError(f"bandwidths are above 0, got {one} and {two}")
    return min(1.0, max(0.0, 2.0 * one / two - 1.0))


def fit(workload: Workload, measured: Mapping[int, float], bandwidth_one: float, bandwidth_two: float) -> Scaling:
    """Return the model that meets the seconds of an update on 1 and on 2 cores.

    `measured`: seconds by cores, with 1 and 2 among them; bandwidths in bytes a second. Two equations give two
    constants, `serial` and `micro`. Where they would make `serial` negative (two cores more than twice as fast: noise,
    or a second core's cache), it is 0 and `micro` comes from the measurement on one core. ValueError where a time is
    missing, or shorter than what memory alone must take.
    """
    if not {1, 2} <= measured.keys():
        raise ValueError(f"the prediction needs 1 and 2 cores, there are {sorted(measured)}")
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
    elif micro <= 0:  # a second core brings nothing: one micro-batch, or cores that are busy with something else
        micro, serial = 0.0, rest[1]
    return Scaling(workload, serial, micro, memory, saturation)
