"""The files of a model in Hugging Face's layout: one, or shards of a limited size with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.storage import INDEX_FILE, MODEL_FILE, FileDigest, StoredFormat, write_bytes, write_tensors

METADATA = {"format": "pt"}
"""Metadata of the files; older versions of transformers refuse a file without it."""


def write_shards(
    folder: Path, tensors: Mapping[str, NDArray[np.float32]], stored: StoredFormat, limit: int
) -> dict[str, FileDigest]:
    """Write tensors to `model.safetensors`, or to shards of at most `limit` bytes of data; returns file name → digest.

    A tensor is never divided: a shard with a single larger one exceeds the limit. Raises OSError.
    """
    sizes = {name: tensor.size * stored.itemsize for name, tensor in tensors.items()}
    shards = divide(sizes, limit)
    files = {_shard_name(number, len(shards)): names for number, names in enumerate(shards, 1)}
    digests = {
        file: write_tensors(folder / file, {name: tensors[name] for name in names}, METADATA, stored)
        for file, names in files.items()
    }
    if len(shards) > 1:
        index: dict[str, Any] = {
            "metadata": {
                "total_parameters": sum(tensor.size for tensor in tensors.values()),
                "total_size": sum(sizes.values()),
            },
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        digests[INDEX_FILE] = write_bytes(folder / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())
    return digests


def divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return the names of each shard, in the order of `sizes`: as many as fit into `limit` bytes, at least one."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return MODEL_FILE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
