"""Training in 16 bits stays within its arrays: each array ends, or begins, at a guard page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tests.error_bounds import EXPONENTIAL, gamma
from tests.kernels.bits16.support import Pages
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.config.settings import Precision
from threadloom.stages.layouts import as_weights
from threadloom.stages.layouts.bits16 import ArraySpecs
from threadloom.stages.memory import bits16 as memory_bits16
from threadloom.stages.memory.bank import Bank
from threadloom.stages.memory.precision_memory import logits_chunk_rows
from threadloom.stages.models import Geometry, initialise, parameter_shapes
from threadloom.stages.step.bits16.compute import Bits16Compute
from threadloom.stages.step.compute import backward_with_embeddings

pytestmark = [
    pytest.mark.timeout(600),  # includes minutes of compiling with an empty cache
    pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler"),
]


def between_pages(pages: Pages) -> Any:
    """Return an `allocate` between guard pages: arrays contain NaN, packed weights zeros, as their edges must."""

    def allocate(specs: ArraySpecs) -> Mapping[str, NDArray[Any]]:
        made = {
            name: pages.empty(shape, kind) if 0 not in shape else np.empty(shape, kind)
            for name, (shape, kind) in specs.items()
        }
        for array in made.values():
            if array.dtype == np.uint32:
                array[...] = 0
        return made

    return allocate


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16], ids=lambda precision: precision.value)
@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    vocabulary=st.one_of(st.integers(1, 90), st.integers(500, 1200)),
    context=st.integers(1, 140),
    layers=st.integers(1, 2),
    heads=st.integers(1, 3),
    head_size=st.integers(1, 80),
    sequences=st.integers(1, 3),
    logits_bytes=st.sampled_from([1, 20_000, 1 << 24]),
    at_end=st.booleans(),
)
def test_a_micro_batch_stays_within_the_allocated_arrays(
    precision: Precision, vocabulary: int, context: int, layers: int, heads: int, head_size: int, sequences: int,
    logits_bytes: int, at_end: bool,
) -> None:  # fmt: skip
    geometry = Geometry(vocabulary, context, layers, heads, heads * head_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_bits16, "allocate", between_pages(Pages(at_end)))
        patch.setattr(memory_bits16, "LOGITS_BYTES", logits_bytes)
        compute = Bits16Compute(precision, geometry, sequences)
        memory = compute.memory
        slot, scratch, packed = memory.allocate_slot(), memory.allocate_scratch(), memory.allocate_packed()
        logits = Pages(at_end).empty(memory.logits_shape, np.float32)
        bank = Bank(geometry, packed)
        initialise(bank.arena, geometry, seed=1)
        compute.pack_from_master(bank)
        rng = np.random.default_rng(vocabulary)
        for ids in (slot.ids, slot.targets):
            ids[...] = rng.integers(0, vocabulary, ids.size)
        gradient = Arena(parameter_shapes(geometry))
        for accumulate in (False, True):
            compute.embed(bank, slot)
            compute.forward(bank, slot)
            loss = backward_with_embeddings(
                compute, geometry, bank, slot, 1.0 / slot.ids.size, as_weights(geometry, gradient), scratch, accumulate
            )
            assert all(np.isfinite(tensor).all() for tensor in gradient.values())
        check_loss(loss, compute.loss(bank, slot, logits), bank, slot.ids.size)


def check_loss(loss: float, alone: float, bank: Bank, rows: int) -> None:
    """Compare the loss of a micro-batch with its loss without gradients, and with that of equal logits.

    The stored h of a row is normalised, so a logit is at most the root of C times the norm of a row of wte, both within
    the roundings of two stored numbers. The loss of a row is the log-sum-exp less one logit, which differs from log V
    by at most twice the largest logit. In float32 it is off by the error of the logits, sums of C products, by that of
    the sum of V exponentials, each off by its depth below the largest and by `EXPONENTIAL`, and by a few operations.
    """
    vocabulary, channels = bank.weights.wte.shape
    largest = (1.0 + 2.0**-8) ** 2 * np.sqrt(channels) * float(np.linalg.norm(bank.weights.wte, axis=1).max())
    error = 2.0 * gamma(channels + 1) * largest + gamma(vocabulary + 4) + 2.0 * largest * gamma(4) + EXPONENTIAL
    assert abs(loss / rows - np.log(vocabulary)) <= 2.0 * largest + error
    assert abs(loss - alone) <= 2.0 * rows * (error + gamma(1) * (np.log(vocabulary) + 2.0 * largest))


@given(vocabulary=st.integers(1, 100_000), rows=st.integers(1, 5000))
def test_chunks_of_logits_fit_and_have_similar_sizes(vocabulary: int, rows: int) -> None:
    limit = memory_bits16.LOGITS_BYTES
    chunk = logits_chunk_rows(vocabulary, rows, limit)
    assert 1 <= chunk <= rows
    assert chunk == 1 or 4 * vocabulary * chunk <= limit
    chunks = -(-rows // chunk)
    assert rows - chunk * (chunks - 1) > 0
    most = max(limit // (4 * vocabulary), 1)
    assert chunks == -(-rows // most)
