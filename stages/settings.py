"""The settings: what a configuration consists of, as frozen values with their defaults.

Only the shape is here; `stages.config` reads, changes, checks and resolves configurations, and is the place to import
from.
"""

import enum
from typing import Any

import msgspec

from stages.parameters import Geometry


class InputError(ValueError):
    """Something from outside cannot be used: what was needed, what was there, the likely cause and the remedy."""

    def __init__(self, subject: str, needed: str, found: str, cause: str, remedy: str) -> None:
        self.subject, self.needed, self.found, self.cause, self.remedy = subject, needed, found, cause, remedy
        end = "" if remedy.endswith("?") else "."
        super().__init__(f"{subject}: needed {needed}; found {found}. Likely cause: {cause}. Remedy: {remedy}{end}")


class ConfigError(InputError):
    """A setting that cannot be used; `subject` is its dotted key, or the file's name."""


class ScheduleKind(enum.Enum):
    """The learning-rate schedules; formulas in `stages.schedule`."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"
    STEP = "step"
    COSINE_RESTARTS = "cosine_restarts"


class TokenizerKind(enum.Enum):
    """How a text becomes token ids; see `stages.tokenizer`."""

    CHARACTERS = "characters"
    BYTES = "bytes"
    BPE = "bpe"


class Gemm(enum.Enum):
    """What multiplies matrices: the package's own kernel, or BLAS. The two round differently."""

    NUMBA = "numba"
    BLAS = "blas"


class Precision(enum.Enum):
    """What activations, products and the gradients between layers are made in; the weights' masters are float32."""

    FLOAT32 = "float32"
    BF16X3 = "bf16x3"
    BF16 = "bf16"
    FP16 = "fp16"
    AUTO = "auto"


class Matmul(enum.Enum):
    """How exact a float32 product must be: `HIGH` allows bf16x3 where that is faster, as in PyTorch."""

    HIGHEST = "highest"
    HIGH = "high"


