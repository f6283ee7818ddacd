"""The guarantees of training for a model of the Llama family: one trajectory, resumed or not, and right gradients."""

from pathlib import Path

import numpy as np
import pytest

from tests.error_bounds import IN_BF16, IN_FLOAT32, IN_FP16, Storage
from tests.kernels.bits16.formats import BF16, FP16, Format
from tests.stages.support import LLAMA, Result, assert_same, build, result, run_threads, tiny
from tests.stages.training.gradients import SPREAD, check_gradients
from tests.stages.training.support import replayed
from tests.stages.training.test_bits16 import assert_packed_equals_master
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation, random_weights, start_from
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import ResolvedConfig

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
PRECISIONS = pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(name, marks=needs_compiler) for name in ("bf16", "fp16"))]
)
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
STAGES = ("embed", "forward", "backward", "reduce", "update")
STORAGE: dict[str, tuple[Storage, Format | None]] = {
    "float32": (IN_FLOAT32, None),
    "bf16": (IN_BF16, BF16),
    "fp16": (IN_FP16, FP16),
}


def llama(*overrides: str) -> ResolvedConfig:
    return tiny(*overrides, base=LLAMA)


@PRECISIONS
@TIED
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("shared", [False, True], ids=["lanes apart", "lanes shared"])
def test_threads_do_not_change_a_bit(precision: str, tied: bool, delay: int, shared: bool) -> None:
    common = (f"precision={precision}", f"model.tied={str(tied).lower()}", f"delay={delay}", "steps=5")
    lanes = (f"shared_lanes={str(shared).lower()}", "lanes=2", "evaluation.interval=2")
    expected = replayed(llama(*common, *lanes))
    for forward, backward, slots in ((1, 1, 2), (2, 4, 6), (3, 2, 4)):
        threads = (f"threads.forward={forward}", f"threads.backward={backward}", f"threads.embed={forward}")
        training = build(llama(*common, *lanes, *threads, f"slots={slots}", "threads.update=2"), evaluate=True)
        assert_same(result(training, run_threads(training)), expected)
    if precision != "float32":
        with training.banks.lease_newest() as lease:
            assert_packed_equals_master(training.config.model.geometry(), lease.bank, precision)


@PRECISIONS
def test_a_resumed_run_continues_the_trajectory(precision: str, tmp_path: Path) -> None:
    common = (f"precision={precision}", "delay=2", "steps=6", "evaluation.interval=2", "checkpoint.interval=1")
    training = build(llama(*common, "checkpoint.keep=0"), tmp_path, evaluate=True)
    whole = result(training, run_threads(training))
    for step in (1, 3):
        checkpoint = Checkpoint.open(tmp_path / f"step-{step:06d}")
        assert checkpoint.geometry == training.config.model.geometry()
        threads = (f"threads.{stage}={step}" for stage in STAGES)
        resumed = build(llama(*common, *threads), evaluate=True, start=checkpoint)
        evaluations = tuple(evaluation for evaluation in whole.evaluations if evaluation[0] > step)
        found = result(resumed, run_threads(resumed))
        assert_same(found, Result(whole.tensors, whole.updates[step:], evaluations, ()))


@PRECISIONS
@TIED
def test_every_gradient_tensor_is_that_of_the_reference(precision: str, tied: bool) -> None:
    sizes = ("batch_size=6", "micro_batch=2", "lanes=2", "steps=1", "threads.backward=2")
    config = llama(f"precision={precision}", f"model.tied={str(tied).lower()}", *sizes)
    check_gradients(config, *STORAGE[precision], spread=SPREAD * config.model.channels**-0.5)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_training_is_that_of_the_reference(delay: int) -> None:
    training = build(llama(*SMALL_STEPS, f"delay={delay}", "steps=4", "threads.backward=2"))
    start_from(training, random_weights(training.config))
    expected = expectation(training)
    assert_expected(training, run_threads(training), expected)


def test_the_initial_weights_have_the_distributions_of_the_family() -> None:
    training = build(llama("model.channels=64", "model.mlp_width=96", "model.vocab_size=500"))
    with training.banks.lease(0) as lease:
        arena = lease.bank.arena
        layers = training.config.model.layers
        for name, tensor in arena.items():
            if "norm" in name:
                assert (tensor == 1.0).all(), name
            elif name.endswith("bias"):
                assert (tensor == 0.0).all(), name
            else:
                residual = name in ("attn_proj_weight", "down_weight")
                deviation = 0.02 / np.sqrt(2 * layers) if residual else 0.02
                # The deviation of n normal numbers is off by 1 / sqrt(2 n) of itself; six of these are allowed.
                assert abs(tensor.std() / deviation - 1.0) < 6.0 / np.sqrt(2.0 * tensor.size), name
