"""The figures of the chapter on speed: drawn from the result files of the benchmarks, and one of tiles."""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from resnet.experiments.figures import INKS, LINES, MARKERS, new, style

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
#: Operations that a number takes, and bytes that are read and written for it at least, as the chapter counts them.
ELEMENTWISE = {"Add": (1, 12), "LeakyReLU": (2, 8), "BatchNorm2d": (7, 16)}
BOTH = "forward + backward"
GREY = "#888888"
#: Inches: narrow enough that the words can be read on a telephone.
WIDTH = 5.4

Row = dict[str, Any]


# Result files


@cache
def report(name: str) -> dict[str, Any]:
    """Return what is in a result file of the benchmarks."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def rows(section: str, **wanted: Any) -> list[Row]:
    """Return the rows of a section of ``choices.json`` that have these values.

    Raises:
        LookupError: there are none.
    """
    every: list[Row] = report("choices")["sections"][section]
    found = [row for row in every if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise LookupError(f"expected rows of {section} with {wanted}")
    return found


def row(section: str, **wanted: Any) -> Row:
    """Return the first of these rows."""
    return rows(section, **wanted)[0]


def times(section: str, **wanted: Any) -> float:
    """Return how many times as long as the one that it was compared with this took: median of the rounds' ratios."""
    return float(row(section, **wanted)["time"]["median"])


def copied() -> list[Row]:
    """Return the copies, smallest first; the first is of one byte."""
    return sorted(rows("memory", phase="copy"), key=lambda one: one["array_bytes"])


def most_threads() -> int:
    """Return in how many threads everything was measured, besides in one."""
    return max(one["threads"] for one in rows("threads"))


def product_rate(threads: int = 1) -> float:
    """Return the GFLOP/s of a product of large square matrices."""
    products = [one for one in rows("memory", threads=threads) if one["contestant"].endswith("²")]
    return float(products[0]["gflops"])


def memory_rate() -> float:
    """Return the GB/s of a copy of the largest arrays: read and written, by one thread."""
    return float(copied()[-1]["gb_per_second"])


def speed_ups() -> dict[str, tuple[float, float, float]]:
    """Return how many times as fast all threads are as one, median, least and most: a copy, layers, a training step."""
    single, several = (
        row("memory", threads=count, contestant="copy in slices") for count in (1, most_threads())
    )  # measured one after the other, so there are no ratios within a round
    found = {"copy": 3 * (single["ms"]["median"] / several["ms"]["median"],)}
    for one in rows("threads", threads=most_threads()):
        if one["phase"] in (BOTH, "step"):
            ratio = one["speed"]
            found[one["case"].split(",")[0].split(" ")[0]] = ratio["median"], ratio["min"], ratio["max"]
    return found  # type: ignore[return-value]


def share_in_threads(speed_up: float, threads: int) -> float:
    """Return Amdahl's p: which share of the work must have been shared out for this speed-up."""
    return (1 - 1 / speed_up) / (1 - 1 / threads)


def chosen_ratios(batch: int) -> dict[int, list[tuple[int, dict[str, float], bool]]]:
    """Return for each side of pictures: channels, time of Winograd's algorithm to im2col's, whether it is chosen."""
    found: dict[int, list[tuple[int, dict[str, float], bool]]] = {}
    for one in rows("algorithms", contestant="winograd", phase=BOTH):
        n, side, channels = one["shape"]
        if n == batch:
            found.setdefault(side, []).append((channels, one["time"], one["chosen"]))
    return found


def counted_ratio(channels: int) -> float:
    """Return the multiply-adds of F(4×4, 3×3), forward and back, to im2col's: C = F, many tiles, none over the edge."""
    transforms = 3 * 36 * 36 * channels + 2 * 16 * 36 * channels  # a tile: into V twice, out of dV; out of M, into dM
    return (transforms + 3 * 36 * channels**2) / (3 * 16 * 9 * channels**2)


def of_layers() -> list[Row]:
    """Return the rows of ``layers.json``, of two algorithms only the one that a layer would choose."""
    from nn.conv import choose_algorithm

    found = []
    for one in report("layers")["rows"]:
        name, algorithm = one["layer"], one["ours"].removeprefix("ours").strip()
        if name.startswith("conv 3×3") and name.endswith("stride 1"):
            sizes, _, filters = name.removeprefix("conv 3×3, ").removesuffix(", stride 1").partition(" → ")
            h, w, c = map(int, sizes.split("×"))
            shape = (report("layers")["settings"]["batch"], h, w, c)
            if algorithm != choose_algorithm(shape, (3, 3, c, int(filters)), (1, 1), (1, 1)):
                continue
        found.append(one | {"algorithm": algorithm})
    return found


