"""Updates that pack weights, in shards: every element once, the bits of the float32 update, packed new weights."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.training.test_bits16 import assert_packed_equals_master
from threadloom.kernels.bits16.adamw import BLOCK
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena, LanePlan, Lanes
from threadloom.stages.config import OptimizerGroup, Precision, ResolvedOptimizer
from threadloom.stages.memory.bank import Bank
from threadloom.stages.memory.graph_items import BatchLoss, UpdateShard
from threadloom.stages.memory.loss_scale import Scaled, ScaleState
from threadloom.stages.memory.matrix_rows import MatrixRows
from threadloom.stages.models import Geometry, decayed_elements, parameter_shapes
from threadloom.stages.models.gpt2 import MATRICES
from threadloom.stages.step.bits16 import optimizer as optimizer_bits16
from threadloom.stages.step.bits16.compute import Bits16Compute
from threadloom.stages.step.bits16.optimizer import ArenaRange, plan_parts
from threadloom.stages.step.float32.optimizer import Float32Update
from threadloom.stages.step.optimizers import AdamW, ForecastAdamW, LeadAdamW, Optimizer
from threadloom.stages.step.reducer import Gradient

pytestmark = pytest.mark.timeout(300)

geometries = st.builds(
    Geometry,
    vocabulary=st.integers(1, 300),
    context=st.integers(1, 70),
    layers=st.integers(1, 3),
    heads=st.just(1),
    channels=st.integers(1, 70),
)


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Make parts small, so that small models have many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_bits16, "PART", 1 << 10)
        yield


@settings(max_examples=100, derandomize=True, deadline=None)
@given(geometry=geometries, shards=st.integers(1, 12))
def test_parts_cover_every_element_once(geometry: Geometry, shards: int) -> None:
    """Matrices are covered by whole blocks of rows, the rest by ranges, padding between tensors by none."""
    layout = Arena(parameter_shapes(geometry))
    decayed = decayed_elements(geometry)
    plan = plan_parts(layout, geometry, shards)
    assert len(plan) == shards
    parts = [part for shard in plan for part in shard]
    layout.flat[...] = 0.0
    for part in parts:
        if isinstance(part, ArenaRange):
            assert part.stop <= decayed or part.start >= decayed
            assert part.elements == part.stop - part.start
            layout.flat[part.start : part.stop] += 1.0
            continue
        matrix = layout[part.name] if part.layer is None else layout[part.name][part.layer]
        assert part.first % BLOCK == 0
        assert part.last == len(matrix) or part.last % BLOCK == 0
        assert part.elements == matrix[part.first : part.last].size > 0
        matrix[part.first : part.last] += 1.0
    assert all((tensor == 1.0).all() for tensor in layout.values())
    assert layout.flat.max() == 1.0

    # A shard ends with the part in which its share ends, so its size is off by at most one part on either side.
    sizes = [sum(part.elements for part in shard) for shard in plan]
    largest = max(part.elements for part in parts)
    assert max(sizes) <= sum(sizes) / shards + largest


def test_parts_have_about_the_requested_size() -> None:
    geometry = Geometry(5000, 64, 2, 1, 64)
    rows = [
        part for part in plan_parts(Arena(parameter_shapes(geometry)), geometry, 1)[0] if isinstance(part, MatrixRows)
    ]
    limit = max(optimizer_bits16.PART, BLOCK * 4 * geometry.channels)
    assert all(part.elements <= limit for part in rows)
    assert {part.name for part in rows} == set(MATRICES) - {"wpe"}


Kind = Callable[..., Optimizer]
KINDS: tuple[Kind, ...] = (AdamW, LeadAdamW, partial(ForecastAdamW, delay=2))


GROUPS = (
    OptimizerGroup(match="*bias", lr=3.0), OptimizerGroup(match="wte", decay=0.5), OptimizerGroup(match="fc*", lr=0.1)
)  # fmt: skip


class RandomUpdate:
    """One update of random weights, from the same state each time."""

    def __init__(
        self, geometry: Geometry, precision: Precision, in_place: bool, skipped: bool, kind: Kind = AdamW,
        groups: tuple[OptimizerGroup, ...] = (),
    ) -> None:  # fmt: skip
        rng = np.random.default_rng([geometry.vocabulary, geometry.channels])
        self.precision, self.geometry = precision, geometry
        self.compute = Bits16Compute(precision, geometry, 1)
        settings = ResolvedOptimizer(beta1=0.9, lead=0.9, groups=groups, ema=0.9)
        self.optimizer: Optimizer = kind(settings, lambda _: 3e-3, geometry)
        assert self.optimizer.average is not None
        self.states = [*self.optimizer.state.values(), self.optimizer.average.arena]
        lanes = Lanes(parameter_shapes(geometry), LanePlan(1, 1), 0)
        self.gradient = Gradient(lanes, 1)
        self.source = Bank(geometry, self.compute.memory.allocate_packed())
        self.target = self.source if in_place else Bank(geometry, self.compute.memory.allocate_packed())
        gradient = Arena(parameter_shapes(geometry), np.float32, self.gradient.flat)
        for name, tensor in self.source.arena.items():
            tensor[...] = rng.standard_normal(tensor.shape)
            gradient[name][...] = rng.standard_normal(tensor.shape)
            for state in self.states:
                state[name][...] = rng.random(tensor.shape)
        if skipped:
            self.gradient.flat[0] = np.inf
        self.compute.pack_from_master(self.source)
        self.step = self.optimizer.step(batch=2, applied=2, grad_norm=3.0, scale=1.0)
        self.scaled = Scaled(2.0, skipped, ScaleState())

    def apply(self, shards: int, *, packs: bool) -> list[bytes]:
        """Update all shards, the last one first, and return the bits of new weights and moments."""
        size = self.gradient.flat.size
        stage: Callable[[UpdateShard], UpdateShard] = Float32Update(self.geometry, self.gradient, self.optimizer)
        if packs:
            stage = self.compute.update_stage(self.gradient, self.optimizer, shards)
        for shard in reversed(range(shards)):
            span = size * shard // shards, size * (shard + 1) // shards
            stage(UpdateShard(0, shard, span, self.source, self.target, self.step, BatchLoss(0.0, 1), 1.0, self.scaled))
        if packs:
            assert_packed_equals_master(self.geometry, self.target, self.precision.value)
        return [arena.flat.tobytes() for arena in (self.target.arena, *self.states)]


@pytest.mark.skipif(not JIT_ENABLED, reason="the sizes are for compiled code")
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16], ids=lambda precision: precision.value)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    geometry=geometries, shards=st.integers(1, 9), in_place=st.booleans(), skipped=st.booleans(),
    kind=st.sampled_from(KINDS), groups=st.sampled_from([(), GROUPS]),
)  # fmt: skip
def test_any_number_of_shards_computes_the_bits_of_the_float32_update_and_packs_the_new_weights(
    precision: Precision, geometry: Geometry, shards: int, in_place: bool, skipped: bool, kind: Kind,
    groups: tuple[OptimizerGroup, ...],
) -> None:  # fmt: skip
    plain = RandomUpdate(geometry, precision, in_place, skipped, kind, groups)
    before = plain.source.arena.flat.tobytes()
    expected = plain.apply(1, packs=False)
    found = RandomUpdate(geometry, precision, in_place, skipped, kind, groups).apply(shards, packs=True)
    assert found == expected
    assert (found[0] == before) is skipped
