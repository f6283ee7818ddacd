"""The settings of a run: frozen structs with defaults. None marks an open setting, which `stages.resolve` chooses."""

import enum
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from threadloom.stages.config.data import DataConfig
from threadloom.stages.config.dropout import NO_DROPOUT, DropoutConfig
from threadloom.stages.config.embedding import EmbeddingConfig
from threadloom.stages.config.gpt2 import Gpt2Config
from threadloom.stages.config.guard import GuardConfig
from threadloom.stages.config.llama import LlamaConfig
from threadloom.stages.config.lora import LoraConfig
from threadloom.stages.config.loss import LossConfig
from threadloom.stages.config.optimizer import DelayCorrection, OptimizerConfig
from threadloom.stages.config.schedule_settings import ScheduleConfig
from threadloom.stages.config.section import Section
from threadloom.stages.config.trained import TrainConfig
from threadloom.stages.config.transformer import ModelArchitecture
from threadloom.stages.models import Geometry

ModelConfig = Gpt2Config | LlamaConfig
"""The settings `model.*`, of one class per architecture."""

MODEL_CONFIGS: Mapping[ModelArchitecture, type[ModelConfig]] = {
    kind.architecture: kind for kind in (Gpt2Config, LlamaConfig)
}
"""Architecture → class of its settings."""

DEFAULT_ARCHITECTURE = ModelArchitecture.GPT2
"""The architecture of files that name none."""


class Gemm(enum.Enum):
    """The implementations of float32 matrix multiplication, which round differently."""

    NUMBA = "numba"
    """The kernel of this package."""
    BLAS = "blas"
    """The BLAS library of SciPy."""


class Precision(enum.Enum):
    """The number formats of activations, matrix multiplications and gradients between layers.

    The master weights are float32 in all of them.
    """

    FLOAT32 = "float32"
    """Everything in float32."""
    BF16X3 = "bf16x3"
    """Activations in float32; each operand of a GEMM is split into two bfloat16 values, which takes three products."""
    BF16 = "bf16"
    """Activations and GEMM operands in bfloat16, accumulators in float32."""
    FP16 = "fp16"
    """Activations in float16, upcast to float32 in GEMMs; the loss is scaled."""
    AUTO = "auto"
    """The fastest of bf16, bf16x3 (if `float32_matmul_precision` permits it) and float32 on this machine."""


class MatmulPrecision(enum.Enum):
    """The accuracy of float32 matrix multiplications, as PyTorch's `float32_matmul_precision`."""

    HIGHEST = "highest"
    """Float32 products only."""
    HIGH = "high"
    """Also bf16x3, if it is faster."""


class LossScaling(enum.Enum):
    """The kinds of loss scaling; see `stages.memory.loss_scale`."""

    NONE = "none"
    """No scaling."""
    STATIC = "static"
    """A constant scale, `initial`."""
    DYNAMIC = "dynamic"
    """A scale that grows while gradients are finite and shrinks when they overflow."""


class LossScaleConfig(Section, frozen=True, kw_only=True):
    """The scale of the loss, which prevents small gradients from underflowing in a narrow number format."""

    kind: LossScaling | None = None
    """None: dynamic for fp16, none otherwise."""
    initial: float = 1024.0
    """Scale of the first update; of all updates if static."""
    growth: float = 2.0
    """Dynamic: factor of the scale after `interval` consecutive finite updates."""
    backoff: float = 0.5
    """Dynamic: factor of the scale after an update that overflows, which is skipped."""
    interval: int = 200
    """Dynamic: consecutive finite updates before the scale grows."""


