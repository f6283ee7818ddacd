"""Choices for the settings that a configuration leaves open, which depend on the cores, the processor and the text."""

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
    divisors,
)
from threadloom.stages.models import Geometry, input_gradient_bytes, parameter_count
from threadloom.stages.resolve.delay_correction import with_delay_correction
from threadloom.stages.resolve.learning_rate import with_learning_rate
from threadloom.stages.resolve.precision import choose_precision_here, is_precision_open, with_precision
from threadloom.stages.resolve.team import choose_team
from threadloom.stages.resolve.validation import validate

ROWS_PER_MICRO_BATCH = 256
"""Preferred number of tokens of a float32 micro-batch, whose working set then stays in the L2 cache; at most twice as
many. In 16 bits, where elements are half as large, both are doubled."""
MAX_LANES = 8
"""Maximum number of lanes, unless they are small: each costs a gradient arena, and the reducer reads all of them."""
LANES_ELEMENTS = 512 * 1024**2
"""Maximum number of elements (2 GiB) of all lanes together if more than `MAX_LANES` are chosen. At delay 0 a core
without a lane is idle during backward, two thirds of the time."""
SHARED_LANE_ELEMENTS = 64_000_000
"""Lanes with more elements than this (256 MB) are shared by two threads each. That costs up to a tenth of the time of
an update in which every thread has one micro-batch, since all but one of them add to gradients instead of overwriting
their own; in 16 bits, which are chosen for speed, such updates have a lane per thread."""
CHANNEL_CAPACITY = 2
"""One item that the consumer takes next and one more; a larger channel only holds slots that downstream stages need."""
SMALL_MODEL_ELEMENTS = 8_000_000
"""Maximum number of elements (32 MB) of an extra bank or of the copies of a checkpoint. In larger models, an evaluation
or a checkpoint delays the next update instead."""
_BANK_COPIES = {Precision.BF16: 2, Precision.FP16: 1.5}
"""Memory of a bank with its packed weights, as a multiple of the float32 master: bf16 packs two layouts, fp16 one."""


def resolve(config: Config, cores: int, vocabulary: int | None = None, *, threads: int | None = None) -> ResolvedConfig:
    """Return the configuration with a choice for every open setting; explicit settings keep their values.

    `cores` is the number of cores of the machine, on which lanes and micro-batches depend, and `threads` the number of
    threads for the stages if `threads.total` is open, by default `cores`; it does not affect the weights. `vocabulary`
    is the size of the tokenizer of the prepared text: it is taken if `model.vocab_size` is open, and must not exceed it
    otherwise. If `steps` is less than
    `schedule.warmup`, `schedule.decay_steps` becomes the end of the warm-up. A precision that depends on speed
    (`stages.resolve.precision`) is chosen once, and measured if this machine has no measurement yet: a fraction of a
    second once the kernels are compiled.

    Raises ConfigError for values that `validate` rejects, and if there is no size of the vocabulary.
    """
    validate(config)
    if is_precision_open(config):
        config = with_precision(config, choose_precision_here(config).precision)
    config = with_learning_rate(with_delay_correction(config))
    geometry = config.geometry_with(_vocabulary_size(config.model, vocabulary))
    parameters = parameter_count(geometry, config.frozen_in(geometry))  # those that take lanes and moments
    cores = max(1, cores)
    micro_batch = config.micro_batch or _choose_micro_batch(config, geometry, min(cores, _max_lanes(parameters)))
    micro_batches = config.sequences // micro_batch
    concurrent = min(cores, micro_batches, _max_lanes(parameters))
    lanes, shared = _choose_lanes(config, geometry, parameters, micro_batches, concurrent)
    workers = config.threads.total or threads or cores
    counts = choose_threads(config.threads, workers, micro_batches if shared else lanes)
    gemm = config.gemm_backend or _fastest_gemm(counts.blas)
    team = choose_team(config, geometry, gemm, workers, micro_batches, shared_lanes=shared)
    extra = int(_BANK_COPIES.get(config.precision, 1) * parameters <= SMALL_MODEL_ELEMENTS)
    chosen = msgspec.structs.replace(
        config,
        model=config.model.resolved(geometry.vocabulary),
        micro_batch=micro_batch,
        lanes=lanes,
        shared_lanes=shared,
        recompute=bool(config.recompute) and config.precision in _BANK_COPIES,
        gemm_backend=gemm,
        threads=msgspec.structs.replace(counts, team=team),
        channel_capacity=config.channel_capacity or CHANNEL_CAPACITY,
        slots=config.slots or choose_slots(config, geometry, counts.forward, counts.backward, micro_batches),
        extra_banks=extra if config.extra_banks is None else config.extra_banks,
        schedule=_with_decay(config.schedule, config.steps),
        loss_scale=_with_scaling(config.loss_scale, config.precision),
        checkpoint=_with_copies(config.checkpoint, parameters * (2 + config.delay)),
        evaluation=_with_final(config.evaluation),
    )
    validate(chosen)
    return msgspec.convert(msgspec.to_builtins(chosen), ResolvedConfig)  # raises if a setting is still open


