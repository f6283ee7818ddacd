"""What this machine can do and what follows from it: the report behind `threadloom doctor`.

`examine` reads and measures, in about three seconds; what follows (`choices`, `warnings`) is a pure function of what
was found, and so is the picture (`ReportView`). The measurements keep every core busy: other
work on the machine shows in them.
"""

import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kernels import BlasInfo, GemmBackend, blas_info, gemm
from pipeline.threads import BlasThreads, blas_threads, loaded_blas
from stages.config import CONFIG_NAMES, Config, load_config, resolve
from stages.machine import Machine, VectorWidth, detect

GEMM_SIZE = 768
"""Rows, columns and inner size of the measured product: 0.9 GFLOP, large enough for the peak."""
STREAM_BYTES = 64 << 20
"""Least size of one array in the measurement of memory; at least four times the last cache."""
UNKNOWN_VOCABULARY = 256
"""Stands for the vocabulary of a configuration that takes it from the text."""
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "threadpoolctl")


@dataclass(frozen=True)
class Measured:
    """What was measured, on one core and on all at once, in concurrent Python threads with one BLAS thread each."""

    cores: int  # threads in the measurements of all cores
    gemm_one: float  # float32 matrix product, GFLOP/s
    gemm_all: float  # the sum over all threads
    copy_one: float  # b = a in memory, GB/s read and written (a write's own read is not counted, as in STREAM)
    copy_all: float
    add_one: float  # c = a + b, GB/s: two arrays read and one written, as in STREAM
    add_all: float

    @property
    def gemm_scaling(self) -> float:
        """How many cores' worth of products all cores give: `cores` at best."""
        return self.gemm_all / self.gemm_one if self.gemm_one > 0 else 0.0


@dataclass(frozen=True)
class Defaults:
    """What a shipped configuration would run with here, where nothing else is asked for."""

    config: str
    micro_batch: int  # sequences
    rows: int  # tokens of a micro-batch
    lanes: int
    forward: int  # threads
    backward: int
    reduce: int
    update: int
    layer_bytes: int  # what one layer of a micro-batch works on, about; in L2 at best


