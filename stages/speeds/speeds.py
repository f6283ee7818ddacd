"""How fast each precision multiplies on one core here: measured once, and kept for this machine.

The figures decide what `precision=auto` stands for (`stages.resolve.precision`), so they are of the product's own
kernels, on a product as training has them, and taken turn by turn: a clock that sinks slows all alike. Time is the
thread's own: while other work has the core it stands still, or a longer product would look slower than it is. Where
that clock is too coarse, as on Windows, it is the wall's. The kernels of a precision are one entry of `PRODUCTS`.

What was measured is kept in

    $XDG_CACHE_HOME/threadloom/precision/MACHINE.json

together with everything that it depends on (`speeds_key`). A file that is damaged, or from another processor, version
or kernel, is measured anew and replaced. One process measures at a time; a second waits for its figures. Where nothing
can be written, each process measures for itself.
"""

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from loguru import logger
from numpy.typing import NDArray

from threadloom.kernels import GemmBackend, Op, blas_info, gemm
from threadloom.kernels.compiling import SOURCES_DIGEST, TARGET
from threadloom.kernels.matmul import (
    fp16_scratch_sizes,
    gemm_bf16,
    gemm_fp16,
    gemm_split,
    pack_float32,
    packed_shape,
    prepare_bf16,
    prepare_split,
)
from threadloom.kernels.simd import bf16_from_float32, fp16_from_float32, low_precision_info
from threadloom.pipeline import blas_threads
from threadloom.stages.config import Precision
from threadloom.stages.machine import cache_root, detect, seconds_per_call
from threadloom.stages.storage import atomic_write, file_lock

ROWS, INNER, COLUMNS = 256, 384, 1536
"""The measured product: the rows of a micro-batch through the first half of an MLP of 384 channels."""
OPERATIONS = 2.0 * ROWS * INNER * COLUMNS
ROUNDS, LEAST_ROUNDS = 9, 3
"""Times that each precision is measured; the median counts. A slow machine gets fewer of them."""
SECONDS = 0.4
"""That all the rounds may take; the first one and `LEAST_ROUNDS` are made all the same."""
TICKS = 10
"""Steps of the clock that a measurement takes at least."""
COARSE = 1e-3
"""Seconds; where a thread's own clock takes larger steps, or none in ten of them, the wall's is read."""
PATIENCE = 30.0
"""Seconds to wait for another process that measures: compiling its kernels may take that long."""

Call = Callable[[], object]
_Rate = Annotated[float, msgspec.Meta(gt=0)]


class Speeds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GFLOP/s of one core at each precision, conversions of what flows from layer to layer included.

    None: that precision was not measured.
    """

    float32: _Rate
    bf16: _Rate | None = None
    bf16x3: _Rate | None = None
    fp16: _Rate | None = None

    def of(self, precision: Precision) -> float | None:
        """Return the rate of a precision, None where there is none; `AUTO` is no precision (AttributeError)."""
        rate: float | None = getattr(self, precision.value)
        return rate


# --- measuring ------------------------------------------------------------------------------------------------------


def _operands() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(shape, dtype=np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    return a, b, np.zeros((ROWS, COLUMNS), np.float32)


def _float32_product() -> Call:
    a, b, out = _operands()
    return lambda: gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)


def _bf16_product() -> Call:
    """Activations are bfloat16 already, and weights are packed once an update: the product is all there is."""
    prepare_bf16()
    a, b, out = _operands()
    bits, words = np.empty(a.shape, np.uint16), np.empty(packed_shape(INNER, COLUMNS), np.uint32)
    bf16_from_float32(a.reshape(-1), bits.reshape(-1))
    pack_float32(b, Op.N, words)
    return lambda: gemm_bf16(bits, words, out, False)


def _bf16x3_product() -> Call:
    """Both operands are float32, and split on the fly; called directly, so that the process's backend is unchanged."""
    a, b, out = _operands()
    prepare_split()
    return lambda: gemm_split(a, b, out, Op.N, Op.N, 1.0, 0.0)


def _fp16_product() -> Call:
    """Both operands are float16, and widened block by block for a float32 product."""
    a, b, out = _operands()
    halves = [np.empty(operand.shape, np.int16) for operand in (a, b)]
    for operand, bits in zip((a, b), halves, strict=True):
        fp16_from_float32(operand.reshape(-1), bits.reshape(-1))
    scratch = [np.empty(size, np.float32) for size in fp16_scratch_sizes(ROWS, COLUMNS, INNER)]
    return lambda: gemm_fp16(halves[0], halves[1], out, Op.N, Op.N, False, scratch[0], scratch[1])


