"""The five networks as tables and drawings: He et al.'s Table 1 written by hand, what is drawn of which model.

The table's places are typed off the paper; boxes and arcs are counted by hand in its figures 3 and 5.
"""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch

from nn import Sequential
from resnet.blocks import BasicBlock, Bottleneck, PlainBasicBlock, Recipe
from resnet.experiments import architectures
from resnet.experiments.architectures import (
    CIFAR,
    IMAGENET,
    PRESETS,
    cells,
    depth,
    draw,
    measure,
    row_text,
    saved_by_stride_first,
    summarize,
    table_1,
    table_rows,
)
from resnet.experiments.drawing import draw_blocks, draw_network, read
from resnet.experiments.harness import Lab, paragraph
from resnet.models import build, plain18, resnet18, resnet20

SMALL = 32  # pixels: nothing that is drawn but the sizes depends on it


@pytest.fixture(scope="module")
def eighteen():
    return read(resnet18(1000), 224)


@pytest.fixture(scope="module")
def fifty():
    return measure("resnet50", 1000, 224)


def tiny(block, **options):
    """Two stages of two blocks."""
    return read(build(block, (2, 2), (4, 8), 3, **options), SMALL)


def roles(page):
    """How many lines play which role."""
    found = [line.role for line in page.lines]
    return {role: found.count(role) for role in set(found)}


# The table


def test_resnet18_is_the_first_column_of_table_1(eighteen):
    rows = table_rows(eighteen)
    assert [row["output"] for row in rows] == [112, 56, 56, 28, 14, 7, 1]
    assert [row_text(row) for row in rows] == [
        "7×7, 64, stride 2",
        "3×3 max pool, stride 2",
        "[3×3, 64; 3×3, 64] × 2",
        "[3×3, 128; 3×3, 128] × 2",
        "[3×3, 256; 3×3, 256] × 2",
        "[3×3, 512; 3×3, 512] × 2",
        "average pool, 1000-d fc",
    ]
    assert depth(eighteen) == 18


def test_resnet50_is_the_third_column_of_table_1(fifty):
    assert [row["output"] for row in fifty["rows"]] == [112, 56, 56, 28, 14, 7, 1]
    assert [row_text(row) for row in fifty["rows"]] == [
        "7×7, 64, stride 2",
        "3×3 max pool, stride 2",
        "[1×1, 64; 3×3, 64; 1×1, 256] × 3",
        "[1×1, 128; 3×3, 128; 1×1, 512] × 4",
        "[1×1, 256; 3×3, 256; 1×1, 1024] × 6",
        "[1×1, 512; 3×3, 512; 1×1, 2048] × 3",
        "average pool, 1000-d fc",
    ]
    assert fifty["depth"] == 50
    assert fifty["parameters"] == 25_557_032
    assert fifty["multiply_adds"] == 4_089_184_256


def test_the_papers_stride_saves_three_quarters_of_three_convolutions(fifty, eighteen):
    """56² · 256 · 128 = 28² · 512 · 256 = 14² · 1024 · 512 before the strided 3×3; a basic block has nothing there."""
    saved = fifty["multiply_adds"] - fifty["stride_first"]
    assert saved == 3 * (56 * 56 * 256 * 128) * 3 // 4
    assert saved_by_stride_first(eighteen) == 0


@pytest.mark.parametrize(("name", "parameters", "deep"), [("resnet20", 269_722, 20), ("plain32", 464_154, 32)])
def test_cifar_nets(name, parameters, deep):
    found = measure(name, 10, 32)
    assert (found["parameters"], found["depth"]) == (parameters, deep)
    assert [row["output"] for row in found["rows"]] == [32, 32, 16, 8, 1]


def test_resnet152_is_the_last_column_of_table_1():
    """At 32²; its multiply-adds at 224², and all numbers of ResNet-34 and 101, are in test_models.py."""
    found = measure("resnet152", 1000, SMALL)
    assert (found["parameters"], found["depth"]) == (60_192_808, 152)
    assert [row["times"] for row in found["rows"]] == [None, None, 3, 8, 36, 3, None]
    assert [row["layers"] for row in found["rows"]] == [row["layers"] for row in table_1("resnet152")]


