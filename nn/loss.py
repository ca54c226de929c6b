"""Softmax cross-entropy, with label smoothing.

Letters: N pictures, K classes. Labels are NumPy integers on the CPU, where a label out of range is an error; a GPU
would wrap it round in silence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nn.backend import Array, array_module, check_float
from nn.gpu import Kernel, has_kernels
from nn.module import Module

# The target distribution as a GPU kernel
TARGET = Kernel(
    "raw L classes, idx k, wide true_share, wide any_share",
    "T target",
    "target = T(any_share + (classes[i / k] == i % k ? true_share : 0))",
    "cross_entropy_target",
)


class CrossEntropyCache(NamedTuple):
    """What the loss keeps: the probabilities and the target distribution."""

    probabilities: Array  # (N, K)
    target: Array  # (N, K)


def check_labels(labels: ArrayLike, n: int, classes: int) -> NDArray[Any]:
    """Return ``labels`` as a NumPy integer array (n,) after checking each of them.

    Raises:
        TypeError: not integers.
        ValueError: not n of them, or one outside 0 … classes − 1; names the first offender.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"expected {n} labels, one a picture, got shape {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, got {labels[wrong[0]]} at position {wrong[0]} "
            f"({len(wrong)} out of range): does the model have as many classes as there are people?"
        )
    return labels


def cross_entropy_forward(
    logits: Array, labels: ArrayLike, label_smoothing: float = 0.0
) -> tuple[Array, CrossEntropyCache]:
    """Compute the mean over pictures of −Σ_k target_k · log softmax(logits)_k.

    The target gives 1 − s to the true class and spreads s evenly over all K classes (Szegedy et al. 2015,
    arXiv 1512.00567, section 7). Subtracting each row's maximum first changes nothing but keeps exp from overflowing.

    Args:
        logits: (N, K).
        labels: N integers from 0 to K − 1, on the CPU.
        label_smoothing: s, in [0, 1).

    Returns:
        the loss, a 0-d array (not read back from a GPU), and the cache for :func:`cross_entropy_backward`.

    Raises:
        TypeError, ValueError: as :func:`check_labels`; logits not (N, K) in floating point; s out of range.
    """
    check_float("logits", logits, ndim=2)
    n, k = logits.shape
    if n == 0:
        raise ValueError(f"expected at least one picture, got logits {logits.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"expected label smoothing from 0 to below 1, got {label_smoothing}")
    xp = array_module(logits)
    classes = xp.asarray(check_labels(labels, n, k))  # (N,), on the device from here on
    if has_kernels(logits):
        target = xp.empty((n, k), dtype=logits.dtype)
        TARGET(logits.dtype, classes, k, 1 - label_smoothing, label_smoothing / k, target)
    else:
        target = xp.full((n, k), label_smoothing / k, dtype=logits.dtype)
        target[xp.arange(n), classes] += 1 - label_smoothing
    shifted = logits - logits.max(axis=1, keepdims=True)  # (N, K) - (N, 1)
    exponentials = xp.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)  # (N, 1)
    log_probabilities = shifted - xp.log(total)  # (N, K) - (N, 1)
    loss = -(target * log_probabilities).sum(axis=1).mean()  # (N, K) -> (N,) -> ()
    return xp.asarray(loss), CrossEntropyCache(exponentials / total, target)


def cross_entropy_backward(cache: CrossEntropyCache, dloss: Array | float = 1.0) -> Array:
    """Return dlogits (N, K) = dloss · (softmax − target) / N."""
    n = len(cache.target)
    dlogits = cache.probabilities - cache.target  # (N, K)
    dlogits *= dloss / n  # in place: keeps the dtype whatever dloss is
    return dlogits


class SoftmaxCrossEntropy(Module):
    """The loss of classification, mean over the batch.

    Args:
        label_smoothing: in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label smoothing from 0 to below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Array, labels: ArrayLike) -> Array:
        """(N, K) and N labels -> the loss, a 0-d array; errors as :func:`cross_entropy_forward`."""
        loss, cache = cross_entropy_forward(logits, labels, self.label_smoothing)
        self.keep(cache)
        return loss

    def backward(self, dloss: Array | float = 1.0) -> Array:
        """Return dlogits (N, K)."""
        return cross_entropy_backward(self.take(), dloss)
