"""Checkpoints: a training that was stopped, or killed, goes on as if it had not been, bit for bit on the CPU.

``checkpoint.safetensors`` in the run folder has, as arrays, all that a step changes (weights, running statistics,
momentum, number of steps; in half precision the loss scale), and as metadata the settings, the metrics of all epochs,
the losses of the epoch under way, the best score, and a fingerprint of the pictures. The schedule is a function of the
number of steps. Generators of random numbers have no state to keep: each batch makes its own from seed, epoch and
place.

It is whole in itself, so that there is no moment at which a kill leaves two files that do not belong together.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nn.checkpoint import load_weights, save_weights
from resnet.config import TrainingConfig
from resnet.runfolder import EpochMetrics
from resnet.trainer import Meter

if TYPE_CHECKING:
    from resnet.training import Training

FILE = "checkpoint.safetensors"
LARGEST = 2**32  # bytes of a checkpoint: ResNet-152 has half a gigabyte


@dataclass
class Progress:
    """How far a training has come, besides what its trainer knows.

    Attributes:
        history: metrics of the epochs that are done.
        meter: losses and right answers of the epoch under way.
        best: the best score of an epoch so far; minus infinity before the first.
    """

    history: list[EpochMetrics] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    best: float = -math.inf

    @property
    def seconds(self) -> float:
        """How long the epochs that are done took, with those before an interruption."""
        return self.history[-1].seconds if self.history else 0.0


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`read_checkpoint` found.

    Attributes:
        path: of the file.
        config: the settings that the run was begun with.
        data: fingerprint of its pictures.
        progress: how far it came.
        state: of the trainer.
    """

    path: Path
    config: TrainingConfig
    data: str
    progress: Progress
    state: dict[str, NDArray[Any]]

    def restore(self, training: Training) -> Progress:
        """Set a training that has not begun to where this one stopped; returns its progress.

        Raises:
            ValueError: the pictures are not those that the run began with, or the state does not fit the network or
                the epochs; nothing has been changed then.
        """
        if training.fingerprint != self.data:
            raise ValueError(
                f"the pictures are not those that {self.path.parent} was begun with (others, or in another order, or "
                "masked at other places): bring them back, say where they are with --data-dir, or start a new run"
            )
        batches = len(training.batches)
        steps = int(self.state.get("steps", np.array(-1)))
        epochs, under_way = divmod(steps, batches)
        if (epochs, under_way) != (len(self.progress.history), len(self.progress.meter.losses)):
            raise ValueError(
                f"{self.path}: expected metrics of {epochs} epochs and losses of {under_way} steps after {steps} "
                f"steps, found {len(self.progress.history)} and {len(self.progress.meter.losses)}"
            )
        try:
            training.trainer.load_state_dict(self.state)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return self.progress


def save_checkpoint(folder: Path, training: Training, progress: Progress) -> None:
    """Write the checkpoint of a training, whole or not at all.

    Raises:
        OSError: the folder cannot be written; an earlier checkpoint is intact.
    """
    meter = progress.meter
    facts = {
        "config": asdict(training.config),
        "data": training.fingerprint,
        "history": [asdict(metrics) for metrics in progress.history],
        "meter": {"losses": meter.losses, "sizes": meter.sizes, "right": meter.right},
        "best": None if math.isinf(progress.best) else progress.best,
    }
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    save_weights(folder / FILE, training.trainer.state_dict(), metadata)


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the checkpoint of a run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, cut short, or no checkpoint; the message says what was expected.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        found = "no such folder" if not Path(folder).is_dir() else f"no {FILE} in it"
        raise FileNotFoundError(
            f"expected a run folder to go on with at {folder}, found {found}. A run writes it before its first epoch; "
            "if there is none, start the run again"
        )
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: expected a checkpoint of at most {LARGEST:,} bytes, got {path.stat().st_size:,}")
    arrays, metadata = load_weights(path)
    try:
        facts = {name: json.loads(metadata[name]) for name in ("config", "data", "history", "meter", "best")}
        meter = Meter(**facts["meter"])
        history = [EpochMetrics(**row) for row in facts["history"]]
        best = -math.inf if facts["best"] is None else float(facts["best"])
        config = TrainingConfig(**facts["config"])
        if not isinstance(facts["data"], str):
            raise TypeError("data is no text")
        _check_numbers(meter, history)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint of a training, or of another version: {error}") from error
    return Checkpoint(path, config, facts["data"], Progress(history, meter, best), arrays)


def _check_numbers(meter: Meter, history: list[EpochMetrics]) -> None:
    """Raise a ValueError or TypeError if what was read are not numbers of the right kind."""
    for row in history:
        for name, value in asdict(row).items():
            whole = name in ("epoch", "steps")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise TypeError(f"history: expected {name} as a number, got {value!r}")
    counts = [*meter.sizes, meter.right]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"meter: expected numbers of pictures, got {counts[:5]}")
    if len(meter.sizes) != len(meter.losses) or not all(isinstance(loss, float) for loss in meter.losses):
        raise ValueError(f"meter: expected a loss for each of {len(meter.sizes)} steps, got {meter.losses[:5]}")
