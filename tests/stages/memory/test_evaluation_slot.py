"""The slot of an evaluation: activations of one layer, the losses of a slot with all."""

import numpy as np
import pytest

from tests.stages.support import LLAMA, TINY, tiny
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.config import Config
from threadloom.stages.memory.bank import Bank
from threadloom.stages.models import initialise
from threadloom.stages.training.precisions import compute_for

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="16 bits take minutes without the compiler")
PRECISIONS = ["float32", *(pytest.param(name, marks=needs_compiler) for name in ("bf16", "fp16"))]
ADAPTERS = ("lora.rank=2", 'lora.targets=["all-linear"]')


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("settings", [(), ADAPTERS], ids=["plain", "adapters"])
@pytest.mark.parametrize("layers", [2, 3])
def test_the_loss_is_that_of_a_whole_slot(precision: str, base: Config, settings: tuple[str, ...], layers: int) -> None:
    config = tiny(f"precision={precision}", f"model.layers={layers}", *settings, base=base)
    geometry = config.geometry()
    compute = compute_for(config.precision, geometry, config.micro_batch)
    memory = compute.memory
    bank, logits = Bank(geometry, memory.allocate_packed()), Arena({"logits": memory.logits_shape})["logits"]
    initialise(bank.arena, geometry, 1)
    compute.pack_from_master(bank)
    rng, losses = np.random.default_rng(2), []
    ids, targets = rng.integers(0, geometry.vocabulary, (2, config.micro_batch * geometry.context))
    whole, small = memory.allocate_slot(), memory.allocate_evaluation_slot()
    for slot in (whole, small, small):
        slot.ids[:], slot.targets[:] = ids, targets
        compute.embed(bank, slot)
        compute.forward(bank, slot)
        losses.append(compute.loss(bank, slot, logits))
    assert losses[1:] == [losses[0]] * 2
    assert small.nbytes < whole.nbytes
    assert small.nbytes == memory.evaluation_slot_bytes