class LossScaling(enum.Enum):
    """Whether gradients are multiplied before they are rounded; see `stages.loss_scale`."""

    NONE = "none"
    STATIC = "static"
    DYNAMIC = "dynamic"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a configuration have in common."""


class ModelConfig(_Section, frozen=True, kw_only=True):
    """The GPT-2 model. `vocab_size` None: as many tokens as the text's tokenizer turns out to have.

    `residual_scaling`: begin with smaller weights where a block writes to the residual stream, as GPT-2 does; it keeps
    deep models stable, and a shallow one learns a little better without.
    """

    vocab_size: int | None = None
    context: int
    layers: int
    heads: int
    channels: int
    residual_scaling: bool = True

    def geometry(self) -> Geometry:
        """Return the sizes from which the tensors follow; ConfigError while the vocabulary is open."""
        if self.vocab_size is None:
            raise ConfigError(
                "model.vocab_size",
                needed="a size",
                found="null",
                cause="the configuration leaves it to the text's tokenizer and was not resolved",
                remedy="resolve(config, cores, vocabulary=...) with the prepared data's vocabulary, or set it",
            )
        return Geometry(self.vocab_size, self.context, self.layers, self.heads, self.channels)


class DataConfig(_Section, frozen=True, kw_only=True):
    """The text and its tokens.

    `text`: files and directories (empty: the source of Python's standard library); `alphabet`: most characters that a
    character tokenizer keeps; `train_fraction`: the part, from the front, that is trained on; the rest validates.
    """

    text: tuple[str, ...] = ()
    tokenizer: TokenizerKind = TokenizerKind.CHARACTERS
    alphabet: int = 256
    train_fraction: float = 0.9


class OptimizerConfig(_Section, frozen=True, kw_only=True):
    """AdamW with decoupled decay on matrices only; `clip` bounds the global gradient norm (0: off)."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0


class ScheduleConfig(_Section, frozen=True, kw_only=True):
    """The learning rate over the updates.

    `warmup`: updates of linear rise; `min_lr`: where the decay ends (a floor for step decay); `decay_steps`: the update
    at which cosine and linear reach it (None: `steps`); `every`, `factor`: step decay; `period`, `multiplier`: the
    first cycle of the warm restarts, and how much longer each next one is.
    """

    kind: ScheduleKind = ScheduleKind.COSINE
    warmup: int = 0
    min_lr: float = 0.0
    decay_steps: int | None = None
    every: int = 1000
    factor: float = 0.5
    period: int = 1000
    multiplier: int = 2


class LossScaleConfig(_Section, frozen=True, kw_only=True):
    """The factor on the loss that keeps small gradients above a narrow format's smallest number.

    `kind` None: dynamic for fp16, none otherwise. `initial` is the scale of the first update, and of all of them when
    static. Dynamic: after `interval` finite updates in a row it is multiplied by `growth`; an update with infinities is
    skipped, and the scale is multiplied by `backoff`.
    """

    kind: LossScaling | None = None
    initial: float = 1024.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 200


class ThreadsConfig(_Section, frozen=True, kw_only=True):
    """Threads of each stage, and of BLAS in the whole process. None: chosen for the cores."""

    embed: int | None = None
    forward: int | None = None
    backward: int | None = None
    reduce: int | None = None
    update: int | None = None
    blas: int | None = None


class EvaluationConfig(_Section, frozen=True, kw_only=True):
    """Every `interval` updates (0: only at the end), over at most `batches` batches of `batch_size` windows.

    `final_batches` is the bound of the evaluation that ends the run (None: the same as `batches`).
    """

    interval: int = 250
    batches: int = 50
    final_batches: int | None = None


class CheckpointConfig(_Section, frozen=True, kw_only=True):
    """Every `interval` updates (0: only at the end) a checkpoint is written; the last `keep` stay (0: all).

    With `copies`, what the next update writes over is copied first, which takes memory; without, the update waits for
    the disk.
    """

    interval: int = 500
    keep: int = 2
    copies: bool | None = None


class TraceConfig(_Section, frozen=True, kw_only=True):
    """`batches`: the last ones of a run kept in trace.json (0: no trace); `timeline`: how many the picture shows."""

    batches: int = 64
    timeline: int = 6


class Config(_Section, frozen=True, kw_only=True):
    """Everything about a run.

    An update learns from `batch_size` × `gradient_accumulation_steps` sequences; `batch_size` is cut into micro-batches
    of `micro_batch` sequences, whose gradients are summed in `lanes` gradient arenas; with `shared_lanes`, threads
    follow one another through a lane, which takes less memory and a little time. `delay` is τ: batch k reads the
    weights after max(k−τ, 0) updates. `precision` is that of activations and products, `matmul` how exact a float32
    product must be, `gemm` what multiplies float32 matrices. `slots` are the micro-batches in flight,
    `spare_banks` the weight banks beyond the τ+1 that delay needs, `channel_capacity` the items that a channel holds.
    None: chosen by `resolve`.
    """

    name: str
    model: ModelConfig
    data: DataConfig = DataConfig()
    batch_size: int
    gradient_accumulation_steps: int = 1
    micro_batch: int | None = None
    lanes: int | None = None
    shared_lanes: bool | None = None
    delay: int = 0
    precision: Precision = Precision.FLOAT32
    matmul: Matmul = Matmul.HIGHEST
    gemm: Gemm | None = None
    steps: int
    seed: int = 1337
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    threads: ThreadsConfig = ThreadsConfig()
    channel_capacity: int | None = None
    slots: int | None = None
    spare_banks: int | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trace: TraceConfig = TraceConfig()

    @property
    def sequences(self) -> int:
        """Sequences of one update, gradient accumulation included."""
        return self.batch_size * self.gradient_accumulation_steps


def micro_batches(config: Config) -> int:
    """Return the micro-batches of one update, gradient accumulation included; ConfigError while unresolved."""
    if config.micro_batch is None:
        raise ConfigError(
            "micro_batch",
            needed="a number of sequences",
            found="null",
            cause="the configuration was not resolved",
            remedy="resolve(config, cores, ...), or set it",
        )
    return config.sequences // config.micro_batch


def flatten(config: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Return the value of every setting, by dotted key, in the order of the configuration; enums as enums."""
    found: dict[str, Any] = {}
    for name in config.__struct_fields__:
        value = getattr(config, name)
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, msgspec.Struct) else {prefix + name: value}
    return found
