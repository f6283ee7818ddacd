"""The nodes and routes of a graph, and the parts that are added to it; `graph` has the methods that declare them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.graph.checks import check_graph, check_stage
from threadloom.pipeline.graph.parts import Part, copied_part
from threadloom.pipeline.observe import Node, Route, Stage, expected_items


class Declarations:
    """The declarations of a graph: the base of `Graph`."""

    name: str
    _stages: dict[str, Stage]
    _routes: dict[str, Route]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All nodes in the order of declaration."""
        return tuple(self._stages.values())

    @property
    def routes(self) -> tuple[Route, ...]:
        """All routes in the order of declaration."""
        return tuple(self._routes.values())

    def check(self) -> None:
        """Raise GraphError if the graph as a whole is invalid. Single stages are checked when they are added."""
        check_graph(self.name, self.stages, self._routes.values())

    def resize(self, name: str, *, workers: int | None = None, capacity: int | None = None) -> None:
        """Change the workers or the capacity of a stage, for runs that are started later."""
        if name not in self._stages:
            raise GraphError(f"graph {self.name!r} has no stage {name!r}; it has {list(self._stages)}")
        stage = self._stages[name]
        self.replace_stage(
            replace(
                stage,
                workers=stage.workers if workers is None else workers,
                capacity=stage.capacity if capacity is None else capacity,
            )
        )

    def replace_stage(self, stage: Stage) -> None:
        """Replace the declaration of the stage with this name. Internal: for `threadloom.pipeline.testing`."""
        check_stage(stage)
        self._stages[stage.name] = stage

    def expected(self, node: str) -> int | None:
        """Return the expected number of items of a stage or sink, from the lengths of the sources; None if unknown.

        It is exact if no function skips items and no `when` or route selects some; `operator.length_hint(sink)` returns
        the same. In a run, `StageStatistics.expected` takes the items so far into account.
        """
        return expected_items(self.stages, {})[node]

    def add(
        self, part: "Declarations", inputs: Mapping[Node[Any], Node[Any]] | None = None, *, name: str | None = None
    ) -> Part:
        """Add the nodes of another graph, with `name/` before their names, by default the name of that graph.

        `inputs` maps sources of the part to nodes of this graph, which replace them. The result maps the sinks and
        nodes of the part to nodes of this graph: `added[sink]`. A part can be run alone, and added any number of times,
        with different names. Raises GraphError, and adds nothing, if a name exists or an input is wrong.
        """
        if not isinstance(part, Declarations):
            raise GraphError(f"graph {self.name!r} needs a graph to add, got {part!r}")
        added, stages = copied_part(part.name if name is None else name, self, part, inputs or {})
        for each in stages:
            self._check_new(each)
        self._stages.update({each.name: each for each in stages})
        self._routes.update({route.name: route for route in added.routes.values()})
        return added

    def _add(self, stage: Stage) -> None:
        self._check_new(stage)
        self._stages[stage.name] = stage

    def _check_new(self, stage: Stage) -> None:
        if not stage.name:
            raise GraphError(f"a {stage.kind.value} of graph {self.name!r} has an empty name")
        if stage.name in self._stages:
            raise GraphError(
                f"graph {self.name!r} already has a {self._stages[stage.name].kind.value} {stage.name!r}: use a "
                f"different name"
            )
        check_stage(stage)
