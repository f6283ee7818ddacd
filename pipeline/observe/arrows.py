"""Which call made the items that another one took: the arrows from bar to bar of a trace, apart from threads.

An item is known by its id(), which no other object has while it waits in a channel. So the n-th time that a stage takes
an id is the n-th time that the stages in front of it sent it. That holds for interned objects too, which may be in a
channel several times: they are sent and taken in one order, or cannot be told apart anyway.

Where it does not hold, an arrow is missing or leads to another item: events that the trace no longer keeps, and a
stage with a `when`, to which not everything is sent that was made in front of it. For the latter the latest sender
counts, which is right unless one object was sent again before it was taken.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from threadloom.pipeline.observe.trace_event import TraceEvent


@dataclass(frozen=True)
class Wiring:
    """Who comes after whom, as a graph declared it."""

    after: Mapping[str, Sequence[str]] = field(default_factory=dict)  # stage → the stages that send to it
    selective: Collection[str] = ()  # stages that take only some of what is sent

    def followers(self) -> dict[str, list[str]]:
        """Return stage → the stages that it sends to."""
        found: dict[str, list[str]] = defaultdict(list)
        for stage, before in self.after.items():
            for each in before:
                found[each].append(stage)
        return found


def arrows(events: Sequence[TraceEvent], wiring: Wiring) -> list[tuple[int, int]]:
    """Return (place of the sender, place of the taker) in `events` for each item that was both sent and taken.

    The later elements of an expansion come from what its first came from.
    """
    followers = wiring.followers()
    moments = [(event.end_ns, 0, place) for place, event in enumerate(events)]
    moments += [(event.start_ns, 1, place) for place, event in enumerate(events)]
    pending: dict[tuple[str, int], deque[int]] = defaultdict(deque)  # (taker, id) → places that sent it, oldest first
    senders: dict[tuple[str, int], list[int]] = {}  # worker → where what it took last came from
    found: list[tuple[int, int]] = []
    # In order of time, and at one time sending before taking: an event ends before its items are sent.
    for _, takes, place in sorted(moments):
        event = events[place]
        worker = (event.stage, event.worker)
        if not takes:
            for stage in followers.get(event.stage, ()):
                for each in event.sent:
                    pending[stage, each].append(place)
            continue
        if event.taken:
            senders[worker] = []
            for each in event.taken:
                if places := pending.get((event.stage, each)):
                    senders[worker].append(places.pop() if event.stage in wiring.selective else places.popleft())
        if wiring.after.get(event.stage):
            found += [(sender, place) for sender in dict.fromkeys(senders.get(worker, ()))]
    return found


def chains(arrows: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Join arrows end to end into as few chains as follow an item straight on; each arrow is in one chain.

    Where one call made several items, or several items met in one, all chains but one begin or end there.
    """
    chain_to: dict[int, list[list[int]]] = defaultdict(list)  # place → chains that end there so far
    found = []
    for sender, taker in sorted(arrows):
        chain = chain_to[sender].pop() if chain_to[sender] else [sender]
        if len(chain) == 1:
            found.append(chain)
        chain.append(taker)
        chain_to[taker].append(chain)
    return found


def item_numbers(
    events: Sequence[TraceEvent], arrows: Sequence[tuple[int, int]], wiring: Wiring, most: int = 16
) -> list[tuple[int, ...]]:
    """Return for each event which elements of the source went into it, counted from 0; () if over `most` or unknown.

    With several sources, the elements of all are counted together, in order of time.
    """
    before: dict[int, list[int]] = defaultdict(list)
    for sender, taker in arrows:
        before[taker].append(sender)
    numbers: list[tuple[int, ...]] = []
    count = 0
    for place, event in enumerate(events):
        if not wiring.after.get(event.stage) and event.sent:
            numbers.append((count,))
            count += 1
        else:
            # Events are in order of start, so a sender comes before the taker.
            union = sorted({number for sender in before[place] for number in numbers[sender]})
            numbers.append(tuple(union) if len(union) <= most else ())
    return numbers
