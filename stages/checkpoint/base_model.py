"""The model that a run with adapters does not change: its folder, and the digests by which a change is noticed.

Checkpoints of such a run have the adapters alone. The files are hashed when the run starts and when a checkpoint is
opened, not when one is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from threadloom.stages.storage import (
    CONFIG_FILE,
    INDEX_FILE,
    MODEL_FILE,
    CheckpointError,
    FileDigest,
    digest_file,
    shard_names,
)


@dataclass(frozen=True)
class BaseModel:
    """A folder of a model in Hugging Face's layout, as it was when the run started."""

    path: str
    """Absolute path."""
    files: Mapping[str, FileDigest]
    """Name → digest of config.json and of the files with weights."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read and hash the files of a folder; raises CheckpointError if one cannot be read."""
        if (folder / MODEL_FILE).exists():
            names = [CONFIG_FILE, MODEL_FILE]
        else:
            names = [CONFIG_FILE, INDEX_FILE, *shard_names(folder / INDEX_FILE)]
        files = {}
        for name in names:
            try:
                files[name] = digest_file(folder / name)
            except OSError as error:
                got = error.strerror or str(error)
                raise CheckpointError(folder / name, expected="a file of the model", got=got) from error
        return cls(str(folder.absolute()), files)

    def verified(self, folder: Path | None = None) -> Path:
        """Return the folder if its files are those that the run started with; `folder` is another place of the model.

        Raises CheckpointError if they are not.
        """
        folder = Path(self.path) if folder is None else folder
        for name, recorded in self.files.items():
            path = folder / name
            try:
                same_size = path.stat().st_size == recorded.size
                found = digest_file(path) if same_size else None
            except OSError as error:
                raise self._error(path, "a file of the model", error.strerror or str(error)) from error
            if found is None:
                raise self._error(path, f"a file of {recorded.size:,} bytes", f"{path.stat().st_size:,} bytes")
            if found != recorded:
                raise self._error(path, f"SHA-256 {recorded.sha256}", f"SHA-256 {found.sha256}")
        return folder

    def moved_to(self, folder: Path) -> "BaseModel":
        """Return the model with the place that it has now."""
        return BaseModel(str(folder.absolute()), self.files)

    def _error(self, path: Path, expected: str, got: str) -> CheckpointError:
        return CheckpointError(
            path,
            expected=expected,
            got=got,
            cause="the model that the adapters belong to has been moved, removed or changed since the run started",
            hint=f"restore it as {self.path} (a symbolic link will do), or pass its folder with --base FOLDER",
        )
