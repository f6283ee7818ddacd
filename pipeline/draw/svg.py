"""A picture of a graph as a self-contained SVG file, without scripts, links or embedded fonts."""

import unicodedata
from collections.abc import Callable
from html import escape
from textwrap import wrap

from threadloom.pipeline.draw.layout import Place, layered
from threadloom.pipeline.draw.picture import COLOURS, Box, Picture, fill_colour
from threadloom.pipeline.observe import NodeKind, single_line

INK, FAINT, LINE, BLOCKED, ALARM = "#22272e", "#5f6b78", "#8b97a5", "#e0a030", "#c0392b"
IDLE, WORK = "#ffffff", "#3f7fbf"
MARGIN, GAP_X, GAP_Y = 24.0, 92.0, 26.0
LETTER, SMALL = 7.9, 6.4  # mean width of a letter of a name (14 px, bold) and of other text (12 px)
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:12px;fill:" + FAINT + "}"
    ".n{font-size:14px;font-weight:600;fill:" + INK + "}.t{font-size:17px;font-weight:600;fill:" + INK + "}"
    ".c{font-size:13px;fill:" + INK + "}.d{font-size:11px;paint-order:stroke;stroke:white;stroke-width:3px}"
)


ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    f'<path d="M0.5 0.8 7.5 4 0.5 7.2z" fill="{LINE}"/></marker></defs>'
)


def svg(picture: Picture) -> str:
    """Return an SVG document with rounded boxes joined by curves, from left to right."""
    layout = layered({box.name: box.after for box in picture.boxes})
    boxes = {box.name: box for box in picture.boxes}
    height = max((_height(box) for box in picture.boxes), default=0.0)
    widths = [0.0] * layout.layers
    for name, (layer, _) in layout.nodes.items():
        widths[layer] = max(widths[layer], _box_width(boxes[name]))
    lefts, x = [], MARGIN
    for width in widths:
        lefts.append(x)
        x += width + GAP_X
    seen = any(box.busy is not None for box in picture.boxes)
    wide = max(
        x - GAP_X + MARGIN, 560.0 if seen else 0.0, 2 * MARGIN + LETTER * 1.25 * _letters(single_line(picture.name))
    )
    top = MARGIN + 34.0

    def middle(row: int) -> float:
        return top + row * (height + GAP_Y) + height / 2

    body: list[str] = []
    for sender, taker, way in layout.edges:
        body += _edge(boxes[sender], boxes[taker], way, lefts, widths, middle)
    for name, (layer, row) in layout.nodes.items():
        box = boxes[name]
        width = _box_width(box)
        body += _node(box, lefts[layer] + (widths[layer] - width) / 2, middle(row) - _height(box) / 2, width)
    y = top + layout.rows * (height + GAP_Y)
    for line in wrap(single_line(picture.caption), max(20, int((wide - 2 * MARGIN) / 6.9))):
        body.append(_text(MARGIN, y + 10, line, "c"))
        y += 19
    if seen:
        body += _legend(MARGIN, y + 8)
        y += 34
    tall = y + MARGIN - 8
    size = f'width="{wide:.0f}" height="{tall:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {wide:.0f} {tall:.0f}" role="img">',
        f"<title>{escape(single_line(picture.name), quote=False)}</title>",
        f"<style>{STYLE}</style>",
        ARROW,
        f'<rect {size} fill="white"/>',
        _text(MARGIN, MARGIN + 10, picture.name, "t"),
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _node(box: Box, x: float, y: float, width: float) -> list[str]:
    height = _height(box)
    fill = "#f4f6f8" if box.busy is None else fill_colour(box.busy)
    border, thick = (ALARM, 2.5) if box.is_bottleneck else (LINE, 1.2)
    round_ = height / 2 if box.kind is NodeKind.SOURCE else 8
    outline = f'fill="{fill}" stroke="{border}" stroke-width="{thick}"'
    parts = [_rect(x, y, width, height, f'rx="{min(round_, 22):.1f}" {outline}')]
    if box.kind is NodeKind.SINK:  # a second line on the right marks a sink
        parts.append(
            f'<path d="M{x + width - 6:.1f} {y + 5:.1f}v{height - 10:.1f}" stroke="{border}" stroke-width="1.2"/>'
        )
    centre = x + width / 2
    parts.append(_text(centre, y + 23, box.name, "n", "middle"))
    for number, line in enumerate(box.lines):
        parts.append(_text(centre, y + 41 + 17 * number, line, "", "middle"))
    if box.busy is not None:
        left, across = x + 16, width - 32
        busy = max(0.0, min(1.0, box.busy))
        held = max(0.0, min(1.0 - busy, box.blocked))
        for start, share, ink in ((0.0, 1.0, IDLE), (0.0, busy, WORK), (busy, held, BLOCKED)):
            if share > 0.004:
                parts.append(_rect(left + across * start, y + height - 14, across * share, 5, f'fill="{ink}"'))
    return parts


