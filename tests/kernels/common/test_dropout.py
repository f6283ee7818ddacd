"""The masks of dropout: their rate, their independence, and that backward uses those of forward."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.support import run_without_compiler
from tests.reference import dropout as description
from threadloom.kernels.common import dropout as kernels
from threadloom.kernels.common.dropout import dropout_backward, dropout_forward
from threadloom.kernels.common.tensors import Dropout


def mask(
    probability: float, key: int = 0x0123_4567_89AB_CDEF, matrix: int = 0, shape: tuple[int, int] = (300, 500)
) -> NDArray[np.float32]:
    """Return 1 / (1 - probability) for the elements that are kept, 0 for the others."""
    out = np.full(shape, np.nan, np.float32)
    dropout_forward(np.ones(shape, np.float32), Dropout(probability, np.full(1, key, np.uint64), matrix), out)
    return out


def assert_rate(kept: NDArray[np.bool_], expected: float) -> None:
    """Six standard deviations of the mean of independent choices are allowed."""
    assert abs(kept.mean() - expected) < 6 * (expected * (1 - expected) / kept.size) ** 0.5


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.1, 0.5, 0.9])
def test_elements_are_dropped_with_the_probability(probability: float) -> None:
    found = mask(probability)
    kept = found != 0
    assert_rate(kept, 1 - probability)
    assert (found[kept] == np.float32(1.0 / (1.0 - probability))).all()
    for kept_in in (kept.mean(axis=0), kept.mean(axis=1)):  # no column and no row is favoured
        spread = (probability * (1 - probability) / (kept.size / kept_in.size)) ** 0.5
        assert np.abs(kept_in - (1 - probability)).max() < 6 * spread


@pytest.mark.parametrize(
    "other",
    [
        partial(mask, 0.5, matrix=1),
        partial(mask, 0.5, matrix=4),
        partial(mask, 0.5, key=0x0123_4567_89AB_CDEE),
        partial(mask, 0.5, key=1),
        partial(mask, 0.5, key=0x1123_4567_89AB_CDEF),
        lambda: np.roll(mask(0.5), 1, axis=1),
        lambda: np.roll(mask(0.5), 1, axis=0),
        lambda: np.roll(mask(0.5), 7, axis=0),
    ],
    ids=["matrix", "layer", "low bit of the key", "small key", "high bit of the key", "column", "row", "rows"],
)
def test_masks_that_differ_in_one_counter_are_independent(other: Callable[[], NDArray[np.float32]]) -> None:
    assert_rate((mask(0.5) != 0) == (other() != 0), 0.5)


def test_the_finaliser_is_the_published_one() -> None:
    """Of MurmurHash3_x86_32, fmix32."""
    words = np.array([0, 1, 2, 0xFFFFFFFF], np.uint32)
    assert [hex(word) for word in description.finaliser(words)] == ["0x0", "0x514e28b7", "0x30f4c306", "0x81f16f39"]


@pytest.mark.parametrize("matrix", [0, 5, description.RESIDUAL + 3, description.EMBEDDING])
def test_the_mask_is_that_of_the_description(matrix: int) -> None:
    key, shape = 0xFEDC_BA98_7654_3211, (33, 65)
    numbers = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(mask(0.3, key, matrix, shape), description.mask(0.3, key, matrix, numbers))


def test_every_call_gives_the_same_mask() -> None:
    np.testing.assert_array_equal(mask(0.3), mask(0.3))


def test_backward_is_the_transposed_of_forward() -> None:
    """<dropout(x), d> = <x, backward(d)> for numbers whose sums are exact."""
    rng = np.random.default_rng(0)
    x, d = (rng.integers(-8, 9, (33, 65)).astype(np.float32) for _ in range(2))
    dropout = Dropout(0.5, np.full(1, 99, np.uint64), 3)
    out, dx = np.empty_like(x), np.ones_like(x)
    dropout_forward(x, dropout, out)
    dropout_backward(d, dropout, dx)
    assert (out * d).sum() == (x * (dx - 1)).sum()


def test_the_mask_without_the_compiler_is_the_same() -> None:
    kept = "".join(str(int(value != 0)) for value in mask(0.4, shape=(3, 17)).ravel())
    run_without_compiler(
        "from tests.kernels.common.test_dropout import mask\n"
        f"assert ''.join(str(int(v != 0)) for v in mask(0.4, shape=(3, 17)).ravel()) == {kept!r}\n"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int16])
def test_what_a_format_drops_is_prepared(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its activations, and float32 sums, in place or rounded: of embeddings, blocks and adapters."""
    prepared: dict[str, set[object]] = {}
    for name in ("_FORWARD", "_RESIDUAL", "_TILE"):
        monkeypatch.setattr(
            getattr(kernels, name), "prepare", lambda *kinds, name=name: prepared.update({name: {*kinds}})
        )
    kernels.prepare_dropout(dtype)
    pairs = [(np.float32, np.float32), (np.float32, dtype), (dtype, dtype)]
    assert prepared["_FORWARD"] == {kernels._forward_type(*pair) for pair in pairs}
    assert prepared["_RESIDUAL"] == {kernels._residual_type(dtype)}
    assert prepared["_TILE"] == {kernels._tile_type(np.float32), kernels._tile_type(dtype)}