def test_unlike_blocks_of_a_stage_get_rows_of_their_own():
    model, recipe = build(BasicBlock, (3,), (4,), 3), Recipe()
    model.layer1 = Sequential(*(BasicBlock(c, f, 1, recipe) for c, f in ((4, 8), (8, 4), (4, 4))))
    rows = [row for row in table_rows(read(model, SMALL)) if row["name"] == "layer1"]
    assert [row_text(row) for row in rows] == ["[3×3, 8; 3×3, 8] × 1", "[3×3, 4; 3×3, 4] × 2"]


# The experiment


@pytest.fixture
def results():
    """What all cells answer if all is well."""
    found = {
        name: {
            "rows": table_1(name),
            "depth": int(name.removeprefix("resnet")),
            "parameters": known.parameters,
            "multiply_adds": known.multiply_adds,
            "stride_first": known.billions * 1e9,
        }
        for name, known in IMAGENET.items()
    }
    return found | {f"{f}{n}": {"parameters": count} for n, count in CIFAR.items() for f in ("resnet", "plain")}


def test_there_is_a_cell_for_all_that_is_compared(results):
    assert {cell.name for cell in cells(PRESETS["quick"], Lab())} == results.keys()


def test_the_finding_tells_what_came_out(results):
    assert "multiply-adds" in paragraph(architectures, "Criterion")
    report = summarize(PRESETS["quick"], results)
    assert report["holds"]
    assert report["finding"].startswith("All 5 networks")
    assert report["table"][5][:3] == ["layer3", "14 × 14", "[3×3, 256; 3×3, 256] × 2"]
    assert report["table"][-1][2:] == ["1.8 × 10⁹", "3.6 × 10⁹", "3.8 × 10⁹", "7.6 × 10⁹", "11.3 × 10⁹"]


@pytest.mark.parametrize(
    ("network", "change", "told"),
    [
        ("resnet34", {"parameters": 21_797_673}, "resnet34: parameters: got 21797673, expected 21797672"),
        ("resnet50", {"stride_first": 4.089e9}, "resnet50: multiply-adds near 3.8"),
        ("resnet101", {"depth": 100}, "resnet101: layers with weights: got 100, expected 101"),
        ("plain20", {"parameters": 269_723}, "plain20: parameters: got 269723, expected 269722"),
    ],
)
def test_a_single_difference_refutes_the_claim(results, network, change, told):
    results[network] |= change
    report = summarize(PRESETS["quick"], results)
    assert not report["holds"]
    assert len(report["differences"]) == 1
    assert told in report["finding"]


def test_a_block_too_many_refutes_the_claim(results):
    results["resnet18"]["rows"][3]["times"] = 3
    assert "resnet18: table 1" in summarize(PRESETS["quick"], results)["finding"]


# What is drawn


def test_resnet18_has_eight_shortcuts_of_which_three_are_projections(eighteen):
    page = draw_network(eighteen)
    assert roles(page)["identity"] == 5
    assert roles(page)["projection"] == 3
    convolutions = [box for box in page.boxes if " conv" in box.text]
    assert [box.text.split("\n")[1] for box in convolutions] == (
        ["64, /2"] + 4 * ["64"] + ["128, /2"] + 3 * ["128"] + ["256, /2"] + 3 * ["256"] + ["512, /2"] + 3 * ["512"]
    )
    assert [text.text for text in page.texts if text.covers] == [f"1×1 conv, {c}, /2, BN" for c in (128, 256, 512)]
    # 17 convolutions, max pool, average pool, flatten, classifier; 8 adds, each with an activation behind it
    assert len(page.boxes) == 17 + 4 + 8 + 8


def test_each_row_tells_its_output_size(eighteen):
    texts = [text.text for text in draw_network(eighteen).texts]
    for name, size in (
        ("input", "224 × 224 × 3"),
        ("layer1", "56 × 56 × 64"),
        ("layer2", "28 × 28 × 128"),
        ("layer3", "14 × 14 × 256"),
        ("layer4", "7 × 7 × 512"),
        ("output", "1000"),
    ):
        assert texts[texts.index(name) + 1] == size
    assert {"112 × 112 × 64", "1 × 1 × 512"} < set(texts)


