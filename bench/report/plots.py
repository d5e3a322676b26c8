"""Colours and parts that the scenarios' figures share, and the SVG file of a figure."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.analysis.measures import Spread
from bench.report.results import Row

OURS, PEER = "#0b6e99", "#8a8f98"
#: Greys that can be read on white and on black: pictures are transparent.
INK, FAINT = "#76818d", "#76818d55"
PARTS = ("#9aa4b0", "#0b6e99", "#e08e45", "#7a9e7e")
STAGES = ("#9aa4b0", "#c2a14d", "#6d8b74", "#b0695a", "#8a6fa8", "#0b6e99", "#5aa7a7", "#d08c60", "#7f8a96", "#a9b4bf")
SUBJECTS = ("#0b6e99", "#e08e45", "#7a9e7e", "#b0695a", "#8a6fa8", "#c2a14d", "#5aa7a7")
TARGET = "#d9483b"

# Text stays text, and the same data makes the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 10})
for _part in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
    mpl.rcParams[_part] = INK


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as SVG and return its path."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None}, transparent=True)
    return path


def point(axes: Axes, spread: Spread, place: int, mark: str, colour: str) -> None:
    """Draw a median with its range and its value."""
    axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=1.5, alpha=0.6)
    axes.plot(spread.median, place, mark, color=colour, markersize=6)
    axes.annotate(
        f"{spread.median:.3g}", (spread.median, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
    )


def name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Names the systems at the left, the first one on top."""
    axes.set_yticks(range(len(rows)), [row.system for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    clean(axes)


def clean(axes: Axes) -> None:
    """Remove the frame and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def colour(row: Row) -> str:
    """Anabranch's colour, or the peers'."""
    return OURS if row.system.startswith("anabranch") else PEER
