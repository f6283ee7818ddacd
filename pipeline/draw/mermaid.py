"""A picture of a graph as a Mermaid flowchart."""

import re

from threadloom.pipeline.draw.picture import Picture, fill_colour
from threadloom.pipeline.observe import NodeKind, single_line


def mermaid(picture: Picture) -> str:
    """Return a flowchart; the mean depth of a channel is the label of the edges into it."""
    ids = {box.name: f"n{number}" for number, box in enumerate(picture.boxes)}
    lines = ["---", f"title: {_quote(single_line(picture.name))}", "---", "flowchart LR"]
    for box in picture.boxes:
        label = "<br/>".join([f"<b>{_escape(box.name)}</b>", *map(_escape, box.lines)])
        shape = {NodeKind.SOURCE: '(["{}"])', NodeKind.STAGE: '["{}"]', NodeKind.SINK: '[["{}"]]'}[box.kind]
        lines.append(f"    {ids[box.name]}{shape.format(label)}")
    for box in picture.boxes:
        line = f"-->|{box.depth}|" if box.depth else "-->"
        lines += [f"    {ids[before]} {line} {ids[box.name]}" for before in box.after]
    for box in picture.boxes:
        if box.busy is not None:
            border = "stroke:#c0392b,stroke-width:3px" if box.is_bottleneck else "stroke:#8b97a5"
            lines.append(f"    style {ids[box.name]} fill:{fill_colour(box.busy)},{border},color:#22272e")
    if picture.caption:
        lines.append(f"    %% {single_line(picture.caption)}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Return `text` with the special characters of Mermaid and HTML as entities in Mermaid's syntax (#35; for a #)."""
    return re.sub(r"[^\w .,:%/·()\-+×]", lambda found: f"#{ord(found[0])};", single_line(text))


def _quote(text: str) -> str:
    """Return `text` as a quoted string of YAML, for the front matter of a flowchart."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
