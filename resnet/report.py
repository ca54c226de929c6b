"""What a run shows: curves, a sheet of predictions, a table of results."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nn.checkpoint import write_atomically
from resnet.data import Faces
from resnet.runfolder import EpochMetrics


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; needs no screen.

    Raises:
        OSError: the file cannot be written.
    """
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(path, content.getvalue())


def draw_curves(history: Sequence[EpochMetrics], path: Path) -> None:
    """Draw loss, accuracies and learning rate by epoch; an interrupted first epoch leaves empty axes."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [metrics.epoch for metrics in history]
    loss.plot(epochs, [metrics.train_loss for metrics in history], "k.-")
    loss.set(title="training loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    for name, style in (("train", "k:"), ("clean", "C0.-"), ("masked", "C1s--")):
        values = [100 * getattr(metrics, f"{name}_accuracy") for metrics in history]
        if any(math.isnan(value) for value in values):
            continue  # not tested
        accuracy.plot(epochs, values, style, markersize=4, label="training" if name == "train" else f"test, {name}")
    accuracy.set(title="rank-1 accuracy", xlabel="epoch", ylabel="%", ylim=(0, 102))
    accuracy.legend(loc="lower right")
    rate.plot(epochs, [metrics.learning_rate for metrics in history], "k.-")
    rate.set(title="learning rate", xlabel="epoch")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_predictions(
    faces: Faces, scores: NDArray[Any], kind: str, path: Path, rows: int = 4, columns: int = 10
) -> None:
    """Draw test faces with the person predicted; mistakes come first, in a red frame, with the true person too.

    Args:
        faces: N test pictures.
        scores: (N, K), higher is more likely.
        kind: of the pictures, for the title: "masked" or "clean".
        path: PNG to write.
        rows, columns: of the sheet.
    """
    predicted = scores.argmax(axis=1)  # (N, K) -> (N,)
    wrong = predicted != faces.labels
    spread = np.linspace(0, len(faces) - 1, min(len(faces), rows * columns)).astype(int)  # people evenly
    order = [*np.flatnonzero(wrong), *(index for index in spread if not wrong[index])][: rows * columns]
    figure = Figure(figsize=(1.25 * columns, 1.6 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{len(faces) - wrong.sum()} of {len(faces)} {kind} test faces recognised; mistakes first")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for index, axes in zip(order, grid.flat, strict=False):
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        axes.imshow(faces.pictures[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        told, true = faces.people[predicted[index]], faces.people[faces.labels[index]]
        if wrong[index]:
            axes.set_title(f"✗ {_short(told)}\nis {_short(true)}", fontsize=8, color="C3", fontweight="bold")
            for spine in axes.spines.values():
                spine.set(color="C3", linewidth=3)
        else:
            axes.set_title(f"✓ {_short(told)}", fontsize=8)
    save_figure(figure, path)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def results_table(rows: Mapping[str, Mapping[str, float]], tested: int, trained: int) -> str:
    """Return rank-1 accuracies as a table, the simple methods first.

    Args:
        rows: accuracy by method and test set, 0 to 1.
        tested: photographs in each test set.
        trained: photographs trained on.
    """
    sets = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [
        f"\nrank-1 accuracy on {tested} test photographs, {' and '.join(sets)};",
        f"every method learned from the same {trained} photographs" + (", clean and masked" if len(sets) > 1 else ""),
        "method".ljust(width) + "".join(name.rjust(10) for name in sets),
    ]
    for method, accuracies in rows.items():
        lines.append(method.ljust(width) + "".join(f"{100 * accuracies[name]:8.1f} %" for name in sets))
    return "\n".join(lines)
