"""The ways in which this machine can multiply, at each precision: there or not and why, how fast, and which are taken.

`product_paths` is a pure function of what the processor and the libraries have; `measured_paths` adds the figures, on
one core and on all; `choices_of` says what `precision=auto` and `float32_matmul_precision=high` stand for with them.
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
from threadloom.stages.machine import rate
from threadloom.stages.resolve import LEAST, LEVEL, Choice, choose, slow_allowed
from threadloom.stages.speeds import COLUMNS, INNER, OPERATIONS, PRODUCTS, ROWS, Speeds

SECONDS = 0.1
"""Of each measurement; there are two for each way that is there."""

CAPTION = f"products of {ROWS} × {INNER} × {COLUMNS}, about those of a micro-batch"
"""What the figures of the table are of."""

_DOTS = {
    DotPath.AMX: ("AMX tiles", "the processor has no AMX"),
    DotPath.AVX512: ("AVX-512 BF16", "the processor has no AVX-512 BF16"),
    DotPath.FLOAT32: ("widened to float32 in registers", ""),
}
"""How a product of bfloat16 is made, and why not, where nothing more particular is known; the fastest first."""


@dataclass(frozen=True)
class ProductPath:
    """One way to multiply, and what is known of it."""

    precision: Precision
    way: str  # what does it, as a person reads it
    available: bool
    why: str  # why it is not there; "" where it is
    taken: bool  # whether a run takes it that computes in this precision and chooses nothing itself
    gemm: GemmBackend | None = None  # what it must be measured with; None: as the process has it
    dot: DotPath | None = None
    one: float | None = None  # GFLOP/s of one core; None: not measured
    all: float | None = None  # of all cores at once


def product_paths(blas: BlasInfo, info: LowPrecisionInfo) -> tuple[ProductPath, ...]:
    """Return every way, whether it is there or not, by precision and the fastest instruction first."""
    return (*_float32_paths(blas), _bf16x3_path(info), *_bf16_paths(info), *_fp16_paths(info))


def _float32_paths(blas: BlasInfo) -> Iterator[ProductPath]:
    numba = blas.backend is GemmBackend.NUMBA
    yield ProductPath(Precision.FLOAT32, "Numba's kernel", True, "", numba, gemm=GemmBackend.NUMBA)
    missing = "" if blas.name else "there is no BLAS"
    if blas.known_bad:
        missing = f"version {blas.version} is wrong when several threads call it"
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
    yield ProductPath(Precision.FP16, "converted by F16C, float32 product", instruction, missing, instruction)
    unused = "F16C is there, and faster" if instruction else ""
    way = "converted by integers, float32 product"
    yield ProductPath(Precision.FP16, way, not instruction, unused, not instruction)


def measured_paths(paths: Sequence[ProductPath], cores: int, seconds: float = SECONDS) -> tuple[ProductPath, ...]:
    """Return the paths with figures where they are there; each is switched on for its measurement.

    The switches are the process's: nothing else may multiply meanwhile.
    """
    return tuple(_measured(path, cores, seconds) if path.available else path for path in paths)


def _measured(path: ProductPath, cores: int, seconds: float) -> ProductPath:
    make = PRODUCTS.get(path.precision)
    if make is None:
        return path
    with contextlib.ExitStack() as switches:
        if path.gemm is not None:
            switches.enter_context(gemm_backend(path.gemm))
        switches.enter_context(blas_threads(1))  # after it: asking for BLAS may be what loads it
        if path.dot is not None:
            switches.enter_context(dot_path(path.dot))
        work = [(make(), OPERATIONS) for _ in range(cores)]
        one, every = (rate(work[:count], seconds) / 1e9 for count in (1, cores))
    return replace(path, one=one, all=every)


def choices_of(speeds: Speeds | None, info: LowPrecisionInfo) -> dict[str, Choice]:
    """Return what is computed in where a person leaves it to the machine, by the settings that say so."""
    return {
        "precision=auto": choose(Precision.AUTO, MatmulPrecision.HIGHEST, speeds, info),
        "float32_matmul_precision=high": choose(Precision.FLOAT32, MatmulPrecision.HIGH, speeds, info),
    }


def choice_sentences(chosen: dict[str, Choice], source: str = "", now: bool = False) -> tuple[str, ...]:
    """Say what the settings stand for here, by figures of which `source` says where they are from.

    `now`: the table has figures of the moment, which may be others.
    """
    said = [f"{setting} stands for {choice.precision.value}: {choice.reason}." for setting, choice in chosen.items()]
    if source:
        table = "; the table has those of this moment, beside whatever else runs now" if now else ""
        said.append(f"The GFLOP/s behind {' and '.join(chosen)} were {source}. Every run goes by them{table}.")
    return tuple(said)


def paths_table(
    paths: Sequence[ProductPath], cores: int, chosen: dict[str, Choice], speeds: Speeds | None = None
) -> Padding:
    """Return the ways as a table: those that are there with their figures, the others with the reason.

    `speeds`: the figures that training goes by, for what it would say of a precision, and where nothing was measured.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("precision")
    table.add_column("product")
    table.add_column("one core", justify="right")
    table.add_column(f"all {cores}", justify="right")
    table.add_column("")
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


def _note(path: ProductPath, chosen: dict[str, Choice], speeds: Speeds | None) -> str:
    if not path.taken:
        return ""
    settings = ["default"] if path.precision is Precision.FLOAT32 else []
    settings += [setting for setting, choice in chosen.items() if choice.precision is path.precision]
    if settings:
        return f"used by {', '.join(settings)}"
    rate = speeds.of(path.precision) if speeds is not None else None
    if speeds is None or rate is None or rate / speeds.float32 >= LEVEL:
        return "used where asked for"
    if rate / speeds.float32 < LEAST and not slow_allowed():
        return "refused: below a third of float32"
    return "used where asked for; slower than float32"
