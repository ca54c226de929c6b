"""Surgery on trained networks: blocks taken out, put in another order, followed backwards one path at a time.

A residual network is a stem, a stack of n residual blocks and a head. Each block adds what comes over its branch and
what comes over its shortcut, so the stack is a bundle of 2ⁿ paths, one for each set of blocks entered by the branch
(Veit, Wilber and Belongie 2016, arXiv 1605.06431, section 3). Blocks are numbered from 0 in the order they are run.

Nothing here changes the network it is given: what comes back is a copy. Letters: N, H, W, C as in ``nn``, n blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import combinations, count
from math import comb

import numpy as np

from nn import Conv2d, Identity, Module, Sequential, SoftmaxCrossEntropy
from nn.backend import Array
from resnet.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, PlainBottleneck, shortcut_backward
from resnet.models import ResNet

Block = PlainBasicBlock | PlainBottleneck
ResidualBlock = BasicBlock | Bottleneck
Path = Sequence[int]  # numbers of the blocks that are entered by the branch


def stages(model: ResNet) -> dict[str, list[Block]]:
    """Return the blocks of each stage by the stage's name, "layer1" and so on."""
    return {
        name: [block for _, block in part.children() if isinstance(block, Block)]
        for name, part in model.children()
        if isinstance(part, Sequential)
    }


def block_names(model: ResNet) -> list[str]:
    """Return the blocks' names, "layer1.0" and so on, in order."""
    return [f"{stage}.{number}" for stage, some in stages(model).items() for number in range(len(some))]


def blocks(model: ResNet) -> list[Block]:
    """Return all blocks in order."""
    return [block for some in stages(model).values() for block in some]


def residual_blocks(model: ResNet) -> list[ResidualBlock]:
    """Return all blocks in order.

    Raises:
        ValueError: the network is a plain one.
    """
    found = [block for block in blocks(model) if isinstance(block, ResidualBlock)]
    if len(found) < len(blocks(model)):
        raise ValueError("expected a network of residual blocks, got a plain one: it has no shortcuts")
    return found


def split(model: ResNet) -> tuple[Sequential, Sequential, Sequential]:
    """Return what stands before the blocks, the blocks, and what stands behind; the layers are the network's own."""
    layers = [part for _, part in model.children()]
    places = [place for place, part in enumerate(layers) if isinstance(part, Sequential)]
    first, last = places[0], places[-1]
    return Sequential(*layers[:first]), Sequential(*blocks(model)), Sequential(*layers[last + 1 :])


# What a block does to its input's shape


def channels_and_stride(block: Block) -> tuple[int, int, int]:
    """Return a block's channels in, channels out and stride."""
    convolutions = [conv for _, conv in block.children() if isinstance(conv, Conv2d)]
    ins, outs = convolutions[0].weight.data.shape[2], convolutions[-1].weight.data.shape[3]  # (KH, KW, C, F)
    return ins, outs, max(conv.stride[0] for conv in convolutions)


def keeps_shape(block: Block) -> bool:
    """Whether what comes out has the shape of what goes in: then the shortcut is the identity."""
    ins, outs, stride = channels_and_stride(block)
    return ins == outs and stride == 1


def last_activation(block: Block) -> Module:
    """Return the activation at a block's end, behind the addition."""
    return block.relu3 if isinstance(block, PlainBottleneck) else block.relu2


# Blocks taken out or moved


def without(model: ResNet, deleted: Collection[int]) -> ResNet:
    """Return a copy of a network with the branches of some blocks taken out: y = act(shortcut(x)).

    Veit et al. 2016, section 4.1 and figure 2. A plain block has no shortcut; it loses all but its activation, too, and
    gets the shortcut without parameters in exchange: the identity, or where the shape changes He et al.'s option A.

    Args:
        model: plain or residual.
        deleted: numbers of the blocks.

    Returns:
        a network in the state of inference.

    Raises:
        ValueError: there are no such blocks.
    """
    total = len(blocks(model))
    if unknown := sorted(set(deleted) - set(range(total))):
        raise ValueError(f"expected blocks from 0 to {total - 1}, got {unknown}")
    copy, numbers = deepcopy(model), count()
    for name, some in stages(copy).items():
        left = [_without_branch(block) if next(numbers) in deleted else block for block in some]
        setattr(copy, name, Sequential(*left))
    return copy.inference()


def _without_branch(block: Block) -> Module:
    return Sequential(_shortcut(block), last_activation(block))


