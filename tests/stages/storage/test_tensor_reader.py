"""Safetensors files and sets of shards from outside: every number format, and files that are damaged or hostile."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from threadloom.stages.storage import CheckpointError, open_sharded_tensors, open_tensors, tensor_reader

WIDTH = 7


def container(entries: dict[str, Any], data: bytes) -> bytes:
    """Return the bytes of a safetensors file with any header."""
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bf16(values: np.ndarray) -> bytes:
    """Return float32 values, which bfloat16 represents exactly, in bfloat16."""
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


@pytest.fixture(params=[1, 3, 1000], ids="block of {} rows".format)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read in blocks of this many rows of float32."""
    monkeypatch.setattr(tensor_reader, "BLOCK", request.param * 4 * WIDTH)
    return int(request.param)


def test_every_number_format_is_read_in_blocks(tmp_path: Path, rows: int) -> None:
    values = np.random.default_rng(rows).integers(-128, 128, (11, WIDTH)).astype(np.float32) / 8  # exact in all formats
    parts = [
        values.astype("<f4").tobytes(),
        values.astype("<f2").tobytes(),
        values.astype("<f8").tobytes(),
        bf16(values),
    ]
    entries, begin = {}, 0
    for dtype, data in zip(("F32", "F16", "F64", "BF16"), parts, strict=True):
        entries[dtype] = entry(dtype, [11, WIDTH], begin, begin + len(data))
        begin += len(data)
    (tmp_path / "t").write_bytes(container({"__metadata__": {"format": "pt"}, **entries}, b"".join(parts)))
    with open_tensors(tmp_path / "t") as file:
        for name in entries:
            out = np.full((11, WIDTH), np.nan, np.float32)
            file.read(name, out)
            np.testing.assert_array_equal(out, values)
            columns = np.zeros((WIDTH, 2 * 11), np.float32)
            file.read(name, columns[:, 11:].T)  # the transposed columns of a wider matrix
            np.testing.assert_array_equal(columns, np.hstack([np.zeros((WIDTH, 11)), values.T]))
            leading = np.zeros((4, WIDTH), np.float32)
            file.read(name, leading)
            np.testing.assert_array_equal(leading, values[:4])


def test_special_values_of_bfloat16_keep_their_bits(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    (tmp_path / "t").write_bytes(container({"x": entry("BF16", [65536], 0, 131072)}, bits.tobytes()))
    out = np.empty(65536, np.float32)
    with open_tensors(tmp_path / "t") as file:
        file.read("x", out)
    np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)


def test_an_array_of_another_shape_is_an_error_of_the_caller(tmp_path: Path) -> None:
    save_file({"x": np.zeros((3, 2), np.float32)}, tmp_path / "t")
    with open_tensors(tmp_path / "t") as file:
        for shape in ((4, 2), (3, 3), (3,), ()):
            with pytest.raises(ValueError, match="has shape"):
                file.read("x", np.zeros(shape, np.float32))


HOSTILE = {
    "a header of gigabytes": (1 << 40).to_bytes(8, "little") + b"{}",
    "a header as long as a number can be": b"\xff" * 8 + b"{}",
    "a header that the file ends in": (1000).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "an empty file": b"",
    "overlapping tensors": container({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "a hole": container({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
    "offsets in reverse": container({"a": entry("F32", [1], 4, 0)}, bytes(4)),
    "fewer bytes than the shape takes": container({"a": entry("F32", [3], 0, 8)}, bytes(8)),
    "a shape of more elements than a number can be": container({"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)),
    "a negative dimension": container({"a": entry("F32", [-1, -2], 0, 8)}, bytes(8)),
    "data that the file lacks": container({"a": entry("F32", [3], 0, 12)}, bytes(8)),
    "data after the last tensor": container({"a": entry("F32", [1], 0, 4)}, bytes(8)),
    "an unknown number format": container({"a": entry("Q4", [1], 0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_file_is_refused_before_a_tensor_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(CheckpointError, match="expected a safetensors file") as caught:
        with open_tensors(tmp_path / "t"):
            pass
    assert caught.value.path == tmp_path / "t"


def test_a_number_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(container({"a": entry("I8", [4], 0, 4)}, bytes(4)))
    with open_tensors(tmp_path / "t") as file:
        with pytest.raises(CheckpointError, match=r"a as one of BF16, F16, F32, F64, got I8 \(the model was quantised"):
            file.require({"a": (4,)}, cause="")


def test_a_file_that_shrinks_while_it_is_read_is_reported(tmp_path: Path) -> None:
    save_file({"x": np.ones(9, np.float32)}, tmp_path / "t")
    with open_tensors(tmp_path / "t") as file:
        with (tmp_path / "t").open("r+b") as same:
            same.truncate((tmp_path / "t").stat().st_size - 5)
        with pytest.raises(CheckpointError, match="the end of the file"):
            file.read("x", np.zeros(9, np.float32))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Return the index of two shards."""
    save_file({"a": np.ones(2, np.float32), "extra": np.ones(1, np.float32)}, tmp_path / "m-1.safetensors")
    save_file({"b": np.full((2, 3), 2, np.float32)}, tmp_path / "m-2.safetensors")
    return write_index(tmp_path, {"a": "m-1.safetensors", "b": "m-2.safetensors"})


def write_index(folder: Path, names: dict[str, Any]) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": names}))
    return path


def test_the_tensors_of_an_index_are_read_from_their_files(index: Path) -> None:
    with open_sharded_tensors(index) as file:
        assert file.shapes == {"a": (2,), "b": (2, 3)}
        out = np.zeros((2, 3), np.float32)
        file.read("b", out)
        np.testing.assert_array_equal(out, 2)


@pytest.mark.parametrize("name", ["../m-1.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b", "C:b"])
def test_an_index_cannot_lead_out_of_its_folder(index: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"names of files next to the index, got {name!r}")):
        with open_sharded_tensors(write_index(index.parent, {"a": name})):
            pass


def test_a_shard_that_is_missing_or_lacks_a_tensor_is_named(index: Path) -> None:
    lacking = write_index(index.parent, {"a": "m-1.safetensors", "c": "m-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors: expected the tensors that .* lists, got no c"):
        with open_sharded_tensors(lacking):
            pass
    (index.parent / "m-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors: expected a safetensors file, got FileNotFoundError"):
        with open_sharded_tensors(lacking):
            pass


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": {"a": 1}}', "{}", "\0", "[" * 100_000])
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="the index of a sharded model as JSON"):
        with open_sharded_tensors(path):
            pass
