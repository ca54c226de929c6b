"""The book runs: its examples say what comes out, its code is there, its names, links and figures exist."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import nn
from nn import Module
from resnet import blocks

for package in ("sphinx", "sybil"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[docs]'")

from workshop import beside, drawings, examples, links  # noqa: E402

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("book/*.md")])
TEXTS = {path.relative_to(DOCS).as_posix(): path.read_text() for path in PAGES}

FORM = (
    *("What it is for", "The equation", "A worked example", "Shapes", "Backward, step by step", "The code"),
    *("What is kept, and why", "Traps", "The tests that guard it", "Where it comes from", "Exercises"),
)
LAYER_PAGES = {
    "Linear": "linear",
    "Flatten": "flatten",
    "Conv2d": "conv2d",
    "BatchNorm2d": "batchnorm2d",
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "MaxPool2d": "max_pool2d",
    "GlobalAvgPool2d": "global_avg_pool2d",
    "SoftmaxCrossEntropy": "cross_entropy",
    "Add": "add",
    "PadShortcut": "pad_shortcut",
}
PATH = (
    *("forward", "linear", "conv2d", "batchnorm2d", "activations", "pooling", "cross_entropy", "add", "resnet18"),
    *("training", "masked_faces", "gradcheck", "cupy", "fast", "papers"),
)


def page_of(name: str) -> str:
    return TEXTS[f"book/{name}.md"]


@pytest.mark.parametrize("page", examples.pages(), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_the_examples_say_what_comes_out(page):
    assert examples.run(page) > 0 or page.name in ("data.md", "claims.md", "glossary.md")


def test_a_changed_number_is_found_and_its_line_told(tmp_path):
    page = tmp_path / "linear.md"
    text = page_of("linear")
    changed = text.replace("array([[ 0.5, -2. , -1. ],", "array([[ 0.5, -2. , -1.1],", 1)
    assert changed != text
    page.write_text(changed)
    line = changed[: changed.index("-1.1]")].count("\n")  # the example begins one line before its output
    with pytest.raises(AssertionError, match=rf"linear\.md, line {line},"):
        examples.run(page)


def test_an_example_that_fails_is_told_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\n1 / 0\n```\n")
    with pytest.raises(AssertionError, match=r"line 3: ZeroDivisionError"):
        examples.run(page)


def test_the_path_has_its_chapters_in_order():
    entries = re.findall(r"^book/(\w+)$", TEXTS["index.md"], flags=re.MULTILINE)
    assert tuple(entries[: len(PATH)]) == PATH
    assert sorted(entries) == sorted(path.stem for path in DOCS.glob("book/*.md"))


def test_every_layer_has_a_page():
    found = [getattr(nn, name) for name in nn.__all__] + [blocks.PadShortcut]
    layers = [
        kind.__name__
        for kind in found
        if inspect.isclass(kind)
        and issubclass(kind, Module)
        and kind.__name__ not in ("Module", "Sequential", "Identity")
    ]
    assert sorted(layers) == sorted(LAYER_PAGES)


@pytest.mark.parametrize("name", LAYER_PAGES.values())
def test_all_layer_pages_have_one_form(name):
    headings = re.findall(r"^## (.+)$", page_of(name), flags=re.MULTILINE)
    assert [heading for heading in headings if heading in FORM] == list(FORM)
    exercises = page_of(name).split("\n## Exercises\n")[1]
    assert exercises.count("<details><summary>Solution</summary>\n\n") == exercises.count("\n</details>") == 3
    traps = page_of(name).split("\n## Traps\n")[1].split("\n## ")[0]
    assert traps.count("\n### ") >= 3
    assert "```python" in traps
    assert ":::{beside} " in page_of(name)
    guards = page_of(name).split("\n## The tests that guard it\n")[1].split("\n## ")[0]
    assert guards.count("::test_") >= 3


@pytest.mark.parametrize("name", PATH)
def test_chapters_have_exercises_with_their_solutions_folded(name):
    exercises = page_of(name).split("\n## Exercises\n")[1]
    assert exercises.count("<details><summary>Solution</summary>\n\n") == exercises.count("\n</details>") >= 2


@pytest.mark.parametrize("page", TEXTS)
def test_tests_that_are_named_exist(page):
    for file, test in re.findall(r"`(tests/\w+\.py)::(?:\w+::)?(\w+)`", TEXTS[page]):
        assert re.search(rf"^(    )?def {test}\(|^class {test}\b", (ROOT / file).read_text(), flags=re.MULTILINE), test


@pytest.mark.parametrize("page", TEXTS)
def test_links_to_files_and_headings_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        path = (DOCS / page).parent / file if file else DOCS / page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in headings_of(path.read_text()), target


def headings_of(text: str) -> list[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    found = re.findall(r"^#{1,3} (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]


@pytest.mark.parametrize("page", TEXTS)
def test_code_is_beside_words_about_lines_that_are_there(page):
    for name, words in re.findall(r"^:::\{beside\} (\S+)\n(.*?)^:::$", TEXTS[page], flags=re.MULTILINE | re.DOTALL):
        named = re.findall(r"^- `([^`\n]+)`", words, flags=re.MULTILINE)
        code = beside.source(name)
        rows = beside.rows(code.lines, [(line, ["words"]) for line in named], [])
        assert [line for row in rows for line in row.lines] == code.lines
        assert sum(bool(row.words) for row in rows) == len(named)
        assert named or words.strip()


def test_code_comes_whole_and_without_its_docstring():
    code = beside.source("nn.residual.Add.backward")
    assert code.lines == ["def backward(self, dy: Array) -> tuple[Array, Array]:", "    return add_backward(dy)"]
    assert (code.module, code.path.as_posix()) == ("nn.residual", "nn/residual.py")


def test_lines_are_shared_out_from_one_that_is_named_to_the_next():
    lines = ["def f(x):", "    y = x", "    z = y", "    return z"]
    rows = beside.rows(lines, [("z = y", ["b"]), ("return", ["c"])], ["a"])
    assert rows == [(["a"], lines[:2]), (["b"], lines[2:3]), (["c"], lines[3:])]


@pytest.mark.parametrize("named", [["gone"], ["return", "y = x"], ["y = x", "y = x"]])
def test_a_line_that_is_not_there_or_out_of_order_is_an_error(named):
    lines = ["def f(x):", "    y = x", "    return y"]
    with pytest.raises(LookupError, match="expected a line with"):
        beside.rows(lines, [(line, []) for line in named], [])


@pytest.mark.parametrize("name", ["nn.conv.gone", "nowhere.at_all", "nn.conv.Conv2d.gone"])
def test_code_that_is_not_there_is_an_error(name):
    with pytest.raises(LookupError, match="expected"):
        beside.source(name)


@pytest.mark.parametrize(
    ("target", "page"),
    [
        ("../../nn/linear.py", "_modules/nn/linear"),
        ("/../nn/backend/__init__.py", "_modules/nn/backend"),
        ("../../resnet/data/masks.py", "_modules/resnet/data/masks"),
        ("../../tests/test_conv.py", None),
        ("../../docs/results/paths-full.json", None),
        ("../../../elsewhere/nn/linear.py", None),
    ],
)
def test_links_to_the_library_lead_to_its_highlighted_source(target, page):
    assert links.source_page("book/conv2d", target) == page


def test_figures_are_there_used_and_told_in_words():
    used = {}
    for page, text in TEXTS.items():
        for words, target in re.findall(r"!\[(.*?)\]\(([^)\s]+)\)", text, flags=re.DOTALL):
            assert len(words) > 25, (page, target)
            used[((DOCS / page).parent / target).resolve()] = words
    assert all(path.is_file() for path in used)
    drawn = {name for name, _ in drawings.drawings()}
    assert {path.stem for path in used if path.parent == drawings.FOLDER} == drawn
    assert {path.stem for path in drawings.FOLDER.iterdir()} == drawn


def test_a_figure_is_drawn_alike_twice(tmp_path):
    draw = dict(drawings.drawings())["forward-chain"]
    first, second = (drawings.save(draw(), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second
    assert b">0.3066<" in first.replace(b" ", b"")  # the loss of the chapter's network


def test_every_module_has_its_reference():
    text = "".join(path.read_text() for path in DOCS.glob("reference/*.md"))
    named = set(re.findall(r"automodule:: (\S+)$", text, flags=re.MULTILINE))
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for top in ("nn", "resnet")
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__main__.py"
    }
    assert named == there
