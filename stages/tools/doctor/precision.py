"""The ways to multiply matrices on this machine at each precision: available or not, how fast, and which are used.

`product_paths` is a pure function of the processor's features and the libraries; `measured_paths` adds throughput on
one core and on all; `automatic_choices` returns the precisions that the automatic settings select.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from threadloom.kernels import BlasInfo, GemmBackend, gemm_backend
from threadloom.kernels.simd import DotPath, LowPrecisionInfo, dot_path
from threadloom.pipeline import blas_threads
from threadloom.stages.config import MatmulPrecision, Precision
from threadloom.stages.machine import throughput
from threadloom.stages.resolve import (
    BF16X3_GRADE,
    EQUAL_SPEED,
    MIN_SPEED,
    PrecisionChoice,
    choose_precision,
    slow_allowed,
)
from threadloom.stages.speeds import COLUMNS, INNER, OPERATIONS, PRODUCTS, ROWS, Speeds

SECONDS = 0.1
"""Seconds per measurement; each available path is measured twice, on one core and on all."""

CAPTION = f"GEMM of {ROWS} × {INNER} × {COLUMNS}, about the size of those of a micro-batch"
"""Caption of the table."""

_DOTS = {
    DotPath.AMX: ("AMX tiles", "the processor has no AMX"),
    DotPath.AVX512: ("AVX-512 BF16", "the processor has no AVX-512 BF16"),
    DotPath.FLOAT32: ("upcast to float32 in registers", ""),
}
"""Instructions for bfloat16 → name, and the general reason why they are unavailable; fastest first."""


@dataclass(frozen=True)
class ProductPath:
    """One way to multiply matrices."""

    precision: Precision
    way: str  # the name in reports
    available: bool
    why: str  # why it is unavailable; "" if it is available
    taken: bool  # used by runs in this precision that do not select a path themselves
    gemm: GemmBackend | None = None  # the backend to measure it with; None: the current backend
    dot: DotPath | None = None
    one: float | None = None  # GFLOP/s on one core; None: not measured
    all: float | None = None  # GFLOP/s on all cores


def product_paths(blas: BlasInfo, info: LowPrecisionInfo) -> tuple[ProductPath, ...]:
    """Return all paths, available or not, grouped by precision, the fastest instruction first."""
    return (*_float32_paths(blas), _bf16x3_path(info), *_bf16_paths(info), *_fp16_paths(info))


def _float32_paths(blas: BlasInfo) -> Iterator[ProductPath]:
    numba = blas.backend is GemmBackend.NUMBA
    yield ProductPath(Precision.FLOAT32, "Numba's kernel", True, "", numba, gemm=GemmBackend.NUMBA)
    missing = "" if blas.name else "no BLAS is installed"
    if blas.known_bad:
        missing = f"version {blas.version} returns wrong results to concurrent callers"
    name = " ".join(part for part in ("BLAS:", blas.name, blas.version) if part)
    backend = GemmBackend.BLAS
    yield ProductPath(Precision.FLOAT32, name if blas.name else "BLAS", not missing, missing, not numba, gemm=backend)


def _bf16x3_path(info: LowPrecisionInfo) -> ProductPath:
    way = f"three products: {_DOTS[info.path][0]}"
    return ProductPath(Precision.BF16X3, way, True, "", True, dot=info.path)


def _bf16_paths(info: LowPrecisionInfo) -> Iterator[ProductPath]:
    for dot, (way, missing) in _DOTS.items():
        available = dot in info.available
        why = "" if available else missing
        if dot is DotPath.AMX and not available and "AMX, but" in info.reason:
            why = "the processor has it, but the system does not permit its use"
        yield ProductPath(Precision.BF16, way, available, why, dot is info.path, dot=dot)


def _fp16_paths(info: LowPrecisionInfo) -> Iterator[ProductPath]:
    instruction = info.fp16_conversion
    missing = "" if instruction else "the processor has no F16C"
    yield ProductPath(Precision.FP16, "converted by F16C, float32 GEMM", instruction, missing, instruction)
    unused = "F16C is available, and faster" if instruction else ""
    way = "converted by integers, float32 GEMM"
    yield ProductPath(Precision.FP16, way, not instruction, unused, not instruction)


def measured_paths(paths: Sequence[ProductPath], cores: int, seconds: float = SECONDS) -> tuple[ProductPath, ...]:
    """Return the paths with throughput for those that are available; each is selected for its measurement.

    The selection is process-wide, so nothing else may multiply matrices during the measurement.
    """
    return tuple(_measured(path, cores, seconds) if path.available else path for path in paths)


def _measured(path: ProductPath, cores: int, seconds: float) -> ProductPath:
    make = PRODUCTS.get(path.precision)
    if make is None:
        return path
    with contextlib.ExitStack() as switches:
        if path.gemm is not None:
            switches.enter_context(gemm_backend(path.gemm))
        switches.enter_context(blas_threads(1))  # after the backend, whose selection may load BLAS
        if path.dot is not None:
            switches.enter_context(dot_path(path.dot))
        work = [(make(), OPERATIONS) for _ in range(cores)]
        one, every = (throughput(work[:count], seconds) / 1e9 for count in (1, cores))
    return replace(path, one=one, all=every)


def automatic_choices(speeds: Speeds | None, info: LowPrecisionInfo) -> dict[str, PrecisionChoice]:
    """Return the precision that each automatic setting selects on this machine."""
    return {
        "precision=auto": choose_precision(Precision.AUTO, MatmulPrecision.HIGHEST, speeds, info),
        "float32_matmul_precision=high": choose_precision(Precision.FLOAT32, MatmulPrecision.HIGH, speeds, info),
    }


def precision_sentences(chosen: dict[str, PrecisionChoice], source: str = "", now: bool = False) -> tuple[str, ...]:
    """Return sentences on the precisions that automatic settings select, and on the measurement that decides them.

    `source` is the origin of that measurement. With `now`, the table has rates measured just now, which may differ.
    """
    said = [f"{setting} selects {choice.precision.value}: {choice.reason}." for setting, choice in chosen.items()]
    said.append(f"bf16x3 is {BF16X3_GRADE}.")
    if source:
        table = "; the table has rates measured just now, under the current load" if now else ""
        said.append(f"The GFLOP/s that decide {' and '.join(chosen)} were {source}. Every run uses them{table}.")
    return tuple(said)


def paths_table(
    paths: Sequence[ProductPath], cores: int, chosen: dict[str, PrecisionChoice], speeds: Speeds | None = None
) -> Padding:
    """Return the table of paths: throughput of those that are available, the reason for the others.

    `speeds` are the kept rates that runs use. They decide the notes, and replace rates that were not measured now.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("precision")
    table.add_column("GEMM")
    table.add_column("one core", justify="right")
    table.add_column(f"all {cores}", justify="right")
    table.add_column("", overflow="fold")  # the name of a setting must not be truncated
    for path in paths:
        one, every = (_figure(path, value) for value in (path.one, path.all))
        if path.one is None and path.available and path.taken and speeds and (kept := speeds.of(path.precision)):
            one = f"{kept:,.0f} GFLOP/s earlier"
        style = "" if path.available else "dim"
        note = path.why or _note(path, chosen, speeds)
        table.add_row(*(Text(cell, style) for cell in (path.precision.value, path.way, one, every, note)))
    return Padding(table, (0, 0, 0, 2))


def _figure(path: ProductPath, value: float | None) -> str:
    if not path.available:
        return "-"
    return "not measured" if value is None else f"{value:,.0f} GFLOP/s"


def _note(path: ProductPath, chosen: dict[str, PrecisionChoice], speeds: Speeds | None) -> str:
    if not path.taken:
        return ""
    settings = ["default"] if path.precision is Precision.FLOAT32 else []
    settings += [setting for setting, choice in chosen.items() if choice.precision is path.precision]
    if settings:
        return f"used by {', '.join(settings)}"
    rate = speeds.of(path.precision) if speeds is not None else None
    if speeds is None or rate is None or rate / speeds.float32 >= EQUAL_SPEED:
        return "used on request"
    if rate / speeds.float32 < MIN_SPEED and not slow_allowed():
        return "refused: below a third of float32"
    return "used on request; slower than float32"
