"""Zip by item: one item of each input makes a tuple. A pure state machine, like the rest of `admission`.

Bound, with n the capacity: of each input at most n items wait for their partners, and no new tuple is begun while n are
complete; so n + the tuples begun at that moment are held at most. An item that a begun tuple lacks always fits, because
it may be the one that empties the channel.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.core import AdmissionError
from threadloom.pipeline.policy.admission import Admission, Policy, Ticket


@dataclass(frozen=True)
class Join(Policy[Any]):
    """Items come as (input, item), and leave as tuples of one item of each input, in the order of completion.

    `keys` has a function for each input: items whose keys are equal belong together, and a key may come again once its
    tuple is complete. Without it the k-th item of each input belong together, in order of arrival. An item without its
    partners at the end of the input is an error, or dropped with `drop_unmatched`.
    """

    inputs: tuple[str, ...]
    keys: tuple[Callable[[Any], Hashable], ...] | None = None
    drop_unmatched: bool = False

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return JoinState(self, capacity)


class JoinState(Admission[tuple[int, Any], tuple[Any, ...]]):
    """Tuples begun, by key, and complete tuples in the order in which they became so."""

    def __init__(self, policy: Join, capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Key -> input -> item; never empty and never of all inputs.
        self._begun: dict[Hashable, dict[int, Any]] = {}
        # Invariant: input -> how many of its items are in _begun; at most capacity, but for those that fit a begun one.
        self._waiting = [0] * len(policy.inputs)
        self._arrived = [0] * len(policy.inputs)  # items put so far: the key of the next one when there are no keys
        self._complete: deque[tuple[Any, ...]] = deque()

    def ticket(self, item: tuple[int, Any]) -> Ticket:
        place, content = item
        return place, None if self._policy.keys is None else self._policy.keys[place](content)

    def fits(self, ticket: Ticket) -> bool:
        if self._key(ticket) in self._begun:
            return True
        return self._waiting[ticket[0]] < self._capacity and len(self._complete) < self._capacity

    def put(self, ticket: Ticket, item: tuple[int, Any]) -> None:
        place, key = ticket[0], self._key(ticket)
        parts = self._begun.setdefault(key, {})
        if place in parts:
            raise AdmissionError(
                f"a second item with the key {key!r} came from {self._policy.inputs[place]!r} before "
                f"{self._missing(key)} sent one: its key function must tell the items of one input apart"
            )
        parts[place] = item[1]
        self._waiting[place] += 1
        self._arrived[place] += 1
        if len(parts) == len(self._waiting):
            del self._begun[key]
            self._waiting = [count - 1 for count in self._waiting]
            self._complete.append(tuple(parts[each] for each in range(len(parts))))

    def ready(self) -> bool:
        return bool(self._complete)

    def take(self, worker: int) -> tuple[Any, ...]:
        return self._complete.popleft()

    def depth(self) -> int:
        return len(self._complete)

    def missing(self) -> str | None:
        return None if self._complete else self._lacking()

    def finish(self) -> None:
        if self._policy.drop_unmatched:
            self._begun.clear()
        if self._begun:
            raise AdmissionError(
                f"the input ended with items that have no partner: {self._lacking()}. An item was filtered out or "
                f"never made, or the key functions do not agree; `drop_unmatched=True` drops such items"
            )

    def _key(self, ticket: Ticket) -> Hashable:
        place: int = ticket[0]
        key: Hashable = ticket[1]
        return self._arrived[place] if self._policy.keys is None else key

    def _lacking(self) -> str:
        some = [f"key {key!r} lacks an item of {self._missing(key)}" for key in list(self._begun)[:4]]
        return "; ".join(some) + (f"; and {len(self._begun) - 4} keys more" if len(self._begun) > 4 else "")

    def _missing(self, key: Hashable) -> str:
        return _listing([name for place, name in enumerate(self._policy.inputs) if place not in self._begun[key]])


def _listing(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
