"""Which part of a trace the run's picture shows: the last batches before the pipeline ran empty."""

from threadloom.pipeline import TraceEvent
from threadloom.stages.run.session import steady_window


def event(stage: str, batch: int, start: int, end: int) -> TraceEvent:
    return TraceEvent(stage, 0, start, end, {"batch": batch}, 0)


def steady(batches: int) -> list[TraceEvent]:
    """Batch k is drawn at 10 k, in forward at 10 k + 3 and in backward at 10 k + 10."""
    return [
        event(stage, k, 10 * k + after, 10 * k + after + 2)
        for k in range(batches)
        for stage, after in (("draw", 0), ("forward", 3), ("backward", 10))
    ]


def test_it_ends_with_the_last_draw_and_begins_with_the_forward_of_the_first_batch_shown() -> None:
    # The last draw ends at 92; by then forward has done batch 8, and the three batches 6, 7, 8 are shown.
    assert steady_window(steady(10), 3) == (63, 92)
    assert steady_window(steady(10), 100) == (3, 92)


def test_what_comes_after_the_last_draw_does_not_stretch_it() -> None:
    assert steady_window([*steady(10), event("evaluate", 9, 200, 900)], 3) == (63, 92)


def test_a_trace_that_tells_too_little_leaves_the_choice_to_the_picture() -> None:
    assert steady_window([], 3) is None
    assert steady_window([event("draw", 0, 0, 2)], 3) is None
    assert steady_window([event("draw", 0, 5, 7), event("forward", 0, 8, 9)], 3) is None
