"""The look of all figures: readable in black and white, with units, n and error bars; the same bytes for one result.

Series differ by grey level, hatch, marker and line, never by colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nn.checkpoint import write_atomically

INKS = ("#111111", "#c0504d", "#2e75b6", "#7f7f7f", "#70963a", "#8064a2", "#d08a1d", "#4bacc6")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++", "oo")


def new(width: float = 8.0, height: float = 4.0) -> Figure:
    """Return an empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def style(index: int) -> dict[str, Any]:
    """Return how the series number ``index`` is drawn as a line with markers."""
    return {
        "color": INKS[index % len(INKS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
        "markersize": 5,
    }


def bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Draw bars: a group a place on the x axis, in it a bar a series, with error bars.

    Args:
        axes: where.
        groups: names of the groups.
        series: a height a group, by the series' name.
        errors: how far the error bar reaches (below, above) the height, likewise.
    """
    width = 0.8 / len(series)
    for index, (name, heights) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        shade = str(0.25 + 0.6 * index / max(1, len(series) - 1))
        whiskers = list(zip(*errors[name], strict=True))  # ((below, …), (above, …))
        axes.bar(
            places,
            heights,
            width,
            yerr=whiskers,
            capsize=2,
            label=name,
            color=shade,
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="black",
            linewidth=0.6,
            error_kw={"linewidth": 0.8},
        )
    axes.set_xticks(range(len(groups)), groups)


def save(figure: Figure, stem: Path) -> Path:
    """Write a figure, whole or not at all, and return its path: SVG, or PNG if it holds pictures.

    Raises:
        OSError: the file cannot be written.
    """
    FigureCanvasAgg(figure)
    kind = "png" if any(axes.images for axes in figure.axes) else "svg"
    content = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "resnet", "svg.fonttype": "none"}):
        figure.savefig(content, format=kind, dpi=110, metadata=metadata, facecolor="white")
    path = stem.with_name(f"{stem.name}.{kind}")
    write_atomically(path, content.getvalue())
    return path
