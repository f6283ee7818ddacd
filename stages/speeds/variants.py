"""The variant of Numba's float32 GEMM for each kind of product: measured once per machine, kept, read by every run.

All variants give the same bits (`kernels.matmul.variants`), so the choice is no part of a run: a resumed run, or one on
another machine, may use others. It is kept with everything that the figures depend on in

    $XDG_CACHE_HOME/threadloom/products/MACHINE.json, or $THREADLOOM_CACHE/products/MACHINE.json

Without such a file the variant that reads A in place is used for everything.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from loguru import logger

from threadloom.kernels import GemmBackend, Op, gemm, gemm_backend
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.matmul import VARIANTS, GemmVariant, ProductKind, gemm_variants
from threadloom.stages.machine import cache_root, detect
from threadloom.stages.speeds.record import speeds_key
from threadloom.stages.speeds.stored import measured_once, read_record

MIN_GAIN = 1.03
"""Speed-up over reading A in place from which another variant is chosen: measurements vary by as much."""
ROUNDS = 5
ROWS, INNER, COLUMNS, VOCABULARY = 256, 384, 1536, 8192
"""Sizes of the measured products: a micro-batch through the first half of an MLP, and to the logits."""

Rates = dict[str, dict[str, float]]
Call = Callable[[], object]


class VariantSpeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GFLOP/s of one core for each kind of product and variant, by their names, and the chosen variant of each kind."""

    rates: Rates
    chosen: dict[str, str]

    def variants(self) -> dict[ProductKind, GemmVariant]:
        """Return the chosen variants; ValueError if one is unknown."""
        return {ProductKind(kind): GemmVariant(variant) for kind, variant in self.chosen.items()}


class VariantsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    key: dict[str, str]
    speeds: VariantSpeeds


def variants_path() -> Path:
    """Return the file of this machine; machines that share a home directory have different files."""
    return cache_root() / "products" / f"{detect().fingerprint()}.json"


def variants_key() -> dict[str, str]:
    """Return everything that the figures depend on, by name."""
    depends = ("cpu", "features", "numba", "llvmlite", "kernels")
    return {**{name: value for name, value in speeds_key().items() if name in depends}, "rows": f"{ROWS}"}


def read_variants(path: Path, key: Mapping[str, str]) -> VariantSpeeds | None:
    """Return the figures in a file, or None if it is missing, damaged or has another key."""
    record = read_record(path, VariantsRecord)
    if record is None or record.key != key:
        return None
    try:
        record.speeds.variants()
    except ValueError as error:
        logger.debug("the variants in {} are measured again: {}", path, error)
        return None
    return record.speeds


def choose_variants(seconds: Mapping[str, Mapping[str, list[float]]]) -> dict[str, str]:
    """Return the variant for each kind of product, from the durations in each round.

    Variants are compared with the one in place round by round, so that a changing clock frequency slows both; the
    fastest is chosen if the median gain is at least `MIN_GAIN`.
    """
    chosen = {}
    for kind, durations in seconds.items():
        base = durations[GemmVariant.IN_PLACE.value]
        gains = {
            variant: statistics.median(one / other for one, other in zip(base, found, strict=True))
            for variant, found in durations.items()
        }
        best = max(gains, key=lambda variant: gains[variant])
        chosen[kind] = best if gains[best] >= MIN_GAIN else GemmVariant.IN_PLACE.value
    return chosen


def measure_variants() -> VariantSpeeds:
    """Measure every variant for every kind of product, on one thread and in its CPU time; about a second."""
    seconds: dict[str, dict[str, list[float]]] = {}
    rates: Rates = {}
    with gemm_backend(GemmBackend.NUMBA):
        for kind in ProductKind:
            call, operations = _product(kind)
            durations: dict[str, list[float]] = {variant.value: [] for variant in VARIANTS}
            for _ in range(ROUNDS):
                for variant in VARIANTS:
                    with gemm_variants({kind: variant}):
                        call()  # brings the operands into the caches in this variant's order
                        begin = time.thread_time()
                        call()
                        durations[variant.value].append(max(time.thread_time() - begin, 1e-9))
            seconds[kind.value] = durations
            rates[kind.value] = {name: operations / 1e9 / statistics.median(found) for name, found in durations.items()}
    return VariantSpeeds(rates, choose_variants(seconds))


def _product(kind: ProductKind) -> tuple[Call, float]:
    """Return a call of a product of a kind, and its floating-point operations."""
    rng = np.random.default_rng(0)
    columns = VOCABULARY if kind is ProductKind.VOCABULARY else COLUMNS
    x, w, dy = (rng.standard_normal(s, np.float32) for s in ((ROWS, INNER), (INNER, columns), (ROWS, columns)))
    operations = 2.0 * ROWS * INNER * columns
    match kind:
        case ProductKind.INPUT_GRADIENT:
            dx = np.empty_like(x)
            return (lambda: gemm(dy, w, dx, Op.N, Op.T, 1.0, 0.0)), operations
        case ProductKind.WEIGHT_GRADIENT:
            dw = np.zeros_like(w)
            return (lambda: gemm(x, dy, dw, Op.T, Op.N, 1.0, 1.0)), operations
        case ProductKind.VOCABULARY:
            embedding = np.ascontiguousarray(w.T)
            return (lambda: gemm(x, embedding, dy, Op.N, Op.T, 1.0, 0.0)), operations
        case ProductKind.FORWARD:
            return (lambda: gemm(x, w, dy, Op.N, Op.N, 1.0, 0.0)), operations


def kept_variants() -> dict[ProductKind, GemmVariant]:
    """Return the variants that were measured on this machine, or none; nothing is measured."""
    if not JIT_ENABLED:
        return {}
    found = read_variants(variants_path(), variants_key())
    return found.variants() if found else {}


def variant_speeds_here() -> VariantSpeeds | None:
    """Return the figures of this machine, measured and kept if there are none; None without the compiler.

    Errors of locking or writing the file are logged, not raised.
    """
    if not JIT_ENABLED:
        return None
    path, key = variants_path(), variants_key()
    return measured_once(
        path,
        "the variants of the float32 GEMM",
        read=lambda: read_variants(path, key),
        measure=measure_variants,
        encode=lambda speeds: msgspec.json.encode(VariantsRecord(key, speeds)),
    )
