"""Where the nodes of a graph go: in layers from left to right, in an order with few crossings.

The usual three steps of a layered drawing (Sugiyama): the layer of a node is its longest way from a source; an edge
over several layers gets a waypoint in each; the order inside the layers comes from sweeps in which each node moves to
the mean place of its neighbours. Pure, and the same for the same graph.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Place = tuple[int, int]
"""Layer and row; rows of neighbouring layers with the same number lie at the same height."""
Cell = tuple[object, ...]
"""What takes up a row of a layer: (name,) of a node, or (sender, taker, layer) where a line passes through."""
SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """A drawing without sizes."""

    nodes: Mapping[str, Place]
    edges: Sequence[
        tuple[str, str, tuple[Place, ...]]
    ]  # from, to, and the places that the line goes through, both ends
    layers: int
    rows: int


def layered(after: Mapping[str, Sequence[str]]) -> Layout:
    """Lay out a graph given as node → the nodes before it; each of those must be listed before it."""
    layer: dict[str, int] = {}
    for name, before in after.items():
        layer[name] = max((layer[each] + 1 for each in before), default=0)
    # A source far from where it is needed moves up to it.
    followers: dict[str, list[str]] = defaultdict(list)
    for name, before in after.items():
        for each in before:
            followers[each].append(name)
    for name, before in after.items():
        if not before and followers[name]:
            layer[name] = min(layer[each] for each in followers[name]) - 1
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
    """Order the columns and give each cell a row; cells of a column have rows of their own."""
    left: dict[Cell, list[Cell]] = defaultdict(list)
    right: dict[Cell, list[Cell]] = defaultdict(list)
    for sender, taker in links:
        left[taker].append(sender)
        right[sender].append(taker)
    place = {cell: float(number) for column in columns for number, cell in enumerate(column)}
    best, fewest = [column.copy() for column in columns], None
    for sweep in range(SWEEPS):
        beside = left if sweep % 2 == 0 else right
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wish = {cell: _mean([place[each] for each in beside[cell]], place[cell]) for cell in column}
            column.sort(key=wish.__getitem__)  # stable: without a reason the order of declaration stays
            for number, cell in enumerate(column):
                place[cell] = float(number)
        crossings = _crossings(place, links, columns)
        if fewest is None or crossings < fewest:
            best, fewest = [column.copy() for column in columns], crossings
    # Rows: every column is centred against the tallest one, and straight lines stay straight where there is room.
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
