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
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nn.checkpoint import load_weights, save_weights
from resnet.config import TrainingConfig
from resnet.runfolder import EpochMetrics
from resnet.trainer import Meter, Trainer

if TYPE_CHECKING:
    from resnet.training import Training

FILE = "checkpoint.safetensors"
LARGEST = 2**32  # bytes of a checkpoint: ResNet-152 has half a gigabyte
MOST = 2**53  # of any number that is read: whole ones up to it are exact in float64


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
            ValueError: the pictures are not those that the run began with, or the state does not fit the network, its
                optimiser or the epochs, and the message names the array; nothing has been changed then.
        """
        if training.fingerprint != self.data:
            raise ValueError(
                f"the pictures are not those that {self.path.parent} was begun with (others, or in another order, or "
                "masked at other places): bring them back, say where they are with --data-dir, or start a new run"
            )
        try:
            self._check_steps(len(training.batches))
            self._check_averages(training.trainer)
            training.trainer.load_state_dict(self.state)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return self.progress

    def _check_steps(self, batches: int) -> None:
        """Raise a ValueError if the number of steps is none, or contradicts the progress; ``batches`` are an epoch."""
        steps = self.state.get("steps")
        if steps is None or steps.shape != () or steps.dtype.kind not in "iu":
            found = "none" if steps is None else f"{steps.dtype} {steps.shape}"
            raise ValueError(f"steps: expected one whole number from 0 on, got {found}")
        epochs, under_way = divmod(int(steps), batches)
        history, losses = len(self.progress.history), len(self.progress.meter.losses)
        if (epochs, under_way) != (history, losses):
            raise ValueError(
                f"expected metrics of {epochs} epochs and losses of {under_way} steps after {steps} steps, "
                f"found {history} and {losses}"
            )

    def _check_averages(self, trainer: Trainer) -> None:
        """Raise a ValueError that names each of the optimiser's arrays that is not there or not made of its numbers."""
        optimizer, problems = trainer.optimizer, []
        for kind, (name, parameter) in product(optimizer.kinds, optimizer.parameters.items()):
            key, dtype = f"optimizer/{kind}/{name}", parameter.data.dtype
            array = self.state.get(key)
            if array is None:
                if self.state["steps"] > 0:  # they come with the first step
                    problems.append(f"{key}: expected {dtype} {parameter.data.shape}, found none")
            elif array.dtype != dtype:
                problems.append(f"{key}: expected {dtype}, got {array.dtype}")
            elif not np.isfinite(array).all():
                problems.append(f"{key}: expected finite numbers, got some that are not")
        if problems:
            raise ValueError("the state does not fit this optimiser:\n  " + "\n  ".join(problems))


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
    arrays, metadata = load_weights(path, LARGEST)
    try:
        facts = {name: json.loads(metadata[name]) for name in ("config", "data", "history", "meter", "best")}
        meter = Meter(**facts["meter"])
        history = [EpochMetrics(**row) for row in facts["history"]]
        config = TrainingConfig(**facts["config"])
        if not isinstance(facts["data"], str):
            raise TypeError("data is no text")
        _check_numbers(meter, history, facts["best"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint of a training, or of another version: {error}") from error
    best = -math.inf if facts["best"] is None else facts["best"]
    return Checkpoint(path, config, facts["data"], Progress(history, meter, best), arrays)


def _check_numbers(meter: Meter, history: list[EpochMetrics], best: Any) -> None:
    """Raise a ValueError or TypeError if what was read are not numbers of the right kind."""
    for row in history:
        for name, value in asdict(row).items():
            whole = name in ("epoch", "steps")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise TypeError(f"history: expected {name} as a number, got {value!r:.100}")
            if abs(value) > MOST:
                raise ValueError(f"history: expected {name} of at most {MOST:,}, got {value!r:.100}")
    if not all(_is_count(size, 1) for size in meter.sizes) or not _is_count(meter.right, 0):
        counts = [*meter.sizes[:5], meter.right]
        raise ValueError(f"meter: expected numbers of pictures, got {counts!r:.100}")
    if len(meter.sizes) != len(meter.losses) or not all(_is_loss(loss) for loss in meter.losses):
        losses = meter.losses[:5]
        raise ValueError(f"meter: expected a loss for each of {len(meter.sizes)} steps, got {losses!r:.100}")
    if best is not None and (type(best) not in (int, float) or not abs(best) <= MOST):
        raise ValueError(f"expected the best score as a number, got {best!r:.100}")


def _is_count(number: Any, least: int) -> bool:
    return type(number) is int and least <= number <= MOST


def _is_loss(number: Any) -> bool:
    return type(number) is float and math.isfinite(number)
