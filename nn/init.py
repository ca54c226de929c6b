"""Initial weights, drawn on the CPU so that a CPU run and a GPU run of one seed start equal.

He et al. 2015 (arXiv 1502.01852, section 2.2): a layer that multiplies by n random weights of variance v and
then halves the signal in a rectifier keeps its size if v = gain²/n with gain² = 2/(1 + slope²). Counting n over the
*outputs* (fan-out) keeps the size of the gradients, counting over the inputs (fan-in) that of the activations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gain(negative_slope: float = 0.0) -> float:
    """Return √(2 / (1 + slope²)), which makes up for what (Leaky)ReLU takes away: √2 for ReLU."""
    return math.sqrt(2.0 / (1.0 + negative_slope**2))


def he_normal(shape: tuple[int, ...], fan: int, negative_slope: float, rng: np.random.Generator) -> NDArray[Any]:
    """Draw float32 weights from a normal distribution of mean 0 and standard deviation gain / √fan.

    Args:
        shape: of the weights.
        fan: how many products one output (fan-in) or one input (fan-out) takes part in.
        negative_slope: of the activation that follows; 0 for ReLU.
        rng: source of randomness.
    """
    return rng.normal(0.0, gain(negative_slope) / math.sqrt(fan), shape).astype(np.float32)


def uniform_fan_in(shape: tuple[int, ...], fan_in: int, rng: np.random.Generator) -> NDArray[Any]:
    """Draw float32 numbers evenly from ±1/√fan_in: PyTorch's choice for linear layers and biases."""
    bound = 1.0 / math.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(np.float32)
