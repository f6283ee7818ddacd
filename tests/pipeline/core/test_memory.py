"""Tests of arenas, pools and lanes."""

import threading

import numpy as np
import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import ALIGNMENT, Arena, Cancelled, LanePlan, Lanes, MonotonicCounter, Pool, arena_size

shapes = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.lists(st.integers(0, 7), max_size=3).map(tuple), max_size=8
)


@given(shapes)
def test_views_are_aligned_disjoint_and_cover_the_arena(table: dict[str, tuple[int, ...]]) -> None:
    arena = Arena(table)
    assert arena.flat.size == arena_size(table)
    owner = np.zeros(arena.flat.size, int)
    for name, shape in table.items():
        view = arena[name]
        assert view.shape == shape and view.dtype == np.float32
        assert not view.size or view.ctypes.data % ALIGNMENT == 0
        owner[arena.offset(name) : arena.offset(name) + view.size] += 1
        view.fill(7)
    assert owner.max(initial=0) <= 1
    assert np.array_equal(arena.flat == 7, owner == 1), "padding was written, or a view is outside its range"


def test_a_buffer_of_the_wrong_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="buffer of 16 elements"):
        Arena({"a": (3,)}, np.float32, np.zeros(3, np.float32))


def test_a_pool_lends_each_element_once_and_counts() -> None:
    pool = Pool([1, 2])
    assert {pool.take(), pool.take()} == {1, 2}
    taken: list[int] = []
    taker = threading.Thread(target=lambda: taken.append(pool.take()))
    taker.start()
    pool.give_back(2)
    taker.join(10)
    assert taken == [2]
    assert (pool.statistics().lent, pool.statistics().most_lent) == (2, 2)
    pool.give_back(1)
    pool.give_back(2)
    with pytest.raises(RuntimeError, match="returned twice"):
        pool.give_back(2)


def test_an_empty_pool_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one element"):
        Pool([])


def test_abort_of_a_pool_and_a_counter_wakes_waiting_threads() -> None:
    pool, counter = Pool([1]), MonotonicCounter(0)
    pool.take()
    raised: list[type[BaseException]] = []

    def wait(action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except Cancelled as error:
            raised.append(type(error))

    threads = [
        threading.Thread(target=wait, args=(pool.take,)),
        threading.Thread(target=wait, args=(lambda: counter.wait_for(1),)),
    ]
    for thread in threads:
        thread.start()
    pool.abort()
    counter.abort()
    for thread in threads:
        thread.join(10)
    assert raised == [Cancelled, Cancelled]


def test_a_lane_without_micro_batches_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"expected 1 to 2 lanes .*, got 3"):
        LanePlan(3, 2)


def test_lanes_are_aligned_rows_of_one_allocation() -> None:
    lanes = Lanes({"a": (3,), "b": (2, 5)}, LanePlan(3, 4))
    for row, arena in zip(lanes.flat, lanes.arenas, strict=True):
        assert arena["b"].ctypes.data % ALIGNMENT == 0
        arena["b"].fill(1)
        assert row.sum() == 10
    assert lanes.nbytes == lanes.flat.nbytes