@dataclass(frozen=True)
class Report:
    """Everything that the doctor found."""

    machine: Machine
    python: str
    libraries: dict[str, str]  # distribution → version
    blas: BlasInfo  # what the kernels multiply with
    loaded: tuple[BlasThreads, ...]  # every BLAS in the process, NumPy's own among them
    measured: Measured | None  # None when it was not asked for
    defaults: tuple[Defaults, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """What will be used because of what was found, a sentence each."""
        return choices(self.machine, self.blas, self.defaults)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is worth a person's attention, with what to do; mostly none."""
        return warnings(self.machine, self.blas, self.measured)


def examine(measure: bool = True, seconds: float = 0.3) -> Report:
    """Look at the machine, and measure it for `seconds` each way (six ways) unless told not to."""
    machine = detect()
    return Report(
        machine=machine,
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        blas=blas_info(),
        loaded=loaded_blas(),
        measured=measure_machine(machine, seconds) if measure else None,
        defaults=tuple(_defaults(load_config(name), machine.logical_cores) for name in CONFIG_NAMES),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _defaults(config: Config, cores: int) -> Defaults:
    vocabulary = UNKNOWN_VOCABULARY if config.model.vocab_size is None else None
    resolved = resolve(config, cores, vocabulary)
    micro_batch, threads = resolved.micro_batch or 0, resolved.threads
    rows = micro_batch * resolved.model.context
    return Defaults(
        config=resolved.name,
        micro_batch=micro_batch,
        rows=rows,
        lanes=resolved.lanes or 0,
        forward=threads.forward or 0,
        backward=threads.backward or 0,
        reduce=threads.reduce or 0,
        update=threads.update or 0,
        # Of one layer, forward keeps x twice, two normed copies, qkv, attention's output and the two hidden forms of
        # 4C: about 16 float32 a row and channel.
        layer_bytes=rows * resolved.model.channels * 16 * 4,
    )


def choices(machine: Machine, blas: BlasInfo, defaults: Sequence[Defaults]) -> tuple[str, ...]:
    """Say what will be used because of the machine."""
    said = [_vector_choice(machine)]
    if blas.backend is GemmBackend.BLAS:
        kernels = f" with its {blas.architecture} kernels" if blas.architecture else ""
        said.append(f"Matrix products: {_blas_name(blas)}{kernels}; {blas.reason}.")
    else:
        said.append(f"Matrix products: the blocked product in Numba, not BLAS; {blas.reason}.")
    cores = f"{machine.logical_cores} core{'s' if machine.logical_cores > 1 else ''}"
    said.append(
        f"Threads: 1 inside BLAS, and for {cores} the stages' own, which overlap; "
        "the table shows how many a stage gets."
    )
    if machine.l2 and defaults:
        small, large = (choose(defaults, key=lambda row: row.layer_bytes) for choose in (min, max))
        said.append(
            f"Micro-batches: what one layer works on takes about {_size(small.layer_bytes)} ({small.config}) to "
            f"{_size(large.layer_bytes)} ({large.config}), and the L2 cache has {_size(machine.l2)}."
        )
    if machine.has_amx_bf16:
        said.append("AMX bfloat16 tiles are there; training in float32 does not use them.")
    said.append(f"Tuned settings of this machine are kept under the name {machine.fingerprint()}.")
    return tuple(said)


def _vector_choice(machine: Machine) -> str:
    width = machine.vector_width
    target = f"Kernels: compiled for {machine.microarchitecture or machine.architecture}"
    if width is VectorWidth.PLAIN:
        return f"{target}, with the {width.bits}-bit vectors that every {machine.architecture} has."
    note = "; the compiler prefers 256-bit ones where both do" if width is VectorWidth.AVX512 else ""
    return f"{target}, with {width.value} ({width.bits}-bit vectors{note})."


def warnings(machine: Machine, blas: BlasInfo, measured: Measured | None) -> tuple[str, ...]:
    """Say what is wrong or slow, and what to do."""
    said = []
    if blas.known_bad:
        said.append(
            f"{_blas_name(blas)} gives wrong products when several threads call it at once; install scipy>=1.17."
        )
    if machine.architecture in ("x86_64", "AMD64") and machine.vector_width is VectorWidth.PLAIN:
        said.append("The CPU has no AVX2, or a virtual machine hides it: expect a fraction of the usual speed.")
    if machine.physical_cores is not None and machine.physical_cores < machine.logical_cores:
        said.append(
            f"{machine.logical_cores} hardware threads share {machine.physical_cores} cores: `threadloom tune` finds "
            "out how many stage threads pay."
        )
    if measured is not None and measured.cores > 1 and measured.gemm_scaling < 0.7 * measured.cores:
        said.append(
            f"{measured.cores} cores multiply only {measured.gemm_scaling:.1f} times as fast as one: something else "
            "runs on this machine, or its cores are shared with others."
        )
    if machine.memory_available is not None and machine.memory_available < 2 << 30:
        said.append(
            f"Only {_size(machine.memory_available)} of memory are available; large configurations will not fit."
        )
    return tuple(said)


def measure_machine(machine: Machine, seconds: float = 0.3) -> Measured:
    """Measure products and memory on one core and on all, `seconds` for each; limits BLAS to one thread meanwhile."""
    cores = machine.logical_cores
    total = max(STREAM_BYTES, 4 * (machine.l3 or 0))
    if machine.memory_available is not None:
        total = min(total, machine.memory_available // 8)  # three arrays, and room for others
    with blas_threads(1):
        gemm_work = [_gemm_work() for _ in range(cores)]
        gemm_one, gemm_all = (_rate(gemm_work[:count], seconds) / 1e9 for count in (1, cores))
        del gemm_work
    rates: dict[tuple[str, int], float] = {}
    for count in dict.fromkeys((1, cores)):
        arrays = [_stream_arrays(total // count) for _ in range(count)]
        rates["copy", count] = _rate([_copy_work(*three) for three in arrays], seconds) / 1e9
        rates["add", count] = _rate([_add_work(*three) for three in arrays], seconds) / 1e9
    return Measured(
        cores=cores,
        gemm_one=gemm_one,
        gemm_all=gemm_all,
        copy_one=rates["copy", 1],
        copy_all=rates["copy", cores],
        add_one=rates["add", 1],
        add_all=rates["add", cores],
    )


Work = tuple[Callable[[], object], float]
"""A call that holds no GIL, and how much one call does: floating-point operations or bytes."""


def _rate(work: Sequence[Work], seconds: float) -> float:
    """What all of `work`, each in a thread of its own, does in a second, measured over `seconds`."""
    start = threading.Barrier(len(work))
    done = [0.0] * len(work)

    def repeat(index: int) -> None:
        call, amount = work[index]
        call()  # touches the memory and compiles
        start.wait()
        calls, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds or calls == 0:
            call()
            calls += 1
        done[index] = calls * amount / elapsed

    threads = [threading.Thread(target=repeat, args=(index,), name=f"doctor-{index}") for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def _gemm_work() -> Work:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    out = np.zeros_like(a)
    return lambda: gemm(a, b, out, False, False, 1.0, 0.0), 2.0 * GEMM_SIZE**3


def _stream_arrays(size: int) -> tuple[Any, Any, Any]:
    count = max(1, size // 4)
    return np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)


def _copy_work(a: Any, b: Any, c: Any) -> Work:
    return lambda: np.copyto(c, a), 2.0 * a.nbytes


def _add_work(a: Any, b: Any, c: Any) -> Work:
    return lambda: np.add(a, b, out=c), 3.0 * a.nbytes


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON takes it (`--json`): sizes in bytes, rates in GFLOP/s and GB/s."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    found["machine"]["vector_width"] = report.machine.vector_width.value
    found["machine"]["fingerprint"] = report.machine.fingerprint()
    found["choices"] = list(report.choices)
    found["warnings"] = list(report.warnings)
    return found


class ReportView:
    """The report as a person reads it; coloured on a terminal, plain text elsewhere."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the sections."""
        report = self._report
        yield Text("Machine", "bold")
        yield _pairs(_machine_rows(report.machine))
        yield Text("\nSoftware", "bold")
        yield _pairs(_software_rows(report))
        if report.measured is not None:
            yield Text("\nMeasured", "bold")
            yield _measured_table(report.measured)
        yield Text("\nWhat will be used", "bold")
        yield from (_sentence(sentence, "-", "") for sentence in report.choices)
        yield Text()
        yield _defaults_table(report.defaults)
        if report.warnings:
            yield Text("\nWorth a look", "bold yellow")
            yield from (_sentence(sentence, "!", "yellow") for sentence in report.warnings)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    cores = str(machine.logical_cores)
    if machine.physical_cores not in (None, machine.logical_cores):
        cores += f" hardware threads on {machine.physical_cores} cores"
    caches = (("L1d", machine.l1d), ("L2", machine.l2), ("L3", machine.l3))
    return [
        ("CPU", f"{machine.cpu} ({machine.microarchitecture}, {machine.architecture}), {machine.system}"),
        ("cores for this process", cores),
        ("features", " ".join(machine.features) or "unknown"),
        ("caches", ", ".join(f"{name} {_size(size)}" for name, size in caches)),
        ("memory", f"{_size(machine.memory_total)}, {_size(machine.memory_available)} available"),
    ]


def _software_rows(report: Report) -> list[tuple[str, str]]:
    libraries = ", ".join(f"{name} {number}" for name, number in report.libraries.items())
    rows = [("Python", report.python), ("libraries", libraries)]
    rows.append(("BLAS of the kernels", f"{_blas_name(report.blas)}, {report.blas.architecture or 'unknown kernels'}"))
    rows.extend(
        (
            "BLAS loaded",
            f"{blas.library} {blas.version}, {blas.architecture}, {blas.threads} threads a call ({_owner(blas.path)})",
        )
        for blas in report.loaded
    )
    return rows


def _measured_table(measured: Measured) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("one core", justify="right")
    table.add_column(f"all {measured.cores}", justify="right")
    table.add_column("ratio", justify="right")
    for name, one, every, unit in (
        ("float32 product", measured.gemm_one, measured.gemm_all, "GFLOP/s"),
        ("memory copy", measured.copy_one, measured.copy_all, "GB/s"),
        ("memory add", measured.add_one, measured.add_all, "GB/s"),
    ):
        ratio = f"{every / one:.2f}" if one > 0 else "-"
        table.add_row(name, f"{one:,.1f} {unit}", f"{every:,.1f} {unit}", ratio)
    return Padding(table, (0, 0, 0, 2))


def _defaults_table(defaults: Sequence[Defaults]) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("config")
    for heading in ("micro-batch", "rows", "lanes", "forward", "backward", "reduce", "update"):
        table.add_column(heading, justify="right")
    for row in defaults:
        numbers = (row.micro_batch, row.rows, row.lanes, row.forward, row.backward, row.reduce, row.update)
        table.add_row(row.config, *map(str, numbers))
    return Padding(table, (0, 0, 0, 2))


def _pairs(rows: Sequence[tuple[str, str]]) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return Padding(table, (0, 0, 0, 2))


def _sentence(sentence: str, mark: str, style: str) -> Padding:
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(mark, style), Text(sentence))
    return Padding(table, (0, 0, 0, 2))


def _blas_name(blas: BlasInfo) -> str:
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "accelerate": "Accelerate"}
    return " ".join(part for part in (names.get(blas.name, blas.name or "no BLAS"), blas.version) if part)


def _owner(path: str) -> str:
    """Which package brought a library: NumPy's and SciPy's wheels keep theirs in numpy.libs and scipy.libs."""
    for package, name in (("numpy", "NumPy's"), ("scipy", "SciPy's")):
        if f"{package}.libs" in path or f"/{package}/" in path:
            return name
    return path


def _size(size: int | None) -> str:
    """Bytes as a person says them."""
    if size is None:
        return "unknown"
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"
