"""What a run computes in: the precision that was asked for, or the fastest one that is exact enough, and why.

`choose` is a pure function of what is asked, of measured speeds and of what the processor has:

| asked | matmul | becomes |
| --- | --- | --- |
| auto | any | bf16, where it is at least `AUTO_GAIN` times as fast as float32 |
| auto, float32 | high | else bf16x3, where it is at least `HIGH_GAIN` times as fast as float32 |
| auto, float32 | any | else float32 |
| bf16, bf16x3, fp16 | any | what was asked; with a warning where it is slower than float32 |

One that is not even `LEAST` times as fast as float32 is refused: the processor can only imitate it, as it does bf16x3
without AVX-512, and nobody wants to find that out after hours. ``THREADLOOM_ALLOW_SLOW=1`` turns the refusal into the
warning, and a run that has begun is always allowed to go on.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from threadloom.stages.config import Config, ConfigError, MatmulPrecision, Precision

if TYPE_CHECKING:  # Numba is loaded only where something is measured, not for --help
    from threadloom.kernels.simd import LowPrecisionInfo
    from threadloom.stages.speeds import Speeds

FLOAT32_PRECISIONS = (Precision.FLOAT32, Precision.BF16X3)
"""What a configuration with precision=float32 may compute in, depending on `matmul`."""
AUTO_GAIN = 1.15
"""Below it, what is gained on products is lost on the rounding between them."""
HIGH_GAIN = 1.1
LEVEL = 0.95
"""From here on two speeds count as the same: measurements differ by as much."""
LEAST = 1 / 3
"""Widened bfloat16 on AVX2 is at 0.45 to 0.65, for half of the memory: a matter of choice, and of a warning."""
ALLOW_SLOW = "THREADLOOM_ALLOW_SLOW"
"""Environment variable; with any value but an empty one, "0" and "no", slow precisions are warned of, not refused."""


@dataclass(frozen=True)
class Choice:
    """The precision of a run, and what a person should know about it."""

    precision: Precision  # never AUTO
    reason: str  # why it is that one, in a sentence without its full stop
    warning: str | None = None  # what was asked, what it does, what is faster, and what to do


def is_open(config: Config) -> bool:
    """Return whether the precision of a configuration depends on how fast things are here."""
    inexact = config.precision is Precision.FLOAT32 and config.float32_matmul_precision is MatmulPrecision.HIGH
    return config.precision is Precision.AUTO or inexact


def choose(
    asked: Precision,
    matmul: MatmulPrecision,
    speeds: "Speeds | None",
    info: "LowPrecisionInfo",
    allow_slow: bool = False,
) -> Choice:
    """Return what to compute in.

    `speeds` None: they are not known, so that nothing is chosen for its speed, and nothing warned of. `allow_slow`:
    what would be refused (ConfigError) is warned of.
    """
    if asked is Precision.AUTO or (asked is Precision.FLOAT32 and matmul is MatmulPrecision.HIGH):
        return _fastest(asked, matmul, speeds, info)
    if asked is Precision.FLOAT32:
        return Choice(asked, "as asked")
    rate = speeds.of(asked) if speeds is not None else None
    if speeds is None or rate is None:
        return Choice(asked, f"as asked; its speed here was not measured; {_path(asked, info)}")
    ratio = rate / speeds.float32
    reason = f"as asked; {_compared(asked, speeds)}; {_path(asked, info)}"
    if ratio >= LEVEL:
        return Choice(asked, reason)
    faster = _faster(asked, speeds)
    # Who asks for bf16x3 wants float32's accuracy, which auto may give up for bf16.
    instead = f"set precision={faster.value}" + ("" if asked is Precision.BF16X3 else ", or auto")
    if ratio < LEAST and not allow_slow:
        raise ConfigError(
            "precision",
            expected="one that is at least a third as fast as float32 here",
            got=f"{asked.value}: {_compared(asked, speeds)}",
            cause=_path(asked, info),
            hint=f"{instead}; or set {ALLOW_SLOW}=1 in the environment to train with it",
        )
    return Choice(
        asked,
        reason,
        f"precision={asked.value} is slower here than {faster.value}: {_compared(asked, speeds)}; "
        f"{_path(asked, info)}. Hint: {instead}{_worth(asked)}.",
    )


def _fastest(asked: Precision, matmul: MatmulPrecision, speeds: "Speeds | None", info: "LowPrecisionInfo") -> Choice:
    if speeds is None:
        return Choice(Precision.FLOAT32, "no speeds were measured here")
    tried = []
    if asked is Precision.AUTO:
        tried.append((Precision.BF16, AUTO_GAIN))
    if matmul is MatmulPrecision.HIGH:
        tried.append((Precision.BF16X3, HIGH_GAIN))
    said = []
    for precision, gain in tried:
        rate = speeds.of(precision)
        if rate is None:
            continue
        said.append(_compared(precision, speeds))
        if rate / speeds.float32 >= gain:
            return Choice(precision, f"{said[-1]}; {_path(precision, info)}")
    return Choice(Precision.FLOAT32, "; ".join([*said, _path(Precision.BF16, info)]))


def _compared(precision: Precision, speeds: "Speeds") -> str:
    rate = speeds.of(precision) or 0.0
    return (
        f"{precision.value} is {rate / speeds.float32:.2f} times as fast as float32 here "
        f"({rate:,.0f} to {speeds.float32:,.0f} GFLOP/s on one core)"
    )


def _faster(asked: Precision, speeds: "Speeds") -> Precision:
    """Return the fastest that is at least as exact as what was asked."""
    exact_enough = {
        Precision.BF16: (Precision.BF16X3, Precision.FLOAT32),
        Precision.FP16: (Precision.BF16X3, Precision.FLOAT32),
        Precision.BF16X3: (Precision.FLOAT32,),
    }
    return max(exact_enough[asked], key=lambda precision: (speeds.of(precision) or 0.0, precision is Precision.FLOAT32))


def _path(precision: Precision, info: "LowPrecisionInfo") -> str:
    if precision is Precision.FP16:
        how = "an instruction" if info.fp16_conversion else "integer arithmetic, as the processor has no F16C"
        return f"float16 is converted by {how}, and multiplied as float32"
    return info.reason


def product_words(config: Config) -> str:
    """Return what multiplies matrices in a run of a resolved configuration."""
    from threadloom.kernels import GemmBackend, blas_info
    from threadloom.kernels.simd import DotPath, low_precision_info

    dots = {DotPath.AMX: "AMX tiles", DotPath.AVX512: "AVX-512 BF16"}
    dot = dots.get(low_precision_info().path, "bfloat16 widened to float32")
    if config.precision is Precision.BF16:
        return dot
    if config.precision is Precision.BF16X3:
        return f"three of bfloat16: {dot}"
    blas = blas_info(load=False)
    return f"{blas.name} {blas.version}" if blas.backend is GemmBackend.BLAS else "Numba's kernel"


def _worth(asked: Precision) -> str:
    """What speaks for a precision that is slower."""
    if asked is Precision.BF16X3:
        return ""
    return f"; {asked.value} still takes half of the memory for what flows between layers"


def slow_allowed() -> bool:
    """Return whether the environment accepts a precision that is far slower than float32."""
    return os.environ.get(ALLOW_SLOW, "").strip().lower() not in ("", "0", "no", "false")


def speed_matters() -> bool:
    """Return whether the kernels are compiled."""
    from threadloom.kernels.compiling import JIT_ENABLED

    return JIT_ENABLED


def choose_here(config: Config, allow_slow: bool = False) -> Choice:
    """Return what a configuration computes in on this machine, measuring only where that matters.

    Plain float32 needs no figures. With the compiler off (``NUMBA_DISABLE_JIT``) speed is of no interest. `allow_slow`:
    as in `choose`; the environment may say it, too.
    """
    from threadloom.kernels.simd import DotPath, low_precision_info

    info = low_precision_info()
    if config.precision is Precision.FLOAT32 and not is_open(config):
        if info.path is DotPath.FLOAT32:
            return Choice(Precision.FLOAT32, "as asked")
        return Choice(Precision.FLOAT32, f"as asked; precision=auto may be faster: {info.reason}")
    if not speed_matters():
        return choose(config.precision, config.float32_matmul_precision, None, info)
    from threadloom.stages.speeds import speeds_here

    return choose(config.precision, config.float32_matmul_precision, speeds_here(), info, allow_slow or slow_allowed())


def choose_and_warn(config: Config) -> Choice:
    """Return what a configuration computes in here, for what only measures it: slow ones are warned of in the log."""
    choice = choose_here(config, allow_slow=True)
    if choice.warning:
        logger.warning("{}", choice.warning)
    return choice


def with_precision(config: Config, precision: Precision) -> Config:
    """Return the configuration with its precision settled, so that no later measurement can change it.

    Where float32 is the answer, `matmul` has been answered with it; a bf16x3 keeps the permission that it came from.
    """
    matmul = MatmulPrecision.HIGHEST if precision is Precision.FLOAT32 else config.float32_matmul_precision
    return msgspec.structs.replace(config, precision=precision, float32_matmul_precision=matmul)
