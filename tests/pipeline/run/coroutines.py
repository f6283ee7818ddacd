"""Coroutines and a graph for the tests of event loops."""

import asyncio
from collections.abc import Callable
from typing import Any

from threadloom.pipeline import Graph

Fn = Callable[[Any], Any]


class Gate:
    """A barrier among coroutines of one loop: all wait until `count` of them have arrived."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.arrived = 0
        self.most = 0
        """The largest number of coroutines that have waited at once."""
        self._open = asyncio.Event()

    async def wait(self) -> None:
        self.arrived += 1
        self.most = max(self.most, self.arrived)
        if self.arrived == self.count:
            self._open.set()
        await self._open.wait()


async def forever() -> None:
    await asyncio.Event().wait()


async def double(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


def graph_of(fn: Fn, items: Any = range(6), **options: Any) -> Graph:
    graph = Graph("async")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", items), **options), capacity=100)
    return graph
