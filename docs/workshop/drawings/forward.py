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
    figure = new(8.6, 2.9)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.2, 18.4)
    axes.set_ylim(-0.6, 5.2)
    table(axes, 0, 1, PICTURE, "picture")
    for channel, bottom in enumerate((2.7, 0.3)):
        table(axes, 4.6, bottom, maps[0, :, :, channel], "two maps" if channel == 0 else "")
        table(axes, 8.2, bottom, bent[0, :, :, channel], "bent" if channel == 0 else "")
        table(axes, 11.8, bottom + 0.5, means[0, :, :, channel], "averages" if channel == 0 else "")
        table(axes, 14.2, bottom + 0.5, scores[:, channel : channel + 1], "scores" if channel == 0 else "")
        for start, end, words in ((6.7, 8.1, "LeakyReLU"), (10.3, 11.7, "mean")):
            arrow(axes, (start, bottom + 1), (end, bottom + 1), words if channel == 0 else "")
        arrow(axes, (3.1, 2.5), (4.5, bottom + 1), "filters" if channel == 0 else "")
        for other in (2.7, 0.3):
            arrow(axes, (12.9, bottom + 1), (14.1, other + 1), "weights" if channel == 0 and other == bottom else "")
        arrow(axes, (15.3, bottom + 1), (16.6, 2.5), "softmax" if channel == 0 else "")
    table(axes, 16.7, 2, np.array([[float(loss)]]), "loss")
    return figure


def table(axes: Axes, left: float, bottom: float, numbers: NDArray[np.float64], title: str) -> None:
    """Draw numbers (rows, columns) in unit squares, the larger the darker."""
    rows, columns = numbers.shape
    for (row, column), value in np.ndenumerate(numbers):
        shade = 1 - 0.12 * min(4.0, max(0.0, float(value)))
        corner = (left + column, bottom + rows - 1 - row)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=str(shade), edgecolor="black", linewidth=0.8))
        axes.text(corner[0] + 0.5, corner[1] + 0.48, f"{value:.4g}"[:6], ha="center", va="center", fontsize=7.5)
    axes.text(left + columns / 2, bottom + rows + 0.15, title, ha="center", va="bottom", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], words: str) -> None:
    """Draw an arrow with words above its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, linewidth=0.8, color="#444444"))
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axes.text(middle[0], middle[1] + 0.18, words, ha="center", va="bottom", fontsize=6.5, color="#444444")


FIGURES = {"forward-chain": chain}
