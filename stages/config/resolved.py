"""The settings of a run with a value for every choice: a `Config` in which no setting is None.

Each class narrows the types of the settings that its base leaves open, and `stages.resolve` chooses their values. Both
kinds have the same fields in the same order, so they are written to the same JSON.
"""

from dataclasses import dataclass

import msgspec

from threadloom.stages.config.context_warmup import ContextWarmup, context_warmup
from threadloom.stages.config.gpt2 import ResolvedGpt2
from threadloom.stages.config.llama import ResolvedLlama
from threadloom.stages.config.optimizer import DelayCorrection, OptimizerConfig
from threadloom.stages.config.schedule_settings import ScheduleConfig
from threadloom.stages.config.settings import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    Gemm,
    LossScaleConfig,
    LossScaling,
    ThreadsConfig,
)
from threadloom.stages.models import Geometry

ResolvedModel = ResolvedGpt2 | ResolvedLlama
"""The settings `model.*` with a value for each, of one class per architecture."""


@dataclass(frozen=True)
class BatchSizes:
    """How many sequences an update has, and how they are divided into micro-batches."""

    sequences: int
    """Sequences of one update, gradient accumulation included."""
    micro_batch: int
    """Sequences of a micro-batch, a divisor of `sequences`."""

    def __post_init__(self) -> None:
        """Raise ValueError if the micro-batches do not divide the sequences."""
        if self.micro_batch < 1 or self.sequences < 1 or self.sequences % self.micro_batch:
            raise ValueError(f"micro-batches of {self.micro_batch} sequences do not divide {self.sequences} sequences")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one update."""
        return self.sequences // self.micro_batch


_ABSENT = -1.0


class ResolvedOptimizer(OptimizerConfig, frozen=True, kw_only=True):
    """AdamW with its learning rate and the strengths of its leads, 0 for none."""

    lr: float = 1e-3
    beta1: float
    lead: float = 0.0  # absent in the files of earlier releases
    forecast_lead: float = _ABSENT
    synchronous_beta1: float = _ABSENT

    def __post_init__(self) -> None:
        """Give forecasts the lead of the step, as earlier releases do, in whose files theirs is absent."""
        if self.forecast_lead == _ABSENT:
            msgspec.structs.force_setattr(self, "forecast_lead", self.lead)
        if self.synchronous_beta1 == _ABSENT:
            msgspec.structs.force_setattr(self, "synchronous_beta1", self.beta1)


class ResolvedSchedule(ScheduleConfig, frozen=True, kw_only=True):
    """The learning-rate schedule with the updates at which its warm-up, its decay and the warm-up for a delay end."""

    warmup: int = 0
    decay_steps: int
    delay_warmup: int = 0  # absent in the files of earlier releases


class ResolvedLossScale(LossScaleConfig, frozen=True, kw_only=True):
    """The loss scaling of the run's precision."""

    kind: LossScaling


class ResolvedThreads(ThreadsConfig, frozen=True, kw_only=True):
    """Thread counts of every stage and of BLAS."""

    embed: int
    forward: int
    backward: int
    reduce: int
    update: int
    blas: int
    team: int = 1  # absent in the files of earlier releases


class ResolvedEvaluation(EvaluationConfig, frozen=True, kw_only=True):
    """Evaluation with the size of the final one."""

    final_batches: int


class ResolvedCheckpoint(CheckpointConfig, frozen=True, kw_only=True):
    """Checkpoints, written from copies or not."""

    copies: bool


class ResolvedConfig(Config, frozen=True, kw_only=True):
    """Every setting of a run, decided; returned by `resolve` and kept in the run directory."""

    model: ResolvedModel
    micro_batch: int
    lanes: int
    shared_lanes: bool
    recompute: bool = False  # absent in the files of earlier releases
    delay_correction: DelayCorrection = DelayCorrection.NONE  # the same
    optimizer: ResolvedOptimizer
    gemm_backend: Gemm
    schedule: ResolvedSchedule
    loss_scale: ResolvedLossScale
    threads: ResolvedThreads
    channel_capacity: int
    slots: int
    extra_banks: int
    evaluation: ResolvedEvaluation
    checkpoint: ResolvedCheckpoint

    def geometry(self) -> Geometry:
        """Return the sizes of the model, and its adapters."""
        return self.geometry_with(self.model.vocab_size)

    def frozen_tensors(self) -> frozenset[str]:
        """Return the names of the tensors that the run does not train."""
        return self.frozen_in(self.geometry())

    @property
    def batch_sizes(self) -> BatchSizes:
        """The sizes of an update and of its micro-batches."""
        return BatchSizes(self.sequences, self.micro_batch)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one update, gradient accumulation included."""
        return self.batch_sizes.micro_batches

    @property
    def context_warmup(self) -> ContextWarmup | None:
        """The contexts of a run whose first updates have shorter sequences, None without."""
        return context_warmup(self.schedule, self.model.context)

    @property
    def bordered(self) -> bool:
        """True if there are borders within sequences, across which there is no attention; micro-batches have them."""
        return self.data.bordered or self.schedule.context_warmup > 0

    @property
    def max_concurrent_backward(self) -> int:
        """Micro-batches that can be in backward at once: at most one per lane, unless lanes are shared.

        With `threads.control`, backward may get all threads of forward but one, unless lanes are shared: that saves
        memory, and each thread of backward needs some.
        """
        threads = self.threads
        if self.shared_lanes:
            return threads.backward
        most = threads.forward + threads.backward - 1 if threads.control else threads.backward
        return min(most, self.lanes)
