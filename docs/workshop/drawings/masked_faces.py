"""The figures of the chapter on masked faces: the styles on a made-up head, a mask's coordinates, measured accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from resnet.data.mask_styles import CUTS
from resnet.data.masks import POINTS, STYLES, TEMPLATES, _coordinates, draw_mask
from resnet.experiments.figures import HATCHES, new
from workshop.people import draw_head

RESULT = Path(__file__).parents[2] / "results" / "occlusion-full.json"
METHODS = (
    *("ResNet18 LeakyReLU", "plain-18 LeakyReLU", "Fisherfaces", "sparse representation", "LBP histograms"),
    "pixel 1-NN",
)
NAMES = {"kn95": "KN95"}


def styles() -> Figure:
    """Draw a made-up head: with the points that masks hang on, with a mask's coordinates, and in every style."""
    head, points = draw_head(160, np.random.default_rng(3)), TEMPLATES["centred"]
    figure = new(6.4, 4.6)
    titles = ("six points", "u across, v down", *(NAMES.get(style, style) for style in STYLES))
    places = figure.subplots(2, 3).flat
    for place, (title, axes) in enumerate(zip(titles, places, strict=True)):
        picture = head if place < 2 else draw_mask(head, points, np.random.default_rng(place - 1), STYLES[place - 2])
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    plain, sheet = figure.axes[:2]
    for (x, y), name in zip(points * 160, POINTS, strict=True):
        plain.plot(x, y, "o", color="white", markeredgecolor="black", markersize=5)
        side, below = name.split("_")[0], name == "nose_bridge"
        words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "white", "va": "center"}
        words |= {"path_effects": [withStroke(linewidth=2, foreground="black")]}
        offset = {"left": (6, 0), "right": (-6, 0)}.get(side, (0, -10 if below else 10))
        words["ha"] = {"left": "left", "right": "right"}.get(side, "center")
        plain.annotate(
            name.rpartition("_")[2] if side in ("left", "right") else name.split("_")[0], (x, y), offset, **words
        )
    fine = (np.arange(640) + 0.5) / 4
    u, v = _coordinates(points * 160, CUTS["surgical"], fine, fine)
    for values, others, levels in ((u, 2 * v - 1, (-1, 0, 1)), (v, u, (0, 0.5, 1))):
        lines = np.where(np.abs(others) <= 1, values, np.nan)
        sheet.contour(fine, fine, lines, levels=levels, colors="white", linewidths=1.5, linestyles="solid")
    return figure


def accuracy() -> Figure:
    """Draw rank-1 accuracy on ORL's masked test faces, trained without and with masks, from the result file."""
    rows = [row for row in json.loads(RESULT.read_text())["rows"] if row["data"] == "orl"]
    figure = new(6.4, 4.4)
    axes = figure.add_subplot()
    named = {"clean": "learned from bare faces only", "masked": "learned from bare and masked faces"}
    for number, (training, words) in enumerate(named.items()):
        found = {row["method"]: 100 * np.array(row["masked"]["rank1"]) for row in rows if row["training"] == training}
        means = np.array([found[method].mean() for method in METHODS])
        reach = [[m - found[method].min(), found[method].max() - m] for m, method in zip(means, METHODS, strict=True)]
        look: dict[str, Any] = {"color": str(0.25 + 0.6 * number), "hatch": HATCHES[number], "edgecolor": "black"}
        look |= {"xerr": np.transpose(reach), "capsize": 2, "linewidth": 0.6, "error_kw": {"linewidth": 0.8}}
        axes.barh(np.arange(len(METHODS)) + 0.4 * (number - 0.5), means, 0.4, label=words, **look)
    counts = {row["method"]: row["n"] for row in rows}
    axes.set_yticks(range(len(METHODS)), [f"{method}\nn = {counts[method]}" for method in METHODS], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("masked test faces recognised, %")
    axes.set_xlim(0, 103)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, loc="outside upper center", ncols=2, frameon=False)
    return figure


FIGURES = {"masked-styles": styles, "masked-accuracy": accuracy}
