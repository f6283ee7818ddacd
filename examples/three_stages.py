"""A pipeline of three stages: the functions, the graph, and its statistics.

    python -m examples.three_stages [FOLDER]

    paths → read → compress → weigh

`compress` is most of the work. zlib releases the GIL, so two threads of that stage do twice as much; and the stage is
`ordered`, so that files leave it in the order in which they entered.
"""

import sys
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from threadloom import Graph, RunOptions, RunStatistics


@dataclass(frozen=True)
class Weight:
    """The sizes of a file before and after compression, in bytes."""

    path: Path
    size: int
    compressed: int


def read_bytes(path: Path) -> tuple[Path, bytes]:
    """Return a file and its content."""
    return path, path.read_bytes()


def compress(file: tuple[Path, bytes]) -> tuple[Path, int, bytes]:
    """Return a file, the size of its content, and the compressed content."""
    path, content = file
    return path, len(content), zlib.compress(content, 9)


def weigh(file: tuple[Path, int, bytes]) -> Weight:
    """Return the sizes of a file."""
    path, size, compressed = file
    return Weight(path, size, len(compressed))


def compression_graph(paths: Iterable[Path], workers: int = 2) -> Graph:
    """Declare the stages and their connections."""
    graph = Graph("three stages")
    files = graph.stage("read", read_bytes, after=graph.source("paths", paths), capacity=8)
    small = graph.stage("compress", compress, after=files, workers=workers, ordered=True, capacity=8)
    weights = graph.stage("weigh", weigh, after=small)
    graph.sink("weights", after=weights)
    return graph


def weigh_all(
    paths: Iterable[Path], workers: int = 2, **options: Unpack[RunOptions]
) -> tuple[list[Weight], RunStatistics]:
    """Run the graph to its end."""
    with compression_graph(paths, workers).start(**options) as run:
        return list(run), run.statistics()


def main(folder: Path | None = None) -> list[Weight]:
    """Compress the modules of a folder, and print the sizes and the statistics of the stages."""
    paths = sorted((folder or Path(sysconfig.get_path("stdlib"))).glob("*.py"))
    weights, statistics = weigh_all(paths)
    size, compressed = sum(each.size for each in weights), sum(each.compressed for each in weights)
    print(f"{len(weights)} files: {size / 1e6:.1f} MB compressed to {compressed / 1e6:.1f} MB")
    for each in sorted(weights, key=lambda weight: weight.size)[-3:]:
        print(f"  {each.path.name}: {each.size:,} bytes compressed to {each.compressed:,}")
    for stage in statistics.values():
        print(
            f"{stage.name:>9}: {stage.workers} threads, {stage.busy_share:4.0%} busy, {stage.waiting_share:4.0%} "
            f"waiting, {stage.blocked_share:4.0%} blocked; a call takes {1e3 * stage.tasks.p50:.2f} ms"
        )
    print(f"{statistics.elapsed:.2f} s")
    return weights


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
