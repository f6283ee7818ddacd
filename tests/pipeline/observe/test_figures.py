"""Rendering of figures is independent of the user's configuration of Matplotlib."""

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pytest

from threadloom.pipeline import render_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG = b"\x89PNG"


def figure(title: str) -> "Figure":
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2, 1))
    axes = drawn.add_subplot()
    axes.plot([1, 2], [3, 5])
    axes.set_title(title)
    return drawn


def test_the_style_of_the_user_changes_nothing_and_is_kept() -> None:
    plain = render_png(partial(figure, "a"))
    with mpl.rc_context({"text.usetex": True, "lines.linewidth": 9.0, "savefig.dpi": 7, "font.size": 30}):
        assert render_png(partial(figure, "a")) == plain
        assert (mpl.rcParams["text.usetex"], mpl.rcParams["savefig.dpi"]) == (True, 7)
    assert mpl.rcParams["text.parse_math"] is True


@pytest.mark.parametrize("title", [r"$\foo$", "$", "$$", "a_b^c", "日本語", "\x00\x1b[2J\n\t", "x" * 500])
def test_any_title_is_drawn_as_text(title: str) -> None:
    assert render_png(partial(figure, title)).startswith(PNG)


def test_threads_draw_one_after_another() -> None:
    pictures: list[bytes] = []
    threads = [threading.Thread(target=lambda: pictures.append(render_png(partial(figure, "a")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pictures)) == 1
    assert len(pictures) == 4
    assert mpl.rcParams["text.parse_math"] is True


def test_a_backend_that_is_not_installed_and_a_style_with_latex(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    script = """
import os
from threadloom.pipeline import render_png

def figure():
    from matplotlib.figure import Figure
    drawn = Figure()
    drawn.add_subplot().set_title("$x$")
    return drawn

assert render_png(figure).startswith(b"\\x89PNG")
assert os.environ["MPLBACKEND"] == "module://no_such_module.backend"
"""
    environment = {"MPLBACKEND": "module://no_such_module.backend", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
