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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import Config, Gpt2Config, Precision, ResolvedConfig
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Bank, LossScaler, MicroBatchSlot, Update
from threadloom.stages.models import Geometry, initialise
from threadloom.stages.resolve import apply_overrides, gemm_settings, resolve
from threadloom.stages.step import Compute, backward_with_embeddings
from threadloom.stages.training import ExecutionMode, Training, compute_for, replay, stage_by_stage

ODD = Config(
    name="odd", model=Gpt2Config(vocab_size=131, context=37, layers=2, heads=3, channels=27),
    batch_size=6, micro_batch=1, lanes=2, steps=4,
)  # fmt: skip
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

Doubles = NDArray[np.float64]


class BenchCheckFailed(RuntimeError):
    """A check failed: the code to be measured computes wrong results."""


def check_schedules(cores: int, precision: Precision = Precision.FLOAT32) -> str:
    """Compare all execution modes of a small model bit for bit; return a summary or raise BenchCheckFailed."""
    for delay in (0, 1, 2):
        config = odd(cores, precision, delay)
        with gemm_settings(config):
            results = {mode: _train(config, mode, cores) for mode in ExecutionMode}
        for mode, result in results.items():
            if result != results[ExecutionMode.REPLAY]:
                raise BenchCheckFailed(
                    f"{mode.value} at delay {delay} in {precision.value} gives other bits than the replay in one "
                    "thread: a fault of threadloom or of the machine; run the tests"
                )
    return f"pipeline and stage by stage equal the replay bit for bit at τ = 0, 1, 2 ({ODD.steps} updates, odd sizes)"


def odd(cores: int, precision: Precision, delay: int = 0) -> ResolvedConfig:
    """Return the configuration of the small model."""
    return resolve(apply_overrides(ODD, [f"delay={delay}", f"precision={precision.value}"]), cores)


def _train(config: ResolvedConfig, mode: ExecutionMode, cores: int) -> tuple[bytes, bytes, bytes, tuple[float, ...]]:
    """Train in an execution mode and return weights, both moments and losses."""
    training = Training(config, RandomTokens(config.model.geometry(), config.batch_sizes, config.seed))
    losses: list[float] = []
    if mode is ExecutionMode.PIPELINE:
        with training.graph().start(resources=training.resources) as run:
            losses += [event.loss for event in run if isinstance(event, Update)]
    else:
        events = replay(training) if mode is ExecutionMode.REPLAY else stage_by_stage(training, cores)
        losses += [event.loss for event in events if isinstance(event, Update)]
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
    geometry, precision, random = config.model.geometry(), config.precision, np.random.default_rng(11)
    compute = compute_for(precision, geometry, config.micro_batch)
    bank, gradients = Bank(geometry, compute.memory.allocate_packed()), Bank(geometry)
    slot = compute.memory.allocate_slot()
    initialise(bank.arena, geometry, config.seed)
    bank.arena.flat[:] += random.standard_normal(bank.arena.flat.shape, dtype=np.float32) * np.float32(0.01)
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


def reference_loss(weights: Mapping[str, Doubles], geometry: Geometry, ids: Any, targets: Any) -> float:
    """Return GPT-2's mean cross-entropy in float64, in plain NumPy that uses no kernel."""
    w, t, heads = weights, geometry.context, geometry.heads
    sequences, size = ids.size // t, geometry.channels // heads
    x = w["wte"][ids].reshape(sequences, t, -1) + w["wpe"][:t]
    hidden = np.triu(np.ones((t, t), bool), 1)
    for n in range(geometry.layers):
        qkv = _norm(x, w["ln1_weight"][n], w["ln1_bias"][n]) @ w["qkv_weight"][n] + w["qkv_bias"][n]
        q, k, v = (part.reshape(sequences, t, heads, size).swapaxes(1, 2) for part in np.split(qkv, 3, axis=-1))
        scores = np.where(hidden, -np.inf, q @ k.swapaxes(2, 3) / np.sqrt(size))
        attn = (_softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + attn @ w["attn_proj_weight"][n] + w["attn_proj_bias"][n]
        u = _norm(x, w["ln2_weight"][n], w["ln2_bias"][n]) @ w["fc_weight"][n] + w["fc_bias"][n]
        gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + gelu @ w["mlp_proj_weight"][n] + w["mlp_proj_bias"][n]
    logits = (_norm(x, w["lnf_weight"], w["lnf_bias"]) @ w["wte"].T).reshape(ids.size, -1)
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[np.arange(ids.size), targets]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - picked))


def _norm(x: Doubles, weight: Doubles, bias: Doubles) -> Doubles:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed: Doubles = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias
    return normed


def _softmax(scores: Doubles) -> Doubles:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Doubles = e / e.sum(axis=-1, keepdims=True)
    return shares
