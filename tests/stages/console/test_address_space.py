"""Stacks and arenas under a limit on address space."""

import threading
from collections.abc import Iterator

import pytest

from threadloom.stages.console import address_space
from threadloom.stages.console.address_space import STACK_BYTES, spare_address_space

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def default_stacks() -> Iterator[None]:
    yield
    threading.stack_size(0)


def test_without_a_limit_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "_limits", lambda: (None, 100_000))
    environment: dict[str, str] = {}
    assert not spare_address_space(environment)
    assert (environment, threading.stack_size()) == ({}, 0)


def test_under_a_limit_stacks_and_arenas_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "_limits", lambda: (10**9, None))
    monkeypatch.setattr(address_space, "_M_ARENA_MAX", 0)  # a parameter that glibc does not know
    environment = {"OPENBLAS_NUM_THREADS": "4"}
    assert spare_address_space(environment)
    assert threading.stack_size() == STACK_BYTES
    assert environment == {"OPENBLAS_NUM_THREADS": "4", "MALLOC_ARENA_MAX": "2"}


def test_under_a_limit_on_threads_blas_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "_limits", lambda: (None, 20))
    environment: dict[str, str] = {}
    assert not spare_address_space(environment)
    assert environment == {"OPENBLAS_NUM_THREADS": "1"}
    assert threading.stack_size() == 0