# Figures


def plain_logs(axes: Axes, *which: str) -> None:
    """Write 2, 5, 10 rather than powers of ten along logarithmic axes."""
    for name in which:
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def byte_ticks(axes: Axes, least: float, most: float) -> None:
    """Put ticks at 32 KiB, 256 KiB, 2 MiB and so on."""
    powers = [power for power in range(0, 40, 3) if least <= 2**power <= most]
    names = [f"{2 ** (power % 10)} {('B', 'KiB', 'MiB', 'GiB')[power // 10]}" for power in powers]
    axes.xaxis.set_major_locator(FixedLocator([2**power for power in powers]))
    axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.xaxis.set_minor_locator(NullLocator())


def circumstances(axes: Axes, name: str = "choices") -> None:
    """Say below a panel where its numbers are from."""
    machine, date = report(name)["machine"], report(name)["date"][:10]
    words = f"{machine['cpu']}, {machine['cores']} cores, {date}, benchmarks/results/{name}.json"
    axes.figure.supxlabel(words, fontsize=6.5, color=GREY)


def distances(ratio: dict[str, float]) -> tuple[float, float]:
    """Return how far an error bar reaches below and above the median."""
    return ratio["median"] - ratio["min"], ratio["max"] - ratio["median"]


def roofline() -> Figure:
    """Draw what the machine can do by arithmetic intensity, and what layers do; one thread."""
    figure = new(WIDTH, 4.4)
    axes = figure.subplots()
    arithmetic, memory = product_rate(), memory_rate()
    reach = np.array([0.05, arithmetic / memory, 1000])
    axes.plot(reach, np.minimum(arithmetic, memory * reach), color="#111111", linewidth=2)
    axes.text(0.9, 1.3 * memory, "limited by memory", color=GREY, fontsize=9, ha="right")
    axes.text(900, 0.42 * arithmetic, "limited by arithmetic", color=GREY, fontsize=9, ha="right", va="top")
    case = row("memory", contestant="LeakyReLU", threads=1)["case"]
    convolution = row("memory", contestant="im2col", threads=1)
    batch, side, channels = (int(word.strip(" ²")) for word in case.split(",")[0].split("×"))
    numbers = batch * side**2 * channels
    places = ((10, -4), (5, -16), (10, -4))
    for index, (kind, (operations, size)) in enumerate(ELEMENTWISE.items()):
        rate = 1e-6 * operations * numbers / row("memory", contestant=kind, threads=1)["ms"]["median"]
        point(axes, operations / size, rate, kind, index, places[index])
    intensity = 1e9 * convolution["gflop"] / (8 * numbers + 4 * 9 * channels**2)
    point(axes, intensity, convolution["gflops"], "convolution, im2col", 3, (-10, -8))
    winograd = row("memory", contestant="winograd", threads=1)["gflops"]
    point(axes, intensity, winograd, "by Winograd's, which has fewer to do", 4, (-10, 3))
    axes.set(xscale="log", yscale="log", xlim=(0.05, 1000), ylim=(0.8, 4 * arithmetic))
    axes.set(xlabel="operations for each byte read or written", ylabel="10⁹ operations a second (GFLOP/s)")
    plain_logs(axes, "x", "y")
    axes.grid(alpha=0.3)
    circumstances(axes)
    return figure


def point(axes: Axes, x: float, y: float, name: str, index: int, place: tuple[float, float]) -> None:
    """Draw a point and its name, so many points beside it."""
    axes.plot([x], [y], MARKERS[index], color=INKS[index], markersize=8)
    side = "left" if place[0] > 0 else "right"
    axes.annotate(name, (x, y), place, textcoords="offset points", fontsize=9, color=INKS[index], ha=side)


def staircase() -> Figure:
    """Draw the rate of copies against the size of the array."""
    call, *sizes = copied()
    nothing = call["ms"]["median"] / 1000  # seconds of a call that copies one byte
    names = [one["array_bytes"] for one in sizes]
    moved = np.array([one["moved_bytes"] for one in sizes])
    seconds = np.array([one["ms"]["median"] / 1000 for one in sizes])
    figure = new(WIDTH, 3.6)
    axes = figure.subplots()
    axes.plot(names, 1e-9 * moved / seconds, label="as measured", **style(0))
    axes.plot(names, 1e-9 * moved / (seconds - nothing), label="without the price of the call", **style(2))
    axes.set(xscale="log", ylim=(0, None), xlabel="size of the array", ylabel="GB/s, read and written")
    byte_ticks(axes, min(names), max(names))
    axes.grid(alpha=0.3)
    axes.legend(title="np.copyto, one thread", fontsize=9, title_fontsize=9)
    circumstances(axes)
    return figure


def slices() -> Figure:
    """Draw time and working memory against the size of a slice."""
    cases = list(dict.fromkeys(one["case"] for one in rows("slices")))
    figure = new(WIDTH, 7.4)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.35, 1))
    for index, case in enumerate(cases):
        of_case = sorted(rows("slices", case=case, phase=BOTH), key=lambda one: one["slice_bytes"])
        sizes = [one["slice_bytes"] for one in of_case]
        ratios = [one["time"] for one in of_case]
        upper.plot(sizes, [ratio["median"] for ratio in ratios], label=case, **style(index))
        low, high = ([ratio[key] for ratio in ratios] for key in ("min", "max"))
        upper.fill_between(sizes, low, high, color=INKS[index], alpha=0.08, linewidth=0)
        forward = sorted(rows("slices", case=case, phase="forward"), key=lambda one: one["slice_bytes"])
        lower.plot(sizes, [max(1e4, one["working_bytes"]) / 1e6 for one in forward], **style(index))
    usual = row("slices", phase=BOTH)["against"]
    default = row("slices", contestant=usual)["slice_bytes"]
    for axes in (upper, lower):
        axes.axvline(default, color=GREY, linewidth=1, linestyle=":")
        axes.set(xscale="log", xlabel="size of a slice")
        byte_ticks(axes, min(sizes), max(sizes))
        axes.grid(alpha=0.3)
    upper.axhline(1, color=GREY, linewidth=0.8)
    upper.set(yscale="log", ylim=(0.7, 6), ylabel=f"time, forward and back, to that at {usual}")
    upper.yaxis.set_major_locator(FixedLocator([0.7, 1, 1.5, 2, 3, 4, 6]))
    plain_logs(upper, "y")
    lower.set(yscale="log", ylabel="MB to work in, forward, one thread")
    plain_logs(lower, "y")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    circumstances(upper)
    return figure


def threads() -> Figure:
    """Draw how many times as fast all threads are, and what Amdahl's law makes of it for more."""
    count, found = most_threads(), speed_ups()
    figure = new(WIDTH, 6.6)
    upper, lower = figure.subplots(2, 1)
    names = list(found)
    medians = [ratio[0] for ratio in found.values()]
    errors = np.array([(median - low, high - median) for median, low, high in found.values()]).T
    shades = ["white" if name == "copy" else "#444444" if name.startswith("resnet") else "#bbbbbb" for name in names]
    upper.barh(names, medians, xerr=errors, color=shades, edgecolor="black", linewidth=0.7, capsize=2)
    upper.axvline(count, color=INKS[1], linestyle="--", linewidth=1)
    upper.axvline(1, color=GREY, linewidth=1)
    upper.invert_yaxis()
    upper.set(xlim=(0, count + 0.3), xlabel=f"speed with {count} threads to speed with 1")
    more = np.arange(1, 17)
    lower.plot(more, more, color=INKS[1], linestyle="--", linewidth=1, label="all of it shared out")
    wanted = ["winograd", "resnet18", "MaxPool2d"]
    for index, name in enumerate(one for one in wanted if one in found):
        p = share_in_threads(found[name][0], count) if count > 1 else 1.0
        look = style((0, 2, 4)[index])
        lower.plot(more, 1 / (1 - p + p / more), markevery=5, label=f"{name}: p = {p:.2f}", **look)
    lower.set(xlabel="threads, by Amdahl's law", ylabel="speed to that of 1 thread", xlim=(1, 16), ylim=(1, 9))
    lower.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 12, 16]))
    lower.legend(fontsize=8.5, loc="upper left")
    lower.grid(alpha=0.3)
    circumstances(upper)
    return figure


