"""Arrows between the events of a trace: from the call that sent an item to the call that took it.

An item is identified by its id(), which no other object has while the item is in a channel. Therefore the n-th time
that a stage takes an id corresponds to the n-th time that its predecessors sent it. This includes interned objects,
which may be in a channel several times: they are sent and taken in the same order, or are indistinguishable.

An arrow may be missing or wrong in two cases: events that the trace no longer keeps, and a stage with a `when`, which
does not receive everything that its predecessors sent. For the latter, the latest sender is used, which is right unless
an object was sent again before it was taken.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from threadloom.pipeline.observe.trace_event import TraceEvent


@dataclass(frozen=True)
class Wiring:
    """The edges of a graph between its stages."""

    after: Mapping[str, Sequence[str]] = field(default_factory=dict)  # stage → its predecessors
    selective: Collection[str] = ()  # stages with a `when`

    def successors(self) -> dict[str, list[str]]:
        """Return a mapping of stage → its successors."""
        found: dict[str, list[str]] = defaultdict(list)
        for stage, before in self.after.items():
            for each in before:
                found[each].append(stage)
        return found


def arrows(events: Sequence[TraceEvent], wiring: Wiring) -> list[tuple[int, int]]:
    """Return (index of the sender, index of the taker) in `events` for each item that was sent and taken.

    All elements of an expansion have arrows from the sender of its input.
    """
    successors = wiring.successors()
    moments = [(event.end_ns, 0, place) for place, event in enumerate(events)]
    moments += [(event.start_ns, 1, place) for place, event in enumerate(events)]
    pending: dict[tuple[str, int], deque[int]] = defaultdict(
        deque
    )  # (taker, id) → indices of its senders, oldest first
    senders: dict[tuple[str, int], list[int]] = {}  # worker → senders of the items it took last
    found: list[tuple[int, int]] = []
    # In order of time, and sending before taking at equal times: an event ends before its items are sent.
    for _, takes, place in sorted(moments):
        event = events[place]
        worker = (event.stage, event.worker)
        if not takes:
            for stage in successors.get(event.stage, ()):
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
    """Concatenate arrows into chains that follow items through the graph; each arrow is in exactly one chain.

    At a call with several results or several inputs, all chains but one begin or end.
    """
    chain_to: dict[int, list[list[int]]] = defaultdict(list)  # index → chains that end there so far
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
    """Return for each event the numbers of the source elements it derives from; () if unknown or more than `most`.

    The elements of all sources are numbered together from 0, in order of time.
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
            # Events are in order of start, so senders precede takers.
            union = sorted({number for sender in before[place] for number in numbers[sender]})
            numbers.append(tuple(union) if len(union) <= most else ())
    return numbers
