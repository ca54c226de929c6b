"""The blocks of a ResNet, and their plain twins without the shortcut (He et al. 2015, arXiv 1512.03385, figure 5).

A residual block computes y = act(branch(x) + shortcut(x)). The branch is two 3×3 convolutions (BasicBlock) or
1×1, 3×3, 1×1 (Bottleneck), each followed by batch norm, all but the last by the activation. The names of the parts are
torchvision's: conv1, bn1, …, downsample.0, downsample.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nn import Add, BatchNorm2d, Conv2d, LeakyReLU, Module, ReLU, Sequential
from nn.backend import Array, array_module
from nn.conv import ALGORITHMS
from nn.residual import add_forward

ACTIVATIONS = ("leaky_relu", "relu")


@dataclass(frozen=True)
class Recipe:
    """What all blocks of one network have in common.

    Attributes:
        activation: "leaky_relu" or "relu".
        negative_slope: of LeakyReLU.
        rng: draws the initial weights.
        algorithm: of the convolutions that Winograd's can compute; the others are im2col.
    """

    activation: str = "leaky_relu"
    negative_slope: float = 0.01
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"expected an algorithm among {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        LeakyReLU(self.negative_slope)  # raises on a slope out of range

    def act(self) -> Module:
        """Return a new activation."""
        return ReLU() if self.activation == "relu" else LeakyReLU(self.negative_slope)

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> Conv2d:
        """Return a convolution without bias that keeps the size (but for its stride), He-initialised."""
        return Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            kernel // 2,
            bias=False,
            algorithm=self.algorithm if (kernel, stride) == (3, 1) else "im2col",
            negative_slope=0.0 if self.activation == "relu" else self.negative_slope,
            rng=self.rng,
        )


class PadShortcut(Module):
    """He et al.'s option A: a shortcut to more channels and fewer places that has no parameters.

    Takes every ``stride``-th place and fills the new channels with zeros.

    Args:
        in_channels: how many, C.
        out_channels: F >= C.
        stride: step between the places taken.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        if out_channels < in_channels:
            raise ValueError(f"expected at least as many channels out as in, got {in_channels} → {out_channels}")
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, F)."""
        self.keep(x.shape)
        taken = x[:, :: self.stride, :: self.stride]  # (N, OH, OW, C)
        y = array_module(x).zeros((*taken.shape[:3], self.out_channels), dtype=x.dtype)
        y[..., : self.in_channels] = taken
        return y

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, F) -> (N, H, W, C)."""
        dx = array_module(dy).zeros(self.take(), dtype=dy.dtype)
        dx[:, :: self.stride, :: self.stride] = dy[..., : self.in_channels]  # (N, OH, OW, C)
        return dx

    def describe(self) -> str:
        """Return e.g. "16 → 32, stride 2"."""
        return f"{self.in_channels} → {self.out_channels}, stride {self.stride}"


class PlainBasicBlock(Module):
    """Two 3×3 convolutions, no shortcut: y = act(bn2(conv2(act(bn1(conv1(x)))))).

    Args:
        in_channels: channels of x.
        channels: width of the block; its output has ``channels · expansion``.
        stride: of the first 3×3 convolution.
        recipe: activation and randomness.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, recipe: Recipe) -> None:
        self.conv1 = recipe.conv(in_channels, channels, 3, stride)
        self.bn1 = BatchNorm2d(channels)
        self.relu1 = recipe.act()
        self.conv2 = recipe.conv(channels, channels, 3)
        self.bn2 = BatchNorm2d(channels)
        self.relu2 = recipe.act()

    def branch_forward(self, x: Array) -> Array:
        """Run everything before the last activation: (N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def branch_backward(self, dy: Array) -> Array:
        """Run the branch's backwards: (N, OH, OW, channels · expansion) -> (N, H, W, C)."""
        dy = self.conv2.backward(self.bn2.backward(dy))
        return self.conv1.backward(self.bn1.backward(self.relu1.backward(dy)))

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        return self.relu2(self.branch_forward(x))

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, channels · expansion) -> (N, H, W, C)."""
        return self.branch_backward(self.relu2.backward(dy))

    def norms(self) -> Iterator[tuple[str, str]]:
        """Yield each convolution with its batch norm."""
        yield from (("conv1", "bn1"), ("conv2", "bn2"))

    @property
    def last_norm(self) -> BatchNorm2d:
        """The batch norm at the branch's end; with its scale at 0 a residual block starts as its shortcut alone."""
        return self.bn2


