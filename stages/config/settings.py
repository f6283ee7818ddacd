"""The settings of a run: frozen structs with defaults. None marks a setting that `stages.resolve` chooses."""

import enum
from typing import Any

import msgspec

from threadloom.stages.models import Geometry


class ScheduleKind(enum.Enum):
    """The learning-rate schedules; formulas in `stages.config.schedule`."""

    CONSTANT = "constant"
    """`optimizer.lr` throughout."""
    COSINE = "cosine"
    """Down to `min_lr` along half a cosine."""
    LINEAR = "linear"
    """Down to `min_lr` in a straight line."""
    STEP = "step"
    """Multiplied by `factor` again and again."""
    COSINE_RESTARTS = "cosine_restarts"
    """Cosines that begin anew, each cycle longer than the last."""


class TokenizerKind(enum.Enum):
    """How a text becomes token ids; see `stages.data.tokenizer`."""

    CHARACTERS = "characters"
    """A token a character, of the most frequent ones."""
    BYTES = "bytes"
    """A token a byte of UTF-8: 256, for any text."""
    BPE = "bpe"
    """Byte pairs, trained on the text up to `model.vocab_size`, which must then be set."""


class Gemm(enum.Enum):
    """What multiplies matrices: the package's own kernel, or BLAS. The two round differently."""

    NUMBA = "numba"
    """The package's own kernel."""
    BLAS = "blas"
    """The BLAS that comes with SciPy."""


class Precision(enum.Enum):
    """What activations, products and the gradients between layers are made in; the weights' masters are float32."""

    FLOAT32 = "float32"
    """All of it in float32."""
    BF16X3 = "bf16x3"
    """Activations in float32; products of two bfloat16 numbers an operand, which are three products."""
    BF16 = "bf16"
    """Activations and products in bfloat16; sums in float32."""
    FP16 = "fp16"
    """Activations in float16, products widened to float32; the loss is scaled."""
    AUTO = "auto"
    """The fastest that is exact enough, by what was measured on this machine; never fp16."""


class MatmulPrecision(enum.Enum):
    """How exact a float32 product must be: `HIGH` allows bf16x3 where that is faster, as in PyTorch."""

    HIGHEST = "highest"
    """Float32 products only."""
    HIGH = "high"
    """Three bfloat16 products instead of one of float32 where that is faster."""


class LossScaling(enum.Enum):
    """Whether gradients are multiplied before they are rounded; see `stages.memory.loss_scale`."""

    NONE = "none"
    """Not scaled."""
    STATIC = "static"
    """By `initial`, always."""
    DYNAMIC = "dynamic"
    """By a scale that grows while gradients stay finite, and shrinks when they overflow."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a configuration have in common."""


class ModelConfig(_Section, frozen=True, kw_only=True):
    """The GPT-2 model."""

    vocab_size: int | None = None
    """Tokens that the model knows. None: as many as the text's tokenizer turns out to have."""
    context: int
    """Tokens that the model sees at once, the length of a training sequence."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads of a block; they share its channels equally."""
    channels: int
    """Width of the residual stream, a multiple of `heads`."""
    residual_scaling: bool = True
    """Begin with smaller weights where a block writes to the residual stream, as GPT-2 does: it keeps deep models
    stable, and a shallow one learns a little better without."""

    def geometry_with(self, vocabulary: int) -> Geometry:
        """Return the sizes of the model with `vocabulary` tokens, from which the shapes of all tensors follow."""
        return Geometry(vocabulary, self.context, self.layers, self.heads, self.channels)


class DataConfig(_Section, frozen=True, kw_only=True):
    """The text and its tokens."""

    text: tuple[str, ...] = ()
    """Files and folders. Empty: the source of Python's standard library."""
    tokenizer: TokenizerKind = TokenizerKind.CHARACTERS
    """How the text becomes token ids."""
    alphabet: int = 256
    """Characters that a character tokenizer keeps at most; U+FFFD stands for the others."""
    train_fraction: float = 0.9
    """The part of the text, from the front, that is trained on; the rest validates."""


class OptimizerConfig(_Section, frozen=True, kw_only=True):
    """AdamW with decoupled decay on matrices only."""

    lr: float = 1e-3
    """The highest learning rate; the schedule says when it is less."""
    beta1: float = 0.9
    """Decay of the mean of the gradient."""
    beta2: float = 0.95
    """Decay of the mean of its square."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """The part of a weight that an update at learning rate 1 would take away."""
    clip: float = 1.0
    """Most that the norm of the whole gradient may be; a longer one is scaled down to it. 0: any length."""


class ScheduleConfig(_Section, frozen=True, kw_only=True):
    """The learning rate over the updates."""

    kind: ScheduleKind = ScheduleKind.COSINE
    """How it decays after the warm-up."""
    warmup: int = 0
    """Updates of linear rise at the start."""
    min_lr: float = 0.0
    """Where the decay ends; for step decay, what it does not go below."""
    decay_steps: int | None = None
    """The update at which cosine and linear reach `min_lr`. None: `steps`."""
    every: int = 1000
    """Step decay: updates from one step to the next."""
    factor: float = 0.5
    """Step decay: what a step multiplies the learning rate by."""
    period: int = 1000
    """Warm restarts: updates of the first cycle."""
    multiplier: int = 2
    """Warm restarts: how many times as long as a cycle the next one is."""


class LossScaleConfig(_Section, frozen=True, kw_only=True):
    """The factor on the loss that keeps small gradients above a narrow format's smallest number."""

    kind: LossScaling | None = None
    """None: dynamic for fp16, none otherwise."""
    initial: float = 1024.0
    """The scale of the first update, and of all of them when static."""
    growth: float = 2.0
    """Dynamic: what the scale is multiplied by after `interval` finite updates in a row."""
    backoff: float = 0.5
    """Dynamic: what it is multiplied by when an update has infinities, and is skipped."""
    interval: int = 200
    """Dynamic: finite updates in a row before the scale grows."""


