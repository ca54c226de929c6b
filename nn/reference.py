"""The naive twin of every layer: plain loops and the chain rule, to read first and to test the fast code against.

Each function has the name and the signature of its fast twin, and the same conventions. They are written in terms of
single numbers, are hundreds of times slower, and work on NumPy arrays only. Their caches differ: a twin's backward
belongs to the same twin's forward.

Letters: N pictures, H × W places, C channels, F filters, KH × KW kernel, OH × OW places out, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _every(*sizes: int) -> Iterator[tuple[int, ...]]:
    """Yield every index of an array of this shape: as many nested loops as there are sizes."""
    return itertools.product(*(range(size) for size in sizes))


# Convolution


class ConvCache(NamedTuple):
    """x, weight, whether there was a bias, stride and padding."""

    x: Array
    weight: Array
    has_bias: bool
    stride: tuple[int, int]
    padding: tuple[int, int]


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array, ConvCache]:
    """Every output number sums over the patch it sees: x (N, H, W, C), weight (KH, KW, C, F) -> (N, OH, OW, F)."""
    (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
    (n, h, w, c), (kh, kw, _, f) = x.shape, weight.shape
    oh, ow = math.floor((h + 2 * ph - kh) / sh) + 1, math.floor((w + 2 * pw - kw) / sw) + 1
    y = np.zeros((n, oh, ow, f), x.dtype)
    for picture, p, q, k in _every(n, oh, ow, f):
        total = 0.0 if bias is None else float(bias[k])
        for i, j, channel in _every(kh, kw, c):
            row, column = p * sh + i - ph, q * sw + j - pw
            if 0 <= row < h and 0 <= column < w:  # outside lie zeros
                total += float(x[picture, row, column, channel]) * float(weight[i, j, channel, k])
        y[picture, p, q, k] = total
    return y, ConvCache(x, weight, bias is not None, (sh, sw), (ph, pw))


def conv2d_backward(dy: Array, cache: ConvCache) -> tuple[Array, Array, Array | None]:
    """Every product x · weight of forward sends dy · weight to its x and dy · x to its weight."""
    x, weight, has_bias, (sh, sw), (ph, pw) = cache
    (n, oh, ow, f), (_, h, w, c), (kh, kw, _, _) = dy.shape, x.shape, weight.shape
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(f, x.dtype)
    for picture, p, q, k in _every(n, oh, ow, f):
        upstream = dy[picture, p, q, k]
        dbias[k] += upstream
        for i, j, channel in _every(kh, kw, c):
            row, column = p * sh + i - ph, q * sw + j - pw
            if 0 <= row < h and 0 <= column < w:
                dx[picture, row, column, channel] += upstream * weight[i, j, channel, k]
                dweight[i, j, channel, k] += upstream * x[picture, row, column, channel]
    return dx, dweight, dbias if has_bias else None


# Linear


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, tuple[Array, Array, bool]]:
    """x (N, C), weight (C, F) -> (N, F)."""
    (n, c), f = x.shape, weight.shape[1]
    y = np.zeros((n, f), x.dtype)
    for picture, k in _every(n, f):
        y[picture, k] = sum(x[picture, i] * weight[i, k] for i in range(c)) + (0.0 if bias is None else bias[k])
    return y, (x, weight, bias is not None)


def linear_backward(dy: Array, cache: tuple[Array, Array, bool]) -> tuple[Array, Array, Array | None]:
    """dy (N, F) -> dx (N, C), dweight (C, F), dbias (F,)."""
    x, weight, has_bias = cache
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(weight.shape[1], x.dtype)
    for picture, k in _every(*dy.shape):
        dbias[k] += dy[picture, k]
        for i in range(x.shape[1]):
            dx[picture, i] += dy[picture, k] * weight[i, k]
            dweight[i, k] += dy[picture, k] * x[picture, i]
    return dx, dweight, dbias if has_bias else None


# Batch norm, a channel at a time


class BatchNormCache(NamedTuple):
    """Every intermediate result of forward, for the chain rule to walk back over."""

    centred: Array  # (N, H, W, C)
    variance: Array  # (C,)
    gamma: Array  # (C,)
    eps: float
    batch_statistics: bool


def batchnorm2d_forward(
    x: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[Array, BatchNormCache, Array, Array]:
    """Normalise each channel with its own mean and biased variance: x (N, H, W, C) -> y, cache, mean, variance (C,)."""
    channels = x.shape[-1]
    mean, variance = np.zeros(channels, x.dtype), np.zeros(channels, x.dtype)
    for c in range(channels):
        values = x[..., c].ravel().tolist()
        mean[c] = math.fsum(values) / len(values)
        variance[c] = math.fsum((value - float(mean[c])) ** 2 for value in values) / len(values)
    y, cache = batchnorm2d_eval_forward(x, gamma, beta, mean, variance, eps)
    return y, cache._replace(batch_statistics=True), mean, variance


def batchnorm2d_eval_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float = 1e-5
) -> tuple[Array, BatchNormCache]:
    """Normalise each channel with the given statistics."""
    y, centred = np.zeros_like(x), np.zeros_like(x)
    for n, h, w, c in _every(*x.shape):
        centred[n, h, w, c] = x[n, h, w, c] - mean[c]
        y[n, h, w, c] = gamma[c] * centred[n, h, w, c] / math.sqrt(variance[c] + eps) + beta[c]
    return y, BatchNormCache(centred, variance, gamma, eps, False)


def batchnorm2d_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Walk back stage by stage, each line one application of the chain rule; ``nn.batchnorm`` does it in one line.

    Forward's stages, for one channel of M values: mean → centred → variance → inv_std → x_hat → y.
    """
    centred, variance, gamma, eps, batch_statistics = cache
    dx, dgamma, dbeta = np.zeros_like(dy), np.zeros_like(gamma), np.zeros_like(gamma)
    for c in range(len(gamma)):
        u, d = centred[..., c], dy[..., c]  # this channel's centred values and upstream, (N, H, W)
        m = u.size
        inv_std = 1 / np.sqrt(variance[c] + eps)
        dbeta[c] = d.sum()  # y = γ·x̂ + β
        dgamma[c] = (d * u * inv_std).sum()
        dx_hat = d * gamma[c]
        du = dx_hat * inv_std  # x̂ = u · inv_std, the way through u
        if batch_statistics:
            dinv_std = (dx_hat * u).sum()  # … and the way through inv_std, which all values share
            dvariance = dinv_std * -0.5 * inv_std**3  # inv_std = (σ² + ε)^(−1/2)
            du = du + dvariance * 2 * u / m  # σ² = Σu²/M
            dmean = -du.sum()  # u = x − μ, and all values share μ
            dx[..., c] = du + dmean / m  # x moves u directly, and μ = Σx/M
        else:
            dx[..., c] = du  # given statistics do not depend on x
    return dx, dgamma, dbeta


