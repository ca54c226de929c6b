"""The figure of the first chapter: its network, with the numbers that are worked out there."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray

from nn import Conv2d, Flatten, GlobalAvgPool2d, LeakyReLU, Linear, Sequential
from nn.loss import cross_entropy_forward
from resnet.experiments.figures import new

PICTURE = np.array([[2.0, 0, 0], [2, 0, 0], [2, 1, 0]])
FILTERS = np.array([[[1.0, -1], [1, -1]], [[1, 1], [-1, -1]]])  # (F, KH, KW)


def network() -> Sequential:
    """Return the network of the chapter."""
    chain = Sequential(
        *(Conv2d(1, 2, 2, bias=False), LeakyReLU(0.1), GlobalAvgPool2d(), Flatten(), Linear(2, 2, bias=False))
    ).astype(np.float64)
    convolution, linear = chain.parameters()
    convolution.data = FILTERS.transpose(1, 2, 0)[:, :, None]  # (F, KH, KW) -> (KH, KW, F) -> (KH, KW, C, F)
    linear.data = np.diag([0.5, 0.5])
    return chain


def chain() -> Figure:
    """Draw what each layer hands to the next."""
    x, stages = PICTURE[None, :, :, None], []
    for _, layer in network().children():
        x = layer(x)
        stages.append(x)
    maps, bent, means, _, scores = stages
    loss, _ = cross_entropy_forward(scores, np.array([0]))
    figure = new(4.7, 4.25)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.1, 11.2)
    axes.set_ylim(-0.6, 9.6)
    table(axes, 0, 5.1, PICTURE, "picture")
    for channel, bottom in enumerate((7.1, 4.4)):
        first = channel == 0
        table(axes, 4.8, bottom, maps[0, :, :, channel], "two maps" if first else "")
        table(axes, 8.7, bottom, bent[0, :, :, channel], "bent" if first else "")
        arrow(axes, (3.1, 6.6), (4.7, bottom + 1), "filters" if first else "", shift=(-0.3, 0.5))
        arrow(axes, (6.9, bottom + 1), (8.6, bottom + 1), "LeakyReLU" if first else "")
    arrow(axes, (9.7, 4.3), (9.7, 3.5), "mean", shift=(0.75, -0.25))
    for channel, bottom in enumerate((1.5, -0.4)):
        first = channel == 0
        table(axes, 9.2, bottom, means[0, :, :, channel], "averages" if first else "", wide=1.4)
        table(axes, 5.4, bottom, scores[:, channel : channel + 1], "scores" if first else "", wide=1.4)
        for other in (1.5, -0.4):
            arrow(axes, (9.1, bottom + 0.5), (6.9, other + 0.5), "weights" if first and other == bottom else "")
        arrow(axes, (5.3, bottom + 0.5), (3.0, 1.05), "softmax" if first else "", shift=(-0.15, 0.45))
    table(axes, 1.5, 0.55, np.array([[float(loss)]]), "loss", wide=1.4)
    return figure


def table(axes: Axes, left: float, bottom: float, numbers: NDArray[np.float64], title: str, wide: float = 1.0) -> None:
    """Draw numbers (rows, columns) in cells of height 1, the larger the darker."""
    rows, columns = numbers.shape
    for (row, column), value in np.ndenumerate(numbers):
        shade = min(4.0, max(0.0, float(value))) / 4  # from white to a blue: black is what the picture's 0 stands for
        corner = (left + wide * column, bottom + rows - 1 - row)
        face = (1 - 0.45 * shade, 1 - 0.3 * shade, 1 - 0.1 * shade)
        axes.add_patch(Rectangle(corner, wide, 1, facecolor=face, edgecolor="black", linewidth=0.8))
        text = f"{value:.4g}"[:6].replace("-", "\N{MINUS SIGN}")
        axes.text(corner[0] + wide / 2, corner[1] + 0.48, text, ha="center", va="center", fontsize=9)
    axes.text(left + wide * columns / 2, bottom + rows + 0.15, title, ha="center", va="bottom", fontsize=9.5)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    words: str,
    shift: tuple[float, float] = (0, 0.15),
) -> None:
    """Draw an arrow with words near its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, linewidth=0.8, color="#444444"))
    middle = (start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1]
    axes.text(*middle, words, ha="center", va="bottom", fontsize=8.5, color="#444444")


FIGURES = {"forward-chain": chain}
