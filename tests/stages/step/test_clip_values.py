"""Clipping by value: the elements and squares of a plain computation, whatever the chunks; nothing is hidden."""

import math

import numpy as np
import pytest

from threadloom.kernels import CHUNK
from threadloom.pipeline import LanePlan, Lanes
from threadloom.stages.memory.graph_items import BatchLoss, ReduceShard
from threadloom.stages.step.reducer import Gradient, Reduce, plan_shards

SIZE = 2 * CHUNK + 77


def reduced(lanes: Lanes, limit: float, scale: float, threads: int) -> Gradient:
    gradient, plan = Gradient(lanes, 1), plan_shards(lanes.flat.shape[1], threads)
    for shard in range(plan.shards):
        Reduce(lanes, gradient, limit)(ReduceShard(0, shard, plan.chunk_range(shard), BatchLoss(0.0, 1), scale))
    return gradient


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_elements_and_norm_are_those_of_a_plain_computation(scale: float, threads: int) -> None:
    lanes = Lanes({"x": (SIZE,)}, LanePlan(2, 2), 0)
    rng = np.random.default_rng(1)
    for lane in lanes.flat:
        lane[...] = rng.standard_normal(lane.size) * np.where(np.arange(lane.size) < CHUNK, 1e-4, 1.0)
    total = lanes.flat[0] + lanes.flat[1]
    expected = np.clip(total, -0.01 * scale, 0.01 * scale)
    found = reduced(lanes, 0.01, scale, threads)
    np.testing.assert_array_equal(found.flat, expected)
    assert found.norm() == pytest.approx(math.sqrt(float((expected.astype(np.float64) ** 2).sum())), rel=1e-12)
    unlimited = reduced(lanes, 0.0, scale, threads)
    np.testing.assert_array_equal(unlimited.flat, total)
    assert unlimited.norm() > 2 * found.norm()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_still_has_no_finite_norm(bad: float) -> None:
    lanes = Lanes({"x": (SIZE,)}, LanePlan(1, 1), 0)
    lanes.flat[0, :3] = 1.0, bad, 5.0
    assert not math.isfinite(reduced(lanes, 2.0, 1.0, 1).norm())
