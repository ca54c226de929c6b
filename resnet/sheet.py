"""The sheet of what a network will see: to look at before the first epoch, as wrong masks and wrong crops hide well.

Letters: B pictures of a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from resnet.report import save_figure

if TYPE_CHECKING:
    from resnet.training import Training

COLUMNS = 10
MOST_ROWS = 3  # of training pictures
LONGEST_NAME = 14  # characters that fit under a picture


def draw_inputs(training: Training, path: Path) -> None:
    """Draw the first training batch as the network gets it, and some test pictures, each over its person's name.

    The batch is turned back into pictures by the mean and the spread that were taken out of it. Making it changes
    nothing: the training will get the same.

    Args:
        training: ready to start.
        path: PNG to write.

    Raises:
        ValueError: a picture of the batch cannot be masked or changed; see `TrainingBatches`.
        OSError: the file cannot be written.
    """
    people = training.train_faces.people
    x, labels = next(training.batches.epoch(0))
    shown = slice(0, MOST_ROWS * COLUMNS)
    pictures = [to_picture(normalised, training.mean, training.std) for normalised in x[shown]]
    title = f"training: {len(pictures)} of the {len(labels)} in the first batch, some masked, all changed at random"
    parts = [(title, pictures, [people[label] for label in labels[shown]])]
    for name, faces in training.tests.items():
        chosen = np.linspace(0, len(faces) - 1, min(len(faces), COLUMNS)).astype(int)  # people evenly
        names = [people[label] for label in faces.labels[chosen]]
        parts.append((f"testing, {name}: {len(chosen)} of {len(faces)}", list(faces.pictures[chosen]), names))

    height, width, channels = training.train_faces.pictures.shape[1:]
    colours = "grey" if channels == 1 else "colour"
    rows = [-(-len(pictures) // COLUMNS) for _, pictures, _ in parts]  # rounded up
    figure = Figure(figsize=(1.25 * COLUMNS, 1.5 * sum(rows) + 0.3 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(f"what the network sees, {width}x{height} {colours}")
    bands = figure.subfigures(len(parts), squeeze=False, height_ratios=[count + 0.2 for count in rows])[:, 0]
    for band, (title, pictures, names), count in zip(bands, parts, rows, strict=True):
        band.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
        _draw_row(band.subplots(count, COLUMNS, squeeze=False).flat, pictures, names)
    save_figure(figure, path)


def to_picture(x: NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo `resnet.data.batches.to_network_input` for one picture (H, W, C): uint8, 0 black to 255 white."""
    grey = x * np.asarray(std) + np.asarray(mean)  # (H, W, C) * (C,) + (C,)
    return np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)


def _draw_row(grid: Any, pictures: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> None:
    """Draw pictures (H, W, C) into matplotlib axes, each over a name; what is left of the axes stays empty."""
    places = list(grid)
    for axes in places:
        axes.axis("off")
    for axes, picture, name in zip(places, pictures, names, strict=False):
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)  # grey: (H, W)
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        axes.set_xlabel(short, fontsize=8, parse_math=False)
