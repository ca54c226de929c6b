"""The cases of ``python -m nn.gradcheck``: every layer, the blocks, and the whole of ResNet18.

Shapes are odd and oblong, batches larger than 1, strides unlike in height and width: a mix-up of axes shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nn import (
    Add,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from nn.backend import Array
from nn.gradcheck import Case
from resnet.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, Recipe
from resnet.models import resnet18

Rng = np.random.Generator
Build = Callable[[Rng], Module]


class LossOfLabels(Module):
    """Softmax cross-entropy with its labels fixed, so that it takes one input like any other layer."""

    def __init__(self, labels: Array, label_smoothing: float) -> None:
        self.labels = labels
        self.loss = SoftmaxCrossEntropy(label_smoothing)

    def forward(self, logits: Array) -> Array:
        """(N, K) -> the loss."""
        return self.loss(logits, self.labels)

    def backward(self, dloss: Array) -> Array:
        """Upstream of the loss -> (N, K)."""
        return self.loss.backward(dloss)


def case(layer: str, detail: str, build: Build, *shapes: tuple[int, ...], **options: Any) -> Case:
    """Return a case with normally distributed inputs of the given shapes."""
    return Case(layer, detail, lambda rng: (build(rng), tuple(rng.normal(size=shape) for shape in shapes)), options)


def trained_statistics(channels: int, rng: Rng) -> Module:
    """Return a batch norm in eval mode with running statistics as after some training."""
    layer = BatchNorm2d(channels)
    layer.running_mean.data = rng.normal(size=channels)
    layer.running_var.data = rng.uniform(0.5, 2.0, channels)
    return layer.eval()


def recipe(rng: Rng, slope: float = 0.2) -> Recipe:
    """Return the blocks' recipe; a slope that is easy to tell from 0 and 1."""
    return Recipe(negative_slope=slope, rng=rng)


CASES = (
    case("Conv2d", "3×3, padding 1", lambda r: Conv2d(3, 4, 3, padding=1, rng=r), (2, 5, 4, 3)),
    case("Conv2d", "3×2, stride 2×1", lambda r: Conv2d(2, 3, (3, 2), (2, 1), (1, 0), rng=r), (2, 7, 5, 2)),
    case("Conv2d", "1×1, stride 2, no bias", lambda r: Conv2d(3, 2, 1, 2, bias=False, rng=r), (2, 5, 4, 3)),
    case(
        "Conv2d",
        "3×3 by Winograd",
        lambda r: Conv2d(3, 4, 3, padding=(1, 0), algorithm="winograd", rng=r),
        (2, 7, 6, 3),
    ),
    case("BatchNorm2d", "training", lambda r: BatchNorm2d(3), (3, 4, 5, 3)),
    case("BatchNorm2d", "eval", lambda r: trained_statistics(3, r), (3, 4, 5, 3)),
    case("ReLU", "", lambda r: ReLU(), (3, 4, 5, 2)),
    case("LeakyReLU", "slope 0.1", lambda r: LeakyReLU(0.1), (3, 4, 5, 2)),
    case("MaxPool2d", "3×3, stride 2, padding 1", lambda r: MaxPool2d(3, 2, 1), (2, 7, 6, 3)),
    case("MaxPool2d", "2×3, stride 1×2", lambda r: MaxPool2d((2, 3), (1, 2)), (2, 5, 8, 2)),
    case("GlobalAvgPool2d", "", lambda r: GlobalAvgPool2d(), (2, 4, 5, 3)),
    case("Flatten", "", lambda r: Flatten(), (2, 3, 4, 5)),
    case("Linear", "", lambda r: Linear(7, 5, rng=r), (4, 7)),
    case("Add", "", lambda r: Add(), (2, 3, 4, 5), (2, 3, 4, 5)),
    case("SoftmaxCrossEntropy", "", lambda r: LossOfLabels(r.integers(0, 6, 5), 0.0), (5, 6)),
    case("SoftmaxCrossEntropy", "smoothing 0.1", lambda r: LossOfLabels(r.integers(0, 6, 5), 0.1), (5, 6)),
    case(
        "Sequential",
        "conv, norm, act, pool",
        lambda r: Sequential(Conv2d(2, 3, 3, rng=r), BatchNorm2d(3), LeakyReLU(0.1), MaxPool2d(2)),
        (2, 7, 6, 2),
    ),
    case("PadShortcut", "2 → 4, stride 2", lambda r: PadShortcut(2, 4, 2), (2, 5, 4, 2)),
    case("PlainBasicBlock", "3 → 4, stride 2", lambda r: PlainBasicBlock(3, 4, 2, recipe(r)), (3, 7, 6, 3)),
    case("BasicBlock", "identity", lambda r: BasicBlock(3, 3, 1, recipe(r)), (3, 5, 4, 3)),
    case("BasicBlock", "by Winograd", lambda r: BasicBlock(3, 3, 1, Recipe(algorithm="winograd", rng=r)), (3, 5, 6, 3)),
    case("BasicBlock", "projection, stride 2", lambda r: BasicBlock(3, 4, 2, recipe(r)), (3, 7, 6, 3)),
    case("BasicBlock", "zero padding, stride 2", lambda r: BasicBlock(3, 4, 2, recipe(r), "A"), (3, 7, 6, 3)),
    case("Bottleneck", "identity", lambda r: Bottleneck(8, 2, 1, recipe(r)), (3, 5, 4, 8)),
    case("Bottleneck", "projection, stride 2", lambda r: Bottleneck(3, 2, 2, recipe(r)), (3, 7, 6, 3)),
    case(
        "ResNet18",
        "5 classes, 47×33 pictures",
        lambda r: resnet18(5, 1, rng=r),
        (3, 47, 33, 1),
        directions=2,
        step=1e-6,
        tolerance=1e-5,
    ),
)
