"""Batch normalisation of pictures: every channel to mean 0 and variance 1 over the batch, then scaled and shifted.

Ioffe & Szegedy 2015 (arXiv 1502.03167, algorithm 1). Letters: N pictures, H × W places, C channels, M = N·H·W values a
channel. Channels-last, a batch of pictures is a matrix (M, C), and this is plain batch norm of its columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.gpu import Kernel, has_kernels, wide_dtype
from nn.module import Buffer, Module, Parameter
from nn.parallel import in_slices, scratch


class BatchNormCache(NamedTuple):
    """What batch norm keeps: its input, and a channel the mean, 1/σ and the scale; x̂ = (x − μ)/σ is computed again."""

    x: Array  # (N, H, W, C)
    mean: Array  # (C,)
    inv_std: Array  # (C,)
    gamma: Array  # (C,)
    batch_statistics: bool  # whether mean and variance came from this batch and so depend on x


def column_sums(n: int, columns: Array, terms: Callable[[slice], tuple[Array, ...]]) -> Array:
    """Sum k matrices over their ``n`` rows, slice by slice: (n, C) each -> (k, C).

    In two stages, so that float32 never adds a small number to the sum of millions: about two digits more survive.

    Args:
        n: rows.
        columns: any (C,) array, for size and dtype.
        terms: returns the rows of a slice of each matrix, (m, C).
    """
    xp = array_module(columns)

    def of_slice(rows: slice) -> Array:
        ones = xp.ones(rows.stop - rows.start, columns.dtype)
        return xp.stack([ones @ part for part in terms(rows)])  # (m,) @ (m, C) -> (C,): BLAS sums columns fastest

    sums = xp.stack(in_slices(of_slice, n, columns.nbytes, xp))  # (slices, k, C)
    return sums.sum(axis=0, dtype=np.float64).astype(columns.dtype)  # (slices, k, C) -> (k, C)


def batchnorm2d_forward(
    x: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[Array, BatchNormCache, Array, Array]:
    """Normalise with the batch's own statistics: y = γ·(x − μ)/√(σ² + ε) + β.

    Args:
        x: (N, H, W, C).
        gamma: scale γ, (C,).
        beta: shift β, (C,).
        eps: ε, keeps the root away from zero.

    Returns:
        y (N, H, W, C), the cache for :func:`batchnorm2d_backward`, the mean (C,) and the biased variance (C,).

    Raises:
        TypeError: not floating point, or unlike dtypes.
        ValueError: another number of channels, or a single value a channel, which would always come out as β.
    """
    _check(x, gamma)
    m = x.size // x.shape[-1]
    if m < 2:
        raise ValueError(
            f"expected at least 2 values a channel to train batch norm, got x {x.shape}: one value minus its own mean "
            "is always 0. Use a batch of 2 or more, larger pictures, or eval()"
        )
    if has_kernels(x):
        return gpu_forward(x, gamma, beta, eps)
    matrix, xp = x.reshape(m, -1), array_module(x)  # (N, H, W, C) -> (M, C)
    mean = column_sums(m, gamma, lambda rows: (matrix[rows],))[0] / m  # (C,)

    def squares(rows: slice) -> tuple[Array]:
        centred = centre(matrix[rows], mean)  # (m, C)
        return (xp.multiply(centred, centred, out=centred),)

    variance = column_sums(m, gamma, squares)[0] / m  # (C,); not E[x²] − E[x]², which cancels in float32
    y, cache = batchnorm2d_eval_forward(x, gamma, beta, mean, variance, eps)
    return y, cache._replace(batch_statistics=True), mean, variance


def batchnorm2d_eval_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float = 1e-5
) -> tuple[Array, BatchNormCache]:
    """Normalise with given statistics ``mean`` and ``variance`` (C,): what a trained network does.

    Returns:
        y (N, H, W, C) and the cache for :func:`batchnorm2d_backward`.

    Raises:
        TypeError, ValueError: as :func:`batchnorm2d_forward`, but a single value a channel is welcome.
    """
    _check(x, gamma)
    xp = array_module(x)
    inv_std = 1 / xp.sqrt(variance + float(eps))  # (C,)
    scale = gamma * inv_std
    cache = BatchNormCache(x, mean, inv_std, gamma, False)
    if has_kernels(x):
        of_channels = (array.astype(wide_dtype(x.dtype), copy=False) for array in (mean, scale, beta))  # (C,)
        return NORMALISE(x.dtype, x, *of_channels), cache
    matrix = x.reshape(-1, x.shape[-1])  # (N, H, W, C) -> (M, C)
    y = xp.empty(matrix.shape, dtype=x.dtype)

    def normalise(rows: slice) -> None:
        part = xp.subtract(matrix[rows], mean, out=y[rows])  # (m, C) - (C,)
        part *= scale
        part += beta

    in_slices(normalise, len(matrix), gamma.nbytes, xp)
    return y.reshape(x.shape), cache  # y: (M, C) -> (N, H, W, C)


def batchnorm2d_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Turn ``dy`` (N, H, W, C) into dx (N, H, W, C), dgamma (C,) and dbeta (C,).

    With the batch's statistics every x moves the mean and the variance too. Both ways together take from dy its mean
    and its part along x̂: dx = γ/σ · (dy − mean(dy) − x̂·mean(dy·x̂)). ``nn.reference`` derives it step by step.
    """
    x, mean, inv_std, gamma, batch_statistics = cache
    dy = checked_upstream(dy, x.shape, x.dtype)
    if has_kernels(dy):
        return gpu_backward(dy, cache)
    x, dy, xp = x.reshape(-1, len(gamma)), dy.reshape(-1, len(gamma)), array_module(x)  # (N, H, W, C) -> (M, C)
    m = len(x)

    def terms(rows: slice) -> tuple[Array, Array]:
        centred = centre(x[rows], mean)  # (m, C)
        return dy[rows], xp.multiply(centred, dy[rows], out=centred)

    dbeta, along_x = column_sums(m, gamma, terms)  # (C,) each
    dgamma = along_x * inv_std  # (C,)
    dx = xp.empty(x.shape, dtype=x.dtype)
    of_x, constant, scale = inv_std * dgamma / -m, dbeta / m, gamma * inv_std  # (C,)

    def of_slice(rows: slice) -> None:
        if not batch_statistics:
            xp.multiply(dy[rows], scale, out=dx[rows])  # (m, C) * (C,)
            return
        part = xp.subtract(x[rows], mean, out=dx[rows])  # (m, C) - (C,)
        part *= of_x  # now −x̂·mean(dy·x̂)
        part += dy[rows]
        part -= constant
        part *= scale

    in_slices(of_slice, m, gamma.nbytes, xp)
    return dx.reshape(cache.x.shape), dgamma, dbeta  # dx: (M, C) -> (N, H, W, C)


