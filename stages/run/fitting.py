"""The rule by which a run fits into memory: the same for `train`, which refuses one that does not, and `--estimate`.

The process itself, with its libraries and kernels, is loaded when the available memory is read, so it does not count.
"""

from collections.abc import Iterator

from threadloom.stages.config import Config, ConfigError, ResolvedConfig
from threadloom.stages.memory import memory_plan
from threadloom.stages.models import parameter_count
from threadloom.stages.resolve import apply_overrides, resolve
from threadloom.stages.training import compute_for

PICTURES = 45_000_000
"""Bytes that Matplotlib and the pictures add at the end of a run; measured, and checked by a test."""

CHEAPER = (
    "checkpoint.copies=false",
    "recompute=true",
    "delay=0",
    "lanes=1",
    "threads.forward=1",
    "threads.backward=1",
    "micro_batch=1",
)
"""Settings that take less memory for the same model, in the order in which they are suggested."""

SHORTEST_CONTEXT = 128
"""Tokens of the shortest context that is suggested for a model that the run starts from, at least half of it."""


def planned_memory(config: ResolvedConfig, preparation: int = 0) -> dict[str, int]:
    """Return the bytes that a run adds to the process, by part.

    `preparation` is the number of bytes that the preparation of the text takes. They are released before the training,
    so only the part that exceeds the memory of the training is added.
    """
    compute = compute_for(
        config.precision,
        config.geometry(),
        config.micro_batch,
        recompute=config.recompute,
        borders=config.bordered,
    )
    memory = compute.memory
    plan = {**memory_plan(config, memory), "pictures, at the end": PICTURES if config.pictures else 0}
    return {**plan, "text preparation": max(0, preparation - sum(plan.values()))}


def require_memory(config: Config, resolved: ResolvedConfig, cores: int, available: int | None) -> None:
    """Raise ConfigError, with the settings that would fit, unless a run fits into `available` bytes (None: unknown).

    `config` is the configuration that was resolved, from which smaller ones are derived.
    """
    needed = sum(planned_memory(resolved).values())
    if available is None or needed <= available:
        return
    raise ConfigError(
        resolved.name,
        expected=f"a run that fits into the {available / 1e6:,.0f} MB of memory that are available",
        got=f"one that needs {needed / 1e6:,.0f} MB for {parameter_count(resolved.geometry()):,} parameters",
        cause="the system would stop it without a message",
        hint=f"{remedy(config, resolved, cores, available)}; --estimate prints the plan, and --force starts it anyway",
    )


def remedy(config: Config, resolved: ResolvedConfig, cores: int, available: int) -> str:
    """Return which settings would fit."""
    for overrides in _smaller(resolved):
        try:
            candidate = resolve(apply_overrides(config, overrides), cores, _vocabulary(config, resolved))
        except ConfigError:  # a combination that is not allowed
            continue
        needed = sum(planned_memory(candidate).values())
        if needed <= available:
            return f"{' '.join(f'--set {setting}' for setting in overrides)} needs {needed / 1e6:,.0f} MB"
    return "choose a smaller model or a machine with more memory"


def _vocabulary(config: Config, resolved: ResolvedConfig) -> int | None:
    return resolved.model.vocab_size if config.model.vocab_size is None else None


def _smaller(resolved: ResolvedConfig) -> Iterator[tuple[str, ...]]:
    """Yield settings that take less and less memory: first with the same model, then with fewer layers and channels.

    The sizes of a model that the run starts from cannot change, except the context.
    """
    for count in range(1, len(CHEAPER) + 1):
        yield CHEAPER[:count]
    if resolved.init:
        yield from _shorter(resolved.model.context)
        return
    layers, channels, heads = resolved.model.layers, resolved.model.channels, resolved.model.heads
    while layers > 1:
        layers //= 2
        yield (f"model.layers={layers}",)
    while channels // 2 >= heads and (channels // 2) % heads == 0:
        channels //= 2
        yield ("model.layers=1", f"model.channels={channels}")


def _shorter(context: int) -> Iterator[tuple[str, ...]]:
    while context > SHORTEST_CONTEXT:
        context //= 2
        yield (f"model.context={context}",)
    yield (*CHEAPER, f"model.context={context}")
