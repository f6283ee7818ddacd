"""Graphs made from a seed, with a model of what must come out of each.

The model runs the same stages over lists, one after another. What it says of a node is exact as a multiset, because
each function made here gives the same whatever the order and whoever calls it; and exact as a sequence (`in_order`)
along nodes that keep the order: one source, one worker or an exclusive order on the way.

Items are integers above 10,000, so that each is an object of its own; where an order is asked for, its indices are the
items' places in the model.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from threadloom.pipeline.core import AdmissionError, Pool
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import SKIP, Node, NodeKind, Skip
from threadloom.pipeline.policy import FailFast, Gather, InOrder, Join, Retry, SkipFailed
from threadloom.pipeline.run import per_worker
from threadloom.pipeline.testing.harness import Subject

FIRST = 10_000
MOST_ITEMS = 400
"""Expansions stop where a node would get more than this."""

Function = Callable[[int], int | Skip]
Expansion = Callable[[int], Any]


@dataclass(frozen=True)
class Known:
    """What the model knows of a node's output."""

    node: Node[int]
    items: list[int]
    in_order: bool  # whether they come in the order of `items`
    plain: bool  # whether nothing on the way holds items back, so that a too small capacity behind it is noticed
    one_sender: bool  # whether all that come after it get its items in the same order


