"""Reading text: order, skipped files and errors."""

import os
from pathlib import Path

import pytest

from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text, standard_library_text


def write(root: Path, **files: bytes) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_files_are_joined_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/z.txt", "a.txt", "b/a.md", "B.py", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    (tmp_path / "c.txt").write_text("ends\n")
    result = read_text([tmp_path])
    assert result.read() == "<B.py>\n<a.txt>\n<b/a.md>\n<b/z.txt>\nends\n"
    assert [str(file.path.relative_to(tmp_path)) for file in result.files] == [
        "B.py",
        "a.txt",
        "b/a.md",
        "b/z.txt",
        "c.txt",
    ]
    assert read_text([tmp_path / "c.txt", tmp_path / "a.txt"]).read() == "ends\n<a.txt>"


def test_skipped_entries_of_a_directory_are_reported(tmp_path: Path) -> None:
    write(tmp_path, a_txt=b"kept", picture_png=b"\x89PNG", bad_txt=b"abc\xff", zero_txt=b"a\0b")
    for name in (".hidden", "__pycache__", "site-packages"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("no")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.txt")
    result = read_text([tmp_path])
    assert result.read() == "kept"
    reasons = {path.name: reason for path, reason, _ in result.left_out}
    assert {path.name for path, _, failed in result.left_out if failed} == {"bad.txt", "zero.txt"}
    assert set(reasons) == {
        "picture.png", "bad.txt", "zero.txt", ".hidden", "__pycache__", "site-packages", "loop", "pipe.txt",
    }  # fmt: skip
    assert "offset 3" in reasons["bad.txt"]
    assert "offset 1" in reasons["zero.txt"]


def test_a_named_file_may_have_any_suffix_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "notes.weird"
    file.write_bytes("\ufeffgr\u00fc\u00df\r\n".encode())
    assert read_text([file]).read() == "gr\u00fc\u00df\r\n"


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"text \xff", "byte 0xff at offset 5"), (b"MZ\0\0", "byte 0x00 at offset 2"), (b"", "no character")],
)
def test_invalid_files_are_rejected(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(content)
    with pytest.raises(TextError, match=word) as caught:
        read_text([file])
    assert caught.value.subject == str(file)


def test_missing_paths_and_empty_texts_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="No such file"):
        read_text([tmp_path / "none.txt"])
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(TextError, match=r"no character.*a\.bin"):
        read_text([tmp_path])


def test_the_standard_library_is_deterministic() -> None:
    result = read_text([])
    assert result == standard_library_text()
    assert 2_000_000 < len(result.read()) <= 12_000_000
    assert "class OrderedDict" in result.read()
    names = [file.path.as_posix() for file in result.files]
    assert not any("/site-packages/" in name or "/test/" in name or "_sysconfigdata" in name for name in names)


def test_the_limit_keeps_whole_files() -> None:
    result = standard_library_text(limit=100_000)
    assert 50_000 < len(result.read()) <= 100_000 + len(result.files)
    assert any("beyond" in reason for _, reason, _ in result.left_out)
