"""What a graph must be before anything starts: each refusal names the stage and the remedy."""

from collections.abc import Iterable

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.observe import Branch, NodeKind, Port, Route, Stage, Via
from threadloom.pipeline.policy import Gather, Join


def check_stage(stage: Stage) -> None:
    """Raise GraphError if this stage cannot run, whatever the rest of the graph is."""
    what = f"{stage.kind.value} {stage.name!r}"
    if stage.kind is NodeKind.STAGE and not callable(stage.fn):
        raise GraphError(f"{what} needs a function, got {stage.fn!r}")
    if stage.workers < 1:
        raise GraphError(f"{what} needs at least 1 worker, got workers={stage.workers}")
    if stage.kind is not NodeKind.STAGE and stage.workers != 1:
        raise GraphError(f"{what} has one worker, got workers={stage.workers}: leave it at 1")
    if stage.capacity < 1:
        raise GraphError(f"{what} needs a capacity of at least 1 item, got capacity={stage.capacity}")
    if stage.limit is not None and stage.limit <= 0:
        raise GraphError(f"{what} needs a limit of more than 0 seconds for an item, got limit={stage.limit}")
    if isinstance(stage.admission, Gather) and not stage.gathers:
        raise GraphError(f"{what} has admission=Gather(...): give a stage gather=Gather(...)")
    if isinstance(stage.admission, Join):
        _check_join(stage, stage.admission)
    if stage.when is not None and any(isinstance(via, Branch) for via in stage.via):
        raise GraphError(
            f"{what} has both `when` and a branch of a route, so an item of that branch might go nowhere: let the key "
            f"function of the route decide"
        )


def _check_join(stage: Stage, join: Join) -> None:
    if len(join.inputs) < 2:
        raise GraphError(
            f"join {stage.name!r} comes after {len(join.inputs)} input: a join needs at least 2, and what comes from "
            f"one goes to a stage"
        )
    if join.keys is not None and len(join.keys) != len(join.inputs):
        raise GraphError(
            f"join {stage.name!r} has {len(join.inputs)} inputs and {len(join.keys)} key functions: give one for each, "
            f"in the same order"
        )


def check_route(route: Route, after: Iterable[Via]) -> None:
    """Raise GraphError if this route leads nowhere, or comes after a branch of another."""
    if not callable(route.key):
        raise GraphError(f"route {route.name!r} needs a key function, got {route.key!r}")
    if not route.to:
        raise GraphError(f"route {route.name!r} leads nowhere: list the keys of its branches in `to`")
    if len(set(route.to)) != len(route.to):
        raise GraphError(f"route {route.name!r} has a key twice in to={list(route.to)}: list each once")
    for via in after:
        if via is not Port.RESULTS:
            raise GraphError(
                f"route {route.name!r} comes after {via}: let one key function tell all the branches, or put a stage "
                f"between"
            )


def check_graph(name: str, stages: Iterable[Stage], routes: Iterable[Route]) -> None:
    """Raise GraphError if the graph as a whole cannot run."""
    stages = tuple(stages)
    sources = [stage.name for stage in stages if stage.kind is NodeKind.SOURCE]
    if not sources:
        raise GraphError(f"graph {name!r} has no source, so nothing would ever happen: add one with source()")
    followed = {each for stage in stages for each in stage.after}
    for each in sources:
        if each not in followed:
            raise GraphError(f"nothing comes after source {each!r}: give a stage or a sink after={each}, or remove it")
    taken: dict[Branch, str] = {}
    for stage in stages:
        for via in set(stage.via):
            if isinstance(via, Branch):
                _check_taken_once(via, stage.name, taken)
    for route in routes:
        for key in route.to:
            if Branch(route, key) not in taken:
                raise GraphError(
                    f"nothing comes after branch {key!r} of route {route.name!r}: give a stage or a sink that branch "
                    f"in `after`, or take {key!r} off `to`"
                )


def _check_taken_once(branch: Branch, stage: str, taken: dict[Branch, str]) -> None:
    first = taken.setdefault(branch, stage)
    if first != stage:
        raise GraphError(
            f"{branch} leads to both {first!r} and {stage!r}, and an item takes one way: let one stage come after the "
            f"branch, and both after that stage"
        )
