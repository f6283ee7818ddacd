"""Pictures of a graph in characters: boxes and lines for a terminal, and Mermaid's flowchart language."""

import re
import unicodedata
from collections import defaultdict
from itertools import pairwise

from threadloom.pipeline.draw.drawing import Box, Picture
from threadloom.pipeline.draw.layout import Place, layered
from threadloom.pipeline.observe import NodeKind

RIGHT, LEFT, DOWN, UP = 1, 2, 4, 8
LINES = {
    RIGHT: "─", LEFT: "─", DOWN: "│", UP: "│", RIGHT | LEFT: "─", UP | DOWN: "│",
    RIGHT | DOWN: "╭", LEFT | DOWN: "╮", RIGHT | UP: "╰", LEFT | UP: "╯",
    RIGHT | LEFT | DOWN: "┬", RIGHT | LEFT | UP: "┴", UP | DOWN | RIGHT: "├", UP | DOWN | LEFT: "┤",
    RIGHT | LEFT | UP | DOWN: "┼",
}  # fmt: skip
BAR = 10  # characters of a busy bar
LEGEND = "(█ busy, ▒ blocked, ░ waiting; in 1.5/2: mean depth of the channel in front, and its capacity)"
COLOURS = ("#eef3f8", "#dcebdc", "#fbeec2", "#fbd7a8", "#f6b3a2")
"""Fill of a node by busyness, a fifth each: from pale blue for idle to red for always busy."""


def colour(busy: float) -> str:
    """Return the fill of a node that is at work this share of its time."""
    return COLOURS[min(len(COLOURS) - 1, int(max(0.0, busy) * len(COLOURS)))]


def text(picture: Picture) -> str:
    """Draw boxes and lines from left to right."""
    layout = layered({box.name: box.before for box in picture.boxes})
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
    legend = [plain(picture.caption), LEGEND] if picture.caption else []
    return "\n".join([plain(picture.name), *drawn, *legend]) + "\n"


def mermaid(picture: Picture) -> str:
    """Write a flowchart; a channel's mean depth stands on the line into the stage behind it."""
    ids = {box.name: f"n{number}" for number, box in enumerate(picture.boxes)}
    lines = ["---", f"title: {_quoted(plain(picture.name))}", "---", "flowchart LR"]
    for box in picture.boxes:
        label = "<br/>".join([f"<b>{_entities(box.name)}</b>", *map(_entities, box.lines)])
        shape = {NodeKind.SOURCE: '(["{}"])', NodeKind.STAGE: '["{}"]', NodeKind.SINK: '[["{}"]]'}[box.kind]
        lines.append(f"    {ids[box.name]}{shape.format(label)}")
    for box in picture.boxes:
        line = f"-->|{box.depth}|" if box.depth else "-->"
        lines += [f"    {ids[before]} {line} {ids[box.name]}" for before in box.before]
    for box in picture.boxes:
        if box.busy is not None:
            border = "stroke:#c0392b,stroke-width:3px" if box.slowest else "stroke:#8b97a5"
            lines.append(f"    style {ids[box.name]} fill:{colour(box.busy)},{border},color:#22272e")
    if picture.caption:
        lines.append(f"    %% {plain(picture.caption)}")
    return "\n".join(lines) + "\n"


def plain(words: str) -> str:
    """Return a text in one line, without characters that a terminal or a document would act on."""
    return "".join(" " if unicodedata.category(each)[0] in "CZ" else each for each in words)


def _frame(box: Box) -> list[str]:
    lines = [plain(box.name), *box.lines]
    if box.busy is not None:
        full = round(max(0.0, min(1.0, box.busy)) * BAR)
        held = round(max(0.0, min(1.0 - full / BAR, box.blocked)) * BAR)
        bar = "█" * full + "▒" * held + "░" * (BAR - full - held)
        lines.append(f"{bar} in {box.depth}" if box.depth else bar)
    wide = max(map(_width, lines))
    left, right, across = ("┏┗", "┓┛", "━") if box.slowest else ("╭╰", "╮╯", "─")
    side = "┃" if box.slowest else "│"
    body = [f"{side} {line}{' ' * (wide - _width(line))} {side}" for line in lines]
    return [left[0] + across * (wide + 2) + right[0], *body, left[1] + across * (wide + 2) + right[1]]


def _tracks(ways: list[tuple[Place, ...]], layers: int) -> list[list[Place]]:
    """Return, for the gap behind each layer, the places that bend their lines there, each in a column of its own.

    A place bends before another if a line of the other arrives at its height: the two would run into one otherwise.
    """
    found: list[list[Place]] = []
    for layer in range(layers):
        pairs = {(a, b) for way in ways for a, b in pairwise(way) if a[0] == layer}
        rest, order = sorted({a for a, _ in pairs}), list[Place]()
        while rest:
            free = [a for a in rest if not any(b[1] == a[1] != other[1] for other, b in pairs if other in order)]
            free = [a for a in free if not _held_up(a, rest, pairs)] or free or rest
            order.append(free[0])
            rest.remove(free[0])
        found.append(order)
    return found


def _held_up(place: Place, rest: list[Place], pairs: set[tuple[Place, Place]]) -> bool:
    """Whether a line of `place` arrives at the height of one that has yet to bend."""
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
        if wide == 0:  # a combining mark stays with what it is on
            canvas[x - 1, y] += each
            continue
        canvas[x, y] = each
        if wide == 2:
            canvas[x + 1, y] = ""
        x += wide


def _width(words: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in words
    )


def _entities(words: str) -> str:
    """Write what Mermaid or HTML would act on as entities, in Mermaid's spelling (#35; for a #)."""
    return re.sub(r"[^\w .,:%/·()\-+×]", lambda found: f"#{ord(found[0])};", plain(words))


def _quoted(words: str) -> str:
    """Quote a text for the YAML at the head of a flowchart."""
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'
