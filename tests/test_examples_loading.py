"""The examples that load data: the same results with any number of workers, on processes and on threads."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples import data_loader, parquet_etl
from threadloom import StageFailure

pytestmark = pytest.mark.timeout(120)


def pictures(count: int) -> list[bytes]:
    return [data_loader.encode(data_loader.stripes(n % data_loader.CLASSES, n)) for n in range(count)]


def test_decoding_inverts_encoding() -> None:
    for label in range(data_loader.CLASSES):
        picture = data_loader.stripes(label, 7)
        sample = data_loader.decode(data_loader.Sample(0, 7, label, data_loader.encode(picture)))
        np.testing.assert_array_equal(sample.pixels, picture)


def test_the_training_learns_and_does_not_depend_on_the_workers(capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures(96)
    steps, statistics = data_loader.train_on(files, 3, workers=1, processes=False)
    assert len(steps) == 3 * 96 // data_loader.BATCH
    # A class chosen at random is right in a third of the cases; the directions of the stripes are clear.
    assert np.mean([accuracy for _, accuracy in steps[-6:]]) > 0.9
    assert statistics["decode"].items_out == 3 * 96
    assert data_loader.train_on(files, 3, workers=3, processes=False)[0] == steps


def test_the_same_on_processes_with_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    steps = data_loader.main(pictures=32, epochs=1)
    assert steps == data_loader.train_on(pictures(32), 1, processes=False)[0]
    captured = capsys.readouterr()
    assert "epoch 0: loss " in captured.out
    assert "worker(s)" in captured.out
    assert "loader: 2 of 2, " in captured.err


def test_parquet_to_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet_etl.make_trips(tmp_path, files=3, rows=500)
    target = tmp_path / "clean.parquet.out"
    statistics = parquet_etl.run_job(tmp_path, target, rows=400)
    progress = capsys.readouterr().err
    inputs = [parquet.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))]
    rows = [row for table in inputs for row in table.to_pylist() if row["km"] > 0 and row["minutes"] > 0]
    written = parquet.read_table(target).to_pylist()
    assert [(row["city"], row["km"]) for row in written] == [(row["city"], row["km"]) for row in rows]
    for row in written:
        assert row["km_per_hour"] == pytest.approx(row["km"] / row["minutes"] * 60)
    metadata = parquet.read_metadata(target)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes == [400] * (len(rows) // 400) + [len(rows) % 400]
    assert f"etl: {len(sizes)} of {len(sizes)}, " in progress
    assert statistics["regroup"].items_in == 15
    assert statistics["write"].items_out == len(sizes)


@pytest.mark.parametrize("stop", [ZeroDivisionError, KeyboardInterrupt])
def test_a_job_that_fails_leaves_the_previous_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    pytest.importorskip("pyarrow")
    parquet_etl.make_trips(tmp_path, files=1, rows=500)
    target = tmp_path / "out"
    target.write_text("the previous output")
    clean: Callable[..., object] = parquet_etl.clean
    calls: list[int] = []

    def failing(table: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise stop
        return clean(table)

    monkeypatch.setattr(parquet_etl, "clean", failing)
    with pytest.raises(StageFailure, match="clean"):
        parquet_etl.run_job(tmp_path, target, rows=100, progress=False)
    assert target.read_text() == "the previous output"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "trips-0.parquet"]


def test_without_pyarrow_the_example_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert parquet_etl.main() == 1
    assert capsys.readouterr().err == "this example needs pyarrow: pip install 'threadloom[parquet]'\n"


def test_an_empty_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert parquet_etl.main(tmp_path) == 1
    assert capsys.readouterr().err == f"no *.parquet file in {tmp_path}\n"


def test_the_job_prints_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert parquet_etl.main(files=1, rows=1000) == 0
    shown = capsys.readouterr().out
    assert " rows in 1 row groups" in shown
    assert "     write: 1 threads" in shown
