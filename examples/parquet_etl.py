"""An ETL job from Parquet to Parquet, with progress: it needs pyarrow (`pip install 'threadloom[parquet]'`).

    python -m examples.parquet_etl [FOLDER]

    row groups → read → clean → regroup → write

Row groups are read and cleaned by two workers each (pyarrow releases the GIL), and stay in order. `regroup` collects
rows into tables of a fixed size; its `flush` returns the rest at the end of the input. The output has a temporary name
until it is complete: a job that fails or is interrupted leaves the previous output untouched. Without a folder, trips
are generated in a temporary one.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from threadloom import Graph, RunStatistics, per_worker

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

OUTPUT_ROWS = 10_000
MISSING = "this example needs pyarrow: pip install 'threadloom[parquet]'"


@dataclass(frozen=True)
class RowGroup:
    """One row group of an input file."""

    path: Path
    number: int


def row_groups(paths: Sequence[Path]) -> list[RowGroup]:
    """Return the row groups of some files. Their number is the total of the progress bar."""
    from pyarrow import parquet

    return [RowGroup(path, n) for path in paths for n in range(parquet.read_metadata(path).num_row_groups)]


def read(group: RowGroup) -> "pyarrow.Table":
    """Read one row group."""
    from pyarrow import parquet

    with parquet.ParquetFile(group.path) as file:
        return file.read_row_group(group.number)


def clean(trips: "pyarrow.Table") -> "pyarrow.Table":
    """Drop trips without a distance or a duration, and add their mean speed in km/h."""
    from pyarrow import compute

    valid = compute.and_(compute.greater(trips["km"], 0.0), compute.greater(trips["minutes"], 0.0))
    kept = trips.filter(valid)
    return kept.append_column("km_per_hour", compute.multiply(compute.divide(kept["km"], kept["minutes"]), 60.0))


class Regroup:
    """Collects rows into tables of `rows` rows; for a stage with one worker."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._waiting: list[pyarrow.Table] = []

    def __call__(self, table: "pyarrow.Table") -> "list[pyarrow.Table]":
        """Add a table; return the tables that are complete."""
        import pyarrow

        self._waiting.append(table)
        together = pyarrow.concat_tables(self._waiting)
        complete = together.num_rows // self.rows
        self._waiting = [together.slice(complete * self.rows)]
        return [together.slice(n * self.rows, self.rows) for n in range(complete)]

    def flush(self) -> "list[pyarrow.Table]":
        """Return the remaining rows at the end of the input; called by the engine."""
        left, self._waiting = self._waiting, []
        return [table for table in left if table.num_rows]


class TableWriter:
    """Writes each table as a row group of one file; for `per_worker`, and one worker."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._aside = target.with_name(f".{target.name}.tmp")
        self._writer: parquet.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, table: "pyarrow.Table") -> int:
        """Write a table; return its number of rows."""
        from pyarrow import parquet

        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._aside, table.schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        return int(table.num_rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and give it its name; after an error, remove it."""
        if self._writer is not None:
            self._writer.close()
            if error is None:
                self._aside.replace(self.target)
        self._aside.unlink(missing_ok=True)


def etl_graph(paths: Sequence[Path], target: Path, rows: int = OUTPUT_ROWS) -> Graph:
    """Return the graph of the job. It has no sink: the output is the file."""
    graph = Graph("etl")
    groups = graph.source("row groups", row_groups(paths))
    tables = graph.stage("read", read, after=groups, workers=2, ordered=True)
    cleaned = graph.stage("clean", clean, after=tables, workers=2, ordered=True)
    regrouped = graph.stage("regroup", Regroup(rows), after=cleaned, expand=True)
    graph.stage("write", per_worker(partial(TableWriter, target)), after=regrouped)
    return graph


def make_trips(folder: Path, files: int = 8, rows: int = 50_000) -> None:
    """Write files of random trips, some of them broken, with five row groups each."""
    import pyarrow
    from pyarrow import parquet

    for number in range(files):
        generator = np.random.default_rng(number)
        km = generator.gamma(2.0, 4.0, rows)
        km[generator.random(rows) < 0.02] = 0.0
        trips = {
            "city": generator.choice(["Lyon", "Nara", "Oslo"], rows),
            "km": km,
            "minutes": np.where(km > 0, 3 + 2.5 * km + generator.normal(0, 2, rows), -1.0),
        }
        parquet.write_table(pyarrow.table(trips), folder / f"trips-{number}.parquet", row_group_size=rows // 5)


def run_job(folder: Path, target: Path, rows: int = OUTPUT_ROWS, *, progress: bool = True) -> RunStatistics:
    """Clean all Parquet files of a folder into one file."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no *.parquet file in {folder}")
    return etl_graph(paths, target, rows).run(progress=progress)


def main(folder: Path | None = None, files: int = 8, rows: int = 50_000) -> int:
    """Run the job, and print the sizes and the statistics; return an exit status."""
    try:
        from pyarrow import parquet
    except ImportError:
        print(MISSING, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="trips-") as temporary:
        source = folder or Path(temporary)
        if folder is None:
            make_trips(source, files, rows)
        target = Path(temporary) / "clean" / "trips.parquet" if folder is None else source / "clean" / "trips.parquet"
        target.parent.mkdir(exist_ok=True)
        try:
            statistics = run_job(source, target)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 1
        metadata = parquet.read_metadata(target)
        print(
            f"{metadata.num_rows:,} rows in {metadata.num_row_groups} row groups, {target.stat().st_size / 1e6:.1f} MB"
        )
    for stage in statistics.values():
        print(
            f"{stage.name:>10}: {stage.workers} threads, {stage.busy_share:4.0%} busy, {stage.waiting_share:4.0%} "
            f"waiting, {stage.blocked_share:4.0%} blocked, {stage.items_out} out, p50 {stage.tasks.p50 * 1e3:.1f} ms"
        )
    print(f"{statistics.elapsed:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
