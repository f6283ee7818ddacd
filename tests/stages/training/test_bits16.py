"""Training in 16 bits through the pipeline: one trajectory, resumed or not; packed weights equal to the master."""

from pathlib import Path

import numpy as np
import pytest

from tests.error_bounds import IN_BF16, IN_BF16X3, IN_FP16
from tests.kernels.bits16.formats import BF16, FP16, pack
from tests.stages.support import (
    LLAMA,
    SEVERAL_CHUNKS,
    TINY,
    Result,
    assert_same,
    build,
    intercept,
    planned,
    result,
    run_threads,
    tiny,
)
from tests.stages.training.gradients import SPREAD, check_gradients
from tests.stages.training.support import replayed
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.checkpoint import Checkpoint, kept_versions
from threadloom.stages.config import Config, Precision, ResolvedConfig
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.memory.bank import Bank
from threadloom.stages.memory.graph_items import MicroBatch, MicroGradient, Update
from threadloom.stages.models import Geometry
from threadloom.stages.resolve.process_wide import gemm_settings

pytestmark = [
    pytest.mark.timeout(600),  # includes minutes of compiling with an empty cache
    pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler"),
]

LOW = pytest.mark.parametrize("precision", ["bf16", "fp16"])
DELAYS = pytest.mark.parametrize("delay", [0, 1, 2])
STAGES = ("embed", "forward", "backward", "reduce", "update")
STEPS = 6


def low(precision: str, *overrides: str) -> ResolvedConfig:
    return tiny(f"precision={precision}", f"steps={STEPS}", *overrides)


# --- one trajectory ---------------------------------------------------------------------------------------------------


@LOW
@DELAYS
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_threads_do_not_change_a_bit(precision: str, delay: int, lanes: int) -> None:
    common = (f"delay={delay}", f"lanes={lanes}", "evaluation.interval=2")
    expected = replayed(low(precision, *common))
    for (forward, backward), spare in (((1, 1), 0), ((2, 3), 1), ((3, 2), 0)):
        threads = (f"threads.forward={forward}", f"threads.backward={backward}", f"threads.embed={spare + 1}")
        sizes = (f"channel_capacity={forward}", f"extra_banks={spare}", f"slots={backward + 1}")
        training = build(low(precision, *common, *threads, *sizes), evaluate=True)
        assert_same(result(training, run_threads(training)), expected)


