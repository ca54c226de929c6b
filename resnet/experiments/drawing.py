"""Networks as pictures: a network that has run becomes a structure, a structure boxes and lines, these a figure.

Four functions::

    read            what ran, in order: rows of layers and blocks, each with its output size
    draw_blocks     blocks from top to bottom, every layer a box
    draw_network    a whole network, a row a stage, shortcuts as arcs, solid if identities
    render          boxes, lines and texts as a figure

Nothing is drawn that was not found in the model. Lengths are inches, y points down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import dist
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from nn import Add, BatchNorm2d, Conv2d, GlobalAvgPool2d, LeakyReLU, Linear, MaxPool2d, Module, ReLU, Sequential
from resnet.blocks import PadShortcut
from resnet.experiments import figures
from resnet.models import ResNet, summarize

# What ran


class Step(NamedTuple):
    """A layer that ran.

    Attributes:
        name: dotted, in the network.
        module: the layer.
        shape: of its output for one picture: (H, W, C), later (C,).
        multiply_adds: for one picture.
    """

    name: str
    module: Module
    shape: tuple[int, ...]
    multiply_adds: int


class Block(NamedTuple):
    """A block of a stage.

    Attributes:
        name: dotted, in the network.
        module: the block.
        in_shape: of what it is given.
        branch: its layers up to the add; without an add all of them.
        shortcut: the layers beside the branch: none for an identity. None if there is no shortcut.
        rest: the add and what comes after it.
    """

    name: str
    module: Module
    in_shape: tuple[int, ...]
    branch: tuple[Step, ...]
    shortcut: tuple[Step, ...] | None
    rest: tuple[Step, ...]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """What comes out."""
        return (self.rest or self.branch)[-1].shape


class Row(NamedTuple):
    """A stage of blocks, or the layers before or after the stages.

    Attributes:
        name: of the stage, else "".
        in_shape: of what it is given.
        layers: those that are in no block.
        blocks: of the stage.
    """

    name: str
    in_shape: tuple[int, ...]
    layers: tuple[Step, ...]
    blocks: tuple[Block, ...]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """What comes out."""
        return self.blocks[-1].out_shape if self.blocks else self.layers[-1].shape


def read(model: ResNet, size: int) -> list[Row]:
    """Run an empty picture of ``size`` × ``size`` through a network and return what ran, in order."""
    modules = dict(model.named_modules())
    steps = [Step(r.name, modules[r.name], r.shape[1:], r.multiply_adds) for r in summarize(model, size)]
    shape: tuple[int, ...] = (size, size, model.in_channels)
    rows = []

    def stage(step: Step) -> str:
        name = step.name.split(".")[0]
        return name if isinstance(modules[name], Sequential) else ""

    for name, together in groupby(steps, stage):
        layers = tuple(together)
        rows.append(Row(name, shape, (), _blocks(layers, modules, shape)) if name else Row(name, shape, layers, ()))
        shape = rows[-1].out_shape
    return rows


def _blocks(steps: Iterable[Step], modules: dict[str, Module], shape: tuple[int, ...]) -> tuple[Block, ...]:
    blocks = []
    for name, together in groupby(steps, lambda step: ".".join(step.name.split(".")[:2])):
        inside = list(together)
        add = next((place for place, step in enumerate(inside) if isinstance(step.module, Add)), len(inside))
        beside = tuple(step for step in inside if step.name.startswith(f"{name}.downsample"))
        branch = tuple(step for step in inside[:add] if step not in beside)
        shortcut = beside if add < len(inside) else None
        blocks.append(Block(name, modules[name], shape, branch, shortcut, tuple(inside[add:])))
        shape = inside[-1].shape
    return tuple(blocks)


# Words


def label(module: Module) -> str:
    """Return a layer as He et al. write it in their figure 3: "3×3 conv, 64, /2"."""
    if isinstance(module, Conv2d):
        kh, kw, _, channels = module.weight.data.shape
        return f"{kh}×{kw} conv, {channels}{_halved(module.stride[0])}"
    if isinstance(module, MaxPool2d):
        return "{}×{} max pool".format(*module.kernel_size) + _halved(module.stride[0])
    if isinstance(module, PadShortcut):
        return f"zeros, {module.out_channels}{_halved(module.stride)}"
    if isinstance(module, Linear):
        return f"fc, {module.weight.data.shape[1]}"
    short = {Add: "+", BatchNorm2d: "BN", GlobalAvgPool2d: "average pool"}
    return short.get(type(module), type(module).__name__)


def _halved(stride: int) -> str:
    return "" if stride == 1 else f", /{stride}"


def _role(block: Block) -> Role:
    if block.shortcut is None:
        return "none"
    if any(_has_weights(step) for step in block.shortcut):
        return "projection"
    return "padding" if block.shortcut else "identity"


def sizes(shape: tuple[int, ...]) -> str:
    """Return e.g. "56 × 56 × 64"."""
    return " × ".join(map(str, shape))


# Boxes, lines, texts

Point = tuple[float, float]
Role = Literal["flow", "identity", "projection", "padding", "none"]
DASHED = ("projection", "padding")  # what changes the shape, as in figure 3 of He et al.


@dataclass(frozen=True)
class Box:
    """A rectangle with a text of one or more lines in its middle.

    Attributes:
        name: of the first layer that it stands for.
        text: what stands in it.
        x, y: left, top.
        width, height: inches.
        shaded: whether it is grey; layers with weights are.
        circle: whether it is a circle instead.
    """

    name: str
    text: str
    x: float
    y: float
    width: float
    height: float
    shaded: bool = False
    circle: bool = False

    @property
    def middle(self) -> Point:
        """Its centre."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Line:
    """A line through points, its corners rounded.

    Attributes:
        points: at least two.
        role: what it stands for: the flow of pictures, or a shortcut of this kind.
        head: whether it ends in an arrow's head.
    """

    points: tuple[Point, ...]
    role: Role = "flow"
    head: bool = True


