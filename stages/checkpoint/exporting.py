"""Exporting a model to a new directory in Hugging Face's layout, with the files of its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.huggingface import GENERATION_FILE, write_configuration
from threadloom.stages.checkpoint.shards import write_shards
from threadloom.stages.data import TOKENIZER_FILE, companion_files
from threadloom.stages.models import EndOfText, Geometry, huggingface_views
from threadloom.stages.storage import CONFIG_FILE, CheckpointError, StoredFormat, copy_files, new_directory, write_bytes

Floats = NDArray[np.float32]

SHARD_BYTES = 5_000_000_000
"""Default limit of the size of a file."""

_SMALL_FILES = 64 << 20
"""Bytes allowed for the other files, of which a tokenizer may take 20 MB."""
_TORCH_DTYPES = {StoredFormat.FLOAT32: "float32", StoredFormat.BF16: "bfloat16", StoredFormat.FP16: "float16"}


@dataclass(frozen=True)
class ExportedModel:
    """A model to export."""

    folder: Path
    """The directory that it was read from, with the files of its tokenizer."""
    weights: Mapping[str, Floats]
    """Name in `parameter_shapes` → tensor."""
    geometry: Geometry
    end_of_text: EndOfText | None
    base: Path | None = None
    """The directory of the model that adapters were merged into, with its config.json and generation_config.json."""


def export_model(
    model: ExportedModel,
    out: Path,
    stored: StoredFormat,
    shard_bytes: int = SHARD_BYTES,
    further: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Write a model to a new directory and return the names of its files.

    Tensors are rounded to `stored` and divided into files of at most `shard_bytes`. generation_config.json, the files
    of the tokenizer and the chat templates are those that came with the model; of config.json the keys are kept that do
    not describe the sizes. `further` are additional files, name → content. On an error nothing remains. Raises
    `CheckpointError`, `DiskFullError` and other errors of the operating system.
    """
    tensors = huggingface_views(model.weights, model.geometry)
    require_finite(tensors, stored, out)
    size = sum(tensor.size for tensor in tensors.values()) * stored.itemsize
    further = further or {}
    with new_directory(out, size + _SMALL_FILES + sum(map(len, further.values()))) as folder:
        for name, content in further.items():
            write_bytes(folder / name, content)
        write_shards(folder, tensors, stored, shard_bytes)
        source = model.base or model.folder
        copied = {
            GENERATION_FILE: source / GENERATION_FILE,
            TOKENIZER_FILE: model.folder / TOKENIZER_FILE,
            **companion_files(model.folder),
        }
        copy_files({name: path for name, path in copied.items() if path.exists()}, folder)
        changes = {"torch_dtype": _TORCH_DTYPES[stored]}
        write_configuration(folder, model.geometry, model.end_of_text, source / CONFIG_FILE, changes)
        return sorted(path.name for path in folder.iterdir())


def require_finite(tensors: Mapping[str, Floats], stored: StoredFormat, out: Path) -> None:
    """Raise `CheckpointError` if a finite value would become infinite in a number format."""
    if stored is not StoredFormat.FP16:
        return
    largest = float(np.finfo(np.float16).max)
    for name, tensor in tensors.items():
        found = max(-float(tensor.min()), float(tensor.max()))
        if largest < found < np.inf:
            raise CheckpointError(
                out,
                expected=f"values of at most {largest:,.0f}, the largest of float16",
                got=f"{found:g} in {name}",
                hint="export it as bf16 or float32",
            )
