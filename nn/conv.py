"""Convolution by im2col: cut patches, then one matrix product.

Letters: N pictures, H × W places, C channels in, F filters (channels out), KH × KW kernel, OH × OW places out.

A patch is what one filter looks at: KH·KW·C numbers. With the patches as the rows of a matrix, every filter at every
place is one matrix product, ``cols (N·OH·OW, KH·KW·C) @ weight (KH·KW·C, F)``. Channels-last memory needs no transpose
before or after. The patches of a 3×3 kernel are 9 times as big as the picture, so they are built for a slice of the
batch at a time, in a buffer that stays in the cache, and never kept: backward keeps ``x`` and cuts them again.

``nn.winograd`` computes the same for 3×3 kernels with fewer products; :class:`Conv2d` chooses.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.gpu import WINDOW_SIZES, Kernel, gather, has_kernels, window_sizes
from nn.init import he_normal, uniform_fan_in
from nn.module import Module, Parameter, pair
from nn.parallel import contiguous, in_batch_slices, in_parts, in_threads, shares, workers
from nn.winograd import winograd_backward, winograd_forward

ALGORITHMS = ("auto", "im2col", "winograd")


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
    """Cut ``x`` (N, H, W, C) into patches, one a row: (N·OH·OW, KH·KW·C).

    The result is the thread's buffer for patches, written over at the next call; 1×1 patches are ``x`` itself.
    """
    (kh, kw), (sh, sw), xp = kernel, stride, array_module(x)
    windows = xp.lib.stride_tricks.sliding_window_view(pad(x, padding), kernel, axis=(1, 2))[:, ::sh, ::sw]
    cols = windows.transpose(0, 1, 2, 4, 5, 3)  # (N, OH, OW, C, KH, KW) -> (N, OH, OW, KH, KW, C), no copy so far
    return contiguous(cols, "cols").reshape(-1, kh * kw * x.shape[3])  # the copy: (N·OH·OW, KH·KW·C)


def col2im(dcols: Array, shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Add patches (N, OH, OW, KH, KW, C) up to where im2col cut them, in ``shape`` (N, H, W, C): its exact adjoint."""
    (n, oh, ow, kh, kw, c), (_, h, w, _), (sh, sw), (ph, pw) = dcols.shape, shape, stride, padding
    dx = array_module(dcols).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=dcols.dtype)
    for i, j in np.ndindex(kh, kw):  # one tap of the kernel meets each place at most once, so a strided += is safe
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
    stride, padding = check_sizes(x, weight, bias, stride, padding)
    xp = array_module(x)
    y = xp.empty(output_shape(x, weight, stride, padding), dtype=x.dtype)  # (N, OH, OW, F)

    def convolve(few: slice, filters: slice) -> None:
        cols = patches(x[few], weight.shape[:2], stride, padding)  # (n·OH·OW, KH·KW·C)
        rows = as_rows(y[few])[:, filters]  # (n·OH·OW, F), a view of y
        xp.matmul(cols, as_rows(weight)[:, filters], out=rows)  # (n·OH·OW, KH·KW·C) @ (KH·KW·C, F) -> (n·OH·OW, F)
        if bias is not None:
            rows += bias[filters]  # (n·OH·OW, F) + (F,)

    in_parts(convolve, y, patch_bytes(y, weight))
    return y, ConvCache(x, weight, bias is not None, stride, padding)


