"""A residual net as a bundle of paths, and which of them carry the gradient.

Claim: a residual net of n blocks is an ensemble of 2ⁿ paths, and nearly all of the gradient comes through the short
ones (Veit, Wilber and Belongie 2016, arXiv 1605.06431, sections 3 and 5, figures 1 and 6).

Criterion: in every trained network, (1) the gradient falls exponentially with a path's length: the correlation of the
length with the logarithm of the mean norm is below -0.9; and (2) the mean length of all paths, each weighted with its
gradient, is below n/3, while unweighted it is n/2. That is so where each further block leaves a path less than half of
its gradient; with Veit et al.'s 54 blocks nearly all comes from 5 to 17.

A path's length is the number of blocks it enters by the branch. Its gradient: forward through the whole network, then
backward through the branch only of these blocks and through the shortcut only of the others. The norm is that of the
mean cross-entropy's gradient by the input of the first block, over one batch of test pictures, with batch norm's
running statistics. (Veit et al. take random batches of the training set.) Shares of all paths add up to the gradient,
which a test shows; their norms add up to more, since paths point in different directions.

Which lengths carry 95 % of the gradient is reported, too: number of paths × mean norm, the largest of these products
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nn.backend import array_module
from resnet.data import Faces
from resnet.data.batches import to_network_input
from resnet.experiments import degradation, figures
from resnet.experiments.harness import Cell, Lab, Result, markdown
from resnet.experiments.surgery import path_counts, path_gradients, subsets
from resnet.experiments.trainings import part
from resnet.training import Training

NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
BLOCKS = {"resnet20": 9, "resnet56": 27}
STRAIGHT = -0.9  # correlation of length and logarithm of the gradient
CARRIED = 0.95  # of the gradient


@dataclass(frozen=True)
class Settings:
    """How thoroughly.

    Attributes:
        preset: of the experiment ``degradation``, whose trainings these are.
        minutes: expected on 2 cores, with trainings.
        seeds: of the networks.
        draws: by network, how many paths of each length; all where there are no more.
        pictures: in the batch.
    """

    preset: str
    minutes: float
    seeds: tuple[int, ...]
    draws: dict[str, int]
    pictures: int


SEEDS = {name: tuple(range(shared.seeds)) for name, shared in degradation.PRESETS.items()}
PRESETS = {
    "quick": Settings("quick", 3, SEEDS["quick"], {"resnet20": 20}, 50),
    "full": Settings("full", 35, SEEDS["full"], {"resnet20": 126, "resnet56": 12}, 100),
}


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """A cell a network and length."""
    return [
        _cell(settings, lab, arch, seed, length)
        for seed in settings.seeds
        for arch in settings.draws
        for length in range(BLOCKS[arch] + 1)
    ]


def _cell(settings: Settings, lab: Lab, arch: str, seed: int, length: int) -> Cell:
    shared, draws = degradation.PRESETS[settings.preset], settings.draws[arch]
    facts = {"arch": arch, "seed": seed, "length": length, "draws": draws, "pictures": settings.pictures}
    facts |= {name: value for name, value in vars(shared).items() if name.startswith("cifar")}

    def work() -> Result:
        task = degradation.cifar_task(lab, shared, arch, seed)
        lab.train(task.training)
        batch = part(task.tests["clean"], settings.pictures)
        return measure(task.training, batch, length, draws, np.random.default_rng([seed, length]))

    name, cost = f"{arch}/seed {seed}/length {length}", float(BLOCKS[arch])
    return Cell(name, work, facts, cost, ("cifar10",))


def measure(training: Training, batch: Faces, length: int, most: int, rng: np.random.Generator) -> Result:
    """Measure the gradient that comes through random paths of one length.

    Returns:
        how many such paths the network has, those drawn, and the norm of the gradient through each.
    """
    model = training.model
    counts, xp = path_counts(model), array_module(model.fc.weight.data)
    paths = subsets(len(counts) - 1, length, most, rng)
    x = xp.asarray(to_network_input(batch.pictures, training.mean, training.std))  # (N, H, W, C)
    with training.trainer.circumstances(x.shape):
        norms = [float(xp.linalg.norm(g)) for g in path_gradients(model, x, batch.labels, paths)]
    return {"length": length, "count": counts[length], "paths": paths, "norms": norms}


# What came out


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Judge each network."""
    nets = {}
    for arch in settings.draws:
        lengths = range(BLOCKS[arch] + 1)
        runs = [[results[f"{arch}/seed {seed}/length {k}"] for k in lengths] for seed in settings.seeds]
        nets[arch] = [profile(run) for run in runs]
    verdicts = {arch: all(_as_claimed(net) for net in some) for arch, some in nets.items()}
    plain = "; ".join(f"{NAMES[arch]} {'meets' if met else 'does not meet'} it" for arch, met in verdicts.items())
    return {
        "holds": all(verdicts.values()),
        "finding": " ".join([*[_sentence(arch, some) for arch, some in nets.items()], f"The criterion: {plain}."]),
        "nets": nets,
    }


