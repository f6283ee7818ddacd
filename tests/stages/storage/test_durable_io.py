"""Durable file operations: atomic writes, errors of a full disk, the lock between processes."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from threadloom.stages.storage.durable_io import (
    DiskFullError,
    atomic_file,
    atomic_write,
    file_lock,
    free_bytes,
    make_directory,
    require_free_space,
)

ROOT = Path(__file__).parents[3]


def test_content_is_bytes_or_written_in_a_block(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"one")
    assert file.read_bytes() == b"one"
    with atomic_file(file) as out:
        out.write(b"two")
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_explained_and_the_previous_file_kept(tmp_path: Path, number: int) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"good")
    with pytest.raises(
        DiskFullError, match=r"file: expected space for the file, got .* Hint: .*; existing files are kept"
    ) as caught:
        with atomic_file(file) as out:
            out.write(b"half")
            raise OSError(number, "No space left on device")
    assert caught.value.errno == number
    assert file.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["file"]


def test_a_limit_on_file_sizes_is_reported_with_the_bytes_needed(tmp_path: Path) -> None:
    # A real write refused by the kernel, in a separate process, since the limit applies to all files of a process.
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from threadloom.stages.storage import atomic_write, DiskFullError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write(Path(sys.argv[1]), b'x' * 5000)\n"
        "except DiskFullError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "expected space for 5,000 bytes, got a lower limit on file sizes" in answer.stdout
    assert "ulimit -f unlimited" in answer.stdout
    assert os.listdir(tmp_path) == []


def test_other_errors_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_free_space_is_checked_in_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert free_bytes(tmp_path / "not" / "there" / "yet") == 1000
    require_free_space(tmp_path / "file", 1000)
    with pytest.raises(DiskFullError, match=r"expected space for 1,001 bytes, got 1,000 bytes free"):
        require_free_space(tmp_path / "file", 1001)


def test_one_holder_of_a_lock_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        with pytest.raises(BlockingIOError), file_lock(path, timeout=0.05):
            pass
    with file_lock(path):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from threadloom.stages.storage import file_lock\n"
        "with file_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), file_lock(path):
            pass
        holder.stdin.close()
        with file_lock(path, timeout=30):  # the lock of a process that has ended is free
            pass


def test_without_support_for_locks_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with file_lock(tmp_path / "lock"), file_lock(tmp_path / "lock"):
        pass


def test_on_a_system_without_flock_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadloom.stages.storage.durable_io.fcntl", None)
    with file_lock(tmp_path / "lock"), file_lock(tmp_path / "lock"):
        pass


def test_a_lock_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "none" / "lock"):
        pass


def test_missing_parents_are_created(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    make_directory(tmp_path / "a" / "b")