def conv2d_backward(dy: Array, cache: ConvCache, needs_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
    """Turn ``dy`` (N, OH, OW, F) into dx (N, H, W, C), dweight (KH, KW, C, F) and dbias (F,), None without a bias.

    From Y = cols @ W follows dW = colsᵀ @ dY; for dx see :func:`input_gradient`. Without ``needs_dx`` (the first layer
    of a training has no use for it) dx is None. For float16, dweight is float32, in which slices are added up.
    """
    x, weight, has_bias, stride, padding = cache
    dy = checked_upstream(dy, output_shape(x, weight, stride, padding), x.dtype)

    def weight_gradient(few: slice, filters: slice) -> Array:
        cols = patches(x[few], weight.shape[:2], stride, padding)  # (n·OH·OW, KH·KW·C)
        return cols.T @ as_rows(dy[few])[:, filters]  # (KH·KW·C, n·OH·OW) @ (n·OH·OW, F) -> (KH·KW·C, F)

    dmatrix = in_parts(weight_gradient, dy, patch_bytes(dy, weight), least=weight.nbytes)  # (KH·KW·C, F)
    dbias = dy.sum(axis=2).sum(axis=(0, 1)) if has_bias else None  # (N, OH, OW, F) -> (N, OH, F) -> (F,)
    dx = input_gradient(dy, cache) if needs_dx else None
    return dx, dmatrix.reshape(weight.shape), dbias  # dweight: (KH·KW·C, F) -> (KH, KW, C, F)


def input_gradient(dy: Array, cache: ConvCache) -> Array:
    """Turn ``dy`` (N, OH, OW, F) into dx (N, H, W, C).

    From Y = cols @ W follows dcols = dY @ Wᵀ, and dx adds up dcols, for im2col only copies. With stride 1 it is a
    convolution again, and that is faster: place p of x met tap i of the kernel at output p + PH − i, so turn the kernel
    by 180° and pad so that the size comes out as x's.
    """
    x, weight, _, stride, (ph, pw) = cache
    (kh, kw, c, f), (n, oh, ow, _) = weight.shape, dy.shape
    if stride == (1, 1) and ph < kh and pw < kw and n * oh * ow > f:  # else turning the kernel is most of the work
        return conv2d_forward(dy, turned(weight), None, 1, (kh - 1 - ph, kw - 1 - pw))[0]
    dx = array_module(x).empty(x.shape, dtype=x.dtype)

    def scatter(few: slice) -> None:
        dcols = as_rows(dy[few]) @ as_rows(weight).T  # (n·OH·OW, F) @ (F, KH·KW·C) -> (n·OH·OW, KH·KW·C)
        dx[few] = unpatched(dcols.reshape(-1, oh, ow, kh, kw, c), x[few].shape, stride, (ph, pw))

    in_batch_slices(scatter, n, patch_bytes(dy, weight), array_module(x))
    return dx


def as_rows(array: Array) -> Array:
    """Return a matrix of the last axis's columns, a view where that can be: (…, F) -> (product of the rest, F)."""
    return array.reshape(-1, array.shape[-1])


def turned(weight: Array) -> Array:
    """Turn a kernel by 180° and swap what goes in and out: (KH, KW, C, F) -> (KH, KW, F, C)."""
    kh, kw, c, f = weight.shape
    xp = array_module(weight)
    result = xp.empty((kh, kw, f, c), dtype=weight.dtype)

    def turn(filters: slice) -> None:
        result[:, :, filters] = weight[::-1, ::-1, :, filters].transpose(0, 1, 3, 2)  # (KH, KW, C, F) -> (…, F, C)

    in_threads(turn, shares(f, workers(weight.nbytes, xp)))
    return result


def output_shape(x: Array, weight: Array, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, ...]:
    """Return (N, OH, OW, F)."""
    (n, h, w, _), (kh, kw, _, f) = x.shape, weight.shape
    return n, output_size(h, kh, stride[0], padding[0]), output_size(w, kw, stride[1], padding[1]), f


def patch_bytes(y: Array, weight: Array) -> int:
    """Return the size in bytes of the patches of one picture, for outputs y (N, OH, OW, F)."""
    return math.prod(y.shape[1:3]) * math.prod(weight.shape[:3]) * y.itemsize


def check_sizes(
    x: Array, weight: Array, bias: Array | None, stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Check that all of it fits together and return stride and padding as pairs; errors as :func:`conv2d_forward`."""
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    check_float("x", x, like=weight, ndim=4)
    (n, h, w, c), (kh, kw, channels, f), (ph, pw) = x.shape, weight.shape, padding
    if n == 0:
        raise ValueError(f"expected at least one picture, got x {x.shape}")
    if bias is not None and bias.shape != (f,):
        raise ValueError(f"expected a bias of shape ({f},), one number a filter, got {bias.shape}")
    if c != channels:
        raise ValueError(
            f"expected x with {channels} channels last, (N, H, W, {channels}), got {x.shape}: "
            "pictures are channels-last here"
        )
    if h + 2 * ph < kh or w + 2 * pw < kw:
        raise ValueError(
            f"expected pictures at least as large as the kernel {kh}×{kw}, got {h}×{w} with padding {ph}, {pw}: "
            "use larger pictures or a network with fewer strides"
        )
    return stride, padding


def choose_algorithm(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> str:
    """Return which algorithm is the faster one on a CPU, "im2col" or "winograd", as ``benchmarks.layers`` measured it.

    Winograd's pays where the products it saves outweigh its transforms: of the tiles, with few channels, and of the
    kernel, with few tiles; and where tiles of 4×4 do not reach far over the edges.
    """
    (n, h, w, c), (kh, kw, _, f) = x_shape, weight_shape
    if (kh, kw) != (3, 3) or stride != (1, 1):
        return "im2col"
    oh, ow = output_size(h, kh, 1, padding[0]), output_size(w, kw, 1, padding[1])
    tiles = n * -(-oh // 4) * -(-ow // 4)
    pays = min(c, f) >= 32 and tiles >= max(48, max(c, f) // 4) and 16 * tiles <= 1.5 * n * oh * ow
    return "winograd" if pays else "im2col"


class Conv2d(Module):
    """2-d convolution (cross-correlation, as everywhere in this field) with weight (KH, KW, C, F).

    The state dict has torchvision's ``weight`` (F, C, KH, KW) and ``bias`` (F,).

    Args:
        in_channels: how many, C.
        out_channels: how many, F.
        kernel_size: one number or (KH, KW).
        stride: one number or (SH, SW).
        padding: one number or (PH, PW).
        bias: whether to add a bias (not before batch norm, which would take it away again).
        algorithm: "im2col", "winograd" (3×3 kernels with stride 1 only), or "auto" for the faster one.
        negative_slope: of the activation that follows, for He initialisation's gain.
        rng: draws the initial weights; None for fresh randomness.

    Raises:
        ValueError: a size below 1, an unknown algorithm, or Winograd's for a convolution that it cannot compute.
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
        algorithm: str = "auto",
        negative_slope: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        kh, kw = pair(kernel_size, "kernel_size", 1)
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"expected at least one channel in and out, got {in_channels} and {out_channels}")
        self.stride, self.padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"expected an algorithm among {', '.join(ALGORITHMS)}, got {algorithm!r}")
        if algorithm == "winograd" and not ((kh, kw) == (3, 3) and self.stride == (1, 1)):
            raise ValueError(f"winograd needs a 3×3 kernel and stride 1, got {kh}×{kw} and {self.stride}: use im2col")
        self.algorithm = algorithm
        rng = np.random.default_rng() if rng is None else rng
        values = he_normal((kh, kw, in_channels, out_channels), kh * kw * out_channels, negative_slope, rng)
        self.weight = Parameter(values, axes=(3, 2, 0, 1))
        self.bias = (
            Parameter(uniform_fan_in((out_channels,), kh * kw * in_channels, rng), decay=False) if bias else None
        )

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, F); errors as :func:`conv2d_forward`."""
        weight, bias = self.weight.like(x), None if self.bias is None else self.bias.like(x)
        check_sizes(x, weight, bias, self.stride, self.padding)
        algorithm = self.algorithm
        if algorithm == "auto":
            as_measured = array_module(x) is np and x.dtype != np.float16
            algorithm = choose_algorithm(x.shape, weight.shape, self.stride, self.padding) if as_measured else "im2col"
        x, weight = aligned(x, weight)
        cache: Any
        if algorithm == "winograd":
            y, cache = winograd_forward(x, weight, bias, self.padding)
        else:
            y, cache = conv2d_forward(x, weight, bias, self.stride, self.padding)
        self.keep(cache)
        return y

    def backward(self, dy: Array, needs_dx: bool = True) -> Any:
        """(N, OH, OW, F) -> (N, H, W, C), or None without ``needs_dx``."""
        cache = self.take()
        backward = conv2d_backward if isinstance(cache, ConvCache) else winograd_backward
        dx, dweight, dbias = backward(dy, cache, needs_dx)
        channels = self.weight.data.shape[2]
        if dweight.shape[2] > channels:  # aligned() had added some
            dweight, dx = dweight[:, :, :channels], None if dx is None else dx[..., :channels]
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx

    def absorb(self, scale: Array, shift: Array) -> None:
        """Change weight and bias so that the output becomes scale · output + shift, (F,) each."""
        old = 0 if self.bias is None else self.bias.data
        self.bias = Parameter(old * scale + shift, decay=False)  # (F,) * (F,) + (F,)
        self.weight.data = self.weight.data * scale  # (KH, KW, C, F) * (F,)

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        """Return N·OH·OW·F outputs × KH·KW·C products each."""
        return math.prod(y_shape) * math.prod(self.weight.data.shape[:3])

    def describe(self) -> str:
        """Return e.g. "3×3, 64 → 128, stride 2"."""
        kh, kw, c, f = self.weight.data.shape
        stride = "" if self.stride == (1, 1) else f", stride {self.stride[0]}"
        return f"{kh}×{kw}, {c} → {f}{stride}"


# im2col and col2im on a GPU, each as one kernel

IM2COL = Kernel(
    "raw T x",
    "T cols",
    """
    idx at = i;                                             // place in (N, OH, OW, KH, KW, C), taken apart from behind
    const idx channel = at % c;                             at /= c;
    const idx column = at % kw;                             at /= kw;
    const idx row = at % kh;                                at /= kh;
    const idx across = at % ow * sw + column - pw;          at /= ow;   // place in x; before the edge it is huge
    const idx down = at % oh * sh + row - ph;               at /= oh;   // what is left of at is the picture
    cols = down < h && across < w ? x[((at * h + down) * w + across) * c + channel] : T(0);
    """,
    "im2col",
    WINDOW_SIZES,
)

COL2IM = Kernel(
    "raw T dcols",
    "T dx",
    gather("sum += wide(dcols[((((at * oh + p) * ow + q) * kh + row) * kw + column) * c + channel]);"),
    "col2im",
    WINDOW_SIZES,
)


def patches(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Return what :func:`im2col` does, on a GPU by one kernel that needs neither frame nor view.

    A copy need not know what the bytes mean, so the channels of a place are copied 16 bytes at a time where they can.
    """
    if not has_kernels(x):
        return im2col(x, kernel, stride, padding)
    if kernel == stride == (1, 1) and padding == (0, 0):
        return as_rows(x)
    (n, h, w, c), (kh, kw) = x.shape, kernel
    xp, bytes_a_place = array_module(x), c * x.itemsize
    oh, ow = (output_size(*sizes) for sizes in zip((h, w), kernel, stride, padding, strict=True))
    item = next(
        kind for kind in ("complex128", "uint64", "uint32", "uint16") if bytes_a_place % np.dtype(kind).itemsize == 0
    )
    cols = xp.empty((n * oh * ow, kh * kw * c), dtype=x.dtype)
    items = xp.ascontiguousarray(x).view(item)  # (N, H, W, C) -> (N, H, W, items a place)
    IM2COL(x.dtype, items, cols.view(item), **window_sizes(items.shape, kernel, (oh, ow), stride, padding))
    return cols


