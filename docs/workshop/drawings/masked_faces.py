"""The figures of the chapter on masked faces: the styles on a made-up head, a mask's coordinates, measured accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from resnet.data.masks import POINTS, STYLES, TEMPLATES, draw_mask
from resnet.experiments.figures import bars, new
from workshop.people import draw_head

RESULT = Path(__file__).parents[2] / "results" / "occlusion-full.json"
METHODS = (
    *("ResNet18 LeakyReLU", "plain-18 LeakyReLU", "Fisherfaces", "sparse representation", "LBP histograms"),
    "pixel 1-NN",
)


def styles() -> Figure:
    """Draw a made-up head bare and in a mask of every style, and the six points that masks hang on."""
    head, points = draw_head(160, np.random.default_rng(3)), TEMPLATES["centred"]
    figure = new(9, 2.1)
    titles = ["six points", *STYLES]
    axes = figure.subplots(1, len(titles))
    for place, (title, ax) in enumerate(zip(titles, axes, strict=True)):
        picture = head if place == 0 else draw_mask(head, points, np.random.default_rng(place), STYLES[place - 1])
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    for (x, y), name in zip(points * 160, POINTS, strict=True):
        axes[0].plot(x, y, "o", color="white", markeredgecolor="black", markersize=4)
        words = {"textcoords": "offset points", "fontsize": 5, "ha": "center", "color": "white"}
        axes[0].annotate(name.replace("_", " "), (x, y), (0, 4), **words)
    return figure


def accuracy() -> Figure:
    """Draw rank-1 accuracy on ORL's masked test faces, trained without and with masks, from the result file."""
    rows = [row for row in json.loads(RESULT.read_text())["rows"] if row["data"] == "orl"]
    figure = new(8, 3.4)
    axes = figure.add_subplot()
    heights, errors = {}, {}
    for training, name in (("clean", "learned from bare faces only"), ("masked", "learned from bare and masked faces")):
        found = {
            row["method"]: [100 * x for x in row["masked"]["rank1"]] for row in rows if row["training"] == training
        }
        heights[name] = [float(np.mean(found[method])) for method in METHODS]
        errors[name] = [
            (height - min(found[method]), max(found[method]) - height)
            for method, height in zip(METHODS, heights[name], strict=True)
        ]
    counts = {row["method"]: row["n"] for row in rows}
    bars(axes, [f"{method}\nn = {counts[method]}" for method in METHODS], heights, errors)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_ylabel("masked test faces recognised, %")
    axes.set_ylim(0, 105)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


FIGURES = {"masked-styles": styles, "masked-accuracy": accuracy}
