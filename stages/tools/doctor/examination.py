"""The report of `threadloom doctor`: the machine, its measured rates, and the choices that follow from both.

`examine` reads and measures, in about three seconds. The conclusions (`choices`, `warnings`) and the printed report
(`stages.tools.doctor.view`) are pure functions of its result.
"""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from threadloom.kernels import BlasInfo, GemmBackend, blas_info
from threadloom.kernels.compiling import CACHE_FOLDER, JIT_ENABLED, CacheFolder, write_problem
from threadloom.kernels.simd import low_precision_info
from threadloom.pipeline import BlasThreads, format_bytes, loaded_blas
from threadloom.stages.config import Config
from threadloom.stages.machine import Machine, ThreadLimit, VectorWidth, cache_root, detect, thread_limit
from threadloom.stages.memory import Float32Memory
from threadloom.stages.resolve import CONFIG_NAMES, PrecisionChoice, load_config, resolve
from threadloom.stages.speeds import (
    STANDARD_SHAPES,
    KeptVariants,
    Speeds,
    read_speeds,
    read_variants,
    speeds_here,
    speeds_key,
    speeds_path,
    variant_speeds_here,
    variants_key,
    variants_path,
)
from threadloom.stages.tools.doctor.measuring import MachineRates, measure_machine
from threadloom.stages.tools.doctor.precision import (
    ProductPath,
    automatic_choices,
    measured_paths,
    precision_sentences,
    product_paths,
)

UNKNOWN_VOCABULARY = 256
"""Vocabulary assumed for a configuration that takes it from the text."""
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "threadpoolctl")


@dataclass(frozen=True)
class ConfigDefaults:
    """The settings that a shipped configuration gets on this machine by default."""

    config: str
    micro_batch: int  # sequences
    rows: int  # tokens per micro-batch
    lanes: int
    forward: int  # threads
    backward: int
    reduce: int
    update: int
    layer_bytes: int  # approximate working set of one layer of a micro-batch; fastest within L2


@dataclass(frozen=True)
class DoctorReport:
    """Everything that the doctor found."""

    machine: Machine
    python: str
    libraries: dict[str, str]  # distribution → version
    blas: BlasInfo  # the BLAS that the kernels would use
    loaded: tuple[BlasThreads, ...]  # every BLAS in the process, including NumPy's
    measured: MachineRates | None  # None: not requested
    defaults: tuple[ConfigDefaults, ...]
    products: tuple[ProductPath, ...]  # every way to multiply matrices
    precisions: dict[str, PrecisionChoice]  # automatic setting → the precision that it selects
    speeds: Speeds | None = None  # the kept rates by which a run selects, warns about or refuses a precision
    speeds_from: str = ""  # time of the measurement and path of the file; "" if there are none
    places: tuple[str, ...] = ()  # where kernels and figures are kept, one sentence each
    threads: ThreadLimit | None = None  # of the stages; None: one per core
    variants: KeptVariants = field(default_factory=dict)  # of Numba's GEMM, for each measured set of shapes

    @property
    def cores(self) -> int:
        """The cores that the stages use, at one thread each, and that were measured."""
        return self.threads.count if self.threads else self.machine.logical_cores

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices that follow from the machine, one sentence each."""
        now = any(path.one is not None for path in self.products)
        precisions = precision_sentences(self.precisions, self.speeds_from, now)
        return (*choices(self.machine, self.blas, self.defaults, self.threads), *self.places, *precisions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the machine, each with its remedy; usually none."""
        return warnings(self.machine, self.blas, self.measured)


def examine(measure: bool = True, seconds: float = 0.3) -> DoctorReport:
    """Return the report on this machine. With `measure`, six rates are measured for `seconds` each, then every GEMM."""
    machine, threads, info = detect(), thread_limit(), low_precision_info()
    products = product_paths(blas_info(), info)
    speeds, speeds_from = _speeds(measure)
    return DoctorReport(
        machine=machine,
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        blas=blas_info(),
        loaded=loaded_blas(),
        measured=measure_machine(machine, threads.count, seconds) if measure else None,
        defaults=tuple(_defaults(load_config(name), machine.logical_cores, threads.count) for name in CONFIG_NAMES),
        products=measured_paths(products, threads.count) if measure and JIT_ENABLED else products,
        precisions=automatic_choices(speeds, info),
        speeds=speeds,
        speeds_from=speeds_from,
        places=places(CACHE_FOLDER, cache_root()),
        threads=threads,
        variants=_variants(measure),
    )


def _variants(measure: bool) -> KeptVariants:
    """Return the kept rates of the variants of Numba's GEMM; with `measure`, those of the standard shapes too."""
    if not JIT_ENABLED:
        return {}
    standard = variant_speeds_here() if measure else None
    kept = read_variants(variants_path(), variants_key())
    return {STANDARD_SHAPES.name: standard, **kept} if standard else kept


def places(kernels: CacheFolder, figures: Path) -> tuple[str, ...]:
    """Return where compiled kernels and measured figures are kept, one sentence each."""
    problem = write_problem(figures)
    not_kept = f"not kept: {figures} cannot be written ({problem}); THREADLOOM_CACHE names another folder"
    return (
        f"Compiled kernels: {kernels.kind.value}{f', {kernels.path}' if kernels.path else ''}.",
        f"Measured speeds and tuned settings: {not_kept if problem else f'kept in {figures}'}.",
    )


