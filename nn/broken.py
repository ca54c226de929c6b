"""Known bugs for ``python -m nn.gradcheck --break LAYER``: what a wrong backward looks like to a gradient check.

Each is a mistake that people make. ``plant`` replaces the backward of one instance; the class stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from nn.backend import Array, array_module
from nn.batchnorm import batchnorm2d_backward
from nn.module import Module
from nn.pooling import taps


@dataclass(frozen=True)
class Bug:
    """A mistake in a backward.

    Attributes:
        description: in words.
        backward: (layer, dy) -> what the broken backward returns.
    """

    description: str
    backward: Callable[[Any, Array], Any]

    def plant(self, layer: Module) -> None:
        """Give this one instance the broken backward."""
        layer.backward = MethodType(self.backward, layer)  # type: ignore[method-assign]  # a method moves with copies


def _right(layer: Module, dy: Array) -> Any:
    """Return what the right backward says."""
    return type(layer).backward(layer, dy)


def _conv2d(layer: Any, dy: Array) -> Array:
    dx = _right(layer, dy)
    layer.weight.grad[:] = layer.weight.grad[::-1].copy()  # (KH, KW, C, F)
    return dx


def _batchnorm2d(layer: Any, dy: Array) -> Array:
    dx, dgamma, dbeta = batchnorm2d_backward(dy, layer.take()._replace(batch_statistics=False))
    layer.weight.add_grad(dgamma)
    layer.bias.add_grad(dbeta)
    return dx


def _relu(layer: Any, dy: Array) -> Array:
    layer.take()
    return dy * (dy > 0)


def _leaky_relu(layer: Any, dy: Array) -> Array:
    return dy * (layer.take().y > 0)


def _max_pool2d(layer: Any, dy: Array) -> Array:
    winner, (n, h, w, c), kernel, stride, (ph, pw) = layer.take()
    dx = array_module(dy).zeros((n, h + 2 * ph, w + 2 * pw, c), dtype=dy.dtype)
    for number, tap in enumerate(taps(kernel, stride, dy.shape[1:3])):
        dx[tap] = dy * (winner == number)  # (N, OH, OW, C)
    return dx[:, ph : ph + h, pw : pw + w]


def _global_avg_pool2d(layer: Any, dy: Array) -> Array:
    return array_module(dy).zeros(layer.take(), dtype=dy.dtype) + dy  # (N, H, W, C) + (N, 1, 1, C)


def _flatten(layer: Any, dy: Array) -> Array:
    n, h, w, c = layer.take()
    return dy.reshape(n, c, h, w).transpose(0, 2, 3, 1)  # (N, C·H·W) -> (N, C, H, W) -> (N, H, W, C)


def _linear(layer: Any, dy: Array) -> Array:
    dx = _right(layer, dy)
    layer.bias.add_grad(dy.mean(axis=0) - dy.sum(axis=0))  # (N, F) -> (F,)
    return dx


def _add(layer: Any, dy: Array) -> tuple[Array, Array]:
    return dy / 2, dy / 2


def _softmax_cross_entropy(layer: Any, dloss: Array) -> Array:
    dlogits = _right(layer, dloss)
    return dlogits * len(dlogits)


def _pad_shortcut(layer: Any, dy: Array) -> Array:
    return _right(layer, dy[..., ::-1])


def _forgets_shortcut(block: Any, dy: Array) -> Array:
    last = block.relu2 if not hasattr(block, "relu3") else block.relu3
    dbranch, _ = block.add.backward(last.backward(dy))
    return block.branch_backward(dbranch)


def _writes_into_upstream(block: Any, dy: Array) -> Array:
    dx = _right(block, dy)
    dy *= 0.5
    return dx


def _resnet18(model: Any, dy: Array) -> Array:
    block = model.layer3[0]
    block.backward = MethodType(_forgets_shortcut, block)
    return _right(model, dy)


BUGS = {
    "Conv2d": Bug("the kernel's rows are upside down in the weight gradient", _conv2d),
    "BatchNorm2d": Bug("mean and variance are taken for constants, so dx = γ/σ·dy", _batchnorm2d),
    "ReLU": Bug("lets the gradient through where dy is positive instead of where x is", _relu),
    "LeakyReLU": Bug("forgets the slope of the negative side", _leaky_relu),
    "MaxPool2d": Bug("where windows overlap, the last gradient replaces the others instead of adding up", _max_pool2d),
    "GlobalAvgPool2d": Bug("forgets to divide by the number of places", _global_avg_pool2d),
    "Flatten": Bug("hands the gradient back in channels-first order", _flatten),
    "Linear": Bug("averages the bias gradient over the batch instead of summing it", _linear),
    "Add": Bug("shares the gradient out between the two sides instead of giving it to both", _add),
    "SoftmaxCrossEntropy": Bug("forgets that the loss is a mean over the batch", _softmax_cross_entropy),
    "PadShortcut": Bug("takes the gradient from the wrong channels", _pad_shortcut),
    "BasicBlock": Bug("forgets the gradient that comes back by the shortcut", _forgets_shortcut),
    "Bottleneck": Bug("right, but writes into the upstream gradient, which others still need", _writes_into_upstream),
    "ResNet18": Bug("the first block of layer3 forgets the gradient of its shortcut", _resnet18),
}
