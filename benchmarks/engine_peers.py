"""The engines of `benchmarks.engines`, each by the idiom of its documentation.

An adapter is a generator: it starts the engine, yields its results, and ends it. A part that an engine has no idiom
for is None. Engines without a join iterate two pipelines over the same items in step, which is what their users do.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks.engine_work import EnginePart, EngineWorkload, Feed
from threadloom.pipeline import Graph, SharedPool, on_processes

WORKERS = 2
"""Concurrent calls of every function."""
CAPACITY = 2
"""Items that wait between two steps, if the engine has the setting."""

Function = Callable[[int], Any]
Adapter = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Engine:
    """One engine: `threads` and `processes` take (function, feed), `join` takes (first, second, feed)."""

    name: str
    distribution: str | None
    """The distribution to install; None for threadloom and the standard library."""
    module: str
    """The module to import."""
    threads: Adapter | None
    processes: Adapter | None
    join: Adapter | None

    def run(self, workload: EngineWorkload, feed: Feed) -> Iterator[Any] | None:
        """Return the results of a workload as they arrive; None if the engine has no idiom for it."""
        adapters = {
            EnginePart.THREADS: self.threads,
            EnginePart.PROCESSES: self.processes,
            EnginePart.JOIN: self.join,
        }
        adapter = adapters[workload.part]
        return None if adapter is None else adapter(*workload.functions, feed)

    def version(self) -> str | None:
        """Return the installed version; None if it is not installed, or part of threadloom or the standard library."""
        try:
            return version(self.distribution) if self.distribution else None
        except PackageNotFoundError:
            return None

    def problem(self) -> str | None:
        """Return the reason for which the engine cannot be used here; None if it can."""
        if self.distribution is None:
            return None
        if self.version() is None:
            return f"{self.name} is not installed (pip install {self.distribution})"
        try:
            import_module(self.module)
        except ImportError as error:
            return f"{self.name} {self.version()} cannot be imported ({error})"
        return None


def our_threads(function: Function, feed: Feed) -> Iterator[Any]:
    graph = Graph("threads")
    numbers = graph.source("numbers", feed)
    graph.sink("out", after=graph.stage("work", function, after=numbers, workers=WORKERS, capacity=CAPACITY))
    yield from graph


def our_processes(function: Function, feed: Feed) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* pickles .* for one item")
        yield from our_threads(on_processes(function), feed)


def our_join(first: Function, second: Function, feed: Feed) -> Iterator[Any]:
    graph = Graph("join")
    numbers = graph.source("numbers", feed)
    one = graph.stage("first", first, after=numbers, workers=WORKERS, capacity=CAPACITY, ordered=True)
    two = graph.stage("second", second, after=numbers, workers=WORKERS, capacity=CAPACITY, ordered=True)
    graph.sink("out", after=graph.join("both", tuple, after=(one, two)))
    yield from graph


class IntoSlots:
    """A function whose array is copied into a slot of a shared pool, in the process."""

    def __init__(self, pool: SharedPool, function: Function) -> None:
        self.pool, self.function = pool, function

    def __call__(self, number: int) -> Any:
        array = self.function(number)
        slot = self.pool.empty(array.shape, array.dtype)
        slot[:] = array
        return slot


def our_shared_processes(function: Function, feed: Feed) -> Iterator[Any]:
    size = np.asarray(function(0)).nbytes
    with SharedPool(WORKERS + 2 * CAPACITY + 2, size, name="arrays") as pool:
        yield from our_threads(on_processes(IntoSlots(pool, function)), feed)


def spdl_threads(
    function: Function, feed: Feed, executor: Executor | None = None, order: str = "completion"
) -> Iterator[Any]:
    peer: Any = import_module("spdl.pipeline")
    builder = peer.PipelineBuilder().add_source(feed)
    builder = builder.pipe(function, concurrency=WORKERS, executor=executor, output_order=order)
    pipeline = builder.add_sink(CAPACITY).build(num_threads=WORKERS)
    with pipeline.auto_stop():
        yield from pipeline


def spdl_processes(function: Function, feed: Feed) -> Iterator[Any]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as executor:
        yield from spdl_threads(function, feed, executor)


def pypeln(kind: str, function: Function, feed: Feed) -> Iterator[Any]:
    peer: Any = import_module(f"pypeln.{kind}")
    yield from peer.map(function, feed, workers=WORKERS, maxsize=CAPACITY)


def streamable(function: Function, feed: Feed, concurrency: int | Executor = WORKERS) -> Iterator[Any]:
    peer: Any = import_module("streamable")
    yield from peer.stream(feed).map(function, concurrency=concurrency)


def streamable_processes(function: Function, feed: Feed) -> Iterator[Any]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as executor:
        yield from streamable(function, feed, executor)


def joblib(backend: str, order: str, function: Function, feed: Feed) -> Iterator[Any]:
    peer: Any = import_module("joblib")
    parallel = peer.Parallel(n_jobs=WORKERS, backend=backend, return_as=order)
    yield from parallel(peer.delayed(function)(number) for number in feed)


def futures_in_flight(executor: Executor, function: Function, feed: Feed) -> Iterator[Any]:
    """Keep a bounded number of futures in flight: `Executor.map` would take the whole feed at once."""
    flying: deque[Future[Any]] = deque()
    for number in feed:
        flying.append(executor.submit(function, number))
        while flying and (len(flying) >= WORKERS + CAPACITY or flying[0].done()):
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()


def futures_threads(function: Function, feed: Feed) -> Iterator[Any]:
    with ThreadPoolExecutor(WORKERS) as executor:
        yield from futures_in_flight(executor, function, feed)


def futures_processes(function: Function, feed: Feed) -> Iterator[Any]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as executor:
        yield from futures_in_flight(executor, function, feed)


class FunctionDataset:
    """A map-style dataset of a function."""

    def __init__(self, function: Function, count: int) -> None:
        self.function, self.count = function, count

    def __getitem__(self, number: int) -> Any:
        return self.function(number)

    def __len__(self) -> int:
        return self.count


def data_loader(function: Function, feed: Feed) -> Iterator[Any]:
    """Iterate a DataLoader, whose workers are processes; arrays come as tensors in shared memory."""
    peer: Any = import_module("torch.utils.data")
    dataset = FunctionDataset(function, feed.count)
    yield from peer.DataLoader(
        dataset,
        batch_size=None,
        sampler=feed,
        num_workers=WORKERS,
        prefetch_factor=CAPACITY,
        multiprocessing_context="spawn",
    )


def in_step(adapter: Adapter, first: Function, second: Function, feed: Feed) -> Iterator[Any]:
    """Join with an engine that has no join: iterate two ordered pipelines over the same items in step."""
    yield from zip(adapter(first, feed), adapter(second, feed), strict=True)


ENGINES = (
    Engine("threadloom", None, "threadloom", our_threads, our_processes, our_join),
    Engine("threadloom, SharedPool", None, "threadloom", None, our_shared_processes, None),
    Engine(
        "SPDL",
        "spdl-core",
        "spdl.pipeline",
        spdl_threads,
        spdl_processes,
        partial(in_step, partial(spdl_threads, order="input")),
    ),
    # Parallel stages of pypeln are unordered, so that two of them cannot be joined by position.
    Engine("pypeln", "pypeln", "pypeln.thread", partial(pypeln, "thread"), partial(pypeln, "process"), None),
    Engine("streamable", "streamable", "streamable", streamable, streamable_processes, partial(in_step, streamable)),
    Engine(
        "joblib",
        "joblib",
        "joblib",
        partial(joblib, "threading", "generator_unordered"),
        partial(joblib, "loky", "generator_unordered"),
        partial(in_step, partial(joblib, "threading", "generator")),
    ),
    Engine(
        "concurrent.futures",
        None,
        "concurrent.futures",
        futures_threads,
        futures_processes,
        partial(in_step, futures_threads),
    ),
    Engine(
        "DataLoader (processes)", "torch", "torch.utils.data", data_loader, data_loader, partial(in_step, data_loader)
    ),
)
"""Every engine, threadloom first."""