@dataclass(frozen=True)
class Text:
    """A line of text at a point.

    Attributes:
        x, y: its left end or its middle.
        text: the words.
        align: whether x is its left end or its middle.
        bold: or not.
        covers: whether it blanks the line under it.
    """

    x: float
    y: float
    text: str
    align: Literal["left", "center"] = "left"
    bold: bool = False
    covers: bool = False


@dataclass
class Drawing:
    """A page of so many inches, and all that is on it; ``size`` is that of its letters in points."""

    size: float
    width: float = 0.0
    height: float = 0.0
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def render(page: Drawing) -> Figure:
    """Return a drawing as a figure: lines lowest, then boxes, then texts."""
    figure = figures.new(page.width, page.height)
    figure.set_layout_engine("none")  # everything has its place already
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, page.width), ylim=(page.height, 0))
    axes.set_axis_off()
    for line in page.lines:
        head = "-|>,head_length=4,head_width=2" if line.head else "-"
        dashes = (0, (4, 2.5)) if line.role in DASHED else "-"
        path = _rounded(line.points)
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle=head, linestyle=dashes, linewidth=INK, color="black"))
    for box in page.boxes:
        look: dict[str, Any] = {"fc": "#e8e8e8" if box.shaded else "white", "ec": "black", "linewidth": INK}
        if box.circle:
            axes.add_patch(Circle(box.middle, box.width / 2, **look))
        else:
            style = "round,pad=0,rounding_size=0.03"
            axes.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, style, **look))
        _write(axes, page.size, Text(*box.middle, box.text, "center"))
    for text in page.texts:
        _write(axes, page.size, text)
    return figure


INK = 0.9  # width of all lines, in points


def _write(axes: Axes, size: float, text: Text) -> None:
    """Write line by line, each on its own baseline: a centred text would move up and down with its letters."""
    lines = text.text.split("\n")
    for number, line in enumerate(lines):
        middle = text.y + (number - (len(lines) - 1) / 2) * 1.4 * size / 72
        axes.text(
            text.x,
            middle + 0.36 * size / 72,  # capital letters are 0.72 of the size high
            line,
            size=size,
            ha=text.align,
            va="baseline",
            weight="bold" if text.bold else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2} if text.covers else None,
        )


