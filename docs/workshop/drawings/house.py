"""The figure of the house map: three storeys, and the imports between them, counted in the source."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from resnet.experiments.figures import new

ROOT = Path(__file__).parents[3]
STOREYS = (
    ("train.py", "the command", ["train.py"]),
    ("resnet/", "blocks, networks, faces, masks, training, experiments", ["resnet"]),
    ("nn/", "layers, optimisers, gradient checks, slices and threads", ["nn"]),
)


def imports() -> Counter[tuple[str, str]]:
    """Return how many import statements lead from one storey to another: (from, to) -> number."""
    count: Counter[tuple[str, str]] = Counter()
    for storey, paths in {
        "train.py": [ROOT / "train.py"],
        "resnet": sorted((ROOT / "resnet").rglob("*.py")),
        "nn": sorted((ROOT / "nn").rglob("*.py")),
    }.items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                count.update((storey, name.split(".")[0]) for name in names)
    return count


def house() -> Figure:
    """Draw the storeys from top to bottom with an arrow for the imports between two of them."""
    count = imports()
    upwards = sum(count[pair] for pair in (("nn", "resnet"), ("resnet", "train"), ("nn", "train")))
    figure = new(5.4, 3.6)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 5.6)
    boxes = [(3.6, 4.6, 2.8), (1.0, 3.1, 8.0), (0.6, 1.6, 8.8), (1.5, 0.1, 3.2), (5.3, 0.1, 3.2)]
    words = [(name, what) for name, what, _ in STOREYS] + [("NumPy", "CPU"), ("CuPy", "NVIDIA GPU")]
    for (left, bottom, width), (name, what) in zip(boxes, words, strict=True):
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom), width, 0.8, boxstyle="round,pad=0.04", facecolor="#f2f2f2", edgecolor="black"
            )
        )
        axes.text(left + width / 2, bottom + 0.53, name, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(left + width / 2, bottom + 0.19, what, ha="center", va="center", fontsize=8)
    arrows = [
        ((5, 4.55), (5, 3.95), count["train.py", "resnet"]),
        ((3, 3.05), (3, 2.45), count["resnet", "nn"]),
        ((3, 1.55), (3, 0.95), count["nn", "numpy"]),
        ((6.8, 1.55), (6.8, 0.95), None),
    ]
    for start, end, number in arrows:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, linewidth=1.2, color="black"))
        label = "loaded when asked for" if number is None else f"{number} import{'s' if number > 1 else ''}"
        axes.text(start[0] + 0.15, (start[1] + end[1]) / 2, label, va="center", fontsize=8)
    up = FancyArrowPatch((5.6, 2.45), (5.6, 3.05), arrowstyle="-|>", mutation_scale=14, linestyle="--", color="black")
    axes.add_patch(up)
    axes.text(5.75, 2.75, f"{upwards}: the command nn.gradcheck", va="center", fontsize=8)
    return figure


FIGURES = {"house": house}
