"""Compiled kernels on disk, in files that several processes may write at once.

Numba keeps an index beside numbered files and writes both without a lock. Of two processes that compile a kernel at the
same time, for two signatures, both may take the same number, and one signature is given the machine code of the other
from then on; and after an edit the new index stands beside yesterday's code for a moment. Here an entry is one file:
its name follows from all that it is an entry of, the digest of the sources included, and it appears whole or not at
all. So there is nothing that two processes could get out of step.

Ownership: the files of one kernel belong to every process that has its sources; any may write or remove any of them.
"""

import contextlib
import glob
import hashlib
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile


class CacheFile(IndexDataCacheFile):  # type: ignore[misc]  # Numba has no types
    """The entries of one kernel; a key is a signature on a processor. Reading and writing a file is left to Numba."""

    def __init__(self, folder: str, base: str, stamp: str) -> None:
        """`base`: what the names of the kernel's files begin with; `stamp`: what entries depend on besides the key."""
        super().__init__(folder, base, stamp)
        digest = hashlib.sha256(f"{numba.__version__} {stamp}".encode()).hexdigest()[:12]
        self._base, self._ours = base, f"{base}.{digest}."

    def save(self, key: Any, data: Any) -> None:
        """Keep an entry, and remove those that were made of other sources."""
        self._save_data(self._name(key), data)
        self._remove(keep=self._ours)

    def load(self, key: Any) -> Any:
        """Return the entry of a key, or None."""
        try:
            return self._load_data(self._name(key))
        except Exception:  # not there, or spoilt in whatever way: it is compiled and written again
            return None

    def flush(self) -> None:
        """Remove every entry."""
        self._remove(keep=None)

    def _name(self, key: Any) -> str:
        return f"{self._ours}{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.nbc"

    def _remove(self, keep: str | None) -> None:
        """Remove the kernel's files, Numba's own too, but for those whose names begin with `keep`."""
        for path in Path(self._cache_path).glob(f"{glob.escape(self._base)}.*nb[ci]"):
            if keep is None or not path.name.startswith(keep):
                with contextlib.suppress(OSError):  # another process was faster, or reads it just now (Windows)
                    path.unlink()
