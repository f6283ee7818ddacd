"""Tuned settings of this machine: the fastest that `threadloom tune` found, as `train` and `--estimate` read them.

A record holds for one machine, one model, batch and delay, one precision, one number of threads and one version of the
package; all of them are part of its path:

    $XDG_CACHE_HOME/threadloom/tuned/MACHINE/MODEL-BATCH-DELAY-VERSION.json

(`$THREADLOOM_CACHE/tuned/...` if that variable is set.)

`with_tuned_settings` fills a record into the settings that a configuration leaves open. Explicit settings take
precedence, and a record that was measured with different explicit settings is ignored.
"""

from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from loguru import logger

from threadloom.stages.config import Config, EmbeddingConfig, Gemm, Precision, ResolvedConfig, flatten
from threadloom.stages.machine import Machine, cache_root
from threadloom.stages.resolve.precision import choose_precision_here, is_precision_open
from threadloom.stages.storage import atomic_write, plain_json

TunedValue = int | Gemm

TUNED_KEYS: Mapping[str, str] = {
    "micro_batch": "micro_batch",
    "lanes": "lanes",
    "gemm": "gemm_backend",
    "blas": "threads.blas",
    "forward": "threads.forward",
    "backward": "threads.backward",
    "reduce": "threads.reduce",
    "update": "threads.update",
    "slots": "slots",
    "channel_capacity": "channel_capacity",
}
"""Field of `TunedSettings` → dotted key of the setting."""
_THREADS = ("forward", "backward", "reduce", "update", "blas")


class TunedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value for every setting that is tuned."""

    micro_batch: int
    lanes: int
    gemm: Gemm
    blas: int
    forward: int
    backward: int
    reduce: int
    update: int
    slots: int
    channel_capacity: int

    @classmethod
    def of(cls, resolved: ResolvedConfig) -> "TunedSettings":
        """Return the tuned settings of a configuration."""
        values = flatten(resolved)
        return cls(**{name: values[key] for name, key in TUNED_KEYS.items()})

    def differences(self, other: "TunedSettings") -> dict[str, TunedValue]:
        """Return, by field, the values that differ from those of `other`."""
        return {name: value for name in TUNED_KEYS if (value := getattr(self, name)) != getattr(other, name)}

    def changed(self, **values: TunedValue) -> "TunedSettings":
        """Return the settings with other values; unless `slots` is among them, slots grow and shrink with the threads.

        The number of slots beyond one per thread of forward and backward stays the same.
        """
        other = msgspec.structs.replace(self, **values)
        if "slots" in values:
            return other
        workers = other.forward + other.backward
        extra = self.slots - self.forward - self.backward  # negative if an update has fewer micro-batches than threads
        return msgspec.structs.replace(other, slots=max(workers + extra, min(workers, self.slots)))


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of one tuning, as it is stored."""

    machine: str
    """Fingerprint of the machine."""
    config: str
    """Name of the configuration."""
    measured_with: dict[str, TunedValue]
    """Explicit settings during the tuning, by field of `TunedSettings`; the record holds for runs with the same."""
    choice: TunedSettings
    kept_defaults: bool
    reason: str
    seconds: float
    """Duration of the search."""


def with_defaults(config: Config, tuned: TunedSettings) -> Config:
    """Return the configuration with tuned values in the settings that it leaves open."""
    threads = config.threads
    counts = {name: getattr(threads, name) or getattr(tuned, name) for name in _THREADS}
    return msgspec.structs.replace(
        config,
        micro_batch=config.micro_batch or tuned.micro_batch,
        lanes=config.lanes or tuned.lanes,
        gemm_backend=config.gemm_backend or tuned.gemm,
        slots=config.slots or tuned.slots,
        channel_capacity=config.channel_capacity or tuned.channel_capacity,
        threads=msgspec.structs.replace(threads, **counts),
    )


def explicit_settings(config: Config) -> dict[str, TunedValue]:
    """Return, by field of `TunedSettings`, the settings that the configuration does not leave open."""
    values = flatten(config)
    return {name: values[key] for name, key in TUNED_KEYS.items() if values[key] is not None}


