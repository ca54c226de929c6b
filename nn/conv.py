"""Convolution by im2col: cut patches, then one matrix product.

Letters: N pictures, H × W places, C channels in, F filters (channels out), KH × KW kernel, OH × OW places out.

A patch is what one filter looks at: KH·KW·C numbers. With the patches as the rows of a matrix, every filter at every
place is one matrix product, ``cols (N·OH·OW, KH·KW·C) @ weight (KH·KW·C, F)``. Channels-last memory needs no transpose
before or after. The patches of a 3×3 kernel are 9 times as big as the picture, so they are built for a slice of the
batch at a time and never kept: backward keeps ``x`` and cuts them again.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import iadd
from typing import NamedTuple

import numpy as np

from nn.backend import Array, array_module, check_float, checked_upstream, in_threads, slices
from nn.init import he_normal, uniform_fan_in
from nn.module import Module, Parameter, pair


class ConvCache(NamedTuple):
    """What a convolution keeps: its input (usually shared with the layer before it) and how it was called."""

    x: Array  # (N, H, W, C)
    weight: Array  # (KH, KW, C, F)
    has_bias: bool
    stride: tuple[int, int]
    padding: tuple[int, int]


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return floor((size + 2·padding − kernel) / stride) + 1: how many places a kernel finds along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def pad(x: Array, padding: tuple[int, int], value: float = 0.0) -> Array:
    """Return ``x`` (N, H, W, C) with a frame of ``value``: (N, H + 2·PH, W + 2·PW, C). No padding: ``x`` itself."""
    ph, pw = padding
    if ph == pw == 0:
        return x
    n, h, w, c = x.shape
    padded = array_module(x).full((n, h + 2 * ph, w + 2 * pw, c), value, dtype=x.dtype)
    padded[:, ph : ph + h, pw : pw + w] = x
    return padded


def im2col(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Cut ``x`` (N, H, W, C) into patches, one a row: (N·OH·OW, KH·KW·C)."""
    (kh, kw), (sh, sw) = kernel, stride
    x = pad(x, padding)
    view = array_module(x).lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))[:, ::sh, ::sw]
    n, oh, ow, c = view.shape[:4]  # view: (N, OH, OW, C, KH, KW), no copy so far
    return view.transpose(0, 1, 2, 4, 5, 3).reshape(n * oh * ow, kh * kw * c)  # the copy: (N·OH·OW, KH·KW·C)


def col2im(
    dcols: Array, shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Array:
    """Add patches (N·OH·OW, KH·KW·C) back to where im2col cut them from ``shape`` (N, H, W, C): its exact adjoint."""
    (n, h, w, c), (kh, kw), (sh, sw), (ph, pw) = shape, kernel, stride, padding
    oh, ow = output_size(h, kh, sh, ph), output_size(w, kw, sw, pw)
    dcols = dcols.reshape(n, oh, ow, kh, kw, c)  # (N·OH·OW, KH·KW·C) -> (N, OH, OW, KH, KW, C)
    dx = array_module(dcols).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=dcols.dtype)
    for i in range(kh):
        for j in range(kw):  # one tap of the kernel meets each place at most once, so a strided += is safe
            dx[:, i : i + sh * oh : sh, j : j + sw * ow : sw] += dcols[:, :, :, i, j]  # (N, OH, OW, C)
    return dx[:, ph : ph + h, pw : pw + w]


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array, ConvCache]:
    """Convolve: y[n, p, q, f] = bias[f] + Σ_ijc x[n, p·SH + i − PH, q·SW + j − PW, c] · weight[i, j, c, f].

    Args:
        x: (N, H, W, C).
        weight: (KH, KW, C, F), same dtype.
        bias: (F,) or None.
        stride: steps between places, one number or (SH, SW).
        padding: zeros around the picture, one number or (PH, PW).

    Returns:
        y (N, OH, OW, F) with OH = floor((H + 2·PH − KH) / SH) + 1, and the cache for :func:`conv2d_backward`.

    Raises:
        TypeError: not floating point, or unlike dtypes.
        ValueError: shapes that do not fit each other, or a kernel larger than the padded picture.
    """
    check_float("x", x, like=weight, ndim=4)
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    (n, h, w, c), (kh, kw, _, f) = x.shape, weight.shape
    _check_sizes(x.shape, weight.shape, padding, bias)
    oh, ow = output_size(h, kh, stride[0], padding[0]), output_size(w, kw, stride[1], padding[1])
    matrix = weight.reshape(kh * kw * c, f)  # (KH, KW, C, F) -> (KH·KW·C, F)
    xp = array_module(x)
    y = xp.empty((n, oh, ow, f), dtype=x.dtype)
    patch_bytes = oh * ow * kh * kw * c * x.itemsize  # of one picture

    def convolve(share: slice) -> None:
        for part in slices(share, patch_bytes, xp):
            cols = im2col(x[part], (kh, kw), stride, padding)  # (n·OH·OW, KH·KW·C)
            xp.matmul(cols, matrix, out=y[part].reshape(-1, f))  # (n·OH·OW, KH·KW·C) @ (KH·KW·C, F) -> (n·OH·OW, F)

    in_threads(convolve, n, patch_bytes, xp)
    if bias is not None:
        y += bias  # (N, OH, OW, F) + (F,)
    return y, ConvCache(x, weight, bias is not None, stride, padding)


