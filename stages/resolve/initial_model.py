"""Runs that start from the weights of an existing model: its sizes, its tokenizer, settings for fine-tuning.

A run that starts from adapters starts from the model that they belong to as well, and has their settings `lora.*`.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from threadloom.stages.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    TokenizerKind,
    flatten,
    model_config_of,
)
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.resolve.fine_tuning_rate import FINE_TUNING_WARMUP, fine_tuning_rate
from threadloom.stages.storage import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    RunDirectory,
    base_folder,
    finished_checkpoints,
    is_adapter_folder,
    is_model_folder,
    read_adapter_config,
    read_adapter_parts,
    read_geometry,
)

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class InitialModel:
    """The folders whose weights a run starts from."""

    model: Path
    """Folder of a model in Hugging Face's layout, absolute."""
    adapter: Path | None = None
    """Folder of the model's adapters in PEFT's layout, absolute. None: the model alone."""

    @classmethod
    def at(cls, path: Path, base: Path | None = None) -> "InitialModel":
        """Return what is at a path, or in the newest checkpoint of a run directory.

        `base` is the folder of the model that adapters belong to, if it is not where they were trained from. Raises
        ConfigError if there is no model, CheckpointError for adapters that cannot be used.
        """
        checkpoints = finished_checkpoints(RunDirectory(path).checkpoints)
        folder = checkpoints[-1] if checkpoints else path
        if is_adapter_folder(folder):
            model = base_folder(folder, read_adapter_config(folder), base)
            return cls(_recorded(model), _recorded(folder))
        if is_model_folder(folder) and base is None:
            return cls(_recorded(folder))
        if is_model_folder(folder):
            expected, got = "a folder with adapters, since --base is the model that they belong to", "a whole model"
        else:
            expected = "a folder with a model in Hugging Face's layout, with adapters in PEFT's, or a run directory"
            got = "none of them" if path.exists() else "no such folder"
        hint = f"pass the folder that contains the {CONFIG_FILE} of the model, or {ADAPTER_CONFIG_FILE}"
        raise ConfigError(str(path), expected=expected, got=got, hint=hint)


def _recorded(folder: Path) -> Path:
    """Return the absolute path of a folder; raises ConfigError if a configuration cannot hold it."""
    folder = folder.absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            str(folder),
            expected="a path in UTF-8, which config.json can hold",
            got="other bytes",
            hint="rename the folder",
        ) from error
    return folder


def fine_tuning_config(path: Path, base: Path | None = None) -> Config:
    """Return settings for fine-tuning the model at a path, or its adapters, on sequences of the model's context.

    The learning rate is that of `fine_tuning_rate`, with a short warm-up and a cosine; weights do not decay. `base` and
    errors are as in `InitialModel.at`.
    """
    initial = InitialModel.at(path, base)
    model = model_config_of(read_geometry(initial.model / CONFIG_FILE))
    rate = fine_tuning_rate(model.channels, adapters=initial.adapter is not None)
    config = Config(
        name=(initial.adapter or initial.model).name,
        model=model,
        batch_size=8,
        steps=300,
        precision=Precision.AUTO,
        optimizer=OptimizerConfig(lr=rate, beta2=0.999, weight_decay=0.0),
        schedule=ScheduleConfig(warmup=FINE_TUNING_WARMUP),
        evaluation=EvaluationConfig(interval=50, batches=20),
        checkpoint=CheckpointConfig(interval=100),
    )
    return _starting_from(config, initial)


def with_initial_model(config: Config, path: Path, base: Path | None = None) -> Config:
    """Return the configuration of a run that starts from the weights of the model at a path, or of its adapters.

    Its settings `model.*` are the sizes of that model, `lora.*` those of its adapters, and its tokenizer is theirs.
    `base` and errors are as in `InitialModel.at`.
    """
    return _starting_from(config, InitialModel.at(path, base))


