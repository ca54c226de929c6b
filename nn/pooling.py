"""Max pooling and global average pooling.

Letters: N pictures, H × W places, C channels, KH × KW window, OH × OW places out. A tap is one place of the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.gpu import WINDOW_SIZES, Kernel, gather, has_kernels, window_sizes
from nn.module import Module, pair
from nn.parallel import in_slices, scratch


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
    needs_winner: bool = True,
) -> tuple[Array, MaxPoolCache | None]:
    """Take the largest value of each window.

    The frame counts as −∞, so it never wins; zeros would beat LeakyReLU's negative values.

    Args:
        x: (N, H, W, C).
        kernel: window size, one number or (KH, KW).
        stride: steps between windows; None for the window size.
        padding: frame around the picture, at most half a window.
        needs_winner: whether a backward will follow; finding out who won takes most of the time.

    Returns:
        y (N, OH, OW, C) with OH = floor((H + 2·PH − KH) / SH) + 1, and the cache for :func:`max_pool2d_backward`,
        None without ``needs_winner``.

    Raises:
        TypeError: not floating point.
        ValueError: padding over half a window (PyTorch refuses it, too), or a window larger than the picture.
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
    xp, windows = array_module(x), list(taps(kernel, stride, (oh, ow)))
    y = xp.empty((n, oh, ow, c), dtype=x.dtype)
    winner = xp.empty(y.shape, dtype="uint8" if len(windows) <= 256 else "uint16") if needs_winner else None

    if has_kernels(x):
        sizes = window_sizes(x.shape, kernel, (oh, ow), stride, padding)
        if winner is None:
            MAX_POOL(x.dtype, x, -math.inf, y, **sizes)
            return y, None
        MAX_POOL_WINNER(x.dtype, x, -math.inf, y, winner, **sizes)
        return y, MaxPoolCache(winner, x.shape, kernel, stride, padding)

    def of_slice(few: slice) -> None:
        padded = framed(x[few], padding, -xp.inf)  # (n, H + 2·PH, W + 2·PW, C)
        largest = y[few]  # (n, OH, OW, C)
        largest[...] = padded[windows[0]]
        if winner is not None:
            winner[few] = 0
        for number, tap in enumerate(windows[1:], start=1):
            if winner is not None:
                better = (padded[tap] > largest).astype(winner.dtype)
                xp.maximum(winner[few], better * number, out=winner[few])  # numbers grow: the last better one stays
            xp.maximum(largest, padded[tap], out=largest)  # hands NaN on: a broken activation stays visible

    in_slices(of_slice, n, x.nbytes // max(n, 1), xp)
    return y, None if winner is None else MaxPoolCache(winner, x.shape, kernel, stride, padding)


def max_pool2d_backward(dy: Array, cache: MaxPoolCache) -> Array:
    """Send each ``dy`` (N, OH, OW, C) to its window's first maximum; windows that share it add up: dx (N, H, W, C)."""
    winner, (n, h, w, c), kernel, stride, (ph, pw) = cache
    dy = checked_upstream(dy, winner.shape)
    xp = array_module(dy)
    dx = xp.empty((n, h, w, c), dtype=dy.dtype)
    if has_kernels(dy):
        sizes = window_sizes(cache.x_shape, kernel, dy.shape[1:3], stride, (ph, pw))
        MAX_POOL_BACKWARD(dy.dtype, dy, winner, dx, **sizes)
        return dx

    def of_slice(few: slice) -> None:
        padded = scratch("framed", (*dx[few].shape[:1], h + 2 * ph, w + 2 * pw, c), dy.dtype, xp)
        padded[...] = 0
        for number, tap in enumerate(taps(kernel, stride, dy.shape[1:3])):
            padded[tap] += dy[few] * (winner[few] == number)  # (n, OH, OW, C)
        dx[few] = padded[:, ph : ph + h, pw : pw + w]

    in_slices(of_slice, n, dx.nbytes // max(n, 1), xp)
    return dx


def framed(x: Array, padding: tuple[int, int], value: float) -> Array:
    """Return ``x`` (n, H, W, C) in a frame of ``value``, (n, H + 2·PH, W + 2·PW, C), in the thread's buffer."""
    (n, h, w, c), (ph, pw), xp = x.shape, padding, array_module(x)
    padded = scratch("framed", (n, h + 2 * ph, w + 2 * pw, c), x.dtype, xp)
    padded[:, :ph] = padded[:, ph + h :] = padded[:, :, :pw] = padded[:, :, pw + w :] = value
    padded[:, ph : ph + h, pw : pw + w] = x
    return padded


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
        y, cache = max_pool2d_forward(x, self.kernel_size, self.stride, self.padding, self.keeps_cache)
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


# Max pooling on a GPU: each output looks at its window, each input at the windows that saw it; nothing is scattered

_LARGEST = """
    idx at = i;                                             // place in (N, OH, OW, C), taken apart from behind
    const idx channel = at % c;                             at /= c;
    const idx left = at % ow * sw - pw;                     at /= ow;   // where the window begins in x; huge if before
    const idx top = at % oh * sh - ph;                      at /= oh;   // what is left of at is the picture
    T best = lowest;
    idx tap = 0;
    for (idx row = 0; row < kh; ++row) {
        for (idx column = 0; column < kw; ++column) {
            const idx down = top + row, across = left + column;
            if (down >= h || across >= w) continue;
            const T value = x[((at * h + down) * w + across) * c + channel];
            if (value > best) tap = row * kw + column;
            if (value > best || value != value) best = value;   // hands NaN on: a broken activation stays visible
        }
    }
    y = best;
"""

MAX_POOL = Kernel("raw T x, T lowest", "T y", _LARGEST, "max_pool", WINDOW_SIZES)
MAX_POOL_WINNER = Kernel(
    "raw T x, T lowest", "T y, W winner", _LARGEST + "    winner = tap;\n", "max_pool_winner", WINDOW_SIZES
)
MAX_POOL_BACKWARD = Kernel(
    "raw T dy, raw W winner",
    "T dx",
    gather("""
            const idx window = ((at * oh + p) * ow + q) * c + channel;
            if (winner[window] == row * kw + column) sum += wide(dy[window]);
    """),
    "max_pool_backward",
    WINDOW_SIZES,
)
