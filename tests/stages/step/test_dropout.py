"""Dropout in training: gradients of float64 with the same masks, and none in an evaluation."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import IN_BF16, IN_FLOAT32, Storage, with_bounds
from tests.kernels.bits16.formats import BF16, Format
from tests.kernels.comparison import assert_close
from tests.reference import Array, Tensors, dropout
from tests.stages.support import LLAMA, TINY, Result, assert_same, build, result, run_sequence, run_threads, tiny
from tests.stages.training.gradients import SPREAD
from tests.stages.training.twin import random_weights, sequences, start_from
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.memory import Update
from threadloom.stages.resolve.trajectory_settings import trajectory
from threadloom.stages.training import Training

STILL = "optimizer.lr=0", "schedule.min_lr=0"
"""Updates that change no weight."""
DROPS = "dropout.embedding=0.2", "dropout.residual=0.3", "dropout.attention=0.25"


def masks_of(config: ResolvedConfig) -> tuple[Array, Tensors]:
    """Return the factors of the embeddings (B, T, C), and the masks of the blocks, of the first batch."""
    model, sequences = config.model, config.micro_batch
    shape = sequences, model.context, model.channels
    embeddings, outputs, heads = [], [], []
    for micro in range(config.micro_batches):
        digest = blake2b(f"{config.seed} 0 {micro}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "little") | 1
        embeddings.append(dropout.mask(0.2, key, dropout.EMBEDDING, np.arange(np.prod(shape)).reshape(shape)))
        outputs.append(dropout.residual_masks(0.3, key, model.layers, shape))
        heads.append(dropout.attention_masks(0.25, key, model.layers, (sequences, model.heads, model.context)))
    blocks = {"residual_mask": np.concatenate(outputs, axis=2), "attention_mask": np.concatenate(heads, axis=1)}
    return np.concatenate(embeddings), blocks


def check(training: Training, storage: Storage, packed: Format | None) -> None:
    config = training.config
    weights = random_weights(config, SPREAD * config.model.channels**-0.5)
    start_from(training, weights)
    ids, targets = sequences(training, 0)
    mask, masks = masks_of(config)
    read = (packed.packed_weights(weights) if packed else weights) | masks

    def results() -> Tensors:
        record = reference.forward(read, ids, config.model.heads, mask=mask)
        loss = reference.cross_entropy_forward(record.logits, targets).mean()
        return reference.backward(read, record, targets, 1.0 / ids.size)[0] | {"loss": np.array(loss)}

    expected, bounds = with_bounds(results, storage)
    (update,) = (event for event in run_threads(training) if isinstance(event, Update))
    assert_close(np.array(update.loss), expected.pop("loss"), bounds["loss"], "loss")
    for name in weights:
        assert_close(training.gradient.arena[name], expected[name], bounds[name], name)


CASES = {"float32": (IN_FLOAT32, None), "bf16": (IN_BF16, BF16)}


@pytest.mark.timeout(600)  # most of it to compile with an empty cache
@pytest.mark.parametrize("precision", CASES)
def test_gradients_equal_the_reference_with_the_same_mask(precision: str) -> None:
    if precision == "bf16" and not JIT_ENABLED:
        pytest.skip("training in 16 bits needs the compiler")
    check(build(tiny("steps=1", "optimizer.clip=0", f"precision={precision}", *DROPS)), *CASES[precision])


RUNS = {
    "gpt2": (TINY, ()),
    "llama": (LLAMA, ("precision=bf16", "recompute=true", "schedule.context_warmup=2", "schedule.context_start=1")),
}
"""Configurations; with a warm-up of the context there are borders in the sequences."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("base", "settings"), RUNS.values(), ids=RUNS)
def test_neither_threads_nor_a_stop_change_a_bit(base: Config, settings: tuple[str, ...], tmp_path: Path) -> None:
    if settings and not JIT_ENABLED:
        pytest.skip("training in 16 bits needs the compiler")
    common = "steps=3", "delay=1", "checkpoint.interval=1", "checkpoint.keep=0", *DROPS, *settings
    whole = build(tiny(*common, base=base), tmp_path)
    expected = result(whole, run_sequence(whole))
    for step in (0, 2):
        start = Checkpoint.open(tmp_path / f"step-{step:06d}") if step else None
        training = build(tiny(*common, "threads.forward=2", "threads.backward=2", base=base), start=start)
        assert_same(result(training, run_threads(training)), Result(expected.tensors, expected.updates[step:], (), ()))


def test_evaluations_drop_nothing() -> None:
    without = build(tiny("steps=3", "delay=1", "evaluation.interval=1", *STILL), evaluate=True)
    dropping = build(tiny("steps=3", "delay=1", "evaluation.interval=1", *STILL, *DROPS), evaluate=True)
    plain, dropped = result(without, run_sequence(without)), result(dropping, run_sequence(dropping))
    assert [loss for _, loss in plain.evaluations] == [loss for _, loss in dropped.evaluations]
    assert [update[1] for update in plain.updates] != [update[1] for update in dropped.updates]


@pytest.mark.parametrize("name", ["embedding", "residual", "attention"])
def test_each_is_a_setting_of_the_trajectory(name: str) -> None:
    setting = f"dropout.{name}=0.1"
    assert tiny(setting, "lora.rank=2", base=LLAMA).dropout.drops
    assert trajectory(tiny(setting))[f"dropout.{name}"] == 0.1
