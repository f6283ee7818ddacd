"""Checking a configuration and filling in what it leaves open.

`validate` holds values against their limits and one another, `resolve` chooses for the cores at hand;
`stages.resolve.loading` is the place to import them from.
"""

import math

import msgspec

from threadloom.stages.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    EvaluationConfig,
    Gemm,
    LossScaleConfig,
    LossScaling,
    ModelConfig,
    Precision,
    ResolvedConfig,
    ResolvedThreads,
    ScheduleConfig,
    ThreadsConfig,
    TokenizerKind,
    flatten,
)
from threadloom.stages.models import Geometry, input_gradient_bytes, parameter_count
from threadloom.stages.resolve.precision import choose_here, is_open, with_precision

ROWS_PER_MICRO_BATCH = 256
"""Tokens that a micro-batch should hold, so that its working set stays in the L2 cache; at most twice as many. In 16
bits numbers are half as large, and it should hold twice this."""
MAX_LANES = 8
"""Lanes chosen at most, unless they are small: each costs a gradient arena, and the reducer reads them all."""
LANES_NUMBERS = 512 * 1024**2
"""Numbers (2 GiB) that the lanes may hold together where more than `MAX_LANES` are chosen for as many cores: at delay 0
a core without a lane is idle while gradients are made, two thirds of the time."""
SHARED = 64_000_000
"""Numbers (256 MB) of a lane from which two threads share one, for some per cent of the time of an update. Not in 16
bits, which are chosen for speed."""
CHANNEL_CAPACITY = 2
"""One item ahead of a stage and one to come: more only takes slots away from the stages behind."""
SPARED = 16_000_000
"""Numbers (64 MB) that a spare bank, or the copies of a checkpoint, may take at most. In larger models an evaluation or
checkpoint makes the next update wait instead."""
_COPIES = {Precision.BF16: 2, Precision.FP16: 1.5}
"""Banks' worth of memory that a bank takes with the forms in 16 bits that products read: bf16 has two, fp16 one."""
MAX_PARAMETERS = 20_000_000_000

_COUNTS = (
    "micro_batch",
    "steps",
    "schedule.every",
    "schedule.period",
    "schedule.multiplier",
    "schedule.decay_steps",
    "evaluation.batches",
    "evaluation.final_batches",
    "trace.timeline",
)
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_COUNTS, (1, 1_000_000_000)),
    **{f"threads.{name}": (1, 1024) for name in ThreadsConfig.__struct_fields__},
    "model.vocab_size": (1, 16_777_216),
    "model.context": (1, 131_072),
    "model.layers": (1, 1024),
    "model.heads": (1, 1024),
    "model.channels": (1, 65_536),
    "data.alphabet": (2, 1_114_112),
    "data.train_fraction": (0.01, 0.99),
    "batch_size": (1, 1_000_000),
    "gradient_accumulation_steps": (1, 1_000_000),
    "lanes": (1, 1024),
    "delay": (0, 64),
    "seed": (0, 2**63 - 1),
    "optimizer.lr": (0, 1e3),
    "optimizer.beta1": (0, 0.999999),
    "optimizer.beta2": (0, 0.999999),
    "optimizer.eps": (1e-30, 1),
    "optimizer.weight_decay": (0, 1e3),
    "optimizer.clip": (0, 1e9),
    "schedule.warmup": (0, 1_000_000_000),
    "schedule.min_lr": (0, 1e3),
    "schedule.factor": (0, 1),
    "loss_scale.initial": (2.0**-24, 2.0**40),
    "loss_scale.growth": (1, 1024),
    "loss_scale.backoff": (2.0**-10, 1),
    "loss_scale.interval": (1, 1_000_000_000),
    "channel_capacity": (1, 65_536),
    "slots": (1, 65_536),
    "extra_banks": (0, 64),
    "evaluation.interval": (0, 1_000_000_000),
    "checkpoint.interval": (0, 1_000_000_000),
    "checkpoint.keep": (0, 1_000_000_000),
    "trace.batches": (0, 1_000_000),
}
"""The lowest and the highest value of every number; the high ones are far beyond use and catch slips and overflow."""