def tiles() -> Figure:
    """Draw two tiles of inputs that overlap, the outputs that they give, and the steps between."""
    figure = new(WIDTH, 3.9)
    axes = figure.subplots()
    axes.set(xlim=(-0.3, 24.3), ylim=(-7.4, 9.6), aspect="equal")
    axes.axis("off")
    cells(axes, 0, 1, 10, 6)
    cells(axes, 16, 2, 8, 4)
    for at, (colour, line) in enumerate(((INKS[1], "-"), (INKS[2], "--"))):
        shift = 4 * at
        look = {"fill": False, "edgecolor": colour, "linestyle": line, "linewidth": 2.4}
        axes.add_patch(Rectangle((shift + 0.06, 1.06), 5.88, 5.88, **look))
        axes.add_patch(Rectangle((16 + shift + 0.06, 2.06), 3.88, 3.88, **look))
    axes.add_patch(Rectangle((4, 1), 2, 6, facecolor="#dddddd", zorder=0))
    axes.text(5, 7.3, "two tiles of 6 × 6 inputs,\na channel", ha="center", va="bottom", fontsize=9)
    axes.text(20, 6.3, "their 4 × 4 outputs,\na filter", ha="center", va="bottom", fontsize=9)
    axes.text(5, 0.5, "they share two columns", ha="center", va="top", fontsize=8, color=GREY)
    axes.annotate("", (15.5, 4), (10.5, 4), arrowprops={"arrowstyle": "-|>", "color": "#111111", "linewidth": 1})
    steps = (
        ("transform", "V = Bᵀ d B", "36 numbers a tile and channel"),
        ("multiply, add up", "M = Σ over channels of U ⊙ V", "36 numbers a tile and filter"),
        ("transform back", "Y = Aᵀ M A", "16 numbers a tile and filter"),
    )
    for number, (name, words, size) in enumerate(steps):
        y = -1.9 - 1.5 * number
        axes.text(0, y, f"{number + 1}. {name}", va="center", fontsize=8.5)
        axes.text(6.2, y, words, va="center", fontsize=8.5)
        axes.text(24.3, y, size, ha="right", va="center", fontsize=7.5, color=GREY)
    axes.text(6.2, -6.6, "with U = G g Gᵀ, once a batch", va="center", fontsize=8.5, color=GREY)
    return figure


def cells(axes: Axes, left: float, bottom: float, columns: int, lines: int) -> None:
    """Draw a grid of squares."""
    for x in range(columns):
        for y in range(lines):
            axes.add_patch(Rectangle((left + x, bottom + y), 1, 1, fill=False, edgecolor="#bbbbbb", linewidth=0.6))


def algorithms() -> Figure:
    """Draw the time of Winograd's algorithm to im2col's by shape, and what a layer chooses."""
    figure = new(WIDTH, 7.6)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    batches = sorted({one["shape"][0] for one in rows("algorithms")}, reverse=True)
    channels = sorted({one["shape"][2] for one in rows("algorithms")})
    for axes, batch in zip(panels, batches, strict=True):
        for index, (side, ratios) in enumerate(sorted(chosen_ratios(batch).items(), reverse=True)):
            look = {"color": INKS[index], "linestyle": LINES[index]}
            nudge = 1.05 ** (index - 1.5)  # side by side where they would hide each other
            places = [nudge * one for one, _, _ in ratios]
            medians = [ratio["median"] for _, ratio, _ in ratios]
            axes.plot(places, medians, label=f"{side} × {side}", linewidth=1.3, **look)
            for place, (_, ratio, chosen) in zip(places, ratios, strict=True):
                axes.plot([place, place], [ratio["min"], ratio["max"]], color=INKS[index], linewidth=0.8)
                fill = INKS[index] if chosen else "white"
                axes.plot([place], [ratio["median"]], MARKERS[index], color=INKS[index], markerfacecolor=fill)
        smooth = np.geomspace(min(channels), max(channels), 60)
        label = "multiply-adds, counted"
        axes.plot(smooth, [counted_ratio(c) for c in smooth], color=GREY, linewidth=2.5, alpha=0.5, label=label)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=f"{batch} pictures")
        axes.set_ylabel("time of Winograd's to im2col's")
        axes.xaxis.set_major_locator(FixedLocator(channels))
        axes.yaxis.set_major_locator(FixedLocator([0.25, 0.5, 0.7, 1, 1.4, 2, 2.8, 4]))
        plain_logs(axes, "x", "y")
        axes.grid(alpha=0.3)
    panels[1].set_xlabel("channels, in and out")
    panels[1].plot([], [], "o", color=GREY, label="filled: Winograd is chosen")
    panels[1].plot([], [], "o", color=GREY, markerfacecolor="white", label="hollow: im2col is chosen")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)
    circumstances(panels[0])
    return figure


