"""The settings that decide the weights: a resumed run may change any setting but these."""

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from threadloom.stages.config import (
    Borders,
    Config,
    DelayCorrection,
    Digits,
    LossScaling,
    Packing,
    ScheduleKind,
    Shuffle,
    SpikeAction,
    TokenOrder,
    flatten,
)

_ALWAYS = (
    "model.",
    "train.",
    "optimizer.",
    "data.tokenizer",
    "data.tokenizer_path",
    "data.special_tokens",
    "data.alphabet",
    "data.train_fraction",
    "precision",
    "gemm_backend",
    "batch_size",
    "gradient_accumulation_steps",
    "micro_batch",
    "lanes",
    "delay",
    "seed",
    "threads.blas",
    "schedule.kind",
    "schedule.warmup",
)
_ABSENT_IF_OFF = ("optimizer.lead", "optimizer.clip_value", "optimizer.groups", "optimizer.ema", "optimizer.rotation")
"""Settings that came later, and are not in the trajectories of earlier versions."""
_BY_SCHEDULE = {
    ScheduleKind.CONSTANT: (),
    ScheduleKind.COSINE: ("schedule.min_lr", "schedule.decay_steps"),
    ScheduleKind.LINEAR: ("schedule.min_lr", "schedule.decay_steps"),
    ScheduleKind.STEP: ("schedule.min_lr", "schedule.every", "schedule.factor"),
    ScheduleKind.COSINE_RESTARTS: ("schedule.min_lr", "schedule.period", "schedule.multiplier"),
    ScheduleKind.WSD: ("schedule.min_lr", "schedule.decay_steps", "schedule.cooldown_share"),
    ScheduleKind.CONSTANT_COOLDOWN: (
        "schedule.min_lr",
        "schedule.decay_steps",
        "schedule.cooldown_share",
        "schedule.cooldown",
    ),
}
_BY_SCALING = {
    None: (),  # saved by a version without loss scaling
    LossScaling.NONE: (),
    LossScaling.STATIC: ("loss_scale.kind", "loss_scale.initial"),
    LossScaling.DYNAMIC: ("loss_scale.",),
}


def trajectory(config: Config, text_sha256: str | None = None) -> dict[str, Any]:
    """Return the settings that decide the weights, by dotted key, as JSON values; the configuration is resolved.

    `steps` is not among them: it only decides where cosine and linear decay end, which is `schedule.decay_steps` once
    resolved. The text is identified by its checksum (`DatasetManifest.text_sha256`), which the caller may add.
    """
    keys = (*_ALWAYS, *_BY_SCHEDULE[config.schedule.kind], *_BY_SCALING[config.loss_scale.kind])
    if config.shared_lanes:
        keys = (*keys, "shared_lanes")  # absent otherwise, as in runs that earlier versions saved
    if config.delay_correction not in (None, DelayCorrection.NONE):  # the same
        keys = (*keys, "delay_correction", "schedule.delay_warmup")
    if config.data.token_order is not TokenOrder.ID:  # the same
        keys = (*keys, "data.token_order")
    if config.data.packing is not Packing.WINDOWS:
        keys = (*keys, "data.packing")
    if config.data.borders is not Borders.IGNORED:
        keys = (*keys, "data.borders")
    if config.data.shuffle is not Shuffle.DRAWN:  # the same
        keys = (*keys, "data.shuffle")
    if config.data.digits is not Digits.PLAIN or config.data.digit_offset:
        keys = (*keys, "data.digits", "data.digit_places", "data.digit_offset")
    if config.data.mixture:
        keys = (*keys, "data.mixture")
    if config.dropout.drops:  # the same
        keys = (*keys, "dropout.")
    if config.loss.has_terms:  # the same
        keys = (*keys, "loss.")
    if config.delay and config.schedule.synchronous:
        keys = (*keys, "schedule.synchronous")
    if config.schedule.rewarm:
        keys = (*keys, "schedule.rewarm", "schedule.rewarm_from")
    if config.schedule.context_warmup:
        keys = (*keys, "schedule.context_warmup", "schedule.context_start")
    if config.grown_from:
        keys = (*keys, "grown_from")
    if config.embedding.derived:  # the same
        keys = (*keys, "embedding.")
    if config.guard.action is SpikeAction.SKIP:
        keys = (*keys, "guard.")
    if config.init:
        keys = (*keys, "init")
    if config.lora.rank:
        keys = (*keys, "lora.")
    settings = flatten(config)
    absent = {key for key in _ABSENT_IF_OFF if not settings[key]}
    if config.optimizer.forecast_lead in (None, config.optimizer.lead):  # as in earlier versions, which had one lead
        absent.add("optimizer.forecast_lead")
    if config.optimizer.synchronous_beta1 in (None, config.optimizer.beta1):  # the same
        absent.add("optimizer.synchronous_beta1")
    picked = {
        key: _as_json(value)
        for key, value in settings.items()
        if (key in keys or key.partition(".")[0] + "." in keys) and key not in absent
    }
    return picked if text_sha256 is None else {**picked, "data.text_sha256": text_sha256}


def _as_json(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return msgspec.to_builtins(list(value)) if isinstance(value, tuple) else value


def trajectory_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return, by key, the saved and the wanted value where two trajectories differ; None if absent."""
    keys = [*saved, *(key for key in wanted if key not in saved)]
    return {key: (saved.get(key), wanted.get(key)) for key in keys if saved.get(key) != wanted.get(key)}
