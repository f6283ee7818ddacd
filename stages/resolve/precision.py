"""The choice of a run's precision: explicit, or the fastest that is accurate enough.

`choose_precision` is a pure function of the settings, of measured speeds and of the processor's features:

| precision | float32_matmul_precision | choice |
| --- | --- | --- |
| auto | any | bf16 if it is at least `AUTO_GAIN` times as fast as float32 |
| auto, float32 | high | otherwise bf16x3 if it is at least `HIGH_GAIN` times as fast as float32 |
| auto, float32 | any | otherwise float32 |
| bf16, bf16x3, fp16 | any | the same; with a warning if it is slower than float32 |

Explicit precisions slower than `MIN_SPEED` times float32 are rejected: the processor only emulates them, as bf16x3
without AVX-512. ``THREADLOOM_ALLOW_SLOW=1`` turns the error into a warning, and a resumed run is never rejected.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
from loguru import logger

from threadloom.stages.config import Config, ConfigError, MatmulPrecision, Precision

if TYPE_CHECKING:  # loads Numba, which reading a configuration must not
    from threadloom.kernels.simd import LowPrecisionInfo
    from threadloom.stages.speeds import Speeds

_C = TypeVar("_C", bound=Config)

FLOAT32_PRECISIONS = (Precision.FLOAT32, Precision.BF16X3)
"""Possible choices for precision=float32, depending on `float32_matmul_precision`."""
AUTO_GAIN = 1.15
"""Speed-up of GEMMs below which bf16 loses more time on rounding between them."""
HIGH_GAIN = 1.1
EQUAL_SPEED = 0.95
"""Ratio of two speeds from which they count as equal: measurements vary by as much."""
MIN_SPEED = 1 / 3
"""Minimum speed relative to float32. Emulated bfloat16 on AVX2 reaches 0.45 to 0.65 at half of the memory, which is a
reasonable choice and only warned about."""
BF16X3_GRADE = "float32-grade (relative error of a product 4e-6, of float32 3e-7)"
"""Accuracy of bf16x3, as `kernels.matmul.split` and its tests have it."""
ALLOW_SLOW = "THREADLOOM_ALLOW_SLOW"
"""Environment variable that turns the error for slow precisions into a warning, unless empty, "0", "no", "false"."""


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of a run with its explanation."""

    precision: Precision
    """Never AUTO."""
    reason: str
    """Why it was chosen: a clause without a full stop."""
    warning: str | None = None
    """Present if the precision was asked for and is slower than another one that is as accurate."""


def is_precision_open(config: Config) -> bool:
    """Return True if the precision of a configuration depends on measured speeds."""
    high = config.float32_matmul_precision is MatmulPrecision.HIGH
    return config.precision is Precision.AUTO or (config.precision is Precision.FLOAT32 and high)


def choose_precision(
    asked: Precision,
    matmul: MatmulPrecision,
    speeds: "Speeds | None",
    info: "LowPrecisionInfo",
    *,
    allow_slow: bool = False,
) -> PrecisionChoice:
    """Return the precision to compute in, for the settings `precision` and `float32_matmul_precision`.

    With unknown `speeds` (None) the choice is float32 or the explicit precision, without a warning. Raises ConfigError
    for a precision that is too slow, unless `allow_slow`.
    """
    if asked is Precision.AUTO or (asked is Precision.FLOAT32 and matmul is MatmulPrecision.HIGH):
        return _fastest(asked, matmul, speeds, info)
    if asked is Precision.FLOAT32:
        return PrecisionChoice(asked, "as asked")
    rate = speeds.of(asked) if speeds is not None else None
    if speeds is None or rate is None:
        return PrecisionChoice(asked, f"as asked; its speed here was not measured; {_method(asked, info)}")
    ratio = rate / speeds.float32
    reason = f"as asked; {_comparison(asked, speeds)}; {_method(asked, info)}"
    if ratio >= EQUAL_SPEED:
        return PrecisionChoice(asked, reason)
    faster = _faster_alternative(asked, speeds)
    # Users of bf16x3 want the accuracy of float32, which auto may trade for bf16.
    instead = f"set precision={faster.value}" + ("" if asked is Precision.BF16X3 else ", or auto")
    if ratio < MIN_SPEED and not allow_slow:
        raise ConfigError(
            "precision",
            expected="one that is at least a third as fast as float32 here",
            got=f"{asked.value}: {_comparison(asked, speeds)}; {_method(asked, info)}",
            hint=f"{instead}; or set {ALLOW_SLOW}=1 in the environment to train with it",
        )
    memory = "" if asked is Precision.BF16X3 else f"; {asked.value} still halves the memory of activations"
    return PrecisionChoice(
        asked,
        reason,
        f"precision={asked.value} is slower here than {faster.value}: {_comparison(asked, speeds)}; "
        f"{_method(asked, info)}. Hint: {instead}{memory}.",
    )