class ThreadsConfig(_Section, frozen=True, kw_only=True):
    """Threads of each stage, and of BLAS in the whole process. None: chosen for the cores."""

    embed: int | None = None
    """Threads that look up the embeddings of the tokens."""
    forward: int | None = None
    """Threads that take micro-batches through the model."""
    backward: int | None = None
    """Threads that make the gradients of micro-batches."""
    reduce: int | None = None
    """Threads that sum the lanes into the gradient of a batch."""
    update: int | None = None
    """Threads that apply AdamW."""
    blas: int | None = None
    """Threads of one BLAS call; more than 1 only with gemm_backend=blas. The only count of these that changes bits."""


class EvaluationConfig(_Section, frozen=True, kw_only=True):
    """How often, and on how much of the validation text, the loss is measured; always once more at the end."""

    interval: int = 250
    """Updates from one evaluation to the next. 0: only at the end."""
    batches: int = 50
    """Batches of `batch_size` windows that an evaluation takes at most."""
    final_batches: int | None = None
    """The same for the one that ends the run. None: as `batches`."""


class CheckpointConfig(_Section, frozen=True, kw_only=True):
    """How often checkpoints are written, and how many stay; always one more at the end."""

    interval: int = 500
    """Updates from one checkpoint to the next. 0: only at the end."""
    keep: int = 2
    """Checkpoints that stay, the last ones. 0: all."""
    copies: bool | None = None
    """True: what the next update writes over is copied first, which takes memory; False: the update waits for the
    disk. None: True for small models."""


class TraceConfig(_Section, frozen=True, kw_only=True):
    """What is kept of when each stage worked."""

    batches: int = 64
    """The last ones of a run, kept in trace.json. 0: no trace, and no timeline.png."""
    timeline: int = 6
    """How many of them timeline.png shows."""


class Config(_Section, frozen=True, kw_only=True):
    """Everything about a run.

    An update learns from `batch_size` × `gradient_accumulation_steps` sequences; they are cut into micro-batches,
    whose gradients are summed in lanes. None: chosen by `resolve`.
    """

    name: str
    """What the configuration is called, in displays and pictures."""
    model: ModelConfig
    """The settings `model.*`."""
    data: DataConfig = DataConfig()
    """The settings `data.*`."""
    batch_size: int
    """Sequences of a batch, cut into micro-batches."""
    gradient_accumulation_steps: int = 1
    """Batches of `batch_size` whose gradients make one update."""
    micro_batch: int | None = None
    """Sequences of a micro-batch, a divisor of `batch_size`. None: so many that it stays in the cache."""
    lanes: int | None = None
    """Gradient arenas that the micro-batches of an update are summed in. None: about one a core."""
    shared_lanes: bool | None = None
    """Whether threads follow one another through a lane, which takes less memory and a little time. None: in
    float32, where lanes are large and it saves memory."""
    delay: int = 0
    """τ: batch k reads the weights after max(k−τ, 0) updates. 0: ordinary synchronous training."""
    precision: Precision = Precision.FLOAT32
    """What activations, products and the gradients between layers are made in."""
    float32_matmul_precision: MatmulPrecision = MatmulPrecision.HIGHEST
    """How exact a float32 product must be."""
    gemm_backend: Gemm | None = None
    """What multiplies float32 matrices. None: the faster one on this processor."""
    steps: int
    """Updates of the run."""
    seed: int = 1337
    """Of the initial weights and the order of the data."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The settings `optimizer.*`."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The settings `schedule.*`."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """The settings `loss_scale.*`."""
    threads: ThreadsConfig = ThreadsConfig()
    """The settings `threads.*`."""
    channel_capacity: int | None = None
    """Items that a channel between two stages holds. None: 2."""
    slots: int | None = None
    """Micro-batches in flight; each has its memory. None: enough for the threads."""
    extra_banks: int | None = None
    """Banks of weights beyond the τ+1 that the delay needs, so that an evaluation or a checkpoint holds up no update.
    None: 1 for small models, else 0."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The settings `evaluation.*`."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """The settings `checkpoint.*`."""
    trace: TraceConfig = TraceConfig()
    """The settings `trace.*`."""

    @property
    def sequences(self) -> int:
        """Sequences of one update, gradient accumulation included."""
        return self.batch_size * self.gradient_accumulation_steps


def flatten(config: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Return the value of every setting, by dotted key, in the order of the configuration; enums as enums."""
    found: dict[str, Any] = {}
    for name in config.__struct_fields__:
        value = getattr(config, name)
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, msgspec.Struct) else {prefix + name: value}
    return found
