"""Choice of the path by the features of the processor, and rejection of unavailable paths."""

import dataclasses
import threading

import pytest

from threadloom.kernels.simd import features
from threadloom.kernels.simd.features import DotPath, amx_permission, choose, dot_path, low_precision_info

NOTHING: dict[str, bool] = {}
AVX2 = {"avx2": True, "f16c": True}
AVX512 = {**AVX2, "avx512f": True}
DOT = {**AVX512, "avx512bf16": True}
AMX = {**DOT, "amx-tile": True, "amx-bf16": True}


def never() -> bool:
    raise AssertionError("permission was requested on a processor without AMX")


@pytest.mark.parametrize(
    ("available", "permission", "path", "half"),
    [
        (NOTHING, None, DotPath.FLOAT32, False),
        (AVX2, None, DotPath.FLOAT32, True),
        (AVX512, None, DotPath.FLOAT32, True),
        (DOT, None, DotPath.AVX512, True),
        ({**DOT, "amx-tile": True}, None, DotPath.AVX512, True),
        (AMX, False, DotPath.AVX512, True),
        (AMX, True, DotPath.AMX, True),
        ({"amx-tile": True, "amx-bf16": True}, None, DotPath.FLOAT32, False),
    ],
)
def test_choice(available: dict[str, bool], permission: bool | None, path: DotPath, half: bool) -> None:
    info = choose(available, never if permission is None else lambda: bool(permission))
    assert (info.path, info.fp16_conversion) == (path, half)
    assert info.available == tuple(p for p in DotPath if p.value <= path.value)
    assert info.reason


def test_report_is_frozen_and_follows_the_switch() -> None:
    info = low_precision_info()
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.path = DotPath.AMX  # type: ignore[misc]
    with dot_path(DotPath.FLOAT32):
        assert low_precision_info().path is DotPath.FLOAT32
        threads = [threading.Thread(target=low_precision_info)]
        for thread in threads:
            thread.start()
            thread.join()
    assert low_precision_info() == info


def test_an_unavailable_path_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_default", choose(NOTHING, never))
    expected = "AVX512 is not available in this process, which has FLOAT32: the processor has neither AMX nor AVX-512"
    with pytest.raises(RuntimeError, match=expected), dot_path(DotPath.AVX512):
        pass


def test_permission_is_requested_once() -> None:
    assert amx_permission() is amx_permission()
    assert amx_permission.cache_info().currsize == 1


def test_a_system_without_arch_prctl_permits_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    request = amx_permission.__wrapped__
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())  # a C library without syscall()
    assert request() is False
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: pytest.fail("no system call of Linux is made"))
    assert request() is False