class PlainBottleneck(Module):
    """1×1 down, 3×3, 1×1 up to four times the width; no shortcut. The stride is on the 3×3, as in torchvision.

    Args: as :class:`PlainBasicBlock`.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, recipe: Recipe) -> None:
        self.conv1 = recipe.conv(in_channels, channels, 1)
        self.bn1 = BatchNorm2d(channels)
        self.relu1 = recipe.act()
        self.conv2 = recipe.conv(channels, channels, 3, stride)
        self.bn2 = BatchNorm2d(channels)
        self.relu2 = recipe.act()
        self.conv3 = recipe.conv(channels, channels * self.expansion, 1)
        self.bn3 = BatchNorm2d(channels * self.expansion)
        self.relu3 = recipe.act()

    def branch_forward(self, x: Array) -> Array:
        """Run everything before the last activation: (N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def branch_backward(self, dy: Array) -> Array:
        """Run the branch's backwards: (N, OH, OW, channels · expansion) -> (N, H, W, C)."""
        dy = self.conv3.backward(self.bn3.backward(dy))
        dy = self.conv2.backward(self.bn2.backward(self.relu2.backward(dy)))
        return self.conv1.backward(self.bn1.backward(self.relu1.backward(dy)))

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        return self.relu3(self.branch_forward(x))

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, channels · expansion) -> (N, H, W, C)."""
        return self.branch_backward(self.relu3.backward(dy))

    def norms(self) -> Iterator[tuple[str, str]]:
        """Yield each convolution with its batch norm."""
        yield from (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    @property
    def last_norm(self) -> BatchNorm2d:
        """The batch norm at the branch's end."""
        return self.bn3


def make_shortcut(in_channels: int, out_channels: int, stride: int, option: str, recipe: Recipe) -> Module | None:
    """Return what stands on a shortcut, or None where x can be added as it is.

    Args:
        in_channels: channels of x.
        out_channels: channels of the branch.
        stride: of the branch.
        option: "A" (zeros, no parameters) or "B" (1×1 convolution and batch norm): He et al. 2015, section 4.1.
        recipe: randomness.

    Raises:
        ValueError: another option.
    """
    if option not in ("A", "B"):
        raise ValueError(f"expected shortcut option 'A' or 'B', got {option!r}")
    if stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return Sequential(recipe.conv(in_channels, out_channels, 1, stride), BatchNorm2d(out_channels))


class BasicBlock(PlainBasicBlock):
    """:class:`PlainBasicBlock` with a shortcut: y = act(branch(x) + shortcut(x)).

    Args:
        in_channels, channels, stride, recipe: as :class:`PlainBasicBlock`.
        option: what a shortcut does where size or channels change: see :func:`make_shortcut`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, recipe: Recipe, option: str = "B") -> None:
        super().__init__(in_channels, channels, stride, recipe)
        self.downsample = make_shortcut(in_channels, channels * self.expansion, stride, option, recipe)
        self.add = Add()

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        return self.relu2(self.add(self.branch_forward(x), shortcut_forward(self.downsample, x)))

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, channels · expansion) -> (N, H, W, C): the gradients of both ways into x add up."""
        dbranch, dshortcut = self.add.backward(self.relu2.backward(dy))
        return add_forward(self.branch_backward(dbranch), shortcut_backward(self.downsample, dshortcut))


class Bottleneck(PlainBottleneck):
    """:class:`PlainBottleneck` with a shortcut: y = act(branch(x) + shortcut(x)).

    Args: as :class:`BasicBlock`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, recipe: Recipe, option: str = "B") -> None:
        super().__init__(in_channels, channels, stride, recipe)
        self.downsample = make_shortcut(in_channels, channels * self.expansion, stride, option, recipe)
        self.add = Add()

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, OH, OW, channels · expansion)."""
        return self.relu3(self.add(self.branch_forward(x), shortcut_forward(self.downsample, x)))

    def backward(self, dy: Array) -> Array:
        """(N, OH, OW, channels · expansion) -> (N, H, W, C): the gradients of both ways into x add up."""
        dbranch, dshortcut = self.add.backward(self.relu3.backward(dy))
        return add_forward(self.branch_backward(dbranch), shortcut_backward(self.downsample, dshortcut))


def shortcut_forward(downsample: Module | None, x: Array) -> Array:
    """Return what reaches the add by the shortcut: x itself where nothing stands on it."""
    return x if downsample is None else downsample(x)


def shortcut_backward(downsample: Module | None, dy: Array) -> Array:
    """Return what comes back by the shortcut."""
    return dy if downsample is None else downsample.backward(dy)