def format_settings(values: Mapping[str, TunedValue]) -> str:
    """Format settings, keyed by field of `TunedSettings`, as arguments of `--set`; "the defaults" if there are none."""
    return " ".join(f"{TUNED_KEYS[name]}={format_value(value)}" for name, value in values.items()) or "the defaults"


def format_value(value: TunedValue) -> str:
    """Format a value as `--set` accepts it."""
    return value.value if isinstance(value, Gemm) else str(value)


def record_path(
    config: Config, machine: Machine, explicit: Mapping[str, TunedValue] | None = None, threads: int | None = None
) -> Path:
    """Return the path of a configuration's record.

    `explicit` are the explicit settings during the tuning, and `threads` is the number of threads that the stages may
    use, by default one per core. An open precision is chosen first, so that a record belongs to the precision that was
    measured.
    """
    model = config.model
    precision = choose_precision_here(config).precision if is_precision_open(config) else config.precision
    vocabulary = "text" if model.vocab_size is None else model.vocab_size
    parts = [
        f"v{vocabulary}{model.size_label}",
        f"b{config.batch_size}x{config.gradient_accumulation_steps}",
        f"delay{config.delay}",
        *(["rotated"] if config.optimizer.rotation else []),
        *([] if precision is Precision.FLOAT32 else [precision.value]),
        *_trained_label(config),
        *_embedding_label(config),
        *([] if config.shared_lanes is None else ["shared" if config.shared_lanes else "apart"]),
        *(f"{name}{format_value(value)}" for name, value in sorted((explicit or {}).items())),
        *([] if threads in (None, machine.logical_cores) else [f"threads{threads}"]),
        _package_version(),
    ]
    return cache_root() / "tuned" / machine.fingerprint() / ("-".join(parts) + ".json")


def _trained_label(config: Config) -> list[str]:
    """Return a part of a file name that identifies the trained tensors; none if all of them are trained."""
    geometry = config.geometry_with(config.model.vocab_size or 1)
    trained = [*sorted(config.frozen_in(geometry)), *(sorted(geometry.lora.modules) if geometry.lora else [])]
    rank = [f"lora{geometry.lora.rank}"] if geometry.lora else []
    return rank + ([f"frozen{sha256(' '.join(trained).encode()).hexdigest()[:8]}"] if trained else [])


def _embedding_label(config: Config) -> list[str]:
    """Return a part of a file name that identifies the factors of the embedding; none for a plain embedding."""
    if config.embedding == EmbeddingConfig():
        return []
    return [f"embedding{sha256(msgspec.json.encode(config.embedding)).hexdigest()[:8]}"]


def _package_version() -> str:
    try:
        return version("threadloom")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unreleased"


def write_record(path: Path, record: TuningRecord) -> None:
    """Write a record, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def with_tuned_settings(config: Config, machine: Machine, threads: int | None = None) -> Config:
    """Return the configuration with this machine's tuned settings for its open settings, and log them.

    The settings are those that were tuned for `threads` threads, by default one per core. The configuration is returned
    as it is if there is no record, if the defaults were fastest, or if the record does not agree with the explicit
    settings.
    """
    explicit = explicit_settings(config)
    if len(explicit) == len(TUNED_KEYS):
        return config  # nothing is open, as in the configuration of a resumed run
    paths = (record_path(config, machine, settings, threads) for settings in (explicit, None))
    for path in dict.fromkeys(paths):
        record = _read_record(path)
        if record is None or record.kept_defaults:
            continue
        other = {name: value for name, value in explicit.items() if getattr(record.choice, name) != value}
        if other:
            logger.info("tuned settings are not used: they were measured without {}", format_settings(other))
            continue
        filled = with_defaults(config, record.choice)
        new = {name: value for name, value in explicit_settings(filled).items() if name not in explicit}
        if new:
            logger.info("tuned for this machine: {} ({})", format_settings(new), path)
        return filled
    return config


def _read_record(path: Path) -> TuningRecord | None:
    try:
        return msgspec.json.decode(plain_json(path.read_bytes()), type=TuningRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("tuned settings in {} cannot be read ({}); remove the file, or tune again", path, error)
        return None
