"""The bases of AdamW in rotated coordinates, and the updates of matrices in them."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.stages.support import (
    LLAMA,
    SEVERAL_CHUNKS,
    Result,
    assert_same,
    build,
    result,
    run_sequence,
    run_threads,
    tiny,
)
from tests.stages.training.test_bits16 import assert_packed_equals_master
from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.memory.matrix_rows import MatrixRows, balanced
from threadloom.stages.memory.rotation import ROWS, rotated_parts
from threadloom.stages.models import Geometry, Side, basis_shapes, rotated_sides, trained_shapes
from threadloom.stages.resolve import apply_overrides, resolve
from threadloom.stages.step.optimizers.rotation import Rotation
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(120)

GEOMETRY = Geometry(vocabulary=29, context=5, layers=2, heads=1, channels=12)
EPS32 = float(np.finfo(np.float32).eps)


def moments(seed: int) -> Arena:
    """Matrices whose singular values are a factor of 2 apart, so that their singular vectors are well determined."""
    rng, arena = np.random.default_rng(seed), Arena(trained_shapes(GEOMETRY))
    for name in rotated_sides(GEOMETRY):
        for matrix in arena[name].reshape(-1, *arena[name].shape[-2:]):
            u, s, vt = np.linalg.svd(rng.standard_normal(matrix.shape), full_matrices=False)
            matrix[...] = u * 2.0 ** -np.arange(len(s)) @ vt
    return arena


def matrices(arena: Arena, name: str) -> Floats:
    """Return the layers of a tensor, (L, rows, columns)."""
    stacked: Floats = arena[name].reshape(-1, *arena[name].shape[-2:])
    return stacked


def turned(matrix: Floats, basis: Floats, side: Side) -> np.ndarray:
    """Return a matrix in coordinates of a basis, in float64."""
    basis, matrix = basis.astype(np.float64), matrix.astype(np.float64)
    return matrix @ basis if side is Side.COLUMNS else basis.T @ matrix


def assert_orthogonal(basis: Floats) -> None:
    """Each element of QᵀQ is a sum of k products of numbers rounded to float32; Q itself is exact to float64."""
    k = len(basis)
    wide = basis.astype(np.float64)
    assert np.abs(wide.T @ wide - np.eye(k)).max() <= 2.0 * math.sqrt(k) * EPS32


def renew(rotation: Rotation, shares: int = 1) -> None:
    for share in rotation.shares(shares):
        rotation.renew(share)
    rotation.accept()


def test_the_smaller_side_of_each_trained_matrix_is_rotated() -> None:
    sides = rotated_sides(GEOMETRY, frozenset({"wpe"}))
    assert sides == {
        "wte": Side.COLUMNS, "qkv_weight": Side.ROWS, "attn_proj_weight": Side.COLUMNS, "fc_weight": Side.ROWS,
        "mlp_proj_weight": Side.COLUMNS,
    }  # fmt: skip
    assert basis_shapes(GEOMETRY) == {"wpe": (5, 5)} | {
        name: (12, 12) if name == "wte" else (2, 12, 12) for name in sides
    }


def test_the_first_bases_are_the_eigenvectors_of_the_gradients_covariance() -> None:
    gradient, rotation = moments(1), Rotation(GEOMETRY, frozenset(), 3, Arena(trained_shapes(GEOMETRY)))
    rotation.start(gradient)
    for name, side in rotation.sides.items():
        for matrix, basis in zip(matrices(gradient, name), matrices(rotation.bases, name), strict=True):
            assert_orthogonal(basis)
            found = turned(matrix, basis, side)
            covariance = found.T @ found if side is Side.COLUMNS else found @ found.T
            outside = np.abs(covariance - np.diag(np.diag(covariance))).max()
            # The covariance is a float32 sum of products, whose error perturbs what a rotation makes diagonal.
            assert outside <= 4.0 * max(matrix.shape) * EPS32 * np.trace(covariance)


@pytest.mark.parametrize("shares", [1, 2, 7, 40])
@pytest.mark.parametrize("zero", [False, True], ids=["", "of zeros"])
def test_later_bases_follow_the_moment_and_turns_lead_to_them(zero: bool, shares: int) -> None:
    """A moment that stays the same is diagonalised further by each iteration: its ratios of eigenvalues are 4."""
    first, later, in_basis = moments(1), moments(2), Arena(trained_shapes(GEOMETRY))
    rotation = Rotation(GEOMETRY, frozenset(), 1, in_basis)
    if zero:
        later.flat[...] = 0.0
    rotation.start(first)
    rests = []
    for _ in range(30):
        before = Arena(basis_shapes(GEOMETRY))
        np.copyto(before.flat, rotation.bases.flat)
        for name, side in rotation.sides.items():
            for to, matrix, basis in zip(*(matrices(a, name) for a in (in_basis, later, before)), strict=True):
                to[...] = turned(matrix, basis, side)
        renew(rotation, shares)
        rest = 0.0
        for name, side in rotation.sides.items():
            arenas = later, before, rotation.bases, rotation.turns
            for matrix, old, new, turn in zip(*(matrices(arena, name) for arena in arenas), strict=True):
                assert_orthogonal(new)
                k = len(new)
                assert np.abs(old.astype(np.float64) @ turn - new).max() <= 4.0 * k * EPS32
                found = turned(matrix, new, side)
                covariance = found.T @ found if side is Side.COLUMNS else found @ found.T
                rest = max(rest, np.abs(np.triu(covariance, 1)).max())
        rests.append(rest)
    assert zero or rests[-1] < 1e-5 < 1e-2 < rests[0]
    for name in rotation.sides if zero else ():  # nothing is known of another basis
        for turn in matrices(rotation.turns, name):
            assert np.abs(turn - np.eye(len(turn))).max() <= 4.0 * len(turn) * EPS32


def test_a_basis_that_fits_already_stays_column_by_column() -> None:
    """Otherwise second moments, which are not turned, would be those of other columns."""
    gradient, in_basis = moments(1), Arena(trained_shapes(GEOMETRY))
    rotation = Rotation(GEOMETRY, frozenset(), 1, in_basis)
    rotation.start(gradient)
    for name, side in rotation.sides.items():
        for to, matrix, basis in zip(*(matrices(a, name) for a in (in_basis, gradient, rotation.bases)), strict=True):
            to[...] = turned(matrix, basis, side)
    renew(rotation)
    for name in rotation.sides:
        for turn in matrices(rotation.turns, name):
            k = len(turn)
            # Eigenvectors move by the error of the covariance, some eps of its trace, over the gap of eigenvalues: at
            # least 3/4 of the smaller one, and the smallest is 4^(1 - k) of the largest.
            smallest = 4.0 ** (1 - np.arange(k)[::-1])
            assert (np.abs(np.diag(turn)) > 0.5).all()
            assert (np.abs(turn - np.eye(k)).max(axis=0) <= 8 * k * EPS32 / smallest).all()


@pytest.mark.parametrize("applied", [0, 1])
def test_a_covariance_that_overflows_leaves_the_bases_as_they_are(applied: int) -> None:
    gradient = moments(1)
    rotation = Rotation(GEOMETRY, frozenset(), 1, gradient)
    if applied:
        rotation.start(gradient)
    before = {name: rotation.bases[name].copy() for name in rotation.sides}
    gradient.flat[...] = 3e19
    if applied:
        renew(rotation)
    else:
        rotation.start(gradient)
    for name in rotation.sides:
        expected = before[name] if applied else np.broadcast_to(np.eye(before[name].shape[-1]), before[name].shape)
        np.testing.assert_array_equal(rotation.bases[name], expected)


def test_bases_are_due_after_every_so_many_updates() -> None:
    rotation = Rotation(GEOMETRY, frozenset(), 4, Arena(trained_shapes(GEOMETRY)))
    assert [applied for applied in range(10) if rotation.is_due(applied)] == [0, 4, 8]


def test_parts_cover_every_matrix_once() -> None:
    geometry = Geometry(vocabulary=2 * ROWS + 3, context=5, layers=2, heads=1, channels=6)
    arena = Arena(trained_shapes(geometry))
    for part in rotated_parts(trained_shapes(geometry), rotated_sides(geometry)):
        assert part.of(arena).size == part.elements
        part.of(arena)[...] += 1.0
    for name, tensor in arena.items():
        np.testing.assert_array_equal(tensor, 1.0 if name in rotated_sides(geometry) else 0.0)


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 8))
def test_parts_are_divided_into_shards_of_similar_work(rows: list[int], shards: int) -> None:
    """The shard with the most work had the least before its last part: at most the mean of all, then one part more."""
    parts = [MatrixRows(str(number), None, 0, count, 3 * count) for number, count in enumerate(rows)]
    groups = balanced(parts, lambda part: part.elements, shards)
    assert sorted(part.name for group in groups for part in group) == sorted(part.name for part in parts)
    totals = [sum(part.elements for part in group) for group in groups]
    assert len(groups) == shards
    assert max(totals) <= sum(totals) / shards + max((part.elements for part in parts), default=0)


def one_update(config: Config, *overrides: str) -> Training:
    training = build(resolve(apply_overrides(config, ["steps=1", "optimizer.rotation=2", *overrides]), cores=2))
    run_threads(training)
    return training


@pytest.mark.parametrize("config", [None, LLAMA], ids=["gpt2", "llama"])
def test_the_first_update_is_the_sign_of_the_turned_gradient(config: Config | None) -> None:
    """At t = 1 moments are the gradient and its square: D̃ is the sign of G̃, wherever epsilon does not count."""
    training = one_update(config or tiny(), "optimizer.lr=0.5", "optimizer.weight_decay=0.25", "schedule.kind=constant",
                          "schedule.warmup=0", "optimizer.eps=1e-30", "optimizer.clip=0")  # fmt: skip
    start = build(training.config)
    rotation = training.optimizer.rotation
    assert rotation is not None
    with training.banks.lease(1) as new, start.banks.lease(0) as old:
        for name, side in rotation.sides.items():
            arenas = new.bank.arena, old.bank.arena, rotation.bases, training.optimizer.state["m"]
            for after, before, basis, m in zip(*(matrices(arena, name) for arena in arenas), strict=True):
                wide = basis.astype(np.float64)
                sign = np.sign(m.astype(np.float64))
                direction = sign @ wide.T if side is Side.COLUMNS else wide @ sign
                expected = before.astype(np.float64) * (1.0 - 0.5 * 0.25) - 0.5 * direction
                sizes = np.abs(sign) @ np.abs(wide.T) if side is Side.COLUMNS else np.abs(wide) @ np.abs(sign)
                bound = (len(basis) + 8) * EPS32 * (np.abs(before) + sizes)
                assert (np.abs(after - expected) <= bound).all(), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("delay", [0, 2])
def test_new_weights_are_packed(precision: str, delay: int) -> None:
    training = build(tiny(f"precision={precision}", f"delay={delay}", "optimizer.rotation=2", "steps=3",
                          "model.vocab_size=601"))  # fmt: skip
    run_threads(training)
    with training.banks.lease_newest() as lease:
        assert_packed_equals_master(training.config.geometry(), lease.bank, precision)


@pytest.mark.parametrize(
    "others",
    [("delay=1", "threads.update=3", "threads.reduce=3"), ("delay=0", "extra_banks=0"), ("delay=0", "extra_banks=2")],
)
def test_updates_depend_neither_on_threads_nor_on_banks(others: tuple[str, ...]) -> None:
    """Without extra banks a version is updated in place at delay 0."""
    results = []
    for settings in ((others[0],), others):
        training = build(tiny("optimizer.rotation=2", "steps=5", "model.vocab_size=601", *settings))
        run_threads(training)
        with training.banks.lease_newest() as lease:
            results.append(lease.bank.arena.flat.copy())
    np.testing.assert_array_equal(results[0], results[1])


def test_bases_do_not_depend_on_the_shards_that_renew_them() -> None:
    """One thread has two shards here, three have as many as there are chunks."""
    bases, shards = [], []
    for threads in (1, 3):
        training = build(tiny("optimizer.rotation=2", "steps=5", *SEVERAL_CHUNKS, f"threads.update={threads}",
                              f"threads.reduce={threads}"))  # fmt: skip
        run_threads(training)
        assert training.optimizer.rotation is not None
        bases.append(training.optimizer.rotation.bases.flat.copy())
        shards.append(training.shards.shards)
    assert 1 < shards[0] < shards[1]
    np.testing.assert_array_equal(bases[0], bases[1])


OVERFLOWS = ("precision=fp16", "loss_scale.initial=1e12", "loss_scale.backoff=1e-2", "loss_scale.interval=2",
             "loss_scale.growth=1000", "optimizer.rotation=2", "steps=12", "checkpoint.interval=1",
             "checkpoint.keep=0")  # fmt: skip


@pytest.mark.parametrize("others", [("delay=0", "extra_banks=0"), ("delay=2", "checkpoint.copies=false")])
def test_a_run_with_skipped_updates_is_resumed_from_any_step(others: tuple[str, ...], tmp_path: Path) -> None:
    """Updates that overflow are skipped, also some in which bases were due."""
    whole = build(tiny(*OVERFLOWS, *others), tmp_path)
    expected = result(whole, run_threads(whole))
    updates = [update for update in run_sequence(build(tiny(*OVERFLOWS, *others))) if isinstance(update, Update)]
    skipped = [update.step for update in updates if update.scaled is not None and update.scaled.skipped]
    assert len(skipped) > 2 and skipped[-1] > 6
    alone = build(tiny(*OVERFLOWS, *others))
    rotation, bases = alone.optimizer.rotation, [np.zeros(0, np.float32)]
    assert rotation is not None
    bases.extend(rotation.bases.flat.copy() for _ in replay(alone))
    assert all(np.array_equal(bases[step], bases[step - 1]) for step in skipped if step > 1), "they renew no basis"
    for step in range(1, 12):
        training = build(tiny(*OVERFLOWS, *others), start=Checkpoint.open(tmp_path / f"step-{step:06d}"))
        found = result(training, run_threads(training))
        assert repr(found.updates) == repr(expected.updates[step:]), "the norm of a skipped gradient is no number"
        assert_same(replace(found, updates=()), Result(expected.tensors, (), (), ()))


@pytest.mark.parametrize(
    "settings",
    [
        ('train.freeze=["wte", "qkv*"]',), ('train.only=["ln*"]',), ("optimizer.ema=0.5",),
        ('optimizer.groups=[{"match": "wte", "lr": 0.5, "decay": 0}]',), ("float32_matmul_precision=high",),
        ("guard.action=skip", "guard.window=4", "guard.deviations=0.5"),
    ],
)  # fmt: skip
def test_other_settings_of_the_recipe_are_kept_in_rotated_bases(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Threads compute the bits of the replay, and the second half of a run those of the whole."""
    common = ("optimizer.rotation=2", "steps=8", "delay=1", "checkpoint.interval=4", "checkpoint.keep=0", *settings)
    whole = build(tiny(*common), tmp_path)
    expected = result(whole, run_threads(whole))
    training = build(tiny(*common), start=Checkpoint.open(tmp_path / "step-000004"))
    assert_same(result(training, run_sequence(training)), Result(expected.tensors, expected.updates[4:], (), ()))
    if "train" in settings[0]:
        start = build(tiny(*common))
        with training.banks.lease_newest() as new, start.banks.lease(0) as old:
            np.testing.assert_array_equal(new.bank.tensors["wte"], old.bank.tensors["wte"])


