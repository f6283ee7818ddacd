"""The model and the adapters that both sides of `benchmarks.finetune` open, as folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.protocol import FineTuning
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import ExportedModel, export_model, write_adapter
from threadloom.stages.config import Config
from threadloom.stages.models import initialise, lora_shapes, parameter_count, parameter_shapes
from threadloom.stages.resolve import load_config
from threadloom.stages.storage import StoredFormat, is_model_folder
from threadloom.stages.training import RANDOM_VOCABULARY


def model_folder(name: str, context: int, parent: Path) -> Path:
    """Return the folder of a model, or write one into `parent` with random weights in the shape of a configuration.

    Its tensors are in bfloat16, as most published ones, and its context is at least `context`. Raises ConfigError.
    """
    if is_model_folder(Path(name)):
        return Path(name).absolute()
    config = load_config(name)
    geometry = config.model.geometry_with(config.model.vocab_size or RANDOM_VOCABULARY)
    geometry = replace(geometry, context=max(context, geometry.context))
    weights = Arena(parameter_shapes(geometry))
    initialise(weights, geometry, config.seed, residual_scaling=config.model.residual_scaling)
    folder = parent / config.name
    export_model(ExportedModel(parent, weights, geometry, None), folder, StoredFormat.BF16)
    return folder


def fine_tuning(config: Config, folder: Path) -> FineTuning:
    """Return the model and the adapters of a configuration for PyTorch; the adapters are written into `folder`.

    Their values are those that threadloom starts from.
    """
    geometry = config.geometry_with(config.model.geometry_with(RANDOM_VOCABULARY).vocabulary)
    if geometry.lora is None:
        return FineTuning(model=config.init)
    weights = {name: np.zeros(shape, np.float32) for name, shape in lora_shapes(geometry).items()}
    initialise(weights, geometry, config.seed)
    folder.mkdir()
    write_adapter(folder, weights, geometry, frozenset(), config.init)
    parameters = parameter_count(geometry, config.frozen_in(geometry))
    return FineTuning(model=config.init, adapter=str(folder), adapter_parameters=parameters)
