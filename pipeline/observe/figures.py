"""Rendering of Matplotlib figures, independent of the user's configuration of Matplotlib.

MPLBACKEND may name a backend that is not installed, a matplotlibrc may ask for LaTeX, and a name may contain a dollar
sign. None of them affects a picture: it is drawn by Agg, in Matplotlib's default style, with all text taken literally.
"""

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWING = threading.Lock()
"""Held while a figure is drawn: the style is a global of Matplotlib."""


def render_png(draw: Callable[[], "Figure"]) -> bytes:
    """Return the PNG of the figure that `draw` creates with `matplotlib.figure.Figure`, without pyplot.

    Any thread may call it. Within `draw`, Matplotlib's global parameters have their defaults, except that `$` does not
    begin a formula.
    """
    _import_matplotlib()
    with _DRAWING, _default_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = draw()
        image = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(image, format="png")
    return image.getvalue()


def _import_matplotlib() -> None:
    """Import Matplotlib, whose import fails if MPLBACKEND is not the name of an installed backend."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend  # for other users of Matplotlib in this process


@contextmanager
def _default_style() -> Iterator[None]:
    import matplotlib as mpl

    defaults = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
    with mpl.rc_context({**defaults, "text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a character without a glyph is drawn as a box
        yield