# Activations


def relu_forward(x: Array) -> tuple[Array, Array]:
    """max(x, 0); the cache is x."""
    return leaky_relu_forward(x, 0.0)


def relu_backward(dy: Array, cache: Array) -> Array:
    """The derivative is 1 above 0, and 0 at and below it."""
    return leaky_relu_backward(dy, cache, 0.0)


def leaky_relu_forward(x: Array, negative_slope: float = 0.01) -> tuple[Array, Array]:
    """x above 0, slope · x elsewhere; the cache is x."""
    y = np.zeros_like(x)
    for index in _every(*x.shape):
        y[index] = x[index] if x[index] > 0 else negative_slope * x[index]
    return y, x


def leaky_relu_backward(dy: Array, cache: Array, negative_slope: float = 0.01) -> Array:
    """The derivative is 1 above 0, and slope at and below it."""
    dx = np.zeros_like(dy)
    for index in _every(*dy.shape):
        dx[index] = dy[index] * (1.0 if cache[index] > 0 else negative_slope)
    return dx


# Pooling


def max_pool2d_forward(
    x: Array,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array, dict[tuple[int, ...], tuple[int, ...]]]:
    """x (N, H, W, C) -> (N, OH, OW, C); the cache says, for each output place, where its first maximum lies in x."""
    (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
    sh, sw = (kh, kw) if stride is None else _pair(stride)
    n, h, w, c = x.shape
    oh, ow = math.floor((h + 2 * ph - kh) / sh) + 1, math.floor((w + 2 * pw - kw) / sw) + 1
    y = np.full((n, oh, ow, c), -np.inf, x.dtype)
    winner: Any = {"shape of x": x.shape}
    for picture, p, q, channel in _every(n, oh, ow, c):
        for i, j in _every(kh, kw):
            row, column = p * sh + i - ph, q * sw + j - pw
            inside = 0 <= row < h and 0 <= column < w  # outside lies −∞, which never wins
            if inside and x[picture, row, column, channel] > y[picture, p, q, channel]:
                y[picture, p, q, channel] = x[picture, row, column, channel]
                winner[picture, p, q, channel] = (picture, row, column, channel)
    return y, winner


def max_pool2d_backward(dy: Array, cache: Any) -> Array:
    """Each dy (N, OH, OW, C) goes to the place that won."""
    dx = np.zeros(cache["shape of x"], dy.dtype)
    for index in _every(*dy.shape):
        dx[cache[index]] += dy[index]
    return dx


def global_avg_pool_forward(x: Array) -> tuple[Array, tuple[int, ...]]:
    """The mean over places: (N, H, W, C) -> (N, 1, 1, C); the cache is the shape of x."""
    n, h, w, c = x.shape
    y = np.zeros((n, 1, 1, c), x.dtype)
    for picture, channel in _every(n, c):
        y[picture, 0, 0, channel] = math.fsum(x[picture, :, :, channel].ravel().tolist()) / (h * w)
    return y, x.shape


def global_avg_pool_backward(dy: Array, x_shape: tuple[int, ...]) -> Array:
    """Each of the H·W places gets an equal share."""
    dx = np.zeros(x_shape, dy.dtype)
    for n, h, w, c in _every(*x_shape):
        dx[n, h, w, c] = dy[n, 0, 0, c] / (x_shape[1] * x_shape[2])
    return dx


# Residual add


def add_forward(a: Array, b: Array) -> Array:
    """a + b, number by number."""
    y = np.zeros_like(a)
    for index in _every(*a.shape):
        y[index] = a[index] + b[index]
    return y


def add_backward(dy: Array) -> tuple[Array, Array]:
    """Both sides get dy."""
    return dy.copy(), dy.copy()


# Softmax cross-entropy


def cross_entropy_forward(
    logits: Array, labels: ArrayLike, label_smoothing: float = 0.0
) -> tuple[Array, tuple[Array, Array]]:
    """Mean over pictures of −Σ_k target_k · log p_k; the cache is (probabilities, target), each (N, K)."""
    (n, k), labels = logits.shape, np.asarray(labels)
    probabilities, target = np.zeros_like(logits), np.zeros_like(logits)
    losses = []
    for picture in range(n):
        row = [float(value) for value in logits[picture]]
        exponentials = [math.exp(value - max(row)) for value in row]
        for j in range(k):
            probabilities[picture, j] = exponentials[j] / math.fsum(exponentials)
            target[picture, j] = label_smoothing / k + (1 - label_smoothing) * (j == labels[picture])
        log_total = max(row) + math.log(math.fsum(exponentials))
        losses.append(-math.fsum(float(target[picture, j]) * (row[j] - log_total) for j in range(k)))
    return np.asarray(math.fsum(losses) / n, logits.dtype), (probabilities, target)


def cross_entropy_backward(cache: tuple[Array, Array], dloss: Array | float = 1.0) -> Array:
    """dlogits (N, K), from the chain rule through p_i = exp(z_i) / Σ exp(z).

    ∂p_i/∂z_j = p_i·([i = j] − p_j), and the loss depends on p_i by −target_i / p_i.
    """
    probabilities, target = cache
    n, k = target.shape
    dlogits = np.zeros_like(target)
    for picture, j in _every(n, k):
        p, t = probabilities[picture], target[picture]
        dlogits[picture, j] = sum(-t[i] / p[i] * p[i] * ((i == j) - p[j]) for i in range(k)) * dloss / n
    return dlogits
