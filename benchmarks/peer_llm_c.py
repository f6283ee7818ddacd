"""The peer llm.c: its train_gpt2.c in float32 with OpenMP, as a library (`benchmarks.llm_c`) in a separate process.

It has no clipping, and decays vectors like matrices, so that `without_clip_and_decay` is for every side of a comparison
with it. Its training computes no gradient norm: the norm for the check is computed here and does not count as time.
"""

import ctypes
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpt2_inputs import initial_weights, token_batches
from benchmarks.llm_c import write_checkpoint
from benchmarks.model_sizes import Gpt2Sizes
from benchmarks.protocol import TrainingSizes, UpdateFigures

NORM_BLOCK = 1 << 20
"""Gradients whose squares are summed at once, so that the norm takes little memory."""


class LlmC:
    """Training with AdamW. The library holds one model, so that a process has one such training."""

    def __init__(self, sizes: TrainingSizes, folder: Path | None = None) -> None:
        model = sizes.model
        if not isinstance(model, Gpt2Sizes):
            raise ValueError(f"llm.c is a GPT-2, got {type(model).__name__}")
        if sizes.clip or sizes.weight_decay:
            raise ValueError(
                f"llm.c has no clipping and decays other tensors: expected 0, got {sizes.clip}, {sizes.weight_decay}"
            )
        self._sizes, self._library = sizes, _load(sizes.llm_c)
        with tempfile.TemporaryDirectory() as name:
            checkpoint = Path(name) / "gpt2.bin"
            write_checkpoint(checkpoint, initial_weights(model, folder), model)
            self._library.driver_load(str(checkpoint).encode(), sizes.threads)
        self._updates = 0
        self._rates = iter(sizes.rates) if sizes.rates else itertools.repeat(sizes.lr)
        self._batches = token_batches(sizes, folder)

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""
        losses, norms, seconds = [], [], 0.0
        for rate in itertools.islice(self._rates, updates):
            ids, targets = map(np.ascontiguousarray, next(self._batches))
            self._updates += 1
            begin = time.perf_counter()
            losses.append(self._library.driver_gradients(ids.ctypes.data, targets.ctypes.data, *ids.shape))
            self._update(rate)
            seconds += time.perf_counter() - begin
            norms.append(self._gradient_norm())
        return UpdateFigures(seconds, losses, norms)

    def _update(self, rate: float) -> None:
        sizes = self._sizes
        self._library.driver_update(rate, sizes.beta1, sizes.beta2, sizes.eps, sizes.weight_decay, self._updates)

    def _gradient_norm(self) -> float:
        """Return the norm of the gradients of the last update, which stay in memory until the next one."""
        gradients = np.ctypeslib.as_array(self._library.driver_gradient_memory(), (self._library.driver_parameters(),))
        blocks = (gradients[at : at + NORM_BLOCK] for at in range(0, len(gradients), NORM_BLOCK))
        return math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks))

    def close(self) -> None:
        """Do nothing: the threads of OpenMP end with the process."""


def _load(library: str) -> Any:
    """Return the library with the types of its functions."""
    loaded = ctypes.CDLL(library)
    number, real, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    loaded.driver_load.argtypes, loaded.driver_load.restype = (ctypes.c_char_p, number), None
    loaded.driver_gradients.argtypes, loaded.driver_gradients.restype = (pointer, pointer, number, number), real
    loaded.driver_update.argtypes, loaded.driver_update.restype = (*[real] * 5, number), None
    loaded.driver_gradient_memory.argtypes, loaded.driver_gradient_memory.restype = (), ctypes.POINTER(real)
    loaded.driver_parameters.argtypes, loaded.driver_parameters.restype = (), ctypes.c_size_t
    return loaded
