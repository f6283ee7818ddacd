"""Whole updates of the threaded training, compared with the float64 reference with the declared staleness."""

from dataclasses import dataclass

import numpy as np
import pytest

from tests import reference
from tests.reference import AdamW, Ids, Tensors
from tests.stages.support import build, run_threads, tiny
from threadloom.pipeline import Arena
from threadloom.stages.config import Config
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

LR = 2e-2
EPSILON = 1e-4
"""Larger than the usual 1e-8: the gradient of the keys' bias is exactly 0, and its rounding error must not become a
whole step. The kernel's tests cover the usual epsilon."""

SMALL = ("optimizer.clip=0.7", f"optimizer.lr={LR}", f"optimizer.eps={EPSILON}", "schedule.kind=constant",
         "schedule.warmup=0", "optimizer.beta1=0.8", "optimizer.beta2=0.97", "optimizer.weight_decay=0.3")  # fmt: skip


@dataclass
class Twin:
    """The reference's training: every version of the weights, the moments, losses and gradient norms."""

    versions: list[Tensors]
    m: Tensors
    v: Tensors
    losses: list[float]
    norms: list[float]


def sequences(training: Training, batch: int) -> tuple[Ids, Ids]:
    """Return ids and targets (B, T) of a whole batch of the data source."""
    config, source = training.config, training.draw._source
    rows, length = config.micro_batch * config.model.context, config.model.context
    ids, targets = (np.empty((training.plan.micro_batches, rows), np.int32) for _ in range(2))
    for micro in range(training.plan.micro_batches):
        source.fill(batch, micro, ids[micro], targets[micro])
    return ids.reshape(-1, length), targets.reshape(-1, length)


def train_reference(training: Training, weights: Tensors) -> Twin:
    """Train the reference on the same sequences: batch k reads version max(k - τ, 0)."""
    config = training.config
    s = config.optimizer
    zero = {name: np.zeros_like(tensor) for name, tensor in weights.items()}
    twin = Twin([weights], zero, zero, [], [])
    for batch in range(config.steps):
        ids, targets = sequences(training, batch)
        read = twin.versions[max(batch - config.delay, 0)]
        loss, grads = reference.loss_and_gradients(read, ids, targets, config.model.heads, 1.0 / ids.size)
        grads, norm = reference.clip_by_global_norm(grads, s.clip)
        constants = AdamW(s.lr, s.beta1, s.beta2, s.eps, s.weight_decay)
        made, twin.m, twin.v = reference.adamw(twin.versions[-1], grads, twin.m, twin.v, batch + 1, constants)
        twin.versions.append(made)
        twin.losses.append(loss / ids.size)
        twin.norms.append(norm)
    return twin


def random_weights(config: Config) -> Tensors:
    model = config.model
    rng = np.random.default_rng(config.seed)
    assert model.vocab_size is not None
    return reference.random_tensors(rng, model.vocab_size, model.context, model.layers, model.channels, spread=0.2)


def start_from(training: Training, weights: Tensors) -> None:
    """Replace version 0 by the reference's weights."""
    with training.banks.lease(0) as lease:
        for name, view in lease.bank.arena.items():
            view[...] = weights[name]


def assert_same_change(found: Arena, expected: Tensors, start: Tensors, tolerance: float, what: str) -> None:
    """Compare the change of each tensor since the start, which is stricter than to compare its value."""
    for name, tensor in expected.items():
        moved, right = found[name].astype(np.float64) - start[name], tensor - start[name]
        distance = np.linalg.norm(moved - right) / np.linalg.norm(right)
        assert distance < tolerance, f"{what} {name}: off by {distance:.2e} of its change"


GEOMETRIES = {
    "odd": ("model.vocab_size=13", "model.context=7", "model.layers=2", "model.heads=3", "model.channels=15"),
    "one token": ("model.vocab_size=11", "model.context=1", "model.layers=1", "model.heads=1", "model.channels=9"),
    "one sequence": ("model.context=9", "batch_size=1", "lanes=1", "model.channels=18", "model.heads=2"),
    "accumulated": ("batch_size=3", "gradient_accumulation_steps=3", "micro_batch=3", "lanes=2"),
    "shared lanes": ("batch_size=6", "lanes=2", "shared_lanes=true", "threads.backward=3"),
    "in micro-batches": ("batch_size=10", "micro_batch=2", "lanes=4", "model.vocab_size=5"),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_updates_through_the_pipeline_equal_those_of_the_reference(delay: int, geometry: str) -> None:
    threads = ("threads.forward=2", "threads.backward=2")
    config = tiny(*SMALL, *threads, *GEOMETRIES[geometry], f"delay={delay}", "steps=5")
    training = build(config)
    weights = random_weights(config)
    start_from(training, weights)
    twin = train_reference(training, weights)
    updates = [event for event in run_threads(training) if isinstance(event, Update)]

    np.testing.assert_allclose([update.loss for update in updates], twin.losses, rtol=1e-5)
    np.testing.assert_allclose([update.grad_norm for update in updates], twin.norms, rtol=1e-4)
    assert max(twin.norms) > config.optimizer.clip, "gradients are clipped"
    zero = dict.fromkeys(weights, 0.0)
    assert_same_change(training.optimizer.state["m"], twin.m, zero, 1e-3, "m")  # type: ignore[arg-type]
    assert_same_change(training.optimizer.state["v"], twin.v, zero, 1e-3, "v")  # type: ignore[arg-type]
    for version in range(max(config.steps - delay, 0), config.steps + 1):
        with training.banks.lease(version) as lease:
            assert_same_change(lease.bank.arena, twin.versions[version], weights, 2e-3, f"version {version}")


def test_the_reference_distinguishes_delays() -> None:
    """The comparison above can fail: another delay differs by a hundred times its tolerance."""
    config = tiny(*SMALL, "delay=1", "steps=5")
    weights = random_weights(config)
    twin = train_reference(build(config), weights)
    training = build(tiny(*SMALL, "delay=2", "steps=5"))
    start_from(training, weights)
    run_threads(training)
    with training.banks.lease(5) as lease, pytest.raises(AssertionError, match=r"off by"):
        assert_same_change(lease.bank.arena, twin.versions[5], weights, 0.2, "version 5")
