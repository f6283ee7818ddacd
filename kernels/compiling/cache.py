"""Cache of compiled kernels on disk, whose files several processes may write at once.

Numba keeps an index next to numbered files and writes both without a lock. If two processes compile a kernel at the
same time, for two signatures, both may use the same number, and one signature loads the machine code of the other from
then on; and after an edit the new index refers to outdated code for a moment. Here an entry is one file: its name
follows from everything that the entry depends on, the digest of the sources included, and it is created atomically. So
no two files can be inconsistent.

Ownership: the files of one kernel belong to every process with the same sources; each may write or remove any of them.
"""

import contextlib
import glob
import hashlib
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile


class CacheFile(IndexDataCacheFile):  # type: ignore[misc]  # Numba has no types
    """Entries of one kernel; a key is a signature on a processor. Numba reads and writes the files themselves."""

    def __init__(self, folder: str, base: str, stamp: str) -> None:
        """Use files in `folder` whose names start with `base`; entries depend on the key and on `stamp`."""
        super().__init__(folder, base, stamp)
        digest = hashlib.sha256(f"{numba.__version__} {stamp}".encode()).hexdigest()[:12]
        self._base, self._ours = base, f"{base}.{digest}."

    def save(self, key: Any, data: Any) -> None:
        """Write an entry, and remove those compiled from other sources."""
        self._save_data(self._name(key), data)
        self._remove(keep=self._ours)

    def load(self, key: Any) -> Any:
        """Return the entry of a key, or None if it is missing or unreadable."""
        try:
            return self._load_data(self._name(key))
        except Exception:  # missing or corrupt in any way: it is compiled and written again
            return None

    def flush(self) -> None:
        """Remove every entry."""
        self._remove(keep=None)

    def _name(self, key: Any) -> str:
        return f"{self._ours}{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.nbc"

    def _remove(self, keep: str | None) -> None:
        """Remove the kernel's files, Numba's own too, except those whose names start with `keep`."""
        for path in Path(self._cache_path).glob(f"{glob.escape(self._base)}.*nb[ci]"):
            if keep is None or not path.name.startswith(keep):
                with contextlib.suppress(OSError):  # another process removed it, or is reading it (Windows)
                    path.unlink()
