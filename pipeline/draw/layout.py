"""The layout of a graph: layers from left to right, ordered for few crossings.

The three steps of layered graph drawing (Sugiyama et al.): the layer of a node is its longest path from a source; an
edge across several layers gets a waypoint in each; sweeps move each node to the mean position of its neighbours to
order the layers (barycentre heuristic). Deterministic, without side effects.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Place = tuple[int, int]
"""(layer, row). Equal rows of all layers have the same height in the picture."""
Cell = tuple[object, ...]
"""An occupied row of a layer: (name,) for a node, or (sender, taker, layer) for a line that passes through."""
SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """Positions of nodes and lines, without sizes."""

    nodes: Mapping[str, Place]
    edges: Sequence[tuple[str, str, tuple[Place, ...]]]
    """(sender, taker, places on the line including both ends)."""
    layers: int
    rows: int


def layered(after: Mapping[str, Sequence[str]]) -> Layout:
    """Return the layout of a graph given as node → predecessors, in topological order."""
    layer: dict[str, int] = {}
    for name, before in after.items():
        layer[name] = max((layer[each] + 1 for each in before), default=0)
    # Move sources next to their first successor.
    successors: dict[str, list[str]] = defaultdict(list)
    for name, before in after.items():
        for each in before:
            successors[each].append(name)
    for name, before in after.items():
        if not before and successors[name]:
            layer[name] = min(layer[each] for each in successors[name]) - 1
    columns: list[list[Cell]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    links: list[tuple[Cell, Cell]] = []
    ways: list[tuple[str, str, list[Cell]]] = []
    for name in after:
        columns[layer[name]].append((name,))
    for name, before in after.items():
        for each in before:
            way: list[Cell] = [(each,)]
            for between in range(layer[each] + 1, layer[name]):
                way.append((each, name, between))
                columns[between].append(way[-1])
            way.append((name,))
            links += pairwise(way)
            ways.append((each, name, way))
    rows = _rows(columns, links)
    at = {cell: (number, rows[cell]) for number, column in enumerate(columns) for cell in column}
    return Layout(
        {name: at[name,] for name in after},
        [(sender, taker, tuple(at[cell] for cell in way)) for sender, taker, way in ways],
        len(columns),
        max(rows.values(), default=-1) + 1,
    )


def _rows(columns: list[list[Cell]], links: Sequence[tuple[Cell, Cell]]) -> dict[Cell, int]:
    """Order the cells of each column for few crossings, and return the row of each cell, unique in its column."""
    left: dict[Cell, list[Cell]] = defaultdict(list)
    right: dict[Cell, list[Cell]] = defaultdict(list)
    for sender, taker in links:
        left[taker].append(sender)
        right[sender].append(taker)
    place = {cell: float(number) for column in columns for number, cell in enumerate(column)}
    best, fewest = [column.copy() for column in columns], None
    for sweep in range(SWEEPS):
        neighbours = left if sweep % 2 == 0 else right
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wish = {cell: _mean([place[each] for each in neighbours[cell]], place[cell]) for cell in column}
            column.sort(key=wish.__getitem__)  # stable: ties keep the order of declaration
            for number, cell in enumerate(column):
                place[cell] = float(number)
        crossings = _crossings(place, links, columns)
        if fewest is None or crossings < fewest:
            best, fewest = [column.copy() for column in columns], crossings
    # Rows: columns are centred, and lines are kept straight if there is space.
    height = max(map(len, best), default=0)
    rows: dict[Cell, int] = {}
    for column in best:
        free = 0
        for number, cell in enumerate(column):
            middle = _mean([rows[each] for each in left[cell]], (height - len(column)) / 2 + number)
            row = max(free, min(round(middle), height - (len(column) - number)))
            rows[cell] = row
            free = row + 1
    return rows


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(
    place: Mapping[Cell, float],
    links: Sequence[tuple[Cell, Cell]],
    columns: Sequence[Sequence[Cell]],
) -> int:
    column = {cell: number for number, cells in enumerate(columns) for cell in cells}
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for sender, taker in links:
        groups[column[sender]].append((place[sender], place[taker]))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for group in groups.values() for a in group for b in group) // 2
