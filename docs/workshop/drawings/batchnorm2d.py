"""Figures of the chapter on batch norm; everything that is drawn is computed here by the library's own layers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch
from numpy.typing import NDArray

from nn import BatchNorm2d, Conv2d, LeakyReLU, Sequential
from nn.batchnorm import batchnorm2d_backward, batchnorm2d_forward
from resnet.experiments.figures import INKS, new, style

Array = NDArray[Any]
INK, RED, BLUE, GREY = INKS[:4]

# A deep stack at the start of training


class Sizes(NamedTuple):
    """Standard deviations along a stack of layers, in the order of the layers."""

    forward: list[float]  # of what comes into each activation
    backward: list[float]  # of the gradient by each convolution's input


@cache
def through_a_stack(scale: float, norm: bool, depth: int = 30, seed: int = 0) -> Sizes:
    """Send random numbers forward and back through fresh convolutions, each with its LeakyReLU.

    Args:
        scale: by which the initial weights are larger than He's.
        norm: whether there is a batch norm behind each convolution.
        depth: convolutions.
        seed: of weights, input and upstream gradient.
    """
    rng = np.random.default_rng(seed)
    modules = []
    for _ in range(depth):
        conv = Conv2d(16, 16, 3, padding=1, bias=False, rng=rng)
        conv.weight.data *= scale
        modules += [conv, BatchNorm2d(16), LeakyReLU()] if norm else [conv, LeakyReLU()]
    stack = Sequential(*modules).astype(np.float64).train()
    x, sizes = rng.normal(size=(8, 10, 10, 16)), Sizes([], [])
    for _, module in stack.children():
        if isinstance(module, LeakyReLU):
            sizes.forward.append(float(x.std()))
        x = module(x)
    dy = rng.normal(size=x.shape)
    for _, module in reversed(list(stack.children())):
        dy = module.backward(dy)
        if isinstance(module, Conv2d):
            sizes.backward.insert(0, float(dy.std()))
    return sizes


def depth() -> Figure:
    """Sizes forward and back, without and with batch norm, for three scales of the initial weights."""
    figure = new(6.2, 3.9)
    left, right = figure.subplots(1, 2, sharey=True)
    cases = [(0.8, False, "× 0.8"), (1.0, False, "× 1"), (1.25, False, "× 1.25"), (1.0, True, "batch norm")]
    for index, (scale, norm, name) in enumerate(cases):
        sizes = through_a_stack(scale, norm)
        layers = range(1, len(sizes.forward) + 1)
        for axes, values in ((left, sizes.forward), (right, sizes.backward)):
            look = style(index) | {"linewidth": 2.4 if norm else 1.4}
            axes.plot(layers, values, markevery=4, label=name, **look)
    left.set(title="forward: values", ylabel="standard deviation", yscale="log")
    right.set(title="backward: gradients")
    for axes in (left, right):
        axes.set_xlabel("layer")
        axes.grid(alpha=0.3)
    left.legend(title="initial weights", fontsize=9, title_fontsize=9)
    return figure


# Two channels, before and after


def two_channels() -> tuple[Array, Array, Array]:
    """Return two channels of a convolution of smooth random pictures: x, x̂ and y, (M, 2) each."""
    rng = np.random.default_rng(3)
    noise = np.fft.fft2(rng.normal(size=(2, 16, 16, 3)), axes=(1, 2))
    rows, columns = np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij")
    smooth = np.fft.ifft2(noise / (0.05 + np.hypot(rows, columns))[:, :, None], axes=(1, 2)).real
    pictures = 1 + smooth / smooth.std()
    conv = Conv2d(3, 2, 3, bias=False).astype(np.float64)
    conv.weight.data[:] = 0
    conv.weight.data[1, 1, :, 0] = 0.9  # brightness: large, and far from 0
    conv.weight.data[1, 1, :, 1], conv.weight.data[1, 0, :, 1] = 0.45, -0.25  # brightness and an upright edge
    x = conv(pictures)
    x_hat, _, _, _ = batchnorm2d_forward(x, np.ones(2), np.zeros(2))
    y, _, _, _ = batchnorm2d_forward(x, np.array([0.6, 1.5]), np.array([1.0, -1.5]))
    return x.reshape(-1, 2), x_hat.reshape(-1, 2), y.reshape(-1, 2)


def _cloud(axes: Axes, points: Array, title: str) -> None:
    """Draw points, and the ellipse of two standard deviations."""
    axes.plot(*points.T, "o", color=GREY, markersize=1.6, alpha=0.7)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    width, height = 4 * np.sqrt(values[::-1])
    axes.add_patch(Ellipse(points.mean(axis=0), width, height, angle=angle, fill=False, color=RED, linewidth=1.8))
    axes.plot(*points.mean(axis=0), "+", color=RED, markersize=10, markeredgewidth=2)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set(title=title, xlabel="channel 1", aspect="equal")


def before_after() -> Figure:
    """Two channels of a convolution: as they come, normalised, and after γ and β."""
    figure = new(6.2, 2.7)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    titles = ("x", "x̂, normalised", "y = γ·x̂ + β")
    for axes, points, title in zip(panels, two_channels(), titles, strict=True):
        _cloud(axes, points, title)
    panels[0].set(ylabel="channel 2", xlim=(-3.5, 8.5))
    return figure


# The stages, forward and back

X, DY, GAMMA, BETA = np.array([1.0, 7.0, 9.0, 15.0]), np.array([1.0, 0.0, 0.0, 0.0]), 10.0, 20.0


def _words(values: Array | float) -> str:
    """Return "(1, 7, 9, 15)" or "8"."""
    numbers = [f"{value:.4g}".replace("-", "−") for value in np.atleast_1d(np.round(values, 10) + 0.0)]
    return numbers[0] if len(numbers) == 1 else f"({', '.join(numbers)})"


def stages() -> Figure:
    """The seven arrays of forward, and on the arrows what comes back."""
    m = X.size
    mean = X.mean()
    u = X - mean
    variance = (u**2).mean()
    r = 1 / np.sqrt(variance)
    x_hat = u * r
    dx_hat = DY * GAMMA
    du_direct, dr = dx_hat * r, (dx_hat * u).sum()
    dvariance = dr * -0.5 * r**3
    du_variance = dvariance * 2 * u / m
    du = du_direct + du_variance
    dmean = -du.sum()
    dx_mean = np.full(m, dmean / m)
    boxes = {  # place, width, forward, back
        "x": (0.26, 6, 0.52, f"x = {_words(X)}", f"dx = {_words(du + dx_mean)}"),
        "mean": (0.84, 5, 0.32, f"μ = {_words(mean)}", f"dμ = {_words(dmean)}"),
        "u": (0.26, 4, 0.52, f"u = x − μ = {_words(u)}", f"du = {_words(du)}"),
        "v": (0.84, 3, 0.32, f"v = mean(u²) = {_words(variance)}", f"dv = {_words(dvariance)}"),
        "r": (0.84, 2, 0.32, f"r = 1/√v = {_words(r)}", f"dr = {_words(dr)}"),
        "x_hat": (0.26, 1, 0.52, f"x̂ = u·r = {_words(x_hat)}", f"dx̂ = {_words(dx_hat)}"),
        "y": (0.26, 0, 0.52, f"y = 10·x̂ + 20 = {_words(GAMMA * x_hat + BETA)}", f"dy = {_words(DY)}"),
    }
    arrows = [  # from, to, what comes back along it, its label's place
        ("x", "mean", _words(dx_mean), (0.66, 5.72)),
        ("x", "u", _words(du), (0.28, 5.0)),
        ("mean", "u", _words(dmean), (0.6, 4.4)),
        ("u", "v", _words(du_variance), (0.66, 3.72)),
        ("v", "r", _words(dvariance), (0.86, 2.5)),
        ("u", "x_hat", _words(du_direct), (0.28, 2.5)),
        ("r", "x_hat", _words(dr), (0.6, 1.4)),
        ("x_hat", "y", _words(dx_hat), (0.28, 0.5)),
    ]
    figure = new(6.2, 6.8)
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.06), ylim=(-0.4, 6.4))
    axes.axis("off")
    for start, end, back, label in arrows:
        (x0, y0, width0, *_), (x1, y1, width1, *_) = boxes[start], boxes[end]
        side = np.sign(x1 - x0)  # straight down, or from one column to the other
        tail = (x0 + side * width0 / 2, y0 - (0.33 if side == 0 else 0.1))
        head = (x1 - side * width1 / 2, y1 + (0.33 if side == 0 else 0.1))
        look = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 1}
        axes.annotate("", head, tail, arrowprops=look)
        axes.text(*label, f"↑ {back}", color=RED, fontsize=9.5, va="center", style="italic")
    for x, y, width, forward, back in boxes.values():
        corner, look = (x - width / 2 + 0.01, y - 0.3), {"facecolor": "white", "edgecolor": INK, "linewidth": 0.9}
        axes.add_patch(FancyBboxPatch(corner, width - 0.02, 0.6, boxstyle="round,pad=0.01", **look))
        axes.text(x, y + 0.13, forward, ha="center", va="center", fontsize=10)
        axes.text(x, y - 0.14, back, ha="center", va="center", fontsize=10, color=RED)
    return figure


# What the one line does: a projection


class Flat(NamedTuple):
    """Three values a channel, seen in the plane of numbers that add up to 0."""

    x_hat: Array  # (2,)
    dy: Array  # (2,) the upstream gradient without its mean
    along: Array  # (2,) its part along x̂
    kept: Array  # (2,) the rest, which is σ/γ·dx
    mean: float  # length of what the first step takes away


def projected() -> Flat:
    """Return x̂, dy and its parts for a channel of three values."""
    x, dy = np.array([1.0, 2.0, 6.0]), np.array([-0.6, 1.9, 2.1])
    x_hat, cache, _, variance = batchnorm2d_forward(x.reshape(3, 1, 1, 1), np.ones(1), np.zeros(1), 0.0)
    dx, _, _ = batchnorm2d_backward(dy.reshape(3, 1, 1, 1), cache)
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # at right angles, and both without mean
    flat = np.stack([plane @ x_hat.ravel(), plane @ dy, plane @ dx.ravel() * np.sqrt(variance[0])], axis=1)
    angle = np.radians(25) - np.arctan2(flat[1, 0], flat[0, 0])  # turned so that x̂ points to the right
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ flat
    return Flat(turned[:, 0], turned[:, 1], turned[:, 1] - turned[:, 2], turned[:, 2], float(dy.sum() / np.sqrt(3)))


def _arrow(
    axes: Axes, start: Array, step: Array, color: str, words: str, place: tuple[float, float], **look: Any
) -> None:
    """Draw an arrow and what it is."""
    axes.annotate(
        "", start + step, start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, **look}
    )
    axes.text(*(start + step / 2 + place), words, color=color, fontsize=9.5, ha="center", va="center")


def projection() -> Figure:
    """Dy loses its mean (above, the plane seen from its edge) and its part along x̂ (below, in the plane)."""
    flat = projected()
    figure = new(5.6, 7.4)
    upper, lower = figure.subplots(2, 1)
    origin, length = np.zeros(2), float(np.linalg.norm(flat.dy))
    foot, top = np.array([length, 0.0]), np.array([length, flat.mean])
    upper.axhline(0, color=GREY, linewidth=3, alpha=0.6)
    upper.text(-0.3, -0.3, "all numbers with mean 0:\na plane, seen from its edge", color=GREY, fontsize=9, va="top")
    upper.plot([0, 0], [-0.2, 3], color=GREY, linewidth=0.8, linestyle=":")
    upper.text(0.08, 2.85, "(1, 1, 1): all x moved together", color=GREY, fontsize=9, va="top")
    _arrow(upper, origin, top, INK, "dy", (-0.2, 0.15), linewidth=1.8)
    _arrow(upper, top, foot - top, RED, "−mean(dy)", (0.62, 0.0), linestyle="--")
    _arrow(upper, origin, foot, BLUE, "dy − mean(dy)", (0.0, 0.2), linewidth=1.8)
    upper.set(xlim=(-0.4, 3.4), ylim=(-1.0, 3.1), aspect="equal", title="first step")
    turn = np.linspace(0, 2 * np.pi, 200)
    lower.plot(*(np.sqrt(3) * np.array([np.cos(turn), np.sin(turn)])), color=GREY, linewidth=1.2)
    lower.text(0, -0.55, "all that x̂ can be:\na circle of radius √M", color=GREY, fontsize=9, ha="center", va="top")
    tip = flat.x_hat
    _arrow(lower, origin, tip, INK, "x̂", (-0.1, 0.25), linewidth=1.8)
    _arrow(lower, tip, flat.dy, BLUE, "dy − mean(dy)", (0.55, 0.42), linewidth=1.8)
    _arrow(lower, tip + flat.dy, -flat.along, RED, "−x̂·mean(dy·x̂)", (0.6, -0.38), linestyle="--")
    _arrow(lower, tip, flat.kept, INK, "σ/γ · dx", (-0.55, -0.1), linewidth=2.4)
    lower.set(xlim=(-1.95, 4.5), ylim=(-2.0, 2.4), aspect="equal", title="second step: the plane from above")
    for axes in (upper, lower):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


# The variance in float32


def variance_errors(means: Array, n: int = 4096) -> tuple[list[float], list[float]]:
    """Return the relative errors of the variance by E[x²] − E[x]² and by our layer, in float32, a pair a mean."""
    values = np.random.default_rng(0).normal(size=n)
    short, long = [], []
    for mean in means:
        x = (mean + values).astype(np.float32)
        truth = x.astype(np.float64).var()
        quick = float(np.mean(x * x) - np.mean(x) ** 2)
        ours = float(batchnorm2d_forward(x.reshape(n, 1, 1, 1), np.ones(1, np.float32), np.zeros(1, np.float32))[3][0])
        short.append(abs(quick - truth) / truth)
        long.append(abs(ours - truth) / truth)
    return short, long


def float32() -> Figure:
    """Error of the variance against the mean, for a standard deviation of 1."""
    means = np.logspace(0, 5, 31)
    short, long = variance_errors(means)
    figure = new(6.4, 4.0)
    axes = figure.subplots()
    tiny = 1e-9  # an error of 0 has no place on a logarithmic axis
    axes.plot(means, np.maximum(short, tiny), label="E[x²] − E[x]²", **style(1))
    axes.plot(means, np.maximum(long, tiny), label="mean((x − μ)²), our layer", **style(0))
    axes.plot(means, means**2 * 2.0**-24, color=GREY, linewidth=1, linestyle=":", label="2⁻²⁴ · (mean/σ)²")
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.text(1.1, 1.5, "error as large as the variance itself", color=GREY, fontsize=8.5)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(5e-10, 1e7),
        xlabel="mean of the channel (its standard deviation is 1)",
        ylabel="relative error of the variance",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
    return figure


FIGURES = {
    "batchnorm2d-depth": depth,
    "batchnorm2d-before-after": before_after,
    "batchnorm2d-stages": stages,
    "batchnorm2d-projection": projection,
    "batchnorm2d-float32": float32,
}
