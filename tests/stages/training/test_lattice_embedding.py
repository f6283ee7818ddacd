"""Trainings with a token embedding on a lattice: the same bits for all threads and after resuming; files; bfloat16."""

from pathlib import Path

import numpy as np
import pytest

from tests.reference import lattices
from tests.stages.support import (
    STORY,
    Result,
    assert_same,
    build,
    command,
    planned,
    result,
    run_threads,
    story,
    tiny,
)
from tests.stages.training.support import replayed
from threadloom.kernels import Floats
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.run import train
from threadloom.stages.storage import integers_times, open_tensors, read_integers

pytestmark = pytest.mark.timeout(300)  # includes compiling with an empty cache

COMMON = ("model.channels=24", "embedding.lattice=e8", "steps=5", "checkpoint.interval=1", "checkpoint.keep=0")
SCALE = 2.0**-8  # of e8 with lattice_bits=4


def is_next_to(points: Floats, factors: Floats) -> bool:
    """Return True if every block of E8's size is the nearest point to that of the factors."""
    vectors = lattices.roots("E8")
    away = (factors.astype(np.float64) - points).reshape(-1, 8) / SCALE
    halves = points.reshape(-1, 8).astype(np.float64) / SCALE
    belongs = (halves * 2 % 1 == 0).all() and (halves.sum(axis=1) % 2 == 0).all()
    return bool(belongs and (away @ vectors.T <= 1 + 1e-6).all())


@pytest.mark.parametrize(("delay", "precision"), [(0, "float32"), (2, "float32"), (2, "bf16")])
def test_threads_and_resuming_do_not_change_a_bit(delay: int, precision: str, tmp_path: Path) -> None:
    """Every version that forward reads is on the lattice; with a delay it is a forecast, whose factors are rounded."""
    settings = (*COMMON, f"delay={delay}", "evaluation.interval=2", f"precision={precision}")
    expected = replayed(tiny(*settings))
    threads = ("threads.forward=2", "threads.backward=3", "threads.update=2", "slots=4")
    training = build(tiny(*settings, *threads), tmp_path, evaluate=True)
    found = result(training, run_threads(training))
    assert_same(Result(found.tensors, found.updates, found.evaluations, ()), expected)
    assert sum(training.memory().values()) == sum(planned(training.config).values())
    for version in range(5 - delay, 6):
        with training.banks.lease(version) as lease:
            assert is_next_to(lease.bank.arena["wte"], lease.bank.arena["wte_factors"])
    resumed = build(tiny(*settings), evaluate=True, start=Checkpoint.open(tmp_path / "step-000003"))
    tail = result(resumed, run_threads(resumed))
    assert tail.updates == expected.updates[3:]
    assert tail.evaluations == tuple(each for each in expected.evaluations if each[0] > 3)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(tail.tensors[name], tensor, err_msg=name)


@STORY
def test_checkpoint_and_export_hold_lattice_points(tmp_path: Path) -> None:
    """The folders are plain models; the integers beside an export are the same embedding in a fraction of the space."""
    run = tmp_path / "run"
    overrides = ("embedding.lattice=e8", "precision=float32", "steps=6")
    train(story(tmp_path, *overrides, "model.channels=48", "model.heads=4"), run)
    _, weights = load_model(run / "checkpoints" / "step-000006")
    with open_tensors(run / "checkpoints" / "step-000006" / "factors.safetensors") as file:
        factors = np.empty_like(weights["wte"])
        file.read("wte_factors", factors)
    assert is_next_to(weights["wte"], factors)
    assert command("export", run, tmp_path / "out").status == 0
    _, exported = load_model(tmp_path / "out")
    np.testing.assert_array_equal(exported.flat, weights.flat)
    found = tmp_path / "out" / "wte.integers"
    integers, step = read_integers(found)
    np.testing.assert_array_equal(integers_times(integers, step), weights["wte"])
    assert integers.dtype == np.int8
    assert 4 * found.stat().st_size < weights["wte"].nbytes


def test_bfloat16_reads_the_weights_of_float32() -> None:
    training = build(tiny(*COMMON, "precision=bf16"))
    with training.banks.lease(0) as lease:
        wte = lease.bank.arena["wte"]
        assert np.abs(wte).max() <= 128 * SCALE
        assert not (wte.view(np.uint32) & 0xFFFF).any()
