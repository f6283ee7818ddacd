"""Weights and tokens for the peers that are GPT-2 models in NumPy arrays: from the files of a check, or random."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.model_sizes import Gpt2Sizes
from benchmarks.protocol import TrainingSizes

LINEAR = ("qkv", "attn_proj", "fc", "mlp_proj")
Tensors = dict[str, Any]


def initial_weights(sizes: Gpt2Sizes, folder: Path | None) -> Tensors:
    """Return the weights of a check (`benchmarks.inputs`), or random ones without its folder."""
    return load_file(folder / "weights.safetensors") if folder else random_weights(sizes)


def random_weights(sizes: Gpt2Sizes, seed: int = 0) -> Tensors:
    """Return initial weights under threadloom's names: matrices (layers, in, out), vectors (layers, size)."""
    rng, c, n = np.random.default_rng(seed), sizes.channels, sizes.layers
    shapes: dict[str, tuple[int, ...]] = {"wte": (sizes.vocabulary, c), "wpe": (sizes.context, c)}
    shapes |= {
        f"{name}_weight": (n, inputs * c, outputs * c)
        for name, (inputs, outputs) in zip(LINEAR, ((1, 3), (1, 1), (1, 4), (4, 1)), strict=True)
    }
    found: Tensors = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    found |= {f"{name}_bias": np.zeros((n, found[f"{name}_weight"].shape[2]), np.float32) for name in LINEAR}
    for name, shape in (("ln1", (n, c)), ("ln2", (n, c)), ("lnf", (c,))):
        found |= {f"{name}_weight": np.ones(shape, np.float32), f"{name}_bias": np.zeros(shape, np.float32)}
    return found


def token_batches(sizes: TrainingSizes, folder: Path | None) -> Iterator[tuple[Any, Any]]:
    """Yield ids and targets (sequences, context) of each update: those of a check, or random ones without end."""
    if folder is None:
        rng, shape = np.random.default_rng(0), (sizes.sequences, sizes.model.context)
        while True:
            ids, targets = (rng.integers(0, sizes.model.vocabulary, shape, np.int32) for _ in range(2))
            yield ids, targets
    with np.load(folder / "tokens.npz", allow_pickle=False) as arrays:
        for ids, targets in zip(arrays["ids"], arrays["targets"], strict=True):
            yield ids.astype(np.int32), targets.astype(np.int32)
