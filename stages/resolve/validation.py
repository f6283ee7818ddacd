"""Checks of a configuration's values: against their limits, and against one another.

Open settings (None) pass every check, so a configuration can be validated before and after it is resolved.
"""

import math
import re
from collections.abc import Mapping

from threadloom.stages.config import (
    Config,
    ConfigError,
    DataConfig,
    Digits,
    Gemm,
    ModelConfig,
    Precision,
    ThreadsConfig,
    TokenizerKind,
    TokenOrder,
    divisors,
    flatten,
)
from threadloom.stages.models import parameter_count
from threadloom.stages.resolve.schedule_checks import check_schedule

MAX_PARAMETERS = 20_000_000_000

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")
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
    "threads.total": (0, 1024),
    "threads.control": (0, 1),
    "model.vocab_size": (1, 16_777_216),
    "model.context": (1, 131_072),
    "model.layers": (1, 1024),
    "model.heads": (1, 1024),
    "model.channels": (1, 65_536),
    "model.kv_heads": (1, 1024),
    "model.head_size": (2, 1024),
    "model.mlp_width": (1, 1_048_576),
    "model.epsilon": (1e-30, 1),
    "model.rotary.theta": (1, 1e12),
    "model.rotary.dimensions": (2, 1024),
    "model.rotary.factor": (1, 1e6),
    "model.rotary.low_freq_factor": (1e-6, 1e6),
    "model.rotary.high_freq_factor": (1e-6, 1e6),
    "model.rotary.original_context": (1, 16_777_216),
    "data.alphabet": (2, 1_114_112),
    "data.train_fraction": (0.01, 0.99),
    "data.digit_places": (1, 100_000),
    "data.digit_offset": (0, 100_000),
    "batch_size": (1, 1_000_000),
    "gradient_accumulation_steps": (1, 1_000_000),
    "lanes": (1, 1024),
    "delay": (0, 64),
    "seed": (0, 2**63 - 1),
    "lora.rank": (0, 4096),
    "lora.alpha": (1e-6, 1e6),
    "lora.dropout": (0, 0.99),
    "embedding.share": (0, 1000),
    "embedding.lattice_bits": (1, 16),
    "embedding.lattice_scale": (0, 16),
    "embedding.own_rows": (0, 16_777_216),
    "embedding.rank": (0, 65_536),
    "embedding.alpha": (-2, 2),
    "optimizer.lr": (0, 1e3),
    "optimizer.beta1": (0, 0.999999),
    "optimizer.beta2": (0, 0.999999),
    "optimizer.eps": (1e-30, 1),
    "optimizer.weight_decay": (0, 1e3),
    "optimizer.clip": (0, 1e9),
    "optimizer.clip_value": (0, 1e9),
    "optimizer.ema": (0, 0.9999999),
    "optimizer.rotation": (0, 1_000_000),
    "optimizer.lead": (0, 100),
    "optimizer.forecast_lead": (0, 100),
    "optimizer.synchronous_beta1": (0, 0.999999),
    "schedule.warmup": (0, 1_000_000_000),
    "schedule.delay_warmup": (0, 1_000_000_000),
    "schedule.synchronous": (0, 1_000_000_000),
    "schedule.rewarm": (0, 1_000_000_000),
    "schedule.rewarm_from": (0, 1_000_000_000),
    "schedule.context_warmup": (0, 1_000_000_000),
    "schedule.context_start": (0, 131_072),
    "schedule.min_lr": (0, 1e3),
    "schedule.factor": (0, 1),
    "schedule.cooldown_share": (0, 1),
    "dropout.embedding": (0, 0.99),
    "dropout.residual": (0, 0.99),
    "dropout.attention": (0, 0.99),
    "loss.label_smoothing": (0, 1),
    "loss.z_loss": (0, 1e3),
    "loss_scale.initial": (2.0**-24, 2.0**40),
    "loss_scale.growth": (1, 1024),
    "loss_scale.backoff": (2.0**-10, 1),
    "loss_scale.interval": (1, 1_000_000_000),
    "guard.deviations": (0, 1e6),
    "guard.window": (2, 100_000),
    "guard.most": (1, 1_000_000_000),
    "channel_capacity": (1, 65_536),
    "slots": (1, 65_536),
    "extra_banks": (0, 64),
    "evaluation.interval": (0, 1_000_000_000),
    "evaluation.patience": (0, 1_000_000_000),
    "checkpoint.interval": (0, 1_000_000_000),
    "checkpoint.keep": (0, 1_000_000_000),
    "checkpoint.every": (0, 1_000_000_000),
    "trace.batches": (0, 1_000_000),
}
"""Smallest and largest value of each number. The largest are far beyond use and catch typos and overflow."""