def validate(config: Config) -> None:
    """Check the values against their limits and one another (ConfigError); open settings (None) pass."""
    for key, value in flatten(config).items():
        if key in _LIMITS and value is not None:
            low, high = _LIMITS[key]
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(key, expected=f"{low:g} to {high:g}", got=f"{value!r}")
    model, schedule = config.model, config.schedule
    if model.channels % model.heads:
        widths = [heads for heads in range(1, min(model.channels, 64) + 1) if model.channels % heads == 0]
        raise ConfigError(
            "model.channels",
            expected=f"a multiple of model.heads = {model.heads}",
            got=f"{model.channels}",
            cause="every head takes an equal part of the channels",
            hint=f"set model.heads to one of {widths}",
        )
    if model.vocab_size is None and config.data.tokenizer is TokenizerKind.BPE:
        raise ConfigError(
            "model.vocab_size",
            expected="a size",
            got="null",
            cause="a BPE tokenizer is trained up to a given size",
            hint="set model.vocab_size=10000, or data.tokenizer=characters",
        )
    count = parameter_count(model.geometry_with(model.vocab_size)) if model.vocab_size else 0
    if count > MAX_PARAMETERS:
        raise ConfigError(
            "model",
            expected=f"at most {MAX_PARAMETERS:,} parameters",
            got=f"{count:,}",
            hint="lower model.channels, model.layers or model.vocab_size",
        )
    if config.micro_batch and config.batch_size % config.micro_batch:
        raise ConfigError(
            "micro_batch",
            expected=f"a divisor of batch_size = {config.batch_size}",
            got=f"{config.micro_batch}",
            cause="a batch is cut into equal micro-batches",
            hint=f"set micro_batch to one of {_divisors(config.batch_size)}",
        )
    items = config.sequences // (config.micro_batch or 1)
    if config.lanes and config.lanes > items:
        raise ConfigError(
            "lanes",
            expected=f"at most the {items} micro-batches of an update",
            got=f"{config.lanes}",
            cause="a lane would sum no gradient",
            hint=f"set lanes to at most {items}, or a smaller micro_batch",
        )
    blas = config.threads.blas
    if config.gemm_backend is Gemm.NUMBA and blas is not None and blas > 1:
        raise ConfigError(
            "threads.blas",
            expected="1 with gemm_backend=numba",
            got=f"{blas}",
            cause="only BLAS shares one matrix product among threads of its own",
            hint="set gemm_backend=blas, or leave threads.blas at 1",
        )
    if schedule.min_lr > config.optimizer.lr:
        raise ConfigError(
            "schedule.min_lr",
            expected=f"at most optimizer.lr = {config.optimizer.lr:g}",
            got=f"{schedule.min_lr:g}",
            cause="the schedule decays from optimizer.lr to schedule.min_lr",
            hint="lower schedule.min_lr or raise optimizer.lr",
        )
    if schedule.decay_steps is not None and schedule.decay_steps < schedule.warmup:
        raise ConfigError(
            "schedule.decay_steps",
            expected=f"at least schedule.warmup = {schedule.warmup}",
            got=f"{schedule.decay_steps}",
            cause="the decay would end before it begins",
            hint="raise schedule.decay_steps or lower schedule.warmup",
        )


def resolve(config: Config, cores: int, vocabulary: int | None = None) -> ResolvedConfig:
    """Return the configuration with every open setting chosen, validated.

    `cores`: those that the run may use; `vocabulary`: the size of the prepared text's tokenizer, taken where
    `model.vocab_size` is open and checked against it where it is not. What is set stays as it is. A run shorter than
    its warm-up is allowed: `schedule.decay_steps` is then the end of the warm-up. A precision that depends on what is
    fast here (`stages.resolve.precision`) is settled: it is measured where that was not done before, in a fraction of a
    second once the kernels are compiled, and then stays with the configuration.
    """
    validate(config)
    if is_open(config):
        config = with_precision(config, choose_here(config).precision)
    geometry = config.model.geometry_with(_vocabulary_size(config.model, vocabulary))
    cores = max(1, cores)
    size = config.micro_batch or _choose_micro_batch(config, geometry, cores)
    items = config.sequences // size
    most = min(cores, items, _most_lanes(geometry))
    fewer = config.lanes or -(-most // 2)
    shared = _shares_lanes(config, geometry, most - fewer) if config.shared_lanes is None else config.shared_lanes
    lanes = config.lanes or (fewer if shared else most)
    threads = _chosen_threads(config.threads, cores, backward=min(cores, items if shared else lanes))
    copies = _COPIES.get(config.precision, 1)
    spare = int(copies * parameter_count(geometry) <= SPARED)
    chosen = msgspec.structs.replace(
        config,
        model=msgspec.structs.replace(config.model, vocab_size=geometry.vocabulary),
        micro_batch=size,
        lanes=lanes,
        shared_lanes=shared,
        gemm_backend=config.gemm_backend or _default_gemm(threads.blas),
        threads=threads,
        channel_capacity=config.channel_capacity or CHANNEL_CAPACITY,
        # Micro-batches of batches that have to wait for their version need no slot yet.
        slots=config.slots or min(threads.forward + threads.backward, items * (config.delay + 1)),
        extra_banks=spare if config.extra_banks is None else config.extra_banks,
        schedule=_with_decay(config),
        loss_scale=_with_kind(config),
        checkpoint=_with_copies(config, parameter_count(geometry)),
        evaluation=_with_final(config.evaluation),
    )
    validate(chosen)
    return msgspec.convert(msgspec.to_builtins(chosen), ResolvedConfig)  # fails if a setting is still open


def _vocabulary_size(model: ModelConfig, vocabulary: int | None) -> int:
    """Return the size of the vocabulary: the model's if set, else that of the text's tokenizer."""
    if model.vocab_size is None:
        if vocabulary is None:
            raise ConfigError(
                "model.vocab_size",
                expected="a size",
                got="null",
                cause="the configuration leaves it to the text's tokenizer and was not resolved",
                hint="resolve(config, cores, vocabulary=...) with the prepared data's vocabulary, or set it",
            )
        return vocabulary
    if vocabulary is not None and vocabulary > model.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least the tokenizer's {vocabulary} tokens",
            got=f"{model.vocab_size}",
            cause="the tokenizer belongs to another model or text",
            hint=f"set model.vocab_size={vocabulary} or prepare it anew",
        )
    return model.vocab_size