def _as_claimed(net: Result) -> bool:
    """Whether a network's gradient falls exponentially with the length, and comes through paths shorter than n/3."""
    return bool(net["correlation"] < STRAIGHT and net["mean_length"] < _third(net))


def profile(run: Sequence[Result]) -> Result:
    """Return what one network's cells say together.

    Args:
        run: results of the cells, length by length from 0 to n.

    Returns:
        by length k: number of paths, mean norm, share of the gradient; the fit start · factorᵏ and the correlation; the
        mean length weighted by gradient; the lengths that carry 95 % of it, and the share of all paths they are.
    """
    counts = [cell["count"] for cell in run]
    norms = np.array([np.mean(cell["norms"]) for cell in run])  # (n + 1,)
    carried = np.array(counts, float) * norms
    shares = carried / carried.sum()
    lengths, carriers = np.arange(len(run)), carrying(shares)
    fitted, logarithms = lengths[norms > 0], np.log10(norms[norms > 0])  # a dead branch lets nothing through
    slope, offset = np.polyfit(fitted, logarithms, 1)
    return {
        "counts": counts,
        "norms": norms.tolist(),
        "shares": shares.tolist(),
        "factor": float(10**slope),
        "start": float(10**offset),
        "correlation": float(np.corrcoef(fitted, logarithms)[0, 1]),
        "mean_length": float(shares @ lengths),
        "carriers": carriers,
        "share_of_paths": sum(counts[length] for length in carriers) / sum(counts),
    }


def carrying(shares: ArrayLike) -> list[int]:
    """Return the lengths, ascending, that carry 95 % of the gradient, as few as will do; shares add up to 1."""
    order = np.argsort(shares)[::-1]
    enough = int(np.searchsorted(np.cumsum(np.asarray(shares)[order]), CARRIED)) + 1
    return sorted(order[:enough].tolist())


def _third(net: Result) -> float:
    return (len(net["counts"]) - 1) / 3


def _mean(some: list[Result], name: str) -> float:
    return float(np.mean([net[name] for net in some]))


def _sentence(arch: str, some: list[Result]) -> str:
    n = len(some[0]["counts"]) - 1
    least, most = min(min(net["carriers"]) for net in some), max(max(net["carriers"]) for net in some)
    correlations = " and ".join(f"{net['correlation']:.3f}" for net in some)
    return (
        f"{NAMES[arch]} (n = {n} blocks, {sum(some[0]['counts']):,} paths; trainings: {len(some)}): each further block "
        f"multiplies a path's gradient by {_mean(some, 'factor'):.2f} (correlation of length and logarithm "
        f"{correlations}); the mean length weighted by gradient is {_mean(some, 'mean_length'):.1f}, against "
        f"n/2 = {n / 2:g} of all paths; {100 * CARRIED:.0f} % of the gradient comes through lengths {least} to {most}, "
        f"{100 * _mean(some, 'share_of_paths'):.2g} % of all paths."
    )


def table(report: Result) -> str:
    """Return the fit and the lengths that carry the gradient, a row a training."""
    header = ("network", "blocks", "paths", "factor a block", "correlation", "mean length", "weighted with gradient")
    rows = [[NAMES[arch], *_row(net)] for arch, some in report["nets"].items() for net in some]
    return markdown((*header, "lengths that carry 95 %", "their share of the paths"), rows)


