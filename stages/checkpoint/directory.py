"""The directory of the checkpoints of a run: publishing a new one, removing old ones, cleaning up after a crash.

A checkpoint is written to `.step-NNNNNN.partial-…`, every file and then the directory is synced, and a rename, synced
in turn, publishes it as `step-NNNNNN`. A directory of that name is therefore complete. An old checkpoint is renamed
before its files are removed, and only after the new one is published. A checkpoint of the same step is first renamed to
`.step-NNNNNN.replaced-…`; if the process is killed before the new one is published, `remove_leftovers` restores it.

One process at a time writes to the directory and calls `remove_leftovers` when it starts. Readers need no lock: a
published checkpoint never changes.
"""

import re
import secrets
import shutil
from pathlib import Path

from loguru import logger

from threadloom.stages.checkpoint.retention import Retention
from threadloom.stages.storage import checkpoint_name, checkpoint_step, finished_checkpoints, fsync_directory

_PARTIAL = re.compile(r"\.step-\d{6,}\.partial-[0-9a-f]+")
_REPLACED = re.compile(r"\.(step-\d{6,})\.replaced-[0-9a-f]+")


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the newest finished checkpoint in `directory`, or None if there is none.

    If its files have been damaged since, `Checkpoint.open` raises an error that suggests the previous checkpoint. Going
    back automatically would hide a failing disk, so that decision is the user's.
    """
    finished = finished_checkpoints(directory)
    return finished[-1] if finished else None


def partial_path(directory: Path, step: int) -> Path:
    """Return a new path at which to write the checkpoint of a step before it is published."""
    return _temporary(directory / checkpoint_name(step), "partial")


def publish(partial: Path, step: int) -> Path:
    """Rename a complete checkpoint to its final name, and return its path.

    A checkpoint of the same step is replaced. After a kill at any moment, either it or the new one can be recovered.
    """
    target = partial.with_name(checkpoint_name(step))
    fsync_directory(partial)
    replaced = _temporary(target, "replaced") if target.exists() else None
    if replaced:
        target.rename(replaced)
    partial.rename(target)
    fsync_directory(target.parent)
    if replaced:
        _remove(replaced)
    return target


def remove_old(newest: Path, retention: Retention) -> None:
    """Remove the checkpoints next to `newest` that are not kept; it is never removed."""
    directory = newest.parent
    finished = finished_checkpoints(directory)
    kept = retention.kept([checkpoint_step(path) for path in finished])
    for old in finished:
        if old == newest or checkpoint_step(old) in kept:
            continue
        partial = _temporary(old, "partial")
        try:
            old.rename(partial)
            fsync_directory(directory)
        except OSError as error:  # the new checkpoint is complete, so training continues
            logger.warning("{}: an old checkpoint could not be removed: {}", old, error)
        else:
            _remove(partial)


def remove_leftovers(directory: Path) -> list[str]:
    """Clean up after a writer that was killed, and return one sentence per action.

    To be called by the process that writes to `directory`, before its first checkpoint. A checkpoint that was renamed
    to be replaced is restored if the new one was not published. Raises `OSError`.
    """
    actions: list[str] = []
    for path, match in _matching(directory, _REPLACED):
        target = directory / match[1]
        if target.exists():
            shutil.rmtree(path)
            actions.append(f"removed {path.name}, which {target.name} has replaced")
        else:
            path.rename(target)
            fsync_directory(directory)
            actions.append(f"restored {target.name}, since the checkpoint to replace it is incomplete")
    for path, _ in _matching(directory, _PARTIAL):
        shutil.rmtree(path)
        actions.append(f"removed {path.name}, which is incomplete")
    return actions


def _temporary(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    """Remove a checkpoint that has lost its name; files that cannot be removed are left to `remove_leftovers`."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("{}: an old checkpoint could not be removed: {}", path, error)


def _matching(directory: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return the subdirectories whose name matches, with the match."""
    if not directory.is_dir():
        return []
    entries = ((path, pattern.fullmatch(path.name)) for path in directory.iterdir() if path.is_dir())
    return [(path, match) for path, match in entries if match]
