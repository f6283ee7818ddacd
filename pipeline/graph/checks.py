"""Validation of graphs before any thread starts. Each error names the stage and a remedy."""

from collections.abc import Iterable, Sequence
from typing import Any

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.graph.argument_checks import check_types
from threadloom.pipeline.graph.chunk_checks import check_chunks
from threadloom.pipeline.graph.function_checks import check_concurrency, check_function, check_plain
from threadloom.pipeline.observe import Branch, Node, NodeKind, Port, Route, Stage
from threadloom.pipeline.policy import Gather, InOrder, Join


def check_stage(stage: Stage) -> None:
    """Raise GraphError if this stage is invalid by itself."""
    subject = f"{stage.kind.value} {stage.name!r}"
    if stage.kind is NodeKind.STAGE:
        check_function(subject, stage.fn)
    check_types(stage)
    _check_other_functions(subject, stage)
    if stage.workers < 1:
        raise GraphError(f"{subject} needs at least 1 worker, got workers={stage.workers}")
    if stage.shards and stage.workers != stage.shards:
        raise GraphError(f"{subject} has one worker per shard, {stage.shards}, got workers={stage.workers}")
    if stage.kind is not NodeKind.STAGE and not stage.shards and stage.workers != 1:
        raise GraphError(f"{subject} has exactly one worker, got workers={stage.workers}")
    check_chunks(subject, stage)
    check_concurrency(subject, stage.fn, stage.concurrency)
    if stage.capacity < 1:
        raise GraphError(f"{subject} needs a capacity of at least 1, got capacity={stage.capacity}")
    if stage.limit is not None and stage.limit <= 0:
        raise GraphError(f"{subject} needs a limit of more than 0 seconds, got limit={stage.limit}")
    if isinstance(stage.admission, Gather) and not stage.gathers:
        raise GraphError(f"{subject} has admission=Gather(...): use gather=Gather(...) of a stage instead")
    if isinstance(stage.admission, Join):
        _check_join(stage, stage.admission)
    if stage.when is not None and any(isinstance(via, Branch) for via in stage.via):
        raise GraphError(
            f"{subject} has both `when` and a branch of a route, so items of that branch could be lost: decide in the "
            f"key function of the route instead"
        )


def _check_other_functions(subject: str, stage: Stage) -> None:
    """Raise GraphError if a function that the engine calls in addition to that of the stage is not an ordinary one."""
    policy = stage.admission
    functions: dict[str, Any] = {"acquire": stage.acquire, "when": stage.when}
    if isinstance(policy, Gather):
        functions |= {"gather.key": policy.key, "gather.sort": policy.sort}
    elif isinstance(policy, InOrder):
        functions["admission.order"] = policy.order
    elif isinstance(policy, Join):
        functions |= {f"keys[{place}]": key for place, key in enumerate(policy.keys or ())}
    for name, fn in functions.items():
        check_plain(subject, name, fn)


def _check_join(stage: Stage, join: Join) -> None:
    if len(join.inputs) < 2:
        raise GraphError(
            f"join {stage.name!r} needs at least 2 inputs, got {len(join.inputs)}: use a stage for a single input"
        )
    if join.keys is not None and len(join.keys) != len(join.inputs):
        raise GraphError(
            f"join {stage.name!r} has {len(join.inputs)} inputs but {len(join.keys)} key functions: pass one per "
            f"input, in the same order"
        )


def check_route(route: Route, nodes: Sequence[Node[Any]]) -> None:
    """Raise GraphError if this route has no valid branches, or follows anything but the results of one node."""
    if not callable(route.key):
        raise GraphError(f"route {route.name!r} needs a key function, got {route.key!r}")
    check_plain(f"route {route.name!r}", "key", route.key)
    if not route.to:
        raise GraphError(f"route {route.name!r} has no branches: list their keys in `to`")
    if len(set(route.to)) != len(route.to):
        raise GraphError(f"route {route.name!r} has a duplicate key in to={list(route.to)}")
    for node in nodes:
        if node.via is not Port.RESULTS:
            raise GraphError(
                f"route {route.name!r} cannot follow {node.via}: use one key function for all branches, or insert "
                f"a stage between them"
            )
    if len(nodes) != 1:
        raise GraphError(
            f"route {route.name!r} has {len(nodes)} predecessors ({', '.join(each.name for each in nodes)}), expected "
            f"one: merge them in a stage before the route, or add a route for each"
        )


