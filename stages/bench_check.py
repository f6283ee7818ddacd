"""Correctness before any time is taken: what `threadloom bench` checks, in a second.

The pipeline, the stages one after another, and the replay in one thread must end in the same bits; and the kernels must
agree with an independent model in float64 NumPy: its loss directly, the gradient of every tensor by a central
difference of that loss along a random direction.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kernels
from stages.bench_sequential import stage_by_stage
from stages.config import Config, ModelConfig, apply_overrides, resolve
from stages.data import random_batches
from stages.items import Update
from stages.memory import Bank, FloatSlot, allocate_scratch
from stages.numerics import numerics
from stages.parameters import Geometry, initialise
from stages.replay import replay
from stages.training import Training

ODD = Config(
    name="odd", model=ModelConfig(vocab_size=131, context=37, layers=2, heads=3, channels=27),
    batch_size=6, micro_batch=1, lanes=2, steps=4,
)  # fmt: skip
"""Sizes that no vector length divides."""
LOSS_TOLERANCE = 2e-6
"""Relative; float32 against float64."""
GRADIENT_TOLERANCE = 1e-3
"""Of the gradient's length, for its product with a direction of unit normal entries, which is about that length."""
STEP = 1e-4
"""Of the central difference; its own error is of the order of the square, and far below float32's."""

Doubles = NDArray[np.float64]


class BenchCheckFailed(RuntimeError):
    """What is to be measured computes something else than it should."""


def check_schedules(cores: int) -> str:
    """Run a small model of odd sizes all three ways at each delay, compare bit for bit, and say what was equal."""
    for delay in (0, 1, 2):
        config = resolve(apply_overrides(ODD, [f"delay={delay}"]), cores)
        with numerics(config):
            ends = {"the replay in one thread": _end(config, "replay", cores)}
            ends["the pipeline"] = _end(config, "pipeline", cores)
            ends["stage by stage"] = _end(config, "stages", cores)
        wanted = ends["the replay in one thread"]
        for name, end in ends.items():
            if end != wanted:
                raise BenchCheckFailed(
                    f"{name} at delay {delay} does not end in the bits of the replay: a fault of threadloom or of the "
                    "machine; run the tests"
                )
    return f"pipeline and stage by stage equal the replay bit for bit at τ = 0, 1, 2 ({ODD.steps} updates, odd sizes)"


def _end(config: Config, way: str, cores: int) -> tuple[bytes, bytes, bytes, tuple[float, ...]]:
    training = Training(config, random_batches(config))
    losses: list[float] = []
    if way == "pipeline":
        with training.graph().start(resources=training.resources) as run:
            losses += [event.loss for event in run if isinstance(event, Update)]
    else:
        events = replay(training) if way == "replay" else stage_by_stage(training, cores)
        losses += [event.loss for event in events if isinstance(event, Update)]
    with training.banks.lease_newest() as lease:
        weights = lease.bank.arena.flat.tobytes()
    return weights, training.moments.m.flat.tobytes(), training.moments.v.flat.tobytes(), tuple(losses)


def check_kernels(config: Config, *, every_tensor: bool) -> str:
    """Compare loss and gradient of one micro-batch with float64, tensor by tensor or all tensors in one direction."""
    geometry, sequences = config.model.geometry(), config.micro_batch or 1
    random = np.random.default_rng(11)
    bank, slot, gradients = Bank(geometry), FloatSlot.allocate(geometry, sequences), Bank(geometry)
    initialise(bank.arena, geometry, config.seed)
    bank.arena.flat[:] += random.standard_normal(bank.arena.flat.shape, dtype=np.float32) * np.float32(0.01)
    slot.ids[:] = random.integers(0, geometry.vocabulary, slot.ids.shape)
    slot.targets[:] = random.integers(0, geometry.vocabulary, slot.targets.shape)
    with numerics(config):
        loss = _loss_and_gradient(geometry, sequences, bank, slot, gradients)
    weights = {name: array.astype(np.float64) for name, array in bank.arena.items()}
    reference = reference_loss(weights, geometry, slot.ids, slot.targets)
    error = abs(loss - reference) / abs(reference)
    if not error <= LOSS_TOLERANCE:
        raise BenchCheckFailed(f"{config.name}: the kernels' loss is {loss!r}, float64 says {reference!r}")
    names = list(weights)
    worst = 0.0
    for chosen in [[name] for name in names] if every_tensor else [names]:
        directions = {name: random.standard_normal(weights[name].shape) for name in chosen}
        expected = _slope(weights, directions, geometry, slot)
        found = sum(float(np.vdot(gradients.arena[name].astype(np.float64), directions[name])) for name in chosen)
        length = float(np.sqrt(sum(np.sum(gradients.arena[name].astype(np.float64) ** 2) for name in chosen)))
        off = abs(found - expected) / length if length > 0 else float("inf")
        worst = max(worst, off)
        if not off <= GRADIENT_TOLERANCE:
            raise BenchCheckFailed(
                f"{config.name}: the kernels' gradient of {', '.join(chosen)} gives {found!r} along a direction in "
                f"which float64 rises by {expected!r}"
            )
    return f"loss within {error:.0e} of float64, gradient within {worst:.0e} of its length"


def _loss_and_gradient(geometry: Geometry, sequences: int, bank: Bank, slot: FloatSlot, gradients: Bank) -> float:
    """Return the mean loss of a micro-batch, and leave its gradient in `gradients`."""
    scratch, acts, rows = allocate_scratch(geometry, sequences), slot.activations, slot.ids.size
    w, g = bank.weights, gradients.weights
    kernels.embedding_forward(w.wte, w.wpe, slot.ids, geometry.context, acts.x[0])
    kernels.blocks_forward(w, acts, sequences, geometry.heads)
    loss = kernels.head_backward(w, acts.x[-1], slot.targets, 1.0 / rows, g, scratch, False)
    kernels.blocks_backward(w, acts, g, scratch, sequences, geometry.heads, False)
    kernels.embedding_backward(slot.ids, scratch.dx, geometry.context, g.wte, g.wpe, False)
    return float(loss) / rows


def _slope(
    weights: Mapping[str, Doubles], directions: Mapping[str, Doubles], geometry: Geometry, slot: FloatSlot
) -> float:
    """The rise of the float64 loss along a direction, by a central difference."""
    ends = []
    for sign in (STEP, -STEP):
        moved = {name: array + sign * directions[name] if name in directions else array
                 for name, array in weights.items()}  # fmt: skip
        ends.append(reference_loss(moved, geometry, slot.ids, slot.targets))
    return (ends[0] - ends[1]) / (2 * STEP)


def reference_loss(weights: Mapping[str, Doubles], geometry: Geometry, ids: Any, targets: Any) -> float:
    """Return GPT-2's mean cross-entropy in float64, written for being right: no kernel has a part in it."""
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