def _chosen_threads(threads: ThreadsConfig, cores: int, backward: int) -> ResolvedThreads:
    return ResolvedThreads(
        embed=threads.embed or 1,
        forward=threads.forward or cores,
        backward=threads.backward or backward,
        reduce=threads.reduce or cores,
        update=threads.update or cores,
        blas=threads.blas or 1,
    )


def _with_decay(config: Config) -> ScheduleConfig:
    end = config.schedule.decay_steps or max(config.steps, config.schedule.warmup)
    return msgspec.structs.replace(config.schedule, decay_steps=end)


def _with_final(evaluation: EvaluationConfig) -> EvaluationConfig:
    return msgspec.structs.replace(evaluation, final_batches=evaluation.final_batches or evaluation.batches)


def _with_kind(config: Config) -> LossScaleConfig:
    """Choose dynamic scaling for fp16, whose smallest number gradients fall below; bf16 has float32's exponents."""
    chosen = LossScaling.DYNAMIC if config.precision is Precision.FP16 else LossScaling.NONE
    return msgspec.structs.replace(config.loss_scale, kind=config.loss_scale.kind or chosen)


def _with_copies(config: Config, parameters: int) -> CheckpointConfig:
    """Choose copies where they are small: their time is then less than the disk's, and their memory no burden."""
    small = parameters * (2 + config.delay) <= SPARED
    copies = config.checkpoint.copies
    return msgspec.structs.replace(config.checkpoint, copies=small if copies is None else copies)


def _default_gemm(blas_threads: int) -> Gemm:
    """Return the product that is faster on this processor; one with several threads is BLAS's alone."""
    if blas_threads > 1:
        return Gemm.BLAS
    # Numba is loaded only where a configuration is resolved, not for --help.
    from threadloom.kernels import GemmBackend, blas_info

    return Gemm.BLAS if blas_info(load=False).backend is GemmBackend.BLAS else Gemm.NUMBA


def _shares_lanes(config: Config, geometry: Geometry, saved: int) -> bool:
    """Choose shared lanes where lanes are large, and `saved` of them more than what is kept of a batch."""
    parameters = parameter_count(geometry)
    large = config.precision not in _COPIES and parameters > SHARED
    return large and saved * parameters * 4 > input_gradient_bytes(geometry, config.sequences)


def _most_lanes(geometry: Geometry) -> int:
    return max(MAX_LANES, LANES_NUMBERS // parameter_count(geometry))


def _divisors(number: int) -> list[int]:
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def _choose_micro_batch(config: Config, geometry: Geometry, cores: int) -> int:
    """Return the divisor of batch_size that keeps micro-batches in cache and the lanes evenly loaded.

    First of all each lane gets a micro-batch and the rows stay within twice the aim, where any size allows it; then the
    least sum of the time lost to idle lanes and, at half weight, the distance from the aim, both in powers of two.
    """
    lanes = min(cores, config.sequences, _most_lanes(geometry))
    if config.lanes and not config.shared_lanes:
        lanes = config.lanes

    aim = ROWS_PER_MICRO_BATCH * (2 if config.precision in _COPIES else 1)

    def cost(size: int) -> tuple[bool, bool, float, int]:
        items, rows = config.sequences // size, size * geometry.context
        idle = math.log2(-(-items // lanes) * lanes / items)
        away = abs(math.log2(rows / aim))
        return items < lanes, size > 1 and rows > 2 * aim, idle + away / 2, size

    return min(_divisors(config.batch_size), key=cost)
