"""The chapter on ReLU and LeakyReLU: the two functions, folds, a bad step, sizes and angles by depth, dead units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nn.activation import leaky_relu_backward, leaky_relu_forward
from nn.init import gain
from nn.parallel import one_blas_thread
from resnet.experiments.figures import INKS, MARKERS, new, style

RESULTS = Path(__file__).parents[2] / "results" / "activation-full.json"
NAMES = {"orl": "ORL", "lfw": "LFW-62"}
DEPTH, WIDTH, INPUTS = 30, 256, 16

Array = NDArray[Any]


def functions() -> Figure:
    """Draw ReLU and two LeakyReLUs, and below zero and above it their derivatives."""
    figure = new(6, 2.8)
    left, right = figure.subplots(1, 2)
    x = np.linspace(-3, 3, 121)
    for index, slope in enumerate((0.0, 0.1, 0.3)):
        label = "ReLU" if slope == 0 else f"slope {slope}"
        y, cache = leaky_relu_forward(x, slope)
        left.plot(x, y, label=label, markevery=10, **style(index))
        dx = leaky_relu_backward(np.ones_like(x), cache, slope)
        below = x <= 0  # the derivative at 0 belongs to the left
        for side in (below, ~below):
            right.plot(x[side], dx[side], markevery=10, **style(index))
    left.set(title="y", xlabel="x")
    right.set(title="∂y/∂x", xlabel="x", ylim=(-0.1, 1.1))
    for axes in (left, right):
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    left.legend(fontsize=9)
    return figure


def folds() -> Figure:
    """Draw the tent of two ReLUs, and the tent of a tent of a tent."""
    figure = new(6, 2.2)
    panels = figure.subplots(1, 3, sharey=True)
    x = np.linspace(0, 1, 257)
    y = x
    for layers, axes in enumerate(panels, start=1):
        y = 2 * np.maximum(y, 0) - 4 * np.maximum(y - 0.5, 0)
        axes.plot(x, y, color=INKS[0])
        axes.set(title=f"{layers} layer{'s' if layers > 1 else ''}", xlabel="x", xticks=(0, 0.5, 1))
    panels[0].set_ylabel("y")
    return figure


def one_weight(slope: float, steps: int) -> list[float]:
    """Return the weight of the chapter's smallest network, step by step; the first step is ten times too large."""
    x = np.array([1.0, 2.0, 3.0])
    weight, seen = 1.0, []
    for step in range(steps):
        seen.append(weight)
        y, cache = leaky_relu_forward(weight * x, slope)
        dy = 2 * (y - 0.5 * x) / len(x)
        rate = 1.0 if step == 0 else 0.1
        weight -= rate * float((leaky_relu_backward(dy, cache, slope) * x).sum())
    return seen


def bad_step() -> Figure:
    """Draw where the weight goes after a step that kills its unit, for several slopes."""
    figure = new(6, 3.2)
    axes = figure.subplots()
    for index, slope in enumerate((0.0, 0.01, 0.1, 0.3)):
        label = "ReLU" if slope == 0 else f"slope {slope}"
        weights = one_weight(slope, 161)
        axes.plot(weights, label=label, markevery=(4 * index, 16), **style(index))
    axes.axhline(0.5, color="0.7", linewidth=0.8, zorder=0)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.text(160, 0.57, "best weight", ha="right", va="bottom", fontsize=9)
    axes.text(160, -0.06, "below: negative for all data", ha="right", va="top", fontsize=9)
    axes.set(xlabel="step", ylabel="weight")
    axes.legend(fontsize=9, loc="center right", bbox_to_anchor=(1, 0.45))
    return figure


@one_blas_thread()  # the products are small
def by_depth(slope: float, factor: float, seeds: int = 4) -> tuple[Array, Array]:
    """Return root mean square, and mean cosine between two inputs, behind each layer of a stack, (DEPTH,) each.

    Both are medians over draws of the weights, whose standard deviation is ``factor`` / √WIDTH.
    """
    sizes, cosines = np.zeros((seeds, DEPTH)), np.zeros((seeds, DEPTH))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(INPUTS, WIDTH)).astype(np.float32)
        for layer in range(DEPTH):
            weight = rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(factor / np.sqrt(WIDTH))
            x, _ = leaky_relu_forward(x @ weight, slope)
            sizes[seed, layer] = np.sqrt((x**2).mean())
            turned = x / np.linalg.norm(x, axis=1, keepdims=True)
            cosines[seed, layer] = ((turned @ turned.T).sum() - INPUTS) / (INPUTS * (INPUTS - 1))
    return np.median(sizes, axis=0), np.median(cosines, axis=0)


def depth() -> Figure:
    """Draw the size of a signal by depth for three gains, and the angle between two signals for four slopes."""
    figure = new(6, 6.4)
    upper, lower = figure.subplots(2, 1)
    layers = np.arange(1, DEPTH + 1)
    for index, factor in enumerate((2.0, gain(0.0), 1.0)):
        sizes, _ = by_depth(0.0, factor)
        label = "gain √2, the right one" if factor == gain(0.0) else f"gain {factor:g}"
        upper.plot(layers, sizes, label=label, markevery=3, **style(index))
        upper.plot(layers, (factor**2 / 2) ** (layers / 2), color="0.6", linewidth=0.8, zorder=0)
    upper.set(yscale="log", xlabel="layers", ylabel="root mean square", title="size of the signal, ReLU")
    upper.legend(title="thin: predicted", fontsize=9, title_fontsize=9)
    for index, slope in enumerate((0.0, 0.1, 0.3, 1.0)):
        _, cosines = by_depth(slope, gain(slope))
        label = {0.0: "ReLU", 1.0: "slope 1: no kink"}.get(slope, f"slope {slope}")
        lower.plot(layers, cosines, label=label, markevery=3, **style(index))
    lower.set(xlabel="layers", ylabel="cosine", title="two unlike inputs, each slope with its gain", ylim=(-0.1, 1))
    lower.legend(fontsize=9)
    return figure


def dead_units() -> Figure:
    """Draw accuracy against the share of dead units after two epochs, a mark a network."""
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    figure = new(6, 7)
    for data, axes in zip(NAMES, figure.subplots(2, 1), strict=True):
        for index, slope in enumerate((0.0, 0.01, 0.1, 0.18, 0.3)):
            start = f"{data}/two epochs/slope {slope}/"
            found = [cell["result"] for name, cell in cells.items() if name.startswith(start)]
            share = [100 * np.mean(list(one["dead_units"].values())) for one in found]
            accuracy = [100 * one["accuracy"]["masked"] for one in found]
            label = f"{'ReLU' if slope == 0 else f'slope {slope}'}, n = {len(found)}"
            axes.plot(share, accuracy, MARKERS[index], color=INKS[index], markersize=6, label=label)
        axes.set(title=f"{NAMES[data]}, after two epochs", xlabel="units dead on all pictures looked at (%)")
        axes.set(ylabel="rank-1, masked faces (%)", xlim=(0, 9), ylim=(0, 65))
        axes.legend(fontsize=9)
    return figure


FIGURES = {
    "activations-functions": functions,
    "activations-folds": folds,
    "activations-bad-step": bad_step,
    "activations-depth": depth,
    "activations-dead": dead_units,
}
