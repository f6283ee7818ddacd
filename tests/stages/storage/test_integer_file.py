"""Compressed matrices of integers: round trip, sizes, damage."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from threadloom.stages.storage import (
    CheckpointError,
    encode_integers,
    integers_times,
    power_of_two_grid,
    read_integers,
)


@pytest.mark.parametrize(("largest", "kind"), [(127, np.int8), (128, np.int16), (40_000, np.int32)])
def test_a_round_trip_in_the_smallest_type(largest: int, kind: type, tmp_path: Path) -> None:
    integers = np.random.default_rng(0).integers(-3, 4, (50, 7))
    integers[3, 2] = -largest
    step = 0.1
    (tmp_path / "integers").write_bytes(encode_integers(integers, step))
    found, found_step = read_integers(tmp_path / "integers")
    assert found.dtype == kind
    assert found_step == step
    np.testing.assert_array_equal(found, integers)
    expected = np.array([np.float32(float(i) * step) for i in integers.ravel()]).reshape(50, 7)
    np.testing.assert_array_equal(integers_times(found, found_step), expected)


def test_small_integers_take_an_eighth_of_float32() -> None:
    integers = np.rint(np.random.default_rng(0).standard_normal((400, 64)) * 2).astype(np.int64)
    assert len(encode_integers(integers, 1.0)) < 4 * integers.size / 7


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "integers"
    content = encode_integers(np.arange(12).reshape(3, 4), 0.5)
    line, _, packed = content.partition(b"\n")
    header = json.loads(line)
    bomb = zlib.compress(bytes(10**6))
    for damaged in (
        b"",
        content[:-3],
        content[:-1] + bytes([content[-1] ^ 1]),
        line + b"\n" + zlib.compress(bytes(12)),
        line + b"\n" + bomb,
        json.dumps(header | {"shape": [10**9, 10**9]}).encode() + b"\n" + packed,
        json.dumps(header | {"shape": [-3, -4]}).encode() + b"\n" + packed,
        json.dumps(header | {"step": 0}).encode() + b"\n" + packed,
        json.dumps(header | {"type": "object"}).encode() + b"\n" + packed,
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="line of JSON"):
            read_integers(path)


@pytest.mark.parametrize("step", [2.0**-9, 1.0, 8.0])
def test_a_grid_of_a_power_of_two_is_found(step: float) -> None:
    integers = np.random.default_rng(0).integers(-32767, 32768, (40, 3))
    integers[0, 0] = 1
    found = power_of_two_grid((integers * step).astype(np.float32))
    assert found is not None
    np.testing.assert_array_equal(found[0], integers)
    assert found[1] == step
    zeros = power_of_two_grid(np.zeros((2, 2), np.float32))
    assert zeros is not None
    assert not zeros[0].any()
    assert power_of_two_grid(np.random.default_rng(0).standard_normal((2, 50), np.float32)) is None
    assert power_of_two_grid(np.array([[1.0, np.nan]], np.float32)) is None