def _row(net: Result) -> list[str]:
    n, carriers = len(net["counts"]) - 1, net["carriers"]
    return [
        str(n),
        f"{sum(net['counts']):,}",
        f"{net['factor']:.2f}",
        f"{net['correlation']:.3f}",
        f"{n / 2:g}",
        f"{net['mean_length']:.1f}",
        f"{carriers[0]} to {carriers[-1]}",
        f"{100 * net['share_of_paths']:.2g} %",
    ]


# Figures


def draw(report: Result) -> dict[str, Figure]:
    """Draw three blocks unravelled (Veit's figure 1), and lengths and gradients of paths (figure 6)."""
    return {"unravelled": draw_unravelled(3), "gradient": _draw_gradient(report)}


def draw_unravelled(n: int) -> Figure:
    """Draw n blocks as a plain net, as a residual net, and as the 2ⁿ paths that the residual net is made of.

    After block i there are 2ⁿ⁻ⁱ bundles of 2ⁱ paths each. Where two bundles meet, one has gone by block i's shortcut
    and one through its branch fᵢ, which so is drawn 2ⁿ⁻ⁱ times. The activations behind the additions are left out.
    """
    figure = figures.new(3.2 * n + 0.5, 0.55 * 2**n + 2.4)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[0.7, 1, 0.55 * 2**n])
    _draw_chain(top, n, shortcuts=False)
    _draw_chain(middle, n, shortcuts=True)
    _draw_paths(bottom, n)
    top.set_title(f"{n} plain blocks: 1 path, length {n}", fontsize=10, loc="left")
    middle.set_title(f"{n} residual blocks", fontsize=10, loc="left")
    bottom.set_title(f"the same {n} residual blocks, unravelled: $2^{{{n}}}$ = {2**n} paths", fontsize=10, loc="left")
    for axes in (top, middle, bottom):
        axes.set_xlim(-0.9, 2 * n + 1.6)
        axes.axis("off")
    return figure


def _draw_chain(axes: Axes, n: int, *, shortcuts: bool) -> None:
    for block in range(1, n + 1):
        _line(axes, [(2 * block - 2, 0), (2 * block, 0)])
        if shortcuts:
            _line(axes, [(2 * block - 1.75, 0), (2 * block - 1.75, 0.8), (2 * block, 0.8), (2 * block, 0)])
            _node(axes, 2 * block, 0)
        _box(axes, 2 * block - 1, 0, block)
    _ends(axes, n, 0, 0)
    axes.set_ylim(-0.6, 1.2 if shortcuts else 0.6)


def _draw_paths(axes: Axes, n: int) -> None:
    paths = list(product((0, 1), repeat=n))  # (b_n, …, b_1): whether the path enters each block; b_1 changes fastest
    rows = {path: len(paths) - 1 - number for number, path in enumerate(paths)}
    start = (len(paths) - 1) / 2
    for path, row in rows.items():
        _line(axes, [(-0.35, start), (0, row)])
        names = " ".join(f"$f_{block}$" for block in range(1, n + 1) if path[n - block])
        axes.text(0.03, row + 0.1, f"length {sum(path)}: {names or 'shortcuts only'}", fontsize=7, va="bottom")
    height = {path: float(row) for path, row in rows.items()}  # of the bundles not yet past block i, by (b_n, …, b_i)
    for block in range(1, n + 1):
        met = {}
        for bundle in product((0, 1), repeat=n - block):
            by_shortcut, by_branch = height[*bundle, 0], height[*bundle, 1]
            met[bundle] = (by_shortcut + by_branch) / 2
            for way in (by_shortcut, by_branch):
                _line(axes, [(2 * block - 2, way), (2 * block - 0.3, way), (2 * block, met[bundle])])
            _box(axes, 2 * block - 1, by_branch, block)
            _node(axes, 2 * block, met[bundle])
        height = met
    _ends(axes, n, start, height[()])
    axes.set_ylim(-0.7, len(paths) - 0.3)


def _line(axes: Axes, points: list[tuple[float, float]]) -> None:
    axes.plot(*zip(*points, strict=True), color="black", linewidth=1, zorder=1, solid_joinstyle="round")