def _shortcut(block: Block) -> Module:
    if keeps_shape(block):
        return Identity()
    own: Module | None = getattr(block, "downsample", None)
    return PadShortcut(*channels_and_stride(block)) if own is None else own


def movable(model: ResNet) -> list[list[int]]:
    """Return the numbers of the blocks that can change places: stage by stage those that keep their input's shape."""
    numbers = count()
    numbered = [[(next(numbers), block) for block in some] for some in stages(model).values()]
    return [[number for number, block in some if keeps_shape(block)] for some in numbered]


def permuted(model: ResNet, order: Sequence[int]) -> ResNet:
    """Return a copy of a network that runs its blocks in another order (Veit et al. 2016, section 4.3).

    Args:
        model: plain or residual.
        order: ``order[place]`` is the number of the block that is run at that place.

    Returns:
        a network in the state of inference.

    Raises:
        ValueError: not an order of all blocks, or a block is to go where its shape does not fit.
    """
    copy = deepcopy(model)
    old, group_of = blocks(copy), {number: group for group, some in enumerate(movable(copy)) for number in some}
    if sorted(order) != list(range(len(old))):
        raise ValueError(f"expected each block from 0 to {len(old) - 1} once, got {list(order)}")
    for place, number in enumerate(order):
        if place != number and (place not in group_of or group_of.get(number) != group_of[place]):
            raise ValueError(f"block {number} cannot stand at place {place}: blocks move within {movable(copy)} only")
    numbers = iter(order)
    for name, some in stages(copy).items():
        setattr(copy, name, Sequential(*[old[next(numbers)] for _ in some]))
    return copy.inference()


# Paths


def subsets(n: int, size: int, most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return ``most`` different sets of ``size`` of the numbers 0 … n − 1, drawn evenly; all where there are no more.

    Raises:
        ValueError: a size below 0 or above n.
    """
    if not 0 <= size <= n:
        raise ValueError(f"expected a size from 0 to {n}, got {size}")
    if comb(n, size) <= most:
        return list(combinations(range(n), size))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < most:
        drawn[tuple(sorted(rng.choice(n, size, replace=False).tolist()))] = None
    return list(drawn)


def path_counts(model: ResNet) -> list[int]:
    """Return how many paths of each length 0 … n a network has: those that enter so many branches.

    A residual block lets each path go on in two ways, one of them longer by 1; a plain one in one, longer by 1. So the
    counts are the coefficients of a product with a factor 1 + z for each residual block and z for each plain one: of
    (1 + z)ⁿ for a residual network, the binomial coefficients.
    """
    counts = [1]
    for block in blocks(model):
        ways = int(isinstance(block, ResidualBlock))
        counts = [ways * short + long for short, long in zip([*counts, 0], [0, *counts], strict=True)]
    return counts


def path_backward(stack: Sequence[ResidualBlock], dy: Array, path: Path) -> Array:
    """Send a gradient back along one path through blocks whose forward was just run.

    Args:
        stack: the blocks.
        dy: gradient by the last block's output, (N, OH, OW, F).
        path: numbers of the blocks entered by the branch; the others are left by the shortcut.

    Returns:
        the path's share of the gradient by the first block's input, (N, H, W, C).
    """
    for number, block in reversed(list(enumerate(stack))):
        dy = last_activation(block).backward(dy)
        dy = block.branch_backward(dy) if number in path else shortcut_backward(block.downsample, dy)
    return dy


def path_gradients(model: ResNet, x: Array, labels: Array, paths: Iterable[Path]) -> Iterator[Array]:
    """Yield each path's share of the loss's gradient by the input of the first block.

    Forward goes through the whole network, backward along one path only (Veit et al. 2016, section 5). Shares of all
    2ⁿ paths add up to the whole gradient. Batch norm has its running statistics; the network stays as it is.

    Args:
        model: residual.
        x: pictures as the network takes them, (N, H, W, C).
        labels: (N,), on the CPU.
        paths: for each the numbers of the blocks entered by the branch.

    Yields:
        (N, H', W', C'), the shape of what the stem puts out.

    Raises:
        ValueError: the network is a plain one.
    """
    network = model.fuse().eval()  # a copy
    chain = residual_blocks(network)
    stem, stack, head = split(network)
    loss = SoftmaxCrossEntropy()
    start = stem(x)  # (N, H', W', C')
    loss(head(stack(start)), labels)
    dy = head.backward(loss.backward())  # by the last block's output: the same for all paths
    for path in paths:
        stack(start)  # each backward needs a forward of its own
        yield path_backward(chain, dy, path)
