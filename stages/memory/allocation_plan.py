"""The memory of a run, computed from its configuration alone: the plan that `Training` then allocates to the byte."""

from dataclasses import dataclass
from math import prod

from threadloom.pipeline import arena_size
from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.memory.float32 import activation_shapes, logits_rows, scratch_shapes
from threadloom.stages.models import Geometry, Shape, input_gradient_bytes, parameter_shapes

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Sizes:
    """Bytes of what depends on the precision."""

    forms: int  # of one bank, beside its master
    slot: int
    scratch: int  # of one thread of backward
    logits: int  # of an evaluation


def memory_plan(config: ResolvedConfig, *, evaluates: bool = True, saves: bool = True) -> dict[str, int]:
    """Return the bytes of each part that a run of a resolved configuration allocates before its first step."""
    geometry, sequences = config.model.geometry(), config.micro_batch
    weights = arena_size(parameter_shapes(geometry)) * FLOAT
    short = config.precision in (Precision.BF16, Precision.FP16)
    sizes = _low_sizes(geometry, sequences, config.precision) if short else _float32_sizes(geometry, sequences)
    slot = sizes.slot + 2 * sequences * geometry.context * FLOAT  # token ids and targets
    return {
        "weight banks": (weights + sizes.forms) * (config.delay + 1 + config.extra_banks),
        "optimizer moments": 2 * weights,
        "gradient lanes": weights * config.lanes,
        "gradient": weights if config.delay else 0,
        "slots": slot * config.slots,
        "backward scratch": sizes.scratch * config.max_concurrent_backward,
        "input gradients": input_gradient_bytes(geometry, config.sequences) if config.shared_lanes else 0,
        "evaluation": slot + sizes.logits if evaluates else 0,
        "checkpoint copies": weights * (2 + config.delay) if saves and config.checkpoint.copies else 0,
    }


def _float32_sizes(geometry: Geometry, sequences: int) -> Sizes:
    logits = logits_rows(geometry.vocabulary, sequences * geometry.context) * geometry.vocabulary * FLOAT
    slot, scratch = activation_shapes(geometry, sequences), scratch_shapes(geometry, sequences)
    return Sizes(0, _bytes(slot), _bytes(scratch), logits)


def _low_sizes(geometry: Geometry, sequences: int, precision: Precision) -> Sizes:
    from threadloom.stages.memory import bits16 as low  # loaded only for runs in 16 bits, kernels and all

    half = precision is Precision.FP16
    short = low.short_type(precision)
    work = low.array_bytes(low.attention_kinds(geometry, short))
    work += low.array_bytes(low.wide_kinds(geometry, sequences)) if half else 0
    logits = low.low_logits_rows(geometry.vocabulary, sequences * geometry.context) * geometry.vocabulary * FLOAT
    return Sizes(
        low.array_bytes(low.half_kinds(geometry) if half else low.packed_kinds(geometry)),
        low.array_bytes(low.low_activation_kinds(geometry, sequences, short)) + work,
        low.array_bytes(low.low_scratch_kinds(geometry, sequences, short)) + work,
        logits,
    )


def _bytes(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values()) * FLOAT


def format_lanes(config: ResolvedConfig) -> str:
    """Return how many lanes a resolved configuration has, in words."""
    lanes = f"{config.lanes} lane{'s' if config.lanes != 1 else ''}"
    return f"{lanes} for {config.threads.backward} threads" if config.shared_lanes else lanes


def format_memory_plan(plan: dict[str, int]) -> str:
    """Return the plan as lines of text, largest part first, the sum last."""
    parts = sorted(((size, name) for name, size in plan.items() if size), reverse=True)
    lines = [f"  {name:<20}{size / 1e6:>10,.1f} MB" for size, name in parts]
    return "\n".join([*lines, f"  {'in all':<20}{sum(plan.values()) / 1e6:>10,.1f} MB"])
