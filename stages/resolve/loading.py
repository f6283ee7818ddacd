"""Reading and changing configurations: shipped ones, JSON files, run directories, `--set key=value`.

Keys and types are checked here, values by `validate`. Every error is a `ConfigError` that names the setting by its
dotted key, such as `threads.forward`.
"""

import contextlib
import difflib
import enum
import json
import types
import typing
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from threadloom.stages.config import (
    DEFAULT_ARCHITECTURE,
    MODEL_CONFIGS,
    Config,
    ConfigError,
    DelayCorrection,
    ModelArchitecture,
    ModelConfig,
    OptimizerGroup,
    ResolvedConfig,
    SpecialTokens,
    UnknownSettingError,
)
from threadloom.stages.resolve.initial_model import fine_tuning_config
from threadloom.stages.resolve.setting_types import field_types, sections_of, setting_types
from threadloom.stages.storage import is_adapter_folder, is_model_folder, plain_json

_S = typing.TypeVar("_S", bound=msgspec.Struct)

CONFIG_NAMES = (
    "nanogpt-tuned", "nanogpt-pipelined", "nanogpt-cpu", "shakespeare", "small", "optimized", "large", "gpt2",
    "llama-small", "smollm2-135m", "qwen3-0.6b",
)  # fmt: skip
"""Names of the configurations that ship with the package."""

_ARCHITECTURE = "model.architecture"
"""The setting that decides which other settings `model.*` there are."""

_RENAMED = {"gemm": "gemm_backend", "matmul": "float32_matmul_precision", "spare_banks": "extra_banks"}
"""Earlier names of settings, which files and `--set` may still use."""

_FIRST_DATA = frozenset(("text", "tokenizer", "alphabet", "train_fraction"))
"""Settings `data.*` of the first release. A file with all of them was saved by a run; if it has no
`data.special_tokens`, the run is one of a release in which special tokens in a text always were tokens."""

_PRECISION_ALIASES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp32": "float32", "f32": "float32"}
"""PyTorch's names of precisions, which are suggested corrections, not accepted values."""


def to_json(config: Config) -> str:
    """Return the configuration as indented JSON with every setting; `from_json` reads it back."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n"


def from_json(text: str | bytes, source: str = "configuration") -> Config:
    """Return the configuration in a JSON text; `source` names the text in errors (ConfigError)."""
    return _decode(text, source, Config)


def run_config_from_json(text: str | bytes, source: str) -> Config:
    """Return the configuration in a run's config.json, in which no setting is open.

    Runs of releases without remedies for a delay had none.
    """
    config = from_json(text, source)
    resolved = None not in (config.micro_batch, config.lanes, config.slots)
    if resolved and config.delay_correction is None:
        config = msgspec.structs.replace(config, delay_correction=DelayCorrection.NONE)
    return config


def resolved_from_json(text: str | bytes, source: str = "configuration") -> ResolvedConfig:
    """Return the resolved configuration in a JSON text; an open setting in it is a ConfigError too."""
    return _decode(text, source, ResolvedConfig)


def load_config(name_or_path: str | Path) -> Config:
    """Return a shipped configuration by name, or that of a JSON file or of the config.json in a run directory.

    That of the folder of a model in Hugging Face's layout, or of adapters, fine-tunes it (`fine_tuning_config`).

    Raises ConfigError if there is none, or if it has unknown or missing keys or values of the wrong type.
    """
    if str(name_or_path) in CONFIG_NAMES:
        shipped = resources.files("threadloom.stages") / "configs" / f"{name_or_path}.json"
        return from_json(shipped.read_bytes(), source=str(shipped))
    path = Path(name_or_path)
    if is_model_folder(path) or is_adapter_folder(path):
        return fine_tuning_config(path)
    try:
        if path.is_dir():
            return run_config_from_json((path / "config.json").read_bytes(), source=str(path / "config.json"))
        return from_json(path.read_bytes(), source=str(path))
    except OSError as error:
        raise ConfigError(
            str(name_or_path),
            expected=f"one of {', '.join(CONFIG_NAMES)}, or a JSON file",
            got=error.strerror or type(error).__name__,
            hint=_did_you_mean(_close_matches(path.name, CONFIG_NAMES)),
        ) from error


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return the configuration with settings changed by `key=value` texts; later ones win.

    Keys are dotted (`optimizer.lr=3e-4`), values JSON or plain text; `null`, `none` and `auto` reopen a setting that
    may be None. `model.architecture` is changed first: the settings that both architectures have keep their values, the
    others get the defaults. Raises ConfigError for an unknown key or a value of the wrong type.
    """
    pairs = sorted(map(_split_override, overrides), key=lambda pair: pair[0] != _ARCHITECTURE)
    for key, text in pairs:
        value = _parse_value(key, text, config.model.architecture)
        if key == _ARCHITECTURE:
            config = msgspec.structs.replace(config, model=_as_architecture(config.model, ModelArchitecture(value)))
        else:
            config = _replace_setting(config, key.split("."), value)
    return config


