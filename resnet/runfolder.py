"""The run folder: what a training writes, and where.

==========================  =========================================================================================
``config.json``             all settings, the photographs of both sets, versions and machine
``sheet.png``               what the network will see: masked and changed pictures of the first batch, and test pictures
``metrics.csv``             a row an epoch, written as soon as the epoch ends
``model.safetensors``       weights and running statistics after the last epoch, with what one must know to use them
``best.safetensors``        the same of the epoch that was best on the test photographs, masked ones if there are any
``checkpoint.safetensors``  all that training needs to go on: see :mod:`resnet.checkpoint`
``results.json``            accuracies of the network and of simple methods on the same split, with the settings
``curves.png``              loss, accuracies and learning rate by epoch
``predictions.png``         masked test faces with the person predicted
==========================  =========================================================================================
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.backend import gpu_facts, load_backend
from nn.checkpoint import write_atomically

WEIGHTS, BEST = "model.safetensors", "best.safetensors"


@dataclass(frozen=True)
class EpochMetrics:
    """A row of ``metrics.csv``. Accuracies are rank-1, from 0 to 1; the last two columns are times.

    Attributes:
        epoch: from 1 on.
        steps: training steps so far.
        learning_rate: of the epoch's last step.
        train_loss: mean over the epoch's pictures, while training.
        train_accuracy: likewise, on the augmented and partly masked training pictures.
        clean_accuracy: on the test photographs after the epoch; not a number if not tested.
        masked_accuracy: likewise, on the test photographs with masks drawn on.
        pictures_per_second: trained.
        seconds: since the start.
    """

    epoch: int
    steps: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    clean_accuracy: float
    masked_accuracy: float
    pictures_per_second: float
    seconds: float


RUN_FILES = ("config.json", "checkpoint.safetensors", WEIGHTS)
"""A folder with one of these holds a run."""


def make_run_folder(run_dir: str | None) -> Path:
    """Create the run folder: the one asked for, or the next free number under ``runs/``.

    Raises:
        OSError: it cannot be created.
        ValueError: it holds a run already, which nothing shall overwrite.
    """
    folder = None if run_dir is None else Path(run_dir)
    if folder is not None and any((folder / name).exists() for name in RUN_FILES):
        raise ValueError(
            f"{folder} holds a run already: choose another folder with --run-dir, go on with it by --resume {folder}, "
            "or remove it"
        )
    try:
        if folder is None:
            return _next_number(Path("runs"))
        folder.mkdir(parents=True, exist_ok=True)
        write_metrics(folder, [])
    except OSError as error:
        raise OSError(
            f"cannot write the run folder {folder or 'under runs'} ({error.strerror}): choose another with --run-dir"
        ) from error
    return folder


def _next_number(parent: Path) -> Path:
    """Create the next free number in a folder; two trainings that start at once get two."""
    parent.mkdir(exist_ok=True)
    while True:
        taken = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()]
        folder = parent / f"{max(taken, default=0) + 1:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another training was quicker
            continue
        return folder


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomically(path, (json.dumps(facts, indent=2) + "\n").encode())


def machine(backend: str) -> dict[str, Any]:
    """Return what a result depends on besides its settings: versions, platform and, on cupy, the GPU."""
    facts = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
    return facts | ({"gpu": gpu_facts(load_backend(backend))} if backend == "cupy" else {})


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write ``metrics.csv``, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(EpochMetrics.__dataclass_fields__)
    for metrics in history:
        writer.writerow(value if isinstance(value, int) else f"{value:.6f}" for value in asdict(metrics).values())
    write_atomically(folder / "metrics.csv", text.getvalue().encode())
