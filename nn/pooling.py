"""Max pooling and global average pooling.

Letters: N pictures, H × W places, C channels, KH × KW window, OH × OW places out. A tap is one place of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.module import Module, pair


class MaxPoolCache(NamedTuple):
    """What max pooling keeps: which tap of each window was the first maximum, one byte a window."""

    winner: Array  # (N, OH, OW, C), uint8 (uint16 for windows of more than 256 taps)
    x_shape: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


Window = tuple[slice, slice, slice]


def taps(kernel: tuple[int, int], stride: tuple[int, int], places: tuple[int, int]) -> Iterator[Window]:
    """Yield, tap by tap in row-major order, the index of what all windows (OH × OW of them) see at that tap."""
    (kh, kw), (sh, sw), (oh, ow) = kernel, stride, places
    for i in range(kh):
        for j in range(kw):
            yield slice(None), slice(i, i + sh * oh, sh), slice(j, j + sw * ow, sw)


def max_pool2d_forward(
    x: Array,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array, MaxPoolCache]:
    """Take the largest value of each window.

    The frame counts as −∞, so it never wins; zeros would beat LeakyReLU's negative values.

    Args:
        x: (N, H, W, C).
        kernel: window size, one number or (KH, KW).
        stride: steps between windows; None for the window size.
        padding: frame around the picture, at most half a window.

    Returns:
        y (N, OH, OW, C) with OH = floor((H + 2·PH − KH) / SH) + 1, and the cache for :func:`max_pool2d_backward`.

    Raises:
        TypeError: not floating point.
        ValueError: padding over half a window (a window could lie wholly outside), or a window larger than the picture.
    """
    check_float("x", x, ndim=4)
    kernel, padding = pair(kernel, "kernel", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    (n, h, w, c), (kh, kw), (sh, sw), (ph, pw) = x.shape, kernel, stride, padding
    if 2 * ph > kh or 2 * pw > kw:
        raise ValueError(f"expected padding of at most half the window {kh}×{kw}, got {ph}, {pw}")
    oh, ow = (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1
    if oh < 1 or ow < 1:
        raise ValueError(f"expected pictures at least as large as the window {kh}×{kw}, got {h}×{w}")
    xp = array_module(x)
    padded = xp.full((n, h + 2 * ph, w + 2 * pw, c), -xp.inf, dtype=x.dtype)
    padded[:, ph : ph + h, pw : pw + w] = x
    windows = list(taps(kernel, stride, (oh, ow)))
    y = padded[windows[0]].copy()  # (N, OH, OW, C)
    for tap in windows[1:]:
        xp.maximum(y, padded[tap], out=y)  # maximum hands NaN on: a broken activation stays visible
    winner = xp.zeros(y.shape, dtype="uint8" if len(windows) <= 256 else "uint16")
    for number, tap in reversed(list(enumerate(windows))):
        winner[padded[tap] == y] = number  # backwards, so that the first maximum is written last
    return y, MaxPoolCache(winner, x.shape, kernel, stride, padding)


def max_pool2d_backward(dy: Array, cache: MaxPoolCache) -> Array:
    """Send each ``dy`` (N, OH, OW, C) to its window's first maximum; windows that share it add up: dx (N, H, W, C)."""
    winner, (n, h, w, c), kernel, stride, (ph, pw) = cache
    dy = checked_upstream(dy, winner.shape)
    dx = array_module(dy).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=dy.dtype)
    for number, tap in enumerate(taps(kernel, stride, dy.shape[1:3])):
        dx[tap] += dy * (winner == number)  # (N, OH, OW, C)
    return dx[:, ph : ph + h, pw : pw + w]


class MaxPool2d(Module):
    """Max pooling, padded with −∞, the gradient to the first maximum of a window.

    Args:
        kernel_size: one number or (KH, KW).
        stride: one number or (SH, SW); None for the window size.
        padding: one number or (PH, PW), at most half a window.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        self.kernel_size, self.padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
        self.stride = self.kernel_size if stride is None else pair(stride, "stride", 1)

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, C); errors as :func:`max_pool2d_forward`."""
        y, cache = max_pool2d_forward(x, self.kernel_size, self.stride, self.padding)
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, C) -> (N, H, W, C)."""
        return max_pool2d_backward(dy, self.take())

    def pieces(self) -> Array | None:
        """Return which tap won in each window of the last forward."""
        return None if self._cache is None else self._cache.winner

    def describe(self) -> str:
        """Return e.g. "3×3, stride 2"."""
        (kh, kw), (sh, _) = self.kernel_size, self.stride
        return f"{kh}×{kw}, stride {sh}"


def global_avg_pool_forward(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Average each channel over all places: (N, H, W, C) -> (N, 1, 1, C), and the shape for backward.

    Raises:
        TypeError: not floating point.
        ValueError: not four axes.
    """
    check_float("x", x, ndim=4)
    return x.mean(axis=(1, 2), keepdims=True), x.shape  # (N, H, W, C) -> (N, 1, 1, C)


def global_avg_pool_backward(dy: Array, x_shape: tuple[int, ...]) -> Array:
    """Share each ``dy`` (N, 1, 1, C) equally among the H·W places: dx (N, H, W, C)."""
    n, h, w, c = x_shape
    dy = checked_upstream(dy, (n, 1, 1, c))
    dx: Array = array_module(dy).empty(x_shape, dtype=dy.dtype)
    dx[...] = dy / (h * w)  # (N, 1, 1, C) spread over (N, H, W, C)
    return dx


class GlobalAvgPool2d(Module):
    """The mean of each channel over all places, (N, H, W, C) -> (N, 1, 1, C); needs no size of its own."""

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, 1, 1, C)."""
        y, cache = global_avg_pool_forward(x)
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, 1, 1, C) -> (N, H, W, C)."""
        return global_avg_pool_backward(dy, self.take())
