"""The memory of a run, computed from its configuration alone: the plan that `Training` then allocates to the byte."""

from math import prod

from pipeline import arena_size
from stages.config import Config
from stages.memory import activation_shapes, logits_rows, scratch_shapes
from stages.parameters import Shape, parameter_shapes

FLOAT = 4  # bytes


def memory_plan(config: Config, *, evaluates: bool = True, saves: bool = True) -> dict[str, int]:
    """Return the bytes of each part that a run of a resolved configuration allocates before its first step."""
    geometry, sequences = config.model.geometry(), config.micro_batch or 1
    lanes, rows = config.lanes or 1, sequences * geometry.context
    weights = arena_size(parameter_shapes(geometry)) * FLOAT
    slot = _bytes(activation_shapes(geometry, sequences)) + 2 * rows * FLOAT
    logits = logits_rows(geometry.vocabulary, rows) * geometry.vocabulary * FLOAT
    return {
        "weight banks": weights * (config.delay + 1 + (config.spare_banks or 0)),
        "optimizer moments": 2 * weights,
        "gradient lanes": weights * lanes,
        "gradient": weights if config.delay else 0,
        "slots": slot * (config.slots or 1),
        "backward scratch": _bytes(scratch_shapes(geometry, sequences)) * lanes,
        "evaluation": slot + logits if evaluates else 0,
        "checkpoint copies": weights * (2 + config.delay) if saves and config.checkpoint.copies else 0,
    }


def _bytes(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values()) * FLOAT


def plan_table(plan: dict[str, int]) -> str:
    """Return the plan as lines of text, largest part first, the sum last."""
    parts = sorted(((size, name) for name, size in plan.items() if size), reverse=True)
    lines = [f"  {name:<20}{size / 1e6:>10,.1f} MB" for size, name in parts]
    return "\n".join([*lines, f"  {'in all':<20}{sum(plan.values()) / 1e6:>10,.1f} MB"])
