"""`threadloom bench` in 16 bits: kernels, peaks and tolerances, and the precision in tables and JSON."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.stages.support import command, tiny
from tests.stages.tools.bench.conftest import ScaleGradients
from tests.stages.tools.bench.test_bench import call_all, check_sums
from tests.stages.tools.bench.test_report import PEAKS, made_up
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import arena_size
from threadloom.stages.config.settings import Precision
from threadloom.stages.machine.machine import detect
from threadloom.stages.memory import adamw_bytes
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.resolve.loading import to_json
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.tools.bench import check as bench_check
from threadloom.stages.tools.bench.check import (
    ODD,
    BenchCheckFailed,
    check_kernels,
    check_schedules,
    gradient_tolerance,
    odd,
)
from threadloom.stages.tools.bench.kernel_bench import update_bytes
from threadloom.stages.tools.bench.kernels import kernel_bench
from threadloom.stages.tools.bench.report import BenchReport, bench_dict
from threadloom.stages.tools.bench.roofline import GemmPeak, Peaks
from threadloom.stages.tools.bench.tables import BenchView, peak_lines
from threadloom.stages.training.measured_step import ExecutionMode

BF16, FP16 = Precision.BF16, Precision.FP16

pytestmark = [
    pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits requires compiled code"),
    pytest.mark.timeout(300),  # compiling its kernels takes a minute under load
]


def in_bf16() -> BenchReport:
    """Return the made-up report in bfloat16, with a GEMM twice as fast as that of float32."""
    report = made_up()
    bench = dataclasses.replace(report.configs[0], config=odd(2, BF16))
    peaks = dataclasses.replace(PEAKS, others=(GemmPeak(BF16, 400.0, 800.0),))
    return dataclasses.replace(report, peaks=peaks, configs=[bench])


def test_mfu_is_relative_to_the_gemm_of_the_precision() -> None:
    report = in_bf16()
    bench = report.configs[0]
    assert report.mfu(bench, bench.default) == pytest.approx(180 / 800)
    assert report.mfu(bench, bench.way(ExecutionMode.REPLAY)) == pytest.approx(100 / 400)


def test_the_tables_and_the_json_name_the_precision() -> None:
    report = in_bf16()
    console = Console(file=io.StringIO(), width=180, color_system=None)
    with console.capture() as capture:
        console.print(BenchView(report), highlight=False)
    for words in (
        "odd in bf16: 1,234 parameters",
        "float32 GEMM 200 GFLOP/s on one core, 400 on 2",
        "bf16 GEMM 400 GFLOP/s on one core, 800 on 2",
        "MFU: relative to the measured peak of bf16 GEMM, 400 GFLOP/s on one core, 800 on 2",
        "bounds: GEMM at that peak, all other arithmetic at that of float32 GEMM",
    ):
        assert words in capture.get()
    found = json.loads(json.dumps(bench_dict(report)))
    assert found["configs"][0]["precision"] == "bf16"
    assert found["configs"][0]["mfu_peak"] == {"precision": "bf16", "one": 400, "all": 800}
    assert found["peaks"]["others"] == [{"precision": "bf16", "one": 400, "all": 800}]


def test_float16_uses_float32_gemm() -> None:
    report = made_up()
    bench = dataclasses.replace(report.configs[0], config=odd(2, FP16))
    assert report.mfu(bench, bench.default) == pytest.approx(180 / 400)
    assert "float32 GEMM (float16 is upcast for it), 200 GFLOP/s" in peak_lines(report, bench)[0]


@pytest.mark.parametrize("precision", [BF16, FP16])
def test_every_kernel_of_an_update_can_be_called(precision: Precision) -> None:
    config = tiny(f"precision={precision.value}")
    with gemm_settings(config):
        cases = kernel_bench(config).cases()
        call_all(cases)
    check_sums(cases, precision)


def test_kernels_have_the_same_gemms_as_in_float32() -> None:
    """The GEMMs are the same, with operands of half the size."""
    wholes = {}
    for precision in (Precision.FLOAT32, BF16):
        config = tiny(f"precision={precision.value}")
        with gemm_settings(config):
            wholes[precision] = {case.name: case for case in kernel_bench(config).cases() if case.part_of is None}
    for name, case in wholes[BF16].items():
        other = wholes[Precision.FLOAT32][name]
        assert (case.calls, case.work.products) == (other.calls, other.work.products)
        assert case.work.bytes < other.work.bytes or name in ("reduce", "AdamW", "d_embedding")


def test_the_bytes_of_the_update() -> None:
    geometry = Geometry(10, 3, 2, 1, 4)  # a matrix of 40 weights, and two layers of 48 + 16 + 64 + 64
    shapes = parameter_shapes(geometry)
    for trained, forms in ((shapes.keys(), 40 + 2 * (48 + 16 + 64 + 64)), ({"wte", "ln1_bias"}, 40), ({"wpe"}, 0)):
        elements = arena_size({name: shapes[name] for name in shapes if name in trained})
        for precision, copies in ((Precision.FLOAT32, 0), (Precision.BF16X3, 0), (BF16, 2), (FP16, 1)):
            assert update_bytes(geometry, trained, precision) == adamw_bytes(elements) + 2 * copies * forms


@pytest.mark.parametrize("precision", [BF16, FP16])
def test_the_checks_pass(precision: Precision) -> None:
    assert "bit for bit" in check_schedules(2, precision)
    assert "gradient within" in check_kernels(odd(2, precision), every_tensor=True)


def test_the_tolerance_grows_with_the_square_root_of_the_roundings() -> None:
    assert gradient_tolerance(Precision.FLOAT32, 12) == gradient_tolerance(Precision.BF16X3, 1) == 1e-3
    assert gradient_tolerance(BF16, 1) == pytest.approx(8 * gradient_tolerance(FP16, 1))
    assert 0.03 < gradient_tolerance(BF16, 1) < gradient_tolerance(BF16, 4) < 2 * gradient_tolerance(BF16, 1)


@pytest.mark.parametrize("tensor", parameter_shapes(odd(2, BF16).geometry()))
def test_a_wrong_gradient_of_any_tensor_is_found(tensor: str, scale_gradients: ScaleGradients) -> None:
    scale_gradients(tensor, 1.5)
    with pytest.raises(BenchCheckFailed, match=f"odd in bf16: the kernels' gradient of {tensor}"):
        check_kernels(odd(2, BF16), every_tensor=True)


def test_a_wrong_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_check._loss_and_gradient
    monkeypatch.setattr(bench_check, "_loss_and_gradient", lambda *given: 1.002 * right(*given))
    with pytest.raises(BenchCheckFailed, match="odd in bf16: the kernels' loss"):
        check_kernels(odd(2, BF16), every_tensor=True)


def test_only_used_gemms_are_measured(quick_peaks: Callable[..., Peaks]) -> None:
    peaks = quick_peaks(detect(), 2, 0.01, (Precision.FLOAT32, FP16, BF16))
    assert [peak.precision for peak in peaks.others] == [BF16]
    assert 0 < peaks.others[0].one <= peaks.others[0].all


@pytest.mark.soak
@pytest.mark.usefixtures("quick_peaks")
def test_the_command_from_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(to_json(ODD))
    found = tmp_path / "bench.json"
    said = command(
        "bench", "--config", tmp_path / "odd.json", "--set", "precision=bf16", "--seconds", "0.1", "--json", found
    )
    assert said.status == 0, said.err
    for words in (
        "bf16: pipeline and stage by stage equal",
        "odd in bf16",
        "fc + GELU",
        "d_wte slices",
        "bf16 GEMM",
    ):
        assert words in said.out
    bench = json.loads(found.read_text())["configs"][0]
    assert bench["precision"] == bench["config"]["precision"] == "bf16"
    assert [way["delay"] for way in bench["ways"]] == [0, 0, 0, 1, 2]
    assert all(way["tokens_per_s"] > 0 for way in bench["ways"])
