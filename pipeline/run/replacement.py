"""The decision about a worker whose call exceeds the time limit of its stage; see `late_calls`."""

from threadloom.pipeline.core import ItemTimeout, StageFailure
from threadloom.pipeline.observe import Phase
from threadloom.pipeline.policy import Decision
from threadloom.pipeline.run.item_labels import UNLABELLED
from threadloom.pipeline.run.late_calls import LateItem
from threadloom.pipeline.run.retry import FailureCounters
from threadloom.pipeline.run.watchdog import StallReport
from threadloom.pipeline.run.worker import StageWorker


def resolve_late_call(
    worker: StageWorker, failures: FailureCounters | None, report: StallReport, limit: float, now: int
) -> LateItem | StageFailure | None:
    """Give up the call of a worker, and return its item for another worker, or the failure of the run.

    The failure policy decides. A call of a stage without one is not given up, nor is an expansion of which elements
    have been sent. Returns None if the call has ended in the meantime.
    """

    def failure(error: BaseException) -> StageFailure:
        return StageFailure(report.stage, report.worker, UNLABELLED, report.item, error)

    error = ItemTimeout(f"the item exceeded the time limit of {limit:g} s. {report}")
    if worker.calls is None or failures is None:
        return failure(error)
    if worker.calls.expanding:
        phase, seconds = worker.in_progress(now)  # read again: the late element may have come in the meantime
        return failure(error) if phase is Phase.BUSY and seconds >= limit else None
    call = worker.calls.give_up(limit)
    if call is None:
        return None
    worker.counters.ended = now
    try:
        decision = failures.decide(error, call.attempt)
        worker.abort()  # ends its wait for a process
    except BaseException as raised:
        return failure(raised)
    if decision is Decision.FAIL:
        return failure(error)
    return LateItem(call.item, worker.number, worker.index, call.attempt, error, decision)
