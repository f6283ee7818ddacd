"""The model of scaling over cores, and its program with made-up measurements."""

import json
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

from benchmarks import scaling
from benchmarks.scaling import (
    Point,
    Sweep,
    Trajectory,
    config_for,
    core_order,
    efficiency_text,
    predict,
    scaling_figure,
    workload_of,
)
from benchmarks.scaling_model import Scaling, UpdateWork, fit, rounds, saturation_of, shared
from threadloom.stages.config import Config, Gpt2Config
from threadloom.stages.resolve.loading import apply_overrides, load_config, to_json

SIXTEEN = UpdateWork(micro_batches=16, lanes=16, stream_bytes=2e9)
TINY = Config(name="tiny", model=Gpt2Config(vocab_size=17, context=6, layers=1, heads=2, channels=8), batch_size=4,
              steps=12)  # fmt: skip


@pytest.mark.parametrize(
    ("micro_batches", "lanes", "cores", "expected"),
    [
        (16, 16, 1, 16.0),
        (16, 16, 4, 4.0),
        (16, 16, 16, 1.0),
        (16, 16, 32, 1.0),  # more cores than micro-batches are idle
        (16, 8, 16, 1 / 3 + 2 * 2 / 3),  # too few lanes: two rounds of backward
        (8, 8, 16, 1.0),
        (5, 4, 4, 2.0),  # the fifth takes another round
        (1, 1, 8, 1.0),
    ],
)
def test_work_is_done_in_whole_rounds(micro_batches: int, lanes: int, cores: int, expected: float) -> None:
    assert rounds(UpdateWork(micro_batches, lanes, 0.0), cores) == pytest.approx(expected)


@pytest.mark.parametrize(("cores", "expected"), [(1, 8.0), (4, 2.0), (8, 1.0), (16, 1.0)])
def test_threads_that_share_a_lane_work_concurrently(cores: int, expected: float) -> None:
    assert rounds(UpdateWork(8, 1, 0.0, writers=8), cores) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "writers"),
    [
        ((), 2),
        (("shared_lanes=true",), 4),
        (("shared_lanes=true", "threads.backward=3"), 3),
        (("threads.backward=1",), 1),
    ],
)
def test_the_writers_are_the_maximum_number_in_backward(overrides: tuple[str, ...], writers: int) -> None:
    config = apply_overrides(TINY, ["micro_batch=1", "lanes=2", *overrides])
    workload = workload_of(config_for(config, 2, 16, Trajectory.SAME))
    assert (workload.micro_batches, workload.lanes, workload.writers) == (4, 2, writers)


def test_bandwidth_saturates() -> None:
    assert saturation_of(10.0, 20.0) == 0.0
    assert saturation_of(10.0, 10.0) == 1.0
    assert saturation_of(10.0, 25.0) == 0.0  # more than a factor of two is noise
    assert saturation_of(10.0, 5.0) == 1.0
    assert [shared(0.0, cores) for cores in (1, 2, 16)] == [1.0, 0.5, 1 / 16]
    assert shared(1.0, 16) == 1.0
    assert shared(0.25, 1 << 20) == 0.25 + 0.75 / (1 << 20)  # never below b(1) / κ
    with pytest.raises(ValueError, match="above 0"):
        saturation_of(0.0, 1.0)


def test_the_fit_recovers_the_constants() -> None:
    truth = Scaling(SIXTEEN, serial=0.004, micro=0.05, memory=2e9 / 10e9, saturation=saturation_of(10e9, 16e9))
    found = fit(SIXTEEN, {cores: truth.seconds(cores) for cores in (1, 2)}, 10e9, 16e9)
    for cores in (1, 2, 4, 8, 16):
        assert found.seconds(cores) == pytest.approx(truth.seconds(cores))
    assert found.serial == pytest.approx(truth.serial)
    assert found.micro == pytest.approx(truth.micro)
    assert found.efficiency(1) == 1.0
    assert 1.0 > found.efficiency(2) > found.efficiency(4) > found.efficiency(16) > 0.0


