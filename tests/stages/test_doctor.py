"""What the doctor concludes, from machines made up here; and one real examination, kept short."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from kernels.blas import BlasInfo, GemmBackend
from stages import doctor, doctor_measure
from stages.config import CONFIG_NAMES
from stages.doctor import Defaults, Report, choices, examine, to_dict, warnings
from stages.doctor_measure import Measured
from stages.doctor_view import ReportView
from stages.machine import Machine

MACHINE = Machine(
    cpu="Some CPU",
    microarchitecture="sapphirerapids",
    architecture="x86_64",
    system="Linux",
    logical_cores=2,
    physical_cores=2,
    features=("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    l1d=48 << 10,
    l2=2 << 20,
    l3=32 << 20,
    memory_total=24 << 30,
    memory_available=20 << 30,
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
MEASURED = Measured(2, gemm_one=200.0, gemm_all=390.0, copy_one=12.0, copy_all=20.0, add_one=13.0, add_all=22.0)
DEFAULTS = (
    Defaults("tiny", 3, 192, 2, 2, 2, 2, 2, layer_bytes=1 << 20),
    Defaults("big", 2, 256, 2, 2, 2, 2, 2, layer_bytes=6 << 20),
)
REPORT = Report(MACHINE, "3.12.1", {"numpy": "2.4.6"}, BLAS, (), MEASURED, DEFAULTS)


def text_of(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(ReportView(report))
    return capture.get()


def test_a_sound_machine_has_no_warnings() -> None:
    assert warnings(MACHINE, BLAS, MEASURED) == ()
    assert warnings(MACHINE, BLAS, None) == ()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (dataclasses.replace(REPORT, blas=dataclasses.replace(BLAS, known_bad=True)), "wrong products"),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, features=())), "no AVX2"),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, physical_cores=1)), "share 1 cores"),
        (dataclasses.replace(REPORT, measured=dataclasses.replace(MEASURED, gemm_all=210.0)), "only 1.1 times as fast"),
        (dataclasses.replace(REPORT, machine=dataclasses.replace(MACHINE, memory_available=1 << 30)), "Only 1 GiB"),
    ],
)
def test_each_trouble_has_its_warning(report: Report, words: str) -> None:
    assert len(report.warnings) == 1
    assert words in report.warnings[0]
    assert report.warnings[0].split()[0] in text_of(report)


def test_the_choices_name_what_they_follow_from() -> None:
    said = "\n".join(choices(MACHINE, BLAS, DEFAULTS))
    assert "compiled for sapphirerapids, with AVX-512" in said
    assert "OpenBLAS 0.3.30 with its SkylakeX kernels; OpenBLAS knows the processor." in said
    assert "about 1 MiB (tiny) to 6 MiB (big), and the L2 cache has 2 MiB" in said
    assert MACHINE.fingerprint() in said


def test_the_choices_without_what_a_system_does_not_tell() -> None:
    bare = dataclasses.replace(MACHINE, architecture="arm64", microarchitecture="apple-m1", features=("neon",), l2=None)
    without = dataclasses.replace(BLAS, backend=GemmBackend.NUMBA, name="", version="", architecture="", reason="none")
    said = "\n".join(choices(bare, without, DEFAULTS))
    assert "128-bit vectors that every arm64 has" in said
    assert "not BLAS; none." in said
    assert "L2" not in said
    assert warnings(bare, without, None) == ()


def test_the_report_as_text_has_the_figures() -> None:
    lines = text_of(REPORT).splitlines()
    assert ["float32 product", "200.0 GFLOP/s", "390.0 GFLOP/s", "1.95"] in [
        [field.strip() for field in line.split("  ") if field.strip()] for line in lines
    ]
    assert any("L1d 48 KiB, L2 2 MiB, L3 32 MiB" in line for line in lines)
    assert "\x1b" not in text_of(REPORT)
    assert "Measured" not in text_of(dataclasses.replace(REPORT, measured=None))


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_report_fits_the_console(width: int) -> None:
    assert max(len(line) for line in text_of(REPORT, width).splitlines()) <= width


def test_the_report_as_json() -> None:
    found = json.loads(json.dumps(to_dict(REPORT)))
    assert found["machine"]["vector_width"] == "AVX-512"
    assert found["machine"]["fingerprint"] == MACHINE.fingerprint()
    assert found["blas"]["backend"] == "blas"
    assert found["measured"]["gemm_all"] == 390.0
    assert found["defaults"][0]["config"] == "tiny"
    assert found["choices"] == list(REPORT.choices)


def test_a_real_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_measure, "GEMM_SIZE", 64)
    monkeypatch.setattr(doctor_measure, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "detect", lambda: dataclasses.replace(MACHINE, l3=None))
    report = examine(seconds=0.02)
    assert [row.config for row in report.defaults] == list(CONFIG_NAMES)
    assert all(row.rows and row.lanes and row.forward and row.backward for row in report.defaults)
    assert report.measured is not None
    for rate in dataclasses.astuple(report.measured):
        assert rate > 0
    assert json.dumps(to_dict(report))
    assert Path(report.blas.library).name in text_of(report, 200) or report.blas.version in text_of(report, 200)


def test_without_measuring_it_is_quick_and_says_so() -> None:
    assert examine(measure=False).measured is None
