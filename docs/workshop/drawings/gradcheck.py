"""The figures of the chapter on checking gradients, computed when they are drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import DTypeLike, NDArray

from nn import ReLU, SoftmaxCrossEntropy
from resnet.experiments.figures import INKS, new, style

Array = NDArray[Any]


class Quotient(NamedTuple):
    """A difference quotient: Σ weight · L(v + steps · h) / (divisor · h), and the dtype that it is computed in.

    The truncation error of its series is ``factor`` · h^``order`` · the derivative number ``order`` + 1 of L.
    """

    terms: tuple[tuple[int, float], ...]
    divisor: float
    order: int
    factor: float
    dtype: DTypeLike = np.float64

    @property
    def epsilon(self) -> float:
        """The largest relative error of rounding a number: half of what ``np.finfo`` calls eps."""
        return float(np.finfo(self.dtype).eps) / 2

    @property
    def weights(self) -> float:
        """By how much errors of the Ls are multiplied, as numbers that do not know of each other add up."""
        return float(np.sqrt(sum(weight**2 for _, weight in self.terms))) / self.divisor


FIVE_POINTS = ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0))
QUOTIENTS = {
    "one-sided, float64": Quotient(((1, 1.0), (0, -1.0)), 1, 1, 1 / 2),
    "central, float64": Quotient(((1, 1.0), (-1, -1.0)), 2, 2, 1 / 6),
    "five points, float64": Quotient(FIVE_POINTS, 12, 4, 1 / 30),
    "central, float32": Quotient(((1, 1.0), (-1, -1.0)), 2, 2, 1 / 6, np.float32),
}
STEPS = np.logspace(-12, 0, 49)


def problem() -> tuple[Array, Array]:
    """Return logits (5, 6) and labels (5,), as in the gradient check of the loss."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 6)), rng.integers(0, 6, 5)


def loss(logits: Array, labels: Array) -> Any:
    """Return the loss, in the dtype of the logits."""
    return SoftmaxCrossEntropy()(logits, labels)


def gradient(logits: Array, labels: Array) -> Array:
    """Return what backward says, (5, 6) in float64."""
    layer = SoftmaxCrossEntropy()
    layer(logits, labels)
    return layer.backward()


def numeric(quotient: Quotient, h: float) -> Array:
    """Return the gradient by difference quotients, a number at a time, (5, 6)."""
    logits, labels = problem()
    found = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        total = 0.0
        for steps, weight in quotient.terms:
            moved = logits.copy()
            moved[index] += steps * h
            total += weight * float(loss(moved.astype(quotient.dtype), labels))
        found[index] = total / (quotient.divisor * h)
    return found


def error(quotient: Quotient, h: float) -> float:
    """Return ‖numeric − backward‖ / ‖backward‖ over all numbers."""
    claimed = gradient(*problem())
    return float(np.linalg.norm(numeric(quotient, h) - claimed) / np.linalg.norm(claimed))


def derivatives() -> dict[int, Array]:
    """Return derivatives of L by each logit, by their number: those of log Σ exp, with p the softmax, over N."""
    logits, labels = problem()
    p, n = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), len(labels)
    spread = p * (1 - p)
    return {
        2: spread / n,
        3: spread * (1 - 2 * p) / n,
        5: spread * (1 - 2 * p) * (1 - 12 * spread) / n,
    }


def predicted(quotient: Quotient) -> tuple[float, float]:
    """Return truncation and rounding errors at h = 1, relative, as the formulas have them."""
    logits, labels = problem()
    claimed = np.linalg.norm(gradient(logits, labels))
    truncation = quotient.factor * np.linalg.norm(derivatives()[quotient.order + 1])
    rounding = quotient.epsilon * quotient.weights * abs(float(loss(logits, labels))) * np.sqrt(logits.size)
    return float(truncation / claimed), float(rounding / claimed)


def best_step(quotient: Quotient) -> float:
    """Return the h at which rounding / h + truncation · h^order is smallest."""
    truncation, rounding = predicted(quotient)
    return float((rounding / (quotient.order * truncation)) ** (1 / (quotient.order + 1)))


def step_sizes() -> Figure:
    """Relative error against step size: the gradient of the loss by four difference quotients."""
    figure = new(5.4, 4.8)
    axes = figure.subplots()
    for number, (name, quotient) in enumerate(QUOTIENTS.items()):
        axes.loglog(STEPS, [error(quotient, h) for h in STEPS], label=name, **style(number) | {"markersize": 3})
        truncation, rounding = predicted(quotient)
        best = best_step(quotient)
        right = np.array([best, 1.0])
        axes.loglog(right, truncation * right**quotient.order, color=INKS[number], linewidth=0.7, alpha=0.8)
        left = np.array([max(STEPS[0], rounding / 20), best])
        axes.loglog(left, rounding / left, color=INKS[number], linewidth=0.7, alpha=0.8)
        low = rounding / best + truncation * best**quotient.order
        axes.plot(best, low, marker="*", markersize=13, color=INKS[number], markeredgecolor="white", linestyle="none")
    axes.plot([], [], marker="*", markersize=11, color="#555555", linestyle="none", label="the best step, by formula")
    axes.axhline(1e-7, color="#555555", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(1.3e-12, 1.4e-7, "tolerance of the check", fontsize=8, color="#555555")
    axes.set_xlabel("step size h")
    axes.set_ylabel("relative error of the whole gradient")
    axes.set_ylim(1e-14, 1e6)
    axes.set_xlim(STEPS[0] / 1.5, 1.5)
    axes.legend(fontsize=8, loc="upper center", ncols=2)
    axes.grid(alpha=0.25)
    return figure


def across_kink() -> Figure:
    """What the quotients say of ReLU's derivative when the kink lies within their reach."""
    figure = new(5.4, 3.6)
    axes = figure.subplots()
    places = np.linspace(-3, 3, 601)  # in steps of h
    layer = ReLU()
    for number, (name, quotient) in enumerate(list(QUOTIENTS.items())[:3]):
        values = sum(weight * layer(places + steps) for steps, weight in quotient.terms) / quotient.divisor
        look = style(number) | {"markevery": (10 * number, 60)}
        axes.plot(places, values, label=name.removesuffix(", float64"), **look)
    axes.axvspan(-2, 2, color="#dddddd", alpha=0.5, linewidth=0)
    axes.axhline(0, color="#555555", linewidth=0.6)
    axes.axhline(1, color="#555555", linewidth=0.6)
    axes.text(-2.95, 0.04, "ReLU′ = 0", fontsize=8, color="#555555")
    axes.text(2.95, 1.04, "ReLU′ = 1", fontsize=8, color="#555555", ha="right")
    axes.set_xlabel("place x, in steps h; the kink is at 0")
    axes.set_ylabel("difference quotient")
    axes.set_ylim(-0.25, 1.3)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.25)
    return figure


FIGURES = {"gradcheck-steps": step_sizes, "gradcheck-kink": across_kink}
