"""Runs full of subnormal numbers: none in any result, the same bits for all threads, and no loss of speed.

The learning rate is so large that the attention saturates: small probabilities and the gradients of the softmax become
subnormal. Without flushing, the gradient of the last update of `tiny` has some 1500 subnormal elements.
"""

import statistics
import time
from collections.abc import Iterable

import llvmlite.binding
import numpy as np
import pytest

from tests.stages.support import assert_same, build, result, run_sequence, run_threads, tiny
from threadloom.kernels.compiling.float_environment import control_register
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.resolve import gemm_settings
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(240)  # the first test may compile the kernels

DIVERGING = ("optimizer.lr=1.0", "schedule.kind=constant", "schedule.warmup=0")
TINY = float(np.finfo(np.float32).tiny)


@pytest.fixture(autouse=True)
def skip_if_kept() -> None:
    if not JIT_ENABLED or control_register(llvmlite.binding.get_process_triple()) is None:
        pytest.skip("subnormal numbers are kept without compiled code, and on this processor")


def count_subnormal(arrays: Iterable[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> int:
    return sum(int(((array != 0) & (np.abs(array) < TINY)).sum()) for array in arrays)


def count_in_state(training: Training) -> int:
    """Return the number of subnormal elements of the weights, the moments, the lanes and the gradient."""
    newest = training.banks.statistics().newest
    with training.banks.lease(newest) as lease:
        arenas = [lease.bank.arena, *training.optimizer.state.values()]
        return count_subnormal([training.gradient.flat, *(array for arena in arenas for _, array in arena.items())])


@pytest.mark.parametrize("gemm", [("gemm_backend=numba",), ("gemm_backend=blas", "threads.blas=2")])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_subnormal_numbers_are_zero_in_any_thread(gemm: tuple[str, ...], shared: str) -> None:
    common = (*DIVERGING, *gemm, f"shared_lanes={shared}", "delay=1", "steps=6")
    with gemm_settings(tiny(*common)):
        sequential = build(tiny(*common), evaluate=True)
        expected = result(sequential, run_sequence(sequential))
        assert count_in_state(sequential) == 0
        for threads in (1, 2, 3):
            stages = (f"threads.{stage}={threads}" for stage in ("embed", "forward", "backward", "reduce", "update"))
            training = build(tiny(*common, *stages), evaluate=True)
            assert_same(result(training, run_threads(training)), expected)
            assert count_in_state(training) == 0


def test_a_diverging_run_keeps_its_speed() -> None:
    """On an Intel Emerald Rapids the ratio was 7 without flushing, and 1.0 with it; on some processors it is always 1.

    Time is this thread's own, so other programs do not count, and medians ignore single slow updates.
    """
    sizes = ("model.context=128", "model.channels=32", "model.heads=2", "model.vocab_size=65")
    training = build(tiny(*DIVERGING, *sizes, "optimizer.lr=0.1", "steps=50"))
    times = [time.thread_time(), *(time.thread_time() for _ in replay(training))]
    each = np.diff(times).tolist()[1:]  # the first update loads the kernels
    assert statistics.median(each[-10:]) <= 1.5 * statistics.median(each[:10])
