"""The trace and the pictures of a run. They are optional: a failure to write one is a warning."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loguru import logger

from threadloom.pipeline import Trace, TraceEvent, draw_timeline
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.run.report import SHOWN
from threadloom.stages.storage import RunDirectory
from threadloom.stages.training import Training


def new_trace(config: ResolvedConfig, training: Training) -> Trace | None:
    """Return a recorder for the last `trace.batches` batches, or None."""
    events_per_batch = 4 * training.plan.micro_batches + 2 * training.shards.shards + 8
    return Trace(capacity=config.trace.batches * events_per_batch) if config.trace.batches else None


@contextmanager
def pictures(config: ResolvedConfig, run: RunDirectory, trace: Trace | None) -> Iterator[None]:
    """Write the trace and draw the pictures when the block ends, also after an error."""
    try:
        yield
    finally:
        draw_pictures(config, run, trace)


def draw_pictures(config: ResolvedConfig, run: RunDirectory, trace: Trace | None) -> None:
    """Write the trace and draw the pictures. A failure is a warning: they are optional."""
    events = trace.events() if trace is not None else []
    traced = any(event.stage in SHOWN for event in events)
    if trace is not None and traced:
        with _optional(f"{run.trace} was not written"):
            trace.write_chrome(run.trace, f"threadloom {config.name}")
    if not config.pictures:
        return
    with _optional("the pictures of the run were not drawn"):
        from threadloom.stages.run.plots import plot_loss

        if run.metrics.exists() and run.metrics.stat().st_size:
            plot_loss(run.metrics, run.loss_plot, config.name)
        if traced:
            title = f"{config.name}, delay {config.delay}"
            window = steady_window(events, config.trace.timeline)
            draw_timeline(events, run.timeline, window=window, stages=SHOWN, title=title)


@contextmanager
def _optional(failure: str) -> Iterator[None]:
    """Log an error of the block as a warning that begins with `failure`."""
    try:
        yield
    except Exception as error:  # of Matplotlib, its configuration or its fonts, of the disk, or too little memory
        logger.opt(exception=error).debug("traceback")
        logger.warning("{}; the run is not affected: {}: {}", failure, type(error).__name__, error)


def steady_window(events: Sequence[TraceEvent], batches: int) -> tuple[int, int] | None:
    """Return the interval (start_ns, end_ns) of the last `batches` batches before the pipeline drained.

    Return None if the trace has too few events.
    """
    drawn = [event for event in events if event.stage == "draw"]
    if not drawn:
        return None
    end = max(event.end_ns for event in drawn)
    forward = [event for event in events if event.stage == "forward" and event.end_ns <= end]
    newest = max((int(event.label["batch"]) for event in forward), default=0)
    start = min((event.start_ns for event in forward if int(event.label["batch"]) > newest - batches), default=end)
    return (start, end) if start < end else None
