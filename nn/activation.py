"""ReLU and LeakyReLU.

Both keep their *output* for backward: its sign tells on which side of the kink the input was, and a convolution that
comes next keeps the same array as its input anyway. Conventions at the kink: ReLU′(0) = 0, LeakyReLU′(0) = slope.
"""

from __future__ import annotations

from typing import NamedTuple

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.gpu import Kernel, has_kernels
from nn.module import Module
from nn.parallel import elementwise

# The formulas as GPU kernels, one pass each
LEAKY_RELU = Kernel("T x, T slope", "T y", "y = x > T(0) ? x : T(slope * x)", "leaky_relu")
LEAKY_RELU_BACKWARD = Kernel("T dy, T y, T slope", "T dx", "dx = y > T(0) ? dy : T(slope * dy)", "leaky_relu_backward")


class ActivationCache(NamedTuple):
    """What an activation keeps: its output, which is positive exactly where the input was."""

    y: Array  # any shape


def relu_forward(x: Array) -> tuple[Array, ActivationCache]:
    """Compute y = max(x, 0), any shape (Nair & Hinton 2010)."""
    check_float("x", x)
    xp = array_module(x)
    y = elementwise(lambda part, out: xp.maximum(part, 0, out=out), x)
    return y, ActivationCache(y)


def relu_backward(dy: Array, cache: ActivationCache) -> Array:
    """Let ``dy`` through where the input was positive; the same shape."""
    dy = checked_upstream(dy, cache.y.shape, cache.y.dtype)
    if has_kernels(dy):
        return LEAKY_RELU_BACKWARD(dy.dtype, dy, cache.y, 0.0)
    xp = array_module(dy)
    return elementwise(lambda upstream, y, out: xp.multiply(upstream, y > 0, out=out), dy, cache.y)


def leaky_relu_forward(x: Array, negative_slope: float = 0.01) -> tuple[Array, ActivationCache]:
    """Compute y = x where x > 0, slope·x elsewhere, any shape (Maas et al. 2013).

    Args:
        x: any shape.
        negative_slope: in [0, 1]; 0 gives ReLU.

    Raises:
        TypeError: not floating point.
        ValueError: a slope outside [0, 1], with which the output's sign or order would not tell the input's.
    """
    negative_slope = check_slope(negative_slope)
    if negative_slope == 0:
        return relu_forward(x)  # not 0·x, which is NaN at −∞
    check_float("x", x)
    if has_kernels(x):
        y = LEAKY_RELU(x.dtype, x, negative_slope)
        return y, ActivationCache(y)
    xp = array_module(x)

    def of_slice(part: Array, out: Array) -> None:
        xp.multiply(part, negative_slope, out=out)
        xp.maximum(part, out, out=out)  # for slopes up to 1 the larger of x and slope·x is the right one

    y = elementwise(of_slice, x)
    return y, ActivationCache(y)


def leaky_relu_backward(dy: Array, cache: ActivationCache, negative_slope: float = 0.01) -> Array:
    """Let ``dy`` through where the input was positive, slope·dy elsewhere; the same shape."""
    dy = checked_upstream(dy, cache.y.shape, cache.y.dtype)
    xp, slope = array_module(dy), check_slope(negative_slope)
    if has_kernels(dy):
        return LEAKY_RELU_BACKWARD(dy.dtype, dy, cache.y, slope)

    def of_slice(upstream: Array, y: Array, out: Array) -> None:
        out[...] = y > 0  # 1 on the positive side, 0 on the other
        xp.clip(out, slope, 1, out=out)  # several times as fast as a choice between dy and slope·dy for each number
        out *= upstream

    return elementwise(of_slice, dy, cache.y)


def check_slope(negative_slope: float) -> float:
    """Return the slope as a Python float (a NumPy float64 would turn float32 pictures into float64).

    Raises:
        ValueError: a slope outside [0, 1].
    """
    if not 0 <= negative_slope <= 1:
        raise ValueError(f"expected a negative slope from 0 (ReLU) to 1 (no activation), got {negative_slope}")
    return float(negative_slope)


class ReLU(Module):
    """max(x, 0), with ReLU′(0) = 0."""

    def forward(self, x: Array) -> Array:
        """Any shape -> the same shape."""
        y, cache = relu_forward(x)
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """Any shape -> the same shape."""
        return relu_backward(dy, self.take())

    def pieces(self) -> Array | None:
        """Return where the input of the last forward was positive."""
        return None if self._cache is None else self._cache.y > 0


class LeakyReLU(Module):
    """x where positive, slope·x elsewhere, with LeakyReLU′(0) = slope.

    Args:
        negative_slope: in [0, 1]; 0 gives ReLU.

    Raises:
        ValueError: a slope outside [0, 1].
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = check_slope(negative_slope)

    def forward(self, x: Array) -> Array:
        """Any shape -> the same shape."""
        y, cache = leaky_relu_forward(x, self.negative_slope)
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """Any shape -> the same shape."""
        return leaky_relu_backward(dy, self.take(), self.negative_slope)

    def pieces(self) -> Array | None:
        """Return where the input of the last forward was positive."""
        return None if self._cache is None else self._cache.y > 0

    def describe(self) -> str:
        """Return the slope."""
        return f"slope {self.negative_slope:g}"