def validate(config: Config) -> None:
    """Raise ConfigError, which names the setting, for a value outside its limits or at odds with another one."""
    _check_limits(config)
    _check_name(config.name)
    _check_model(config.model, config.data.tokenizer)
    _check_tokenizer(config.data)
    _check_mixture(config.data)
    _check_digits(config.data)
    _check_embedding(config)
    _check_rotation(config)
    geometry = config.geometry_with(config.model.vocab_size or 1)
    config.optimizer.tensor_rates(geometry, config.frozen_in(geometry))
    _check_batches(config)
    _check_blas_threads(config.threads.blas, config.gemm_backend)
    check_schedule(config.schedule, config.optimizer, config.model.context)
    _check_checkpoints(config)
    _check_sets(config.evaluation.sets)
    _check_noise(config)


def _check_limits(config: Config) -> None:
    for key, value in flatten(config).items():
        if key in _LIMITS and value is not None:
            low, high = _LIMITS[key]
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(key, expected=f"{low:g} to {high:g}", got=f"{value!r}")


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("name", expected="text in UTF-8", got=name, hint="pass another name") from error


def _check_model(model: ModelConfig, tokenizer: TokenizerKind) -> None:
    model.check()
    if model.vocab_size is None:
        if tokenizer in (TokenizerKind.BPE, TokenizerKind.WORDS):
            learned = "the BPE tokenizer is trained" if tokenizer is TokenizerKind.BPE else "words are tokens"
            raise ConfigError(
                "model.vocab_size",
                expected=f"a size, up to which {learned}",
                got="null",
                hint="set model.vocab_size=10000, or data.tokenizer=characters",
            )
        return
    count = parameter_count(model.geometry_with(model.vocab_size))
    if count > MAX_PARAMETERS:
        raise ConfigError("model", expected=f"at most {MAX_PARAMETERS:,} parameters", got=f"{count:,}")


def _check_tokenizer(data: DataConfig) -> None:
    pretrained = data.tokenizer is TokenizerKind.PRETRAINED
    if pretrained != bool(data.tokenizer_path):
        raise ConfigError(
            "data.tokenizer_path",
            expected=f"{'a path' if pretrained else 'no path'} with data.tokenizer={data.tokenizer.value}",
            got=repr(data.tokenizer_path),
            hint="set both data.tokenizer=pretrained and data.tokenizer_path=PATH, or neither",
        )


def _check_mixture(data: DataConfig) -> None:
    if data.text.count("-") > 1:
        raise ConfigError("data.text", expected="standard input (-) once", got="several times")
    if not data.mixture:
        return
    if len(data.mixture) != len(data.text):
        raise ConfigError(
            "data.mixture",
            expected=f"a weight for each of the {len(data.text)} entries of data.text",
            got=f"{len(data.mixture)} weights",
            hint="pass --text once for each source, as in --text a.jsonl --text b.jsonl --set data.mixture=[3,1]",
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in data.mixture):
        raise ConfigError(
            "data.mixture",
            expected="finite weights above 0",
            got=f"{list(data.mixture)}",
            hint="leave a source without weight out of data.text",
        )


def _check_digits(data: DataConfig) -> None:
    abacus, pretrained = data.digits is Digits.ABACUS, data.tokenizer is TokenizerKind.PRETRAINED
    if abacus and data.tokenizer not in (TokenizerKind.CHARACTERS, TokenizerKind.BYTES):
        raise ConfigError(
            "data.digits",
            expected="plain, or abacus with a tokenizer of characters or bytes",
            got=f"abacus with data.tokenizer={data.tokenizer.value}",
            cause="in other tokenizers a token may have several digits",
            hint="leave data.digits out: the tokenizer of a model that was trained with places has them"
            if pretrained
            else "set data.tokenizer=characters or bytes",
        )
    if data.digit_offset and ((abacus and data.digit_offset >= data.digit_places) or not (abacus or pretrained)):
        raise ConfigError(
            "data.digit_offset",
            expected=f"less than data.digit_places = {data.digit_places}" if abacus else "0 with data.digits=plain",
            got=f"{data.digit_offset}",
            hint="set data.digits=abacus, and data.digit_places to the longest numbers plus the offset",
        )


def _check_rotation(config: Config) -> None:
    """Raise ConfigError for settings that a run cannot have together with rotated bases."""
    if not config.optimizer.rotation:
        return
    others = {
        "lora.rank": config.lora.rank,
        config.embedding.setting: config.embedding.derived,
        "grown_from": config.grown_from,
    }
    for key, value in others.items():
        if value:
            raise ConfigError(
                "optimizer.rotation",
                expected=f"0 with {key}",
                got=f"{config.optimizer.rotation}",
                cause="bases are those of whole matrices that are trained from the first update on",
                hint=f"set optimizer.rotation=0, or leave {key} out",
            )


