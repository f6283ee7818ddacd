"""Losses of fifty updates next to PyTorch's, from the same weights and batches."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import write_inputs
from benchmarks.protocol import FLOAT32, Side
from benchmarks.throughput import sizes_of
from tests.stages.support import build, run_threads, tiny
from tests.stages.training.twin import start_of
from threadloom.stages.data.batches import TokenBatches
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.memory.graph_items import Update

UPDATES = 50
ALLOWED = 1e-4
"""Largest difference of two losses. float32 has 2e-7 of a loss of 3; AdamW amplifies it from update to update."""
MODELS = {
    "gpt2": ("model.heads=3", "model.channels=15"),
    "llama": (
        "model.architecture=llama", "model.heads=4", "model.kv_heads=2", "model.channels=12", "model.head_size=6",
        "model.mlp_width=17", "model.tied=true",
    ),
    "llama, untied, norm of heads": (
        "model.architecture=llama", "model.heads=3", "model.kv_heads=1", "model.channels=15", "model.head_size=4",
        "model.mlp_width=9", "model.qk_norm=true", "model.rotary.theta=100",
    ),
}  # fmt: skip


def repetitive_text(vocabulary: int, context: int, length: int) -> TokenFile:
    """Return tokens of which each is mostly the successor of the one before, so that a model learns quickly."""
    rng = np.random.default_rng(5)
    steps = np.where(rng.random(length) < 0.9, 1, rng.integers(0, vocabulary, length))
    return TokenFile((np.cumsum(steps) % vocabulary).astype(np.uint16), vocabulary, context, Path("text"))


@pytest.mark.torch
@pytest.mark.timeout(300)  # compiling the kernels takes a minute
@pytest.mark.parametrize("model", MODELS)
def test_fifty_updates_have_the_losses_of_pytorch(model: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks.peer import PyTorch

    config = tiny(*MODELS[model], f"steps={UPDATES}", "schedule.kind=constant", "schedule.warmup=0")
    sizes = sizes_of(config, threads=1)
    text = repetitive_text(sizes.model.vocabulary, sizes.model.context, 2000)
    source = TokenBatches(text, config.batch_sizes, config.seed)
    training = build(config, data=source)
    weights = {name: tensor.astype(np.float32) for name, tensor in start_of(training).items()}
    write_inputs(tmp_path, weights, source, config, UPDATES)

    ours = [event.loss or 0.0 for event in run_threads(training) if isinstance(event, Update)]
    theirs = PyTorch(sizes, Side.EAGER, FLOAT32, tmp_path).run(UPDATES).losses
    assert len(ours) == UPDATES
    assert np.abs(np.subtract(ours, theirs)).max() <= ALLOWED
    assert np.mean(theirs[-5:]) < 0.8 * theirs[0], "the model learns, so the comparison covers changing weights"
