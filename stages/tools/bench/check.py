"""The correctness checks of `threadloom bench`, made before anything is timed: about a second per precision.

The pipeline, the stages one after another, and the replay in one thread must give the same bits. The kernels must agree
with an independent model in float64 NumPy: the loss directly, the gradient of every tensor by a central difference of
that loss along a random direction.

The tolerance of a gradient: along a direction with independent standard normal entries, an error vector e contributes a
normal variable of standard deviation ``|e|``, and the gradient g one of ``|g|``. In 16 bits each tensor between two
kernels is rounded once, and each rounding independently changes a gradient by at most about the root-mean-square
rounding error of the format. After n roundings ``|e| / |g|`` is at most that error times sqrt(n). It is multiplied by
the number of standard deviations that the worst of some dozens of directions may have. (Roundings in a block change
only its contribution to the residual stream, so that the errors of small models are a quarter of this.)
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.stages.config import (
    Config,
    Gpt2Config,
    LlamaConfig,
    ModelArchitecture,
    ModelConfig,
    Precision,
    ResolvedConfig,
    RotaryConfig,
)
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Bank, LossScaler, MicroBatchSlot, Update
from threadloom.stages.models import Geometry, adapted_modules, field_names, initialise
from threadloom.stages.resolve import apply_overrides, gemm_settings, resolve
from threadloom.stages.step import Compute, backward_with_embeddings
from threadloom.stages.tools.bench.references import Doubles, reference_loss
from threadloom.stages.training import ExecutionMode, Training, compute_for, replay, stage_by_stage

_ODD: Mapping[ModelArchitecture, ModelConfig] = {
    ModelArchitecture.GPT2: Gpt2Config(vocab_size=131, context=37, layers=2, heads=3, channels=27),
    ModelArchitecture.LLAMA: LlamaConfig(
        vocab_size=131, context=37, layers=2, heads=6, kv_heads=2, head_size=10, channels=27, mlp_width=43,
        rotary=RotaryConfig(dimensions=6), layers_without_rotary=(1,), qkv_bias=True, attn_proj_bias=True,
        mlp_bias=True, qk_norm=True,
    ),
}  # fmt: skip
ODD = Config(name="odd", model=_ODD[ModelArchitecture.GPT2], batch_size=6, micro_batch=1, lanes=2, steps=4)
"""A small model whose sizes are no multiples of a vector length."""
LOSS_TOLERANCE = {Precision.FLOAT32: 2e-6, Precision.BF16X3: 2e-5, Precision.BF16: 1e-3, Precision.FP16: 1e-3}
"""Relative tolerance of the loss, compared with float64."""
GRADIENT_TOLERANCE = 1e-3
"""Tolerance in float32 and bf16x3 of the gradient's product with a direction, relative to the gradient's length."""
ROUNDING = {Precision.BF16: 2.0**-8 / 2.4, Precision.FP16: 2.0**-11 / 2.4}
"""Root mean square of the relative rounding error: uniform within half a unit in the last place, values log-uniform."""
LAYER_ROUNDINGS, OTHER_ROUNDINGS = 26, 6
"""Roundings of a gradient's terms in one layer (forward: four weights, two LayerNorms twice, qkv, probabilities, output
of attention, fc, GELU; backward about as many), and outside the layers."""
DEVIATIONS = 4
STEP = 1e-4
"""Step of the central difference. Its truncation error is O(step^2), far below the error of float32."""


class BenchCheckFailed(RuntimeError):
    """A check failed: the code to be measured computes wrong results."""


def check_schedules(
    cores: int,
    precision: Precision = Precision.FLOAT32,
    architecture: ModelArchitecture = ModelArchitecture.GPT2,
) -> str:
    """Compare all execution modes of a small model bit for bit; return a summary or raise BenchCheckFailed."""
    for delay in (0, 1, 2):
        config = odd(cores, precision, delay, architecture)
        with gemm_settings(config):
            results = {mode: _train(config, mode, cores) for mode in ExecutionMode}
        for mode, result in results.items():
            if result != results[ExecutionMode.REPLAY]:
                raise BenchCheckFailed(
                    f"{mode.value} at delay {delay} in {precision.value} gives other bits than the replay in one "
                    "thread: a fault of threadloom or of the machine; run the tests"
                )
    return f"pipeline and stage by stage equal the replay bit for bit at τ = 0, 1, 2 ({ODD.steps} updates, odd sizes)"


def odd(
    cores: int,
    precision: Precision,
    delay: int = 0,
    architecture: ModelArchitecture = ModelArchitecture.GPT2,
) -> ResolvedConfig:
    """Return the configuration of the small model of an architecture."""
    config = msgspec.structs.replace(ODD, model=_ODD[architecture])
    return resolve(apply_overrides(config, [f"delay={delay}", f"precision={precision.value}"]), cores)


def _train(config: ResolvedConfig, mode: ExecutionMode, cores: int) -> tuple[bytes, bytes, bytes, tuple[float, ...]]:
    """Train in an execution mode and return weights, both moments and losses."""
    training = Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    losses: list[float] = []
    if mode is ExecutionMode.PIPELINE:
        with training.graph().start(resources=training.resources) as run:
            losses += [event.loss for event in run if isinstance(event, Update) and event.loss is not None]
    else:
        events = replay(training) if mode is ExecutionMode.REPLAY else stage_by_stage(training, cores)
        losses += [event.loss for event in events if isinstance(event, Update) and event.loss is not None]
    with training.banks.lease_newest() as lease:
        weights = lease.bank.arena.flat.tobytes()
    return (
        weights,
        training.optimizer.state["m"].flat.tobytes(),
        training.optimizer.state["v"].flat.tobytes(),
        tuple(losses),
    )


def check_kernels(config: ResolvedConfig, *, every_tensor: bool) -> str:
    """Compare loss and gradient of one micro-batch with float64, per tensor or along one direction of all tensors.

    Return a summary; raise BenchCheckFailed.
    """
    geometry, precision, random = _without_dropout(config.geometry()), config.precision, np.random.default_rng(11)
    compute = compute_for(precision, geometry, config.micro_batch)
    bank, gradients = Bank(geometry, compute.memory.allocate_packed()), Bank(geometry)
    slot = compute.memory.allocate_slot()
    initialise(bank.arena, geometry, config.seed)
    bank.arena.flat[:] += random.standard_normal(bank.arena.flat.shape, dtype=np.float32) * np.float32(0.01)
    _clear_outside_blocks(bank.arena, geometry)
    slot.ids[:] = random.integers(0, geometry.vocabulary, slot.ids.shape)
    slot.targets[:] = random.integers(0, geometry.vocabulary, slot.targets.shape)
    scale = LossScaler(config.loss_scale).start(0).scale
    with gemm_settings(config):
        loss = _loss_and_gradient(compute, geometry, bank, slot, gradients, scale)
    weights = {name: array.astype(np.float64) for name, array in bank.arena.items()}
    said = f"{config.name} in {precision.value}: the kernels'"
    reference = reference_loss(weights, geometry, slot.ids, slot.targets)
    error = abs(loss - reference) / (abs(reference) or 1.0)  # a vocabulary of one token has a loss of 0
    if not error <= LOSS_TOLERANCE[precision]:
        raise BenchCheckFailed(f"{said} loss is {loss!r}; in float64 it is {reference!r}")
    names = list(weights)
    worst, tolerance = 0.0, gradient_tolerance(precision, geometry.layers)
    for chosen in [[name] for name in names] if every_tensor else [names]:
        directions = {name: random.standard_normal(weights[name].shape) for name in chosen}
        expected = _slope(weights, directions, geometry, slot)
        found = sum(float(np.vdot(gradients.arena[name].astype(np.float64), directions[name])) for name in chosen)
        length = float(np.sqrt(sum(np.sum(gradients.arena[name].astype(np.float64) ** 2) for name in chosen)))
        off = abs(found - expected)
        if length > 0:
            off /= length
        elif off > 0:  # a gradient of zero is right only if the loss does not change
            off = math.inf
        worst = max(worst, off)
        if not off <= tolerance:
            raise BenchCheckFailed(
                f"{said} gradient of {', '.join(chosen)} is {found!r} along a direction in which the loss in float64 "
                f"rises by {expected!r}"
            )
    return f"loss within {error:.0e} of float64, gradient within {worst:.0e} of its length"


def _without_dropout(geometry: Geometry) -> Geometry:
    """Return the geometry with adapters that the reference computes too."""
    return replace(geometry, lora=replace(geometry.lora, dropout=0.0)) if geometry.lora else geometry


def _clear_outside_blocks(weights: Mapping[str, Floats], geometry: Geometry) -> None:
    """Set the elements of adapters to zero that have no effect in PEFT's layout, and that no training changes."""
    inside = dict[str, NDArray[np.bool_]]()
    for module in adapted_modules(geometry):
        name, first = field_names(module.tensor)[1], module.first_row
        assert geometry.lora is not None
        block = inside.setdefault(name, np.zeros(weights[name].shape, np.bool_))
        block[:, first : first + geometry.lora.rank, slice(*module.columns)] = True
    for name, block in inside.items():
        weights[name][~block] = 0.0


