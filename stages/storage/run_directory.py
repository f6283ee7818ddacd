"""The directory of a run: the paths in it, and the right to write to it.

A directory with other content is never used, an existing run is replaced only if asked for, and a lock keeps a second
process from writing to the same run. Readers take no lock.

Layout: `config.json`, `metrics.jsonl`, `loss.png`, `timeline.png`, `trace.json`, `checkpoints/step-NNNNNN/`, `data/`.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from threadloom.stages.config import InputError
from threadloom.stages.storage.durable_io import file_lock

_LOCK = ".lock"
_CHECKPOINT = re.compile(r"step-\d{6,}")


class RunDirectoryError(InputError):
    """A run directory that cannot be used in the requested mode."""


class RunMode(Enum):
    """How to treat a run directory that already holds a run; the value is shown to the user."""

    NEW = "new"
    """Refuse it."""
    RESUME = "resume"
    """Resume its run; a directory without one is refused."""
    OVERWRITE = "overwrite"
    """Remove its run first."""


def checkpoint_name(step: int) -> str:
    """Return the name of the directory with the checkpoint after `step` updates."""
    return f"step-{step:06d}"


def finished_checkpoints(directory: Path) -> list[Path]:
    """Return the paths `step-NNNNNN` in a directory in ascending order of steps; none if it does not exist.

    Their files are verified by `Checkpoint.open`, not here.
    """
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _CHECKPOINT.fullmatch(p.name) and p.is_dir()), key=checkpoint_step)


def holds_training_files(directory: Path) -> bool:
    """Return True if a directory has the layout of a run or of a checkpoint."""
    if (directory / "training.json").is_file() and (directory / "model.safetensors").is_file():
        return True
    run = RunDirectory(directory)
    evidence = (run.metrics, run.path / _LOCK, run.data / "manifest.json")
    return run.checkpoints.is_dir() and (any(file.is_file() for file in evidence) or bool(run.checkpoint_steps()))


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of the checkpoint in a directory, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Readers construct it directly, which touches no file; the writer uses `claim`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration of the run, JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """Metrics: one JSON line per update and one per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def loss_plot(self) -> Path:
        """Plot of the losses."""
        return self.path / "loss.png"

    @property
    def timeline(self) -> Path:
        """Timeline of the stages as an image."""
        return self.path / "timeline.png"

    @property
    def trace(self) -> Path:
        """Timeline of the stages as Chrome trace JSON."""
        return self.path / "trace.json"

    @property
    def data(self) -> Path:
        """Directory of the token files."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` updates."""
        return self.checkpoints / checkpoint_name(step)

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Return the steps of the finished checkpoints, in ascending order."""
        return tuple(checkpoint_step(path) for path in finished_checkpoints(self.checkpoints))

    def holds_run(self) -> bool:
        """Return True if a run has started here; a start that failed before the first update leaves no run."""
        return self.config.is_file() or self.metrics.is_file() or bool(self.checkpoint_steps())

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path, mode: RunMode = RunMode.NEW) -> Iterator[Self]:
        """Create the directory, or open the run in it, and exclude other writers for the duration of the block.

        Raises `RunDirectoryError` if the content of the directory does not fit `mode`, or if another process writes to
        the run. If the block fails before a run has started, the directories created here are removed.
        """
        run = cls(path)
        run._require_usable(mode)
        run._make_directories()
        with run._locked():
            if mode is RunMode.OVERWRITE:
                run._remove_run()
            try:
                yield run
            except BaseException:
                if not run.holds_run():
                    run._unclaim()
                raise

    def _require_usable(self, mode: RunMode) -> None:
        """Raise `RunDirectoryError` if the content of the directory does not fit `mode`."""
        if self.path.exists() and not self.path.is_dir():
            raise self._error("a directory for the run", "a file", None, "choose another --out")
        if mode is RunMode.RESUME and not self.holds_run():
            hint = "omit --resume to start a run, or choose the --out of the run"
            raise self._error("a run to resume", "none", "it was never started, or is in another directory", hint)
        if mode is RunMode.NEW and self.holds_run():
            hint = "resume that run with --resume, replace it with --overwrite, or choose another --out"
            raise self._error("a new or empty directory", "a directory with a run", None, hint)
        if not self.holds_run() and not self.checkpoints.is_dir() and (entries := self._entries()):
            expected = "a new or empty directory, or one with a run"
            cause = "the directory is used for something else"
            raise self._error(expected, f"a directory with {', '.join(entries[:3])}", cause, "choose another --out")

    def _entries(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir() if entry.name != _LOCK) if self.path.is_dir() else []

    def _make_directories(self) -> None:
        try:
            # `checkpoints` first: it identifies a run directory if the process is killed between the two.
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.data.mkdir(exist_ok=True)
        except OSError as error:
            cause = "another user owns it, or the disk is full or read-only"
            expected = "a directory that can be created and written to"
            raise self._error(expected, str(error.strerror), cause, "choose another --out") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / _LOCK))
            except BlockingIOError as error:
                hint = "wait until it ends, stop it, or choose another --out"
                got = "another process that writes to it"
                raise self._error("a run without a writer", got, "it is still training", hint) from error
            yield

    def _error(self, expected: str, got: str, cause: str | None, hint: str) -> RunDirectoryError:
        return RunDirectoryError(str(self.path), expected, got, cause, hint)

    def _unclaim(self) -> None:
        """Remove the empty directories of a run that did not start, so that the same --out can be used again."""
        shutil.rmtree(self.data, ignore_errors=True)
        with contextlib.suppress(OSError):  # a directory with other files is kept
            self.checkpoints.rmdir()
            (self.path / _LOCK).unlink()
            self.path.rmdir()

    def _remove_run(self) -> None:
        """Remove the files of a run and no others."""
        for file in (self.config, self.metrics, self.loss_plot, self.timeline, self.trace):
            file.unlink(missing_ok=True)
        for directory in (self.checkpoints, self.data):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
