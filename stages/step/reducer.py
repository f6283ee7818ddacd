"""The sum of the lanes and its global norm, with the checks of a gradient before it reaches the weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from threadloom import kernels
from threadloom.pipeline import Arena, Banks, Lanes
from threadloom.stages.memory import Bank, BatchLoss, LossParts, MicroGradient, ReduceShard
from threadloom.stages.step.gradient_noise import NoiseMeter
from threadloom.stages.step.optimizers import Rotation


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient is not a finite number."""


@dataclass(frozen=True)
class ShardPlan:
    """A partition of the arena into shards of whole chunks.

    Chunks have a fixed size, and norms are summed chunk by chunk in order, so the number of shards, which depends on
    the number of threads, does not affect the result.
    """

    elements: int
    shards: int

    @property
    def chunks(self) -> int:
        """Number of chunks of the whole arena."""
        return -(-self.elements // kernels.CHUNK)

    def chunk_range(self, shard: int) -> tuple[int, int]:
        """Return the first and the past-the-last chunk of a shard."""
        return self.chunks * shard // self.shards, self.chunks * (shard + 1) // self.shards

    def span(self, shard: int) -> tuple[int, int]:
        """Return the first and the past-the-last element of a shard."""
        first, last = self.chunk_range(shard)
        return first * kernels.CHUNK, min(last * kernels.CHUNK, self.elements)


def plan_shards(elements: int, threads: int) -> ShardPlan:
    """Divide an arena into two shards per thread, or one per chunk if there are fewer chunks."""
    chunks = -(-elements // kernels.CHUNK)
    return ShardPlan(elements, max(1, min(2 * threads, chunks)))


class Gradient:
    """The gradient of a batch: the sum of the lanes, and the sum of squares of each chunk.

    At delay 0 it is stored in lane 0, since no backward pass runs while it is needed. At any other delay it is a
    separate array, so that the lanes are free for the next batch as soon as they are summed.
    """

    def __init__(self, lanes: Lanes, delay: int) -> None:
        elements = lanes.flat.shape[1]
        self.in_lane = delay == 0
        shapes = {name: view.shape for name, view in lanes.arenas[0].items()}
        self.arena = lanes.arenas[0] if self.in_lane else Arena(shapes)
        self.flat = self.arena.flat
        self.squares = np.zeros(-(-elements // kernels.CHUNK), np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes allocated in addition to the lanes."""
        return 0 if self.in_lane else int(self.flat.nbytes)

    def recompute_squares(self, chunks: range, elements: int) -> None:
        """Compute the sums of squares of `chunks` again, over the first `elements` of the gradient; 0 beyond them."""
        whole = -(-elements // kernels.CHUNK)
        self.squares[whole:] = 0.0
        flat = self.flat[:elements]
        kernels.sum_lanes(flat[np.newaxis], flat, self.squares, chunks.start, min(chunks.stop, whole))

    def clip_values(self, limit: float, chunks: range, elements: int) -> None:
        """Limit the first `elements` elements of some chunks to ± `limit`, and compute their squares again.

        A chunk that is not finite is left as it is, so that the norm shows it.
        """
        bound = np.float32(limit)
        for chunk in chunks:
            if float(bound) ** 2 < self.squares[chunk] < math.inf:  # otherwise no element is larger
                part = self.flat[chunk * kernels.CHUNK : min((chunk + 1) * kernels.CHUNK, elements)]
                np.clip(part, -bound, bound, out=part)
                self.recompute_squares(range(chunk, chunk + 1), elements)

    def norm(self) -> float:
        """Return the global norm, summed over the chunks in order."""
        return math.sqrt(math.fsum(self.squares.tolist()))


class Collect:
    """Gathers the micro-batches of a batch, checks the versions that they read, and begins the reduction.

    With `skips`, a loss that is not finite is passed on: it may be an overflow of the scaled loss, or a spike, and
    `Clip` skips it. `finish` is called once all micro-batches are done, to add the deferred gradients to the lanes.
    """

    def __init__(
        self,
        banks: Banks[Bank],
        plan: ShardPlan,
        *,
        skips: bool = False,
        finish: Callable[[], None] | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        self._skips = skips
        self._rotation = rotation
        self._finish = finish
        self._banks = banks
        self._plan = plan

    def acquire(self, gradients: Sequence[MicroGradient]) -> None:
        """Wait until the gradient of the previous batch is no longer needed: its version is published."""
        self._banks.wait_published(gradients[0].batch)

    def __call__(self, gradients: Sequence[MicroGradient]) -> Iterator[ReduceShard]:
        """Yield the batch's shards.

        Raises `StaleVersion` if a micro-batch read another version than the delay declares, `TrainingDiverged` if the
        loss is not finite.
        """
        batch = gradients[0].batch
        for version in sorted({gradient.version for gradient in gradients}):
            self._banks.check_staleness(batch, version)
        loss = _loss_of(gradients)
        if not loss.finite and not self._skips:
            bad = [gradient.micro for gradient in gradients if not math.isfinite(gradient.loss)]
            raise TrainingDiverged(
                f"the loss of update {batch + 1} is {loss.mean} (micro-batches {bad}); expected a finite number. Hint: "
                "start a new run: lower optimizer.lr, lengthen schedule.warmup, or set optimizer.clip=1.0. Earlier "
                "checkpoints are unaffected"
            )
        if self._finish:
            self._finish()
        scale, plan, renews = gradients[0].scale, self._plan, self._renews_bases()
        return iter([ReduceShard(batch, s, plan.chunk_range(s), loss, scale, renews) for s in range(plan.shards)])

    def _renews_bases(self) -> bool:
        """Return True if the update of this batch is to have new bases; those of the first need its gradient."""
        if self._rotation is None:
            return False
        with self._banks.lease_newest() as newest:
            applied = newest.bank.scaler.applied
        return applied > 0 and self._rotation.is_due(applied)


def _loss_of(gradients: Sequence[MicroGradient]) -> BatchLoss:
    """Return the means of a batch, whatever the order in which its micro-batches arrived."""
    counted, terms = gradients[0].counted, None
    if not counted:
        return BatchLoss(None, 0)
    parts = [gradient.terms for gradient in gradients if gradient.terms]
    if parts:
        terms = LossParts(*(math.fsum(sums) / counted for sums in zip(*parts, strict=True)))
    return BatchLoss(math.fsum(gradient.loss for gradient in gradients) / counted, counted, terms)


class Reduce:
    """Sums a shard's chunks over the lanes, lane 0 first, and computes the sum of squares of each chunk.

    Bases that are due are renewed here too, a share in each shard: the moments, which decide them, are those of the
    update before, since `Collect` waits until its version is published.
    """

    def __init__(
        self,
        lanes: Lanes,
        gradient: Gradient,
        clip_value: float = 0.0,
        noise: NoiseMeter | None = None,
        rotation: Rotation | None = None,
        shards: int = 1,
    ) -> None:
        """`clip_value` limits each element of the unscaled gradient; 0: no limit. `noise` measures its noise.

        Each of `shards` shards renews a share of the bases of `rotation`.
        """
        self._noise = noise
        self._rotation = rotation
        self._renewed = rotation.shares(shards) if rotation else []
        self._lanes = lanes
        self._gradient = gradient
        self._clip_value = clip_value

    def __call__(self, shard: ReduceShard) -> ReduceShard:
        """Write the shard's part of the gradient."""
        first, last = shard.chunks
        gradient, noise = self._gradient, self._noise
        if noise:
            noise.before(first, last)
        kernels.sum_lanes(self._lanes.flat, gradient.flat, gradient.squares, first, last)
        if noise:
            noise.after(gradient.squares, first, last)
        if self._clip_value:
            gradient.clip_values(self._clip_value * shard.scale, range(first, last), gradient.flat.size)
        if self._rotation and shard.renews:
            self._rotation.renew(self._renewed[shard.shard])
        return shard
