"""A picture of a graph in box-drawing characters."""

import unicodedata
from collections import defaultdict
from itertools import pairwise

from threadloom.pipeline.draw.layout import Place, layered
from threadloom.pipeline.draw.picture import Box, Picture
from threadloom.pipeline.observe import single_line

RIGHT, LEFT, DOWN, UP = 1, 2, 4, 8
LINES = {
    RIGHT: "─", LEFT: "─", DOWN: "│", UP: "│", RIGHT | LEFT: "─", UP | DOWN: "│",
    RIGHT | DOWN: "╭", LEFT | DOWN: "╮", RIGHT | UP: "╰", LEFT | UP: "╯",
    RIGHT | LEFT | DOWN: "┬", RIGHT | LEFT | UP: "┴", UP | DOWN | RIGHT: "├", UP | DOWN | LEFT: "┤",
    RIGHT | LEFT | UP | DOWN: "┼",
}  # fmt: skip
BAR = 10  # width of a busy bar in characters
LEGEND = "(█ busy, ▒ blocked, ░ waiting; in 1.5/2: mean depth and capacity of the input channel)"


def text(picture: Picture) -> str:
    """Return boxes joined by lines, from left to right."""
    layout = layered({box.name: box.after for box in picture.boxes})
    boxes = {box.name: _frame(box) for box in picture.boxes}
    height = max((len(lines) for lines in boxes.values()), default=0)
    widths = [0] * layout.layers
    for name, (layer, _) in layout.nodes.items():
        widths[layer] = max(widths[layer], _width(boxes[name][0]))
    canvas: dict[tuple[int, int], str] = {}
    marks: dict[tuple[int, int], int] = defaultdict(int)
    tracks = _tracks([way for *_, way in layout.edges], layout.layers)
    starts, x = [], 0
    for layer, width in enumerate(widths):
        starts.append(x)
        x += width + 4 + 2 * len(tracks[layer])
    for name, (layer, row) in layout.nodes.items():
        for down, line in enumerate(boxes[name]):
            _write(canvas, starts[layer], row * (height + 1) + down, line)
    ends = {place: starts[place[0]] + _width(boxes[name][0]) for name, place in layout.nodes.items()}
    middle = height // 2
    for *_, way in layout.edges:
        for place, following in pairwise(way):
            out, y = ends.get(place, starts[place[0]]), place[1] * (height + 1) + middle
            into, below = starts[following[0]], following[1] * (height + 1) + middle
            last = following == way[-1]
            bend = starts[place[0]] + widths[place[0]] + 1 + 2 * tracks[place[0]].index(place)
            _horizontal(marks, out, bend, y)
            _vertical(marks, bend, y, below)
            _horizontal(marks, bend, into - 1 if last else into, below)
            if last:
                canvas[into - 1, below] = "▶"
    for at, mark in marks.items():
        canvas.setdefault(at, LINES[mark])
    right = max((at[0] for at in canvas), default=-1) + 1
    bottom = max((at[1] for at in canvas), default=-1) + 1
    drawn = ["".join(canvas.get((x, y), " ") for x in range(right)).rstrip() for y in range(bottom)]
    legend = [single_line(picture.caption), LEGEND] if picture.caption else []
    return "\n".join([single_line(picture.name), *drawn, *legend]) + "\n"


def _frame(box: Box) -> list[str]:
    lines = [single_line(box.name), *box.lines]
    if box.busy is not None:
        full = round(max(0.0, min(1.0, box.busy)) * BAR)
        held = round(max(0.0, min(1.0 - full / BAR, box.blocked)) * BAR)
        bar = "█" * full + "▒" * held + "░" * (BAR - full - held)
        lines.append(f"{bar} in {box.depth}" if box.depth else bar)
    wide = max(map(_width, lines))
    left, right, across = ("┏┗", "┓┛", "━") if box.is_bottleneck else ("╭╰", "╮╯", "─")
    side = "┃" if box.is_bottleneck else "│"
    body = [f"{side} {line}{' ' * (wide - _width(line))} {side}" for line in lines]
    return [left[0] + across * (wide + 2) + right[0], *body, left[1] + across * (wide + 2) + right[1]]


def _tracks(ways: list[tuple[Place, ...]], layers: int) -> list[list[Place]]:
    """Return, for the gap after each layer, the places whose lines bend there, in the order of their columns.

    A place bends before another if a line of the other arrives in its row; otherwise the two lines would overlap.
    """
    found: list[list[Place]] = []
    for layer in range(layers):
        pairs = {(a, b) for way in ways for a, b in pairwise(way) if a[0] == layer}
        rest, order = sorted({a for a, _ in pairs}), list[Place]()
        while rest:
            free = [a for a in rest if not any(b[1] == a[1] != other[1] for other, b in pairs if other in order)]
            free = [a for a in free if not _is_held_up(a, rest, pairs)] or free or rest
            order.append(free[0])
            rest.remove(free[0])
        found.append(order)
    return found


def _is_held_up(place: Place, rest: list[Place], pairs: set[tuple[Place, Place]]) -> bool:
    """Return True if a line of `place` arrives in the row of another place that has yet to bend."""
    return any(a == place and b[1] == other[1] for a, b in pairs for other in rest if other != place)


def _horizontal(marks: dict[tuple[int, int], int], start: int, end: int, y: int) -> None:
    for x in range(start, end):
        marks[x, y] |= RIGHT
        marks[x + 1, y] |= LEFT


def _vertical(marks: dict[tuple[int, int], int], x: int, start: int, end: int) -> None:
    for y in range(min(start, end), max(start, end)):
        marks[x, y] |= DOWN
        marks[x, y + 1] |= UP


def _write(canvas: dict[tuple[int, int], str], x: int, y: int, line: str) -> None:
    for each in line:
        wide = _width(each)
        if wide == 0:  # append a combining mark to its base character
            canvas[x - 1, y] += each
            continue
        canvas[x, y] = each
        if wide == 2:
            canvas[x + 1, y] = ""
        x += wide


def _width(text: str) -> int:
    """Return the width of a text in columns of a terminal."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )
