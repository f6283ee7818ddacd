"""A streaming word count over the source of Python's standard library, with a fork and a merge.

    python -m examples.word_count [FOLDER]

    paths → read ─┬→ words ─┬→ total
                  └→ lines ─┘

Only a few files are in memory at a time: every channel is bounded, and a full one blocks the upstream stages. Two
threads read and two count words; that helps only stages that release the GIL, as reading does.
"""

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from threadloom import Graph, RunStatistics

WORD = re.compile(r"[A-Za-z_]\w+")


def load_text(path: Path) -> str:
    """Return the text of a file; invalid UTF-8 is replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


def count_words(text: str) -> Counter[str]:
    """Count the words of one file."""
    return Counter(WORD.findall(text))


def count_lines(text: str) -> Counter[str]:
    """Count the lines of one file, under a key that is not a word."""
    return Counter({"(lines)": text.count("\n"), "(files)": 1})


def count_folder(folder: Path, workers: int = 2) -> tuple[Counter[str], RunStatistics]:
    """Count the words and lines of the Python files under a folder."""

    def paths() -> Iterator[Path]:
        return (path for path in folder.rglob("*.py") if "site-packages" not in path.parts)

    graph = Graph("word count")
    text = graph.stage("read", load_text, after=graph.source("paths", paths), workers=workers, capacity=8)
    words = graph.stage("words", count_words, after=text, workers=workers)  # two stages after one: a fork
    lines = graph.stage("lines", count_lines, after=text)
    counted = graph.sink("total", after=[words, lines])  # one after two: a merge
    total: Counter[str] = Counter()
    with graph.start() as run:
        for part in run.items(counted):
            total.update(part)
    return total, run.statistics()


def main(folder: Path | None = None) -> Counter[str]:
    """Count, and print the most frequent words and the statistics of the stages."""
    total, statistics = count_folder(folder or Path(sysconfig.get_path("stdlib")))
    print(f"{total.pop('(files)', 0):,} files, {total.pop('(lines)', 0):,} lines, {total.total():,} words")
    for word, number in total.most_common(10):
        print(f"{number:>9,}  {word}")
    for stage in statistics.values():
        depth = f"{stage.channel.max_depth} of {stage.channel.capacity} in its channel at most" if stage.channel else ""
        print(f"{stage.name:>6}: {stage.workers} threads, {stage.busy_share:4.0%} busy, {stage.items_out} out, {depth}")
    print(f"{statistics.elapsed:.2f} s")
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
