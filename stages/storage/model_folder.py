"""The files of a model in Hugging Face's layout, and its configuration."""

from pathlib import Path

import msgspec

from threadloom.stages.models import Geometry, UnsupportedModelError, geometry_of_huggingface
from threadloom.stages.storage.json_text import plain_json
from threadloom.stages.storage.tensor_file import CheckpointError

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""The index of a model that is divided into shards."""
CONFIG_FILE = "config.json"

_MODELS = "GPT-2, Llama, Mistral, Qwen2, Qwen3, SmolLM2 or SmolLM3"


class _ModelType(msgspec.Struct):
    model_type: str | None = None


def is_model_folder(folder: Path) -> bool:
    """Return True if a directory has the config.json of a model; that of a run has the settings of the training."""
    try:
        found = msgspec.json.decode(plain_json((folder / CONFIG_FILE).read_bytes()), type=_ModelType)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return found.model_type is not None


def read_geometry(path: Path) -> Geometry:
    """Read a `config.json`; raises `CheckpointError` if no architecture here computes the model."""
    try:
        return geometry_of_huggingface(plain_json(path.read_bytes()))
    except UnsupportedModelError as error:
        hint = error.hint or f"use a published model of {_MODELS}"
        raise CheckpointError(path, expected=error.expected, got=error.got, cause=error.cause, hint=hint) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            path,
            expected=f"the configuration of a {_MODELS} model as JSON",
            got=f"{type(error).__name__}: {error}",
            cause="the directory holds another kind of model, or is incomplete",
            hint="use a directory written by `save_pretrained` of its class in transformers",
        ) from error
