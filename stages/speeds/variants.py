"""The variant of Numba's float32 GEMM for each kind of product: measured once per machine and set of shapes, and kept.

All variants give the same bits (`kernels.matmul.variants`), so the choice is no part of a run: a resumed run, or one on
another machine, may use others. The figures are kept with everything that they depend on, for the shapes of each model
that was trained, in

    $XDG_CACHE_HOME/threadloom/products/MACHINE.json, or $THREADLOOM_CACHE/products/MACHINE.json

Without such a file the default of the processor is used for everything, except by the run that has just measured.
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
from threadloom.kernels.matmul import DEFAULT_VARIANT, VARIANTS, GemmVariant, ProductKind, gemm_variants
from threadloom.stages.machine import cache_root, detect, seconds_per_call
from threadloom.stages.speeds.record import speeds_key
from threadloom.stages.speeds.shapes import STANDARD_SHAPES, ProductShapes
from threadloom.stages.speeds.stored import measured_once, read_record

MIN_GAIN = 1.03
"""Speed-up over the default from which another variant is chosen: measurements vary by as much."""
ROUNDS, MIN_ROUNDS = 7, 3
MAX_SECONDS = 0.35
"""Time for the rounds of a kind of product after the first `MIN_ROUNDS`."""
MIN_CALL = 1e-3
"""Seconds for which a product is repeated in a round."""
MOST_SETS = 16
"""Sets of shapes whose figures are kept: the newest."""

Rates = dict[str, dict[str, float]]
Call = Callable[[], object]


class VariantSpeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GFLOP/s of one core for each kind of product and variant, by their names, and the chosen variant of each kind."""

    rates: Rates
    chosen: dict[str, str]

    def variants(self) -> dict[ProductKind, GemmVariant]:
        """Return the chosen variants; ValueError if one is unknown."""
        return {ProductKind(kind): GemmVariant(variant) for kind, variant in self.chosen.items()}


KeptVariants = dict[str, VariantSpeeds]
"""Name of a set of shapes → its figures, in the order of their measurement."""


class VariantsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    key: dict[str, str]
    sets: KeptVariants


def variants_path() -> Path:
    """Return the file of this machine; machines that share a home directory have different files."""
    return cache_root() / "products" / f"{detect().fingerprint()}.json"


def variants_key() -> dict[str, str]:
    """Return everything that the figures depend on, by name."""
    depends = ("cpu", "features", "numba", "llvmlite", "kernels")
    return {name: value for name, value in speeds_key().items() if name in depends}


def read_variants(path: Path, key: Mapping[str, str]) -> KeptVariants:
    """Return the figures in a file; none if it is missing, damaged or has another key."""
    record = read_record(path, VariantsRecord)
    if record is None or record.key != key:
        return {}
    try:
        for speeds in record.sets.values():
            speeds.variants()
    except ValueError as error:
        logger.debug("the variants in {} are measured again: {}", path, error)
        return {}
    return record.sets


def choose_variants(
    seconds: Mapping[str, Mapping[str, list[float]]], default: GemmVariant = DEFAULT_VARIANT
) -> dict[str, str]:
    """Return the variant for each kind of product, from the durations in each round.

    Variants are compared with the default round by round, so that a changing clock frequency slows both; the
    fastest is chosen if the median gain is at least `MIN_GAIN`.
    """
    chosen = {}
    for kind, durations in seconds.items():
        base = durations[default.value]
        gains = {
            variant: statistics.median(one / other for one, other in zip(base, found, strict=True))
            for variant, found in durations.items()
        }
        best = max(gains, key=lambda variant: gains[variant])
        chosen[kind] = best if gains[best] >= MIN_GAIN else default.value
    return chosen


def measure_variants(shapes: ProductShapes = STANDARD_SHAPES) -> VariantSpeeds:
    """Measure every variant for every kind of product, on one thread and in its CPU time; a second or two.

    The duration of a kind is the sum over the layers.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    rates: Rates = {}
    with gemm_backend(GemmBackend.NUMBA):
        for kind in ProductKind:
            layers = [shapes.vocabulary] if kind is ProductKind.VOCABULARY else shapes.layers
            sizes = [size for size in layers if size is not None]
            if not sizes:
                continue
            durations = _durations(kind, [_product(kind, shapes.rows, *size) for size in sizes])
            operations = sum(2.0 * shapes.rows * inputs * outputs for inputs, outputs in sizes)
            seconds[kind.value] = durations
            rates[kind.value] = {name: operations / 1e9 / statistics.median(found) for name, found in durations.items()}
    return VariantSpeeds(rates, choose_variants(seconds))


def _durations(kind: ProductKind, calls: list[Call]) -> dict[str, list[float]]:
    """Return the seconds that all calls take together, in each variant and round; variants alternate."""
    durations: dict[str, list[float]] = {variant.value: [] for variant in VARIANTS}
    for call in calls:
        call()  # touches its memory
    begin = time.perf_counter()
    for done in range(ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - begin > MAX_SECONDS:
            break
        for variant in VARIANTS:
            with gemm_variants({kind: variant}):
                total = sum(seconds_per_call(call, MIN_CALL, time.thread_time) for call in calls)
            durations[variant.value].append(max(total, 1e-9))
    return durations


def _product(kind: ProductKind, rows: int, inputs: int, outputs: int) -> Call:
    """Return a call of a product of a kind."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s, np.float32) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    match kind:
        case ProductKind.INPUT_GRADIENT:
            dx = np.empty_like(x)
            return lambda: gemm(dy, w, dx, Op.N, Op.T, 1.0, 0.0)
        case ProductKind.WEIGHT_GRADIENT:
            dw = np.zeros_like(w)
            return lambda: gemm(x, dy, dw, Op.T, Op.N, 1.0, 1.0)
        case ProductKind.VOCABULARY:
            embedding = np.ascontiguousarray(w.T)
            return lambda: gemm(x, embedding, dy, Op.N, Op.T, 1.0, 0.0)
        case ProductKind.FORWARD:
            return lambda: gemm(x, w, dy, Op.N, Op.N, 1.0, 0.0)


def kept_variants(shapes: ProductShapes) -> dict[ProductKind, GemmVariant]:
    """Return the variants that were measured here, for `shapes` or else by the doctor; nothing is measured now."""
    if not JIT_ENABLED:
        return {}
    kept = read_variants(variants_path(), variants_key())
    found = kept.get(shapes.name) or kept.get(STANDARD_SHAPES.name)
    return found.variants() if found else {}


def variant_speeds_here(shapes: ProductShapes = STANDARD_SHAPES) -> VariantSpeeds | None:
    """Return the figures of this machine, measured and kept if there are none; None without the compiler.

    Errors of locking or writing the file are logged, not raised.
    """
    if not JIT_ENABLED:
        return None
    path, key = variants_path(), variants_key()

    def encode(speeds: VariantSpeeds) -> bytes:
        others = [(name, found) for name, found in read_variants(path, key).items() if name != shapes.name]
        kept = dict([*others, (shapes.name, speeds)][-MOST_SETS:])
        return msgspec.json.encode(VariantsRecord(key, kept))

    return measured_once(
        path,
        "the variants of the float32 GEMM",
        read=lambda: read_variants(path, key).get(shapes.name),
        measure=lambda: measure_variants(shapes),
        encode=encode,
    )