def _speeds(measure: bool) -> tuple[Speeds | None, str]:
    """Return the kept rates, which decide the precision of a run, and a text on their origin."""
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


def _defaults(config: Config, cores: int, count: int) -> ConfigDefaults:
    vocabulary = UNKNOWN_VOCABULARY if config.model.vocab_size is None else None
    resolved = resolve(config, cores, vocabulary, threads=count)
    threads, rows = resolved.threads, resolved.micro_batch * resolved.model.context
    one_layer = dataclasses.replace(resolved.model.geometry(), layers=1)
    return ConfigDefaults(
        config=resolved.name,
        micro_batch=resolved.micro_batch,
        rows=rows,
        lanes=resolved.lanes,
        forward=threads.forward,
        backward=threads.backward,
        reduce=threads.reduce,
        update=threads.update,
        layer_bytes=Float32Memory(one_layer, resolved.micro_batch).slot_bytes,
    )


def choices(
    machine: Machine, blas: BlasInfo, defaults: Sequence[ConfigDefaults], threads: ThreadLimit | None = None
) -> tuple[str, ...]:
    """Return the choices that follow from the machine, one sentence each."""
    said = [_vector_choice(machine)]
    if blas.backend is GemmBackend.BLAS:
        kernels = f" with its {blas.architecture} kernels" if blas.architecture else ""
        said.append(f"GEMM: {blas_name(blas)}{kernels}; {blas.reason}.")
    else:
        # The reason may begin with a remedy for a slow BLAS, which does not concern Numba's kernel.
        library, _, why = blas.reason.rpartition("; ") if blas.name else ("", "", blas.reason)
        said.append(f"GEMM: Numba's blocked kernel, not BLAS; {why}.")
        if library and not blas.known_bad:
            said.append(f"BLAS, if selected by THREADLOOM_GEMM=blas: {library}.")
    cores = f"{machine.logical_cores} core{'s' if machine.logical_cores > 1 else ''}"
    if threads and threads.count < machine.logical_cores:
        said.append(f"Threads: at most {threads.count} per stage on {cores}, by {threads.reason}.")
    said.append(
        f"Threads: 1 inside BLAS; the stages' threads share {cores} and overlap, "
        "and the table below shows their number per stage."
    )
    if machine.l2 and defaults:
        small, large = (choose(defaults, key=lambda row: row.layer_bytes) for choose in (min, max))
        said.append(
            f"Micro-batches: the working set of one layer is about {format_bytes(small.layer_bytes)} ({small.config}) "
            f"to {format_bytes(large.layer_bytes)} ({large.config}); the L2 cache has {format_bytes(machine.l2)}."
        )
    said.append(f"Tuned settings for this machine are kept under the name {machine.fingerprint()}.")
    return tuple(said)


def _vector_choice(machine: Machine) -> str:
    width = machine.vector_width
    target = f"Kernels: compiled for {machine.microarchitecture or machine.architecture}"
    if width is VectorWidth.PLAIN:
        return f"{target}, with the baseline {width.bits}-bit vectors of {machine.architecture}."
    note = "; the compiler prefers 256-bit vectors if both fit" if width is VectorWidth.AVX512 else ""
    return f"{target}, with {width.value} ({width.bits}-bit vectors{note})."


def warnings(machine: Machine, blas: BlasInfo, measured: MachineRates | None) -> tuple[str, ...]:
    """Return the problems of the machine, each with its remedy."""
    said = []
    if blas.known_bad:
        said.append(f"{blas_name(blas)} returns wrong results to concurrent callers; install scipy>=1.17.")
    if machine.architecture in ("x86_64", "AMD64") and machine.vector_width is VectorWidth.PLAIN:
        said.append("The CPU has no AVX2, or a virtual machine hides it: training will be several times slower.")
    if machine.physical_cores is not None and machine.physical_cores < machine.logical_cores:
        said.append(
            f"{machine.logical_cores} hardware threads share {machine.physical_cores} cores: `threadloom tune` finds "
            "the best number of stage threads."
        )
    if measured is not None and measured.cores > 1 and measured.gemm_scaling < 0.7 * measured.cores:
        said.append(
            f"{measured.cores} cores multiply only {measured.gemm_scaling:.1f} times as fast as one: other programs "
            "are running, or the cores are shared with other machines."
        )
    if machine.memory_available is not None and machine.memory_available < 2 << 30:
        said.append(
            f"Only {format_bytes(machine.memory_available)} of memory are available; large configurations will not fit."
        )
    return tuple(said)


def doctor_dict(report: DoctorReport) -> dict[str, Any]:
    """Return the report for `--json`: sizes in bytes, rates in GFLOP/s and GB/s."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    found["machine"]["vector_width"] = report.machine.vector_width.value
    found["machine"]["fingerprint"] = report.machine.fingerprint()
    for row, path in zip(found["products"], report.products, strict=True):
        row["dot"] = path.dot.name if path.dot else None
    found["choices"] = list(report.choices)
    found["warnings"] = list(report.warnings)
    return found


def blas_name(blas: BlasInfo) -> str:
    """Return the name and version of a BLAS for reports."""
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "accelerate": "Accelerate"}
    return " ".join(part for part in (names.get(blas.name, blas.name or "no BLAS"), blas.version) if part)
