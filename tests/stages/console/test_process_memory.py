"""The memory of this process, from /proc where it exists and from getrusage elsewhere."""

import resource
from pathlib import Path
from typing import Any

import pytest

from threadloom.stages.console.json_worker import peak_resident_bytes, resident_bytes


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)


@pytest.mark.usefixtures("without_proc")
@pytest.mark.parametrize(("platform", "unit"), [("freebsd14", 1024), ("darwin", 1)])
def test_without_proc_it_is_the_peak_that_getrusage_reports(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: resource.struct_rusage([0.0, 0.0, 5000, *[0] * 13]))
    assert resident_bytes() == peak_resident_bytes() == 5000 * unit


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_the_peak_is_at_least_the_present_memory() -> None:
    assert 0 < resident_bytes() <= peak_resident_bytes()
