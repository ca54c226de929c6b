"""The run folder: what a training writes, and where.

========================  ===========================================================================================
``config.json``           all settings, the photographs of both sets, versions and machine
``metrics.csv``           a row an epoch, written as soon as the epoch ends
``model.safetensors``     weights and running statistics, with what one must know to use them
``results.json``          accuracies of the network and of simple methods on the same split, with the settings
``curves.png``            loss, accuracies and learning rate by epoch
``predictions.png``       masked test faces with the person predicted
========================  ===========================================================================================
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.backend import gpu_facts, load_backend
from nn.checkpoint import write_atomically
from resnet.config import TrainingConfig


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


def make_run_folder(config: TrainingConfig) -> Path:
    """Create the run folder: the one asked for, or the next free number under ``runs/``.

    Raises:
        OSError: it cannot be created.
        ValueError: it holds a run already, which nothing shall overwrite.
    """
    if config.run_dir is None:
        parent = Path("runs")
        taken = [int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()] if parent.is_dir() else []
        folder = parent / f"{max(taken, default=0) + 1:03d}"
    else:
        folder = Path(config.run_dir)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run already: choose another folder with --run-dir, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "metrics.csv", (",".join(EpochMetrics.__dataclass_fields__) + "\n").encode())
    except OSError as error:
        raise OSError(
            f"cannot write the run folder {folder} ({error.strerror}): choose another with --run-dir"
        ) from error
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


def append_metrics(folder: Path, metrics: EpochMetrics) -> None:
    """Add a row to ``metrics.csv``.

    Raises:
        OSError: the file cannot be written.
    """
    with open(folder / "metrics.csv", "a", newline="") as file:
        csv.writer(file).writerow(
            value if isinstance(value, int) else f"{value:.6f}" for value in asdict(metrics).values()
        )