def centre(part: Array, mean: Array) -> Array:
    """Return (m, C) − (C,), in the thread's buffer."""
    xp = array_module(part)
    centred: Array = xp.subtract(part, mean, out=scratch("centred", part.shape, mean.dtype, xp))
    return centred


def _check(x: Array, gamma: Array) -> None:
    mixed = gamma.dtype == np.float32 and getattr(x, "dtype", None) == np.float16  # see nn.precision
    check_float("x", x, like=None if mixed else gamma, ndim=4)
    if x.shape[-1] != len(gamma):
        raise ValueError(f"expected x with {len(gamma)} channels last, (N, H, W, {len(gamma)}), got {x.shape}")


class BatchNorm2d(Module):
    """Batch norm with learned scale ``weight`` (γ) and shift ``bias`` (β), and running statistics for :meth:`eval`.

    The names and meanings are torchvision's: ``running_mean``, ``running_var`` (unbiased; starts at 1) and
    ``num_batches_tracked``.

    Args:
        channels: how many, C.
        eps: ε added to the variance.
        momentum: weight of the new value in the running statistics.

    Raises:
        ValueError: no channels, a negative eps, or a momentum outside [0, 1].
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if channels < 1 or not eps >= 0 or not 0 <= momentum <= 1:
            raise ValueError(
                "expected at least 1 channel, eps of at least 0 and momentum from 0 to 1, "
                f"got {channels}, {eps} and {momentum}"
            )
        self.eps, self.momentum = float(eps), float(momentum)
        self.weight = Parameter(np.ones(channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H, W, C); errors as :func:`batchnorm2d_forward`."""
        gamma, beta = self.weight.data, self.bias.data
        if self.training:
            y, cache, mean, variance = batchnorm2d_forward(x, gamma, beta, self.eps)
            self._track(mean, variance, x.size // x.shape[-1])
        else:
            running = self.running_mean.data, self.running_var.data
            y, cache = batchnorm2d_eval_forward(x, gamma, beta, *running, self.eps)
        self.keep(cache)
        return y

    def _track(self, mean: Array, variance: Array, m: int) -> None:
        """Move the running statistics towards this batch's; the variance unbiased, by Bessel's m / (m − 1)."""
        if has_kernels(mean):
            running = self.running_mean.data, self.running_var.data, self.num_batches_tracked.data
            TRACK(mean.dtype, mean, variance, self.momentum, m / (m - 1), *running)
            return
        unbiased = variance * (m / (m - 1))  # (C,)
        for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            buffer.data *= 1 - self.momentum
            buffer.data += self.momentum * new  # (C,) + (C,)
        self.num_batches_tracked.data += 1

    def backward(self, dy: Array) -> Array:
        """(N, H, W, C) -> (N, H, W, C)."""
        dx, dgamma, dbeta = batchnorm2d_backward(dy, self.take())
        self.weight.add_grad(dgamma)
        self.bias.add_grad(dbeta)
        return dx

    def affine(self) -> tuple[Array, Array]:
        """Return scale and shift, (C,) each, of what :meth:`eval` computes: y = scale · x + shift."""
        scale = self.weight.data / array_module(self.weight.data).sqrt(self.running_var.data + self.eps)  # (C,)
        return scale, self.bias.data - scale * self.running_mean.data

    def describe(self) -> str:
        """Return the number of channels."""
        return f"{self.weight.data.size}"


# On a GPU: sums of columns by many threads, each its own rows of one column, and the rest in one pass each

THREADS = 2**18  # that add up side by side: enough to keep a large GPU's memory busy
UNROLLED = 4  # rows that each thread has on their way at a time


def _column_kernel(inputs: str, once: str, terms: dict[str, str], name: str) -> Kernel:
    """Return a kernel that adds up terms over the rows of matrices (M, C): groups of rows -> (groups, C) each.

    Every thread has a column and every so many rows of it. It asks for four rows before it adds up, as a read takes
    long and many should be on their way, and adds them up in a fixed order.

    Args:
        inputs: of the kernel; the matrices are raw.
        once: C for before the rows; ``channel`` is the column.
        terms: for each output, C for what is added up; ``at`` is the place in the matrices.
    """

    def add(place: int, row: str) -> str:
        sums = " ".join(f"{out}_{place} += {term};" for out, term in terms.items())
        return f"{{ const idx at = ({row}) * channels + channel; {sums} }}\n"

    places = range(UNROLLED)
    lines = [
        f"const idx channel = i % channels; {once}",
        *(f"wide {out}_{place} = 0;" for out in terms for place in places),
        "idx row = i / channels;",
        f"for (; row + {UNROLLED - 1} * groups < rows; row += {UNROLLED} * groups) {{",
        *(add(place, f"row + {place} * groups") for place in places),
        "}",
        f"for (; row < rows; row += groups) {add(0, 'row')}",
        *(f"{out} = {' + '.join(f'{out}_{place}' for place in places)};" for out in terms),
    ]
    outputs = ", ".join(f"wide {out}" for out in terms)
    return Kernel(f"{inputs}, idx rows, idx channels, idx groups", outputs, "\n".join(lines), name)


SUMS = _column_kernel("raw T x", "", {"sum": "wide(x[at])"}, "batchnorm_sums")
SQUARES = _column_kernel(
    "raw T x, raw float64 total",
    "const wide mean = total[channel] / rows;",
    {"sum": "(wide(x[at]) - mean) * (wide(x[at]) - mean)"},
    "batchnorm_squares",
)
STATISTICS = Kernel(
    "float64 total, float64 squares, wide gamma, float64 m, float64 eps",
    "wide mean, wide variance, wide inv_std, wide scale",
    """
    mean = total / m;
    variance = squares / m;
    inv_std = 1 / sqrt(squares / m + eps);
    scale = gamma * inv_std;
    """,
    "batchnorm_statistics",
)
NORMALISE = Kernel(
    "T x, wide mean, wide scale, wide beta", "T y", "y = T((wide(x) - mean) * scale + beta)", "batchnorm_normalise"
)
TRACK = Kernel(
    "T mean, T variance, wide momentum, wide bessel",
    "R running_mean, R running_var, raw int64 batches",
    """
    if (i == 0) batches[0] += 1;
    running_mean = R((1 - momentum) * wide(running_mean) + momentum * wide(mean));
    running_var = R((1 - momentum) * wide(running_var) + momentum * bessel * wide(variance));
    """,
    "batchnorm_track",
)
GRADIENT_SUMS = _column_kernel(
    "raw T x, raw T dy, raw wide means",
    "const wide mean = means[channel];",
    {"sum_dy": "wide(dy[at])", "sum_along_x": "wide(dy[at]) * (wide(x[at]) - mean)"},
    "batchnorm_gradient_sums",
)
GRADIENTS = Kernel(
    "float64 sum_dy, float64 sum_along_x, wide inv_std, wide gamma, float64 m, bool batch_statistics",
    "wide dgamma, wide dbeta, wide of_x, wide constant, wide scale",
    """
    dgamma = sum_along_x * inv_std;
    dbeta = sum_dy;
    of_x = batch_statistics ? inv_std * dgamma / -m : 0;
    constant = batch_statistics ? sum_dy / m : 0;
    scale = gamma * inv_std;
    """,
    "batchnorm_gradients",
)
INPUT_GRADIENT = Kernel(
    "T x, T dy, wide mean, wide of_x, wide constant, wide scale",
    "T dx",
    "dx = T(((wide(x) - mean) * of_x + wide(dy) - constant) * scale)",
    "batchnorm_input_gradient",
)


def gpu_sums(kernel: Kernel, outputs: int, matrix: Array, *others: Array) -> Array:
    """Add up columns by a kernel, groups of rows first and then the groups: (M, C) -> (outputs, C) in float64."""
    (m, c), xp = matrix.shape, array_module(matrix)
    groups = max(1, min(THREADS // c, m // (4 * UNROLLED)))
    partial = xp.empty((outputs, c, groups), wide_dtype(matrix.dtype))  # what is added up next lies side by side
    kernel(matrix.dtype, matrix, *others, m, c, groups, *partial.transpose(0, 2, 1))  # outputs arrays (groups, C)
    return partial.sum(axis=2, dtype=np.float64)  # (outputs, C, groups) -> (outputs, C)


def gpu_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, BatchNormCache, Array, Array]:
    """Do what :func:`batchnorm2d_forward` does, by kernels."""
    m, c = x.size // x.shape[-1], x.shape[-1]
    matrix, wide = x.reshape(m, c), wide_dtype(x.dtype)  # (N, H, W, C) -> (M, C)
    total = gpu_sums(SUMS, 1, matrix)[0]  # (C,)
    squares = gpu_sums(SQUARES, 1, matrix, total)[0]  # (C,)
    mean, variance, inv_std, scale = STATISTICS(x.dtype, total, squares, gamma.astype(wide, copy=False), m, eps)  # (C,)
    y = NORMALISE(x.dtype, x, mean, scale, beta.astype(wide, copy=False))  # (N, H, W, C) and (C,)
    return y, BatchNormCache(x, mean, inv_std, gamma, True), mean, variance


def gpu_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Do what :func:`batchnorm2d_backward` does, by kernels."""
    x, mean, inv_std, gamma, batch_statistics = cache
    m, c = x.size // x.shape[-1], x.shape[-1]
    wide = wide_dtype(x.dtype)
    mean, inv_std, gamma = (array.astype(wide, copy=False) for array in (mean, inv_std, gamma))  # (C,)
    sums = gpu_sums(GRADIENT_SUMS, 2, x.reshape(m, c), dy.reshape(m, c), mean)  # (2, C)
    dgamma, dbeta, *of = GRADIENTS(x.dtype, *sums, inv_std, gamma, m, batch_statistics)  # (C,)
    return INPUT_GRADIENT(x.dtype, x, dy, mean, *of), dgamma, dbeta  # (N, H, W, C) and (C,)
