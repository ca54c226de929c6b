"""The networks: ResNet-18 … 152, their plain twins, and the CIFAR nets of He et al. 2015 (arXiv 1512.03385).

``python -m resnet.models resnet18 --input 224`` prints a network layer by layer. The names of all parts, and with them
the state dict, are torchvision's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypedDict, Unpack

import numpy as np

from nn import BatchNorm2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, Module, Sequential
from nn.backend import Array, array_module
from nn.profile import LayerRecord, layer_table, note_kept, record_layers
from resnet.blocks import BasicBlock, Bottleneck, PlainBasicBlock, PlainBottleneck, Recipe
from resnet.command import end_well, make_parser

STEMS = ("imagenet", "small")
BlockType = type[PlainBasicBlock] | type[PlainBottleneck]


class ResNet(Module):
    """Stem, stages of blocks, global average, linear classifier.

    The stem is "imagenet": 7×7 convolution with stride 2 and 3×3 max pooling with stride 2, which leave a quarter of
    the side; or "small": one 3×3 convolution that keeps the size, for pictures like CIFAR's.

    Args:
        block: class of the blocks.
        depths: blocks a stage.
        widths: width of each stage.
        num_classes: how many, K.
        in_channels: channels of the pictures: 3 for colour, 1 for grey.
        stem: "imagenet" or "small".
        zero_init_residual: start the last batch norm of every branch at 0, so that each block starts as its shortcut.
        recipe: activation and randomness.
        option: shortcut option, "A" or "B"; ignored by plain blocks.

    Raises:
        ValueError: an unknown stem, activation or option; fewer than one class or channel; a slope outside [0, 1];
            ``zero_init_residual`` without shortcuts.
    """

    def __init__(
        self,
        block: BlockType,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        num_classes: int,
        in_channels: int,
        stem: str,
        zero_init_residual: bool,
        recipe: Recipe,
        option: str,
    ) -> None:
        if stem not in STEMS:
            raise ValueError(f"expected a stem among {', '.join(STEMS)}, got {stem!r}")
        if num_classes < 1:
            raise ValueError(f"expected at least one class, got {num_classes}")
        self.num_classes, self.in_channels, self.stem = num_classes, in_channels, stem
        channels = widths[0]
        self.conv1 = (
            recipe.conv(in_channels, channels, 7, 2) if stem == "imagenet" else recipe.conv(in_channels, channels, 3)
        )
        self.bn1 = BatchNorm2d(channels)
        self.relu = recipe.act()
        if stem == "imagenet":
            self.maxpool = MaxPool2d(3, 2, 1)
        is_residual = issubclass(block, BasicBlock | Bottleneck)
        if zero_init_residual and not is_residual:
            raise ValueError("zero_init_residual needs shortcuts: a plain network would start as zero and stay there")
        more = {"option": option} if is_residual else {}
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 1 and number == 0 else 1  # only a stage's first block halves the size
                blocks.append(block(channels, width, stride, recipe, **more))
                channels = width * block.expansion
            setattr(self, f"layer{stage}", Sequential(*blocks))
        self.avgpool = GlobalAvgPool2d()
        self.flatten = Flatten()
        self.fc = Linear(channels, num_classes, rng=recipe.rng)
        if zero_init_residual:
            for _, module in self.named_modules():
                if isinstance(module, PlainBasicBlock | PlainBottleneck):
                    module.last_norm.weight.data[:] = 0

    def forward(self, x: Array) -> Array:
        """Pictures (N, H, W, C) -> logits (N, K).

        Raises:
            TypeError, ValueError: pictures of another dtype, with other channels or too small; training with a single
                value a channel (batch norm).
        """
        for _, part in self.children():  # the parts stand in the order in which they are used
            x = part(x)
        return x

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        """Gradient by the logits (N, K) -> gradient by the pictures (N, H, W, C).

        Without ``needs_dx`` the latter is left out and None returned: training has no use for it, and it costs as much
        as a forward of the first convolution.
        """
        for name, part in reversed(list(self.children())):
            dy = part.backward(dy, needs_dx) if name == "conv1" else part.backward(dy)
        return dy

    def norms(self) -> Iterator[tuple[str, str]]:
        """Yield the stem's convolution with its batch norm."""
        yield "conv1", "bn1"

    def embed(self, x: Array) -> Array:
        """Pictures (N, H, W, C) -> what the classifier looks at, one vector a picture (N, features)."""
        for name, part in self.children():
            if name != "fc":
                x = part(x)
        return x


