"""The same networks built from torch.nn parts, in torchvision's names, and an interpreter between the two worlds.

Nothing here comes from our own code: not the shapes, not the formulas, not the gradients. Letters: N pictures, H × W
places, C channels. PyTorch's pictures are (N, C, H, W), ours (N, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from experiment import Answer, Settings
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[Any]


@dataclass(frozen=True)
class Style:
    """The activation and shortcut of a network; ``shortcut`` is "A" (zeros), "B" (projection) or None (plain)."""

    activation: str
    negative_slope: float
    shortcut: str | None

    def act(self) -> nn.Module:
        return nn.ReLU() if self.activation == "relu" else nn.LeakyReLU(self.negative_slope)


class OptionA(nn.Module):
    """Every ``stride``-th place, and zeros for the new channels."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def shortcut(channels: int, out_channels: int, stride: int, style: Style) -> nn.Module | None:
    if style.shortcut is None or (stride == 1 and channels == out_channels):
        return None
    if style.shortcut == "A":
        return OptionA(out_channels - channels, stride)
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
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
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if not self.plain:
            y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu2(y)


class Bottleneck(nn.Module):
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
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


#: Block, depths, widths, shortcut of the networks that the tests compare (He et al. 2015, table 1 and section 4.2).
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


class TorchNetwork:
    """A PyTorch network that speaks our language: pictures (N, H, W, C), NumPy arrays in and out.

    Answers the questions of ``experiment.Network``; gradients are autograd's, the steps those of ``torch.optim``.
    """

    def __init__(self, settings: Settings, dtype: str) -> None:
        block, depths, widths, option = NETWORKS[settings.network]
        style = Style(settings.activation, settings.negative_slope, option)
        self.model = ResNet(block, depths, widths, settings.classes, settings.channels, settings.stem, style)
        self.dtype = getattr(torch, dtype)
        self.model.to(self.dtype)
        start = settings.start(self.state_dict())
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in start.items()}, strict=True)
        self.label_smoothing = settings.label_smoothing
        self.optimizer = make_optimizer(self.model, settings)
        self.seen: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ReLU | nn.LeakyReLU | nn.MaxPool2d):
                module.register_forward_hook(partial(self._note, name))

    def _note(self, name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.seen[name] = inputs[0].detach()

    def answer(self, pictures: Array, labels: Array, training: bool) -> Answer:
        self.model.train(training)
        self.model.zero_grad()
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        x = x.to(self.dtype).contiguous().requires_grad_()
        logits = self.model(x)
        loss = functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=self.label_smoothing)
        loss.backward()
        dpictures = x.grad.permute(0, 2, 3, 1).numpy()  # (N, C, H, W) -> (N, H, W, C)
        return Answer(loss.detach().numpy(), logits.detach().numpy(), dpictures)

    def grad_dict(self) -> dict[str, Array]:
        return {name: parameter.grad.numpy().copy() for name, parameter in self.model.named_parameters()}

    def step(self) -> None:
        self.optimizer.step()

    def state_dict(self) -> dict[str, Array]:
        return {name: tensor.numpy().copy() for name, tensor in self.model.state_dict().items()}

    def pieces(self) -> dict[str, Array]:
        """Where each activation was positive and which place each max-pooling window chose, in the last forward."""
        return {name: self._piece(self.model.get_submodule(name), x) for name, x in self.seen.items()}

    def _piece(self, module: nn.Module, x: Tensor) -> Array:
        if not isinstance(module, nn.MaxPool2d):
            return (x > 0).permute(0, 2, 3, 1).numpy()  # (N, C, H, W) -> (N, H, W, C)
        _, place = functional.max_pool2d(x, 3, 2, 1, return_indices=True)  # row · W + column, (N, C, OH, OW)
        return place.permute(0, 2, 3, 1).numpy()  # (N, C, OH, OW) -> (N, OH, OW, C)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD; without ``decay_all`` only matrices and kernels decay, not biases and batch norm's parameters."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if settings.decay_all or p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if not settings.decay_all and p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.nesterov)
