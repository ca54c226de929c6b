"""The five networks, the two residual modules, and ResNet-18 as a whole.

Claim: these are the networks of He et al. 2015: ResNet-18, 34, 50, 101 and 152 of their Table 1, and the networks for
CIFAR-10 of their section 4.2.

Criterion: run once, each of the five has Table 1's output sizes and layers, row by row; the number in its name is its
number of layers with weights; its parameters and multiply-adds are torchvision's, to the unit; and with the stride of a
bottleneck moved from the 3×3 to the first 1×1, where the paper has it, the multiply-adds are less than 0.1 × 10⁹ from
the paper's. The networks for CIFAR-10 and their plain twins have the known numbers of parameters, to the unit.

Tables and drawings come from walking the model objects; only what they are compared with is written down here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from nn import Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, Module
from resnet.experiments.drawing import Block, Drawing, Line, Row, Step, Text, draw_blocks, draw_network, read, render
from resnet.experiments.harness import Cell, Lab, Result, markdown
from resnet.models import make_model, resnet18, resnet50

# What is known


class Published(NamedTuple):
    """What is known of a network for ImageNet.

    Attributes:
        times: blocks a stage (He et al., Table 1).
        billions: multiply-adds in 10⁹ (He et al., Table 1).
        parameters: in torchvision.
        multiply_adds: of convolutions and classifier in torchvision, where a bottleneck's stride is on its 3×3.
    """

    times: tuple[int, int, int, int]
    billions: float
    parameters: int
    multiply_adds: int


IMAGENET = {
    "resnet18": Published((2, 2, 2, 2), 1.8, 11_689_512, 1_814_073_344),
    "resnet34": Published((3, 4, 6, 3), 3.6, 21_797_672, 3_663_761_408),
    "resnet50": Published((3, 4, 6, 3), 3.8, 25_557_032, 4_089_184_256),
    "resnet101": Published((3, 4, 23, 3), 7.6, 44_549_160, 7_801_405_440),
    "resnet152": Published((3, 8, 36, 3), 11.3, 60_192_808, 11_513_626_624),
}
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
"""Parameters by depth. He et al., Table 6, round them: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""