def _starting_from(config: Config, initial: InitialModel) -> Config:
    geometry, tokenizer = read_geometry(initial.model / CONFIG_FILE), initial.model
    if initial.adapter is not None:
        config = msgspec.structs.replace(config, lora=_adapter_settings(initial.adapter, geometry))
        if (initial.adapter / _TOKENIZER_FILE).exists():
            tokenizer = initial.adapter
    return msgspec.structs.replace(
        config,
        init=str(initial.model),
        model=model_config_of(geometry),
        data=_with_tokenizer(config.data, tokenizer),
    )


def _adapter_settings(folder: Path, geometry: Geometry) -> LoraConfig:
    """Return the settings of the adapters in a folder; raises CheckpointError for adapters that cannot be used."""
    parts = read_adapter_parts(folder, read_adapter_config(folder), geometry)
    return LoraConfig(
        rank=parts.lora.rank,
        alpha=parts.lora.alpha,
        rslora=parts.lora.rank_stabilised,
        targets=tuple(sorted(parts.lora.modules)),
        dropout=parts.lora.dropout,
        save=parts.saved_modules(geometry),
        init=str(folder),
    )


def _with_tokenizer(data: DataConfig, folder: Path) -> DataConfig:
    return msgspec.structs.replace(data, tokenizer=TokenizerKind.PRETRAINED, tokenizer_path=str(folder))


def require_initial_model(config: Config) -> None:
    """Raise ConfigError unless the settings `model.*` and `lora.*` are those of the model that the run starts from.

    A shorter context and another dropout are allowed. Without an initial model nothing is checked.
    """
    if not config.init:
        return
    folder = Path(config.init)
    found = read_geometry(folder / CONFIG_FILE)
    model = config.model
    wanted = model.geometry_with(found.vocabulary if model.vocab_size is None else model.vocab_size)
    theirs, ours = _settings(found), _settings(wanted)
    for key in dict.fromkeys([*theirs, *ours]):
        if theirs.get(key) == ours.get(key) or (key == "model.context" and wanted.context <= found.context):
            continue
        limit = "at most " if key == "model.context" else ""
        raise ConfigError(
            key,
            expected=f"{limit}{_text(theirs.get(key))}, as in the model in {folder}",
            got=_text(ours.get(key)),
            cause="the run starts from the weights of that model",
            hint="leave the settings model.* out; only a shorter model.context is possible",
        )
    if config.lora.init:
        _require_adapters(config.lora, found)
    if config.lora.rank:
        _require_whole_tensors(config, found)


def _require_whole_tensors(config: Config, model: Geometry) -> None:
    """Raise ConfigError if a tensor that is saved with the adapters is shorter than that of the model."""
    ours, theirs = parameter_shapes(config.geometry_with(model.vocabulary)), parameter_shapes(model)
    shorter = [name for name in theirs.keys() - config.lora.frozen_tensors(model) if ours[name] != theirs[name]]
    if shorter:
        raise ConfigError(
            "model.context",
            expected=f"{model.context} with {', '.join(config.lora.save)} in lora.save",
            got=f"{config.model.context}",
            cause=f"{shorter[0]} is trained as a whole, and must fit the model that the adapters are used with",
            hint="leave model.context out, or the positions out of lora.save",
        )


def _require_adapters(lora: LoraConfig, geometry: Geometry) -> None:
    """Raise ConfigError unless the settings are those of the adapters that the run starts from."""
    theirs = _adapter_settings(Path(lora.init), geometry)
    if lora.lora(geometry) != msgspec.structs.replace(theirs, dropout=lora.dropout).lora(geometry):
        key = next(key for key in ("rank", "alpha", "rslora", "targets") if getattr(lora, key) != getattr(theirs, key))
        expected, got = getattr(theirs, key), getattr(lora, key)
    elif lora.frozen_tensors(geometry) != theirs.frozen_tensors(geometry):
        key, expected, got = "save", theirs.save, lora.save
    else:
        return
    raise ConfigError(
        f"lora.{key}",
        expected=f"{_text(expected)}, as in the adapters in {lora.init}",
        got=_text(got),
        cause="the run starts from the weights of those adapters",
        hint="leave the settings lora.* out; only lora.dropout can be another one",
    )


def _settings(geometry: Geometry) -> dict[str, object]:
    return flatten(model_config_of(geometry), "model.")


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
