"""The run directory: which directories are accepted in which mode, and the lock against a second writer."""

from pathlib import Path

import pytest

from threadloom.stages.storage import RunDirectory, RunDirectoryError, RunMode, atomic_write


def start(path: Path) -> RunDirectory:
    """Create a run with two checkpoints."""
    with RunDirectory.claim(path) as run:
        atomic_write(run.config, b"{}")
        for step in (500, 1000):
            run.checkpoint(step).mkdir()
    return run


def test_the_directories_of_a_new_run_are_created(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path / "deep" / "run") as run:
        assert run.data.is_dir()
        assert run.checkpoints.is_dir()
        assert run.checkpoint_steps() == ()


def test_an_existing_run_is_refused_with_hints(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"--resume.*--overwrite.*--out"), RunDirectory.claim(tmp_path):
        pass


def test_resume_opens_the_run(tmp_path: Path) -> None:
    start(tmp_path)
    with RunDirectory.claim(tmp_path, RunMode.RESUME) as run:
        assert run.checkpoint_steps() == (500, 1000)
        assert run.config.read_bytes() == b"{}"


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RunDirectoryError, match="a run to resume"),
        RunDirectory.claim(tmp_path / "no", RunMode.RESUME),
    ):
        pass
    assert not (tmp_path / "no").exists()


def test_overwrite_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory.claim(tmp_path, RunMode.OVERWRITE) as run:
        assert not run.config.exists()
        assert run.checkpoint_steps() == ()
        assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("mode", [RunMode.NEW, RunMode.OVERWRITE])
def test_a_directory_with_other_files_is_refused(tmp_path: Path, mode: RunMode) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"), RunDirectory.claim(tmp_path, mode):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match="a file"), RunDirectory.claim(tmp_path / "run"):
        pass


def test_a_directory_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="can be created"), RunDirectory.claim(tmp_path / "file" / "run"):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    start(tmp_path)
    with RunDirectory.claim(tmp_path, RunMode.RESUME):
        for mode in (RunMode.RESUME, RunMode.OVERWRITE):
            with pytest.raises(RunDirectoryError, match="another process"), RunDirectory.claim(tmp_path, mode):
                pass
        assert RunDirectory(tmp_path).checkpoint_steps() == (500, 1000)  # readers take no lock
    with RunDirectory.claim(tmp_path, RunMode.RESUME):
        pass


def test_only_directories_named_like_checkpoints_are_checkpoints(tmp_path: Path) -> None:
    run = start(tmp_path)
    for name in ("step-12", "step-000700.part", ".step-000800", "other", "step-1234567"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-000900").write_text("a file")
    assert run.checkpoint_steps() == (500, 1000, 1234567)
    assert run.checkpoint(7).name == "step-000007"
