"""Random graphs, each determined by a seed, with a model of their output.

The model applies the stages to lists, one after the other. Its output of a node is exact as a multiset, because the
outputs of the functions do not depend on the order of their calls. It is exact as a sequence (`in_order`) if there is
one source and every stage on the path keeps the order: one worker, or an exclusive order.

Items are integers above 10,000, so that CPython shares no two of them; the indices of an InOrder are the positions of
the items in the model.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from threadloom.pipeline.core import AdmissionError, Pool, kind_of
from threadloom.pipeline.graph import Graph, Shards
from threadloom.pipeline.observe import Node, NodeKind
from threadloom.pipeline.policy import (
    Expansion,
    FailFast,
    Gather,
    InOrder,
    Join,
    OnError,
    Priority,
    Rate,
    Retry,
    SkipFailed,
)
from threadloom.pipeline.testing.harness import Subject
from threadloom.pipeline.testing.random_functions import (
    as_async_generator,
    as_coroutine,
    random_accumulator,
    random_expansion,
    random_function,
    then_release,
    with_set_up,
)

FIRST = 10_000
MOST_ITEMS = 400
"""Largest number of items of a node; expansions that would exceed it are left out."""


@dataclass(frozen=True)
class ModelNode:
    """A node with the model of its output."""

    node: Node[int]
    items: list[int]
    in_order: bool  # True if they arrive in the order of `items`
    plain: bool  # True if nothing upstream delays items, so that too small a capacity downstream is detected
    one_sender: bool  # True if all successors get its items in the same order


class _Builder:
    """Builds one graph and its model, with the random choices of one seed."""

    def __init__(self, seed: int, *, small: bool) -> None:
        self.choose = random.Random(f"graph {seed}")
        self.loops = random.Random(f"loops {seed}")  # for the choices of coroutines
        self.graph = Graph(f"random-{seed}")
        self.nodes: list[ModelNode] = []
        self.pools: list[Pool[int]] = []
        self.expected: dict[str, list[int]] = {}
        self.ordered: set[str] = set()
        self.may_raise: set[type[BaseException]] = set()
        self.holders: set[str] = set()  # stages with a state, which a repeated call would change again
        self.small = small

    def build(self) -> Subject:
        """Return the graph with its model."""
        choose = self.choose
        for _ in range(choose.choice([1, 1, 1, 2, 3])):
            self.source()
        for _ in range(choose.randint(0, 3 if self.small else 7)):
            choose.choices([self.stage, self.route, self.join], [8, 1, 1])[0]()
        sinks = choose.choice([0, 1, 1, 1, 1, 2, 3])
        for number in range(sinks):
            self.sink(self.some_nodes(), number)
        followed = set(chain(*(stage.after for stage in self.graph.stages)))
        loose = [each for each in self.nodes if each.node.name.startswith("source") and each.node.name not in followed]
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
        """Give some stages a retry policy; also one that skips items, unless some stage needs every item."""
        choose, stages = self.choose, self.graph.stages
        needs_all = any(
            isinstance(stage.admission, (InOrder, Join))
            or (isinstance(stage.admission, Gather) and not stage.admission.partial)
            for stage in stages
        )
        for stage in stages:
            if stage.kind is NodeKind.SINK or stage.acquire is not None or choose.random() < 0.7:
                continue
            skip = SkipFailed() if not needs_all and choose.random() < 0.6 else FailFast()
            if stage.kind is NodeKind.SOURCE:  # no retries: an iterator has moved on to its next element
                if not stage.ordered:  # a skipped element changes the round of those after it
                    self.graph.replace_stage(replace(stage, on_error=skip))
                continue
            expansion = choose.choice(list(Expansion))
            policy: OnError = skip if skip == FailFast() else SkipFailed(expansion=expansion)
            if choose.random() < 0.7:
                policy = Retry(choose.randint(1, 2), first=0, then=skip, expansion=expansion)
            self.graph.replace_stage(replace(stage, on_error=policy))
            if policy.skips and choose.random() < 0.5:
                node: Node[Any] = Node(stage.name, self.graph)
                self.graph.stage(f"{stage.name}-letters", str, after=self.graph.dead_letters(node))

    def source(self) -> None:
        """Add a source of up to 40 items, some of them in shards."""
        name, many = f"source{len(self.nodes)}", self.choose.choice([0, 1, 5, 20, 40])
        first = FIRST + 1_000_000 * len(self.nodes)
        items = list(range(first, first + many))
        if self.choose.random() < 0.25:
            self.sharded_source(name, items)
            return

        def generate() -> Iterator[int]:
            yield from items

        iterables: list[Any] = [items, range(first, first + many), generate, items.copy]
        chosen = self.choose.choice(iterables)
        if self.loops.random() < 0.2:
            chosen = partial(as_async_generator(lambda drawn: drawn), items)
        node: Node[int] = self.graph.source(name, chosen)
        self.nodes.append(ModelNode(node, items, True, True, True))

    def sharded_source(self, name: str, items: list[int]) -> None:
        """Add a source that sends `items` from one to three shards of unequal lengths."""
        cuts = sorted(self.choose.randint(0, len(items)) for _ in range(self.choose.randint(0, 2)))
        shards = [items[low:high] for low, high in zip([0, *cuts], [*cuts, len(items)], strict=True)]
        ordered = self.choose.random() < 0.5
        rounds = [item for row in zip_longest(*shards) for item in row if item is not None]
        node = self.graph.source(name, Shards(*shards), ordered=ordered)
        alone = ordered or len(shards) == 1
        self.nodes.append(ModelNode(node, rounds, alone, alone, alone))

    def some_nodes(self) -> list[ModelNode]:
        """Return one to three predecessors, with a preference for the newest node."""
        count = min(self.choose.choice([1, 1, 1, 2, 3]), len(self.nodes))
        chosen = self.choose.sample(self.nodes, count)
        if self.choose.random() < 0.6 and self.nodes[-1] not in chosen:
            chosen[0] = self.nodes[-1]
        return chosen

    def arriving(self, before: list[ModelNode]) -> tuple[list[int], bool, dict[str, Any]]:
        """Return the items that arrive at a node, True if they arrive in that order, and arguments for the graph."""
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
        """Add a stage with random settings and a random function."""
        choose, before = self.choose, self.some_nodes()
        name = f"stage{len(self.nodes)}"
        items, in_order, arguments = self.arriving(before)
        workers = arguments["workers"] = choose.randint(1, 4)
        if concurrency := self.loops.choice([0, 0, 0, 1, 3]):
            arguments["concurrency"] = concurrency
            workers *= concurrency  # from here on, the items in processing at once
        plain = all(each.plain for each in before)
        if choose.random() < 0.25:
            out = self.gathering(name, items, arguments)
            self.nodes.append(ModelNode(out[0], out[1], False, False, workers == 1))
            return
        ordered = arguments["ordered"] = choose.random() < 0.3
        keeps = workers == 1 or ordered
        if choose.random() < 0.35 and max(Counter(items).values(), default=1) == 1:
            keeps, in_order = self.order(items, arguments, in_order=in_order and len(before) == 1, plain=plain)
        elif choose.random() < 0.1:
            arguments["admission"], in_order = Priority[int](lambda item: item % 3), False
        if choose.random() < 0.1:
            arguments["rate"] = Rate(20_000, burst=choose.randint(1, 3))
        if choose.random() < 0.2 and not concurrency:
            arguments["acquire"], release = self.slots(choose.randint(1, workers))
        else:
            release = None
        if release is None and choose.random() < 0.1 and not concurrency:
            node, outputs = self.graph.stage(name, random_accumulator(choose), expand=True, **arguments), items
            self.holders.add(name)
            keeps = workers == 1
        elif choose.random() < 0.3 and len(items) < MOST_ITEMS // 2:
            fn, outputs = random_expansion(choose, items)
            if concurrency:
                fn = self.loops.choice([as_coroutine, as_async_generator])(fn)
            fn = then_release(fn, release)
            if not kind_of(fn).generates:  # the others expand without it
                arguments["expand"] = True
            node = self.graph.stage(name, fn, **arguments)
        else:
            fn, outputs = random_function(choose, items)
            fn = as_coroutine(fn) if concurrency else then_release(fn, release)
            node = self.graph.stage(name, with_set_up(fn) if choose.random() < 0.15 else fn, **arguments)
        self.nodes.append(ModelNode(node, outputs, in_order and keeps, plain, workers == 1 or ordered))

    def route(self) -> None:
        """Add a route with two or three branches, and a stage for each branch."""
        before, ways = self.choose.choice(self.nodes), self.choose.randint(2, 3)
        name = f"route{len(self.nodes)}"
        branches = self.graph.route(name, lambda item: item % ways, after=before.node, to=range(ways))
        for way, branch in branches.items():
            name = f"branch{len(self.nodes)}"
            workers, ordered = self.choose.randint(1, 3), self.choose.random() < 0.3
            node = self.graph.stage(name, lambda item: item + 13, after=branch, workers=workers, ordered=ordered)
            items = [item + 13 for item in before.items if item % ways == way]
            alone = workers == 1 or ordered
            self.nodes.append(ModelNode(node, items, before.in_order and alone, before.plain, alone))

    def join(self) -> None:
        """Add a fork into two branches and their join, by position or by key."""
        choose, before = self.choose, self.choose.choice(self.nodes)
        name, by_key = f"join{len(self.nodes)}", not before.one_sender or choose.random() < 0.4
        if by_key and max(Counter(before.items).values(), default=1) > 1:
            return  # a key may be used again only when its tuple is complete
        capacity, workers = choose.randint(1, 4), choose.randint(1, 3)
        # By key, the other branch may be out of order by at most the number of workers; by position, not at all.
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
        self.nodes.append(ModelNode(node, items, before.in_order and not by_key and joiners == 1, False, joiners == 1))

    def gathering(self, name: str, items: list[int], arguments: dict[str, Any]) -> tuple[Node[int], list[int]]:
        """Add a gathering stage; return it and its results."""
        choose, count = self.choose, self.choose.randint(1, 4)
        kind = as_coroutine if "concurrency" in arguments else lambda fn: fn
        by_value = choose.random() < 0.5
        if by_value:
            # All items of a group are equal, so that the composition of the groups does not matter.
            times = Counter(items)
            exact = all(many % count == 0 for many in times.values())
            policy = Gather[int](key=lambda item: item, count=count, partial=not exact)
            node = self.graph.stage(name, kind(lambda group: group[0] + 7), gather=policy, **arguments)
            return node, [item + 7 for item, many in times.items() for _ in range(-(-many // count))]
        keys = choose.choice([None, 2, 3])
        sort = choose.choice([None, lambda item: item])
        policy = Gather[int](
            key=None if keys is None else lambda item: item % keys,
            count=count,
            sort=sort,
            partial=True,
            within=choose.choice([None, None, 1e-5, 1e-3, 60]),
            weight=choose.choice([None, None, lambda item: 1 + item % 3]),
        )
        shifted = kind(lambda group: [item + 11 for item in group])
        node = self.graph.stage(name, shifted, gather=policy, expand=True, **arguments)
        return node, [item + 11 for item in items]

    def order(self, items: list[int], arguments: dict[str, Any], *, in_order: bool, plain: bool) -> tuple[bool, bool]:
        """Add an InOrder policy; return True if the node keeps the order, and True if its items leave in order."""
        choose, workers = self.choose, arguments["workers"] * arguments.get("concurrency", 1)
        keys = choose.choice([1, 1, 2, 3])
        first = choose.randint(0, 2)
        places = {item: (place % keys, first + place // keys) for place, item in enumerate(items)}
        exclusive = choose.random() < 0.6
        count = len(items) if keys == 1 and items and choose.random() < 0.5 else None
        arguments["admission"] = InOrder[int](places.__getitem__, exclusive=exclusive, first=first, count=count)
        if not in_order:
            if plain and len(arguments["after"]) == 1 and choose.random() < 0.3:
                self.may_raise.add(AdmissionError)  # capacity below the disorder: an error, never a hang
            else:
                arguments["capacity"] = len(items) + 1
        # The order of several keys depends on the threads, unless items arrive in order at one worker.
        keeps = workers == 1 or arguments["ordered"] or (exclusive and keys == 1)
        return keeps, keys == 1 or (in_order and workers == 1)

    def slots(self, size: int) -> tuple[Callable[[int], object], Callable[[], None]]:
        """Return functions that take an element of a pool before a call and return it after the call."""
        pool, mine = Pool(range(size)), threading.local()
        self.pools.append(pool)

        def acquire(item: int) -> None:
            mine.element = pool.take()

        return acquire, lambda: pool.give_back(mine.element)

    def sink(self, before: list[ModelNode], number: int) -> None:
        """Add a sink, some of them with an order."""
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


def random_subject(seed: int, *, small: bool = False) -> Subject:
    """Return a random graph with a model of its output, determined by the seed. A `small` one has at most 3 stages.

    It has up to 3 sources, 7 stages and 4 sinks, with 1 to 4 workers and capacities from 1 to 4, which fork, merge,
    filter, skip, expand, gather, keep orders, take slots, have set-ups, and run coroutines.
    """
    return _Builder(seed, small=small).build()
