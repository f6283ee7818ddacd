"""The sum of the lanes, its global norm, and the checks that stand between a gradient and the weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from threadloom import kernels
from threadloom.pipeline import Banks, Lanes, aligned_zeros
from threadloom.stages.memory import Bank, MicroGradient, ReduceShard


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient is no longer a finite number."""


@dataclass(frozen=True)
class ShardPlan:
    """The arena cut into shards of whole chunks.

    Chunks are of a fixed size, and norms are summed chunk by chunk in order, so the number of shards, which follows the
    threads at hand, has no part in the result.
    """

    elements: int
    shards: int

    @property
    def chunks(self) -> int:
        """Chunks of the whole arena."""
        return -(-self.elements // kernels.CHUNK)

    def chunk_range(self, shard: int) -> tuple[int, int]:
        """Return first and past-the-last chunk of a shard."""
        return self.chunks * shard // self.shards, self.chunks * (shard + 1) // self.shards

    def span(self, shard: int) -> tuple[int, int]:
        """Return first and past-the-last element of a shard."""
        first, last = self.chunk_range(shard)
        return first * kernels.CHUNK, min(last * kernels.CHUNK, self.elements)


def plan_shards(elements: int, threads: int) -> ShardPlan:
    """Cut an arena into two shards a thread, or one a chunk where there are fewer."""
    chunks = -(-elements // kernels.CHUNK)
    return ShardPlan(elements, max(1, min(2 * threads, chunks)))


class Gradient:
    """The batch's gradient: the sum of the lanes, and the sum of squares of each of its chunks.

    At delay 0 it lies in lane 0, since no backward runs while it is needed; at any other it has memory of its own, so
    that the lanes are free for the next batch as soon as they are summed.
    """

    def __init__(self, lanes: Lanes, delay: int) -> None:
        elements = lanes.flat.shape[1]
        self.in_lane = delay == 0
        self.flat = lanes.flat[0] if self.in_lane else aligned_zeros(elements, np.float32)
        self.squares = np.zeros(-(-elements // kernels.CHUNK), np.float64)

    def norm(self) -> float:
        """Return the global norm, adding the chunks in their order."""
        return math.sqrt(math.fsum(self.squares.tolist()))


class Collect:
    """Meets the micro-batches of a batch, checks what they read, and opens the reduction.

    `scaled`: a loss that is not finite may be an overflow of the scaled run, and is left to `Clip`, which skips it.
    `finish` adds what could not be added to the lanes before all micro-batches were done.
    """

    def __init__(
        self,
        banks: Banks[Bank],
        plan: ShardPlan,
        tokens_in_batch: int,
        scaled: bool = False,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._scaled = scaled
        self._finish = finish
        self._banks = banks
        self._plan = plan
        self._tokens = tokens_in_batch

    def acquire(self, gradients: Sequence[MicroGradient]) -> None:
        """Wait until the gradient of the batch before has been used up: its version is published."""
        self._banks.wait_published(gradients[0].batch)

    def __call__(self, gradients: Sequence[MicroGradient]) -> Iterator[ReduceShard]:
        """Refuse a batch that breaks the declared delay or has no finite loss; otherwise hand out its shards."""
        batch = gradients[0].batch
        for version in sorted({gradient.version for gradient in gradients}):
            self._banks.check_staleness(batch, version)
        losses = [gradient.loss for gradient in sorted(gradients, key=lambda gradient: gradient.micro)]
        loss = math.fsum(losses) / self._tokens
        if not math.isfinite(loss) and not self._scaled:
            bad = [gradient.micro for gradient in gradients if not math.isfinite(gradient.loss)]
            raise TrainingDiverged(
                f"the loss of update {batch + 1} is {loss} (micro-batches {bad}): needed a finite number. "
                "Likely a learning rate that is too high or a clip that is off; start a new run with a lower "
                "optimizer.lr, a longer schedule.warmup, or optimizer.clip=1.0. Checkpoints from before are good"
            )
        if self._finish:
            self._finish()
        scale, plan = gradients[0].scale, self._plan
        return iter([ReduceShard(batch, s, plan.chunk_range(s), loss, scale) for s in range(plan.shards)])


class Reduce:
    """Sums a shard's chunks over the lanes, lane 0 first, with the sum of squares of each chunk."""

    def __init__(self, lanes: Lanes, gradient: Gradient) -> None:
        self._lanes = lanes
        self._gradient = gradient

    def __call__(self, shard: ReduceShard) -> ReduceShard:
        """Write the shard's part of the gradient."""
        first, last = shard.chunks
        kernels.sum_lanes(self._lanes.flat, self._gradient.flat, self._gradient.squares, first, last)
        return shard
