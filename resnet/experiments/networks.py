"""A network trained once and kept: experiments that ask for the same training share its network.

A training is known by what its result depends on: settings, pictures, labels, augmentation. Its folder holds

    state.safetensors    weights, momentum and step after an epoch, while the training is under way
    model.safetensors    weights and running statistics, once it has ended

each with the metrics of all epochs so far in the file's metadata. A killed training goes on from its last state, with
the same numbers as if it had not been killed. Backend and threads are not part of a training's name: they move the
last digits only.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn.checkpoint import load_weights, save_weights
from resnet.runfolder import EpochMetrics
from resnet.training import Training, fit

SECONDS_BETWEEN_STATES = 20.0  # what a kill costs at most, besides the epoch under way
ELSEWHERE = ("backend", "threads", "run_dir", "data_dir", "bad_pictures", "faces_box", "points", "weights")
"""Settings that make no other network, or show in what is looked at beside them: pictures, points and first weights."""


def train_once(training: Training, folder: Path, *, quiet: bool = False) -> list[EpochMetrics]:
    """Train to the end, or fetch the network trained before; ``training.model`` has its weights then.

    Args:
        training: not begun yet.
        folder: where networks are kept, each in a folder of its own.
        quiet: show no progress bar.

    Returns:
        the metrics of all epochs.

    Raises:
        ValueError: the training has begun already.
        TrainingError: the loss became infinite or not a number.
        OSError: the folder cannot be written.
    """
    if training.trainer.steps:
        raise ValueError(f"expected a training that has not begun, got one after {training.trainer.steps} steps")
    own = folder / f"{training.config.arch}-{fingerprint(training)}"
    own.mkdir(parents=True, exist_ok=True)
    finished, state = own / "model.safetensors", own / "state.safetensors"
    if (kept := _read(finished)) is not None:
        training.model.load_state_dict(kept[0])
        return kept[1]
    history: list[EpochMetrics] = []
    if (kept := _read(state)) is not None:
        training.trainer.load_state_dict(kept[0])
        history = kept[1]
    saved = time.perf_counter()
    for metrics in fit(training, quiet=quiet):
        history.append(metrics)
        if time.perf_counter() - saved > SECONDS_BETWEEN_STATES and metrics.epoch < training.config.epochs:
            save_weights(state, training.trainer.state_dict(), _metadata(history))
            saved = time.perf_counter()
    save_weights(finished, training.model.state_dict(), _metadata(history))
    state.unlink(missing_ok=True)
    return history


def fingerprint(training: Training) -> str:
    """Return 16 hexadecimal digits of all that the result of a training not begun yet depends on."""
    settings = {name: value for name, value in asdict(training.config).items() if name not in ELSEWHERE}
    facts = {"settings": settings, "augmentation": asdict(training.augmentation), "people": training.train_faces.people}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    faces, weights = training.train_faces, training.model.state_dict()
    arrays: tuple[NDArray[Any], ...] = (faces.pictures, faces.labels, faces.points, *weights.values())
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], list[EpochMetrics]] | None:
    """Return the arrays and metrics of a file, None if it is not there or damaged: then it is made again."""
    try:
        arrays, metadata = load_weights(path)
        return arrays, [EpochMetrics(**row) for row in json.loads(metadata["history"])]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _metadata(history: list[EpochMetrics]) -> dict[str, str]:
    return {"history": json.dumps([asdict(metrics) for metrics in history])}
