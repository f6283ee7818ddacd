"""The admission policy of a join: a pure state machine that combines one item of each input into a tuple.

Bound, with n the capacity: at most n items of each input wait for their partners, and no tuple is started while n are
complete, so at most n + the tuples started before that are held. An item that completes a started tuple always fits,
because the channel may not drain without it.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.core import AdmissionError
from threadloom.pipeline.policy.admission import Admission, Policy, Ticket


@dataclass(frozen=True)
class Join(Policy[Any]):
    """Items arrive as (input index, item) and are taken as tuples of one item per input, in the order of completion.

    `keys` has one function per input: items with equal keys are combined, and a key may recur after its tuple is
    complete. Without `keys`, the k-th items of all inputs are combined, in order of arrival. An unmatched item at the
    end of the input is an error, or dropped with `drop_unmatched`.
    """

    inputs: tuple[str, ...]
    keys: tuple[Callable[[Any], Hashable], ...] | None = None
    drop_unmatched: bool = False

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return JoinState(self, capacity)


class JoinState(Admission[tuple[int, Any], tuple[Any, ...]]):
    """State of `Join`: started tuples by key, and complete tuples in the order of completion."""

    def __init__(self, policy: Join, capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Key -> input -> item; at least one and fewer than all inputs per key.
        self._started: dict[Hashable, dict[int, Any]] = {}
        # Input -> number of its items in _started. Invariant: <= capacity, apart from items added to started tuples.
        self._waiting = [0] * len(policy.inputs)
        self._arrived = [0] * len(policy.inputs)  # items put so far by input; without `keys`, the key of the next item
        self._complete: deque[tuple[Any, ...]] = deque()

    def ticket(self, item: tuple[int, Any]) -> Ticket:
        place, content = item
        return place, None if self._policy.keys is None else self._policy.keys[place](content)

    def fits(self, ticket: Ticket) -> bool:
        if self._key(ticket) in self._started:
            return True
        return self._waiting[ticket[0]] < self._capacity and len(self._complete) < self._capacity

    def put(self, ticket: Ticket, item: tuple[int, Any]) -> None:
        place, key = ticket[0], self._key(ticket)
        parts = self._started.setdefault(key, {})
        if place in parts:
            raise AdmissionError(
                f"duplicate key {key!r} from {self._policy.inputs[place]!r} before an item of "
                f"{self._missing_inputs(key)}: the key function must return different keys for the items of one input"
            )
        parts[place] = item[1]
        self._waiting[place] += 1
        self._arrived[place] += 1
        if len(parts) == len(self._waiting):
            del self._started[key]
            self._waiting = [count - 1 for count in self._waiting]
            self._complete.append(tuple(parts[each] for each in range(len(parts))))

    def ready(self) -> bool:
        return bool(self._complete)

    def take(self, worker: int) -> tuple[Any, ...]:
        return self._complete.popleft()

    def depth(self) -> int:
        return len(self._complete)

    def missing(self) -> str | None:
        return None if self._complete else self._unmatched()

    def finish(self) -> None:
        if self._policy.drop_unmatched:
            self._started.clear()
        if self._started:
            raise AdmissionError(
                f"the input ended with unmatched items: {self._unmatched()}. An item was filtered out or never "
                f"created, or the key functions do not match; `drop_unmatched=True` drops such items"
            )

    def _key(self, ticket: Ticket) -> Hashable:
        place: int = ticket[0]
        key: Hashable = ticket[1]
        return self._arrived[place] if self._policy.keys is None else key

    def _unmatched(self) -> str:
        some = [f"key {key!r} lacks an item of {self._missing_inputs(key)}" for key in list(self._started)[:4]]
        return "; ".join(some) + (f"; and {len(self._started) - 4} more keys" if len(self._started) > 4 else "")

    def _missing_inputs(self, key: Hashable) -> str:
        names = [name for place, name in enumerate(self._policy.inputs) if place not in self._started[key]]
        return " and ".join(map(repr, names))
