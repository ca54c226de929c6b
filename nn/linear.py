"""Linear (fully connected) layer and Flatten.

Letters: N pictures, C numbers in, F numbers out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nn.backend import Array, check_float, checked_upstream
from nn.init import uniform_fan_in
from nn.module import Module, Parameter


class LinearCache(NamedTuple):
    """What a linear layer keeps: its input, for the weight's gradient."""

    x: Array  # (N, C)
    weight: Array  # (C, F)
    has_bias: bool


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearCache]:
    """Compute y = x @ weight + bias.

    Args:
        x: (N, C).
        weight: (C, F), same dtype.
        bias: (F,) or None.

    Returns:
        y (N, F) and the cache for :func:`linear_backward`.

    Raises:
        TypeError: not floating point, or unlike dtypes.
        ValueError: shapes that do not fit each other.
    """
    check_float("x", x, like=weight, ndim=2)
    if x.shape[1] != weight.shape[0]:
        raise ValueError(f"expected x of shape (N, {weight.shape[0]}), got {x.shape}")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"expected a bias of shape {weight.shape[1:]}, got {bias.shape}")
    y = x @ weight  # (N, C) @ (C, F) -> (N, F)
    if bias is not None:
        y += bias  # (N, F) + (F,)
    return y, LinearCache(x, weight, bias is not None)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array | None]:
    """Turn ``dy`` (N, F) into dx (N, C), dweight (C, F) and dbias (F,), None without a bias."""
    x, weight, has_bias = cache
    dy = checked_upstream(dy, (len(x), weight.shape[1]), x.dtype)
    dx = dy @ weight.T  # (N, F) @ (F, C) -> (N, C)
    dweight = x.T @ dy  # (C, N) @ (N, F) -> (C, F)
    dbias = dy.sum(axis=0) if has_bias else None  # (N, F) -> (F,)
    return dx, dweight, dbias


class Linear(Module):
    """y = x @ weight + bias, weight (C, F); the state dict has torchvision's ``weight`` (F, C) and ``bias`` (F,).

    Args:
        in_features: how many, C.
        out_features: how many, F.
        bias: whether to add a bias.
        rng: draws the initial weights (even in ±1/√C, PyTorch's choice); None for fresh randomness.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, rng: np.random.Generator | None = None
    ) -> None:
        if in_features < 1 or out_features < 1:
            raise ValueError(f"expected at least one number in and out, got {in_features} and {out_features}")
        rng = np.random.default_rng() if rng is None else rng
        self.weight = Parameter(uniform_fan_in((in_features, out_features), in_features, rng), axes=(1, 0))
        self.bias = Parameter(uniform_fan_in((out_features,), in_features, rng), decay=False) if bias else None

    def forward(self, x: Array) -> Array:
        """(N, C) -> (N, F); errors as :func:`linear_forward`."""
        y, cache = linear_forward(x, self.weight.like(x), None if self.bias is None else self.bias.like(x))
        self.keep(cache)
        return y

    def backward(self, dy: Array) -> Array:
        """(N, F) -> (N, C)."""
        dx, dweight, dbias = linear_backward(dy, self.take())
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        """Return N·F outputs × C products each."""
        return math.prod(y_shape) * self.weight.data.shape[0]

    def describe(self) -> str:
        """Return e.g. "512 → 40"."""
        c, f = self.weight.data.shape
        return f"{c} → {f}"


class Flatten(Module):
    """(N, H, W, C) -> (N, H·W·C), in the order of memory: row by row, place by place, channels last.

    PyTorch flattens (C, H, W); the two agree where H = W = 1, as behind ResNet's global average pooling.
    """

    def forward(self, x: Array) -> Array:
        """(N, …) -> (N, product of the rest)."""
        self.keep(x.shape)
        return x.reshape(len(x), math.prod(x.shape[1:]))  # (N, H, W, C) -> (N, H·W·C)

    def backward(self, dy: Array) -> Array:
        """(N, product of the rest) -> (N, …)."""
        return dy.reshape(self.take())  # (N, H·W·C) -> (N, H, W, C)