def _fastest(
    asked: Precision, matmul: MatmulPrecision, speeds: "Speeds | None", info: "LowPrecisionInfo"
) -> PrecisionChoice:
    if speeds is None:
        return PrecisionChoice(Precision.FLOAT32, "no speeds were measured here")
    candidates = []
    if asked is Precision.AUTO:
        candidates.append((Precision.BF16, AUTO_GAIN))
    if matmul is MatmulPrecision.HIGH:
        candidates.append((Precision.BF16X3, HIGH_GAIN))
    comparisons = []
    for precision, gain in candidates:
        rate = speeds.of(precision)
        if rate is None:
            continue
        comparisons.append(_comparison(precision, speeds))
        if rate / speeds.float32 >= gain:
            return PrecisionChoice(precision, f"{comparisons[-1]}; {_method(precision, info)}")
    return PrecisionChoice(Precision.FLOAT32, "; ".join([*comparisons, _method(Precision.BF16, info)]))


def _comparison(precision: Precision, speeds: "Speeds") -> str:
    rate = speeds.of(precision) or 0.0
    return (
        f"{precision.value} is {rate / speeds.float32:.2f} times as fast as float32 here "
        f"({rate:,.0f} to {speeds.float32:,.0f} GFLOP/s on one core)"
    )


def _faster_alternative(asked: Precision, speeds: "Speeds") -> Precision:
    """Return the fastest precision that is at least as accurate as `asked`."""
    accurate = {
        Precision.BF16: (Precision.BF16X3, Precision.FLOAT32),
        Precision.FP16: (Precision.BF16X3, Precision.FLOAT32),
        Precision.BF16X3: (Precision.FLOAT32,),
    }
    return max(accurate[asked], key=lambda precision: (speeds.of(precision) or 0.0, precision is Precision.FLOAT32))


def _method(precision: Precision, info: "LowPrecisionInfo") -> str:
    """Return how this processor multiplies in a 16-bit precision."""
    if precision is Precision.FP16:
        how = "an instruction" if info.fp16_conversion else "integer arithmetic, as the processor has no F16C"
        return f"float16 is converted by {how}, and multiplied as float32"
    return info.reason


def gemm_description(precision: Precision) -> str:
    """Return the name of the GEMM that a run in a precision uses."""
    from threadloom.kernels import GemmBackend, blas_info
    from threadloom.kernels.simd import DotPath, low_precision_info

    dots = {DotPath.AMX: "AMX tiles", DotPath.AVX512: "AVX-512 BF16"}
    dot = dots.get(low_precision_info().path, "bfloat16 upcast to float32")
    if precision is Precision.BF16:
        return dot
    if precision is Precision.BF16X3:
        return f"three of bfloat16, {BF16X3_GRADE}: {dot}"
    blas = blas_info(load=False)
    return f"{blas.name} {blas.version}" if blas.backend is GemmBackend.BLAS else "Numba's kernel"


def slow_allowed() -> bool:
    """Return True if the environment accepts precisions that are far slower than float32."""
    return os.environ.get(ALLOW_SLOW, "").strip().lower() not in ("", "0", "no", "false")


def speed_matters() -> bool:
    """Return True if kernels are compiled."""
    from threadloom.kernels.compiling import JIT_ENABLED

    return JIT_ENABLED


def choose_precision_here(config: Config, *, allow_slow: bool = False) -> PrecisionChoice:
    """Return the precision of a configuration on this machine; speeds are measured only if the choice depends on them.

    They do not matter for plain float32, nor with the compiler off (``NUMBA_DISABLE_JIT``). `allow_slow` as in
    `choose_precision`; the environment may set it too.
    """
    from threadloom.kernels.simd import DotPath, low_precision_info

    info = low_precision_info()
    if config.precision is Precision.FLOAT32 and not is_precision_open(config):
        if info.path is DotPath.FLOAT32:
            return PrecisionChoice(Precision.FLOAT32, "as asked")
        return PrecisionChoice(Precision.FLOAT32, f"as asked; precision=auto may be faster: {info.reason}")
    asked, matmul = config.precision, config.float32_matmul_precision
    if not speed_matters():
        return choose_precision(asked, matmul, None, info)
    from threadloom.stages.speeds import speeds_here

    return choose_precision(asked, matmul, speeds_here(), info, allow_slow=allow_slow or slow_allowed())


def choose_precision_and_warn(config: Config) -> PrecisionChoice:
    """Return the precision of a configuration for a measurement; a slow one is logged as a warning, not rejected."""
    choice = choose_precision_here(config, allow_slow=True)
    if choice.warning:
        logger.warning("{}", choice.warning)
    return choice


def with_precision(config: _C, precision: Precision) -> _C:
    """Return the configuration with a chosen precision, which no later measurement can change.

    If float32 was chosen, `float32_matmul_precision` is settled too; a bf16x3 keeps the value that permitted it.
    """
    matmul = MatmulPrecision.HIGHEST if precision is Precision.FLOAT32 else config.float32_matmul_precision
    return msgspec.structs.replace(config, precision=precision, float32_matmul_precision=matmul)
