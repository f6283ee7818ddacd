"""The run directory: who may take it, and that nothing in it is ever half written, also when the process is killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadloom.stages.storage.run_directory import (
    DiskFullError,
    MetricsLog,
    RunDirectory,
    RunDirectoryError,
    RunMode,
    atomic_write,
    free_bytes,
    read_metrics,
    require_free,
)

ROOT = Path(__file__).parents[3]


def start(path: Path) -> RunDirectory:
    """Leave a run with two checkpoints."""
    with RunDirectory.claim(path) as run:
        atomic_write(run.config, b"{}")
        for step in (500, 1000):
            run.checkpoint(step).mkdir()
    return run


class TestClaim:
    def test_a_new_run_gets_its_folders(self, tmp_path: Path) -> None:
        with RunDirectory.claim(tmp_path / "deep" / "run") as run:
            assert run.data.is_dir()
            assert run.checkpoints.is_dir()
            assert run.checkpoint_steps() == ()

    def test_an_existing_run_is_refused_with_the_ways_out(self, tmp_path: Path) -> None:
        start(tmp_path)
        with pytest.raises(RunDirectoryError, match=r"--resume.*--overwrite.*--out"), RunDirectory.claim(tmp_path):
            pass

    def test_resume_takes_up_what_is_there(self, tmp_path: Path) -> None:
        start(tmp_path)
        with RunDirectory.claim(tmp_path, RunMode.RESUME) as run:
            assert run.checkpoint_steps() == (500, 1000)
            assert run.config.read_bytes() == b"{}"

    def test_resume_of_nothing_is_refused(self, tmp_path: Path) -> None:
        with (
            pytest.raises(RunDirectoryError, match="a run to resume"),
            RunDirectory.claim(tmp_path / "no", RunMode.RESUME),
        ):
            pass
        assert not (tmp_path / "no").exists()

    def test_overwrite_removes_the_run_and_nothing_else(self, tmp_path: Path) -> None:
        start(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        with RunDirectory.claim(tmp_path, RunMode.OVERWRITE) as run:
            assert not run.config.exists()
            assert run.checkpoint_steps() == ()
            assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("mode", [RunMode.NEW, RunMode.OVERWRITE])
    def test_a_folder_of_something_else_is_never_taken(self, tmp_path: Path, mode: RunMode) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(RunDirectoryError, match=r"thesis\.tex"), RunDirectory.claim(tmp_path, mode):
            pass
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(RunDirectoryError, match="a file"), RunDirectory.claim(tmp_path / "run"):
            pass

    def test_a_folder_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunDirectoryError, match="can be made"), RunDirectory.claim(tmp_path / "file" / "run"):
            pass

    def test_one_writer_at_a_time(self, tmp_path: Path) -> None:
        start(tmp_path)
        with RunDirectory.claim(tmp_path, RunMode.RESUME):
            for mode in (RunMode.RESUME, RunMode.OVERWRITE):
                with pytest.raises(RunDirectoryError, match="another process"), RunDirectory.claim(tmp_path, mode):
                    pass
            assert RunDirectory(tmp_path).checkpoint_steps() == (500, 1000)  # readers are free
        with RunDirectory.claim(tmp_path, RunMode.RESUME):
            pass

    def test_only_folders_named_like_checkpoints_count(self, tmp_path: Path) -> None:
        run = start(tmp_path)
        for name in ("step-12", "step-000700.part", ".step-000800", "other", "step-1234567"):
            (run.checkpoints / name).mkdir()
        (run.checkpoints / "step-000900").write_text("a file")
        assert run.checkpoint_steps() == (500, 1000, 1234567)
        assert run.checkpoint(7).name == "step-000007"


class TestAtomicWrite:
    def test_bytes_and_functions(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        atomic_write(file, b"one")
        assert file.read_bytes() == b"one"
        atomic_write(file, lambda out: out.write(b"two"))
        assert file.read_bytes() == b"two"
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_is_explained_and_harms_nothing(self, tmp_path: Path, number: int) -> None:
        file = tmp_path / "file"
        atomic_write(file, b"good")

        def fail(out: BinaryIO) -> None:
            out.write(b"half")
            raise OSError(number, "No space left on device")

        with pytest.raises(DiskFullError, match=r"file: it needs .* bytes are free .* unchanged") as caught:
            atomic_write(file, fail)
        assert caught.value.errno == errno.ENOSPC
        assert file.read_bytes() == b"good"
        assert os.listdir(tmp_path) == ["file"]

    def test_a_limit_of_the_system_is_a_full_disk_with_the_bytes_needed(self, tmp_path: Path) -> None:
        # A real write that the system cuts off, in a process of its own: the limit holds for all its files.
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from threadloom.stages.storage.run_directory import atomic_write, DiskFullError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try: atomic_write(Path(sys.argv[1]), b'x' * 5000)\n"
            "except DiskFullError as error: print(error)\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "needs 5,000 bytes" in answer.stdout
        assert os.listdir(tmp_path) == []

    def test_another_error_comes_through_as_it_is(self, tmp_path: Path) -> None:
        def fail(out: BinaryIO) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            atomic_write(tmp_path / "file", fail)
        assert os.listdir(tmp_path) == []

    def test_room_is_checked_ahead(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        assert free_bytes(tmp_path / "not" / "there" / "yet") == 1000
        require_free(tmp_path / "file", 1000)
        with pytest.raises(DiskFullError, match=r"1,001 bytes, and 1,000 bytes are free"):
            require_free(tmp_path / "file", 1001)


class TestMetricsLog:
    def test_lines_can_be_read_while_it_is_open(self, tmp_path: Path) -> None:
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            log.append({"step": 1, "loss": np.float32(2.5), "tokens": np.int64(7)})
            log.append({"step": 2, "loss": float("nan")})
            assert read_metrics(log.path) == [{"step": 1, "loss": 2.5, "tokens": 7}, {"step": 2, "loss": None}]
            log.sync()
        log.close()

    def test_what_is_no_number_is_refused_and_leaves_no_line(self, tmp_path: Path) -> None:
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            with pytest.raises(TypeError, match="a metric must be"):
                log.append({"step": object()})
            assert read_metrics(log.path) == []

    def test_resume_drops_later_steps_and_goes_on(self, tmp_path: Path) -> None:
        file = tmp_path / "metrics.jsonl"
        with MetricsLog(file) as log:
            for step in range(1, 8):
                log.append({"step": step})
            log.append({"step": 7, "val_loss": 1.0})
        with MetricsLog(file, resume_at=5) as log:
            log.append({"step": 6, "again": True})
        assert [record["step"] for record in read_metrics(file)] == [1, 2, 3, 4, 5, 6]

    @given(cut=st.integers(0, 60), keep=st.integers(0, 4))
    def test_wherever_the_file_was_cut_whole_lines_stay(
        self, cut: int, keep: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("run") / "metrics.jsonl"
        whole = b"".join(b'{"step":%d,"x":1}\n' % step for step in range(1, 5))
        file.write_bytes(whole[:cut])
        with MetricsLog(file, resume_at=keep) as log:
            log.append({"step": 9})
        lines = min(cut, len(whole)) // len(b'{"step":1,"x":1}\n')
        assert [record["step"] for record in read_metrics(file)] == [*range(1, min(lines, keep) + 1), 9]

    def test_a_damaged_line_in_the_middle_costs_that_line_only(self, tmp_path: Path) -> None:
        file = tmp_path / "metrics.jsonl"
        file.write_bytes(b'{"step":1}\n\0\0\0\n[3]\n{"step":2}\n')
        assert read_metrics(file) == [{"step": 1}, {"step": 2}]

    def test_an_untouched_file_is_not_written_again(self, tmp_path: Path) -> None:
        file = tmp_path / "metrics.jsonl"
        file.write_bytes(b'{"step":1}\n')
        inode = file.stat().st_ino
        MetricsLog(file, resume_at=1).close()
        assert file.stat().st_ino == inode

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_explained(self) -> None:
        log = object.__new__(MetricsLog)
        log.path = Path("/dev/full")
        log._handle = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
        with log, pytest.raises(DiskFullError, match=r"/dev/full"):
            log.append({"step": 1})

    def test_a_line_that_did_not_fit_leaves_no_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_sigkill_loses_no_line_that_was_appended(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from threadloom.stages.storage.run_directory import MetricsLog\n"
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
            said = process.stdout.read().splitlines()
        whole = [line for line in said if line]
        steps = [record["step"] for record in read_metrics(file)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= int(whole[-2] if len(whole) > 1 else 200)

    def test_appending_is_cheap(self, tmp_path: Path) -> None:
        record = {"step": 1, "loss": 1.2345, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": 28000.0, "seconds": 0.02}
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            begin = time.thread_time()
            for _ in range(200):
                log.append(record)
            assert (time.thread_time() - begin) / 200 < 1e-3
        assert json.loads(log.path.read_text().splitlines()[0]) == record