def test_a_plain_network_has_no_shortcut():
    page = draw_network(read(plain18(1000), SMALL))
    assert set(roles(page)) == {"flow"}
    assert not [box for box in page.boxes if box.circle]
    assert not [text for text in page.texts if "arc" in text.text]
    assert sum("3×3 conv" in box.text for box in page.boxes) == 16


def test_option_a_pads():
    page = draw_network(read(resnet20(10), SMALL))
    assert roles(page).keys() == {"flow", "identity", "padding"}
    assert (roles(page)["identity"], roles(page)["padding"]) == (7, 2)
    assert page.texts[-1].text.endswith("dashed arc: padding")
    assert [text.text for text in page.texts if text.covers] == ["zeros, 32, /2", "zeros, 64, /2"]


@pytest.mark.parametrize(
    ("options", "inside", "note"),
    [
        ({"negative_slope": 0.2}, "LeakyReLU, slope 0.2", "LeakyReLU: slope 0.2"),
        ({"activation": "relu"}, "ReLU", "BN: batch norm"),
    ],
)
def test_the_activation_is_the_models(options, inside, note):
    rows = tiny(BasicBlock, **options)
    module = draw_blocks([("here", rows[1].blocks[1])])
    assert [box.text for box in module.boxes] == [
        "3×3 conv, 4",
        "BN",
        inside,
        "3×3 conv, 4",
        "BN",
        "+",
        inside,
    ]
    notes = draw_network(rows).texts[-1].text
    assert note in notes
    assert ("slope" in notes) == ("slope" in note)


def test_a_bottleneck_is_narrow_in_the_middle_only():
    block = tiny(Bottleneck)[1].blocks[1]
    page = draw_blocks([("here", block)])
    assert [box.text for box in page.boxes if box.shaded] == ["1×1 conv, 4", "3×3 conv, 4", "1×1 conv, 16"]
    assert page.texts[0].text == "Bottleneck, identity shortcut"
    assert roles(page) == {"flow": 6, "identity": 1}


def test_a_projection_stands_beside_the_branch():
    page = draw_blocks([("here", tiny(BasicBlock)[2].blocks[0])])
    assert page.texts[0].text == "BasicBlock, projection shortcut"
    assert [box.text for box in page.boxes if box.name.startswith("layer2.0.downsample")] == ["1×1 conv, 8, /2", "BN"]
    branch = [box for box in page.boxes if not box.name.startswith("layer2.0.downsample")]
    assert max(box.x + box.width for box in branch) < min(box.x for box in page.boxes if box not in branch)
    assert roles(page)["projection"] == 1


def test_a_plain_block_has_no_shortcut():
    page = draw_blocks([("here", tiny(PlainBasicBlock)[2].blocks[0])])
    assert page.texts[0].text == "PlainBasicBlock, no shortcut"
    assert set(roles(page)) == {"flow"}


# How it looks


def test_no_text_touches_another_or_leaves_its_box(results):
    report = summarize(PRESETS["quick"], results) | {"settings": {"size": 224}}
    figures = draw(report)
    assert figures.keys() == {"modules", "resnet18", "table"}
    for name, figure in figures.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        page, axes = figure.bbox, figure.axes[0]
        texts = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in axes.texts]
        boxes = [patch.get_window_extent() for patch in axes.patches if not isinstance(patch, FancyArrowPatch)]
        for words, extent in texts:
            assert page.x0 < extent.x0 < extent.x1 < page.x1, (name, words)
            assert page.y0 < extent.y0 < extent.y1 < page.y1, (name, words)
            for box in boxes:
                if box.overlaps(extent):
                    assert box.x0 < extent.x0 < extent.x1 < box.x1, (name, words)
        for (words, one), (others, other) in combinations(texts, 2):
            assert not one.overlaps(other), (name, words, others)
