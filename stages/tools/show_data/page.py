"""Sequences as a page of HTML that needs nothing else."""

from collections.abc import Iterable, Iterator
from html import escape

from threadloom.stages.tools.show_data.lines import LINE_END, visible
from threadloom.stages.tools.show_data.segments import Kind, Segment, ShownSequence

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --faint: #6b7280; --special: #b4348f;
  --border: #b45309; --mark: #dbeafe; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --faint: #9ca3af; --special: #f0abfc;
  --border: #fbbf24; --mark: #1e3a5f; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1rem; margin-top: 2.5rem; }
p.text { font: 14px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--faint); }
.counts { color: var(--ink); background: var(--mark); border-radius: 2px; }
.special { color: var(--special); font-weight: bold; }
.end { opacity: 0.5; }
.border { display: block; border-top: 2px solid var(--border); color: var(--border); margin: 0.8em 0 0.3em;
  font: 12px system-ui, sans-serif; }
"""


def page_of(heading: str, sequences: Iterable[ShownSequence]) -> str:
    """Return the page."""
    parts = "\n".join(
        f'<h2>{escape(shown.title)}</h2>\n<p class="text" dir="auto">{"".join(map(_segment, shown.segments))}</p>'
        for shown in sequences
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(heading)}</h1>\n"
        '<p class="text">does not count, <span class="counts">counts in the loss</span>, '
        '<span class="special">special token</span>, ↵ line end, → tab</p>\n'
        f"{parts}\n</html>\n"
    )


def _segment(segment: Segment) -> str:
    if segment.kind is Kind.BORDER:
        return '<span class="border">another document</span>'
    if segment.kind is Kind.PADDING:
        return f'<span class="border">padding, {segment.tokens:,} tokens</span>'
    classes = " ".join(_classes(segment))
    text = escape(visible(segment.text)).replace(LINE_END, f'<span class="end">{LINE_END}</span>\n')
    plural = "s" * (segment.tokens != 1)
    return f'<span class="{classes}" title="{segment.tokens:,} token{plural}">{text}</span>'


def _classes(segment: Segment) -> Iterator[str]:
    yield "counts" if segment.counts else "masked"
    if segment.kind is Kind.SPECIAL:
        yield "special"
