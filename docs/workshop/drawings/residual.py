"""Gradients on their way back through plain and residual stacks: of random matrices, and of the project's own networks.

Everything here is at the start of training: random weights, random pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nn import SoftmaxCrossEntropy
from resnet.experiments.figures import new, style
from resnet.models import ResNet, make_model

DEPTH, WIDTH = 50, 64
SEEDS = range(5)
GAINS = np.linspace(0.05, 1.3, 26)

Array = NDArray[Any]


def stack_sizes(gain: float, residual: bool, seed: int) -> list[float]:
    """Return the size of a gradient that starts at 1, after each of DEPTH layers on its way back.

    A layer is a random matrix that multiplies the length of a vector by ``gain`` on average.
    """
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=WIDTH)
    gradient /= np.linalg.norm(gradient)
    sizes = [1.0]
    for _ in range(DEPTH):
        branch = rng.normal(size=(WIDTH, WIDTH)) * (gain / np.sqrt(WIDTH))
        gradient = gradient @ branch + gradient if residual else gradient @ branch
        sizes.append(float(np.linalg.norm(gradient)))
    return sizes


def blocks_of(model: ResNet) -> list[Any]:
    """Return the blocks of all stages, in the order of forward."""
    return [module for _, module in model.named_modules() if hasattr(module, "branch_forward")]


def small_batch(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return eight pictures of noise and their labels."""
    return rng.normal(size=(8, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, 8)


def gradient_sizes(name: str, seed: int = 0, **options: Any) -> list[float]:
    """Return the size of the gradient by the input of each block, the first block first, in a fresh network."""
    rng = np.random.default_rng(seed)
    model = make_model(name, 10, rng=rng, **options)
    pictures, labels = small_batch(rng)
    criterion, sizes = SoftmaxCrossEntropy(), []
    for block in blocks_of(model):

        def listen(dy: Array, backward: Any = block.backward) -> Array:
            dx = backward(dy)
            sizes.append(float(np.linalg.norm(dx)))
            return dx

        block.backward = listen  # this network is thrown away afterwards
    criterion(model(pictures), labels)
    model.backward(criterion.backward(), needs_dx=False)
    return sizes[::-1]


def forward_sizes(name: str, seed: int = 0) -> tuple[list[float], list[float]]:
    """Return, for each block of a fresh network, the root mean square of what enters it and of what its branch adds."""
    rng = np.random.default_rng(seed)
    model = make_model(name, 10, rng=rng)
    pictures, _ = small_batch(rng)
    entering, added = [], []
    for block in blocks_of(model):

        def listen(x: Array, branch_forward: Any = block.branch_forward) -> Array:
            y = branch_forward(x)
            entering.append(_root_mean_square(x))
            added.append(_root_mean_square(y))
            return y

        block.branch_forward = listen
    model(pictures)
    return entering, added


def _root_mean_square(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def draw_depth() -> Figure:
    """Draw the size of a gradient by depth, in stacks of random matrices."""
    figure = new(5.6, 3.4)
    axes = figure.subplots()
    for index, (gain, residual) in enumerate([(0.8, False), (1.0, False), (0.2, True), (0.5, True)]):
        label = f"{'residual' if residual else 'plain'}, gain {gain}"
        axes.semilogy(range(DEPTH + 1), stack_sizes(gain, residual, 0), markevery=10, label=label, **style(index))
    _dress(axes, "layers on the way back", "size of the gradient")
    return figure


def draw_gain() -> Figure:
    """Draw the size of a gradient after DEPTH random matrices, by the gain of one."""
    figure = new(5.6, 3.4)
    axes = figure.subplots()
    for residual, look in ((False, style(0)), (True, style(2))):
        ends = np.array([[stack_sizes(gain, residual, seed)[-1] for seed in SEEDS] for gain in GAINS])
        middle = np.exp(np.log(ends).mean(axis=1))
        axes.semilogy(GAINS, middle, markevery=3, label="residual" if residual else "plain", **look)
        axes.fill_between(GAINS, ends.min(axis=1), ends.max(axis=1), color=look["color"], alpha=0.2)
    axes.axhspan(0.1, 10, color="#000000", alpha=0.08, linewidth=0)
    axes.text(0.06, 0.02, "within a factor of 10", fontsize=8, va="top")
    _dress(axes, "gain of a layer's branch", f"size after {DEPTH} layers")
    axes.set_ylim(1e-20, 1e12)
    return figure


def draw_networks() -> Figure:
    """Draw the gradient's size by block in networks of depth 56."""
    figure = new(5.6, 3.4)
    axes = figure.subplots()
    nets: list[tuple[str, str, dict[str, Any]]] = [
        ("plain-56", "plain56", {}),
        ("ResNet-56", "resnet56", {}),
        ("ResNet-56, branches start at 0", "resnet56", {"zero_init_residual": True}),
    ]
    for index, (label, name, options) in enumerate(nets):
        sizes = np.array(gradient_sizes(name, **options))
        axes.semilogy(range(1, len(sizes) + 1), sizes / sizes[-1], markevery=2, label=label, **style(index))
    _dress(axes, "block", "size of dx (the last block's is 1)")
    return figure


def draw_stream() -> Figure:
    """Draw how the stream of a ResNet-56 grows, and what each branch adds to it."""
    figure = new(5.6, 3.0)
    axes = figure.subplots()
    entering, added = forward_sizes("resnet56")
    places = range(1, len(entering) + 1)
    axes.plot(places, entering, markevery=2, label="x, what enters the block", **style(1))
    axes.plot(places, added, markevery=2, label="F(x), what its branch adds", **style(3))
    _dress(axes, "block of ResNet-56", "root mean square")
    axes.set_ylim(0, 4.9)
    return figure


def _dress(axes: Axes, across: str, up: str) -> None:
    """Name the axes and the series."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(True, linewidth=0.4, color="#cccccc")
    axes.legend(fontsize=8, loc="best")


FIGURES = {
    "residual-depth": draw_depth,
    "residual-gain": draw_gain,
    "residual-networks": draw_networks,
    "residual-stream": draw_stream,
}
