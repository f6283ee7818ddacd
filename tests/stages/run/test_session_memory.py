"""A finished run releases its memory."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.stages.support import story
from threadloom.stages.run import session
from threadloom.stages.training import training

pytestmark = pytest.mark.timeout(60)


def test_the_arrays_of_a_run_are_freed_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cyclic garbage collector, so that consecutive runs in one process do not accumulate memory."""
    banks: list[weakref.ref[Any]] = []

    class Watched(training.Training):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            banks.append(weakref.ref(self.banks))

    monkeypatch.setattr(session, "Training", Watched)
    config = story(tmp_path, "steps=2")
    gc.disable()
    try:
        session.train(config, tmp_path / "run")
        left = [bank() for bank in banks]
    finally:
        gc.enable()
    assert left == [None]
