"""The folder of one run: where its files are, and how they are written so that none is ever half there.

Guarantees: `atomic_write` leaves the old file or the whole new one, whatever kills the process. A line of metrics that
was appended survives a kill of the process (it is with the system, not in a buffer of ours), and a power cut after
`MetricsLog.sync`. A folder that holds something is never written over unasked, and no two processes write to a run.

Layout: `config.json`, `metrics.jsonl`, `loss.png`, `timeline.png`, `trace.json`, `checkpoints/step-NNNNNN/`, `data/`.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec
from loguru import logger

from threadloom.stages.config import InputError

try:
    import fcntl
except ImportError:  # Windows: a run is then not guarded against a second writer
    fcntl = None  # type: ignore[assignment]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunDirectoryError(InputError):
    """A run directory cannot be used as asked."""


class DiskFullError(OSError):
    """There is no room for a file; what was there before is unchanged."""


class RunMode(Enum):
    """What to do with a run directory that already holds a run; the value is what a person reads."""

    NEW = "new"  # refuse it
    RESUME = "resume"  # go on with the run in it, which must be there
    OVERWRITE = "overwrite"  # remove the run in it first


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. Making one touches nothing: readers use it as it is, the one writer takes `claim`."""

    path: Path

    @property
    def config(self) -> Path:
        """Everything resolved: the configuration that the run was made with."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON line an update, and one an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def loss_plot(self) -> Path:
        """The picture of the losses."""
        return self.path / "loss.png"

    @property
    def timeline(self) -> Path:
        """The picture of which stage worked when."""
        return self.path / "timeline.png"

    @property
    def trace(self) -> Path:
        """The same as Chrome trace JSON."""
        return self.path / "trace.json"

    @property
    def data(self) -> Path:
        """The folder of the token files."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` updates."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint folder, in order; whether one is whole is for its reader to check."""
        if not self.checkpoints.is_dir():
            return ()
        found = (re.fullmatch(r"step-(\d{6,})", entry.name) for entry in self.checkpoints.iterdir() if entry.is_dir())
        return tuple(sorted(int(match[1]) for match in found if match))

    def holds_run(self) -> bool:
        """Whether a run was begun here; one that ended before its first update has left at most empty folders."""
        return self.config.is_file() or self.metrics.is_file() or bool(self.checkpoint_steps())

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path, mode: RunMode = RunMode.NEW) -> Iterator[Self]:
        """Make the directory, or take up the run in it, and keep other writers out until the block ends.

        Raises RunDirectoryError when it holds what `mode` does not allow for, or another process writes to it.
        """
        run = cls(path)
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(
                str(path),
                expected="a folder for the run",
                got="a file",
                cause="the name of another file was given",
                hint="give another --out",
            )
        if mode is RunMode.RESUME and not run.holds_run():
            raise RunDirectoryError(
                str(path),
                expected="a run to resume",
                got="none",
                cause="it was never started, or lies in another folder",
                hint="leave out --resume to start it, or give the run's own --out",
            )
        if mode is not RunMode.RESUME and not run.holds_run() and _entries(path) and not run.checkpoints.is_dir():
            raise RunDirectoryError(
                str(path),
                expected="an empty or new folder, or one with a run",
                got=f"{', '.join(_entries(path)[:3])} in it",
                cause="the folder is for something else",
                hint="give another --out",
            )
        if mode is RunMode.NEW and run.holds_run():
            raise RunDirectoryError(
                str(path),
                expected="an empty or new folder",
                got="a run in it",
                cause="the same --out was used before",
                hint="continue that run with --resume, replace it with --overwrite, or give another --out",
            )
        try:
            # The checkpoints' folder first: it is what tells a run's directory from any other, should this be cut off.
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            run.data.mkdir(exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                str(path),
                expected="a folder that can be made and written to",
                got=str(error.strerror),
                cause="another user owns it, or the disk is full or read-only",
                hint="give another --out",
            ) from error
        with _only_writer(path):
            if mode is RunMode.OVERWRITE:
                run._remove_run()
            try:
                yield run
            except BaseException:
                if not run.holds_run():
                    run._unclaim()
                raise

    def _unclaim(self) -> None:
        """Leave nothing of a run that did not begin, so that the same --out serves the next attempt."""
        shutil.rmtree(self.data, ignore_errors=True)
        with contextlib.suppress(OSError):  # where somebody has put something into it, it stays
            self.checkpoints.rmdir()
            (self.path / ".lock").unlink()
            self.path.rmdir()

    def _remove_run(self) -> None:
        """Remove what a run leaves, and nothing that a person may have put beside it."""
        for file in (self.config, self.metrics, self.loss_plot, self.timeline, self.trace):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.data):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()


def _entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name != ".lock") if path.is_dir() else []


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a run. The system drops it when the process ends, however it ends."""
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunDirectoryError(
                    str(path),
                    expected="a run that nobody writes to",
                    got="another process at work on it",
                    cause="it is still training",
                    hint="wait for it to end or stop it, or give another --out",
                ) from error
            except OSError as error:  # some network file systems have no locks
                logger.debug("no lock on {}: {}", path, error)
        yield
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """The bytes that may still be written where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free(path: Path, needed: int) -> None:
    """Raise DiskFullError unless `needed` bytes fit where `path` will be: better before a long write than in it."""
    if free_bytes(path) < needed:
        raise _disk_full(path, needed)


def _disk_full(path: Path, needed: int | None) -> DiskFullError:
    free = free_bytes(path.parent)
    amount = "more room than there is" if needed is None else f"{needed:,} bytes"
    return DiskFullError(
        errno.ENOSPC,
        f"no room to write {path}: it needs {amount}, and {free:,} bytes are free there. What was saved before is "
        "unchanged; free some space, or give an --out on another disk",
    )


@contextlib.contextmanager
def disk_full_explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the system's "no space left" within the block into a DiskFullError that names `path`."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _disk_full(path, needed) from error


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a whole file or nothing: beside its place, synced, renamed into it, and the folder synced.

    `content` is the bytes, or a function that writes them to the open file that it is given. When it fails, or the disk
    is full (DiskFullError), the file that was there before stays as it was and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    needed = len(content) if isinstance(content, bytes) else None
    try:
        with disk_full_explained(path, needed):
            with beside.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` (a new file, a rename) survive a power cut; files need an fsync of their own."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders, and needs no such step
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class MetricsLog:
    """Appends one JSON line for every update and every evaluation. Owned by one thread at a time."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        """Open the log of a run after `resume_at` updates: lines of later steps, and a torn one, are dropped."""
        self.path = path
        if path.is_file():
            _keep_until(path, resume_at)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line: whole, or not at all (DiskFullError). A number that is not finite is written as null."""
        line = msgspec.json.encode(record, enc_hook=_plain) + b"\n"
        before = os.fstat(self._handle).st_size
        left = line
        try:
            with disk_full_explained(self.path, len(line)):
                while left:  # a nearly full disk takes a part
                    left = left[os.write(self._handle, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, before)
            raise

    def sync(self) -> None:
        """Make every line so far survive a power cut; called with each checkpoint."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file, in order, also while it is being written; a torn last line is left out."""
    return [record for _, record in _records(path)]


def _keep_until(path: Path, step: int) -> None:
    """Keep the whole lines of at most `step`, in one rename."""
    kept = b"".join(line for line, record in _records(path) if record.get("step", 0) <= step)
    if kept != path.read_bytes():
        atomic_write(path, kept)


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            record = None
        if record is not None and line.endswith(b"\n"):
            yield line, record
        elif number < len(lines):
            logger.warning("{}: line {} is damaged and was left out", path, number)


def _plain(value: object) -> Any:
    """NumPy's numbers as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a metric must be a number, a string or a list of them, not {type(value).__name__}")