def _rounded(points: Sequence[Point], radius: float = 0.08) -> Path:
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near = min(radius, dist(before, corner) / 2, dist(corner, after) / 2)
        vertices += [_towards(corner, before, near), corner, _towards(corner, after, near)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _towards(start: Point, end: Point, distance: float) -> Point:
    share = distance / dist(start, end)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _units(steps: Iterable[Step]) -> list[list[Step]]:
    """Return layers in groups: batch norm and activation go with what they follow, but not with an add."""
    groups: list[list[Step]] = []
    for step in steps:
        joins = isinstance(step.module, BatchNorm2d | ReLU | LeakyReLU)
        if groups and joins and not isinstance(groups[-1][-1].module, Add):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _has_weights(step: Step) -> bool:
    return isinstance(step.module, Conv2d | Linear)


CIRCLE = 0.2  # diameter of an add

# Blocks, from top to bottom

LAYER, BESIDE, HIGH = 1.56, 1.3, 0.27  # width of a layer's box in the branch and on the shortcut, height
DROP, BETWEEN, ASIDE = 0.26, 0.32, 0.36  # gap between boxes, gap to what stands beside, to an identity's line


def draw_blocks(blocks: Iterable[tuple[str, Block]]) -> Drawing:
    """Lay out blocks beside each other: a box a layer, a line a shortcut.

    Args:
        blocks: each with a line that tells where it stands.
    """
    page = Drawing(size=9)
    left = 0.15
    for where, block in blocks:
        left = _block_down(page, where, block, left)
    page.width = left - BETWEEN + 0.12
    page.height = max(text.y for text in page.texts) + 0.2
    return page


def _block_down(page: Drawing, where: str, block: Block, left: float) -> float:
    """Lay out one block; return where the next one begins."""
    x, fork, y = left + LAYER / 2, 1.0, 1.24
    side = x + LAYER / 2 + (BETWEEN + BESIDE / 2 if block.shortcut else ASIDE)
    page.texts += [
        Text(left, 0.18, f"{type(block.module).__name__}, {_role(block).replace('none', 'no')} shortcut", bold=True),
        Text(left, 0.38, where),
        Text(x, 0.74, sizes(block.in_shape), "center"),
    ]
    way = (x, 0.86)
    for group in _units((*block.branch, *block.rest)):
        page.lines.append(Line((way, (x, y))))
        if isinstance(group[0].module, Add):
            page.boxes.append(_plus(group[0], x, y + CIRCLE / 2))
            _shortcut_down(page, block, (x, fork), (x + CIRCLE / 2, y + CIRCLE / 2), side)
            y += CIRCLE
        else:
            y = _stack(page, group, x, y, LAYER)
        way = (x, y)
        y += DROP
    page.lines.append(Line((way, (x, y))))
    page.texts += [
        Text(x, y + 0.12, sizes(block.out_shape), "center"),
        Text(x, y + 0.34, f"{block.module.count_parameters():,} parameters", "center"),
    ]
    return (x + LAYER / 2 if block.shortcut is None else side + (BESIDE / 2 if block.shortcut else ASIDE / 2)) + BETWEEN


def _shortcut_down(page: Drawing, block: Block, fork: Point, join: Point, x: float) -> None:
    """Lay out a block's shortcut: from the fork aside to ``x``, down, and back to the add."""
    middle = (fork[1] + join[1]) / 2
    page.lines.append(Line((fork, (x, fork[1]), (x, join[1]), join), _role(block)))
    if block.shortcut:
        _stack(page, block.shortcut, x, middle - HIGH * len(block.shortcut) / 2, BESIDE)
    else:
        page.texts.append(Text(x, middle, "identity", "center", covers=True))


def _stack(page: Drawing, steps: Sequence[Step], x: float, y: float, width: float) -> float:
    """Put layers on top of each other without a gap, their middle at ``x``; return where they end."""
    for step in steps:
        slope = step.module.describe() if isinstance(step.module, LeakyReLU) else ""
        text = ", ".join(filter(None, (label(step.module), slope)))
        page.boxes.append(Box(step.name, text, x - width / 2, y, width, HIGH, shaded=_has_weights(step)))
        y += HIGH
    return y


def _plus(step: Step, x: float, y: float) -> Box:
    return Box(step.name, label(step.module), x - CIRCLE / 2, y - CIRCLE / 2, CIRCLE, CIRCLE, circle=True)


# A network, a row a stage

WIDE, TALL, NARROW, LOW = 1.0, 0.54, 0.72, 0.3  # width and height of a box, of an activation's box
AHEAD, GAP = 0.27, 0.14  # gap before a block, gap within a block
ARC, LANE = 0.22, 0.16  # how far a shortcut rises over the boxes, room around the line from row to row
MARGIN, FIRST = 0.08, 1.02  # left of the rows' names, left of the rows' first arrows


def draw_network(rows: Sequence[Row]) -> Drawing:
    """Lay out a network, a row a stage: a box a convolution with what follows it, an arc a shortcut."""
    page = Drawing(size=8)
    way: tuple[Point, ...] = ()
    bottom = MARGIN - 2 * LANE
    for row in rows:
        turn = bottom + LANE  # where the line runs from the end of one row to the beginning of the next
        y = turn + LANE + TALL / 2 + ARC * any(block.shortcut is not None for block in row.blocks)
        if way:
            x, before = way[-1]
            way = ((x, before), (x + LANE, before), (x + LANE, turn), (FIRST, turn), (FIRST, y))
            name, shape = row.name or "output", row.out_shape
        else:
            way = ((FIRST, y),)
            name, shape = "input", row.in_shape
        page.texts += [Text(MARGIN, y - 0.08, name, bold=True), Text(MARGIN, y + 0.08, sizes(shape))]
        for block in row.blocks:
            way = _block_across(page, block, way)
        for group in _units(row.layers):
            way = _box_across(page, group, way, AHEAD)
            page.texts.append(Text(page.boxes[-1].middle[0], y + TALL / 2 + 0.11, sizes(group[-1].shape), "center"))
        bottom = y + TALL / 2 + (0.17 if row.layers else 0)
    page.width = max(x for line in page.lines for x, _ in line.points) + MARGIN
    page.texts.append(Text(MARGIN, bottom + 0.27, _notes(page, rows)))
    page.height = bottom + 0.42
    return page


def _block_across(page: Drawing, block: Block, way: tuple[Point, ...]) -> tuple[Point, ...]:
    """Lay out one block from the end of ``way``; return the way from there on."""
    fork, y = way[-1][0] + AHEAD / 2, way[-1][1]
    for number, group in enumerate(_units((*block.branch, *block.rest))):
        way = _box_across(page, group, way, GAP if number else AHEAD)
        if isinstance(group[0].module, Add):
            x, top = way[-1][0] - CIRCLE / 2, y - TALL / 2 - ARC
            page.lines.append(Line(((fork, y), (fork, top), (x, top), (x, y - CIRCLE / 2)), _role(block)))
            if block.shortcut:
                text = ", ".join(label(step.module) for step in block.shortcut)
                page.texts.append(Text((fork + x) / 2, top, text, "center", covers=True))
    return way


def _box_across(page: Drawing, steps: Sequence[Step], way: tuple[Point, ...], gap: float) -> tuple[Point, ...]:
    """Put layers into one box, ``gap`` to the right of the end of ``way``; return the way from there on."""
    first = steps[0]
    x, y = way[-1][0] + gap, way[-1][1]
    page.lines.append(Line((*way, (x, y))))
    if isinstance(first.module, Add):
        box = _plus(first, x + CIRCLE / 2, y)
    else:
        width, height = (NARROW, LOW) if isinstance(first.module, ReLU | LeakyReLU) else (WIDE, TALL)
        lines = (*label(first.module).split(", ", 1), ", ".join(label(step.module) for step in steps[1:]))
        text = "\n".join(filter(None, lines))
        box = Box(first.name, text, x, y - height / 2, width, height, shaded=_has_weights(first))
    page.boxes.append(box)
    return ((box.x + box.width, y),)


def _notes(page: Drawing, rows: Sequence[Row]) -> str:
    """Return what the signs in a drawing mean."""
    layers = [step for row in rows for step in (*row.layers, *(s for b in row.blocks for s in (*b.branch, *b.rest)))]
    slopes = {f"{label(s.module)}: {s.module.describe()}" for s in layers if isinstance(s.module, LeakyReLU)}
    roles = {line.role for line in page.lines}
    arcs = ["solid arc: identity"] if "identity" in roles else []
    arcs += [f"dashed arc: {role}" for role in DASHED if role in roles]
    return "      ".join(("height × width × channels", "/2: stride 2", "BN: batch norm", *sorted(slopes), *arcs))
