"""Faults while a checkpoint is written: full disk, refused write, interrupt, SIGKILL. Finished ones are never lost."""

import errno
import itertools
import os
import re
import resource
import shutil
import signal
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from tests.stages.checkpoint.checkpoint_writer import Operations, assert_holds, state_of
from threadloom.stages.checkpoint import Checkpoint, latest_checkpoint, remove_leftovers, save_checkpoint, writer
from threadloom.stages.storage import CheckpointError, DiskFullError, durable_io, finished_checkpoints, hashed_file

FORKS = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork while other threads are alive


# --- failures while writing -------------------------------------------------------------------------------------------


class FullDisk(FileIO):
    """A file whose writes are partial until the disk is full."""

    left = 0  # writes left, over all files
    code = errno.ENOSPC

    def write(self, data: Any) -> int:
        """Write half of the data, or raise `OSError`."""
        FullDisk.left -= 1
        if FullDisk.left == 0:
            raise OSError(FullDisk.code, os.strerror(FullDisk.code))
        return super().write(data[: max(len(data) // 2, 1)])


def save_with_room_for(folder: Path, writes: int, code: int, patch: pytest.MonkeyPatch) -> DiskFullError | None:
    """Save step 2 on a disk that is full at write number `writes`; return the error, if any."""
    with patch.context() as within:
        within.setattr(FullDisk, "left", writes)
        within.setattr(FullDisk, "code", code)
        within.setattr(hashed_file, "FileIO", FullDisk)
        try:
            save_checkpoint(folder, state_of(2, 1), None, 2)
        except DiskFullError as error:
            return error
    return None


@pytest.mark.parametrize(
    ("code", "step"),
    [
        (errno.ENOSPC, 4),
        pytest.param(errno.ENOSPC, 1, marks=pytest.mark.soak),
        pytest.param(errno.EDQUOT, 1, marks=pytest.mark.soak),
    ],
)
def test_a_full_disk_leaves_other_checkpoints_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: int
) -> None:
    """Every `step`-th write in turn is the first that does not fit."""
    save_checkpoint(tmp_path, state_of(1, 1), None, 2)
    writes = 1
    while error := save_with_room_for(tmp_path, writes, code, monkeypatch):
        writes += step
        assert re.search(r"expected space for [\d,]+ bytes, got [\d,]+ bytes free", str(error))
        assert isinstance(error.__cause__, OSError)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
        assert_holds(tmp_path / "step-000001", state_of(1, 1))
    assert writes > 50
    assert_holds(tmp_path / "step-000002", state_of(2, 1))


def test_too_little_space_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_io, "free_bytes", lambda _: 1234)
    with pytest.raises(DiskFullError, match=r"expected space for [\d,]+ bytes, got 1,234 bytes free"):
        save_checkpoint(tmp_path / "c", state_of(1, 0), None, 1)
    assert list((tmp_path / "c").iterdir()) == []


def save_with_largest_file(folder: Path, size: int) -> str:
    """Save step 2 in a fork with a limit on the size of files; return the error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            save_checkpoint(folder, state_of(2, 2), None, 2)
        except Exception as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as said:
        found = said.read()
    os.waitpid(child, 0)
    return found


@FORKS
def test_a_limit_on_file_sizes_is_reported_as_such(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(1, 2), None, 2)
    for largest in (0, 100, 2000, 4000):
        error = save_with_largest_file(tmp_path, largest)
        assert error.startswith("DiskFullError: ")
        assert "a lower limit on file sizes" in error
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert_holds(tmp_path / "step-000001", state_of(1, 2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permission_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="belongs to another user"):
        save_checkpoint(tmp_path / "c", state_of(1, 0), None, 1)


def test_a_refused_write_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(hashed_file, "FileIO", refuse)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*Permission denied.*another user.*unchanged"):
        save_checkpoint(tmp_path, state_of(1, 0), None, 1)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, state_of(1, 0), None, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        save_checkpoint(tmp_path / "c", state_of(1, 0), tmp_path / "nowhere.json", 1)
    assert list((tmp_path / "c").iterdir()) == []


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def assert_nothing_lost(folder: Path, finished: int, salts: tuple[int, ...] = (0,)) -> None:
    """Check that every finished checkpoint is complete, and that the newest is at least that of step `finished`."""
    remove_leftovers(folder)
    assert all(path.name.startswith("step-") for path in folder.iterdir())
    for path in finished_checkpoints(folder):
        found = Checkpoint.open(path)
        assert found.config["salt"] in salts
        assert_holds(path, state_of(found.step, 2, found.config["salt"]))
    newest = latest_checkpoint(folder)
    assert newest is not None
    assert Checkpoint.open(newest).step >= finished


def fork_writer(folder: Path, kill_at: int, salt: int) -> bool:
    """Write steps 3 and 4 in a child that dies before file operation `kill_at`; return True if it got that far.

    The child is a fork, which starts fast enough to try every operation.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Operations(kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL)).watch()
            save_checkpoint(folder, state_of(3, 2, salt), None, 2)
            save_checkpoint(folder, state_of(4, 2, salt), None, 2)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


@FORKS
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_kill_before_every_file_operation_loses_nothing(tmp_path: Path, step: int) -> None:
    """The child replaces a checkpoint and adds another, which removes the oldest; it dies at every `step`-th."""
    save_checkpoint(tmp_path, state_of(2, 2), None, 2)
    save_checkpoint(tmp_path, state_of(3, 2), None, 2)
    pristine = tmp_path.with_name("pristine")
    shutil.copytree(tmp_path, pristine)
    operation = 1
    while fork_writer(tmp_path, operation, salt=1):
        operation += step
        assert_nothing_lost(tmp_path, 3, (0, 1))
        shutil.rmtree(tmp_path)
        shutil.copytree(pristine, tmp_path)
    assert operation > 60
    assert_nothing_lost(tmp_path, 4, (0, 1))


def endless_writer(folder: Path, first: int) -> tuple[int, TextIO]:
    """Write checkpoints from step `first` on, in a fork; return its number, and a stream of lines "step N" of them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Operations(-1, lambda: None).watch()
            remove_leftovers(folder)
            for step in itertools.count(first):
                save_checkpoint(folder, state_of(step, 2), None, 2)
                os.write(writing, f"step {step}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    return child, os.fdopen(reading, encoding="utf-8")


@FORKS
def test_kill_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    """A writer is killed while it writes a checkpoint, and started again from its last one; four times."""
    rng = np.random.default_rng(5)
    finished = 0
    for _ in range(4):
        newest = latest_checkpoint(tmp_path)
        first = Checkpoint.open(newest).step if newest else 0  # writing that step again replaces it
        writer, lines = endless_writer(tmp_path, first)
        with lines:
            for _ in range(int(rng.integers(1, 20))):
                finished = int(lines.readline().split()[1])
            for _ in range(int(rng.integers(0, 200_000))):  # a random time into the next one, too short for sleep
                pass
            os.kill(writer, signal.SIGKILL)
            finished = max([finished, *(int(line.split()[1]) for line in lines if line.endswith("\n"))])
        os.waitpid(writer, 0)
        assert_nothing_lost(tmp_path, finished)
