"""Checkpoints: writing, reading, the manifest, the Hugging Face layout.

May import: models, config, storage, machine, memory, resolve.
"""

from threadloom.stages.checkpoint.checkpoint import (
    Checkpoint,
    TrainingState,
    kept_versions,
    latest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from threadloom.stages.checkpoint.huggingface import CONFIG_FILE, load_model
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE

__all__ = [
    "CONFIG_FILE",
    "MANIFEST_FILE",
    "Checkpoint",
    "TrainingState",
    "kept_versions",
    "latest_checkpoint",
    "load_model",
    "remove_leftovers",
    "save_checkpoint",
]