def gradient_tolerance(precision: Precision, layers: int) -> float:
    """Return the tolerance of a gradient along a direction, relative to its length (see the module docstring)."""
    if precision not in ROUNDING:
        return GRADIENT_TOLERANCE
    return DEVIATIONS * ROUNDING[precision] * math.sqrt(LAYER_ROUNDINGS * layers + OTHER_ROUNDINGS)


def _loss_and_gradient(
    compute: Compute, geometry: Geometry, bank: Bank, slot: MicroBatchSlot, gradients: Bank, scale: float
) -> float:
    """Return the mean loss of a micro-batch, and write its gradient to `gradients`; `scale` is the loss scale."""
    rows = slot.ids.size
    compute.pack_from_master(bank)
    compute.embed(bank, slot)
    compute.forward(bank, slot)
    loss = backward_with_embeddings(
        compute, geometry, bank, slot, scale / rows, gradients.weights, compute.memory.allocate_scratch()
    )
    gradients.arena.flat[:] /= np.float32(scale)
    return loss / rows


def _slope(
    weights: Mapping[str, Doubles], directions: Mapping[str, Doubles], geometry: Geometry, slot: MicroBatchSlot
) -> float:
    """Return the slope of the float64 loss along a direction, by a central difference."""
    ends = []
    for sign in (STEP, -STEP):
        moved = {name: array + sign * directions[name] if name in directions else array
                 for name, array in weights.items()}  # fmt: skip
        ends.append(reference_loss(moved, geometry, slot.ids, slot.targets))
    return (ends[0] - ends[1]) / (2 * STEP)
