"""The configuration: one frozen value, checked before anything starts and passed down from then on.

The way of a configuration: `load_config` reads it, `apply_overrides` changes single settings, `resolve` fills in what
was left open (`None`) for the cores at hand and the vocabulary of the text, and checks the whole with `validate`. A
resolved one holds no `None`, says everything about a run, and is what the run directory keeps. `trajectory` picks the
settings that decide the weights (guarantee 1): a resumed run may change any but those.

Every refusal is a `ConfigError` that names the setting in dotted form (`threads.forward`).
"""

import contextlib
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from threadloom.stages.config import (
    Config,
    ConfigError,
    LossScaling,
    ResolvedConfig,
    ScheduleKind,
    UnknownSettingError,
    flatten,
)

_S = typing.TypeVar("_S", bound=msgspec.Struct)

CONFIG_NAMES = ("nanogpt-cpu", "shakespeare", "small", "optimized", "large", "gpt2")
"""The configurations that ship with the package, by name."""

_RENAMED = {"gemm": "gemm_backend", "matmul": "float32_matmul_precision", "spare_banks": "extra_banks"}
"""Earlier names of settings, which files and `--set` may still use."""


def to_json(config: Config) -> str:
    """Return the configuration as indented JSON, every setting in it; `from_json` gives it back."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n"


def from_json(text: str | bytes, source: str = "configuration") -> Config:
    """Return the configuration that JSON text holds.

    Keys and types are checked here (ConfigError), values by `validate`. `source` names the text in errors.
    """
    return _decode(text, source, Config)


def resolved_from_json(text: str | bytes, source: str = "configuration") -> ResolvedConfig:
    """Return the resolved configuration that JSON text holds; a setting that is open in it is a ConfigError too."""
    return _decode(text, source, ResolvedConfig)


def _decode(text: str | bytes, source: str, kind: type[_S]) -> _S:
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            source,
            expected="JSON",
            got=str(error),
        ) from error
    if isinstance(raw, dict):
        raw = {
            _RENAMED.get(name, name) if _RENAMED.get(name) not in raw else name: value for name, value in raw.items()
        }
    _check_keys(raw, kind, "", source)
    return msgspec.convert(raw, kind)


def load_config(name_or_path: str | Path) -> Config:
    """Return a shipped configuration by name, that of a JSON file, or that of a run directory (its config.json)."""
    if str(name_or_path) in CONFIG_NAMES:
        shipped = resources.files("threadloom.stages") / "configs" / f"{name_or_path}.json"
        return from_json(shipped.read_bytes(), source=str(shipped))
    path = Path(name_or_path)
    file = path / "config.json" if path.is_dir() else path
    try:
        return from_json(file.read_bytes(), source=str(file))
    except OSError as error:
        close = _close_matches(path.name, CONFIG_NAMES)
        raise ConfigError(
            str(name_or_path),
            expected=f"one of {', '.join(CONFIG_NAMES)}, or a JSON file",
            got=error.strerror or type(error).__name__,
            hint=f"did you mean {' or '.join(close)}?" if close else None,
        ) from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return the configuration with settings changed by `key=value` texts, later ones winning.

    Keys are dotted (`optimizer.lr=3e-4`), values JSON or plain text; `null`, `none` and `auto` leave a setting that may
    be None open. Keys and types are checked here (ConfigError), values by `validate`.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        key = _RENAMED.get(key, key)
        if not equals:
            raise ConfigError(override, expected="key=value", got=repr(override))
        config = _replaced(config, key.split("."), _parsed(key, text.strip()))
    return config


def _replaced(section: _S, path: list[str], value: object) -> _S:
    if len(path) > 1:
        value = _replaced(getattr(section, path[0]), path[1:], value)
    return msgspec.structs.replace(section, **{path[0]: value})


def _parsed(key: str, text: str) -> object:
    kinds = setting_types()
    if key not in kinds:
        raise _unknown(key)
    kind = kinds[key]
    attempts: list[object] = [text, [text]]
    if text.lower() in ("none", "auto", "null") and text not in _choices(kind):  # loss_scale.kind=none is a choice
        attempts.insert(0, None)
    with contextlib.suppress(msgspec.DecodeError):
        attempts.insert(0, msgspec.json.decode(text))
    for attempt in attempts:
        try:
            return msgspec.convert(attempt, kind)
        except msgspec.ValidationError:
            continue
    raise _mistyped(key, kind, repr(text))


def _choices(kind: Any) -> list[Any]:
    """Return the values of the enumeration that a setting is, or may be."""
    found: list[Any] = []
    for option in typing.get_args(kind) or (kind,):
        if isinstance(option, enum.EnumType):
            members: list[enum.Enum] = list(option)
            found += [member.value for member in members]
    return found


def setting_types(section: type[msgspec.Struct] = Config, prefix: str = "") -> dict[str, Any]:
    """Return the type of every setting, by dotted key, in the order of the configuration."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(section).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            found |= setting_types(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = kind
    return found


