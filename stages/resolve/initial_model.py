"""Runs that start from the weights of an existing model: its sizes, its tokenizer, settings for fine-tuning."""

from pathlib import Path

import msgspec

from threadloom.stages.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    TokenizerKind,
    flatten,
    model_config_of,
)
from threadloom.stages.models import Geometry
from threadloom.stages.storage import CONFIG_FILE, RunDirectory, finished_checkpoints, is_model_folder, read_geometry


def model_folder(path: Path) -> Path:
    """Return the folder with the model at a path: the newest checkpoint of a run directory, or the path itself.

    Raises ConfigError if there is no model.
    """
    checkpoints = finished_checkpoints(RunDirectory(path).checkpoints)
    folder = checkpoints[-1] if checkpoints else path
    if not is_model_folder(folder):
        raise ConfigError(
            str(path),
            expected="a folder with a model in Hugging Face's layout, a checkpoint, or a run directory with one",
            got="none of them" if path.exists() else "no such folder",
            hint=f"pass the folder that contains the {CONFIG_FILE} of the model",
        )
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


def fine_tuning_config(path: Path) -> Config:
    """Return settings for fine-tuning all weights of the model at a path, on sequences of its context.

    The learning rate is that of transformers' `Trainer`, with a short warm-up and a cosine; weights do not decay.
    Raises ConfigError or CheckpointError.
    """
    folder = model_folder(path)
    config = Config(
        name=folder.name,
        model=model_config_of(read_geometry(folder / CONFIG_FILE)),
        batch_size=8,
        steps=300,
        precision=Precision.AUTO,
        optimizer=OptimizerConfig(lr=5e-5, beta2=0.999, weight_decay=0.0),
        schedule=ScheduleConfig(warmup=10),
        evaluation=EvaluationConfig(interval=50, batches=20),
        checkpoint=CheckpointConfig(interval=100),
    )
    return with_initial_model(config, path)


def with_initial_model(config: Config, path: Path) -> Config:
    """Return the configuration of a run that starts from the weights of the model at a path.

    Its settings `model.*` are the sizes of that model, its tokenizer is the model's. Raises ConfigError if there is no
    model, CheckpointError if it cannot be used.
    """
    folder = model_folder(path)
    model = model_config_of(read_geometry(folder / CONFIG_FILE))
    return msgspec.structs.replace(config, init=str(folder), model=model, data=_with_tokenizer(config.data, folder))


def _with_tokenizer(data: DataConfig, folder: Path) -> DataConfig:
    return msgspec.structs.replace(data, tokenizer=TokenizerKind.PRETRAINED, tokenizer_path=str(folder))


def require_initial_model(config: Config) -> None:
    """Raise ConfigError unless the settings `model.*` are those of the model that the run starts from.

    A shorter context is allowed. Without an initial model nothing is checked.
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


def _settings(geometry: Geometry) -> dict[str, object]:
    return flatten(model_config_of(geometry), "model.")


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
