"""Estimates of the number of items that each node will process, from the lengths of the sources.

The estimate follows the edges: a node gets the items of all its predecessors, a join as many tuples as its shortest
input has items. What cannot be known from the declarations is extrapolated from the items so far: the elements of an
expansion, groups by weight or time, the items that a function or a failure policy skips, and the share of the items
that a branch or a `when` selects. Before the first item, the numbers downstream of an expansion or such a group
are unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from threadloom.pipeline.observe.stage import NodeKind, Port, Stage
from threadloom.pipeline.observe.statistics import StageStatistics
from threadloom.pipeline.policy import Gather, Join


def expected_items(stages: Sequence[Stage], seen: Mapping[str, StageStatistics]) -> dict[str, int | None]:
    """Return node → the number of items (groups, tuples) that it will have taken at the end of the run.

    For a source it is the number of items that it will have sent. None means unknown. `stages` is in the order of
    declaration, in which predecessors come first; `seen` has the statistics so far, and may lack nodes.
    """
    sent: dict[str, float | None] = {}  # node → results that it will have sent
    found: dict[str, int | None] = {}
    for stage in stages:
        if stage.kind is NodeKind.SOURCE:
            taken: float | None = None if stage.length is None else stage.length()
            sent[stage.name] = taken
        else:
            taken = _grouped(stage, _arriving(stage, sent, seen), seen.get(stage.name))
            sent[stage.name] = _results(stage, taken, seen.get(stage.name))
        found[stage.name] = None if taken is None else round(taken)
    return found


def with_expected_items(stages: Sequence[Stage], seen: Sequence[StageStatistics]) -> tuple[StageStatistics, ...]:
    """Return the statistics of the stages with their field `expected`."""
    found = expected_items(stages, {each.name: each for each in seen})
    return tuple(replace(each, expected=found[each.name]) for each in seen)


def _arriving(stage: Stage, sent: Mapping[str, float | None], seen: Mapping[str, StageStatistics]) -> float | None:
    """Return the number of items that the input channel of a stage will have accepted; of a join, per input."""
    numbers = [
        float(seen[name].skipped) if via is Port.LETTERS and name in seen else sent[name]
        for name, via in stage.inputs()
    ]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    if isinstance(stage.admission, Join):
        return min(known)
    selective = stage.when is not None or any(via not in (Port.RESULTS, Port.LETTERS) for via in stage.via)
    return sum(known) * (_selected_share(stage, seen) if selective else 1.0)


def _selected_share(stage: Stage, seen: Mapping[str, StageStatistics]) -> float:
    """Return the share of the predecessors' results that the stage has received so far; 1 before the first."""
    own = seen.get(stage.name)
    offered = sum(seen[name].items_out for name in stage.after if name in seen)
    accepted = own.channel.items if own is not None and own.channel is not None else 0
    return min(1.0, accepted / offered) if offered else 1.0


def _grouped(stage: Stage, arriving: float | None, seen: StageStatistics | None) -> float | None:
    """Return the number of groups of `arriving` items; the number itself for a stage without groups."""
    policy = stage.admission
    if arriving is None or not isinstance(policy, Gather):
        return arriving
    if policy.weight is None and policy.within is None:
        return float(ceil(arriving / policy.count))
    if seen is None or seen.channel is None or not seen.items_in:
        return None
    return arriving * seen.items_in / seen.channel.items


def _results(stage: Stage, taken: float | None, seen: StageStatistics | None) -> float | None:
    """Return the number of results of a stage that will have taken `taken` items."""
    if seen is None or not seen.items_in:
        return None if stage.expand else taken
    if taken is None:
        return None
    if stage.expand:
        return taken * seen.items_out / seen.items_in
    # At most: these items have been taken and may still be sent, by workers or in order.
    in_hand = seen.workers * (stage.concurrency or 1) + stage.capacity
    return taken * (1.0 - max(0, seen.items_in - in_hand - seen.items_out) / seen.items_in)