def assert_iterated(m: np.ndarray, old: Floats, new: Floats, side: Side) -> None:
    """Compare a basis with one step of orthogonal iteration from the old one: what the QR decomposition left is R."""
    covariance = m.T @ m if side is Side.COLUMNS else m @ m.T
    order = np.argsort(-np.diag(old.astype(np.float64).T @ covariance @ old))
    below = np.tril(new[:, order].astype(np.float64).T @ covariance @ old[:, order], -1)
    assert np.abs(below).max() <= 4 * max(m.shape) * EPS32 * np.trace(covariance)


def test_updates_and_refreshes_of_a_run_equal_a_float64_model() -> None:
    """The model keeps first moments in the coordinates of the weights, so that it has no turn to get wrong.

    It takes gradients and bases from the run, whose sequential replay leaves them until the next batch.
    """
    config = tiny("optimizer.rotation=2", "steps=7", "optimizer.clip=0", "optimizer.eps=1e-3", "lanes=1")
    training = build(config)
    rotation, s = training.optimizer.rotation, config.optimizer
    assert rotation is not None and config.delay == 0
    with training.banks.lease(0) as lease:
        weights = {name: tensor.astype(np.float64) for name, tensor in lease.bank.arena.items()}
    first, second = ({name: np.zeros_like(weights[name]) for name in rotation.sides} for _ in range(2))
    used: list[np.ndarray] = []
    for update in replay(training):
        assert isinstance(update, Update)
        t, lr = update.step, update.lr
        used.append(rotation.bases["qkv_weight"].copy())
        with training.banks.lease_newest() as lease:
            for name, side in rotation.sides.items():
                views = weights[name], training.gradient.arena[name], rotation.bases[name], first[name], second[name]
                stacked = [view.reshape(-1, *view.shape[-2:]) for view in (*views, lease.bank.arena[name])]
                for w, gradient, basis, m, v, found in zip(*stacked, strict=True):
                    wide = basis.astype(np.float64)
                    m += (1 - s.beta1) * (gradient - m)
                    v += (1 - s.beta2) * (turned(gradient, basis, side) ** 2 - v)
                    size = np.sqrt(v / (1 - s.beta2**t)) + s.eps
                    direction = turned(m, basis, side) / (1 - s.beta1**t) / size
                    w *= 1 - lr * s.weight_decay
                    w -= lr * (direction @ wide.T if side is Side.COLUMNS else wide @ direction)
                    # A direction is a sum of k products of moments with errors of k roundings over a divisor of at
                    # least eps: far above what is measured, and far below a step in another basis, about lr.
                    k, largest = len(basis), float(np.abs(gradient).max()) + 1.0
                    assert np.abs(found - w).max() <= t * (4 * k + 60) * EPS32 * lr * largest / s.eps, (t, name)
        if t % 2 == 0:  # the next update renews the bases from these moments, by one step of orthogonal iteration
            expected = {name: (first[name].copy(), rotation.bases[name].copy()) for name in rotation.sides}
        elif t > 1:
            for name, side in rotation.sides.items():
                tensors = *expected[name], rotation.bases[name]
                for m, old, new in zip(*(tensor.reshape(-1, *tensor.shape[-2:]) for tensor in tensors), strict=True):
                    assert_iterated(m, old, new, side)
    changes = [float(np.abs(after - before).max()) for before, after in pairwise(used)]
    assert [change > 0 for change in changes] == [False, True, False, True, False, True]
