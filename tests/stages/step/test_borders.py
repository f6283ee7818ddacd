"""Runs whose documents end at borders: in every precision, at any number of threads, replayed and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stages.support import LLAMA, TINY, assert_same, build, result, run_sequence, run_threads, tiny
from threadloom.kernels.common.accumulation import single_writer
from threadloom.kernels.common.documents import NO_BORDERS, DocumentStarts
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.data import EvaluationChoice, TokenBatches
from threadloom.stages.data.bordered_tokens import BorderedTokenFile
from threadloom.stages.data.packed_sequences import PackedSequences
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.layouts import as_weights, layout_of
from threadloom.stages.memory.bank import Bank
from threadloom.stages.models import initialise, parameter_shapes
from threadloom.stages.step.evaluate import ValidationLoss
from threadloom.stages.training.precisions import compute_for

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="16 bits take minutes without the compiler")
PRECISIONS = ["float32", *(pytest.param(name, marks=needs_compiler) for name in ("bf16", "fp16"))]
LENGTHS = ((3, 4), (1, 6))
"""Lengths of the documents of two sequences of T = 7."""


class Pass:
    """A forward and a backward pass of one micro-batch with given weights."""

    def __init__(self, config: ResolvedConfig, tokens: int, starts: DocumentStarts, sequences: int) -> None:
        """The sequences have `tokens` tokens, of which the model's context may have more."""
        self._whole, self._tokens = config.geometry(), tokens
        geometry = replace(self._whole, context=tokens)
        self._compute = compute_for(config.precision, geometry, sequences, borders=starts.size > 0)
        self._bank = Bank(self._whole, self._compute.memory.allocate_packed())
        initialise(self._bank.arena, self._whole, 1)
        self._compute.pack_from_master(self._bank)
        self.gradients = Arena(parameter_shapes(self._whole))
        self._slot, self._scratch = self._compute.memory.allocate_slot(), self._compute.memory.allocate_scratch()
        self._slot.starts[:] = starts

    def run(self, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> tuple[float, NDArray[Any], NDArray[Any]]:
        """Return the loss, the rows that leave the last block, and the gradient of the embeddings."""
        slot, gradients = self._slot, as_weights(self._whole, self.gradients)
        slot.ids[:], slot.targets[:] = ids, targets
        self._compute.embed(self._bank, slot)
        self._compute.forward(self._bank, slot)
        rows = slot.activations.x if slot.activations.x.ndim == 2 else slot.activations.x[-1]
        left = rows.copy()
        ticket = single_writer(accumulate=False)
        loss = self._compute.backward(self._bank, slot, 0.25, gradients, self._scratch, ticket)
        dx = self._compute.input_gradient(self._scratch).copy()
        layout_of(self._whole).scatter_input_gradient(
            slot.ids, dx, self._tokens, slot.starts, gradients, accumulate=False
        )
        return loss, left, dx


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
def test_documents_are_computed_as_if_alone(base: Config, precision: str) -> None:
    """Rows and gradients of each document are those of its own pass, bit for bit; weights' gradients are sums."""
    config = tiny(f"precision={precision}", base=base)
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 13, (2, 14)).astype(np.int32)
    starts = np.concatenate([np.repeat(np.cumsum((0, *docs[:-1])), docs) for docs in LENGTHS]).astype(np.int32)
    packed = Pass(config, 7, starts, 2)
    loss, rows, dx = packed.run(ids, targets)
    sums, losses, begin = np.zeros_like(packed.gradients.flat), [], 0
    for length in sum(LENGTHS, ()):
        span = slice(begin, begin + length)
        alone = Pass(config, length, NO_BORDERS, 1)
        one, own_rows, own_dx = alone.run(ids[span], targets[span])
        np.testing.assert_array_equal(rows[span], own_rows)
        np.testing.assert_array_equal(dx[span], own_dx)
        losses.append(one)
        sums += alone.gradients.flat
        begin += length
    assert loss == pytest.approx(sum(losses), rel=1e-6)
    np.testing.assert_allclose(packed.gradients.flat, sums, rtol=0, atol=1e-5 * float(np.abs(sums).max()))


