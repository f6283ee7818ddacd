"""The invariants of a run that was drained after a failure (`OnFailure.DRAIN`); see `policy.on_failure`.

They apply if a fault of a stage or source ended the run, and nothing else did.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from threadloom.pipeline.core import StageFailure
from threadloom.pipeline.observe import NodeKind, Port, Stage
from threadloom.pipeline.policy import Fifo, InOrder, Join
from threadloom.pipeline.testing.faults import FaultKind
from threadloom.pipeline.testing.injection import Fired
from threadloom.pipeline.testing.journal import Journal

_AT_ONCE = frozenset({FaultKind.CANCEL, FaultKind.INTERRUPT, FaultKind.LEAVE})


def broken_by_draining(
    journal: Journal,
    stoppers: list[Fired],
    error: BaseException | None,
    ordered: Mapping[str, Iterable[Any]],
    delivered: Mapping[str, list[Any]],
) -> Iterator[str]:
    """Yield descriptions of the violated invariants; `ordered` has the expected items of each sink with an order."""
    stages = journal.stages
    failed = {fired.fault.stage for fired in stoppers}
    if any(fired.fault.kind in _AT_ONCE or stages[fired.fault.stage].kind is NodeKind.SINK for fired in stoppers):
        return
    if not isinstance(error, StageFailure) or all(fired.error is not error.__cause__ for fired in stoppers):
        return
    after = _downstream(stages, error.stage)
    for name in failed & after:
        yield f"the caller got the failure of {error.stage!r}, but {name!r} failed on an item before that one"
    skipped = any(stage.on_error.skips and journal.of[stage.name].given_up for stage in stages.values())
    rounds = any(stage.kind is NodeKind.SOURCE and stage.ordered for stage in stages.values())
    if not skipped and not rounds:  # shards end in any round
        for sink, items in ordered.items():
            got, wanted = delivered[sink], list(items)
            if got != wanted[: len(got)]:
                yield f"sink {sink!r} did not deliver the first items before a failure: {got}"
    if not any(isinstance(stage.admission, (InOrder, Join)) for stage in stages.values()):
        for name in after - failed:
            yield from _lost(journal, stages[name], failed)


def _lost(journal: Journal, stage: Stage, failed: set[str]) -> Iterator[str]:
    """Check that everything sent to a node downstream of the failed stage has arrived."""
    stages, record = journal.stages, journal.of[stage.name]
    if not isinstance(stage.admission, Fifo) or Port.LETTERS in stage.via:
        return
    if failed & _downstream(stages, stage.name):
        return  # its items may belong after the cut of another failure
    if any(stages[name].ordered or stages[name].threads > 1 for name in failed & set(stage.after)):
        return  # it has results of later items, which it does not send
    lost = Counter(map(id, record.arrived)) - Counter(map(id, record.begun))
    if lost:
        yield f"{lost.total()} item(s) sent to {stage.name!r} downstream of a failure did not arrive"


def _downstream(stages: Mapping[str, Stage], name: str) -> set[str]:
    """Return the nodes that follow a node, directly or not."""
    found = {name}
    for stage in stages.values():  # a node follows only nodes that are declared before
        if found & set(stage.after):
            found.add(stage.name)
    return found - {name}