class ThreadsConfig(Section, frozen=True, kw_only=True):
    """Thread counts of the stages, and of BLAS in the whole process. None: chosen for `total`."""

    total: int = 0
    """Threads for which the open counts are chosen. 0: one per core of this process, at most `OMP_NUM_THREADS` and
    `SLURM_CPUS_PER_TASK`."""
    embed: int | None = None
    """Threads that look up embeddings."""
    forward: int | None = None
    """Threads that compute the forward pass of micro-batches."""
    backward: int | None = None
    """Threads that compute the backward pass of micro-batches."""
    reduce: int | None = None
    """Threads that sum the lanes into the gradient of a batch."""
    update: int | None = None
    """Threads that apply AdamW."""
    blas: int | None = None
    """Threads of one BLAS call; more than 1 only with gemm_backend=blas. The only count of these that changes bits."""
    team: int | None = None
    """Threads that divide the work of one micro-batch in forward and backward, without changing a bit. None: more than
    1 if a batch has fewer micro-batches than there are threads, `delay` is 0, and there are kernels for it: float32
    without adapters, dropout within the blocks, terms of the loss or norms of queries and keys."""
    control: bool = False
    """True: threads of stages that wait move to the bottleneck during the run, without changing a bit."""


class EvaluationConfig(Section, frozen=True, kw_only=True):
    """Frequency and size of the evaluations on the validation text; there is always one at the end."""

    interval: int = 250
    """Updates between evaluations. 0: only at the end."""
    batches: int = 50
    """Maximum number of batches, of `batch_size` windows, of an evaluation."""
    final_batches: int | None = None
    """The same for the evaluation at the end. None: as `batches`."""
    sets: dict[str, str] = msgspec.field(default_factory=dict)
    """Further texts to evaluate on: name → path, encoded with the tokenizer of the run. Each evaluation has the loss on
    `batches` of each."""
    patience: int = 0
    """Early stopping: the run ends after this number of consecutive evaluations without a lower validation loss than
    before. The batch after an evaluation then waits for it. 0: never."""
    gcd_loss: bool = False
    """True: also report a loss made of greatest common divisors of prime numbers of the tokens. It is a constant of the
    text, which no training changes."""


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """Frequency and number of checkpoints; there is always one at the end."""

    interval: int = 500
    """Updates between checkpoints. 0: only at the end."""
    keep: int = 2
    """Number of checkpoints that are kept, the newest ones. 0: all."""
    every: int = 0
    """Checkpoints after a multiple of this number of updates are kept as well. 0: none."""
    best: bool = False
    """True: of the checkpoints whose step was evaluated, the one with the lowest validation loss is kept as well."""
    copies: bool | None = None
    """True: copy the arrays that the next update overwrites, which takes memory; False: the update waits for the disk.
    None: True for small models."""


class TraceConfig(Section, frozen=True, kw_only=True):
    """The trace of the stages' work."""

    batches: int = 64
    """Number of batches at the end of a run in trace.json. 0: neither trace.json nor timeline.png."""
    timeline: int = 6
    """Number of batches in timeline.png."""