PRODUCTS: Mapping[Precision, Callable[[], Call]] = {
    Precision.FLOAT32: _float32_product,
    Precision.BF16: _bf16_product,
    Precision.BF16X3: _bf16x3_product,
    Precision.FP16: _fp16_product,
}
"""Precision → what makes a call that does `OPERATIONS` at it, holding no GIL; compiled code only."""


def measure_speeds() -> Speeds:
    """Measure every precision, turn by turn; the kernels are compiled first, if they have to be."""
    calls = {precision: make() for precision, make in PRODUCTS.items()}
    seconds: dict[Precision, list[float]] = {precision: [] for precision in calls}
    with _one_blas_thread():
        for call in calls.values():
            call()
        clock, least = _clock()
        begin = time.perf_counter()
        for done in range(ROUNDS):
            if done >= LEAST_ROUNDS and time.perf_counter() - begin > SECONDS:
                break
            for precision, call in calls.items():
                seconds[precision].append(seconds_per_call(call, least, clock))
    rates = {precision.value: OPERATIONS / 1e9 / statistics.median(found) for precision, found in seconds.items()}
    return msgspec.convert(rates, Speeds)


def _clock() -> tuple[Callable[[], float], float]:
    """Return the clock to measure with, and the seconds of it that a measurement takes at least."""
    tick = _tick(time.thread_time)
    if tick <= COARSE:
        return time.thread_time, TICKS * tick
    return time.perf_counter, TICKS * min(_tick(time.perf_counter), COARSE)


def _tick(clock: Callable[[], float]) -> float:
    """Return the smallest of a few steps of a clock; infinity where it stands still while it is looked at."""
    steps: list[float] = []
    last, end = clock(), time.perf_counter() + 10 * COARSE
    while len(steps) < 5 and time.perf_counter() < end:
        now = clock()
        if now > last:
            steps.append(now - last)
            last = now
    return min(steps, default=math.inf)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to a thread where it is what multiplies; the limit is the process's, so not without need."""
    with blas_threads(1) if blas_info(load=False).backend is GemmBackend.BLAS else contextlib.nullcontext():
        yield


# --- keeping --------------------------------------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept: figures, and what they are of."""

    key: dict[str, str]
    speeds: Speeds


def speeds_key() -> dict[str, str]:
    """Return everything that the figures depend on, each under its name."""
    blas = blas_info(load=False)
    library = f"{blas.name} {blas.version} {blas.architecture}" if blas.backend is GemmBackend.BLAS else ""
    return {
        "cpu": detect().cpu,
        "features": " ".join(sorted(name for name, present in TARGET.items() if present)),
        "path": low_precision_info().path.name,
        "gemm": blas.backend.value,
        "blas": library,
        **{name: version(name) for name in ("numba", "llvmlite")},
        "kernels": SOURCES_DIGEST,
        "precisions": " ".join(precision.value for precision in PRODUCTS),
        "product": f"{ROWS} x {INNER} x {COLUMNS}",
    }


def speeds_path() -> Path:
    """Return where the figures of this machine are kept; homes are shared among machines, so each has its file."""
    return cache_root() / "precision" / f"{detect().fingerprint()}.json"


def read_speeds(path: Path, key: Mapping[str, str]) -> Speeds | None:
    """Return the figures in a file, or None if it is not there, not sound, or not of this key."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.debug("the speeds kept in {} cannot be read and are measured anew: {}", path, error)
        return None
    return record.speeds if record.key == key else None


def kept_speeds(path: Path, key: Mapping[str, str], measure: Callable[[], Speeds]) -> Speeds:
    """Return the figures in a file, measured now and written there if it has none of this key.

    Never fails for the file's sake: where it cannot be read or written, the figures are measured and not kept.
    """
    found = read_speeds(path, key)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(path.with_suffix(".lock"), timeout=PATIENCE))
        except OSError as error:
            logger.debug("measuring without the lock of {}: {}", path, error)
        found = read_speeds(path, key)  # another process may have measured while this one waited
        if found is not None:
            return found
        logger.info("measuring how fast each precision is here, once; the figures are kept in {}", path)
        measured = measure()
        try:
            atomic_write(path, msgspec.json.format(msgspec.json.encode(Record(dict(key), measured))))
        except OSError as error:
            logger.debug("the speeds are not kept: {}", error)
        return measured


_measuring = threading.Lock()  # two threads that measured at once would halve each other's figures


def speeds_here() -> Speeds:
    """Return the figures of this process's kernels on this machine: the same ones as long as the process lives."""
    with _measuring:
        return _settled(speeds_path(), tuple(speeds_key().items()))


@cache
def _settled(path: Path, key: tuple[tuple[str, str], ...]) -> Speeds:
    """Where nothing can be kept, a second measurement might answer otherwise in the middle of a run."""
    return kept_speeds(path, dict(key), measure_speeds)