def conv2d_backward(dy: Array, cache: ConvCache) -> tuple[Array, Array, Array | None]:
    """Turn ``dy`` (N, OH, OW, F) into dx (N, H, W, C), dweight (KH, KW, C, F) and dbias (F,), None without a bias.

    From Y = cols @ W follow dW = colsᵀ @ dY and dcols = dY @ Wᵀ; dx adds up dcols, for im2col only copies.
    """
    x, weight, has_bias, stride, padding = cache
    (n, h, w, c), (kh, kw, _, f) = x.shape, weight.shape
    oh, ow = output_size(h, kh, stride[0], padding[0]), output_size(w, kw, stride[1], padding[1])
    dy = checked_upstream(dy, (n, oh, ow, f), x.dtype)
    matrix = weight.reshape(kh * kw * c, f)  # (KH, KW, C, F) -> (KH·KW·C, F)
    xp = array_module(x)
    dx = xp.empty(x.shape, dtype=x.dtype)
    patch_bytes = 2 * oh * ow * kh * kw * c * x.itemsize  # cols and dcols of one picture

    def backward_slice(part: slice) -> Array:
        cols = im2col(x[part], (kh, kw), stride, padding)  # (n·OH·OW, KH·KW·C)
        rows = dy[part].reshape(-1, f)  # (n, OH, OW, F) -> (n·OH·OW, F)
        dcols = rows @ matrix.T  # (n·OH·OW, F) @ (F, KH·KW·C) -> (n·OH·OW, KH·KW·C)
        dx[part] = col2im(dcols, x[part].shape, (kh, kw), stride, padding)
        return cols.T @ rows  # (KH·KW·C, n·OH·OW) @ (n·OH·OW, F) -> (KH·KW·C, F)

    def backward_share(share: slice) -> Array:
        return reduce(iadd, map(backward_slice, slices(share, patch_bytes, xp)))  # (KH·KW·C, F)

    dmatrix = reduce(iadd, in_threads(backward_share, n, patch_bytes, xp))  # (KH·KW·C, F)
    dbias = dy.sum(axis=2).sum(axis=(0, 1)) if has_bias else None  # (N, OH, OW, F) -> (N, OH, F) -> (F,)
    return dx, dmatrix.reshape(weight.shape), dbias  # dweight: (KH·KW·C, F) -> (KH, KW, C, F)


def _check_sizes(x: tuple[int, ...], weight: tuple[int, ...], padding: tuple[int, int], bias: Array | None) -> None:
    (n, h, w, c), (kh, kw, channels, f), (ph, pw) = x, weight, padding
    if n == 0:
        raise ValueError(f"expected at least one picture, got x {x}")
    if bias is not None and bias.shape != (f,):
        raise ValueError(f"expected a bias of shape ({f},), one number a filter, got {bias.shape}")
    if c != channels:
        raise ValueError(
            f"expected x with {channels} channels last, (N, H, W, {channels}), got {x}: pictures are channels-last here"
        )
    if h + 2 * ph < kh or w + 2 * pw < kw:
        raise ValueError(
            f"expected pictures at least as large as the kernel {kh}×{kw}, got {h}×{w} with padding {ph}, {pw}: "
            "use larger pictures or a network with fewer strides"
        )


class Conv2d(Module):
    """2-d convolution (cross-correlation, as everywhere in this field) with weight (KH, KW, C, F).

    The state dict has torchvision's ``weight`` (F, C, KH, KW) and ``bias`` (F,).

    Args:
        in_channels: C.
        out_channels: F.
        kernel_size: one number or (KH, KW).
        stride: one number or (SH, SW).
        padding: one number or (PH, PW).
        bias: whether to add a bias (not before batch norm, which would take it away again).
        negative_slope: of the activation that follows, for He initialisation's gain.
        rng: draws the initial weights; None for fresh randomness.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        bias: bool = True,
        negative_slope: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        kh, kw = pair(kernel_size, "kernel_size", 1)
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"expected at least one channel in and out, got {in_channels} and {out_channels}")
        self.stride, self.padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
        rng = np.random.default_rng() if rng is None else rng
        values = he_normal((kh, kw, in_channels, out_channels), kh * kw * out_channels, negative_slope, rng)
        self.weight = Parameter(values, axes=(3, 2, 0, 1))
        self.bias = (
            Parameter(uniform_fan_in((out_channels,), kh * kw * in_channels, rng), decay=False) if bias else None
        )

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, F); errors as :func:`conv2d_forward`."""
        bias = None if self.bias is None else self.bias.data
        y, cache = conv2d_forward(x, self.weight.data, bias, self.stride, self.padding)
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, F) -> (N, H, W, C)."""
        dx, dweight, dbias = conv2d_backward(dy, self.take())
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        """Return N·OH·OW·F outputs × KH·KW·C products each."""
        return math.prod(y_shape) * math.prod(self.weight.data.shape[:3])

    def describe(self) -> str:
        """Return e.g. "3×3, 64 → 128, stride 2"."""
        kh, kw, c, f = self.weight.data.shape
        stride = "" if self.stride == (1, 1) else f", stride {self.stride[0]}"
        return f"{kh}×{kw}, {c} → {f}{stride}"
