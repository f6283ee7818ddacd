"""Draw the layout of packed bfloat16 operands: `python -m docs.draw_packed` writes images/packed.png."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

INK, FAINT, PAPER = "#1f2937", "#c9d1dc", "#f5f7fa"
PANELS = ("#bfd3fb", "#bfe8d9")
EVEN, ODD = "#2563eb", "#0f9d75"


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, words: str = "") -> None:
    """Draw a labelled rectangle; y grows downwards."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.2))
    if words:
        axes.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=8.5, color=INK)


def source(axes: Axes) -> None:
    """Draw B in its float32 master."""
    axes.text(0.0, -0.75, "B (K, N), float32 master", fontsize=10, fontweight="bold", color=INK)
    for panel, colour in enumerate(PANELS):
        box(axes, 3.0 * panel, 0.0, 3.0, 6.0, colour, f"panel {panel}\n32 columns")
    for y, words in ((0.0, "k = 0"), (0.5, "k = 1")):
        axes.add_patch(
            Rectangle((0.0, y), 3.0, 0.5, facecolor="none", edgecolor=(EVEN, ODD)[int(y > 0)], linewidth=1.6)
        )
        axes.text(-0.15, y + 0.27, words, ha="right", va="center", fontsize=8.5, color=INK)
    axes.text(3.0, 6.5, "n →", ha="center", va="center", fontsize=9, color=INK)
    axes.text(-0.6, 3.6, "k ↓", ha="center", va="center", fontsize=9, color=INK)


def packed(axes: Axes) -> None:
    """Draw the packed copy: panel by panel, pairs of k in 32-bit words."""
    axes.text(8.2, -0.75, "packed: panels × pairs of k × 32 words of uint32", fontsize=10, fontweight="bold", color=INK)
    for panel, colour in enumerate(PANELS):
        top = 3.2 * panel
        for pair in range(3):
            y = top + 0.75 * pair
            for column in range(4):
                x = 8.2 + 1.75 * column
                words = (("0", "1", "…", "31"), ("32", "33", "…", "63"))[panel][column]
                if words == "…":
                    box(axes, x, y, 1.7, 0.68, PAPER, "…")
                    continue
                box(axes, x, y, 0.85, 0.68, colour, f"B[{2 * pair + 1},{words}]")
                box(axes, x + 0.85, y, 0.85, 0.68, colour, f"B[{2 * pair},{words}]")
            axes.text(15.25, y + 0.34, f"pair {pair}", va="center", fontsize=8.5, color=INK)
        if panel == 0:
            axes.text(8.2, top + 2.45, "…  zeros up to a multiple of 16 pairs", fontsize=8.5, color=INK)
        axes.text(8.05, top + 1.1, f"panel {panel}", ha="right", va="center", fontsize=8.5, color=INK, rotation=90)
    axes.text(8.2, 6.15, "one row of a panel = 128 bytes = two AVX-512 vectors, or a row of each of two AMX tiles",
              fontsize=8.5, color=INK)  # fmt: skip
    axes.text(8.2, 6.6, "one word = two neighbours along k, the operands of one dot-product instruction",
              fontsize=8.5, color=INK)  # fmt: skip


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(11.6, 4.9), dpi=130, facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-1.5, 16.5)
    axes.set_ylim(7.1, -1.3)
    axes.axis("off")
    source(axes)
    packed(axes)
    axes.add_patch(
        FancyArrowPatch((6.2, 1.2), (7.5, 1.2), arrowstyle="-|>", mutation_scale=14, color=INK, linewidth=1.2)
    )
    axes.text(6.85, 0.85, "AdamW's\npass", ha="center", va="bottom", fontsize=8.5, color=INK)
    figure.savefig(Path(__file__).with_name("images") / "packed.png")


if __name__ == "__main__":
    main()
