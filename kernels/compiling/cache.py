"""Cache of compiled kernels on disk, whose files several processes may write at once.

Numba keeps an index next to numbered files and writes both without a lock. If two processes compile a kernel at the
same time, for two signatures, both may use the same number, and one signature loads the machine code of the other from
then on; and after an edit the new index refers to outdated code for a moment. Here an entry is one file: its name
follows from everything that the entry depends on, the digest of its sources included, and it is created atomically. So
no two files can be inconsistent.

A cache that cannot be written, on a full disk for example, is reported once, and costs only time: `KernelCache`.

Ownership: the files of one kernel belong to every process with the same sources of it; each may write or remove any
of them.
"""

import contextlib
import glob
import hashlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Self

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, InTreeCacheLocator

from threadloom.kernels.compiling.cache_folder import CACHE_FOLDER, REMEDY
from threadloom.kernels.compiling.symbol_visibility import CalleeLibrary


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


class _Locator(InTreeCacheLocator):  # type: ignore[misc]
    """The folder of one source file within `CACHE_FOLDER`, which was checked when it was chosen."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(CACHE_FOLDER.of_source(Path(file)))

    @classmethod
    def from_function(cls, function: Any, file: str) -> Self:
        """Return the locator of a function."""
        return cls(function, file)

    def ensure_cache_path(self) -> None:
        """Create the folder; Numba calls this before each write."""
        Path(self._cache_path).mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self) -> str:
        """Return an empty stamp: `CacheFile` has that of all sources."""
        return ""


class _CacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)

    def check_cachable(self, cres: Any) -> bool:
        """Return True if the kernel is worth an entry: one that was compiled as a callee has no machine code."""
        return not isinstance(cres.library, CalleeLibrary) and super().check_cachable(cres)


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The cache of one kernel in `CACHE_FOLDER`, which must have a path; set as the ``_cache`` of its dispatcher."""

    _impl_class = _CacheImpl

    def __init__(self, function: Any, stamp: str) -> None:
        super().__init__(function)
        self._cache_file = CacheFile(self.cache_path, self._impl.filename_base, stamp)

    def save_overload(self, signature: Any, data: Any) -> None:
        """Write an entry; if that fails, warn, and the next process compiles the kernel again."""
        try:
            super().save_overload(signature, data)
        except OSError as error:
            _warn_once(error.strerror or type(error).__name__)


@cache
def _warn_once(problem: str) -> None:
    """Warn that entries cannot be written. Python's own filter forgets what it has shown while Numba compiles."""
    warnings.warn(
        f"compiled kernels cannot be written to {CACHE_FOLDER.path} ({problem}): they are compiled again by every "
        f"process. Hint: free some space, or {REMEDY}",
        RuntimeWarning,
        stacklevel=3,
    )


def has_failed_to_save() -> bool:
    """Return True if this process could not write an entry."""
    return bool(_warn_once.cache_info().currsize)
