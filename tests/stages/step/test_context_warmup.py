"""Runs whose first updates have short sequences, held against runs of models with a shorter context."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.stages.step.test_borders import documents
from tests.stages.support import LLAMA, TINY, assert_same, build, result, run_sequence, run_threads, tiny
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.data import BorderedTokenFile, RandomTokens, TokenBatches, TokenIds, divide_sequences
from threadloom.stages.data.batches import BatchSource
from threadloom.stages.data.packed_sequences import PackedSequences

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

LONG = 8


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
def test_an_update_is_that_of_a_model_with_the_shorter_context(base: Config, length: int) -> None:
    """Losses and weights are equal bit for bit; of the positions those that the shorter model has.

    Without clipping, since the norm of GPT-2's gradient is summed over more positions, whose gradients are 0.
    """
    common, parts = ("optimizer.clip=0", "steps=2", "lanes=2"), LONG // length
    warm = tiny(
        *common, f"model.context={LONG}", "schedule.context_warmup=99", f"schedule.context_start={length}", base=base
    )
    short = tiny(*common, f"model.context={length}", f"batch_size={4 * parts}", f"micro_batch={parts}", base=base)
    data = RandomTokens(warm.model.geometry(), warm.batch_sizes, warm.seed)  # micro-batches have as many rows
    first, second = build(warm, data=data), build(short, data=data)
    found, expected = result(first, run_sequence(first)), result(second, run_sequence(second))
    assert [update[:3] for update in found.updates] == [update[:3] for update in expected.updates]
    norms = [[update[3] for update in run.updates] for run in (found, expected)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)
    for name, tensor in expected.tensors.items():
        rows = found.tensors[name]
        np.testing.assert_array_equal(rows[: len(tensor)], tensor, err_msg=name)
    unequal = [name for name, tensor in expected.tensors.items() if tensor.shape != found.tensors[name].shape]
    assert len(unequal) == (3 if base is TINY else 0), "the positions and their two moments"


def random_tokens(config: ResolvedConfig) -> BatchSource:
    return RandomTokens(config.model.geometry(), config.batch_sizes, config.seed)


def windows(config: ResolvedConfig) -> BatchSource:
    tokens = documents(config, 3)
    sequences = BorderedTokenFile(tokens) if config.data.bordered else tokens
    return TokenBatches(sequences, config.batch_sizes, config.seed, shuffle=config.data.shuffle)


def packed(config: ResolvedConfig) -> BatchSource:
    sequences = PackedSequences(documents(config, 3), bordered=config.data.bordered)
    return TokenBatches(sequences, config.batch_sizes, config.seed, shuffle=config.data.shuffle)


WARM = ("model.context=8", "schedule.context_warmup=5", "schedule.context_start=2", "checkpoint.interval=3")
RUNS = [
    (TINY, random_tokens, ("delay=2", "evaluation.interval=3")),
    (LLAMA, windows, ("threads.forward=2", "threads.backward=2", "data.shuffle=epochs", "delay=1")),
    (TINY, windows, ("data.borders=reset", "shared_lanes=true", "lanes=1", "threads.backward=2")),
    (LLAMA, packed, ("data.borders=reset", "gradient_accumulation_steps=2")),
    (TINY, packed, ("data.shuffle=epochs",)),
]


@pytest.mark.parametrize(("base", "source", "overrides"), RUNS)
def test_a_run_is_replayed_and_resumed_inside_the_warm_up(
    base: Config, source: Callable[[ResolvedConfig], BatchSource], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """`Training` checks that the plan of memory is what it allocates."""
    config = tiny(*WARM, *overrides, base=base)
    data = source(config)
    evaluate = config.evaluation.interval > 0
    alone, threads = (build(config, to, data=data, evaluate=evaluate) for to in (None, tmp_path))
    expected = result(alone, run_sequence(alone))
    found = result(threads, run_threads(threads))
    assert_same(replace(found, saved=()), expected)
    start = Checkpoint.open(tmp_path / "step-000003")
    resumed = build(config, data=data, evaluate=evaluate, start=start)
    after = result(resumed, run_threads(resumed))
    assert after.updates == expected.updates[3:]
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor, err_msg=name)


def test_evaluations_have_the_full_context() -> None:
    """With a rate of 0 the weights are the same in both runs, and so are evaluations; losses of updates are not."""
    common = ("model.context=8", "optimizer.lr=0", "schedule.min_lr=0", "evaluation.interval=2", "steps=6")
    runs = [tiny(*common), tiny(*common, "schedule.context_warmup=4", "schedule.context_start=2")]
    full, warm = (result(training, run_sequence(training)) for training in (build(c, evaluate=True) for c in runs))
    assert warm.evaluations == full.evaluations
    assert len(full.evaluations) == 3
    same = [a[1] == b[1] for a, b in zip(warm.updates, full.updates, strict=True)]
    assert same == [False] * 4 + [True] * 2


def test_borders_of_documents_stay() -> None:
    starts: TokenIds = np.array([0, 0, 0, 3, 3, 5, 5, 5, 0, 1, 1, 1, 1, 1, 1, 1], np.int32)
    divide_sequences(starts, 8, 4)
    assert starts.tolist() == [0, 0, 0, 3, 4, 5, 5, 5, 0, 1, 1, 1, 4, 4, 4, 4]
    divide_sequences(starts, 8, 8)
    assert starts.tolist() == [0, 0, 0, 3, 4, 5, 5, 5, 0, 1, 1, 1, 4, 4, 4, 4]
