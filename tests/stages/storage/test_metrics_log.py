"""The metrics of a run: complete lines only, also after a full disk or SIGKILL."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from threadloom.stages.storage import DiskFullError, MetricsLog, read_metrics

ROOT = Path(__file__).parents[3]


def test_lines_can_be_read_while_it_is_open(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1, "loss": np.float32(2.5), "tokens": np.int64(7)})
        log.append({"step": 2, "loss": float("nan")})
        assert read_metrics(log.path) == [{"step": 1, "loss": 2.5, "tokens": 7}, {"step": 2, "loss": None}]
        log.sync()
    log.close()


def test_a_value_that_is_not_a_number_is_refused_and_leaves_no_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        with pytest.raises(TypeError, match="a metric must be"):
            log.append({"step": object()})
        assert read_metrics(log.path) == []


def test_resume_drops_later_steps_and_appends(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricsLog(file) as log:
        for step in range(1, 8):
            log.append({"step": step})
        log.append({"step": 7, "val_loss": 1.0})
    with MetricsLog(file, resume_at=5) as log:
        log.append({"step": 6, "again": True})
    assert [record["step"] for record in read_metrics(file)] == [1, 2, 3, 4, 5, 6]


@given(cut=st.integers(0, 60), keep=st.integers(0, 4))
def test_a_truncated_file_keeps_its_complete_lines(
    cut: int, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    whole = b"".join(b'{"step":%d,"x":1}\n' % step for step in range(1, 5))
    file.write_bytes(whole[:cut])
    with MetricsLog(file, resume_at=keep) as log:
        log.append({"step": 9})
    lines = min(cut, len(whole)) // len(b'{"step":1,"x":1}\n')
    assert [record["step"] for record in read_metrics(file)] == [*range(1, min(lines, keep) + 1), 9]


def test_only_damaged_lines_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step":1}\n\0\0\0\n[3]\n{"step":2}\n')
    assert read_metrics(file) == [{"step": 1}, {"step": 2}]


def test_a_file_without_later_steps_is_not_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step":1}\n')
    inode = file.stat().st_ino
    MetricsLog(file, resume_at=1).close()
    assert file.stat().st_ino == inode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_explained() -> None:
    log = object.__new__(MetricsLog)
    log.path = Path("/dev/full")
    log._handle = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
    with log, pytest.raises(DiskFullError, match=r"/dev/full"):
        log.append({"step": 1})


def test_a_line_that_does_not_fit_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, list[int]()

    def half(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:4])

    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1})
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(DiskFullError):
            log.append({"step": 2})
        monkeypatch.undo()
        log.append({"step": 3})
        assert log.path.read_bytes() == b'{"step":1}\n{"step":3}\n'


def test_sigkill_loses_no_line_that_was_appended(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from threadloom.stages.storage import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "for step in range(1, 1_000_000):\n"
        "    log.append({'step': step, 'padding': 'x' * 200}); print(step, flush=True)\n"
    )
    file = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 200:
            pass
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().splitlines()
    whole = [line for line in printed if line]
    steps = [record["step"] for record in read_metrics(file)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= int(whole[-2] if len(whole) > 1 else 200)


def test_appending_is_cheap(tmp_path: Path) -> None:
    record = {"step": 1, "loss": 1.2345, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": 28000.0, "seconds": 0.02}
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        begin = time.thread_time()
        for _ in range(200):
            log.append(record)
        assert (time.thread_time() - begin) / 200 < 1e-3
    assert json.loads(log.path.read_text().splitlines()[0]) == record
