"""The pictures of `threadloom tune`: their content, and that a failure to draw loses nothing."""

from pathlib import Path

import matplotlib.image
import pytest

from tests.pipeline.tuning.simulated import SimulatedLine, Step
from threadloom.pipeline.tuning import search_sizes
from threadloom.stages.config import Gemm, InputError
from threadloom.stages.resolve import TunedSettings
from threadloom.stages.tools.tune import picture
from threadloom.stages.tools.tune.picture import (
    TuningPicture,
    check_picture_path,
    picture_of_graph,
    picture_of_search,
    tuning_figure,
    write_picture,
)
from threadloom.stages.tools.tune.search import SearchResult, Trial, search
from threadloom.stages.tools.tune.space import Limits

DEFAULT = TunedSettings(
    micro_batch=4, lanes=2, gemm=Gemm.NUMBA, blas=1, forward=2, backward=2, reduce=2, update=2, slots=6,
    channel_capacity=2,
)  # fmt: skip
LIMITS = Limits(cores=2, batch_size=16, sequences=16, gemms=(Gemm.NUMBA, Gemm.BLAS))


def searched(gain: float = 0.2) -> SearchResult:
    def trial(choice: TunedSettings) -> Trial:
        return Trial(1000.0 * (1.0 + gain * (choice.lanes == 1)), 1.0, 1_000_000 * (40 + choice.slots + choice.lanes))

    return search(DEFAULT, LIMITS, trial, 1000.0)


def drawn(gain: float = 0.2) -> TuningPicture:
    found = picture_of_search(searched(gain), "nanogpt-cpu")
    assert found is not None
    return found


def test_every_choice_is_in_the_picture_with_its_memory() -> None:
    result = searched()
    found = drawn()
    assert len(found.choices) + 1 == len({each.choice for each in result.measured})
    assert (found.default.size, found.default.speed) == (48.0, 1000.0)
    assert found.chosen.speed == pytest.approx(1200.0)
    assert found.chosen.size == 40 + result.chosen.slots + 1
    assert found.title == f"nanogpt-cpu: {result.trials} trials, the choice is 1.20 times as fast"
    assert "lanes=1" in found.subtitle
    assert {"micro-batch", "slots"} <= {choice.group for choice in found.choices}


def test_defaults_that_are_kept_are_the_choice() -> None:
    found = drawn(gain=0.0)
    assert found.chosen == found.default
    assert found.subtitle == "the defaults are kept"


def test_the_figure_has_units_a_legend_and_the_choice() -> None:
    figure = tuning_figure(drawn())
    (axes,) = figure.axes
    assert axes.get_xlabel() == "memory of a run, as planned (MB)"
    assert axes.get_ylabel() == "tokens per second (median, range)"
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[-2:] == ["the defaults", "the choice"]
    assert "slots" in labels
    ring = next(line for line in axes.get_lines() if line.get_label() == "the choice")
    assert list(ring.get_ydata()) == pytest.approx([1200.0])  # type: ignore[arg-type]
    assert axes.get_ylim()[0] >= 0


def test_graphs_are_drawn_against_the_items_that_they_hold(tmp_path: Path) -> None:
    line = SimulatedLine([Step("read", 2e-3), Step("decode", 7e-3), Step("out", 1e-4)], noise=0.02)
    result = search_sizes(line.declared, line.freedoms, line, 500.0)
    found = picture_of_graph(result, "images")
    assert found is not None
    assert found.chosen.size == sum(result.chosen.total) > found.default.size
    assert write_picture(found, tmp_path / "new" / "graph.png")
    image = matplotlib.image.imread(tmp_path / "new" / "graph.png")
    assert image.shape == (728, 1170, 4)
    assert image[..., :3].std() > 0.02


def test_without_a_comparison_or_memory_nothing_is_drawn(tmp_path: Path) -> None:
    alone = search(DEFAULT, LIMITS, lambda choice: Trial(1.0, 1.0, 1), 2.0)
    assert picture_of_search(alone, "short") is None
    unknown = search(DEFAULT, LIMITS, lambda choice: Trial(1.0, 1.0), 1000.0)
    assert picture_of_search(unknown, "unknown") is None
    assert not write_picture(None, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_drawn_or_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    (tmp_path / "file").touch()
    assert not write_picture(drawn(), tmp_path / "file" / "picture.png")
    assert any("the result is not affected" in line for line in logged)

    def broken(draw: object) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(picture, "render_png", broken)
    assert not write_picture(drawn(), tmp_path / "picture.png")
    assert any("no fonts" in line for line in logged)


def test_the_file_is_checked_before_the_search(tmp_path: Path, logged: list[str]) -> None:
    check_picture_path(tmp_path / "picture.PNG")
    assert not logged
    with pytest.raises(InputError, match=r"ends with \.png"):
        check_picture_path(tmp_path / "picture.svg")
    (tmp_path / "file").touch()
    check_picture_path(tmp_path / "file" / "picture.png")
    assert any("will not be written" in line for line in logged)
