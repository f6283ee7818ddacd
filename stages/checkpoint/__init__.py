"""Checkpoints: saving and opening them, their format and manifest, models in Hugging Face's layout.

May import: all above.
"""

from threadloom.stages.checkpoint.directory import latest_checkpoint, remove_leftovers
from threadloom.stages.checkpoint.huggingface import CONFIG_FILE, load_model
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE
from threadloom.stages.checkpoint.reader import Checkpoint
from threadloom.stages.checkpoint.state import TrainingState, kept_versions
from threadloom.stages.checkpoint.writer import save_checkpoint

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