class Options(TypedDict, total=False):
    """What every builder below takes besides the classes and channels.

    Attributes:
        activation: "leaky_relu" (the default) or "relu".
        negative_slope: of LeakyReLU, in [0, 1]; 0.01 by default.
        stem: "imagenet" (the default; the CIFAR nets have their own) or "small".
        zero_init_residual: start each residual block as its shortcut; False by default.
        algorithm: of 3×3 convolutions with stride 1: "auto" (the default), "im2col" or "winograd".
        rng: draws the initial weights; None, the default, for fresh randomness.
    """

    activation: str
    negative_slope: float
    algorithm: str
    stem: str
    zero_init_residual: bool
    rng: np.random.Generator | None


def build(
    block: BlockType,
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    num_classes: int,
    in_channels: int = 3,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    stem: str = "imagenet",
    zero_init_residual: bool = False,
    algorithm: str = "auto",
    rng: np.random.Generator | None = None,
    option: str = "B",
) -> ResNet:
    """Build any network of the family; arguments and errors as :class:`ResNet` and :class:`Options`."""
    recipe = Recipe(activation, negative_slope, np.random.default_rng() if rng is None else rng, algorithm)
    return ResNet(
        block,
        depths,
        widths,
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem,
        zero_init_residual=zero_init_residual,
        recipe=recipe,
        option=option,
    )


# He et al. 2015, table 1. Depth = 1 + layers a block · blocks + 1: the stem, the blocks, the classifier.
WIDTHS = (64, 128, 256, 512)