def _check_keys(raw: object, section: type[msgspec.Struct], prefix: str, source: str) -> None:
    """Refuse unknown and missing keys and wrong types, each under its dotted name."""
    if not isinstance(raw, dict):
        raise ConfigError(prefix.rstrip(".") or source, expected="a JSON object", got=_shown(raw))
    hints = typing.get_type_hints(section)
    for name in raw:
        if name not in hints:
            raise _unknown(prefix + name, source)
    for field in msgspec.structs.fields(section):
        key, kind = prefix + field.name, hints[field.name]
        if field.name not in raw:
            if field.required:
                raise ConfigError(key, expected=_described(kind), got=f"nothing in {source}")
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            _check_keys(raw[field.name], kind, key + ".", source)
        else:
            try:
                msgspec.convert(raw[field.name], kind)
            except msgspec.ValidationError as error:
                raise _mistyped(key, kind, _shown(raw[field.name])) from error


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _close_matches(word: str, words: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(words), n=2, cutoff=0.6)


def _unknown(key: str, source: str | None = None) -> ConfigError:
    keys = list(setting_types())
    inside = [name for name in keys if name.startswith(key + ".")]
    if inside:
        return ConfigError(key, expected="a setting", got="a section", hint=f"its settings are {', '.join(inside)}")
    same_ending = [name for name in keys if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return UnknownSettingError(key, source, close=same_ending or _close_matches(key, keys))


def _described(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_described(one) for one in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(member.value for member in kind)
    words = {int: "a whole number", float: "a number", str: "a text", tuple[str, ...]: "a list of texts"}
    return words.get(kind, "null" if kind is type(None) else "a section")


_OTHER_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp32": "float32", "f32": "float32"}
"""What PyTorch and its users call a precision, and our name of it."""


def _mistyped(key: str, kind: Any, got: str) -> ConfigError:
    choices = _choices(kind)
    word = got.strip("'\"").lower()
    close = [_OTHER_NAMES[word]] if word in _OTHER_NAMES else _close_matches(word, map(str, choices))
    hint = f"did you mean {' or '.join(close)}?" if choices and set(close) & set(choices) else None
    return ConfigError(key, expected=_described(kind), got=got, hint=hint)


# --- what decides the weights -----------------------------------------------------------------------------------------

_ALWAYS = (
    "model.",
    "optimizer.",
    "data.tokenizer",
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
_BY_SCHEDULE = {
    ScheduleKind.CONSTANT: (),
    ScheduleKind.COSINE: ("schedule.min_lr", "schedule.decay_steps"),
    ScheduleKind.LINEAR: ("schedule.min_lr", "schedule.decay_steps"),
    ScheduleKind.STEP: ("schedule.min_lr", "schedule.every", "schedule.factor"),
    ScheduleKind.COSINE_RESTARTS: ("schedule.min_lr", "schedule.period", "schedule.multiplier"),
}
_BY_SCALING = {
    None: (),  # a configuration of the time before there was any
    LossScaling.NONE: (),
    LossScaling.STATIC: ("loss_scale.kind", "loss_scale.initial"),
    LossScaling.DYNAMIC: ("loss_scale.",),
}


def trajectory(config: Config, text_sha256: str | None = None) -> dict[str, Any]:
    """Return, by dotted key, the settings that decide the weights of a resolved configuration, as JSON values.

    `steps` is not among them: its only influence, where cosine and linear end, is the resolved `schedule.decay_steps`.
    The text is not known by its path but by its checksum (`Manifest.text_sha256`), which the caller may add.
    """
    wanted = (*_ALWAYS, *_BY_SCHEDULE[config.schedule.kind], *_BY_SCALING[config.loss_scale.kind])
    if config.shared_lanes:
        wanted = (*wanted, "shared_lanes")  # only where it is on: earlier runs, which do not know it, go on
    picked = {
        key: value.value if isinstance(value, enum.Enum) else value
        for key, value in flatten(config).items()
        if key in wanted or key.partition(".")[0] + "." in wanted
    }
    return picked if text_sha256 is None else {**picked, "data.text_sha256": text_sha256}


def trajectory_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys on which two trajectories differ, each with its saved and its wanted value (None: absent)."""
    keys = [*saved, *(key for key in wanted if key not in saved)]
    return {key: (saved.get(key), wanted.get(key)) for key in keys if saved.get(key) != wanted.get(key)}
