"""Batch normalisation of pictures: every channel to mean 0 and variance 1 over the batch, then scaled and shifted.

Ioffe & Szegedy 2015 (arXiv 1502.03167, algorithm 1). Letters: N pictures, H × W places, C channels, M = N·H·W values a
channel. Channels-last, a batch of pictures is a matrix (M, C), and this is plain batch norm of its columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nn.backend import Array, array_module, check_float, checked_upstream
from nn.module import Buffer, Module, Parameter


class BatchNormCache(NamedTuple):
    """What batch norm keeps: the normalised input (as large as x) and, a channel, 1/σ and the scale."""

    x_hat: Array  # (N, H, W, C)
    inv_std: Array  # (C,)
    gamma: Array  # (C,)
    batch_statistics: bool  # whether mean and variance came from this batch and so depend on x


def channel_sum(x: Array) -> Array:
    """Sum (N, H, W, C) over pictures and places -> (C,).

    In two stages, so that float32 never adds a small number to the sum of millions: about two digits more survive.
    """
    return x.sum(axis=2).sum(axis=(0, 1))  # (N, H, W, C) -> (N, H, C) -> (C,)


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
    mean = channel_sum(x) / m  # (C,)
    centred = x - mean  # (N, H, W, C) - (C,)
    variance = channel_sum(centred * centred) / m  # (C,); not E[x²] − E[x]², which cancels in float32
    inv_std = 1 / array_module(x).sqrt(variance + float(eps))  # (C,)
    centred *= inv_std  # now x̂: (N, H, W, C) * (C,)
    y = centred * gamma  # (N, H, W, C) * (C,)
    y += beta
    return y, BatchNormCache(centred, inv_std, gamma, True), mean, variance


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
    inv_std = 1 / array_module(x).sqrt(variance + float(eps))  # (C,)
    x_hat = (x - mean) * inv_std  # ((N, H, W, C) - (C,)) * (C,)
    return x_hat * gamma + beta, BatchNormCache(x_hat, inv_std, gamma, False)


def batchnorm2d_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Turn ``dy`` (N, H, W, C) into dx (N, H, W, C), dgamma (C,) and dbeta (C,).

    With the batch's statistics every x moves the mean and the variance too. Both ways together take from dy its mean
    and its part along x̂: dx = γ/σ · (dy − mean(dy) − x̂·mean(dy·x̂)). ``nn.reference`` derives it step by step.
    """
    x_hat, inv_std, gamma, batch_statistics = cache
    dy = checked_upstream(dy, x_hat.shape, x_hat.dtype)
    dbeta = channel_sum(dy)  # (C,)
    dgamma = channel_sum(dy * x_hat)  # (C,)
    if not batch_statistics:
        return dy * (gamma * inv_std), dgamma, dbeta  # (N, H, W, C) * (C,)
    m = dy.size // dy.shape[-1]
    dx = x_hat * (dgamma / -m)  # (N, H, W, C) * (C,)
    dx += dy
    dx -= dbeta / m  # (N, H, W, C) - (C,)
    dx *= gamma * inv_std  # (N, H, W, C) * (C,)
    return dx, dgamma, dbeta


def _check(x: Array, gamma: Array) -> None:
    check_float("x", x, like=gamma, ndim=4)
    if x.shape[-1] != len(gamma):
        raise ValueError(f"expected x with {len(gamma)} channels last, (N, H, W, {len(gamma)}), got {x.shape}")


class BatchNorm2d(Module):
    """Batch norm with learned scale ``weight`` (γ) and shift ``bias`` (β), and running statistics for :meth:`eval`.

    The names and meanings are torchvision's: ``running_mean``, ``running_var`` (unbiased; starts at 1) and
    ``num_batches_tracked``.

    Args:
        channels: C.
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
        unbiased = variance * (m / (m - 1))  # (C,)
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.data *= 1 - self.momentum
            running.data += self.momentum * new  # (C,) + (C,)
        self.num_batches_tracked.data += 1

    def backward(self, dy: Array) -> Array:
        """(N, H, W, C) -> (N, H, W, C)."""
        dx, dgamma, dbeta = batchnorm2d_backward(dy, self.take())
        self.weight.add_grad(dgamma)
        self.bias.add_grad(dbeta)
        return dx

    def describe(self) -> str:
        """Return the number of channels."""
        return f"{self.weight.data.size}"
