"""The weights and batches of a training, as files from which PyTorch trains (`benchmarks.peer`)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from threadloom.kernels import Floats
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data import BatchSource


def write_inputs(
    folder: Path,
    weights: Mapping[str, Floats],
    source: BatchSource,
    config: ResolvedConfig,
    updates: int,
    first: int = 0,
) -> None:
    """Write weights, and the ids and targets of `updates` updates from number `first` on."""
    save_file(dict(weights), folder / "weights.safetensors")
    sizes, context = config.batch_sizes, config.model.context
    ids, targets = (np.zeros((updates, sizes.micro_batches, sizes.micro_batch * context), np.int32) for _ in range(2))
    for batch in range(updates):
        for micro in range(sizes.micro_batches):
            source.fill(first + batch, micro, ids[batch, micro], targets[batch, micro])
    shape = (updates, sizes.sequences, context)
    np.savez(folder / "tokens.npz", ids=ids.reshape(shape), targets=targets.reshape(shape))
