"""Files: durable writes, the run directory, safetensors.

May import: models, config.
"""

from threadloom.stages.storage.run_directory import (
    MetricsLog,
    RunDirectory,
    RunMode,
    atomic_write,
    read_metrics,
    sync_folder,
)
from threadloom.stages.storage.tensor_file import (
    CheckpointError,
    FileRecord,
    TensorFile,
    copy_file,
    explain_fault,
    open_tensors,
    record_file,
    require_space,
    write_bytes,
    write_tensors,
)

__all__ = [
    "CheckpointError",
    "FileRecord",
    "MetricsLog",
    "RunDirectory",
    "RunMode",
    "TensorFile",
    "atomic_write",
    "copy_file",
    "explain_fault",
    "open_tensors",
    "read_metrics",
    "record_file",
    "require_space",
    "sync_folder",
    "write_bytes",
    "write_tensors",
]