def documents(config: ResolvedConfig, seed: int) -> TokenFile:
    """Return a file of short and long documents, of which some tokens do not count."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, 40)
    ids = rng.integers(0, 13, lengths.sum()).astype(np.uint16)
    counted = (rng.random(len(ids)) < 0.7).astype(np.uint8)
    starts = (np.cumsum(lengths) - lengths).astype(np.int64)
    return TokenFile(ids, 13, config.model.context, Path("memory"), documents=starts, counted=counted)


def source(config: ResolvedConfig, *, packed: bool) -> TokenBatches:
    tokens = documents(config, 3)
    sequences = PackedSequences(tokens, bordered=config.data.bordered) if packed else BorderedTokenFile(tokens)
    return TokenBatches(sequences, config.batch_sizes, config.seed, shuffle=config.data.shuffle)


RUNS = [
    (TINY, True, ("data.borders=reset", "data.shuffle=epochs", "delay=2", "gradient_accumulation_steps=2")),
    (LLAMA, True, ("data.borders=reset", "threads.forward=2", "threads.backward=2")),
    (TINY, False, ("data.borders=reset", "shared_lanes=true", "lanes=1", "threads.backward=2")),
    (TINY, True, ("data.borders=ignored",)),
]


@pytest.mark.parametrize(("base", "packed", "overrides"), RUNS)
def test_a_run_is_replayed_and_resumed(base: Config, packed: bool, overrides: tuple[str, ...], tmp_path: Path) -> None:
    """`Training` checks that the plan of memory is what it allocates."""
    config = tiny("checkpoint.interval=3", *overrides, base=base)
    data = source(config, packed=packed)
    alone, threads = build(config, data=data), build(config, tmp_path, data=data)
    expected = result(alone, run_sequence(alone))
    found = result(threads, run_threads(threads))
    assert_same(replace(found, saved=()), expected)
    resumed = build(config, data=data, start=Checkpoint.open(tmp_path / "step-000003"))
    after = result(resumed, run_threads(resumed))
    assert after.updates == expected.updates[3:]
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor, err_msg=name)


def test_borders_change_the_loss() -> None:
    """With the same sequences, so that they are known to have an effect."""
    config = tiny("data.borders=reset", "steps=1")
    data = source(config, packed=False)
    with_borders = build(config, data=data)
    first = run_sequence(with_borders)[0]
    assert run_sequence(build(tiny("steps=1"), data=data))[0] != first


def test_evaluations_have_borders() -> None:
    """The mean is that of the losses of the training pass over the targets that count."""
    config = tiny("data.borders=reset", "data.packing=documents")
    windows = EvaluationChoice(config.data, documents(config, 5), 4, 1)(2)
    compute = compute_for(config.precision, config.geometry(), 1, borders=True)
    bank = Bank(config.geometry())
    initialise(bank.arena, config.geometry(), 1)
    losses = []
    for micro in range(windows.micro_batches):
        ids, targets, starts = (np.zeros(7, np.int32) for _ in range(3))
        windows.fill(0, micro, ids, targets)
        windows.fill_starts(0, micro, starts)
        losses.append(Pass(config, 7, starts, 1).run(ids, targets)[0])
    mean = ValidationLoss(compute).mean_loss(bank, windows)
    assert mean == pytest.approx(sum(losses) / windows.tokens, rel=1e-6)
    assert windows.tokens < windows.micro_batches * 7


def test_a_source_without_borders_is_refused() -> None:
    class Plain:
        def fill(self, batch: int, micro: int, ids: Any, targets: Any) -> None:
            ids.fill(0)
            targets.fill(0)

        def counted(self, batch: int) -> int:
            return 28

    training = build(tiny("data.borders=reset"), data=Plain())
    with pytest.raises(TypeError, match=r"data\.borders=reset or .* needs a source with `fill_starts`, got Plain"):
        run_sequence(training)
