"""The memory of a run, computed from its configuration alone. `Training` checks its allocations against it."""

from threadloom.pipeline import arena_size
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory.bank import packed_only
from threadloom.stages.memory.precision_memory import PrecisionMemory, starts_bytes
from threadloom.stages.memory.rotation import bases_bytes, rotation_bytes
from threadloom.stages.memory.team import teams_bytes
from threadloom.stages.models import input_gradient_bytes, parameter_shapes, trained_shapes

FLOAT = 4
"""Bytes of a float32."""


def memory_plan(
    config: ResolvedConfig,
    memory: PrecisionMemory,
    *,
    evaluates: bool = True,
    saves: bool = True,
) -> dict[str, int]:
    """Return the bytes of each part that a run allocates before its first step.

    `memory` is that of the run's precision. The keys are in
    the order in which `Training` lists its allocations.
    """
    geometry, frozen = config.geometry(), config.frozen_tensors()
    trained = parameter_shapes(geometry, frozen)
    weights = arena_size(trained) * FLOAT
    state = arena_size(trained_shapes(geometry, frozen)) * FLOAT  # of the tensors that the optimizer updates
    without_master = packed_only(geometry, frozen, memory)
    constant = arena_size(parameter_shapes(geometry, trained.keys() | without_master)) * FLOAT
    logits_rows, vocabulary = memory.logits_shape
    bank = weights + memory.packed_bytes(trained.keys())
    forecasts = config.delay_correction.forecasts
    averages = config.optimizer.ema > 0
    arenas = 2 + forecasts + averages  # both moments, the weights if the banks hold forecasts, their average
    evaluation = memory.evaluation_slot_bytes + logits_rows * vocabulary * FLOAT + bank * (forecasts + averages)
    copies = state * (arenas + config.delay) + bases_bytes(config)
    return {
        "weight banks": bank * (config.delay + 1 + config.extra_banks),
        "frozen weights": constant + memory.packed_bytes(frozen),
        "optimizer state": arenas * state + bases_bytes(config),
        "rotated updates": rotation_bytes(config),
        "gradient lanes": weights * config.lanes,
        "gradient": weights if config.delay else 0,
        "slots": memory.slot_bytes * config.slots,
        "backward scratch": memory.scratch_bytes * config.max_concurrent_backward,
        "input gradients": _deferred_bytes(config) if config.shared_lanes else 0,
        "teams": teams_bytes(config, memory),
        "evaluation": evaluation if evaluates else 0,
        "checkpoint copies": copies if saves and config.checkpoint.copies else 0,
    }


def _deferred_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of the input gradients of a batch, with ids and borders."""
    geometry, sequences = config.geometry(), config.sequences
    borders = starts_bytes(sequences * geometry.context, borders=config.bordered)
    return input_gradient_bytes(geometry, sequences) + borders


def check_allocation(plan: dict[str, int], allocated: list[int]) -> None:
    """Raise `AssertionError` unless the bytes of each part, in the plan's order, are those that were planned."""
    for (part, planned), found in zip(plan.items(), allocated, strict=True):
        assert found == planned, f"{part}: planned {planned:,} bytes, allocated {found:,}"


def format_lanes(config: ResolvedConfig) -> str:
    """Return the number of lanes as text, with the threads that share them, if any."""
    lanes = f"{config.lanes} lane{'s' if config.lanes != 1 else ''}"
    return f"{lanes} for {config.threads.backward} threads" if config.shared_lanes else lanes


def format_memory_plan(plan: dict[str, int]) -> str:
    """Return the plan as lines of text, the largest part first, the total last."""
    parts = sorted(((size, name) for name, size in plan.items() if size), reverse=True)
    lines = [f"  {name:<20}{size / 1e6:>10,.1f} MB" for size, name in parts]
    return "\n".join([*lines, f"  {'total':<20}{sum(plan.values()) / 1e6:>10,.1f} MB"])