def _check_embedding(config: Config) -> None:
    """Raise ConfigError for settings that a run cannot have together with factors of the embedding."""
    if not config.embedding.derived:
        return
    others = {
        "optimizer.ema": config.optimizer.ema,
        "lora.rank": config.lora.rank,
        "init": config.init,
        "train.only": " ".join(config.train.only),
        "train.freeze": " ".join(config.train.freeze),
    }
    for key, value in others.items():
        if value:
            raise ConfigError(
                key,
                expected=f"nothing, with {config.embedding.setting}",
                got=f"{value}",
                cause="an average of factors has no embedding of its own"
                if key == "optimizer.ema"
                else "the factors of the embedding are trained from random ones, together with the whole model",
                hint=f"leave {config.embedding.setting} out",
            )
    if config.embedding.banded:
        _check_bands(config)


def _check_bands(config: Config) -> None:
    """Raise ConfigError for settings that a run cannot have together with an embedding of low rank."""
    embedding = config.embedding
    if embedding.setting.count("embedding.") > 1:
        raise ConfigError(
            embedding.key,
            expected="one of embedding.rank, embedding.bands, embedding.layout and embedding.lattice",
            got=embedding.setting,
            hint="leave out all of them but one",
        )
    if (embedding.bands or embedding.alpha) and config.data.token_order not in (TokenOrder.FREQUENCY, TokenOrder.ULAM):
        raise ConfigError(
            "data.token_order",
            expected="frequency, with embedding.bands or embedding.alpha: a band is a range of frequencies",
            got=config.data.token_order.value,
            hint="set data.token_order=frequency, or one rank for all tokens: embedding.rank",
        )
    if config.precision is Precision.FP16:
        raise ConfigError(
            "precision",
            expected=f"float32, bf16 or bf16x3, with {embedding.setting}",
            got="fp16",
            hint="set precision=bf16, or precision=float32 where the processor has no bfloat16",
        )


def _check_batches(config: Config) -> None:
    if config.micro_batch and config.batch_size % config.micro_batch:
        raise ConfigError(
            "micro_batch",
            expected=f"a divisor of batch_size = {config.batch_size}",
            got=f"{config.micro_batch}",
            hint=f"its divisors are {divisors(config.batch_size)}",
        )
    micro_batches = config.sequences // (config.micro_batch or 1)
    if config.lanes and config.lanes > micro_batches:
        raise ConfigError(
            "lanes",
            expected=f"at most the {micro_batches} micro-batches of an update",
            got=f"{config.lanes}",
            hint="set fewer lanes or a smaller micro_batch",
        )


def _check_sets(sets: Mapping[str, str]) -> None:
    for name, path in sets.items():
        if not (_SET_NAME.fullmatch(name) and path):
            raise ConfigError(
                "evaluation.sets",
                expected="names of letters, digits, '-', '_' and '.', each with a path",
                got=f"{name!r}: {path!r}",
                hint='for example {"law": "law.txt"}',
            )


def _check_noise(config: Config) -> None:
    """Raise ConfigError if the gradients of parts of a batch, which the noise is computed from, are not there."""
    if not config.noise_scale:
        return
    if config.lanes == 1 or config.embedding.derived:
        raise ConfigError(
            "noise_scale",
            expected="false with an embedding of factors" if config.embedding.derived else "false with lanes = 1",
            got="true",
            cause="it compares the gradients of the lanes",
            hint=f"leave {config.embedding.setting} out" if config.embedding.derived else "set lanes=2",
        )


def _check_checkpoints(config: Config) -> None:
    """Raise ConfigError if losses cannot be compared, or checkpoints that are kept would not be written."""
    checkpoint, evaluation = config.checkpoint, config.evaluation
    compares = "evaluation.patience" if evaluation.patience else "checkpoint.best"
    if evaluation.patience and not evaluation.interval:
        raise ConfigError(
            "evaluation.interval", expected="updates between evaluations, with evaluation.patience", got="0"
        )
    if (evaluation.patience or checkpoint.best) and evaluation.final_batches not in (None, evaluation.batches):
        raise ConfigError(
            "evaluation.final_batches",
            expected=f"evaluation.batches = {evaluation.batches}, with {compares}",
            got=f"{evaluation.final_batches}",
            cause="losses on different windows cannot be compared",
            hint="leave it out",
        )
    if checkpoint.every and (not checkpoint.interval or checkpoint.every % checkpoint.interval):
        raise ConfigError(
            "checkpoint.every",
            expected=f"a multiple of checkpoint.interval = {checkpoint.interval}",
            got=f"{checkpoint.every}",
            cause="checkpoints are written every checkpoint.interval updates",
        )
    if checkpoint.best and (not evaluation.interval or checkpoint.interval % evaluation.interval):
        raise ConfigError(
            "checkpoint.interval",
            expected=f"a multiple of evaluation.interval = {evaluation.interval}, with checkpoint.best",
            got=f"{checkpoint.interval}",
            cause="a checkpoint of a step without an evaluation has no loss",
            hint="set both to the same number",
        )


def _check_blas_threads(threads: int | None, backend: Gemm | None) -> None:
    if backend is Gemm.NUMBA and threads is not None and threads > 1:
        raise ConfigError(
            "threads.blas",
            expected="1 with gemm_backend=numba",
            got=f"{threads}",
            cause="only BLAS splits one matrix product among threads",
        )
