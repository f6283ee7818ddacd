"""Tests of pictures of graphs: the layout, well-formed output for any names, and the colours."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import Gather, Graph, Node
from threadloom.pipeline.draw.drawing import GraphFormat, draw_graph
from threadloom.pipeline.draw.layout import layered
from threadloom.pipeline.draw.picture import COLOURS, fill_colour
from threadloom.pipeline.observe.diagnosis import diagnose
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics

pytestmark = pytest.mark.timeout(60)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "a<b>&\"'\n]]>\x00\x1b[31m|#;end"


def diamond(name: str = "images", hostile: str = "scale") -> Graph:
    graph = Graph(name)
    read = graph.source("read", range(3))
    scale = graph.stage(hostile, abs, after=read, workers=2)
    edges = graph.stage("edges", abs, after=read)
    both = graph.stage("merge", sum, after=[scale, edges], gather=Gather(count=2))
    graph.sink("out", after=[both, read], capacity=7)
    return graph


def measured(graph: Graph) -> RunStatistics:
    """Return constructed statistics in which the second stage does all the work."""
    stages = []
    for place, stage in enumerate(graph.stages):
        busy = 9.5 if place == 1 else 0.5
        channel = ChannelStatistics(stage.capacity, 1, 1.9, 2, 100, 1.0, 1.0) if stage.after else None
        blocked = 9.5 if place == 0 else 0.0
        stages.append(
            StageStatistics(
                stage.name, 1, 100, 100, busy, 10 - busy - blocked, blocked, channel, kind=stage.kind, after=stage.after
            )
        )
    return RunStatistics(graph.name, 10.0, tuple(stages))


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    names = [f"n{number}" for number in range(draw(st.integers(1, 9)))]
    return {
        name: draw(st.lists(st.sampled_from(names[:place]), max_size=3, unique=True)) if place else []
        for place, name in enumerate(names)
    }


@given(graphs())
def test_nodes_have_distinct_places_and_lines_lead_right(after: dict[str, list[str]]) -> None:
    layout = layered(after)
    assert set(layout.nodes) == set(after)
    assert {(sender, taker) for sender, taker, _ in layout.edges} == {(b, name) for name in after for b in after[name]}
    taken = list(layout.nodes.values())
    for sender, taker, way in layout.edges:
        assert (way[0], way[-1]) == (layout.nodes[sender], layout.nodes[taker])
        assert all(b[0] == a[0] + 1 for a, b in pairwise(way))
        taken += way[1:-1]
    assert len(set(taken)) == len(taken)
    assert all(0 <= layer < layout.layers and 0 <= row < layout.rows for layer, row in taken)


@given(graphs())
def test_the_text_shows_every_node_and_every_arrow(after: dict[str, list[str]]) -> None:
    graph = Graph("random")
    nodes: dict[str, Node[int]] = {}
    for name, before in after.items():
        nodes[name] = (
            graph.stage(name, abs, after=[nodes[each] for each in before]) if before else graph.source(name, range(1))
        )
    drawn = draw_graph(graph)
    assert all(f"│ {name} " in drawn for name in after)
    assert drawn.count("▶") == sum(bool(before) for before in after.values())  # one per channel
    root = ElementTree.fromstring(draw_graph(graph, format=GraphFormat.SVG))
    arrows = [each for each in root.iter(f"{SVG}path") if each.get("marker-end")]
    assert len(arrows) == sum(map(len, after.values()))


def test_avoidable_crossings_are_avoided() -> None:
    layout = layered({"a": [], "b": [], "c": ["b"], "d": ["a"]})
    order = [layout.nodes[name][1] for name in "abcd"]
    assert (order[0] < order[1]) == (order[3] < order[2])


def test_a_line_as_text() -> None:
    graph = Graph("words")
    split = graph.stage("split", str.split, after=graph.source("read", ["a b"]), workers=2)
    graph.sink("report", after=split)
    assert draw_graph(graph) == (
        "words\n"
        "╭────────╮      ╭────────────────────────╮      ╭───────────────────╮\n"
        "│ read   │      │ split                  │      │ report            │\n"
        "│ source │─────▶│ 2 workers · capacity 2 │─────▶│ sink · capacity 2 │\n"
        "╰────────╯      ╰────────────────────────╯      ╰───────────────────╯\n"
    )


def test_a_fork_as_text() -> None:
    graph = Graph("fork")
    read = graph.source("r", range(1))
    graph.stage("s", abs, after=read)
    graph.stage("t", abs, after=read)
    assert draw_graph(graph).splitlines()[3:6] == [
        "│ source │─┬───▶│ capacity 2 │",
        "╰────────╯ │    ╰────────────╯",
        "           │",
    ]


def test_statistics_are_shown_as_busy_share_depth_and_bottleneck() -> None:
    graph = diamond()
    statistics = measured(graph)
    drawn = draw_graph(graph, statistics)
    assert "┃ 10.0/s · 95% busy" in drawn
    assert "┃ ██████████ in 1.9/2" in drawn
    assert "▒▒▒▒▒▒▒▒▒" in drawn
    assert str(diagnose(statistics)) in drawn
    chart = draw_graph(graph, statistics, GraphFormat.MERMAID)
    assert f"style n1 fill:{COLOURS[-1]},stroke:#c0392b" in chart
    assert "n0 -->|1.9/2| n1" in chart
    picture = draw_graph(graph, statistics, GraphFormat.SVG)
    assert f'fill="{COLOURS[-1]}"' in picture
    assert "is the bottleneck" in picture
    assert "is the bottleneck" not in draw_graph(graph, None, GraphFormat.SVG)


@pytest.mark.parametrize("with_statistics", [False, True])
def test_an_svg_is_well_formed_for_any_names(with_statistics: bool) -> None:
    graph = diamond(HOSTILE, HOSTILE)
    root = ElementTree.fromstring(
        draw_graph(graph, measured(graph) if with_statistics else None, GraphFormat.SVG).encode()
    )
    assert root.tag == f"{SVG}svg"
    shown = [each.text for each in root.iter(f"{SVG}text") if each.get("class") == "n"]
    assert shown == ["read", "a<b>&\"' ]]>  [31m|#;end", "edges", "merge", "out"]
    assert not [each for each in root.iter() if each.tag.endswith(("script", "image", "a"))]


def test_boxes_do_not_overlap_and_stay_in_the_picture() -> None:
    graph = diamond()
    root = ElementTree.fromstring(draw_graph(graph, measured(graph), GraphFormat.SVG))
    boxes = [
        [float(each.get(key, "")) for key in ("x", "y", "width", "height")]
        for each in root.iter(f"{SVG}rect")
        if each.get("rx")
    ]
    assert len(boxes) == 5
    for a, b in combinations(boxes, 2):
        assert a[0] + a[2] < b[0] or b[0] + b[2] < a[0] or a[1] + a[3] < b[1] or b[1] + b[3] < a[1]
    assert all(x + width < float(root.get("width", "")) for x, _, width, _ in boxes)
    assert all(y + height < float(root.get("height", "")) for _, y, _, height in boxes)


def test_mermaid_escapes_special_characters() -> None:
    chart = draw_graph(diamond(HOSTILE, HOSTILE), format=GraphFormat.MERMAID)
    lines = chart.splitlines()
    assert lines[:4] == ["---", 'title: "a<b>&\\"\' ]]>  [31m|#;end"', "---", "flowchart LR"]
    assert '    n0(["<b>read</b><br/>source"])' in lines
    label = next(line for line in lines if line.startswith("    n1["))
    assert re.fullmatch(r'    n1\["<b>[\w ;#&]*</b><br/>2 workers · capacity 2"\]', label)
    assert "#60;b#62;#38;#34;#39;" in label
    assert sum("-->" in line for line in lines) == 6


def test_the_text_contains_no_control_characters() -> None:
    drawn = draw_graph(diamond(HOSTILE, HOSTILE))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", drawn)


def test_wide_letters_keep_the_frame_straight() -> None:
    graph = Graph("wide")
    graph.stage("画像", abs, after=graph.source("読む", range(1)))
    assert draw_graph(graph).splitlines()[2] == "│ 読む   │      │ 画像       │"


def test_an_empty_graph_can_be_drawn() -> None:
    for each in GraphFormat:
        assert "nothing" in draw_graph(Graph("nothing"), format=each)


def test_colours_go_from_idle_to_busy() -> None:
    assert [fill_colour(busy) for busy in (-0.1, 0.0, 0.3, 0.5, 0.7, 0.99, 1.2)] == [
        COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3], COLOURS[4], COLOURS[4]
    ]  # fmt: skip
