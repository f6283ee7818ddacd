"""What flows along the edges of the training graph.

`batch` counts optimizer updates from 0: batch k makes version k + 1 of the weights.
"""

from dataclasses import dataclass, field

from threadloom.kernels import AdamWStep
from threadloom.pipeline import Lease
from threadloom.stages.memory.float32 import Bank, Slot
from threadloom.stages.memory.loss_scale import Scaled


@dataclass(slots=True)
class MicroBatch:
    """A micro-batch on its way from `draw` to `backward`, with what it holds on that way."""

    batch: int
    micro: int
    version: int | None = None  # of the weights that it reads; known from `embed` on
    slot: Slot | None = None  # taken before draw, given back by backward
    lease: Lease[Bank] | None = None  # taken before embed, released by backward

    def held(self) -> tuple[Slot, Lease[Bank]]:
        """Return slot and lease of a micro-batch that has passed `embed`."""
        assert self.slot is not None, "draw comes before every other stage"
        assert self.lease is not None, "embed comes before forward and backward"
        return self.slot, self.lease


@dataclass(frozen=True, slots=True)
class MicroGradient:
    """Word that a micro-batch's gradient lies in its lane."""

    batch: int
    micro: int
    version: int
    loss: float
    """Sum of the losses of its tokens, in nats, unscaled."""
    scale: float = 1.0
    """The loss scale in the gradient: that of `version`, so one for the whole batch."""


@dataclass(frozen=True, slots=True)
class ReduceShard:
    """A run of the arena's chunks, to be summed over the lanes."""

    batch: int
    shard: int
    chunks: tuple[int, int]
    loss: float
    """Mean loss of the whole batch in nats a token; it travels with every shard to the log."""
    scale: float = 1.0
    """The loss scale that is in the gradient."""


@dataclass(frozen=True, slots=True)
class UpdateShard:
    """A run of the arena's elements, to be updated."""

    batch: int
    shard: int
    span: tuple[int, int]
    source: Bank
    target: Bank
    step: AdamWStep
    loss: float
    grad_norm: float
    scaled: Scaled | None = None
    """None where no loss is scaled."""

    @property
    def skipped(self) -> bool:
        """Whether the update leaves weights and moments as they are."""
        return self.scaled is not None and self.scaled.skipped


@dataclass(frozen=True, slots=True)
class Update:
    """One finished optimizer update, as it is logged."""

    step: int
    """Updates done, this one included: the version that it made."""
    loss: float
    """Mean training loss of the batch, in nats a token."""
    lr: float
    grad_norm: float
    """Global norm of the gradient, unscaled, before clipping; inf or nan where the update was skipped."""
    seconds: float
    """Since the run started."""
    scaled: Scaled | None = None
    """The loss scale, and whether the update was skipped for what is not finite; None where no loss is scaled."""
    evaluation: Lease[Bank] | None = field(default=None, compare=False)
    """The new version, leased for the evaluation that is due."""
    checkpoint: Lease[Bank] | None = field(default=None, compare=False)
    """The new version, leased for the checkpoint that is due."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss of one version on the validation split."""

    step: int
    val_loss: float
    """Mean over the tokens, in nats."""
    tokens: int
    seconds: float
    """That the evaluation took."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is whole on disk."""

    step: int
    path: str
    seconds: float
    """That writing it took."""


Event = Update | Evaluation | Saved
"""What a run reports to its caller."""


def label(item: object) -> dict[str, int | str]:
    """Return what tells an item from another, for errors and for the trace: batch, micro-batch, shard, version."""
    names = ("batch", "micro", "shard", "version", "step")
    return {name: value for name in names if isinstance(value := getattr(item, name, None), int)}
