"""The items that flow along the edges of the training graph, and the events that a run reports.

`batch` counts optimizer updates from 0: the update from batch k produces version k + 1 of the weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from threadloom.pipeline import Lease
from threadloom.stages.memory.bank import Bank
from threadloom.stages.memory.loss_scale import Scaled
from threadloom.stages.memory.precision_memory import MicroBatchSlot


@dataclass(slots=True)
class MicroBatch:
    """A micro-batch between `draw` and `backward`, with the resources that it holds."""

    batch: int
    micro: int
    counted: int = 0  # targets of the whole batch that count; set by draw
    version: int | None = None  # of the weights that it reads; set by embed
    slot: MicroBatchSlot | None = None  # acquired by draw, released by backward
    lease: Lease[Bank] | None = None  # acquired by embed, released by backward

    def held(self) -> tuple[MicroBatchSlot, Lease[Bank]]:
        """Return slot and lease of a micro-batch that has passed `embed`."""
        assert self.slot is not None, "draw comes before every other stage"
        assert self.lease is not None, "embed comes before forward and backward"
        return self.slot, self.lease


class LossParts(NamedTuple):
    """What each term of `loss.*` adds to the cross-entropy."""

    label_smoothing: float
    z_loss: float


@dataclass(frozen=True, slots=True)
class MicroGradient:
    """Notice that a micro-batch's gradient has been added to its lane."""

    batch: int
    micro: int
    version: int
    loss: float
    """Sum of the losses of its tokens that count, in nats, unscaled."""
    counted: int
    """Targets of the whole batch that count."""
    scale: float = 1.0
    """The loss scale in the gradient. It belongs to `version`, so all micro-batches of a batch have the same."""
    terms: LossParts | None = None
    """Sums of the terms of the loss beside the cross-entropy; None without."""


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The training loss of a whole batch."""

    mean: float | None
    """Cross-entropy over the tokens that count, in nats; None if none counts."""
    counted: int
    """Number of those tokens."""
    terms: LossParts | None = None
    """Means of the terms beside it; None without."""

    @property
    def finite(self) -> bool:
        """True unless the mean is infinity or not a number."""
        return self.mean is None or math.isfinite(self.mean)  # if it is, so are the terms

    def __str__(self) -> str:
        return "none: no token counts" if self.mean is None else f"{self.mean:.4f}"


@dataclass(frozen=True, slots=True)
class ReduceShard:
    """A range of chunks of the arena, to be summed over the lanes."""

    batch: int
    shard: int
    chunks: tuple[int, int]
    loss: BatchLoss
    """That of the whole batch; every shard carries it to the log."""
    scale: float = 1.0
    """The loss scale in the gradient."""
    renews: bool = False
    """True if the update renews the bases of an optimizer in rotated ones."""


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Unbiased estimates from one batch, of the gradient of a sequence (McCandlish et al. 2018, appendix A.1)."""

    noise: float
    """Trace of its covariance, tr Σ."""
    signal: float
    """Squared norm of its mean, |G|²; may be negative, since it is a difference."""

    @property
    def scale(self) -> float | None:
        """The simple noise scale tr Σ / |G|², in sequences; None unless the signal is positive."""
        return self.noise / self.signal if self.signal > 0 else None


class StepParameters(Protocol):
    """Scalar parameters of one update, passed to the optimizer's kernels."""

    @property
    def lr(self) -> float:
        """The learning rate."""


@dataclass(frozen=True, slots=True)
class UpdateShard:
    """A range of elements of the arena, to be updated."""

    batch: int
    shard: int
    span: tuple[int, int]
    source: Bank
    target: Bank
    step: StepParameters
    loss: BatchLoss
    grad_norm: float
    scaled: Scaled | None = None
    """None if losses are not scaled."""
    spike: str | None = None
    """Why the guard leaves the update out; None if it does not."""
    noise: GradientNoise | None = None
    """None unless it is asked for, and if the gradient is not finite."""
    turns: bool = False
    """True if rotated moments have to be turned to the bases that were renewed for this update."""

    @property
    def skipped(self) -> bool:
        """True if the update leaves weights and optimizer state unchanged."""
        return self.spike is not None or (self.scaled is not None and self.scaled.skipped)


@dataclass(frozen=True, slots=True)
class Update:
    """One finished optimizer update, as it is logged."""

    step: int
    """Number of updates done, including this one: the version that it produced."""
    loss: float | None
    """Mean cross-entropy of the batch, in nats per token that counts; None if none counts."""
    lr: float
    grad_norm: float
    """Global norm of the gradient, unscaled, before clipping by norm; inf or nan if the update was skipped."""
    seconds: float
    """Time since the run started."""
    counted: int
    """Number of target tokens of the batch that count."""
    terms: LossParts | None = None
    """Means of the terms of the loss beside the cross-entropy; None without."""
    scaled: Scaled | None = None
    """The loss scale, and whether the update was skipped because of inf or nan; None if losses are not scaled."""
    spike: str | None = None
    """Why the guard has left the update out; None if it has not."""
    noise: GradientNoise | None = None
    """None unless it is asked for, and if the gradient is not finite."""
    evaluation: Lease[Bank] | None = field(default=None, compare=False)
    """Lease of the new version for the evaluation that is due."""
    averaged: Lease[Bank] | None = field(default=None, compare=False)
    """Lease of a copy of the average of the weights, for the same evaluation; None without an average."""
    checkpoint: Lease[Bank] | None = field(default=None, compare=False)
    """Lease of the new version for the checkpoint that is due."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss of one version on the validation split."""

    step: int
    val_loss: float
    """Mean over the tokens, in nats."""
    tokens: int
    """Number of target tokens that count."""
    seconds: float
    """Duration of the evaluation."""
    gcd_loss: float | None = None
    """The figure of `evaluation.gcd_loss`, in nats; None without it."""
    ema_loss: float | None = None
    """As `val_loss`, of the moving average of the weights; None without one."""
    sets: Mapping[str, float] = field(default_factory=dict)
    """The losses on the named validation sets."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint on disk."""

    step: int
    path: str
    seconds: float
    """Duration of writing it."""


Event = Update | Evaluation | Saved
"""An event that a run reports to its caller."""


def label(item: object) -> dict[str, int | str]:
    """Return the fields that identify an item in errors and traces: batch, micro-batch, shard, version, step."""
    names = ("batch", "micro", "shard", "version", "step")
    return {name: value for name in names if isinstance(value := getattr(item, name, None), int)}