def _vocabulary_size(model: ModelConfig, vocabulary: int | None) -> int:
    if model.vocab_size is None:
        if vocabulary is None:
            raise ConfigError(
                "model.vocab_size",
                expected="a size",
                got="null",
                hint="pass the size of the tokenizer to resolve(config, cores, vocabulary), or set it",
            )
        return vocabulary
    if vocabulary is not None and vocabulary > model.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            expected=f"at least the {vocabulary} tokens of the tokenizer",
            got=f"{model.vocab_size}",
        )
    return model.vocab_size


def _choose_micro_batch(config: Config, geometry: Geometry, lanes: int) -> int:
    """Return the divisor of `batch_size` that best fits the cache and at most `lanes` lanes.

    Sizes with a micro-batch for every lane and have at most twice the preferred number of rows come first. Among
    them, the cost is the time lost to idle lanes plus half the distance from the preferred rows, both as log2.
    """
    lanes = min(lanes, config.sequences)
    if config.lanes and not config.shared_lanes:
        lanes = config.lanes

    preferred = ROWS_PER_MICRO_BATCH * (2 if config.precision in _BANK_COPIES else 1)

    def cost(size: int) -> tuple[bool, bool, float, int]:
        items, rows = config.sequences // size, size * geometry.context
        idle = math.log2(-(-items // lanes) * lanes / items)
        distance = abs(math.log2(rows / preferred))
        return items < lanes, size > 1 and rows > 2 * preferred, idle + distance / 2, size

    return min(divisors(config.batch_size), key=cost)


def _max_lanes(parameters: int) -> int:
    return max(MAX_LANES, LANES_ELEMENTS // parameters)


def _choose_lanes(
    config: Config, geometry: Geometry, parameters: int, micro_batches: int, concurrent: int
) -> tuple[int, bool]:
    """Return the number of lanes for `concurrent` threads in backward, and True if two threads share each.

    `parameters` is the number of trained ones. Lanes are shared if they are large and the saved ones take more memory
    than the input gradients of a batch; in 16 bits only if each thread has several micro-batches of an update.
    """
    half = config.lanes or -(-concurrent // 2)
    shared = config.shared_lanes
    if shared is None:
        cheap = config.precision not in _BANK_COPIES or micro_batches >= 2 * concurrent
        large = cheap and parameters > SHARED_LANE_ELEMENTS
        saved = (concurrent - half) * parameters * 4
        shared = large and saved > input_gradient_bytes(geometry, config.sequences)
    return config.lanes or (half if shared else concurrent), shared


def choose_threads(threads: ThreadsConfig, workers: int, writers: int) -> ResolvedThreads:
    """Return the counts that are set, and for the others those of `workers` threads, `writers` of them in backward."""
    return ResolvedThreads(
        total=threads.total,
        embed=threads.embed or 1,
        forward=threads.forward or workers,
        backward=threads.backward or min(workers, writers),
        reduce=threads.reduce or workers,
        update=threads.update or workers,
        blas=threads.blas or 1,
        team=threads.team or 1,
        control=threads.control,
    )


def choose_slots(config: Config, geometry: Geometry, forward: int, backward: int, micro_batches: int) -> int:
    """Return the number of slots for threads of forward and backward; an update has `micro_batches`.

    With one slot per thread every core has a micro-batch. A small model has twice as many: forward of the next
    micro-batches then goes on beside backward of these, and no thread waits for one to be drawn and passed on. One more
    than the threads is slower than none: its micro-batch leaves another one for the end of the update, alone.
    Micro-batches of later batches wait for their version of the weights, and need no slot until it is there.
    """
    of_threads = max(forward, backward) * (2 if parameter_count(geometry) <= SMALL_MODEL_ELEMENTS else 1)
    return min(of_threads, micro_batches * (config.delay + 1))


def _fastest_gemm(blas_threads: int) -> Gemm:
    """Return the faster float32 GEMM of this processor; only BLAS can use several threads for one product."""
    if blas_threads > 1:
        return Gemm.BLAS
    from threadloom.kernels import GemmBackend, blas_info  # loads Numba

    return Gemm.BLAS if blas_info(load=False).backend is GemmBackend.BLAS else Gemm.NUMBA


def _with_decay(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    return msgspec.structs.replace(schedule, decay_steps=schedule.decay_steps or max(steps, schedule.warmup or 0))


def _with_scaling(loss_scale: LossScaleConfig, precision: Precision) -> LossScaleConfig:
    """Choose dynamic scaling for fp16, in which small gradients underflow; bf16 has the exponents of float32."""
    default = LossScaling.DYNAMIC if precision is Precision.FP16 else LossScaling.NONE
    return msgspec.structs.replace(loss_scale, kind=loss_scale.kind or default)


def _with_copies(checkpoint: CheckpointConfig, elements: int) -> CheckpointConfig:
    """Choose copies if their `elements` are few: copying is then faster than the disk and takes little memory."""
    small = elements <= SMALL_MODEL_ELEMENTS
    return msgspec.structs.replace(checkpoint, copies=small if checkpoint.copies is None else checkpoint.copies)


def _with_final(evaluation: EvaluationConfig) -> EvaluationConfig:
    return msgspec.structs.replace(evaluation, final_batches=evaluation.final_batches or evaluation.batches)