def resnet18(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-18: 2, 2, 2, 2 basic blocks; 11,689,512 parameters with 1000 classes."""
    return build(BasicBlock, (2, 2, 2, 2), WIDTHS, num_classes, in_channels, **options)


def resnet34(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-34: 3, 4, 6, 3 basic blocks; 21,797,672 parameters with 1000 classes."""
    return build(BasicBlock, (3, 4, 6, 3), WIDTHS, num_classes, in_channels, **options)


def resnet50(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-50: 3, 4, 6, 3 bottlenecks; 25,557,032 parameters with 1000 classes."""
    return build(Bottleneck, (3, 4, 6, 3), WIDTHS, num_classes, in_channels, **options)


def resnet101(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-101: 3, 4, 23, 3 bottlenecks; 44,549,160 parameters with 1000 classes."""
    return build(Bottleneck, (3, 4, 23, 3), WIDTHS, num_classes, in_channels, **options)


def resnet152(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-152: 3, 8, 36, 3 bottlenecks; 60,192,808 parameters with 1000 classes."""
    return build(Bottleneck, (3, 8, 36, 3), WIDTHS, num_classes, in_channels, **options)


def plain18(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-18 without its shortcuts."""
    return build(PlainBasicBlock, (2, 2, 2, 2), WIDTHS, num_classes, in_channels, **options)


def plain34(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-34 without its shortcuts."""
    return build(PlainBasicBlock, (3, 4, 6, 3), WIDTHS, num_classes, in_channels, **options)


def plain50(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-50 without its shortcuts."""
    return build(PlainBottleneck, (3, 4, 6, 3), WIDTHS, num_classes, in_channels, **options)


def plain101(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-101 without its shortcuts."""
    return build(PlainBottleneck, (3, 4, 23, 3), WIDTHS, num_classes, in_channels, **options)


def plain152(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """ResNet-152 without its shortcuts."""
    return build(PlainBottleneck, (3, 8, 36, 3), WIDTHS, num_classes, in_channels, **options)


def _cifar(block: BlockType, depth: int, num_classes: int, in_channels: int, options: Options) -> ResNet:
    """Build a CIFAR net of depth 6n + 2: three stages of n blocks, 16, 32 and 64 wide, option A (section 4.2)."""
    n = (depth - 2) // 6
    options.setdefault("stem", "small")
    return build(block, (n, n, n), (16, 32, 64), num_classes, in_channels, option="A", **options)


def resnet20(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-20; 269,722 parameters with 10 classes."""
    return _cifar(BasicBlock, 20, num_classes, in_channels, options)


def resnet32(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-32; 464,154 parameters with 10 classes."""
    return _cifar(BasicBlock, 32, num_classes, in_channels, options)


def resnet44(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-44; 658,586 parameters with 10 classes."""
    return _cifar(BasicBlock, 44, num_classes, in_channels, options)


def resnet56(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-56; 853,018 parameters with 10 classes."""
    return _cifar(BasicBlock, 56, num_classes, in_channels, options)


def resnet110(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-110; 1,727,962 parameters with 10 classes."""
    return _cifar(BasicBlock, 110, num_classes, in_channels, options)


def plain20(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-20 without its shortcuts, which have no parameters: as many parameters."""
    return _cifar(PlainBasicBlock, 20, num_classes, in_channels, options)


def plain32(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-32 without its shortcuts."""
    return _cifar(PlainBasicBlock, 32, num_classes, in_channels, options)


def plain44(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-44 without its shortcuts."""
    return _cifar(PlainBasicBlock, 44, num_classes, in_channels, options)


def plain56(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-56 without its shortcuts."""
    return _cifar(PlainBasicBlock, 56, num_classes, in_channels, options)


def plain110(num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """CIFAR ResNet-110 without its shortcuts."""
    return _cifar(PlainBasicBlock, 110, num_classes, in_channels, options)


MODELS: dict[str, Callable[..., ResNet]] = {
    builder.__name__: builder
    for builder in (
        *(resnet18, resnet34, resnet50, resnet101, resnet152, plain18, plain34, plain50, plain101, plain152),
        *(resnet20, resnet32, resnet44, resnet56, resnet110, plain20, plain32, plain44, plain56, plain110),
    )
}


def make_model(name: str, num_classes: int, in_channels: int = 3, **options: Unpack[Options]) -> ResNet:
    """Build the network called ``name``, e.g. "resnet18".

    Raises:
        ValueError: an unknown name; otherwise as :class:`ResNet`.
    """
    if name not in MODELS:
        raise ValueError(f"expected a network among {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](num_classes, in_channels, **options)


def summarize(model: ResNet, size: int, batch: int = 1) -> list[LayerRecord]:
    """Run ``batch`` empty pictures of side ``size`` through ``model``; return a record of each layer, in order.

    The model is in its state of before afterwards, training or not, and keeps nothing.

    Raises:
        ValueError: a size or batch below 1.
        MemoryError: pictures too large for this machine.
    """
    if size < 1 or batch < 1:
        raise ValueError(f"expected a picture size and a batch of at least 1, got {size} and {batch}")
    weight, was_training = model.fc.weight.data, model.training
    model.eval()  # keeps for backward what training keeps, and welcomes a batch of one
    with record_layers(model) as records:
        model(array_module(weight).zeros((batch, size, size, model.in_channels), weight.dtype))
    note_kept(model, records)
    if was_training:
        model.train()
    else:
        model.eval()
    return records


def main(arguments: list[str] | None = None) -> int:
    """Print a network as a table: the command ``python -m resnet.models``. Returns the exit status."""
    parser = make_parser("python -m resnet.models", "Print a network layer by layer.")
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--input", type=int, default=224, help="side of the pictures (224)")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes (1000)")
    parser.add_argument("--channels", type=int, default=3, help="channels of the pictures (3)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a batch, for shapes and bytes (1)")
    options = parser.parse_args(arguments)

    def work() -> int:
        model = make_model(options.model, options.classes, options.channels)
        records = summarize(model, options.input, options.batch)
        print(f"{options.model}: pictures {options.batch} × {options.input} × {options.input} × {options.channels}")
        print(layer_table(records))
        return 0

    return end_well(work, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
