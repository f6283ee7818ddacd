"""The conclusions of the doctor from made-up machines, and one short real examination."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.stages.machine.test_machine import XEON
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.backend import BlasInfo, GemmBackend, blas_info
from threadloom.kernels.simd.features import DotPath, LowPrecisionInfo, choose, low_precision_info
from threadloom.stages.config.settings import Precision
from threadloom.stages.resolve.loading import CONFIG_NAMES
from threadloom.stages.resolve.precision import ALLOW_SLOW
from threadloom.stages.speeds import PRODUCTS, Speeds
from threadloom.stages.tools.doctor import examination, measuring
from threadloom.stages.tools.doctor.examination import (
    ConfigDefaults,
    DoctorReport,
    choices,
    doctor_dict,
    examine,
    warnings,
)
from threadloom.stages.tools.doctor.measuring import MachineRates
from threadloom.stages.tools.doctor.precision import automatic_choices, measured_paths, product_paths
from threadloom.stages.tools.doctor.view import DoctorView

MACHINE = dataclasses.replace(
    XEON, cpu="Some CPU", features=("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")
)
BLAS = BlasInfo(
    backend=GemmBackend.BLAS,
    library="/site-packages/scipy.libs/openblas.so",
    name="openblas",
    version="0.3.30",
    architecture="SkylakeX",
    overridden=False,
    reason="OpenBLAS knows the processor",
    known_bad=False,
)
MEASURED = MachineRates(2, gemm_one=200.0, gemm_all=390.0, copy_one=12.0, copy_all=20.0, add_one=13.0, add_all=22.0)
DEFAULTS = (
    ConfigDefaults("tiny", 3, 192, 2, 2, 2, 2, 2, layer_bytes=1 << 20),
    ConfigDefaults("big", 2, 256, 2, 2, 2, 2, 2, layer_bytes=6 << 20),
)
PERMITTED = {"avx512f": True, "avx512bf16": True, "f16c": True, "amx-tile": True, "amx-bf16": True}
"""Features, in LLVM's names, of a processor with all of them."""
SPEEDS = Speeds(float32=200.0, bf16=1200.0, bf16x3=350.0, fp16=150.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty cache, so that the kept speeds of this machine are not touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(ALLOW_SLOW, raising=False)


def info_of(*missing: str, permission: bool = True) -> LowPrecisionInfo:
    features = {name: present and name not in missing for name, present in PERMITTED.items()}
    return choose(features, lambda: permission)


def report_of(info: LowPrecisionInfo, speeds: Speeds | None = SPEEDS, blas: BlasInfo = BLAS) -> DoctorReport:
    """Return a report with all available paths measured at the speed of their precision."""
    products = tuple(
        dataclasses.replace(path, one=speeds.of(path.precision), all=2 * (speeds.of(path.precision) or 0))
        if speeds and path.available
        else path
        for path in product_paths(blas, info)
    )
    libraries = {"numpy": "2.4.6"}
    return DoctorReport(
        MACHINE, "3.12.1", libraries, blas, (), MEASURED, DEFAULTS, products, automatic_choices(speeds, info), speeds
    )  # fmt: skip


REPORT = report_of(info_of())


def text_of(report: DoctorReport, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(DoctorView(report))
    return capture.get()


def test_a_good_machine_has_no_warnings() -> None:
    assert warnings(MACHINE, BLAS, MEASURED) == ()
    assert warnings(MACHINE, BLAS, None) == ()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            dataclasses.replace(REPORT, blas=dataclasses.replace(BLAS, known_bad=True)),
            "wrong results to concurrent callers",
        ),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, features=())), "no AVX2"),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, physical_cores=1)), "share 1 cores"),
        (dataclasses.replace(REPORT, measured=dataclasses.replace(MEASURED, gemm_all=210.0)), "only 1.1 times as fast"),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, memory_available=1 << 30)), "Only 1 GiB"),
    ],
)
def test_each_problem_has_its_warning(report: DoctorReport, words: str) -> None:
    assert len(report.warnings) == 1
    assert words in report.warnings[0]
    assert report.warnings[0].split()[0] in text_of(report)


