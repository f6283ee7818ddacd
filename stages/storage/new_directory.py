"""New directories that are complete or absent."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threadloom.stages.storage.durable_io import explain_disk_full, fsync_directory, make_directory, require_free_space
from threadloom.stages.storage.tensor_file import CheckpointError


@contextmanager
def new_directory(path: Path, needed: int) -> Iterator[Path]:
    """Yield an empty directory, which becomes `path` at the end of the block; on an error nothing of it remains.

    `needed` is the number of bytes that the block writes; the files that it writes must be synced. Raises
    `CheckpointError` if `path` is a file or a directory with files, and `DiskFullError` if there is no space.
    """
    require_absent(path)
    path = path.absolute()
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    with explain_disk_full(path, needed):
        make_directory(path.parent)
        require_free_space(path.parent, needed)
        partial.mkdir()
        try:
            yield partial
            fsync_directory(partial)
            partial.rename(path)  # replaces an empty directory
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_directory(path.parent)


def require_absent(path: Path) -> None:
    """Raise `CheckpointError` if there is a file, or a directory with files, at a path."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise CheckpointError(
            path,
            expected="a new path, or an empty directory",
            got="a directory with files" if path.is_dir() else "a file",
            hint="choose another path, or remove it first",
        )