def _decode(text: str | bytes, source: str, kind: type[_S]) -> _S:
    try:
        raw = msgspec.json.decode(plain_json(text) if isinstance(text, bytes) else text.removeprefix("\ufeff"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(source, expected="JSON", got=str(error)) from error
    if isinstance(raw, dict):
        new_names = {old: new for old, new in _RENAMED.items() if new not in raw}
        raw = {new_names.get(name, name): value for name, value in raw.items()}
        if isinstance(model := raw.get("model"), dict):
            raw["model"] = {"architecture": DEFAULT_ARCHITECTURE.value, **model}
        if isinstance(data := raw.get("data"), dict) and data.keys() >= _FIRST_DATA:
            raw["data"] = {"special_tokens": SpecialTokens.TOKENS.value, **data}
    _check_keys(raw, kind, "", source)
    return msgspec.convert(raw, kind)


def _split_override(override: str) -> tuple[str, str]:
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(override, expected="key=value", got=repr(override))
    return _RENAMED.get(name.strip(), name.strip()), text.strip()


def _check_keys(raw: object, section: type[msgspec.Struct], prefix: str, source: str) -> None:
    """Raise ConfigError for unknown and missing keys and for values of the wrong type, each by its dotted key."""
    if not isinstance(raw, dict):
        raise _no_object(prefix.rstrip(".") or source, raw)
    hints = field_types(section)
    for name in raw:
        if name not in hints:
            raise _unknown_setting(prefix + name, section, source)
    for field in msgspec.structs.fields(section):
        key, kind = prefix + field.name, hints[field.name]
        if field.name not in raw:
            if field.required:
                raise ConfigError(key, expected=_describe_type(kind), got=f"nothing in {source}")
        elif sections := sections_of(kind):
            _check_keys(raw[field.name], _section_of(raw[field.name], sections, key), key + ".", source)
        else:
            try:
                msgspec.convert(raw[field.name], kind)
            except msgspec.ValidationError as error:
                raise _wrong_type(key, kind, _excerpt(raw[field.name])) from error


def _section_of(raw: object, sections: Sequence[type[msgspec.Struct]], key: str) -> type[msgspec.Struct]:
    """Return the section of a union that the tag in `raw` selects."""
    tag = sections[0].__struct_config__.tag_field
    if tag is None:
        return sections[0]
    if not isinstance(raw, dict):
        raise _no_object(key, raw)
    for section in sections:
        if section.__struct_config__.tag == raw[tag]:
            return section
    raise _wrong_type(f"{key}.{tag}", field_types(sections[0])[tag], _excerpt(raw[tag]))


def _no_object(key: str, got: object) -> ConfigError:
    return ConfigError(key, expected="a JSON object", got=_excerpt(got))


def _parse_value(key: str, text: str, architecture: ModelArchitecture) -> object:
    kinds = setting_types(architecture=architecture)
    if key not in kinds:
        raise _unknown_setting(key, MODEL_CONFIGS[architecture])
    kind = kinds[key]
    attempts: list[object] = [text, [text]]
    if text.lower() in ("none", "auto", "null") and text not in _choices(kind):  # loss_scale.kind=none is a choice
        attempts.insert(0, None)
    with contextlib.suppress(ValueError, RecursionError):  # not JSON
        # json reads arguments that are not UTF-8, which msgspec does not.
        value = msgspec.json.decode(text) if text.isascii() else json.loads(text)
        attempts = [value, *attempts, [value]]
    for attempt in attempts:
        try:
            return msgspec.convert(attempt, kind)
        except (msgspec.ValidationError, UnicodeEncodeError):
            continue
    raise _wrong_type(key, kind, repr(text))


def _replace_setting(section: _S, path: list[str], value: object) -> _S:
    if len(path) > 1:
        value = _replace_setting(getattr(section, path[0]), path[1:], value)
    return msgspec.structs.replace(section, **{path[0]: value})


def _as_architecture(model: ModelConfig, architecture: ModelArchitecture) -> ModelConfig:
    """Return the settings of another architecture, with the values of those that `model` has too."""
    if model.architecture is architecture:
        return model
    kind = MODEL_CONFIGS[architecture]
    return kind(**{name: getattr(model, name) for name in kind.__struct_fields__ if name in model.__struct_fields__})


def _choices(kind: Any) -> list[Any]:
    """Return the values of an enum, or of the enums in a union; none for other types."""
    found: list[Any] = []
    for option in typing.get_args(kind) or (kind,):
        if isinstance(option, enum.EnumType):
            members: list[enum.Enum] = list(option)
            found += [member.value for member in members]
    return found


def _unknown_setting(key: str, section: type[msgspec.Struct], source: str | None = None) -> ConfigError:
    """Return the error for a key that `section`, the section of the key or the model's, does not have."""
    keys = list(setting_types())
    inside = [name for name in keys if name.startswith(key + ".")]
    own = section.__struct_config__.tag
    owners = [
        architecture.value
        for architecture, kind in MODEL_CONFIGS.items()
        if {key, *inside} & setting_types(kind, "model.").keys()
    ]
    if owners and own not in owners:
        return ConfigError(
            key,
            expected=f"a setting of the architecture {own}",
            got=f"one of {' or '.join(owners)}",
            cause=f"model.architecture is {own}" + ("" if source is None else f" in {source}"),
            hint=f"set model.architecture={owners[0]}, or leave it out",
        )
    if inside:
        return ConfigError(key, expected="a setting", got="a section", hint=f"its settings are {', '.join(inside)}")
    same_ending = [name for name in keys if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return UnknownSettingError(key, source, close=same_ending or _close_matches(key, keys))


def _wrong_type(key: str, kind: Any, got: str) -> ConfigError:
    choices = _choices(kind)
    word = got.strip("'\"").lower()
    close = [_PRECISION_ALIASES[word]] if word in _PRECISION_ALIASES else _close_matches(word, map(str, choices))
    hint = _did_you_mean([choice for choice in close if choice in choices])
    return ConfigError(key, expected=_describe_type(kind), got=got, hint=hint)


def _close_matches(word: str, words: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(words), n=2, cutoff=0.6)


def _did_you_mean(words: Sequence[str]) -> str | None:
    return f"did you mean {' or '.join(words)}?" if words else None


def _describe_type(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe_type, typing.get_args(kind))))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(member.value for member in kind)
    names = {
        int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null",
        tuple[str, ...]: "a list of strings", tuple[int, ...]: "a list of integers",
        dict[str, str]: 'an object such as {"law": "law.txt", "code": "code/"}',
        tuple[OptimizerGroup, ...]: 'a list such as [{"match": "*.bias", "decay": 0}, {"match": "wte", "lr": 0.5}]',
    }  # fmt: skip
    return names.get(kind, "a section")


def _excerpt(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
