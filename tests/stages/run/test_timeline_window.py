"""The interval of the trace in the timeline of a run: the last batches before the pipeline drained."""

from threadloom.pipeline import TraceEvent
from threadloom.stages.run.pictures import steady_window


def event(stage: str, batch: int, start: int, end: int) -> TraceEvent:
    return TraceEvent(stage, 0, start, end, {"batch": batch}, 0)


def steady(batches: int) -> list[TraceEvent]:
    """Return a trace with batch k in draw at 10 k, in forward at 10 k + 3 and in backward at 10 k + 10."""
    return [
        event(stage, k, 10 * k + after, 10 * k + after + 2)
        for k in range(batches)
        for stage, after in (("draw", 0), ("forward", 3), ("backward", 10))
    ]


def test_it_ends_with_the_last_draw_and_begins_with_the_forward_of_the_first_batch_shown() -> None:
    # The last draw ends at 92, when forward has finished batch 8, so batches 6, 7 and 8 are shown.
    assert steady_window(steady(10), 3) == (63, 92)
    assert steady_window(steady(10), 100) == (3, 92)


def test_events_after_the_last_draw_do_not_extend_it() -> None:
    assert steady_window([*steady(10), event("evaluate", 9, 200, 900)], 3) == (63, 92)


def test_a_trace_with_too_few_events_has_no_interval() -> None:
    assert steady_window([], 3) is None
    assert steady_window([event("draw", 0, 0, 2)], 3) is None
    assert steady_window([event("draw", 0, 5, 7), event("forward", 0, 8, 9)], 3) is None
