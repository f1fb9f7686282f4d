"""Common parts of the scripts that draw pictures: one style, and identical files for identical numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = Path(__file__).resolve().parent / "images"

# Paul Tol's bright palette, which is safe for colour-blind readers.
BLUE, RED, GREEN, YELLOW, CYAN, PURPLE = "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377"
GREY, PALE, INK = "#8A8A8A", "#E3E3E3", "#222222"


def panels(columns: int, *, width: float = 8.0, height: float = 3.4, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; a width of 8 is 576 points, the width of a page of the site.

    The background is white and not transparent, so that the black text is readable in dark mode.
    """
    import matplotlib

    matplotlib.use("svg")
    # Without the salt, ids in the file would be random. Text as text, not as paths, keeps the file small.
    matplotlib.rcParams.update({"svg.hashsalt": "lightning-coreset", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    return figure, list(axes[0])


def plain(axes: Axes, *, grid: bool = True) -> None:
    """Remove the top and right border and add a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.25)


def save(figure: Figure, name: str) -> None:
    """Write a picture into ``docs/images``, without a date, so that it does not change if the numbers do not."""
    path = IMAGES / name
    figure.savefig(path, metadata={"Date": None})
    # Some lines of path data end in a space.
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))
    print(f"wrote {path.relative_to(IMAGES.parent.parent)}")
