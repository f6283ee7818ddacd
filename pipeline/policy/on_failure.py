"""The end of a run after a failure: at once, or after the items before the failing one have been delivered.

With DRAIN every node is a sequence: items leave a stage in the order in which they were taken, for any number of
workers. A failure cuts the sequence of its stage before the failing item: its later results are never sent, its input
is discarded, and the input of the stages downstream ends there. The sources end too, and all stages process the
items that have been sent.

Guarantee: every sink delivers a prefix of the results that it would deliver without the failure. If every path to the
sink leads through the failing stage, the prefix ends where a sequential execution - one item after the other, each
result passed on before the next is computed - would raise; so elements that an expansion or a source yielded before it
raised are delivered. A sink with other paths delivers these results, and those of later items that the other paths had
taken by then. Of several failures of one path the caller gets the most downstream, whose item is the earliest; of
failures in parallel branches, the first.

`FailureCuts` is plain state without threads, guarded by the lock of its run.
"""

from collections.abc import Collection
from enum import StrEnum

from threadloom.pipeline.core import AdmissionError, StageFailure


class OnFailure(StrEnum):
    """The end of a run whose stage or source raises an error that no failure policy handles."""

    STOP = "stop"
    """The run ends at once, and items in flight are dropped."""
    DRAIN = "drain"
    """All results before the failing item are delivered, in order; then the error is raised.

    Every stage with several workers is `ordered`. Not drained: an exceeded `limit`, a stall, `cancel`, and leaving the
    `with` block, which end the run at once. Stages with `acquire` are rejected, because a dropped item would keep its
    resource. An error is raised after the last sink has delivered its results; a source that is inside `next` ends
    after it. Dead letters are sent at once, and may belong to items after the failing one.
    """


class FailureCuts:
    """The failed stages of a run that is drained, and the failure to raise at its end.

    `successors` is the graph: node → the nodes that follow it, predecessors before their successors.
    """

    def __init__(self, successors: dict[str, Collection[str]]) -> None:
        self._successors = successors
        self._cut: set[str] = set()
        self.first: StageFailure | None = None
        """The failure whose item is the earliest, as far as this is known; None before the first failure."""

    def add(self, failure: StageFailure) -> None:
        """Record the failure of a stage or source."""
        # Items that lack those of the failed stage are a consequence of the first failure.
        consequence = isinstance(failure.__cause__, AdmissionError)
        if self.first is None or (not consequence and failure.stage in self._downstream(self.first.stage)):
            self.first = failure
        self._cut.add(failure.stage)

    def needed(self) -> set[str]:
        """Return the nodes whose results may still reach a sink, or a stage that is run for its side effects."""
        needed: set[str] = set()
        for node in reversed(self._successors):
            following = self._successors[node]
            if not following or any(each in needed and each not in self._cut for each in following):
                needed.add(node)
        return needed

    def _downstream(self, node: str) -> set[str]:
        found = {node}
        for each, following in self._successors.items():
            if each in found:
                found.update(following)
        return found - {node}