class Config(Section, frozen=True, kw_only=True):
    """The settings of a run.

    An update consists of `batch_size` × `gradient_accumulation_steps` sequences. They are divided into micro-batches,
    whose gradients are summed in lanes. None: chosen by `resolve`.
    """

    name: str
    """Name of the configuration in displays and pictures."""
    model: ModelConfig
    """The settings `model.*`."""
    data: DataConfig = DataConfig()
    """The settings `data.*`."""
    batch_size: int
    """Sequences of a batch, which are divided into micro-batches."""
    gradient_accumulation_steps: int = 1
    """Batches of `batch_size` whose gradients are summed into one update."""
    micro_batch: int | None = None
    """Sequences of a micro-batch, a divisor of `batch_size`. None: chosen to fit the cache."""
    lanes: int | None = None
    """Gradient arenas in which the micro-batches of an update are summed. None: about one per core."""
    shared_lanes: bool | None = None
    """True: two threads share a lane and take turns, which saves memory and costs some time. None: True in float32 for
    large models if it saves memory."""
    recompute: bool | None = None
    """True: in 16 bits, the backward pass recomputes the input of the MLP's activation in every layer (activation
    checkpointing), and packs the transposed weights when it needs them. This takes less memory and more time, and does
    not change a bit. None: False."""
    delay: int = 0
    """τ: batch k reads the weights after max(k−τ, 0) updates. 0: ordinary synchronous training."""
    delay_correction: DelayCorrection | None = None
    """Remedy for the delay. None: `forecast_lead` if there is a delay, none otherwise."""
    precision: Precision = Precision.FLOAT32
    """Number format of activations, matrix multiplications and gradients between layers."""
    float32_matmul_precision: MatmulPrecision = MatmulPrecision.HIGHEST
    """Accuracy of float32 matrix multiplications."""
    gemm_backend: Gemm | None = None
    """Implementation of float32 matrix multiplications. None: the faster one on this processor."""
    steps: int
    """Updates of the run."""
    seed: int = 1337
    """Seed of the initial weights and of the order of the data."""
    train: TrainConfig = TrainConfig()
    """The settings `train.*`."""
    lora: LoraConfig = LoraConfig()
    """The settings `lora.*`."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """The settings `embedding.*`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The settings `optimizer.*`."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The settings `schedule.*`."""
    dropout: DropoutConfig = NO_DROPOUT
    """The settings `dropout.*`."""
    loss: LossConfig = LossConfig()
    """The settings `loss.*`."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """The settings `loss_scale.*`."""
    guard: GuardConfig = GuardConfig()
    """The settings `guard.*`."""
    noise_scale: bool = False
    """True: every update reports the noise of its gradient and the noise scale, a hint at useful batch sizes; it takes
    one more pass over the lanes, of which there are at least two."""
    threads: ThreadsConfig = ThreadsConfig()
    """The settings `threads.*`."""
    channel_capacity: int | None = None
    """Capacity of the channel between two stages, in items. None: 2."""
    slots: int | None = None
    """Micro-batches in flight, each with its activations. None: enough for the threads."""
    extra_banks: int | None = None
    """Banks of weights in addition to the τ+1 that the delay needs, so that an evaluation or a checkpoint does not
    delay updates. None: 1 for small models, 0 otherwise."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The settings `evaluation.*`."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """The settings `checkpoint.*`."""
    trace: TraceConfig = TraceConfig()
    """The settings `trace.*`."""
    pictures: bool = True
    """Draw loss.png and timeline.png at the end of the run, which takes about a second and 60 MB of memory."""
    init: str = ""
    """Folder of a model whose weights the run starts from; `model.*` are its sizes (`train --init`). Empty: random
    weights from `seed`."""
    grown_from: str = ""
    """Checkpoint that `threadloom grow` made this run from, and the growth, which a resumed run cannot change. Empty:
    the run is not a grown one."""

    def geometry_with(self, vocabulary: int) -> Geometry:
        """Return the sizes of the model with `vocabulary` tokens, its adapters and the factors of its embedding.

        Raises ConfigError for adapters or factors that the model cannot have.
        """
        geometry = self.model.geometry_with(vocabulary)
        factors = self.embedding.factors(geometry)
        bands = self.embedding.bands_in(vocabulary) if factors else ()
        residues = self.embedding.residues if factors else None
        return replace(geometry, lora=self.lora.lora(geometry), factors=factors, bands=bands, residues=residues)

    def frozen_in(self, geometry: Geometry) -> frozenset[str]:
        """Return the names of the tensors of a model that the run does not train.

        Raises ConfigError for names of `train.*` or `lora.*` that do not fit the model.
        """
        if not self.lora.rank:
            return self.train.frozen_tensors(geometry)
        self.train.require_unused()
        return self.lora.frozen_tensors(geometry)

    @property
    def sequences(self) -> int:
        """Sequences of one update, gradient accumulation included."""
        return self.batch_size * self.gradient_accumulation_steps


def model_config_of(geometry: Geometry) -> ModelConfig:
    """Return the settings of a model with these sizes, each of which is explicit."""
    return MODEL_CONFIGS[ModelArchitecture(geometry.architecture)].of(geometry)