def table_1(name: str) -> list[Result]:
    """Return a column of He et al.'s Table 1, as :func:`table_rows` returns that of a model."""
    rows = [
        {"name": "conv1", "output": 112, "layers": ["7×7, 64, stride 2"], "times": None},
        {"name": "maxpool", "output": 56, "layers": ["3×3 max pool, stride 2"], "times": None},
    ]
    for number, times in enumerate(IMAGENET[name].times):
        width = 64 * 2**number
        three = f"3×3, {width}"
        layers = [three, three] if name in ("resnet18", "resnet34") else [f"1×1, {width}", three, f"1×1, {4 * width}"]
        rows.append({"name": f"layer{number + 1}", "output": 56 // 2**number, "layers": layers, "times": times})
    return [*rows, {"name": "avgpool", "output": 1, "layers": ["average pool", "1000-d fc"], "times": None}]


# What the models say


def measure(name: str, classes: int, size: int) -> Result:
    """Build a network, run an empty picture of side ``size`` through it, and return all that Table 1 tells of one."""
    model = make_model(name, classes)
    rows = read(model, size)
    steps = [step for row in rows for step in _steps(row)]
    return {
        "rows": table_rows(rows),
        "depth": depth(rows),
        "parameters": model.count_parameters(),
        "multiply_adds": sum(step.multiply_adds for step in steps),
        "stride_first": sum(step.multiply_adds for step in steps) - saved_by_stride_first(rows),
    }


def _steps(row: Row) -> Iterable[Step]:
    yield from row.layers
    for block in row.blocks:
        yield from (*block.branch, *(block.shortcut or ()), *block.rest)


def table_rows(rows: Iterable[Row]) -> list[Result]:
    """Return a network as a column of Table 1: name, side of the output, layers, how many times for blocks.

    Equal blocks that follow each other share a row, and so do layers outside blocks whose outputs are of one size.
    """
    found: list[Result] = []
    for row in rows:
        for side, together in groupby(row.layers, _side):
            entries = {step.name: entry(step.module, strides=True) for step in together}
            told = {name: text for name, text in entries.items() if text}
            found.append({"name": next(iter(told)), "output": side, "layers": list(told.values()), "times": None})
        for layers, alike in groupby(row.blocks, _entries):
            blocks = list(alike)
            side = blocks[-1].out_shape[0]
            found.append({"name": row.name, "output": side, "layers": layers, "times": len(blocks)})
    return found


def _side(step: Step) -> int:
    return step.shape[0] if len(step.shape) == 3 else 1


def _entries(block: Block) -> list[str]:
    return [text for step in block.branch if (text := entry(step.module, strides=False))]


def entry(module: Module, *, strides: bool) -> str:
    """Return a layer as Table 1 writes it, "" for what it leaves out; it tells strides outside blocks only."""
    stride = f", stride {module.stride[0]}" if strides and isinstance(module, Conv2d | MaxPool2d) else ""
    if isinstance(module, Conv2d):
        kh, kw, _, channels = module.weight.data.shape
        return f"{kh}×{kw}, {channels}{stride.removesuffix(', stride 1')}"
    if isinstance(module, MaxPool2d):
        return "{}×{} max pool".format(*module.kernel_size) + stride
    if isinstance(module, Linear):
        return f"{module.weight.data.shape[1]}-d fc"
    return "average pool" if isinstance(module, GlobalAvgPool2d) else ""


def depth(rows: Iterable[Row]) -> int:
    """Return how many layers with weights stand one after the other, shortcuts left aside."""
    steps = [step for row in rows for step in (*row.layers, *(s for block in row.blocks for s in block.branch))]
    return sum(isinstance(step.module, Conv2d | Linear) for step in steps)


def saved_by_stride_first(rows: Iterable[Row]) -> int:
    """Return how many multiply-adds fewer it were if each branch had its stride on its first convolution.

    What stands before the strided convolution would then have fewer places to compute.
    """
    saved = 0
    for block in (block for row in rows for block in row.blocks):
        before = 0
        for step in block.branch:
            if isinstance(step.module, Conv2d) and step.module.stride != (1, 1):
                saved += before - before // (step.module.stride[0] * step.module.stride[1])
                break
            before += step.multiply_adds
    return saved


# The experiment


@dataclass(frozen=True)
class Settings:
    """How the networks are run.

    Attributes:
        minutes: on 2 cores.
        size: side of the pictures for ResNet-18 … 152; the CIFAR nets get theirs.
    """

    minutes: float = 0.5
    size: int = 224


PRESETS = {"quick": Settings(), "full": Settings()}  # nothing is trained, so there is nothing to leave out


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """Return a cell a network: the five for ImageNet, those for CIFAR and their plain twins."""
    asked = [(name, 1000, settings.size) for name in IMAGENET]
    asked += [(f"{family}{layers}", 10, 32) for layers in CIFAR for family in ("resnet", "plain")]
    return [
        Cell(
            name,
            partial(measure, name, classes, size),
            {"network": name, "classes": classes, "size": size},
            cost=10.0 if name in IMAGENET else 1.0,
        )
        for name, classes, size in asked
    ]


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Compare what the models say with what is known."""
    checks = [check for name in IMAGENET for check in _imagenet_checks(name, results[name])]
    checks += [
        (f"{family}{layers}: parameters", results[f"{family}{layers}"]["parameters"], parameters)
        for layers, parameters in CIFAR.items()
        for family in ("resnet", "plain")
    ]
    wrong = [f"{what}: got {got}, expected {known}" for what, got, known in checks if got != known]
    networks = {name: results[name] for name in IMAGENET}
    return {
        "finding": _finding(networks, len(checks), wrong),
        "holds": not wrong,
        "differences": wrong,
        "networks": networks,
        "table": side_by_side(networks),
        "cifar": {name: result["parameters"] for name, result in results.items() if name not in IMAGENET},
    }


def _imagenet_checks(name: str, found: Result) -> list[tuple[str, Any, Any]]:
    known = IMAGENET[name]
    near = abs(found["stride_first"] / 1e9 - known.billions) < 0.1
    return [
        (f"{name}: table 1", found["rows"], table_1(name)),
        (f"{name}: layers with weights", found["depth"], int(name.removeprefix("resnet"))),
        (f"{name}: parameters", found["parameters"], known.parameters),
        (f"{name}: multiply-adds", found["multiply_adds"], known.multiply_adds),
        (f"{name}: multiply-adds near {known.billions} × 10⁹, stride first", near, True),
    ]


def _finding(networks: dict[str, Result], checks: int, wrong: list[str]) -> str:
    if wrong:
        return f"{len(wrong)} of {checks} comparisons with He et al. and torchvision fail: {'; '.join(wrong)}."
    ours = ", ".join(f"{network['stride_first'] / 1e9:.2f}" for network in networks.values())
    theirs = ", ".join(str(IMAGENET[name].billions) for name in networks)
    return (
        f"All {len(networks)} networks are those of Table 1, layer by layer, and all {checks} comparisons with He et "
        f"al. and torchvision hold: parameters and multiply-adds to the unit, and with the stride where the paper has "
        f"it {ours} × 10⁹ multiply-adds against the paper's {theirs}."
    )


def side_by_side(networks: dict[str, Result]) -> list[list[str]]:
    """Return Table 1 as rows of text, the head first."""
    columns = [{row["name"]: row for row in network["rows"]} for network in networks.values()]
    names = {row["name"]: row["output"] for network in networks.values() for row in network["rows"]}
    body = [
        [name, f"{side} × {side}", *(row_text(column[name]) if name in column else "" for column in columns)]
        for name, side in names.items()
    ]
    return [["", "output", *networks], *body, *totals(networks)]


def totals(networks: dict[str, Result]) -> list[list[str]]:
    """Return the last rows of the table: parameters and multiply-adds, ours and the paper's."""
    return [
        ["parameters", "", *(f"{network['parameters']:,}" for network in networks.values())],
        ["multiply-adds", "", *(f"{network['multiply_adds']:,}" for network in networks.values())],
        ["with the paper's stride", "", *(f"{network['stride_first']:,}" for network in networks.values())],
        ["in the paper", "", *(f"{IMAGENET[name].billions} × 10⁹" for name in networks)],
    ]


def row_text(row: Result) -> str:
    """Return a place of the table as one line: "[3×3, 64; 3×3, 64] × 2"."""
    return ", ".join(row["layers"]) if row["times"] is None else f"[{'; '.join(row['layers'])}] × {row['times']}"


# The figures


def table(report: Result) -> str:
    """Return the five networks side by side."""
    head, *rows = report["table"]
    return markdown(head, rows)


def draw(report: Result) -> dict[str, Figure]:
    """Return the residual modules and ResNet-18, drawn from new models, and the table."""
    size = report["settings"]["size"]
    eighteen, fifty = read(resnet18(1000), size), read(resnet50(1000), size)
    blocks = [
        ("ResNet-18, layer1.1", eighteen[1].blocks[1]),
        ("ResNet-18, layer2.0", eighteen[2].blocks[0]),
        ("ResNet-50, layer1.1", fifty[1].blocks[1]),
    ]
    return {
        "modules": render(draw_blocks(blocks)),
        "resnet18": render(draw_network(eighteen)),
        "table": render(draw_table(report["networks"])),
    }


SECOND, THIRD, COLUMN, RIGHT = 0.82, 1.55, 1.36, 8.4  # where the columns begin, width of a network's, the page's end
LETTER, LEADING, SPACE, TIMES = 0.072, 0.18, 0.2, 0.3  # width of a letter, height of a line, between rows, of "× 23"


def draw_table(networks: dict[str, Result]) -> Drawing:
    """Lay out Table 1 with brackets around the blocks; what is the same for all networks is written once."""
    page = Drawing(size=8.5, width=RIGHT)
    middles = [THIRD + COLUMN * (number + 0.5) for number in range(len(networks))]
    centre = (middles[0] + middles[-1]) / 2
    longest = [
        max(len(layer) for row in network["rows"] if row["times"] for layer in row["layers"])
        for network in networks.values()
    ]
    page.texts += [Text(SECOND, 0.2, "output", bold=True)]
    page.texts += [Text(x, 0.2, name, "center", bold=True) for x, name in zip(middles, networks, strict=True)]
    _rule(page, y := 0.36)
    for rows in zip(*(network["rows"] for network in networks.values()), strict=True):
        height = LEADING * max(len(row["layers"]) if row["times"] else 1 for row in rows) + SPACE
        y += height / 2
        page.texts += [Text(0.08, y, rows[0]["name"]), Text(SECOND, y, f"{rows[0]['output']} × {rows[0]['output']}")]
        if all(row == rows[0] for row in rows) and rows[0]["times"] is None:
            page.texts.append(Text(centre, y, row_text(rows[0]), "center"))
        else:
            for x, row, letters in zip(middles, rows, longest, strict=True):
                _brackets(page, row, x, y, letters)
        y += height / 2
    _rule(page, y)
    for name, _, *numbers in totals(networks):
        y += 0.22
        page.texts.append(Text(0.08, y, name))
        page.texts += [Text(x, y, number, "center") for x, number in zip(middles, numbers, strict=True)]
    page.height = y + 0.2
    return page


def _rule(page: Drawing, y: float) -> None:
    page.lines.append(Line(((0.08, y), (RIGHT - 0.08, y)), head=False))


def _brackets(page: Drawing, row: Result, x: float, y: float, letters: int) -> None:
    """Lay out the layers of a block between brackets that hold so many letters, and how many times it comes."""
    x -= TIMES / 2
    wide, high = LETTER * letters / 2 + 0.05, LEADING * len(row["layers"]) / 2
    for edge, inner in ((x - wide, x - wide + 0.05), (x + wide, x + wide - 0.05)):
        page.lines.append(Line(((inner, y - high), (edge, y - high), (edge, y + high), (inner, y + high)), head=False))
    for number, layer in enumerate(row["layers"]):
        page.texts.append(Text(x, y - high + (number + 0.5) * LEADING, layer, "center"))
    page.texts.append(Text(x + wide + 0.06, y, f"× {row['times']}"))
