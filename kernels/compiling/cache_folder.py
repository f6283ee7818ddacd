"""The folder of compiled kernels: the first one that can be written, chosen once per process.

In this order:

1. ``NUMBA_CACHE_DIR``, as for other programs that use Numba;
2. ``kernels`` in ``THREADLOOM_CACHE``;
3. ``__pycache__`` next to each source file;
4. Numba's cache in the user's home directory;
5. a temporary folder that belongs to the user;
6. none: kernels are compiled in memory, by each process.

The last three are for a package that is installed where the user cannot write. A warning tells that a folder of the
environment cannot be written, and that kernels are not cached in a lasting folder.

Loading an entry of the cache runs code, so a folder that another user may have prepared must never be used. That of the
home directory needs an absolute path (without a home directory, Numba would use ``~`` in the current directory), and
the temporary one is checked by `private_folder`.
"""

import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numba
from numba.core.caching import InTreeCacheLocator
from numba.misc.appdirs import AppDirs

REMEDY = (
    "set NUMBA_CACHE_DIR, or THREADLOOM_CACHE for everything that threadloom caches, to a folder that you can write"
)


class CacheKind(Enum):
    """The place of the compiled kernels. The value is its description in reports."""

    ENVIRONMENT = "named by the environment"
    PACKAGE = "__pycache__ folders of the package"
    USER = "the user's cache"
    TEMPORARY = "a temporary folder"
    MEMORY = "in memory only"


@dataclass(frozen=True)
class CacheFolder:
    """The folder in which compiled kernels are cached."""

    kind: CacheKind
    path: Path | None  # None: in memory only
    problem: str = ""  # a sentence with a remedy; "" if the kernels are cached where they are expected

    def of_source(self, file: Path) -> Path:
        """Return the folder for the kernels of a source file. Raises ValueError if there is none."""
        if self.path is None:
            raise ValueError("kernels are compiled in memory only")
        if self.kind is CacheKind.PACKAGE:
            return file.parent / "__pycache__"
        return self.path / InTreeCacheLocator.get_suitable_cache_subpath(str(file))


def write_problem(folder: Path) -> str | None:
    """Return why files cannot be created in a folder, which is created if it is missing; None if they can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk may still create an empty file
            file.flush()
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def private_folder(parent: Path) -> Path:
    """Return a folder in `parent`, such as /tmp, that only this user can write; created if it is missing.

    Raises PermissionError if another user may have created it, or can replace it.
    """
    if not hasattr(os, "geteuid"):  # Windows: the temporary folder itself belongs to the user
        return parent / "threadloom"
    user, around = os.geteuid(), parent.stat()
    if around.st_uid not in (0, user) or (around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX):
        raise PermissionError(f"{parent} can be changed by other users")
    folder = parent / f"threadloom-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # of a symbolic link itself, not of its target
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise PermissionError(f"{folder} does not belong to this user alone")
    return folder


def choose_folder(
    environment: Mapping[str, str | None], package: Path, temporary: Callable[[], str] = tempfile.gettempdir
) -> CacheFolder:
    """Return the first usable folder in the order above.

    `environment` maps the names of variables to their values, `package` is the folder of the sources, and `temporary`
    returns the folder in which a private one is created.
    """
    refused: list[str] = []
    for name, folder in _named_folders(environment):
        if (problem := write_problem(folder)) is None:
            return CacheFolder(CacheKind.ENVIRONMENT, folder, _refusal(refused, f"cached in {folder}"))
        refused.append(f"{folder}, set by {name} ({problem})")
    user = _user_cache()
    expected = _refusal(refused, "cached elsewhere")  # a cache of the package or of the user is no surprise
    for kind, folder, probe in (
        (CacheKind.PACKAGE, package, package / "__pycache__"),
        (CacheKind.USER, user, user),
    ):
        problem = write_problem(probe) if probe.is_absolute() else "there is no home directory"
        if problem is None:
            return CacheFolder(kind, folder, expected)
        refused.append(f"{probe} ({problem})")
    try:
        folder = private_folder(Path(temporary()))
        problem = write_problem(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is None:
        return CacheFolder(CacheKind.TEMPORARY, folder, _refusal(refused, f"cached in {folder}"))
    refused.append(f"a temporary folder ({problem})")
    return CacheFolder(CacheKind.MEMORY, None, _refusal(refused, "compiled again by every process"))


def _named_folders(environment: Mapping[str, str | None]) -> Iterator[tuple[str, Path]]:
    """Yield the variables that name a folder for kernels, with the folder."""
    for name, inner in (("NUMBA_CACHE_DIR", ""), ("THREADLOOM_CACHE", "kernels")):
        if value := environment.get(name):
            yield name, Path(value).absolute() / inner


def _user_cache() -> Path:
    """Return Numba's cache in the home directory; relative if there is no home directory."""
    return Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)


def _refusal(refused: list[str], used: str) -> str:
    """Return the sentence on the folders that cannot be written; "" if there are none."""
    if not refused:
        return ""
    return f"cannot write compiled kernels to {', '.join(refused)}: they are {used}. Hint: {REMEDY}"


def _choose_and_warn() -> CacheFolder:
    variables = {  # Numba also reads its variables from a file
        "NUMBA_CACHE_DIR": numba.config.CACHE_DIR,
        "THREADLOOM_CACHE": os.environ.get("THREADLOOM_CACHE"),
    }
    folder = choose_folder(variables, Path(__file__).parents[1])
    if folder.problem:
        warnings.warn(folder.problem, RuntimeWarning, stacklevel=2)
    return folder


CACHE_FOLDER = CacheFolder(CacheKind.MEMORY, None) if numba.config.DISABLE_JIT else _choose_and_warn()
"""The folder of this process."""
