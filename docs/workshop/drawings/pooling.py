"""What pooling does to a small grid and to a shifted signal, how far a network sees, and two orders of memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nn import Conv2d, Flatten, MaxPool2d
from nn.pooling import max_pool2d_backward, max_pool2d_forward
from resnet.experiments.figures import INKS, LINES, new, style
from resnet.models import resnet18

#: The grid of the page on max pooling: five by five numbers of one channel.
GRID = np.array(
    [[-1, -2, 0, 1, 3], [-3, -2, 2, 7, 3], [4, 1, 0, 1, 2], [0, 4, 2, -1, 0], [5, 0, 6, 1, 1]], dtype=np.float64
)
UPSTREAM = np.arange(1.0, 10.0).reshape(3, 3)
#: One sharp peak and one broad hill, far enough apart that no window sees both.
SIGNAL = np.array([0, 0, 4, 0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 0, 0, 0, 0, 0], dtype=np.float64)


def blank(axes: Axes, title: str, columns: tuple[float, float], rows: tuple[float, float]) -> None:
    """Make room for a grid whose cell (row, column) has its upper left corner at y = row, x = column."""
    axes.set(xlim=columns, ylim=rows[::-1], aspect="equal")
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def cells(axes: Axes, numbers: np.ndarray, notes: dict[tuple[int, int], str], grey: bool) -> None:
    """Draw a grid of numbers; under some of them a note, and if ``grey`` such a cell is grey and its number bold."""
    for (row, column), number in np.ndenumerate(numbers):
        note = notes.get((row, column), "")
        shade, weight = ("#d5d5d5", "bold") if grey and note else ("white", "normal")
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=shade, edgecolor="black"))
        height = row + (0.38 if note else 0.5)
        axes.text(
            column + 0.5, height, f"{number:g}".replace("-", "−"), ha="center", va="center", fontsize=12, weight=weight
        )
        axes.text(column + 0.5, row + 0.78, note, ha="center", va="center", fontsize=8)


def window(axes: Axes, row: int, column: int, index: int, letter: str) -> None:
    """Outline the window whose upper left place is (row, column), its letter in the corner."""
    ink, line = INKS[index], LINES[index // 2]
    outline = Rectangle((column + 0.05, row + 0.05), 2.9, 2.9, fill=False, edgecolor=ink, linestyle=line, linewidth=2.6)
    axes.add_patch(outline)
    axes.text(column + 0.12, row + 0.3, letter, fontsize=9, color=ink, weight="bold")


def routes() -> Figure:
    """Draw which place wins each window of the grid, and the way that each upstream gradient takes back."""
    y, cache = max_pool2d_forward(GRID.reshape(1, 5, 5, 1), 3, 2, 1)
    dx = max_pool2d_backward(UPSTREAM.reshape(1, 3, 3, 1), cache)[0, :, :, 0]
    letters = {(p, q): "ABCDEFGHI"[3 * p + q] for p, q in np.ndindex(3, 3)}
    won: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (p, q), tap in np.ndenumerate(cache.winner[0, :, :, 0]):
        won.setdefault((2 * p - 1 + int(tap) // 3, 2 * q - 1 + int(tap) % 3), []).append((p, q))
    winners = {place: "".join(letters[one] for one in those) for place, those in won.items()}
    figure = new(5.6, 5.7)
    (before, after), (back, upstream) = figure.subplots(2, 2, width_ratios=(7.2, 5), height_ratios=(7.2, 5.4))
    blank(before, "x, in its frame of −∞, and what each place won", (-1.1, 6.1), (-1.1, 6.1))
    for row, column in np.ndindex(7, 7):
        if not (0 < row < 6 and 0 < column < 6):
            framed = Rectangle((column - 1, row - 1), 1, 1, facecolor="none", edgecolor="#aaaaaa", linewidth=0.6)
            before.add_patch(framed)
            before.text(column - 0.5, row - 0.42, "−∞", ha="center", va="center", fontsize=9, color="#777777")
    cells(before, GRID, winners, True)
    for index, row, column, letter in ((1, -1, -1, "A"), (2, -1, 1, "B"), (4, 1, 1, "E")):
        window(before, row, column, index, letter)
    blank(after, "→  y, the largest of each window", (-1.2, 3.8), (-2.1, 5.1))
    cells(after, y[0, :, :, 0], letters, False)
    blank(back, "dx: each place gets the sum of what it won", (-1.1, 6.1), (-0.2, 5.2))
    cells(back, dx, winners, True)
    blank(upstream, "←  dy", (-1.2, 3.8), (-1.2, 4.2))
    cells(upstream, UPSTREAM, letters, False)
    return figure


def pooled(signal: np.ndarray, kind: str) -> np.ndarray:
    """Return the largest or the mean of each pair of neighbours."""
    pairs = signal.reshape(-1, 2)  # (18,) -> (9, 2)
    return pairs.max(axis=1) if kind == "max" else pairs.mean(axis=1)


def shift() -> Figure:
    """Draw a signal at three shifts, and the larger and the mean of each pair of its neighbours."""
    figure = new(5.6, 3.9)
    grid = figure.subplots(3, 3, sharey=True)
    for by, row in enumerate(grid):
        moved = np.roll(SIGNAL, by)
        for axes, (title, heights, width) in zip(
            row,
            (
                ("signal", moved, 1),
                ("largest of each pair", pooled(moved, "max"), 2),
                ("mean of each pair", pooled(moved, "mean"), 2),
            ),
            strict=True,
        ):
            left = np.arange(len(heights)) * width
            axes.bar(left, heights, width, align="edge", color="#bdbdbd", edgecolor="black", linewidth=0.7)
            axes.set(xlim=(0, len(moved)), ylim=(0, 4.6), yticks=(0, 2, 4))
            between = range(0, len(moved) + 1, 2)
            axes.set_xticks(between, [f"{place}" if place % 6 == 0 else "" for place in between])
            axes.grid(axis="x", linewidth=0.5, color="#cccccc")
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8, labelbottom=by == 2)
            if by == 0:
                axes.set_title(title, fontsize=9)
        row[0].set_ylabel(f"moved by {by}", fontsize=9)
    for axes in grid[2]:
        axes.set_xlabel("place; lines between pairs", fontsize=9)
    return figure


def steps(pool: bool, strides: bool) -> tuple[list[str], list[int]]:
    """Return the layers on ResNet18's main way, and how many pixels a side each of them sees."""
    names, sees, seen, jump = ["picture"], [1], 1, 1
    for name, layer in resnet18(10, rng=np.random.default_rng(0)).named_modules():
        if isinstance(layer, Conv2d) and "downsample" not in name:
            size = layer.weight.data.shape[0]
        elif isinstance(layer, MaxPool2d):
            if not pool:
                continue
            size = layer.kernel_size[0]
        else:
            continue
        seen += (size - 1) * jump
        jump *= layer.stride[0] if strides else 1
        names.append(name)
        sees.append(seen)
    return names, sees


