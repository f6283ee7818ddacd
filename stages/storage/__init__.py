"""Files: durable operations, hashed files, safetensors, the directory and the metrics of a run.

May import: models, config.
"""

from threadloom.stages.storage.durable_io import (
    DiskFullError,
    atomic_write,
    explain_disk_full,
    file_lock,
    fsync_directory,
    make_directory,
    require_free_space,
)
from threadloom.stages.storage.hashed_file import FileDigest, copy_file, digest_file, write_bytes
from threadloom.stages.storage.metrics_log import MetricsLog, read_metrics
from threadloom.stages.storage.run_directory import (
    RunDirectory,
    RunDirectoryError,
    RunMode,
    checkpoint_name,
    finished_checkpoints,
    holds_training_files,
)
from threadloom.stages.storage.tensor_file import CheckpointError, TensorFile, open_tensors, write_tensors

__all__ = [
    "CheckpointError",
    "DiskFullError",
    "FileDigest",
    "MetricsLog",
    "RunDirectory",
    "RunDirectoryError",
    "RunMode",
    "TensorFile",
    "atomic_write",
    "checkpoint_name",
    "copy_file",
    "digest_file",
    "explain_disk_full",
    "file_lock",
    "finished_checkpoints",
    "fsync_directory",
    "holds_training_files",
    "make_directory",
    "open_tensors",
    "read_metrics",
    "require_free_space",
    "write_bytes",
    "write_tensors",
]
