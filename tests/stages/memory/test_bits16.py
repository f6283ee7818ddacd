"""The memory that training in 16 bits allocates is enough: every array of it ends, or begins, at a guard page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kernels.bits16.support import Pages
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.config.settings import Precision
from threadloom.stages.memory import bits16 as memory_low
from threadloom.stages.memory.bits16 import Kinds, low_logits_rows
from threadloom.stages.memory.float32 import Bank, as_weights
from threadloom.stages.models.gpt2 import Geometry, initialise, parameter_shapes
from threadloom.stages.step.bits16 import compute as compute_low
from threadloom.stages.step.bits16.compute import Bits16Compute
from threadloom.stages.step.compute import backward_with_embeddings

pytestmark = [
    pytest.mark.timeout(600),  # minutes of it to compile, on a machine that was never here before
    pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler"),
]


def between_pages(pages: Pages) -> Any:
    """Return what allocates between guard pages: NaN in all but packed words, whose edges are promised to be zero."""

    def allocate(kinds: Kinds) -> Mapping[str, NDArray[Any]]:
        made = {
            name: pages.empty(shape, kind) if 0 not in shape else np.empty(shape, kind)
            for name, (shape, kind) in kinds.items()
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
def test_a_micro_batch_stays_within_what_is_allocated(
    precision: Precision, vocabulary: int, context: int, layers: int, heads: int, head_size: int, sequences: int,
    logits_bytes: int, at_end: bool,
) -> None:  # fmt: skip
    geometry = Geometry(vocabulary, context, layers, heads, heads * head_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute_low, "allocate", between_pages(Pages(at_end)))
        patch.setattr(memory_low, "LOGITS_BYTES", logits_bytes)
        compute = Bits16Compute(precision, geometry, sequences)
        slot, scratch, forms = compute.allocate_slot(), compute.allocate_scratch(), compute.allocate_packed()
        logits = Pages(at_end).empty(compute.logits_shape(), np.float32)
        bank = Bank(geometry, forms)
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
                compute, geometry, bank, slot, 1.0 / slot.ids.size, as_weights(gradient), scratch, accumulate
            )
            assert all(np.isfinite(tensor).all() for tensor in gradient.values())
        assert compute.loss(bank, slot, logits) == pytest.approx(loss, rel=1e-5, abs=1e-5)
        # A logit is at most |h| |wte[v]|, where h is normalised; and the loss is off log V by twice that at most.
        largest = float(np.sqrt(geometry.channels) * np.linalg.norm(bank.weights.wte, axis=1).max())
        assert loss / slot.ids.size == pytest.approx(np.log(vocabulary), abs=2.1 * largest)


@given(vocabulary=st.integers(1, 100_000), rows=st.integers(1, 5000))
def test_chunks_of_logits_fit_and_are_of_like_size(vocabulary: int, rows: int) -> None:
    chunk = low_logits_rows(vocabulary, rows)
    assert 1 <= chunk <= rows
    assert chunk == 1 or 4 * vocabulary * chunk <= memory_low.LOGITS_BYTES
    chunks = -(-rows // chunk)
    assert rows - chunk * (chunks - 1) > 0
    most = max(memory_low.LOGITS_BYTES // (4 * vocabulary), 1)
    assert chunks == -(-rows // most)