def _box(axes: Axes, x: float, y: float, block: int) -> None:
    shade = {"boxstyle": "square,pad=0.35", "facecolor": str(1 - 0.12 * block), "edgecolor": "black"}
    axes.text(x, y, f"$f_{block}$", ha="center", va="center", bbox=shade, zorder=3, fontsize=10)


def _node(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", markersize=11, color="white", markeredgecolor="black", zorder=2)
    axes.plot([x], [y], marker="+", markersize=7, color="black", zorder=3)


def _ends(axes: Axes, n: int, start: float, end: float) -> None:
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (2 * n + 0.7, end), (2 * n, end), arrowprops=arrow, zorder=1)
    _line(axes, [(-0.6, start), (-0.35 if start else 0, start)])
    axes.text(-0.65, start, "input", ha="right", va="center", fontsize=9)
    axes.text(2 * n + 0.75, end, "output", ha="left", va="center", fontsize=9)


def _draw_gradient(report: Result) -> Figure:
    nets = report["nets"]
    figure = figures.new(11, 3.4 * len(nets) + 0.3)
    for row, (arch, some) in zip(figure.subplots(len(nets), 3, squeeze=False), nets.items(), strict=True):
        cells = [c["result"] for name, c in report["cells"].items() if name.startswith(f"{arch}/")]
        _draw_counts(row[0], arch, some)
        _draw_norms(row[1], some, cells)
        _draw_shares(row[2], some)
        for axes in row:
            axes.set_xlabel("path length (blocks entered by the branch)")
            axes.set_title(axes.get_title(), fontsize=10)
            axes.grid(alpha=0.3)
    settings = report["settings"]
    figure.suptitle(
        f"CIFAR-10, a batch of {settings['pictures']} test pictures; trainings: n = {len(settings['seeds'])}",
        fontsize=9,
    )
    return figure


def _draw_counts(axes: Axes, arch: str, some: list[Result]) -> None:
    counts = some[0]["counts"]
    axes.bar(range(len(counts)), counts, color="0.75", edgecolor="black", linewidth=0.6)
    axes.axvline((len(counts) - 1) / 2, color="black", linestyle="--", linewidth=1, label="n/2")
    axes.set(title=f"{NAMES[arch]}: {sum(counts):,} paths", ylabel="number of paths")
    axes.legend(fontsize=7)


def _draw_norms(axes: Axes, some: list[Result], cells: list[Result]) -> None:
    for cell in cells:
        axes.scatter([cell["length"]] * len(cell["norms"]), cell["norms"], s=5, color="0.6", zorder=1)
    lengths = np.arange(len(some[0]["norms"]))
    for index, net in enumerate(some):
        look = figures.style(index)
        axes.plot(lengths, net["norms"], label=f"mean, training {index + 1}", **look | {"linestyle": "none"}, zorder=3)
        label = f"fit: × {net['factor']:.2f} a block, r = {net['correlation']:.3f}"
        line = {"color": look["color"], "linestyle": look["linestyle"]}
        axes.plot(lengths, net["start"] * net["factor"] ** lengths, label=label, linewidth=1, zorder=2, **line)
    axes.set(yscale="log", title="gradient through one path (grey: each drawn)", ylabel="norm of the gradient")
    axes.legend(fontsize=7)


def _draw_shares(axes: Axes, some: list[Result]) -> None:
    shares = 100 * np.array([net["shares"] for net in some])  # (trainings, n + 1)
    mean, lengths = shares.mean(axis=0), np.arange(shares.shape[1])
    reach = (mean - shares.min(axis=0), shares.max(axis=0) - mean)
    carriers = carrying(mean / 100)
    look: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6, "capsize": 2}
    colors = ["0.35" if length in carriers else "0.9" for length in lengths]
    axes.bar(lengths, mean, yerr=reach, color=colors, **look)
    for divisor, line in ((2, "--"), (3, ":")):
        axes.axvline((len(lengths) - 1) / divisor, color="black", linestyle=line, linewidth=1, label=f"n/{divisor}")
    axes.set(title="number × mean gradient (dark: 95 %)", ylabel="share of the gradient (%)")
    axes.legend(fontsize=7)