def unpatched(dcols: Array, shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Return what :func:`col2im` does, on a GPU by one kernel; its sums have a fixed order, so two runs are equal."""
    if not has_kernels(dcols):
        return col2im(dcols, shape, stride, padding)
    _, oh, ow, kh, kw, _ = dcols.shape
    dx = array_module(dcols).empty(shape, dtype=dcols.dtype)
    COL2IM(dx.dtype, dcols, dx, **window_sizes(shape, (kh, kw), (oh, ow), stride, padding))
    return dx


def aligned(x: Array, weight: Array) -> tuple[Array, Array]:
    """Return both as they are, on a GPU with channels of zeros added until those of a place fill 16 bytes.

    A 7×7 patch of 3 channels has 147 numbers; with 4 channels it has 196, a third more to multiply (in float16 with 8
    channels 392), but rows that tensor cores can read, and patches that are cut 16 bytes at a time.
    """
    add = -x.shape[-1] % (16 // x.itemsize)
    if not has_kernels(x) or add == 0 or weight.shape[:2] == (1, 1):
        return x, weight
    xp, (*places, c), (kh, kw, _, f) = array_module(x), x.shape, weight.shape
    more_x, more_weight = xp.zeros((*places, c + add), x.dtype), xp.zeros((kh, kw, c + add, f), x.dtype)
    more_x[..., :c] = x  # (N, H, W, C) into (N, H, W, C + add)
    more_weight[:, :, :c] = weight  # (KH, KW, C, F) into (KH, KW, C + add, F)
    return more_x, more_weight