def test_the_choices_name_their_reasons() -> None:
    said = "\n".join(choices(MACHINE, BLAS, DEFAULTS))
    assert "compiled for sapphirerapids, with AVX-512" in said
    assert "OpenBLAS 0.3.30 with its SkylakeX kernels; OpenBLAS knows the processor." in said
    assert "about 1 MiB (tiny) to 6 MiB (big); the L2 cache has 2 MiB" in said
    assert MACHINE.fingerprint() in said


def test_the_choices_without_unknown_values() -> None:
    bare = dataclasses.replace(MACHINE, architecture="arm64", microarchitecture="apple-m1", features=("neon",), l2=None)
    without = dataclasses.replace(BLAS, backend=GemmBackend.NUMBA, name="", version="", architecture="", reason="none")
    said = "\n".join(choices(bare, without, DEFAULTS))
    assert "baseline 128-bit vectors of arm64" in said
    assert "not BLAS; none." in said
    assert "L2" not in said
    assert "THREADLOOM_GEMM" not in said
    assert warnings(bare, without, None) == ()


def test_problems_of_an_unused_blas_are_reported_separately() -> None:
    slow = "the environment sets OPENBLAS_CORETYPE=Haswell; unset it for up to twice the speed"
    why = "on AVX-512 Numba's GEMM is used, which is as fast or faster"
    idle = dataclasses.replace(BLAS, backend=GemmBackend.NUMBA, reason=f"{slow}; {why}")
    said = choices(MACHINE, idle, DEFAULTS)
    assert f"GEMM: Numba's blocked kernel, not BLAS; {why}." in said
    assert f"BLAS, if selected by THREADLOOM_GEMM=blas: {slow}." in said
    wrong = dataclasses.replace(idle, known_bad=True)
    assert not any("THREADLOOM_GEMM" in words for words in choices(MACHINE, wrong, DEFAULTS)), (
        "it returns wrong results"
    )
    runs = dataclasses.replace(idle, backend=GemmBackend.BLAS)
    assert any(f"{slow}; {why}." in words for words in choices(MACHINE, runs, DEFAULTS))


def test_the_report_as_text_has_the_figures() -> None:
    lines = text_of(REPORT).splitlines()
    assert ["float32 GEMM, 768 × 768", "200.0 GFLOP/s", "390.0 GFLOP/s", "1.95"] in [
        [field.strip() for field in line.split("  ") if field.strip()] for line in lines
    ]
    assert any("L1d 48 KiB, L2 2 MiB, L3 32 MiB" in line for line in lines)
    assert "\x1b" not in text_of(REPORT)
    assert "Measured" not in text_of(dataclasses.replace(REPORT, measured=None))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_report_fits_the_console(width: int) -> None:
    assert max(len(line) for line in text_of(REPORT, width).splitlines()) <= width


def test_the_report_as_json() -> None:
    found = json.loads(json.dumps(doctor_dict(REPORT)))
    assert found["machine"]["vector_width"] == "AVX-512"
    assert found["machine"]["fingerprint"] == MACHINE.fingerprint()
    assert found["blas"]["backend"] == "blas"
    assert found["measured"]["gemm_all"] == 390.0
    assert found["defaults"][0]["config"] == "tiny"
    assert found["choices"] == list(REPORT.choices)
    amx = next(row for row in found["products"] if row["dot"] == "AMX" and row["precision"] == "bf16")
    assert (amx["available"], amx["taken"], amx["one"], amx["all"]) == (True, True, 1200.0, 2400.0)
    assert found["precisions"]["precision=auto"]["precision"] == "bf16"


