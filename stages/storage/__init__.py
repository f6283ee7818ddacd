"""Files: durable operations, hashed files, safetensors, the directory and the metrics of a run.

May import: models, config.
"""

from threadloom.stages.storage.adapter_config import (
    ADAPTER_CONFIG_FILE as ADAPTER_CONFIG_FILE,
    ADAPTER_FILE as ADAPTER_FILE,
    AdapterConfig as AdapterConfig,
    base_folder as base_folder,
    is_adapter_folder as is_adapter_folder,
    read_adapter_config as read_adapter_config,
)
from threadloom.stages.storage.adapter_modules import (
    ADAPTER_PREFIX as ADAPTER_PREFIX,
    AdapterParts as AdapterParts,
    read_adapter_parts as read_adapter_parts,
)
from threadloom.stages.storage.durable_io import (
    DiskFullError as DiskFullError,
    atomic_file as atomic_file,
    atomic_write as atomic_write,
    directory_lock as directory_lock,
    explain_disk_full as explain_disk_full,
    file_lock as file_lock,
    fsync_directory as fsync_directory,
    make_directory as make_directory,
    require_free_space as require_free_space,
)
from threadloom.stages.storage.hashed_file import (
    FileDigest as FileDigest,
    copy_file as copy_file,
    copy_files as copy_files,
    digest_file as digest_file,
    write_bytes as write_bytes,
)
from threadloom.stages.storage.integer_file import (
    INTEGERS_FILE as INTEGERS_FILE,
    encode_integers as encode_integers,
    integers_times as integers_times,
    power_of_two_grid as power_of_two_grid,
    read_integers as read_integers,
)
from threadloom.stages.storage.json_text import plain_json as plain_json
from threadloom.stages.storage.metrics_log import MetricsLog as MetricsLog, read_metrics as read_metrics
from threadloom.stages.storage.model_folder import (
    CONFIG_FILE as CONFIG_FILE,
    INDEX_FILE as INDEX_FILE,
    MODEL_FILE as MODEL_FILE,
    is_model_folder as is_model_folder,
    read_geometry as read_geometry,
)
from threadloom.stages.storage.new_directory import (
    new_directory as new_directory,
    require_absent as require_absent,
)
from threadloom.stages.storage.number_formats import StoredFormat as StoredFormat
from threadloom.stages.storage.run_directory import (
    RunDirectory as RunDirectory,
    RunDirectoryError as RunDirectoryError,
    RunMode as RunMode,
    checkpoint_name as checkpoint_name,
    checkpoint_step as checkpoint_step,
    finished_checkpoints as finished_checkpoints,
    holds_training_files as holds_training_files,
)
from threadloom.stages.storage.tensor_file import (
    CheckpointError as CheckpointError,
    write_tensors as write_tensors,
)
from threadloom.stages.storage.tensor_reader import (
    TensorFile as TensorFile,
    open_sharded_tensors as open_sharded_tensors,
    open_tensors as open_tensors,
    shard_names as shard_names,
)
