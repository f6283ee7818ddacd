"""The report of `threadloom bench`: derived figures, tables on terminals of any width, start times, JSON."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from tests.stages.tools.doctor.test_doctor import MACHINE
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.tools.bench.check import ODD
from threadloom.stages.tools.bench.report import BenchReport, ConfigBench, ModeMeasurement, StartTimes, bench_dict
from threadloom.stages.tools.bench.roofline import (
    BandwidthLevel,
    KernelTime,
    KernelWork,
    Peaks,
)
from threadloom.stages.tools.bench.tables import BenchView, start_lines
from threadloom.stages.training.measured_step import ExecutionMode

PEAKS = Peaks(2, 200.0, 400.0, 20.0, 30.0, (BandwidthLevel(1 << 20, 90.0), BandwidthLevel(1 << 27, 20.0)))


def made_up() -> BenchReport:
    """Return a report: 100 tokens per update, 1,000 per second in one thread, 1,500 by stage, 1,800 in the pipeline."""
    config = resolve(ODD, 2)
    ways = [
        ModeMeasurement(ExecutionMode.REPLAY.value, 0, 1, 100, [0.1, 0.09, 0.12], {}, 300, 100, 190),
        ModeMeasurement(ExecutionMode.STAGES.value, 0, 2, 100, [1 / 15], {}, 300, 100, 190),
        ModeMeasurement(
            ExecutionMode.PIPELINE.value, 0, 2, 100, [1 / 18], {"forward": 0.04, "reduce": 0.001}, 300, 100, 190
        ),
    ]
    kernels = [
        KernelTime("head", 6, KernelWork(4e9, 2e6), 0.04, (0.03, 0.05), 0.02, "compute", arithmetic=0.02),
        KernelTime("logits", 6, KernelWork(2e9, 2e6), 0.03, (0.03, 0.05), 0.01, "compute", "head"),
    ]
    start = StartTimes(3, {"interpreter": 0.1, "first update": 1.25})
    bench = ConfigBench(config, 1e8, 1234, "all", ways, kernels, {"reduce": 5e6}, start, None)
    return BenchReport(MACHINE, "Numba's kernel", 3.0, "everything", PEAKS, [bench])


def test_the_derived_figures() -> None:
    report = made_up()
    bench = report.configs[0]
    replay, pipeline = bench.way(ExecutionMode.REPLAY), bench.default
    assert replay.tokens_per_s == pytest.approx(1000), "the median"
    assert bench.efficiency(pipeline) == pytest.approx(0.9)
    assert bench.gflop_per_s(pipeline) == pytest.approx(180)
    assert report.mfu(bench, pipeline) == pytest.approx(0.45), "relative to the peak of both cores"
    assert report.mfu(bench, replay) == pytest.approx(0.5), "relative to the peak of one core"


def test_the_tables_have_the_figures_and_no_control_characters() -> None:
    console = Console(file=io.StringIO(), width=180, color_system=None)
    with console.capture() as capture:
        console.print(BenchView(made_up()), highlight=False)
    text = capture.get()
    assert "\x1b" not in text
    rows = [line.split() for line in text.splitlines()]
    for wanted in (
        "one thread 1 1,000 100.0",
        "1,500",
        "pipeline τ=0 2 1,800 55.6",
        "forward 40.00 36.0 %",
        "reduce 1.00 0.9 % 5.0",
    ):
        assert any(wanted in " ".join(row) for row in rows), wanted
    kernel = next(row for row in rows if row[:2] == ["head", "6"])
    assert kernel[kernel.index("%") - 1] == "50", "of peak"
    assert "MFU: relative to the measured peak of float32 GEMM, 200 GFLOP/s on one core, 400 on 2" in text
    assert kernel[-5:] == ["20,000.0", "compute", "2.00", "240.00", "120.00"]
    assert "sum without parts 240.00 120.00" in [" ".join(row) for row in rows], "parts are not counted again"
    assert "load average before: 3.0" in text


def shown(report: BenchReport, width: int, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=terminal)
    with console.capture() as capture:
        console.print(BenchView(report), highlight=False)
    return capture.get()


def large() -> BenchReport:
    """The made-up report with figures as long as those of a large model."""
    report = made_up()
    bench = report.configs[0]
    kernels = [
        dataclasses.replace(one, calls=1536, seconds=0.2345678, spread=(0.2123456, 0.2654321), floor=0.1987654)
        for one in bench.kernels
    ]
    ways = [dataclasses.replace(one, seconds=[12.3456, 13.4567, 14.5678], peak=2_345_678_901) for one in bench.ways]
    return dataclasses.replace(report, configs=[dataclasses.replace(bench, kernels=kernels, ways=ways)])


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
@pytest.mark.parametrize("report", [made_up(), large()], ids=["small", "large"])
def test_no_figure_loses_digits_on_a_narrow_terminal(report: BenchReport, width: int) -> None:
    text = shown(report, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        whole = set(shown(report, 300).split())
        rows = [line for line in text.splitlines() if line.startswith(("  head", "  pipeline", "  forward"))]
        assert len(rows) == 3
        assert whole.issuperset(" ".join(rows).split())
        (kernel,) = [row for row in rows if row.startswith("  head")]
        assert len(kernel.split()) >= 5, "the time of a kernel and its bound"


def test_a_narrow_terminal_hides_columns_and_names_them() -> None:
    assert "columns hidden" not in shown(large(), 200)
    narrow, wider = (shown(large(), width) for width in (100, 150))
    assert "columns hidden (terminal too narrow): MFLOP, MB, (quartiles)" in narrow
    assert "(quartiles)" in wider.partition("kernel (one core)")[2].splitlines()[0], (
        "the other hidden columns leave enough space"
    )
    assert "columns hidden" not in shown(large(), 180, terminal=False), "a pipe gets all columns"


def test_idle_time_is_not_negative_with_more_threads_than_cores() -> None:
    report = made_up()
    bench = report.configs[0]
    ways = [dataclasses.replace(one, busy={"forward": 0.1, "backward": 0.02} if one.busy else {}) for one in bench.ways]
    busy = dataclasses.replace(report, configs=[dataclasses.replace(bench, ways=ways)])
    rows = [" ".join(line.split()) for line in shown(busy, 100).splitlines()]
    assert "(of this, waiting for a core) 8.89 8.0 %" in rows
    assert "(idle or between calls)" not in shown(busy, 100)
    assert "(idle or between calls)" in shown(report, 100)


def test_start_lines() -> None:
    bench = made_up().configs[0]
    assert start_lines(bench) == [
        "warm start: first update after 1.25 s (reached: interpreter 0.10, first update 1.25)"
    ]
    cold = dataclasses.replace(bench, cold=StartTimes(1, {"first update": 30.0}))
    assert start_lines(cold)[1].startswith("cold start: first update after 30.00 s")


def test_the_report_as_json() -> None:
    found = json.loads(json.dumps(bench_dict(made_up())))
    way = found["configs"][0]["ways"][2]
    assert way["tokens_per_s"] == pytest.approx(1800)
    assert way["efficiency"] == pytest.approx(0.9)
    assert found["configs"][0]["kernels"][0]["above_floor"] == 2
    assert found["configs"][0]["config"]["name"] == "odd"
    assert found["configs"][0]["precision"] == "float32"
    assert found["configs"][0]["mfu_peak"] == {"precision": "float32", "one": 200, "all": 400}
    assert found["peaks"]["gemm_all"] == 400
