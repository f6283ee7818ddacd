"""What this machine can do and what follows from it: the report behind `threadloom doctor`.

`examine` reads and measures, in about three seconds; what follows (`choices`, `warnings`) is a pure function of what
was found, and so is the picture (`stages.tools.doctor.view`).
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from threadloom.kernels import BlasInfo, GemmBackend, blas_info
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.simd import low_precision_info
from threadloom.pipeline import BlasThreads, loaded_blas
from threadloom.stages.config import Config
from threadloom.stages.machine import Machine, Measured, VectorWidth, detect, measure_machine
from threadloom.stages.resolve import CONFIG_NAMES, Choice, load_config, resolve
from threadloom.stages.speeds import Speeds, read_speeds, speeds_here, speeds_key, speeds_path
from threadloom.stages.tools.doctor.precision import (
    ProductPath,
    choice_sentences,
    choices_of,
    measured_paths,
    product_paths,
)

UNKNOWN_VOCABULARY = 256
"""Stands for the vocabulary of a configuration that takes it from the text."""
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "threadpoolctl")


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
    products: tuple[ProductPath, ...]  # every way to multiply
    precisions: dict[str, Choice]  # what is computed in where a person leaves it to the machine, by setting
    speeds: Speeds | None = None  # what training goes by when it chooses, warns and refuses
    speeds_from: str = ""  # when they were measured, and where they are kept; "" where there are none

    @property
    def choices(self) -> tuple[str, ...]:
        """What will be used because of what was found, a sentence each."""
        now = any(path.one is not None for path in self.products)
        precisions = choice_sentences(self.precisions, self.speeds_from, now)
        return (*choices(self.machine, self.blas, self.defaults), *precisions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is worth a person's attention, with what to do; mostly none."""
        return warnings(self.machine, self.blas, self.measured)


def examine(measure: bool = True, seconds: float = 0.3) -> Report:
    """Look at the machine, and measure it unless told not to: for `seconds` each of six things, and the products."""
    machine, info = detect(), low_precision_info()
    products = product_paths(blas_info(), info)
    speeds, speeds_from = _speeds(measure)
    return Report(
        machine=machine,
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        blas=blas_info(),
        loaded=loaded_blas(),
        measured=measure_machine(machine, seconds) if measure else None,
        defaults=tuple(_defaults(load_config(name), machine.logical_cores) for name in CONFIG_NAMES),
        products=measured_paths(products, machine.logical_cores) if measure and JIT_ENABLED else products,
        precisions=choices_of(speeds, info),
        speeds=speeds,
        speeds_from=speeds_from,
    )


def _speeds(measure: bool) -> tuple[Speeds | None, str]:
    """Return the figures that a run goes by, not those of the table: so what is said here is what a run does.

    The words say where they are from.
    """
    if not JIT_ENABLED:
        return None, ""
    path, key = speeds_path(), speeds_key()
    earlier = read_speeds(path, key)
    if earlier is not None or not measure:
        return (speeds_here() if measure else earlier), f"measured earlier, kept in {path}" if earlier else ""
    found = speeds_here()
    return found, "measured just now" + ("" if read_speeds(path, key) is None else f", kept in {path}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _defaults(config: Config, cores: int) -> Defaults:
    vocabulary = UNKNOWN_VOCABULARY if config.model.vocab_size is None else None
    resolved = resolve(config, cores, vocabulary)
    threads, rows = resolved.threads, resolved.micro_batch * resolved.model.context
    return Defaults(
        config=resolved.name,
        micro_batch=resolved.micro_batch,
        rows=rows,
        lanes=resolved.lanes,
        forward=threads.forward,
        backward=threads.backward,
        reduce=threads.reduce,
        update=threads.update,
        # Of one layer, forward keeps x twice, two normed copies, qkv, attention's output and the two hidden forms of
        # 4C: about 16 float32 a row and channel.
        layer_bytes=rows * resolved.model.channels * 16 * 4,
    )


def choices(machine: Machine, blas: BlasInfo, defaults: Sequence[Defaults]) -> tuple[str, ...]:
    """Say what will be used because of the machine."""
    said = [_vector_choice(machine)]
    if blas.backend is GemmBackend.BLAS:
        kernels = f" with its {blas.architecture} kernels" if blas.architecture else ""
        said.append(f"Matrix products: {blas_name(blas)}{kernels}; {blas.reason}.")
    else:
        # What is said of a BLAS that does not run stands apart: a remedy of its slowness is none for what does.
        library, _, why = blas.reason.rpartition("; ") if blas.name else ("", "", blas.reason)
        said.append(f"Matrix products: the blocked product in Numba, not BLAS; {why}.")
        if library and not blas.known_bad:
            said.append(f"BLAS, where THREADLOOM_GEMM=blas asks for it: {library}.")
    cores = f"{machine.logical_cores} core{'s' if machine.logical_cores > 1 else ''}"
    said.append(
        f"Threads: 1 inside BLAS, and for {cores} the stages' own, which overlap; "
        "the table shows how many a stage gets."
    )
    if machine.l2 and defaults:
        small, large = (choose(defaults, key=lambda row: row.layer_bytes) for choose in (min, max))
        said.append(
            f"Micro-batches: what one layer works on takes about {size_text(small.layer_bytes)} ({small.config}) to "
            f"{size_text(large.layer_bytes)} ({large.config}), and the L2 cache has {size_text(machine.l2)}."
        )
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
            f"{blas_name(blas)} gives wrong products when several threads call it at once; install scipy>=1.17."
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
            f"Only {size_text(machine.memory_available)} of memory are available; large configurations will not fit."
        )
    return tuple(said)


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON takes it (`--json`): sizes in bytes, rates in GFLOP/s and GB/s."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    found["machine"]["vector_width"] = report.machine.vector_width.value
    found["machine"]["fingerprint"] = report.machine.fingerprint()
    for row, path in zip(found["products"], report.products, strict=True):
        row["dot"] = path.dot.name if path.dot else None
    found["choices"] = list(report.choices)
    found["warnings"] = list(report.warnings)
    return found


def blas_name(blas: BlasInfo) -> str:
    """A BLAS as a person says it."""
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "accelerate": "Accelerate"}
    return " ".join(part for part in (names.get(blas.name, blas.name or "no BLAS"), blas.version) if part)


def size_text(size: int | None) -> str:
    """Bytes as a person says them."""
    if size is None:
        return "unknown"
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"
