"""One batch through the pipeline, compared with the float64 reference within the bounds of its number format."""

import numpy as np

from tests import reference
from tests.error_bounds import IN_FLOAT32, Storage
from tests.kernels.bits16.formats import Format
from tests.kernels.comparison import assert_close, assert_distance
from tests.stages.support import build, run_threads
from tests.stages.training.oracle import oracle_of
from tests.stages.training.twin import random_weights, sequences, start_from
from threadloom.pipeline import Arena
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.models import parameter_shapes

SPREAD = 0.6
"""Of weights, times the square root of the channels: a GEMM keeps the size of its input."""


def check_gradients(
    config: ResolvedConfig, storage: Storage = IN_FLOAT32, packed: Format | None = None, spread: float = 0.2
) -> None:
    """Run one batch through the pipeline, and compare its gradient, loss and norm with the reference.

    With `packed` the matrices are rounded to that format before they are read.
    """
    training, oracle = build(config), oracle_of(config)
    weights = random_weights(config, spread)
    start_from(training, weights)
    ids, targets = sequences(training, 0)
    (update,) = [event for event in run_threads(training) if isinstance(event, Update)]
    scaled = update.scaled.scale if update.scaled else 1.0

    read = packed.packed_weights(weights) if packed else weights
    loss, expected = oracle.loss_and_gradients(read, ids, targets, 1.0 / ids.size)
    bounds = oracle.bounds(read, ids, targets, 1.0 / ids.size, storage._replace(tiny=storage.tiny / scaled))
    assert update.loss is not None
    assert_distance(abs(update.loss * ids.size / loss - 1.0), bounds["loss"], "loss")
    expected = {name: expected[name] for name in training.gradient.arena}
    norm = reference.global_norm(expected)
    assert_distance(abs(update.grad_norm / norm - 1.0), bounds["gradient"], "norm")
    trained = parameter_shapes(config.geometry(), config.frozen_tensors())
    gradient = Arena(trained, np.float32, training.gradient.flat)
    for name, tensor in expected.items():
        assert_close(gradient[name].astype(np.float64) / scaled, tensor, bounds[name], name)
