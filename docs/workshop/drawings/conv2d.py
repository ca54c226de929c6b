"""The figures of the chapter on convolution: how a patch becomes a row, where it lies, and the input gradient twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray

from nn.conv import col2im, conv2d_forward, im2col, pad, turned
from resnet.experiments.figures import INKS, new

Numbers = NDArray[Any]

PICTURE = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)  # (N, H, W, C)
KERNEL = np.arange(1.0, 5.0).reshape(2, 2, 1, 1)  # (KH, KW, C, F)
UPSTREAM = np.array([[1.0, -1.0], [0.0, 2.0]]).reshape(1, 2, 2, 1)  # (N, OH, OW, F)
SHOWN = {0: (INKS[1], "-"), 3: (INKS[2], "--")}  # two of the four patches: colour and line
GREY = "#dddddd"


def patch() -> Figure:
    """Draw the picture of the worked example, its patches as the rows of a matrix, and the product."""
    cols = im2col(PICTURE, (2, 2), (1, 1), (0, 0)).copy()  # (4, 4)
    y, _ = conv2d_forward(PICTURE, KERNEL)
    figure, axes = canvas(13.6, 5.6, 4.9)
    grid(axes, 0, 1, PICTURE[0, :, :, 0], "picture")
    grid(axes, 4.6, 0.5, cols, "patches, one a row")
    grid(axes, 9.7, 0.5, KERNEL.reshape(4, 1), "kernel")
    grid(axes, 11.9, 0.5, y.reshape(4, 1), "output", width=1.4)
    axes.text(9.15, 2.5, "@", ha="center", va="center", fontsize=10)
    axes.text(11.3, 2.5, "=", ha="center", va="center", fontsize=10)
    for row, (colour, line) in SHOWN.items():
        down, right = divmod(row, 2)
        frame(axes, (right, 2 - down), (2, 2), colour, line)
        frame(axes, (4.6, 3.5 - row), (4, 1), colour, line)
        frame(axes, (11.9, 3.5 - row), (1.4, 1), colour, line)
    arrow(axes, (3.1, 3.5), (4.5, 4.0), INKS[1], "-")
    arrow(axes, (3.1, 1.5), (4.5, 1.0), INKS[2], "--")
    return figure


def memory() -> Figure:
    """Draw a picture of two channels as it lies in memory, channels-last and channels-first, with its first patch."""
    places = np.arange(18).reshape(1, 3, 3, 2)  # where the number of a place and channel lies, channels-last
    turned_places = np.arange(18).reshape(1, 2, 3, 3).transpose(0, 2, 3, 1)  # the same channels-first, as (N, H, W, C)
    figure, axes = canvas(18.2, 6.2, 4.9)
    for bottom, name, order in ((3.6, "channels-last", places), (0.4, "channels-first", turned_places)):
        names = np.empty(18, dtype=object)
        for (_, row, column, channel), place in np.ndenumerate(order):
            names[place] = f"{3 * row + column + 1}{'ab'[channel]}"
        seen = im2col(order.astype(np.float64), (2, 2), (1, 1), (0, 0))[0].astype(int)  # of the first patch
        runs = 1 + int((np.diff(np.sort(seen)) > 1).sum())
        for number, text in enumerate(names):
            cell(axes, number, bottom, text, GREY if number in seen else "white", size=8)
        for place in sorted(seen.tolist()):
            if place - 1 not in seen:
                length = next(n for n in range(1, 19) if place + n not in seen)
                frame(axes, (place, bottom), (length, 1), INKS[1], "-")
        words = f"{name}: the first patch lies in {runs} pieces"
        axes.text(0, bottom + 1.3, words, ha="left", va="bottom", fontsize=9)
    return figure


def input_gradient() -> Figure:
    """Draw the input gradient of the worked example as a scatter of dy and as a gathering from dy."""
    dy, kernel = UPSTREAM[0, :, :, 0], KERNEL[:, :, 0, 0]
    dcols = np.einsum("pq,ij->pqij", dy, kernel)
    dx = col2im(dcols[None, ..., None], (1, 3, 3, 1), (1, 1), (0, 0))[0, :, :, 0]
    figure, axes = canvas(13.0, 10.5, 4.9)

    axes.text(0, 10.1, "scatter: where does this dy go?", ha="left", va="center", fontsize=10)
    grid(axes, 2, 6.5, dy, "dy", marked={(1, 1)}, width=1.5)
    grid(axes, 8.2, 6, dx, "dx", texts={}, width=1.5)
    for (i, j), weight in np.ndenumerate(kernel):  # output (1, 1) met tap (i, j) at place (1 + i, 1 + j)
        cell(axes, 9.7 + 1.5 * j, 7 - i, f"+ 2·{weight:.0f}", GREY, width=1.5)
    arrow(axes, (5.1, 7), (8.1, 7), INKS[1], "-")
    frame(axes, (3.5, 6.5), (1.5, 1), INKS[1], "-")
    frame(axes, (9.7, 6), (3, 2), INKS[1], "-")

    axes.text(0, 5.3, "gather: which dy reach this dx?", ha="left", va="center", fontsize=10)
    framed = pad(UPSTREAM, (1, 1))[0, :, :, 0]
    taps = turned(KERNEL)[:, :, 0, 0]
    window = {(1 + i, 1 + j): f"{framed[1 + i, 1 + j]:g}·{taps[i, j]:g}" for i, j in np.ndindex(2, 2)}
    assert (framed[1:3, 1:3] * taps).sum() == dx[1, 1]
    grid(axes, 0.5, 0.1, framed, "framed dy × turned kernel", texts=window, marked=window, width=1.5)
    grid(axes, 8.2, 0.6, dx, "dx", marked={(1, 1)}, width=1.5)
    arrow(axes, (6.6, 2.1), (8.1, 2.1), INKS[2], "--")
    frame(axes, (2, 1.1), (3, 2), INKS[2], "--")
    frame(axes, (9.7, 1.6), (1.5, 1), INKS[2], "--")
    return figure


def canvas(width: float, height: float, inches: float) -> tuple[Figure, Axes]:
    """Return a figure with one bare axes of so many units, and so many inches wide."""
    figure = new(inches, inches * height / width)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.2, width)
    axes.set_ylim(0, height)
    return figure, axes


def grid(
    axes: Axes,
    left: float,
    bottom: float,
    numbers: Numbers,
    title: str,
    *,
    texts: Mapping[Any, str] | None = None,
    marked: Collection[tuple[int, ...]] = (),
    width: float = 1.0,
) -> None:
    """Draw numbers (rows, columns) as a table, with other texts at some places; all empty if there are none of them."""
    rows, columns = numbers.shape
    for index, value in np.ndenumerate(numbers):
        text = f"{value:g}" if texts is None else texts.get(index, f"{value:g}" if texts else "")
        corner = left + index[1] * width, bottom + rows - 1 - index[0]
        cell(axes, *corner, text, GREY if index in marked else "white", width)
    axes.text(left + columns * width / 2, bottom + rows + 0.2, title, ha="center", va="bottom", fontsize=9)


def cell(axes: Axes, left: float, bottom: float, text: str, shade: str, width: float = 1.0, size: float = 9) -> None:
    """Draw one cell of a table."""
    axes.add_patch(Rectangle((left, bottom), width, 1, facecolor=shade, edgecolor="black", linewidth=0.7))
    axes.text(left + width / 2, bottom + 0.47, text.replace("-", "−"), ha="center", va="center", fontsize=size)


def frame(axes: Axes, corner: tuple[float, float], size: tuple[float, float], colour: str, line: str) -> None:
    """Draw a frame around cells."""
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=2.2, linestyle=line, zorder=3))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, line: str) -> None:
    """Draw an arrow."""
    shape = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, zorder=4)
    shape.set(color=colour, linestyle=line, linewidth=0.9)
    axes.add_patch(shape)


FIGURES = {"conv2d-patch": patch, "conv2d-memory": memory, "conv2d-input-gradient": input_gradient}
