"""States of trainings that follow from a number, comparison of checkpoints with them, and death at a file operation.

Operations are those that change the disk: open, write, sync, rename, create and remove.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import (
    Checkpoint,
    TrainingState,
    kept_versions,
)
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.storage import hashed_file

Floats = NDArray[np.float32]
GEOMETRY = Geometry(vocabulary=13, context=5, layers=2, heads=2, channels=4)
AUDITED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"}


def arena_of(number: int, geometry: Geometry = GEOMETRY) -> Arena:
    """Return an arena of random elements, seeded with `number`."""
    arena = Arena(parameter_shapes(geometry))
    rng = np.random.default_rng(number)
    for view in arena.values():
        view[...] = rng.standard_normal(view.shape, np.float32)
    return arena


def state_of(step: int, delay: int, salt: int = 0, geometry: Geometry = GEOMETRY) -> TrainingState:
    """Return a training state that depends only on the arguments."""
    base = 1000 * salt
    return TrainingState(
        step=step,
        delay=delay,
        versions={version: arena_of(base + version, geometry) for version in kept_versions(step, delay)},
        optimizer={"m": arena_of(base + 300 + step, geometry), "v": arena_of(base + 600 + step, geometry)},
        config={"delay": delay, "lr": 1e-3, "name": "größer", "salt": salt},
        geometry=geometry,
    )


def assert_same(found: Mapping[str, Floats], expected: Mapping[str, Floats]) -> None:
    """Assert that two sets of tensors have the same names and bits."""
    assert found.keys() == expected.keys()
    for name, view in found.items():
        np.testing.assert_array_equal(view.view(np.int32), expected[name].view(np.int32))


def empty(geometry: Geometry = GEOMETRY) -> Arena:
    """Return an uninitialised arena."""
    return Arena(parameter_shapes(geometry))


def assert_holds(path: Path, state: TrainingState) -> None:
    """Assert that a checkpoint is undamaged and holds `state`."""
    found = Checkpoint.open(path)
    assert (found.step, found.delay, found.geometry) == (state.step, state.delay, state.geometry)
    assert found.config == state.config
    assert list(found.versions) == sorted(state.versions)
    for version, arena in state.versions.items():
        weights = empty(state.geometry)
        found.read_weights(version, weights)
        assert_same(weights, arena)
    optimizer = {name: empty(state.geometry) for name in state.optimizer}
    found.read_optimizer(optimizer)
    for name, arena in state.optimizer.items():
        assert_same(optimizer[name], arena)


class Operations:
    """Counter of the file operations of this process; calls `act` before number `at`."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.count = 0
        self._at = at
        self._act = act

    def step(self) -> None:
        """Count one operation."""
        self.count += 1
        if self.count == self._at:
            self._act()

    def watch(self) -> None:
        """Start counting: audit events, and fsync and write, which have none."""
        sys.addaudithook(self._audit)
        step = self.step

        def counted_fsync(handle: int) -> None:
            step()  # without the sync: it matters for a power cut, not for a kill, and takes most of the time

        class CountedFile(FileIO):
            def write(self, data: Any) -> int:
                step()
                return super().write(data)

        patch.object(os, "fsync", counted_fsync).start()
        patch.object(hashed_file, "FileIO", CountedFile).start()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and (event != "open" or _writes(arguments)):
            self.step()


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kill_self() -> None:
    """Kill this process with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