def _edge(
    sender: Box,
    taker: Box,
    way: tuple[Place, ...],
    lefts: list[float],
    widths: list[float],
    middle: Callable[[int], float],
) -> list[str]:
    start = lefts[way[0][0]] + (widths[way[0][0]] + _box_width(sender)) / 2
    end = lefts[way[-1][0]] + (widths[way[-1][0]] - _box_width(taker)) / 2
    path = [f"M{start:.1f} {middle(way[0][1]):.1f}"]
    at, height = start, middle(way[0][1])
    for layer, row in way[1:]:
        last = (layer, row) == way[-1]
        # The bend is in the gap before the layer; the line passes straight through a layer without a box.
        gap = lefts[layer] - GAP_X + 6
        into = end if last else lefts[layer] - 4
        path.append(f"L{max(at, gap):.1f} {height:.1f}")
        at, below = max(at, gap), middle(row)
        stop = lefts[layer] - 36 if last else lefts[layer] - 10
        bend = (at + stop) / 2
        path.append(f"C{bend:.1f} {height:.1f} {bend:.1f} {below:.1f} {stop:.1f} {below:.1f}")
        path.append(f"L{(into if last else lefts[layer] + widths[layer]):.1f} {below:.1f}")
        at, height = (into if last else lefts[layer] + widths[layer]), below
    hot = ALARM if taker.is_bottleneck and taker.fill > 0.5 else LINE
    parts = [f'<path d="{"".join(path)}" fill="none" stroke="{hot}" stroke-width="1.6" marker-end="url(#arrow)"/>']
    if taker.depth and sender.name == taker.after[0]:  # one channel, even if several lines lead into it
        parts.append(_text(end - 12, height - 6, taker.depth, "d", "end"))
    return parts


def _legend(x: float, y: float) -> list[str]:
    edge = f'stroke="{LINE}" stroke-width="0.5"'
    parts = [_rect(x + 16 * number, y, 16, 10, f'fill="{ink}" {edge}') for number, ink in enumerate(COLOURS)]
    parts.append(_text(x + 88, y + 9, "idle to always busy", "d"))
    for left, ink, label in ((214.0, WORK, "busy"), (268.0, BLOCKED, "blocked"), (338.0, IDLE, "waiting")):
        parts.append(_rect(x + left, y + 2, 14, 6, f'fill="{ink}" {edge}'))
        parts.append(_text(x + left + 19, y + 9, label, "d"))
    parts.append(_text(x + 408, y + 9, "1.5/2: mean depth", "d"))
    return parts


def _rect(x: float, y: float, width: float, height: float, more: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {more}/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "") -> str:
    more = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(single_line(text), quote=False)}</text>'


def _box_width(box: Box) -> float:
    longest = max([LETTER * _letters(box.name), *(SMALL * _letters(line) for line in box.lines)])
    return max(96.0, longest + 32)


def _height(box: Box) -> float:
    return 36.0 + 17 * len(box.lines) + (12 if box.busy is not None else 0)


def _letters(text: str) -> float:
    return sum(1.8 if unicodedata.east_asian_width(each) in "WF" else 1.0 for each in text)
