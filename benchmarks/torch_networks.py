"""The same networks built from torch.nn parts alone, in torchvision's names: no shape, no formula of ours in them.

An oracle in the tests, the yardstick in the benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Style:
    """The activation and shortcut of a network.

    Attributes:
        activation: "leaky_relu" or "relu".
        negative_slope: of LeakyReLU.
        shortcut: "A" (zeros), "B" (projection) or None (plain).
        inplace: whether activations overwrite their input, as in torchvision; the tests look at that input afterwards.
    """

    activation: str
    negative_slope: float
    shortcut: str | None
    inplace: bool = False

    def act(self) -> nn.Module:
        """Return a new activation."""
        if self.activation == "relu":
            return nn.ReLU(self.inplace)
        return nn.LeakyReLU(self.negative_slope, self.inplace)


class OptionA(nn.Module):
    """Every ``stride``-th place, and zeros for the new channels."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def shortcut(channels: int, out_channels: int, stride: int, style: Style) -> nn.Module | None:
    """Return what a block's input passes on its way round the branch; None where it goes as it is, or not at all."""
    if style.shortcut is None or (stride == 1 and channels == out_channels):
        return None
    if style.shortcut == "A":
        return OptionA(out_channels - channels, stride)
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; He et al. 2015, figure 5, left."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = style.act()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride, style)
        self.relu2 = style.act()
        self.plain = style.shortcut is None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, OH, OW)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if not self.plain:
            y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu2(y)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1; the stride is on the 3×3, as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = style.act()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = style.act()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(channels, 4 * width, stride, style)
        self.relu3 = style.act()
        self.plain = style.shortcut is None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 · width, OH, OW)."""
        y = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        if not self.plain:
            y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu3(y)


class ResNet(nn.Module):
    """Stem "imagenet" or "small", stages layer1, layer2, …, global average, fc."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        stem: str,
        style: Style,
    ) -> None:
        super().__init__()
        channels = widths[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = style.act()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stages = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for number in range(depth):
                blocks.append(block(channels, width, 2 if stage > 0 and number == 0 else 1, style))
                channels = block.expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.stages.append(f"layer{stage + 1}")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


#: Block, depths, widths, shortcut of the networks that are compared (He et al. 2015, table 1 and section 4.2).
NETWORKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], tuple[int, ...], str | None]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), "B"),
    "resnet50": (Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), "B"),
    "resnet20": (BasicBlock, (3, 3, 3), (16, 32, 64), "A"),
    "plain20": (BasicBlock, (3, 3, 3), (16, 32, 64), None),
    "small basic": (BasicBlock, (1, 2, 1, 1), (3, 5, 6, 8), "B"),
    "small bottleneck": (Bottleneck, (1, 1, 2, 1), (2, 3, 4, 5), "B"),
    "small option A": (BasicBlock, (1, 2, 1), (4, 6, 9), "A"),
    "small plain": (BasicBlock, (1, 2, 1), (4, 6, 9), None),
    "small plain bottleneck": (Bottleneck, (1, 1, 1), (2, 3, 4), None),
}
