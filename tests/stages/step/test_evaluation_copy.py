"""The copy that evaluations read while the versions are forecasts."""

import threading

import numpy as np
import pytest

from tests.stages.support import build, run_sequence, run_threads, tiny
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Cancelled
from threadloom.stages.memory import Evaluation
from threadloom.stages.step import EvaluationCopy, ValidationLoss
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)


def copy_of(training: Training) -> EvaluationCopy:
    found = training._copies.weights
    assert found is not None
    return found


def test_a_lease_has_the_weights_of_its_version_while_later_ones_are_written() -> None:
    training = build(tiny("delay=2"), evaluate=True)
    copy, master = copy_of(training), training.optimizer.master
    assert master is not None
    copy.acquire()
    lease = copy.take(0)
    before = master.flat.copy()
    master.flat[:] = 7.0
    np.testing.assert_array_equal(lease.bank.arena.flat, before)
    lease.release()
    copy.acquire()
    with copy.take(1) as lease:
        assert (lease.bank.arena.flat == 7.0).all()
        assert lease.version == 1


def test_the_next_copy_waits_for_the_evaluation_of_the_previous_one() -> None:
    copy = copy_of(build(tiny("delay=1"), evaluate=True))
    copy.acquire()
    lease, waited = copy.take(0), threading.Event()

    def acquire() -> None:
        copy.acquire()
        waited.set()

    other = threading.Thread(target=acquire)
    other.start()
    assert not waited.is_set()
    lease.release()
    other.join()
    assert waited.is_set()


def test_an_abort_ends_the_wait() -> None:
    copy = copy_of(build(tiny("delay=1"), evaluate=True))
    copy.acquire()
    copy.take(0)
    failures: list[BaseException] = []

    def acquire() -> None:
        try:
            copy.acquire()
        except Cancelled as cancelled:
            failures.append(cancelled)

    other = threading.Thread(target=acquire)
    other.start()
    copy.abort()
    other.join()
    assert len(failures) == 1


@pytest.mark.parametrize("correction", ["none", "lead"])
def test_versions_that_are_the_weights_need_no_copy(correction: str) -> None:
    assert build(tiny("delay=2", f"delay_correction={correction}"), evaluate=True)._copies.weights is None
    assert build(tiny("delay=2"))._copies.weights is None, "a run without evaluations"


@pytest.mark.parametrize("run", [run_threads, run_sequence])
def test_an_evaluation_is_of_the_weights_and_not_of_the_forecast(run: object) -> None:
    training = build(tiny("delay=2", "steps=6"), evaluate=True)
    events = run_threads(training) if run is run_threads else run_sequence(training)
    evaluation = next(event for event in events if isinstance(event, Evaluation) and event.step == 6)
    loss, master = ValidationLoss(training.compute), training.optimizer.master
    assert master is not None
    assert training.evaluate is not None
    windows = training.evaluate._validation.final
    with training.banks.lease(6) as forecast:
        assert loss.mean_loss(forecast.bank, windows) != evaluation.val_loss
        np.copyto(forecast.bank.arena.flat, master.flat)
        assert loss.mean_loss(forecast.bank, windows) == evaluation.val_loss


@pytest.mark.timeout(300)
@pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_evaluation_does_not_write_the_frozen_weights_that_batches_read(precision: str) -> None:
    """The packed copies of frozen matrices are those of all versions, and other threads read them meanwhile."""
    training = build(tiny("delay=1", f"precision={precision}", 'train.freeze=["fc_weight"]'), evaluate=True)
    assert training.evaluate is not None
    shared = training.frozen.packed.fc
    shared[...] = 0
    copy = copy_of(training)
    copy.acquire()
    training.evaluate.evaluate(copy.take(0))
    assert not shared.any()