class _Builder:
    def __init__(self, seed: int, small: bool) -> None:
        self.choose = random.Random(f"graph {seed}")
        self.graph = Graph(f"random-{seed}")
        self.known: list[Known] = []
        self.pools: list[Pool[int]] = []
        self.expected: dict[str, list[int]] = {}
        self.ordered: set[str] = set()
        self.may_raise: set[type[BaseException]] = set()
        self.small = small

    def build(self) -> Subject:
        choose = self.choose
        for _ in range(choose.choice([1, 1, 1, 2, 3])):
            self.source()
        for _ in range(choose.randint(0, 3 if self.small else 7)):
            choose.choices([self.stage, self.route, self.join], [8, 1, 1])[0]()
        sinks = choose.choice([0, 1, 1, 1, 1, 2, 3])
        for number in range(sinks):
            self.sink(self.some_nodes(), number)
        followed = set(chain(*(stage.after for stage in self.graph.stages)))
        loose = [each for each in self.known if each.node.name.startswith("source") and each.node.name not in followed]
        if loose:
            self.sink(loose, sinks)
        self.policies()
        return Subject(
            self.graph,
            tuple(self.pools),
            self.expected,
            frozenset(self.ordered),
            tuple(self.may_raise),
            label=choose.choice([None, lambda item: {"item": item}]),
        )

    def policies(self) -> None:
        """Let some stages try again, and, where nothing counts on every item, skip what fails and send dead letters."""
        choose, stages = self.choose, self.graph._stages
        counts = any(
            isinstance(stage.admission, (InOrder, Join))
            or (isinstance(stage.admission, Gather) and not stage.admission.partial)
            for stage in stages.values()
        )
        for name, stage in list(stages.items()):
            if stage.kind is not NodeKind.STAGE or stage.acquire is not None or choose.random() < 0.7:
                continue
            skip = SkipFailed() if not counts and choose.random() < 0.6 else FailFast()
            policy = Retry(choose.randint(1, 2), first=0, then=skip) if choose.random() < 0.7 else skip
            stages[name] = replace(stage, on_error=policy)
            if policy.skips and choose.random() < 0.5:
                node: Node[Any] = Node(name, self.graph)
                self.graph.stage(f"{name}-letters", str, after=self.graph.dead_letters(node))

    def source(self) -> None:
        name, many = f"source{len(self.known)}", self.choose.choice([0, 1, 5, 20, 40])
        first = FIRST + 1_000_000 * len(self.known)
        items = list(range(first, first + many))

        def generate() -> Iterator[int]:
            yield from items

        forms: list[Iterable[int] | Callable[[], Iterable[int]]] = [
            items,
            range(first, first + many),
            generate,
            items.copy,
        ]
        node = self.graph.source(name, self.choose.choice(forms))
        self.known.append(Known(node, items, True, True, True))

    def some_nodes(self) -> list[Known]:
        """Choose what to come after, the newest more often than chance would have it."""
        count = min(self.choose.choice([1, 1, 1, 2, 3]), len(self.known))
        chosen = self.choose.sample(self.known, count)
        if self.choose.random() < 0.6 and self.known[-1] not in chosen:
            chosen[0] = self.known[-1]
        return chosen

    def arriving(self, before: list[Known]) -> tuple[list[int], bool, dict[str, Any]]:
        """Return what comes to a node, whether in that order, and the arguments that say so to the graph."""
        items = list(chain(*(each.items for each in before)))
        in_order = len(before) == 1 and before[0].in_order
        arguments: dict[str, Any] = {"after": [each.node for each in before], "capacity": self.choose.randint(1, 4)}
        if self.choose.random() < 0.25:
            modulus = self.choose.randint(2, 3)
            rest = self.choose.randrange(modulus)
            items = [item for item in items if item % modulus == rest]
            arguments["when"] = lambda item: item % modulus == rest
        return items, in_order, arguments

    def stage(self) -> None:
        choose, before = self.choose, self.some_nodes()
        name = f"stage{len(self.known)}"
        items, in_order, arguments = self.arriving(before)
        workers = arguments["workers"] = choose.randint(1, 4)
        plain = all(each.plain for each in before)
        if choose.random() < 0.25:
            out = self.gathering(name, items, arguments)
            self.known.append(Known(out[0], out[1], False, False, workers == 1))
            return
        ordered = arguments["ordered"] = choose.random() < 0.3
        keeps = workers == 1 or ordered
        if choose.random() < 0.35 and max(Counter(items).values(), default=1) == 1:
            keeps, in_order = self.order(items, in_order and len(before) == 1, plain, arguments)
        if choose.random() < 0.2:
            arguments["acquire"], release = self.slots(choose.randint(1, workers))
        else:
            release = None
        if choose.random() < 0.3 and len(items) < MOST_ITEMS // 2:
            fn, outputs = self.expansion(items)
            node = self.graph.stage(name, _releasing(fn, release), expand=True, **arguments)
        else:
            fn, outputs = self.function(items)
            fn = _releasing(fn, release)
            node = self.graph.stage(name, _with_set_up(fn) if choose.random() < 0.15 else fn, **arguments)
        self.known.append(Known(node, outputs, in_order and keeps, plain, workers == 1 or ordered))

    def route(self) -> None:
        """Add a route of two or three ways, each to a stage of its own."""
        before, ways = self.choose.choice(self.known), self.choose.randint(2, 3)
        name = f"route{len(self.known)}"
        branches = self.graph.route(name, lambda item: item % ways, after=before.node, to=range(ways))
        for way, branch in branches.items():
            name = f"branch{len(self.known)}"
            workers, ordered = self.choose.randint(1, 3), self.choose.random() < 0.3
            node = self.graph.stage(name, lambda item: item + 13, after=branch, workers=workers, ordered=ordered)
            items = [item + 13 for item in before.items if item % ways == way]
            alone = workers == 1 or ordered
            self.known.append(Known(node, items, before.in_order and alone, before.plain, alone))

    def join(self) -> None:
        """Add a fork of two ways and the join of both, by position or by key."""
        choose, before = self.choose, self.choose.choice(self.known)
        name, by_key = f"join{len(self.known)}", not before.one_sender or choose.random() < 0.4
        if by_key and max(Counter(before.items).values(), default=1) > 1:
            return  # a key may come again only when its tuple is complete
        capacity, workers = choose.randint(1, 4), choose.randint(1, 3)
        # By key the other way may be out of order by as much as there are workers; by position it may not be at all.
        one_by_one: dict[str, Any] = {"ordered": True} if not by_key else {"capacity": 1}
        way = self.graph.stage(f"{name}-way", lambda item: item + 17, after=before.node, workers=workers, **one_by_one)
        node = self.graph.join(
            name,
            lambda pair: pair[0] + pair[1] - 17,
            after=(before.node, way),
            keys=(lambda item: item, lambda item: item - 17) if by_key else None,
            capacity=capacity if not by_key else len(before.items) + 1,
            drop_unmatched=choose.random() < 0.3,
            workers=(joiners := choose.randint(1, 2)),
        )
        items = [2 * item for item in before.items]
        self.known.append(Known(node, items, before.in_order and not by_key and joiners == 1, False, joiners == 1))

    def function(self, items: list[int]) -> tuple[Function, list[int]]:
        add, skipped = 1000 * self.choose.randint(1, 9), self.choose.choice([None, None, 2, 3])

        def move(item: int) -> int | Skip:
            return SKIP if skipped is not None and item % skipped == 0 else item + add

        functions: list[Function] = [move, move, lambda item: item]
        chosen = self.choose.choice(functions)
        results = map(chosen, items)
        return chosen, [result for result in results if not isinstance(result, Skip)]

    def expansion(self, items: list[int]) -> tuple[Expansion, list[int]]:
        copies = self.choose.randint(0, 2)
        if self.choose.random() < 0.5:

            def lazily(item: int) -> Iterator[int | Skip]:
                for copy in range(copies):
                    yield item + 100_000 * copy
                    yield SKIP

            chosen: Expansion = lazily
        else:
            chosen = lambda item: [item + 100_000 * copy for copy in range(copies)]  # noqa: E731
        return chosen, [item + 100_000 * copy for item in items for copy in range(copies)]

    def gathering(self, name: str, items: list[int], arguments: dict[str, Any]) -> tuple[Node[int], list[int]]:
        choose, count = self.choose, self.choose.randint(1, 4)
        by_value = choose.random() < 0.5
        if by_value:
            # All items of a group are equal, so that it does not matter which of them came together.
            times = Counter(items)
            exact = all(many % count == 0 for many in times.values())
            policy = Gather[int](key=lambda item: item, count=count, partial=not exact)
            node = self.graph.stage(name, lambda group: group[0] + 7, gather=policy, **arguments)
            return node, [item + 7 for item, many in times.items() for _ in range(-(-many // count))]
        keys = choose.choice([None, 2, 3])
        sort = choose.choice([None, lambda item: item])
        policy = Gather(key=None if keys is None else lambda item: item % keys, count=count, sort=sort, partial=True)
        node = self.graph.stage(
            name, lambda group: [item + 11 for item in group], gather=policy, expand=True, **arguments
        )
        return node, [item + 11 for item in items]

    def order(self, items: list[int], in_order: bool, plain: bool, arguments: dict[str, Any]) -> tuple[bool, bool]:
        """Add an InOrder policy; return whether the node keeps the order, and whether items come in that of `items`."""
        choose, workers = self.choose, arguments["workers"]
        keys = choose.choice([1, 1, 2, 3])
        first = choose.randint(0, 2)
        places = {item: (place % keys, first + place // keys) for place, item in enumerate(items)}
        exclusive = choose.random() < 0.6
        count = len(items) if keys == 1 and items and choose.random() < 0.5 else None
        arguments["admission"] = InOrder[int](places.__getitem__, exclusive=exclusive, first=first, count=count)
        if not in_order:
            if plain and len(arguments["after"]) == 1 and choose.random() < 0.3:
                self.may_raise.add(AdmissionError)  # a capacity below the disorder: refused, but never a hang
            else:
                arguments["capacity"] = len(items) + 1
        # Several keys come out in an order of the threads' making, unless items came in it and one worker sees to them.
        keeps = workers == 1 or arguments["ordered"] or (exclusive and keys == 1)
        return keeps, keys == 1 or (in_order and workers == 1)

    def slots(self, size: int) -> tuple[Callable[[int], object], Callable[[], None]]:
        """Return what takes an element of a pool before a call, and what gives it back at the end of the call."""
        pool, mine = Pool(range(size)), threading.local()
        self.pools.append(pool)

        def acquire(item: int) -> None:
            mine.element = pool.take()

        return acquire, lambda: pool.give_back(mine.element)

    def sink(self, before: list[Known], number: int) -> None:
        name = f"sink{number}"
        items, in_order, arguments = self.arriving(before)
        if self.choose.random() < 0.3 and max(Counter(items).values(), default=1) == 1:
            arguments["admission"] = InOrder[int]({item: (0, place) for place, item in enumerate(items)}.__getitem__)
            arguments["capacity"] = arguments["capacity"] if in_order else len(items) + 1
            in_order = True
        self.graph.sink(name, **arguments)
        self.expected[name] = items
        if in_order:
            self.ordered.add(name)


def _releasing(fn: Callable[[int], Any], release: Callable[[], None] | None) -> Callable[[int], Any]:
    if release is None:
        return fn
    give_back = release

    def call(item: int) -> Any:
        try:
            return fn(item)
        finally:
            give_back()

    return call


def _with_set_up(fn: Callable[[int], Any]) -> Any:
    @contextmanager
    def context() -> Iterator[Callable[[int], Any]]:
        yield fn

    return per_worker(context)


def random_subject(seed: int, *, small: bool = False) -> Subject:
    """Return a graph with a model of its outcome; the same for the same seed. A `small` one has at most 3 stages.

    There are up to 3 sources, 7 stages and 4 sinks, of 1 to 4 workers and capacities from 1 to 4, that fork, merge,
    filter, skip, expand, gather, keep orders, take slots and have set-ups.
    """
    return _Builder(seed, small).build()