def receptive_field() -> Figure:
    """Draw how many pixels a side one number sees, layer by layer, with and without pooling and strides."""
    figure = new(5.6, 4.2)
    axes = figure.subplots()
    variants = (("ResNet18", True, True), ("without max pooling", False, True), ("without any stride", True, False))
    names, _ = steps(True, True)
    for index, (label, pool, strides) in enumerate(variants):
        own, sees = steps(pool, strides)
        axes.plot([names.index(name) for name in own], sees, label=label, **style(index))
        axes.annotate(f"{sees[-1]}", (len(names) - 1, sees[-1]), xytext=(6, -8), textcoords="offset points", fontsize=9)
    axes.axhline(224, color="#999999", linewidth=0.8)
    axes.text(0, 230, "the whole picture of 224 × 224", fontsize=9, color="#555555")
    told = [at for at, name in enumerate(names) if "." not in name or name.endswith("1.conv2")]
    axes.set_xticks(told, [names[at] for at in told], rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xticks(range(len(names)), minor=True)
    axes.set(ylabel="pixels a side that one number sees", ylim=(0, 460), xlim=(-0.3, len(names) + 0.6))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.98), frameon=False)
    return figure


def orders() -> Figure:
    """Draw a map of two by two places with three channels, flattened in both orders."""
    h, w, c = 2, 2, 3
    number = np.arange(h * w * c).reshape(1, h, w, c)
    ours = Flatten()(number)[0]
    theirs = number.transpose(0, 3, 1, 2).reshape(1, -1)[0]  # (1, H, W, C) -> (1, C, H, W) -> (1, C·H·W)
    shades, hatches = ("white", "#e3e3e3", "#bdbdbd"), ("", "///", "...")
    figure = new(5.0, 3.5)
    axes = figure.subplots()

    def cell(left: float, top: float, which: int, size: float = 1.0) -> None:
        place, channel = divmod(which, c)
        face = {"facecolor": shades[channel], "hatch": hatches[channel], "edgecolor": "#888888", "linewidth": 0}
        axes.add_patch(Rectangle((left, top), size, size, **face))
        axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="black", linewidth=0.9))
        text = axes.text(left + size / 2, top + size / 2, f"{'abcd'[place]}{channel}", ha="center", va="center")
        text.set(fontsize=10, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})

    for channel in range(c):
        left = 1.2 + channel * 3.8
        axes.text(left + 1, -0.25, f"channel {channel}", ha="center", fontsize=10)
        for row, column in np.ndindex(h, w):
            cell(left + column, row, int(number[0, row, column, channel]))
    for top, label, order in (
        (3.6, "channels last, ours: place by place", ours),
        (5.9, "channels first, PyTorch's: channel by channel", theirs),
    ):
        axes.text(0, top - 0.2, label, fontsize=10)
        for at, which in enumerate(order):
            cell(at, top, int(which))
    axes.set(xlim=(-0.1, 12.1), ylim=(7.0, -0.9), aspect="equal")
    axes.axis("off")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "max_pool2d_routes": routes,
    "pooling_shift": shift,
    "pooling_receptive_field": receptive_field,
    "flatten_orders": orders,
}
