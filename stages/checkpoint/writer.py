"""Writing checkpoints."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from threadloom.stages.checkpoint.directory import partial_path, publish, remove_leftovers, remove_old
from threadloom.stages.checkpoint.format import FORMATS, written_format
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE, CheckpointManifest, json_copy, write_manifest
from threadloom.stages.checkpoint.retention import Retention
from threadloom.stages.checkpoint.state import TrainingState
from threadloom.stages.data import companion_files
from threadloom.stages.models import geometry_to_json
from threadloom.stages.storage import (
    CheckpointError,
    DiskFullError,
    copy_files,
    explain_disk_full,
    make_directory,
    require_free_space,
)

_SMALL_FILES = 1 << 20  # bytes allowed for config.json, training.json and the directory itself


def save_checkpoint(directory: Path, state: TrainingState, tokenizer: Path | None, keep: int | Retention) -> Path:
    """Write a checkpoint to `directory`, which is created if necessary, and keep those of `keep`
    there; a number is that of the newest ones (0: all).

    `tokenizer` is a file to copy into the checkpoint, with the files that accompany it in its directory. Returns the
    path of the checkpoint once it is on the disk. On
    failure nothing of it remains and the other checkpoints are unchanged: `DiskFullError` if it does not fit,
    `CheckpointError` for other errors of the operating system, `ValueError` or `TypeError` for arguments that cannot
    be saved.
    """
    number = written_format(state.geometry)
    layout = FORMATS[number]
    retention = Retention(keep) if isinstance(keep, int) else keep
    if tokenizer is not None and tokenizer.name in layout.file_names | {MANIFEST_FILE}:
        raise ValueError(f"the tokenizer file cannot be named {tokenizer.name}: the checkpoint has a file of that name")
    config = json_copy(state.config)
    partial = partial_path(directory, state.step)
    needed = state.nbytes + _SMALL_FILES
    with _errors_explained(directory, needed):
        make_directory(directory)
        require_free_space(directory, needed)
        partial.mkdir()
        copied = {tokenizer.name: tokenizer, **companion_files(tokenizer.parent)} if tokenizer else {}
        files = copy_files(copied, partial)
        files |= layout.write(partial, state)
        manifest = CheckpointManifest(
            format=number,
            step=state.step,
            delay=state.delay,
            geometry=geometry_to_json(state.geometry),
            config=config,
            tokenizer=tokenizer.name if tokenizer else None,
            scalers=[state.scalers[version] for version in sorted(state.scalers)] or None,
            guard=state.guard,
            base=state.base,
            embedding=state.embedding_digest,
            files=files,
        )
        write_manifest(partial, manifest)
        target = publish(partial, state.step)
    remove_old(target, retention)
    return target


@contextmanager
def _errors_explained(directory: Path, needed: int) -> Iterator[None]:
    """On failure of the block, remove the incomplete checkpoint and then explain errors of the operating system."""
    try:
        with explain_disk_full(directory, needed):
            try:
                yield
            except BaseException:
                with suppress(OSError):
                    remove_leftovers(directory)
                raise
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            cause = "the directory belongs to another user, or is mounted read-only"
            hint = "choose another output directory"
        else:
            cause = "the disk failed or was removed"
            hint = "check the system log, and choose another output directory"
        raise CheckpointError(
            Path(os.fsdecode(error.filename)) if error.filename else directory,
            expected=f"to write {needed:,} bytes",
            got=error.strerror or str(error),
            cause=cause,
            hint=f"{hint}; existing checkpoints are unchanged",
        ) from error
