"""The admission policy of gradient lanes: a pure state machine.

The micro-batches of a lane are taken in ascending order, one at a time (exclusive) unless lanes are shared, and no
micro-batch of a batch is taken before all micro-batches of earlier batches *have been taken*. Without this fence, lanes
that run ahead could leave all workers waiting for the reduction of a batch whose last micro-batch is not yet taken: a
deadlock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import AdmissionError, LanePlan
from threadloom.pipeline.policy.admission import Admission, Policy

Item = TypeVar("Item")
ItemContra = TypeVar("ItemContra", contravariant=True)

Place = tuple[int, int]
"""(batch, micro-batch)."""


@dataclass(frozen=True)
class LaneOrder(Policy[ItemContra]):
    """Micro-batches, identified by `place(item)` = (batch, micro-batch), are taken per lane in order and exclusively.

    `first_batch` is the first batch of the run. With `shared`, several workers may hold micro-batches of one lane; they
    are still taken in order, so a worker that waits for the preceding micro-batch waits for a running worker.

    A channel with this policy holds at most its capacity, plus for each lane the item that the lane takes next.
    """

    plan: LanePlan
    place: Callable[[ItemContra], Place]
    first_batch: int = 0
    shared: bool = False
    exclusive: bool = field(default=True, init=False)  # workers then call `done`

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return LaneOrderState(self, capacity)


class LaneOrderState(Admission[Item, Item], Generic[Item]):
    """State of `LaneOrder`: the items held, the place that each lane takes next, and the lanes being processed."""

    def __init__(self, policy: LaneOrder[Item], capacity: int) -> None:
        self._plan = policy.plan
        self._place = policy.place
        self._shared = policy.shared
        self._capacity = capacity
        self._held: dict[Place, Item] = {}  # at most capacity + lanes; ensured by `fits`
        # Lane → place to take next. Changed only by take().
        self._next = {lane: (policy.first_batch, lane) for lane in range(self._plan.lanes)}
        self._hands: dict[int, int] = {}  # worker → lane of its item; without duplicates unless shared
        self._open = policy.first_batch  # the first batch of which not all micro-batches have been taken
        self._taken = 0  # number of micro-batches of that batch taken so far

    def ticket(self, item: Item) -> Place:
        return self._place(item)

    def fits(self, ticket: Place) -> bool:
        return len(self._held) < self._capacity or ticket <= self._next[self._plan.lane_of(ticket[1])]

    def put(self, ticket: Place, item: Item) -> None:
        if ticket < self._next[self._plan.lane_of(ticket[1])] or ticket in self._held:
            raise AdmissionError(f"duplicate micro-batch {ticket[1]} of batch {ticket[0]}")
        self._held[ticket] = item

    def ready(self) -> bool:
        return self._candidate() is not None

    def take(self, worker: int) -> Item:
        place = self._candidate()
        assert place is not None, "take is called only when ready"
        batch, micro = place
        lane = self._plan.lane_of(micro)
        self._hands[worker] = lane
        later = micro + self._plan.lanes
        self._next[lane] = (batch, later) if later < self._plan.micro_batches else (batch + 1, lane)
        self._taken += 1
        if self._taken == self._plan.micro_batches:
            self._open, self._taken = self._open + 1, 0
        return self._held.pop(place)

    def done(self, worker: int) -> None:
        del self._hands[worker]

    def in_hand(self) -> int:
        return len(self._hands)

    def depth(self) -> int:
        return len(self._held)

    def missing(self) -> str | None:
        return None if self._hands or self._candidate() is not None else self._missing()

    def finish(self) -> None:
        if self._held or self._taken:
            raise AdmissionError(f"the input ended in the middle of a batch: {self._missing()}")

    def _candidate(self) -> Place | None:
        """Return the first place that may be taken now, or None."""
        busy = () if self._shared else self._hands.values()
        places = [p for lane, p in self._next.items() if lane not in busy and p[0] <= self._open and p in self._held]
        return min(places, default=None)

    def _missing(self) -> str:
        waiting = [f"lane {lane} waits for micro-batch {m} of batch {b}" for lane, (b, m) in self._next.items()]
        return "; ".join(waiting) + f"; the channel holds {sorted(self._held)[:8]}"