def check_dead_letters(stage: Stage) -> None:
    """Raise GraphError if this stage skips no items."""
    if not stage.on_error.skips:
        raise GraphError(
            f"{stage.kind.value} {stage.name!r} has no dead letters, because on_error={stage.on_error!r} skips no "
            f"items: use on_error=SkipFailed(...), or Retry(..., then=SkipFailed(...))"
        )


def check_no_sink(graph: str, stages: Iterable[Stage]) -> None:
    """Raise GraphError if a graph that is run without iteration has sinks."""
    sinks = _sinks(stages)
    if sinks:
        raise GraphError(
            f"run() does not iterate the sinks {sinks} of graph {graph!r}: iterate the graph, or use a stage instead "
            f"of the sink"
        )


def only_sink(graph: str, stages: Iterable[Stage]) -> str:
    """Return the name of the only sink of a graph that is iterated. Raises GraphError if there is none, or several."""
    sinks = _sinks(stages)
    if len(sinks) != 1:
        remedy = f"use start(), and iterate run.items(sink) for each of {sinks}" if sinks else "use run()"
        raise GraphError(f"cannot iterate graph {graph!r} with {len(sinks)} sinks, expected 1: {remedy}")
    return sinks[0]


def check_no_other_sink(graph: str, stages: Iterable[Stage], sink: str) -> None:
    """Raise GraphError if a graph whose sink is iterated has other sinks."""
    others = [name for name in _sinks(stages) if name != sink]
    if others:
        raise GraphError(
            f"cannot iterate only sink {sink!r} of graph {graph!r}, which has the sinks {others} too: use start(), and "
            f"iterate all sinks, each in its own thread or task"
        )


def _sinks(stages: Iterable[Stage]) -> list[str]:
    return [stage.name for stage in stages if stage.kind is NodeKind.SINK]


def check_graph(name: str, stages: Iterable[Stage], routes: Iterable[Route]) -> None:
    """Raise GraphError if the graph as a whole is invalid."""
    stages = tuple(stages)
    sources = [stage.name for stage in stages if stage.kind is NodeKind.SOURCE]
    if not sources:
        raise GraphError(f"graph {name!r} has no source: add one with source()")
    followed = {each for stage in stages for each in stage.after}
    for each in sources:
        if each not in followed:
            raise GraphError(f"source {each!r} has no successor: add a stage or a sink with after={each}, or remove it")
    taken: dict[Branch, str] = {}
    for stage in stages:
        for via in set(stage.via):
            if isinstance(via, Branch):
                _check_taken_once(via, stage.name, taken)
    for route in routes:
        for key in route.to:
            if Branch(route, key) not in taken:
                raise GraphError(
                    f"branch {key!r} of route {route.name!r} has no successor: add a stage or a sink with that branch "
                    f"in `after`, or remove {key!r} from `to`"
                )


def _check_taken_once(branch: Branch, stage: str, taken: dict[Branch, str]) -> None:
    first = taken.setdefault(branch, stage)
    if first != stage:
        raise GraphError(
            f"{branch} has two successors, {first!r} and {stage!r}, expected one: add a stage after the branch, and "
            f"both after that stage"
        )


def check_drainable(name: str, stages: Iterable[Stage]) -> None:
    """Raise GraphError if items of this graph cannot be dropped while the others are delivered."""
    for stage in stages:
        if stage.acquire is not None:
            raise GraphError(
                f"graph {name!r} cannot be run with on_failure='drain': an item that is dropped would keep the "
                f"resource that stage {stage.name!r} has acquired for it. Acquire and release it within the function, "
                f"or use on_failure='stop'"
            )
