"""The folder of compiled kernels: the order of the candidates, and temporary folders that others may have prepared.

A path below a regular file is one that nobody can write, not even root.
"""

import errno
import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from threadloom.kernels.compiling import cache_folder
from threadloom.kernels.compiling.cache_folder import CacheFolder, CacheKind, choose_folder, private_folder

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of POSIX"),
]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be written, which is also the home directory."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "file" / "folder"


def chosen(package: Path, temporary: Path, **environment: Path) -> CacheFolder:
    return choose_folder({name: str(path) for name, path in environment.items()}, package, lambda: str(temporary))


def test_the_package_is_used_without_a_warning(tmp_path: Path) -> None:
    found = chosen(tmp_path / "package", tmp_path)
    assert (found.kind, found.problem) == (CacheKind.PACKAGE, "")
    source = tmp_path / "package/room/file.py"
    assert found.of_source(source) == source.parent / "__pycache__"


def test_the_home_directory_is_used_without_a_warning(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = chosen(nowhere, tmp_path)
    assert (found.kind, found.path, found.problem) == (CacheKind.USER, tmp_path / "cache/numba", "")


def test_the_variables_come_first(nowhere: Path, tmp_path: Path) -> None:
    numba, all_of_it = tmp_path / "numba", tmp_path / "threadloom"
    both = {"NUMBA_CACHE_DIR": numba, "THREADLOOM_CACHE": all_of_it}
    assert chosen(tmp_path, tmp_path, **both).path == numba
    found = chosen(tmp_path, tmp_path, THREADLOOM_CACHE=all_of_it)
    assert (found.kind, found.path, found.problem) == (CacheKind.ENVIRONMENT, all_of_it / "kernels", "")
    found = chosen(tmp_path, tmp_path, NUMBA_CACHE_DIR=nowhere, THREADLOOM_CACHE=all_of_it)
    assert found.path == all_of_it / "kernels"
    assert f"{nowhere}, set by NUMBA_CACHE_DIR (Not a directory)" in found.problem


def test_without_any_folder_a_private_one_is_used_and_said(nowhere: Path, tmp_path: Path) -> None:
    found = chosen(nowhere, tmp_path)
    assert found.path == tmp_path / f"threadloom-{os.geteuid()}"
    assert found.kind is CacheKind.TEMPORARY
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o700
    assert chosen(nowhere, tmp_path) == found, "a second process uses the same folder"
    for part in (str(nowhere), str(found.path), "NUMBA_CACHE_DIR", "THREADLOOM_CACHE"):
        assert part in found.problem


def test_a_home_directory_that_is_not_known_is_not_the_current_directory(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HOME and an entry in the table of users, `expanduser` returns ~ unchanged."""
    monkeypatch.setattr(cache_folder, "_user_cache", lambda: Path("~/.cache/numba"))
    monkeypatch.chdir(tmp_path)
    assert chosen(nowhere, tmp_path).kind is CacheKind.TEMPORARY
    assert not (tmp_path / "~").exists()


def test_a_disk_that_is_full_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no device that is always full")
    opened = open("/dev/full", "wb")  # noqa: PTH123, SIM115  # closed by the function
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: opened)
    assert cache_folder.write_problem(tmp_path) == os.strerror(errno.ENOSPC)


@pytest.mark.parametrize("attack", ["link", "open to others", "file"])
def test_a_prepared_temporary_folder_is_not_used(nowhere: Path, tmp_path: Path, attack: str) -> None:
    prepared = tmp_path / f"threadloom-{os.geteuid()}"
    if attack == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        prepared.symlink_to(tmp_path / "elsewhere")
    elif attack == "file":
        prepared.touch()
    else:
        prepared.mkdir()
        prepared.chmod(0o777)
    found = chosen(nowhere, tmp_path)
    assert (found.kind, found.path) == (CacheKind.MEMORY, None)
    assert "compiled again by every process" in found.problem
    with pytest.raises(ValueError, match="memory"):
        found.of_source(tmp_path / "file.py")


def test_a_temporary_folder_that_others_can_rename_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="other users"):
        private_folder(tmp_path)
    tmp_path.chmod(0o1777)  # as /tmp is
    assert private_folder(tmp_path).is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    prepared = tmp_path / "threadloom-0"
    prepared.mkdir(mode=0o700)
    os.chown(prepared, 12345, 12345)
    with pytest.raises(PermissionError, match="this user alone"):
        private_folder(tmp_path)