def test_a_real_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "GEMM_SIZE", 64)
    monkeypatch.setattr(measuring, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(examination, "measured_paths", lambda paths, *_: paths)
    monkeypatch.setattr(examination, "detect", lambda: dataclasses.replace(MACHINE, l3=None))
    report = examine(seconds=0.02)
    assert [row.config for row in report.defaults] == list(CONFIG_NAMES)
    assert all(row.rows and row.lanes and row.forward and row.backward for row in report.defaults)
    assert report.measured is not None
    for rate in dataclasses.astuple(report.measured):
        assert rate > 0
    assert json.dumps(doctor_dict(report))
    assert Path(report.blas.library).name in text_of(report, 200) or report.blas.version in text_of(report, 200)


def test_the_working_set_of_a_layer_is_that_of_its_architecture() -> None:
    """The activations of one layer in float32, counted by hand: GPT-2 keeps 16 C, a Llama keeps 2 C for the residual
    stream twice, C for a norm, queries, keys and values, the heads' outputs, and 3 F for the gated MLP."""
    rows = {row.config: row for row in examine(measure=False).defaults}
    for name, width in (("small", 16 * 256), ("llama-small", 4 * 384 + (6 + 2 * 2) * 64 + 384 + 3 * 1024)):
        row = rows[name]
        assert row.layer_bytes == pytest.approx(4 * width * row.rows, rel=0.1), name


def test_measurements_can_be_skipped() -> None:
    assert examine(measure=False).measured is None


@pytest.mark.skipif(not JIT_ENABLED, reason="no speeds are kept without the compiler")
def test_the_origin_of_kept_speeds_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(measure=False).speeds_from == "", "no speeds are kept yet"
    monkeypatch.setattr(examination, "measure_machine", lambda *_: MEASURED)
    monkeypatch.setattr(examination, "measured_paths", lambda paths, *_: paths)
    monkeypatch.setattr("threadloom.stages.speeds.record.measure_speeds", lambda: SPEEDS)
    first, second = examine(), examine(measure=False)
    assert first.speeds_from.startswith("measured just now, kept in ")
    assert second.speeds_from.startswith("measured earlier, kept in ")
    assert first.speeds == second.speeds == SPEEDS
    assert doctor_dict(second)["speeds_from"] == second.speeds_from
    assert f"were {second.speeds_from}. Every run uses them." in second.choices[-1]
    cells = [cell for row in rows_of(second) for cell in row]
    assert "1,200 GFLOP/s earlier" in cells
    assert "200 GFLOP/s earlier" in cells


def test_current_rates_are_distinguished_from_kept_ones() -> None:
    report = dataclasses.replace(REPORT, speeds_from="measured earlier, kept in a file")
    assert report.choices[-1] == (
        "The GFLOP/s that decide precision=auto and float32_matmul_precision=high were measured earlier, kept in a "
        "file. Every run uses them; the table has rates measured just now, under the current load."
    )
    assert "earlier" not in "".join(cell for row in rows_of(report) for cell in row)
    assert "GEMM of 256 × 384 × 1536" in text_of(report)


SLOWER = "used on request; slower than float32"


def rows_of(report: DoctorReport) -> list[list[str]]:
    """Return the cells of the table of precisions by row."""
    lines = text_of(report, 160).partition("\nPrecisions\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines]


def test_the_table_of_a_machine_with_all_features() -> None:
    assert rows_of(REPORT) == [
        ["precision", "GEMM", "one core", "all 2"],
        ["float32", "Numba's kernel", "200 GFLOP/s", "400 GFLOP/s"],
        ["float32", "BLAS: openblas 0.3.30", "200 GFLOP/s", "400 GFLOP/s", "used by default"],
        ["bf16x3", "three products: AMX tiles", "350 GFLOP/s", "700 GFLOP/s", "used by float32_matmul_precision=high"],
        ["bf16", "AMX tiles", "1,200 GFLOP/s", "2,400 GFLOP/s", "used by precision=auto"],
        ["bf16", "AVX-512 BF16", "1,200 GFLOP/s", "2,400 GFLOP/s"],
        ["bf16", "upcast to float32 in registers", "1,200 GFLOP/s", "2,400 GFLOP/s"],
        ["fp16", "converted by F16C, float32 GEMM", "150 GFLOP/s", "300 GFLOP/s", SLOWER],
        ["fp16", "converted by integers, float32 GEMM", "-", "-", "F16C is available, and faster"],
    ]
    assert "precision=auto selects bf16: bf16 is 6.00 times as fast" in text_of(REPORT, 300)


@pytest.mark.parametrize(
    ("info", "rows"),
    [
        (
            info_of("amx-tile"),
            [
                ["bf16", "AMX tiles", "-", "-", "the processor has no AMX"],
                ["bf16", "AVX-512 BF16", "95 GFLOP/s", "190 GFLOP/s", "used on request"],
                ["bf16x3", "three products: AVX-512 BF16", "30 GFLOP/s", "60 GFLOP/s",
                 "refused: below a third of float32"],
            ],
        ),
        (
            info_of(permission=False),
            [["bf16", "AMX tiles", "-", "-", "the processor has it, but the system does not permit its use"]],
        ),
        (
            info_of("amx-tile", "avx512f", "avx512bf16"),
            [
                ["float32", "BLAS: openblas 0.3.30", "100 GFLOP/s", "200 GFLOP/s",
                 "used by default, precision=auto, float32_matmul_precision=high"],
                ["bf16", "AVX-512 BF16", "-", "-", "the processor has no AVX-512 BF16"],
                ["bf16", "upcast to float32 in registers", "95 GFLOP/s", "190 GFLOP/s", "used on request"],
                ["fp16", "converted by F16C, float32 GEMM", "90 GFLOP/s", "180 GFLOP/s", SLOWER],
            ],
        ),
        (
            info_of(*PERMITTED),
            [
                ["fp16", "converted by F16C, float32 GEMM", "-", "-", "the processor has no F16C"],
                ["fp16", "converted by integers, float32 GEMM", "90 GFLOP/s", "180 GFLOP/s", SLOWER],
            ],
        ),
    ],
    ids=["no AMX", "no permission", "AVX2", "SSE2"],
)  # fmt: skip
def test_the_table_of_machines_with_fewer_features(info: LowPrecisionInfo, rows: list[list[str]]) -> None:
    found = rows_of(report_of(info, Speeds(float32=100.0, bf16=95.0, bf16x3=30.0, fp16=90.0)))
    for row in rows:
        assert row in found


def test_the_table_has_no_refusal_if_the_environment_allows_slow_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_SLOW, "1")
    report = report_of(info_of("amx-tile"), Speeds(float32=100.0, bf16=95.0, bf16x3=30.0, fp16=90.0))
    (row,) = [row for row in rows_of(report) if row[0] == "bf16x3"]
    assert row[-1] == SLOWER


def test_the_table_names_missing_measurements_and_problems_of_blas() -> None:
    report = report_of(info_of(), None)
    assert ["bf16", "AMX tiles", "not measured", "not measured", "used on request"] in rows_of(report)
    assert "precision=auto selects float32: no speeds were measured here." in report.choices
    without = dataclasses.replace(BLAS, backend=GemmBackend.NUMBA, name="", version="")
    assert ["float32", "BLAS", "-", "-", "no BLAS is installed"] in rows_of(report_of(info_of(), blas=without))
    bad = dataclasses.replace(BLAS, backend=GemmBackend.NUMBA, version="0.3.29", known_bad=True)
    (row,) = [row for row in rows_of(report_of(info_of(), blas=bad)) if "BLAS: openblas 0.3.29" in row]
    assert row[-1] == "version 0.3.29 returns wrong results to concurrent callers"


@pytest.mark.skipif(not JIT_ENABLED, reason="rates without the compiler are meaningless")
def test_all_paths_of_this_machine_are_measured_and_no_selection_remains() -> None:
    before = low_precision_info(), blas_info()
    found = measured_paths(product_paths(blas_info(), low_precision_info()), 2, seconds=0.01)
    assert (low_precision_info(), blas_info()) == before
    for path in found:
        if path.available and path.precision in PRODUCTS:
            assert path.one and path.all
        else:
            assert path.one is None and path.all is None
    taken = {path.precision for path in found if path.taken}
    assert taken == set(Precision) - {Precision.AUTO}
    assert {path.dot for path in found if path.precision is Precision.BF16} == set(DotPath)
