"""Checkpoints: saving and opening them, formats and manifest; models in Hugging Face's layout, adapters in PEFT's.

May import: all above.
"""

from threadloom.stages.checkpoint.adapter_reader import AdaptedWeights as AdaptedWeights
from threadloom.stages.checkpoint.adapter_writer import write_adapter as write_adapter
from threadloom.stages.checkpoint.base_model import BaseModel as BaseModel
from threadloom.stages.checkpoint.directory import (
    latest_checkpoint as latest_checkpoint,
    remove_leftovers as remove_leftovers,
)
from threadloom.stages.checkpoint.exporting import (
    SHARD_BYTES as SHARD_BYTES,
    ExportedModel as ExportedModel,
    export_model as export_model,
)
from threadloom.stages.checkpoint.huggingface import read_end_ids as read_end_ids
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE as MANIFEST_FILE
from threadloom.stages.checkpoint.merging import load_merged as load_merged, merge_adapters as merge_adapters
from threadloom.stages.checkpoint.model_reader import (
    FolderWeights as FolderWeights,
    load_model as load_model,
    require_memory as require_memory,
)
from threadloom.stages.checkpoint.reader import Checkpoint as Checkpoint
from threadloom.stages.checkpoint.retention import Retention as Retention
from threadloom.stages.checkpoint.safetensors_format import AVERAGE as AVERAGE
from threadloom.stages.checkpoint.state import (
    BASES as BASES,
    TrainingState as TrainingState,
    kept_versions as kept_versions,
)
from threadloom.stages.checkpoint.writer import save_checkpoint as save_checkpoint
