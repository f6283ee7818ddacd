"""The files of a directory: what is left out, and that nothing in a directory ends the walk."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from threadloom.stages.data.text_files import find_files, has_text_suffix
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_paths import absolute_text, text_path
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.storage import RunDirectory


def left_out(root: Path, *excluded: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): reason for path, reason, _ in read_text([root], excluded).left_out}


def test_runs_and_checkpoints_are_left_out(tmp_path: Path) -> None:
    """A run in each state: claimed and killed, with metrics only, copied without hidden files, a checkpoint alone."""
    (tmp_path / "a.txt").write_text("text")
    with RunDirectory.claim(tmp_path / "runs" / "claimed") as run:
        run.metrics.write_text("{}")
    (tmp_path / "copied" / "checkpoints" / "step-000010").mkdir(parents=True)
    (tmp_path / "copied" / "config.json").write_text("{}")
    (tmp_path / "step-1").mkdir()
    for name in ("training.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "step-1" / name).write_text("{}")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "config.json").write_text("{}")  # another program's
    result = read_text([tmp_path])
    assert result.read() == "text\n{}"
    assert set(left_out(tmp_path)) == {"runs/claimed", "copied", "step-1"}
    assert read_text([tmp_path], excluded=[tmp_path / "other", tmp_path / "none"]).read() == "text"
    with pytest.raises(TextError, match=r"no character.*a run or a checkpoint"):
        read_text([tmp_path / "runs" / "claimed"])


def test_the_output_of_the_command_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    saved = os.dup(2)
    with (tmp_path / "train.log").open("w") as log:
        log.write("line\n")
        log.flush()
        os.dup2(log.fileno(), 2)
        try:
            assert read_text([tmp_path]).read() == "text"
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    assert read_text([tmp_path]).read() == "text\nline\n"


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's and the file's permission errors are simulated: the user of the tests may be root."""
    for name in ("a.txt", "locked/b.txt", "locked.txt", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "cycle.txt").symlink_to("cycle.txt")
    (tmp_path / "dangling.txt").symlink_to("nothing")
    scandir, opened = os.scandir, Path.open

    def refused(name: str, call: Any) -> Any:
        def wrapper(path: Any, *args: Any, **kwargs: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(os, "scandir", refused("locked", scandir))
    monkeypatch.setattr(Path, "open", refused("locked.txt", opened))
    result = read_text([tmp_path])
    assert result.read() == "a.txt\nz.txt"
    assert {path.name: reason for path, reason, failed in result.left_out if failed} == {
        "locked": "Permission denied",
        "locked.txt": "Permission denied",
        "cycle.txt": "Too many levels of symbolic links",
        "dangling.txt": "No such file or directory",
    }
    for name in ("locked", "locked.txt"):  # named explicitly
        with pytest.raises(TextError, match="Permission denied"):
            read_text([tmp_path / name])


def test_directories_nested_deeper_than_calls_and_paths(tmp_path: Path) -> None:
    """Beyond PATH_MAX (4,096 bytes on Linux) the system refuses the path, which is reported as any other error."""
    here, depth = os.open(tmp_path, os.O_RDONLY), 2500
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)
    (tmp_path / "z.txt").write_text("z")
    try:
        result = read_text([tmp_path])
    finally:  # pytest's own removal is recursive
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert result.read() == "z"
    assert [(reason, failed) for _, reason, failed in result.left_out] == [("File name too long", True)]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_named_path_that_is_not_a_file_is_rejected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    with pytest.raises(TextError, match=rf"expected a file or a directory, got a {kind} .*write the text to a file"):
        read_text(["/dev/zero" if kind == "device" else path])


def test_a_path_with_a_null_character_is_rejected() -> None:
    with pytest.raises(TextError, match="null"):
        read_text(["a\0b"])


def test_names_that_are_not_utf8_survive_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9 100%.txt")
    Path(name).write_text("text")
    absolute = absolute_text(name)
    assert absolute.isascii()
    assert text_path(absolute) == tmp_path / name
    assert absolute_text(absolute) == absolute
    assert read_text([absolute]).read() == "text"
    assert absolute_text("é.txt") == str(tmp_path / "é.txt")
    with pytest.raises(TextError, match=r"b\\xff\\nc.txt: expected a readable file") as caught:
        read_text([os.fsdecode(b"b\xff\nc.txt")])
    assert str(caught.value).isprintable()


def test_compressed_text_has_a_text_suffix() -> None:
    assert all(map(has_text_suffix, ("a.txt", "README", "a.jsonl.gz", "a.TXT.zst", "a.gz", "a.csv.bz2")))
    assert not any(map(has_text_suffix, ("a.png", "a.tar.gz", "a.zip", "a.tgz")))


def test_the_walk_reads_entries_lazily_in_order(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_files(tmp_path, [], frozenset())] == ["a.txt", "x.txt", "c.txt"]