@LOW
@DELAYS
def test_shards_of_reduction_and_update_do_not_change_a_bit(
    precision: str, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arena has several chunks and many parts, which one, two or three threads share."""
    monkeypatch.setattr("threadloom.stages.step.bits16.optimizer.PART", 1 << 13)
    common = (*SEVERAL_CHUNKS, f"delay={delay}", "lanes=3", "steps=4")
    expected = replayed(low(precision, *common))
    for threads, spare in ((1, 0), (2, 1), (3, 0)):
        shared = (f"threads.reduce={threads}", f"threads.update={threads}", f"extra_banks={spare}")
        training = build(low(precision, *common, *shared), evaluate=True)
        assert_same(result(training, run_threads(training)), expected)


@LOW
def test_each_precision_has_another_trajectory(precision: str) -> None:
    """The comparisons above can fail: losses differ from those of float32 and of the other format."""
    losses = {p: [loss for _, loss, _, _ in replayed(low(p)).updates] for p in ("float32", "bf16", "fp16")}
    own = losses.pop(precision)
    assert all(own[0] != other[0] and own[1:] != other[1:] for other in losses.values())


@LOW
@DELAYS
def test_a_resumed_run_continues_the_same_trajectory(precision: str, delay: int, tmp_path: Path) -> None:
    """Packed weights are not in checkpoints: they are recomputed for every version that is still read."""
    common = (f"delay={delay}", "evaluation.interval=2", "checkpoint.interval=1", "checkpoint.keep=0")
    whole = build(low(precision, *common), tmp_path, evaluate=True)
    expected = result(whole, run_threads(whole))
    for step in (1, 2, 5):
        threads = (*(f"threads.{stage}={step % 3 + 1}" for stage in STAGES), f"extra_banks={step % 2}")
        start = Checkpoint.open(tmp_path / f"step-{step:06d}")
        training = build(low(precision, *common, *threads), evaluate=True, start=start)
        evaluations = tuple(e for e in expected.evaluations if e[0] > step)
        found = result(training, run_threads(training))
        assert_same(found, Result(expected.tensors, expected.updates[step:], evaluations, ()))


# --- packed weights ---------------------------------------------------------------------------------------------------


def assert_packed_equals_master(geometry: Geometry, bank: Bank, precision: str) -> None:
    """Compare every element, zeros at the edges included, with the rounded and packed master."""
    fields = bits16_layout_of(geometry).packed_fields(geometry)
    for name, field in fields.items():
        if name not in bank.arena:  # an adapter that the model does not have
            continue
        master = bank.arena[name]
        found, found_t = getattr(bank.packed, field), getattr(bank.packed, f"{field}_t", None)
        if precision == "fp16":
            assert found_t is None or found is found_t
            np.testing.assert_array_equal(found, FP16.nearest(master), name)
            continue
        layers = master if master.ndim == 3 else master[None]
        for packed, transposed in ((found, False), (found_t, True)):
            if packed is None:  # a matrix that is only looked up has no packed transpose
                continue
            bits = [BF16.nearest(np.ascontiguousarray(matrix.T if transposed else matrix)) for matrix in layers]
            expected = np.stack([pack(matrix) for matrix in bits])
            np.testing.assert_array_equal(packed, expected.reshape(packed.shape), f"{name}, transposed: {transposed}")


@LOW
@DELAYS
@pytest.mark.parametrize("spare", [0, 1])
def test_every_version_is_read_with_packed_weights_equal_to_its_master(precision: str, delay: int, spare: int) -> None:
    """Checked at every forward pass, in every bank, also after skipped updates."""
    scaled = ("loss_scale.kind=dynamic", f"extra_banks={spare}", f"delay={delay}")
    training = build(low(precision, *scaled, *SEVERAL_CHUNKS, "steps=7", "threads.update=2"))
    seen = set()

    def check(item: MicroBatch) -> None:
        _, lease = item.held()
        if (lease.version, id(lease.bank)) not in seen:
            seen.add((lease.version, id(lease.bank)))
            assert_packed_equals_master(training.config.model.geometry(), lease.bank, precision)

    def overflow(_: MicroBatch, made: MicroGradient) -> None:
        if made.batch in (1, 4):
            training.lanes.flat[training.plan.lane_of(made.micro), 5] = np.inf

    intercept(training, "forward", before=check)
    intercept(training, "backward", after=overflow)
    updates = [event for event in run_threads(training) if isinstance(event, Update)]
    assert [update.step for update in updates if update.scaled and update.scaled.skipped] == [2, 5]
    assert {version for version, _ in seen} == set(range(7 - delay))
    for version in kept_versions(7, delay):
        with training.banks.lease(version) as lease:
            assert_packed_equals_master(training.config.model.geometry(), lease.bank, precision)


# --- results ----------------------------------------------------------------------------------------------------------


STORAGE = {"bf16": (IN_BF16, BF16), "fp16": (IN_FP16, FP16), "bf16x3": (IN_BF16X3, None)}


@pytest.mark.parametrize("precision", STORAGE)
@pytest.mark.parametrize(
    "sizes",
    [
        ("model.context=16", "batch_size=6", "micro_batch=3", "lanes=2", "model.channels=24", "model.layers=1"),
        ("model.context=5", "batch_size=7", "lanes=3", "model.channels=21", "model.heads=7"),
        ("model.context=33", "batch_size=2", "gradient_accumulation_steps=2", "lanes=4", "model.vocab_size=300",
         "model.channels=48", "delay=1"),
    ],
)  # fmt: skip
def test_every_gradient_tensor(precision: str, sizes: tuple[str, ...]) -> None:
    config = tiny(*sizes, f"precision={precision}", "steps=1", "threads.backward=2")
    with gemm_settings(config):
        check_gradients(config, *STORAGE[precision], spread=SPREAD * config.model.channels**-0.5)


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("precision", STORAGE)
def test_updates_through_the_pipeline_equal_those_of_the_reference(precision: str, delay: int) -> None:
    """The evaluations are those of the replay, as of every trajectory."""
    common = (*SMALL_STEPS, f"delay={delay}", "evaluation.interval=2")
    config = low(precision, *common, "threads.forward=2", "threads.backward=3")
    storage, packed = STORAGE[precision]
    with gemm_settings(config):
        training = build(config, evaluate=True)
        expected = expectation(training, storage, packed)
        events = run_threads(training)
        found = result(training, events)
        assert_same(found, replayed(config))
    assert_expected(training, events, expected)
    assert found.updates != replayed(low("float32", *common)).updates, "the run did not compute in float32"


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("precision", [Precision.BF16.value, Precision.FP16.value])
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("delay=2",),
        ("lanes=3", "extra_banks=0", "delay=1"),
        ("slots=9", "model.channels=64", "model.heads=2", "model.context=130"),
        ("model.vocab_size=5003", "model.channels=33", "model.heads=1", "micro_batch=4", "lanes=1", "model.context=1"),
        SEVERAL_CHUNKS,
        ("model.vocab_size=50257", "model.context=64", "model.channels=8", "model.heads=1", "micro_batch=4", "lanes=1"),
    ],
)
def test_a_run_allocates_what_is_planned(
    precision: str, changes: tuple[str, ...], outputs: bool, tmp_path: Path
) -> None:
    config = low(precision, *changes)
    training = build(config, tmp_path if outputs else None, evaluate=outputs)
    assert training.memory() == planned(config, evaluates=outputs, saves=outputs)


@LOW
@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
def test_recomputation_takes_less_memory_and_changes_no_bit(precision: str, base: Config) -> None:
    common = (f"precision={precision}", "delay=1", "steps=4", "lanes=2", "threads.backward=2")
    keeping, recomputing = (tiny(*common, f"recompute={value}", base=base) for value in ("false", "true"))
    parts = ["slots"] if precision == "fp16" else ["slots", "weight banks"]
    for part in parts:
        assert planned(recomputing)[part] < planned(keeping)[part]
    training = build(recomputing, evaluate=True)
    assert_same(result(training, run_threads(training)), replayed(keeping))