def test_without_serial_part_and_memory_the_speed_up_follows_from_the_rounds() -> None:
    found = fit(UpdateWork(8, 8, 0.0), {1: 8.0, 2: 4.0}, 1.0, 2.0)
    assert [found.speedup(cores) for cores in (1, 2, 4, 8, 16)] == pytest.approx([1, 2, 4, 8, 8])
    assert found.efficiency(16) == pytest.approx(0.5)


def test_noise_does_not_become_a_negative_constant() -> None:
    faster = fit(UpdateWork(8, 8, 0.0), {1: 8.0, 2: 3.0}, 1.0, 2.0)
    assert faster.serial == 0.0
    assert faster.micro == 1.0
    useless = fit(UpdateWork(8, 8, 0.0), {1: 8.0, 2: 9.0}, 1.0, 2.0)
    assert useless.micro == 0.0
    assert useless.speedup(16) == 1.0


def test_impossible_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 1 and 2 cores"):
        fit(SIXTEEN, {1: 1.0, 4: 0.3}, 1e9, 2e9)
    with pytest.raises(ValueError, match="cannot stream"):
        fit(SIXTEEN, {1: 0.1, 2: 0.05}, 1e9, 2e9)


def test_rounds_show_the_uncertainty_of_a_prediction() -> None:
    one, two = Point(1, [100.0, 100.0, 100.0], [100.0] * 3), Point(2, [190.0, 200.0, 180.0], [100.0] * 3)
    assert two.speedups == [1.9, 2.0, 1.8]
    assert two.efficiency == pytest.approx(0.95)
    models = predict(UpdateWork(16, 16, 0.0), 1000, [one, two], (1.0, 2.0))
    assert len(models) == 4
    assert models[0].seconds(2) == pytest.approx(1000 / median(two.tokens_per_s))
    assert efficiency_text(models, 2) == "95% (90% to 100%)"


def test_one_trajectory_for_all_numbers_of_cores_or_one_for_each() -> None:
    large = load_config("large")
    same, largest = (config_for(large, cores, 16, Trajectory.SAME) for cores in (1, 16))
    assert (same.micro_batch, same.lanes) == (largest.micro_batch, largest.lanes)
    own = config_for(large, 1, 16, Trajectory.OWN)
    assert own.lanes == 1
    assert own.threads.forward is None  # left open
    workload = workload_of(largest)
    assert workload.lanes == largest.lanes
    assert workload.micro_batches * (largest.micro_batch or 0) == large.sequences
    assert workload.stream_bytes > 4 * 8 * 16e6


def test_hardware_threads_of_one_core_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(["0,1", "0,1", "2-3", "2-3"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert core_order(tmp_path) == [0, 2, 1, 3]


def test_the_program_predicts_numbers_of_cores_that_the_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(sweep: Sweep, counts: list[int], *_: object) -> list[Point]:
        return [Point(cores, [100.0 * cores] * 5, [100.0] * 5) for cores in counts]

    monkeypatch.setattr(scaling, "measure_points", measured)
    monkeypatch.setattr(scaling, "bandwidths", lambda: (1e12, 2e12))
    monkeypatch.setattr(scaling, "available_cores", lambda: 4)
    file = tmp_path / "tiny.json"
    file.write_text(to_json(TINY))
    answer = CliRunner().invoke(scaling.main, ["--config", str(file), "--cores", "4,8", "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "predicted for 8 cores" in answer.output
    assert "not measured" in answer.output
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [point["cores"] for point in found["measured"]] == [1, 2, 4]
    assert [point["cores"] for point in found["predicted"]] == [1, 2, 4, 8]
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_the_plot_can_be_drawn() -> None:
    point = Point(1, [1.0], [1.0])
    drawn = scaling_figure("large", [point], [fit(SIXTEEN, {1: 3.0, 2: 1.6}, 1e10, 1.6e10)] * 2, [1, 2, 4], "a machine")
    drawn.canvas.draw()
    assert len(drawn.axes) == 2
