"""Draw the pictures of this documentation: `python -m docs.make_pictures`.

Each program runs unchanged. Its runs are started with a trace and a label that numbers the items.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from examples import fork_join, image_directory, three_stages, word_count
from threadloom.pipeline import Graph, GraphFormat, Run, Trace, TraceEvent, draw_graph, draw_timeline
from threadloom.stages.config import Config
from threadloom.stages.resolve import load_config
from threadloom.stages.run import train

IMAGES = Path(__file__).with_name("images")


@contextmanager
def observed() -> Iterator[list[tuple[Graph, Run, Trace]]]:
    """Collect the graph, the run and the trace of every run that is started in the block."""
    runs: list[tuple[Graph, Run, Trace]] = []
    start = Graph.start

    def observe(graph: Graph, **options: Any) -> Run:
        settings = {"label": Numbers(), "trace": Trace(), **options}
        run = start(graph, **settings)
        runs.append((graph, run, settings["trace"]))
        return run

    with mock.patch.object(Graph, "start", observe):
        yield runs


class Numbers:
    """A label that numbers items by their first field, in order of appearance."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, int] = {}

    def __call__(self, item: Any) -> dict[str, int | str]:
        while isinstance(item, tuple) or dataclasses.is_dataclass(item):
            item = item[0] if isinstance(item, tuple) else getattr(item, dataclasses.fields(item)[0].name)
        return {"item": self._seen.setdefault(item, len(self._seen))} if isinstance(item, int | Path) else {}


def draw(name: str, program: Callable[[], object], length: int) -> None:
    """Run a program; draw the graph of its last run, and its busiest `length` milliseconds."""
    with observed() as runs:
        program()
    graph, run, trace = runs[-1]
    (IMAGES / f"{name}.svg").write_text(draw_graph(graph, run.statistics(), GraphFormat.SVG), encoding="utf-8")
    window = busiest(trace.events(), {stage.name for stage in graph.stages if stage.after}, length * 1_000_000)
    title = f"{graph.name}: {length} ms of its run"
    draw_timeline(trace.events(), IMAGES / f"{name}-timeline.png", key="item", window=window, title=title, dpi=110)


def busiest(events: list[TraceEvent], stages: set[str], length: int) -> tuple[int, int]:
    """Return the window of `length` nanoseconds with the most time in calls of these stages."""
    first, last = events[0].start_ns, max(event.end_ns for event in events)
    step = max((last - first - length) // 100, 1)

    def work(start: int) -> int:
        end = start + length
        return sum(
            max(0, min(event.end_ns, end) - max(event.start_ns, start)) for event in events if event.stage in stages
        )

    start = max(range(first, max(last - length, first) + 1, step), key=work)
    return start, start + length


def draw_training(config: Config) -> None:
    """Draw the graph of a training, and copy the timeline of its last batches from its run directory."""
    with observed() as runs, tempfile.TemporaryDirectory() as folder:
        outcome = train(config, Path(folder) / "run", tuned=False)
        (IMAGES / "timeline.png").write_bytes(outcome.run.timeline.read_bytes())
    graph, run, _ = runs[-1]
    (IMAGES / "training.svg").write_text(draw_graph(graph, run.statistics(), GraphFormat.SVG), encoding="utf-8")


def main() -> None:
    """Draw everything."""
    IMAGES.mkdir(exist_ok=True)
    draw("three_stages", three_stages.main, 12)
    draw("fork_join", fork_join.main, 12)
    draw("word_count", word_count.main, 20)
    draw("image_directory", image_directory.main, 2000)
    draw_training(msgspec.structs.replace(load_config("nanogpt-cpu"), delay=2, steps=300))


if __name__ == "__main__":
    main()