def scatter() -> Figure:
    """Draw ways to add up patches, and the two ways to an input gradient."""
    figure = new(WIDTH, 6.6)
    upper, lower = figure.subplots(2, 1)
    adding = rows("scatter", phase="add up")
    base = adding[0]["against"]
    names = [one["contestant"] for one in adding]
    ratios = [one["time"] for one in adding]
    errors = np.array([distances(ratio) for ratio in ratios]).T
    look = {"color": "#bbbbbb", "edgecolor": "black", "linewidth": 0.7, "capsize": 2}
    upper.bar(names, [ratio["median"] for ratio in ratios], yerr=errors, **look)
    upper.axhline(1, color=GREY, linewidth=0.8)
    upper.set(ylabel=f"time to that of {base}", title="adding up patches")
    turned = rows("scatter", phase="backward", contestant="turned kernel")
    for index, batch in enumerate(sorted({one["shape"][0] for one in turned}, reverse=True)):
        some = [one for one in turned if one["shape"][0] == batch]
        places = np.arange(len(some)) + 0.12 * (index - 0.5)
        medians = [one["time"]["median"] for one in some]
        reach = [
            (one["time"]["median"] - one["time"]["min"], one["time"]["max"] - one["time"]["median"]) for one in some
        ]
        shape = {"color": INKS[2 * index], "marker": MARKERS[index], "linestyle": "none", "capsize": 2, "zorder": 3}
        lower.errorbar(places, medians, yerr=np.array(reach).T, linewidth=0.9, label=f"{batch} pictures", **shape)
        for place, median, one in zip(places, medians, some, strict=True):
            if not one["chosen"]:
                lower.plot([place], [median], MARKERS[index], color=INKS[2 * index], markerfacecolor="white", zorder=4)
    stages = [f"{side}² × {c}" for _, side, c in (one["shape"] for one in some)]
    lower.set_xticks(range(len(stages)), stages)
    lower.axhline(1, color=GREY, linewidth=0.8)
    lower.set(yscale="log", ylabel="time, turned kernel to scatter", title="input gradient (hollow: scatter is chosen)")
    lower.yaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 0.7, 1, 1.4, 2, 4]))
    plain_logs(lower, "y")
    lower.grid(alpha=0.3)
    lower.legend(fontsize=8.5, loc="upper left")
    circumstances(upper)
    return figure


def layers() -> Figure:
    """Draw our speed to PyTorch's, layer by layer."""
    found = of_layers()
    names = list(dict.fromkeys(one["layer"] for one in found))
    winograd = {one["layer"] for one in found if one["algorithm"] == "winograd"}
    figure = new(WIDTH, 6.0)
    axes = figure.subplots()
    for index, phase in enumerate(("forward", "backward")):
        some = {one["layer"]: one["speed"] for one in found if one["phase"] == phase}
        places = [names.index(name) + 0.2 * (2 * index - 1) for name in some]
        medians = [speed["median"] for speed in some.values()]
        reach = [distances(speed) for speed in some.values()]
        look = {"color": INKS[2 * index], "marker": MARKERS[index], "linestyle": "none", "capsize": 2}
        axes.errorbar(medians, places, xerr=np.array(reach).T, linewidth=0.9, label=phase, **look)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_yticks(
        range(len(names)), [f"{name}{' (Winograd)' if name in winograd else ''}" for name in names], fontsize=8
    )
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="speed, ours to PyTorch's")
    axes.xaxis.set_major_locator(FixedLocator([0.25, 0.35, 0.5, 0.7, 1, 1.4, 2]))
    plain_logs(axes, "x")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower left")
    circumstances(axes, "layers")
    return figure


def step_seconds(batch: int, size: int) -> float:
    """Return the median seconds of a training step of ours."""
    for case in report("step")["cases"]:
        if (case["kind"], case["batch"], case["size"]) == ("step", batch, size):
            return statistics.median(case["contestants"]["ours"]["seconds"])
    raise LookupError(f"expected a training step of {batch} × {size}² in step.json")


FIGURES = {
    "fast-roofline": roofline,
    "fast-staircase": staircase,
    "fast-slices": slices,
    "fast-threads": threads,
    "fast-tiles": tiles,
    "fast-algorithms": algorithms,
    "fast-scatter": scatter,
    "fast-layers": layers,
}
