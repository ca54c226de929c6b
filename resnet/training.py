"""Training: from a configuration to a run folder with a network that recognises people.

    prepare  faces, split, masks, network, optimiser, schedule   -> Training
    fit      epoch after epoch of steps, tested after each         -> metrics.csv
    finish   weights, curves, pictures of predictions, table       -> the rest of the run folder

A step is: pictures to the device, forward, loss, backward, optimiser. On a GPU nothing in it waits for the device;
losses are read in bunches, when the progress bar shows them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nn import SGD, SoftmaxCrossEntropy
from nn.backend import Array, array_module, choose_backend, load_backend, to_numpy
from nn.checkpoint import save_weights
from nn.gpu import uploads
from nn.parallel import cores_for, keep_freed_memory, one_blas_thread, threads
from nn.precision import LossScale, check_precision, matrix_products
from nn.schedule import make_schedule
from resnet.baselines import evaluate_baselines
from resnet.config import TrainingConfig
from resnet.data import Faces, load_faces
from resnet.data.augment import Augmentation
from resnet.data.batches import TrainingBatches, masked_copies, prefetch, to_network_input
from resnet.data.faces import join, split_by_person
from resnet.evaluation import rank_k_accuracy
from resnet.memory import memory_errors_explained
from resnet.models import ResNet, make_model
from resnet.report import draw_curves, draw_predictions, results_table
from resnet.runfolder import EpochMetrics, append_metrics, machine, make_run_folder, write_json

SECONDS_BETWEEN_READINGS = 0.5  # of losses from the device, for the progress bar


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


class Trainer:
    """A network, its loss, its optimiser and its schedule: everything that a step changes or needs.

    Args:
        model: on its device already.
        config: settings.
        total_steps: of the whole training, for the schedule.
    """

    def __init__(self, model: ResNet, config: TrainingConfig, total_steps: int) -> None:
        self.model = model
        self.loss = SoftmaxCrossEntropy(config.label_smoothing)
        self.optimizer = SGD(
            model.named_parameters(),
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            decay_all=False,
        )
        self.threads, self.precision = config.threads, config.precision
        xp = array_module(model.fc.weight.data)
        self.scale = LossScale(xp) if config.precision == "float16" else None
        keep_freed_memory()
        self.schedule = make_schedule(config.schedule, config.learning_rate, total_steps, config.warm_up)
        self.steps = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule(self.steps)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies, as NumPy arrays, of all that a step changes; not of the loss scale of half precision."""
        state = {f"model/{name}": array for name, array in self.model.state_dict().items()}
        state |= {f"optimizer/{name}": array for name, array in self.optimizer.state_dict().items()}
        return state | {"steps": np.array(self.steps)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from ``state``: the next steps are those that would have followed it, bit for bit.

        Raises:
            ValueError: the state is that of another network or optimiser; nothing has been changed then.
        """
        parts: dict[str, dict[str, NDArray[Any]]] = {"model": {}, "optimizer": {}}
        for name, array in state.items():
            part, _, rest = name.partition("/")
            if rest:
                parts.setdefault(part, {})[rest] = array
        if "steps" not in state or set(parts) != {"model", "optimizer"}:
            raise ValueError("expected the state of a training (model/…, optimizer/…, steps), got " + ", ".join(parts))
        self.optimizer.check_state_dict(parts["optimizer"])
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.steps = self.optimizer.steps = int(state["steps"])

    def step(self, x: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
        """Train on one batch. On a GPU nothing here waits for the device.

        Args:
            x: (N, H, W, C), float32, on the CPU or on the model's device.
            labels: (N,) on the CPU.

        Returns:
            the mean loss and the number of right answers before the step, 0-d arrays on the device.

        Raises:
            OutOfMemoryError: not enough memory; says what it would need and what lowers that.
        """
        xp = array_module(self.model.fc.weight.data)
        self.model.zero_grad()
        with self.circumstances(x.shape):
            logits = self.forward(xp.asarray(x))  # (N, K)
            loss = self.loss(logits, labels)
            self.backward(self.loss.backward(self.loss_scale))
            self.optimizer.step(self.learning_rate, self.scale)
            right = (logits.argmax(axis=1) == xp.asarray(labels)).sum()
        self.steps += 1
        return loss, right

    @contextmanager
    def circumstances(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Within it, pictures of ``shape`` can be trained on: threads, precision, and errors as in :meth:`step`."""
        with (
            memory_errors_explained(self.model, shape, self.precision),
            matrix_products(self.precision, array_module(self.model.fc.weight.data)),
            threads(self.threads),
            one_blas_thread(),
            np.errstate(over="ignore", invalid="ignore"),  # a loss that is not finite is reported with its step
        ):
            yield

    @property
    def loss_scale(self) -> Array | float:
        """What the loss is multiplied by for the backward pass; not 1 in half precision only."""
        return 1.0 if self.scale is None else self.scale.value

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> logits (N, K). In half precision the network computes in float16, the loss does not."""
        if self.scale is None:
            return self.model(x)
        return self.model(x.astype(np.float16)).astype(np.float32)

    def backward(self, dlogits: Array) -> None:
        """(N, K) -> the gradients of all parameters, multiplied by :attr:`loss_scale`."""
        self.model.backward(dlogits if self.scale is None else dlogits.astype(np.float16), needs_dx=False)


class Meter:
    """Collects losses and right answers on the device, and reads them in bunches.

    Reading makes a GPU's queue run empty, so it is not done in every step. No step is lost: a loss that is not finite
    is found at the next reading and reported with its own step.
    """

    def __init__(self, first_step: int) -> None:
        self.losses: list[float] = []
        self.right = self.pictures = 0
        self._first_step, self._sizes = first_step, list[int]()
        self._pending: list[tuple[Array, Array]] = []

    def add(self, loss: Array, right: Array, pictures: int) -> None:
        """Take in what a step returned."""
        self._pending.append((loss, right))
        self._sizes.append(pictures)

    def read(self) -> None:
        """Fetch what is pending.

        Raises:
            TrainingError: a loss was not finite.
        """
        if not self._pending:
            return
        xp = array_module(self._pending[0][0])
        self.losses += to_numpy(xp.stack([loss for loss, _ in self._pending])).tolist()
        self.right += int(to_numpy(xp.stack([right for _, right in self._pending])).sum())
        self.pictures = sum(self._sizes)
        self._pending = []
        for number, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} at step {self._first_step + number + 1}. Try a lower --learning-rate, "
                    "some --warm-up steps, or more --label-smoothing; check the pictures with --profile or "
                    "--overfit-one-batch"
                )

    @property
    def loss(self) -> float:
        """Mean loss over the pictures read so far."""
        sizes = self._sizes[: len(self.losses)]
        return float(np.dot(self.losses, sizes) / sum(sizes))

    @property
    def accuracy(self) -> float:
        """Share of right answers so far."""
        return self.right / self.pictures


@dataclass
class Training:
    """A training ready to start: configuration, data, network."""

    config: TrainingConfig
    backend: str
    train_faces: Faces
    tests: dict[str, Faces]  # tested after each epoch: "clean" and "masked", or fewer
    model: ResNet
    mean: list[float]  # a number a channel, of the training pictures, 0 black to 1 white
    std: list[float]
    augmentation: Augmentation = field(default_factory=Augmentation)

    @cached_property
    def batches(self) -> TrainingBatches:
        """The training batches of all epochs."""
        return TrainingBatches(
            self.train_faces,
            self.config.batch_size,
            pictures_per_epoch=self.config.repeats * len(self.train_faces),
            mask_probability=self.config.mask_probability,
            augmentation=self.augmentation,
            seed=self.config.seed,
            mean=self.mean,
            std=self.std,
        )

    @cached_property
    def trainer(self) -> Trainer:
        """Network, loss, optimiser and schedule."""
        return Trainer(self.model, self.config, self.config.epochs * len(self.batches))

    def scores(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's logits for pictures uint8 (N, H, W, C): float32 (N, K) on the CPU."""
        xp = array_module(self.model.fc.weight.data)
        with matrix_products(self.config.precision, xp), threads(self.config.threads):
            return predict(self.model, pictures, self.mean, self.std, self.config.batch_size)

    def test(self) -> dict[str, float]:
        """Return the rank-1 accuracy on each test set."""
        return {name: rank_k_accuracy(self.scores(t.pictures), t.labels) for name, t in self.tests.items()}


def predict(
    model: ResNet, pictures: NDArray[np.uint8], mean: list[float], std: list[float], batch_size: int = 32
) -> NDArray[np.float32]:
    """Run a network over pictures with its running statistics, keeping nothing for backward.

    Args:
        model: on any device; it stays as it is.
        pictures: uint8 (N, H, W, C).
        mean, std: normalisation, a number a channel.
        batch_size: pictures at a time.

    Returns:
        logits, float32 (N, K), on the CPU.
    """
    xp, fused = array_module(model.fc.weight.data), model.fuse()
    keep_freed_memory()
    starts = range(0, len(pictures), batch_size)
    batches = ((to_network_input(pictures[start : start + batch_size], mean, std), None) for start in starts)
    with cores_for(min(batch_size, len(pictures))):
        parts = [fused(x) for x, _ in uploads(batches, xp)]
    return to_numpy(xp.concatenate(parts))  # (N, K)


def prepare(config: TrainingConfig) -> Training:
    """Load faces, split them, draw the test masks and build the network.

    The split is by photograph and comes before any mask is drawn: no photograph is in both sets, masked or not.

    Raises:
        ValueError: faces or settings that cannot be used.
        BackendError: the wanted backend cannot be used here.
    """
    backend = choose_backend(config.backend)  # before the faces are read: that takes a while
    check_precision(config.precision, load_backend(backend))
    faces = load_faces(
        config.data, config.data_dir, config.image_size, bad_pictures=config.bad_pictures, template=config.template
    )
    train_faces, test_faces = split_faces(faces, config)
    return assemble(config, train_faces, {"clean": test_faces, "masked": masked_copies(test_faces, config.seed)})


def split_faces(faces: Faces, config: TrainingConfig) -> tuple[Faces, Faces]:
    """Return the photographs to train on and those to test, as ``config.seed`` and ``config.test_share`` say."""
    train, test = split_by_person(faces.labels, config.test_share, rng=np.random.default_rng([config.seed, 0]))
    return faces.take(train), faces.take(test)


def assemble(
    config: TrainingConfig, train_faces: Faces, tests: dict[str, Faces], augmentation: Augmentation | None = None
) -> Training:
    """Build the network for faces that are loaded already.

    Args:
        config: settings; those about data are not looked at.
        train_faces: to train on; the network's classes are their people.
        tests: what to test on after each epoch: "clean", "masked", both or nothing.
        augmentation: how strongly training pictures are changed; by default as is good for faces.

    Raises:
        ValueError: settings that cannot be used.
        BackendError: the wanted backend cannot be used here.
    """
    backend = choose_backend(config.backend)
    check_precision(config.precision, load_backend(backend))
    model = make_model(
        config.arch,
        len(train_faces.people),
        train_faces.pictures.shape[3],
        activation=config.activation,
        negative_slope=config.negative_slope,
        stem=config.stem,
        algorithm=config.algorithm,
        rng=np.random.default_rng([config.seed, 1]),
    )
    mean, std = grey_levels(train_faces.pictures)
    return Training(config, backend, train_faces, tests, model.to(backend), mean, std, augmentation or Augmentation())


def grey_levels(pictures: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation, a number a channel each, of pictures (N, H, W, C); 0 black to 1 white."""
    scaled = pictures / 255.0
    mean = scaled.mean(axis=(0, 1, 2))  # (N, H, W, C) -> (C,)
    std = np.maximum(scaled.std(axis=(0, 1, 2)), 1e-3)  # pictures all of one grey have no spread
    return mean.tolist(), std.tolist()


def run(config: TrainingConfig, *, quiet: bool = False) -> Path:
    """Train and write a run folder.

    Ctrl-C ends the training early: the folder is finished with what was learned so far, then the interrupt goes on.

    Args:
        config: settings.
        quiet: print nothing.

    Returns:
        the run folder.

    Raises:
        ValueError, BackendError: as :func:`prepare`.
        OSError: the run folder cannot be written, or holds a run already.
        TrainingError: the loss became infinite or not a number; ``metrics.csv`` has the epochs until then.
        KeyboardInterrupt: after the folder has been finished.
    """
    training = prepare(config)
    folder = make_run_folder(config)
    say = (lambda *words: None) if quiet else tqdm.write
    say(describe(training))
    files = {"train_files": training.train_faces.files, "test_files": training.tests["clean"].files}
    write_json(folder / "config.json", facts(training) | files)
    history: list[EpochMetrics] = []
    try:
        for metrics in fit(training, quiet=quiet):
            history.append(metrics)
            append_metrics(folder, metrics)
            say(epoch_line(metrics, config.epochs))
    except KeyboardInterrupt:
        say(f"\ninterrupted after {training.trainer.steps} steps: keeping what was learned so far")
        finish(training, history, folder, say)
        raise
    finish(training, history, folder, say)
    return folder


def fit(training: Training, *, quiet: bool = False) -> Iterator[EpochMetrics]:
    """Train epoch after epoch, from where the trainer stands; yield what each brought.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    config, batches = training.config, training.batches
    start = time.perf_counter()
    done = training.trainer.steps // len(batches)
    progress = {"total": config.epochs * batches.pictures_per_epoch, "initial": done * batches.pictures_per_epoch}
    with tqdm(**progress, unit=" pictures", disable=True if quiet else None, leave=False) as bar:
        for epoch in range(done + 1, config.epochs + 1):
            epoch_start = time.perf_counter()
            bar.set_description(f"epoch {epoch}/{config.epochs}")
            meter = _train_epoch(training, epoch, bar)
            pictures_per_second = meter.pictures / (time.perf_counter() - epoch_start)
            accuracy = training.test()
            yield EpochMetrics(
                epoch=epoch,
                steps=training.trainer.steps,
                learning_rate=training.trainer.schedule(training.trainer.steps - 1),
                train_loss=meter.loss,
                train_accuracy=meter.accuracy,
                clean_accuracy=accuracy.get("clean", math.nan),
                masked_accuracy=accuracy.get("masked", math.nan),
                pictures_per_second=pictures_per_second,
                seconds=time.perf_counter() - start,
            )


def _train_epoch(training: Training, epoch: int, bar: Any) -> Meter:
    """Train on every batch of one epoch, showing the progress."""
    trainer = training.trainer
    meter = Meter(trainer.steps)
    training.model.train()
    last_reading = time.perf_counter()
    config, (height, width, channels) = training.config, training.train_faces.pictures.shape[1:]
    with (
        memory_errors_explained(training.model, (config.batch_size, height, width, channels), config.precision),
        closing(prefetch(training.batches.epoch(epoch - 1))) as batches,
    ):
        for x, labels in uploads(batches, load_backend(training.backend)):
            learning_rate = trainer.learning_rate
            loss, right = trainer.step(x, labels)
            meter.add(loss, right, len(labels))
            if time.perf_counter() - last_reading > SECONDS_BETWEEN_READINGS:
                meter.read()
                last_reading = time.perf_counter()
                shown = f"loss {meter.loss:.3f}, accuracy {100 * meter.accuracy:.1f} %, lr {learning_rate:.4f}"
                bar.set_postfix_str(shown, refresh=False)
            bar.update(len(labels))
    meter.read()
    return meter


def finish(training: Training, history: list[EpochMetrics], folder: Path, say: Any) -> None:
    """Write weights, curves and predictions, and print the table of results.

    Raises:
        OSError: the folder cannot be written.
    """
    save_weights(folder / "model.safetensors", training.model.state_dict(), model_metadata(training))
    draw_curves(history, folder / "curves.png")
    masked = training.tests["masked"]
    draw_predictions(masked, training.scores(masked.pictures), folder / "predictions.png")
    train_masked = masked_copies(training.train_faces, training.config.seed + 1)  # other masks than the test's
    gallery = join(training.train_faces, train_masked)
    name = training.config.arch + (" LeakyReLU" if training.config.activation == "leaky_relu" else " ReLU")
    rows = evaluate_baselines(gallery, training.tests) | {name: training.test()}
    write_json(folder / "results.json", facts(training) | {"rank1": rows, "epochs": [asdict(row) for row in history]})
    say(results_table(rows, len(masked), len(training.train_faces)))
    say("written: " + ", ".join(str(path) for path in sorted(folder.iterdir())))


def describe(training: Training) -> str:
    """Return in a few lines what is about to be trained on what."""
    config, faces = training.config, training.train_faces
    height, width, channels = faces.pictures.shape[1:]
    lines = [
        f"{len(faces.people)} people, {len(faces)} photographs to train on, {len(training.tests['clean'])} to test, "
        f"{height}x{width} {'grey' if channels == 1 else 'colour'}",
        *(f"note: {note}" for note in faces.notes),
        f"{config.arch} ({config.activation}), {training.model.count_parameters():,} parameters, "
        f"on {training.backend} in {config.precision}; {config.epochs} epochs of {len(training.batches)} steps",
    ]
    return "\n".join(lines)


def epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    """Return an epoch's metrics in one line."""
    left = metrics.seconds / metrics.epoch * (epochs - metrics.epoch)
    return (
        f"epoch {metrics.epoch:3d}/{epochs}  loss {metrics.train_loss:.3f}  "
        f"train {100 * metrics.train_accuracy:5.1f} %  clean {100 * metrics.clean_accuracy:5.1f} %  "
        f"masked {100 * metrics.masked_accuracy:5.1f} %  "
        f"lr {metrics.learning_rate:.5f}  {metrics.pictures_per_second:.0f} pictures/s  {left:.0f} s left"
    )


def model_metadata(training: Training) -> dict[str, str]:
    """Return what one must know to use the weights: network, people, size and normalisation, each as JSON."""
    config = training.config
    facts = {
        "arch": config.arch,
        "stem": config.stem,
        "activation": config.activation,
        "negative_slope": config.negative_slope,
        "image_size": config.image_size,
        "channels": training.train_faces.pictures.shape[3],
        "mean": training.mean,
        "std": training.std,
        "people": list(training.train_faces.people),
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def facts(training: Training) -> dict[str, Any]:
    """Return what a result depends on: settings, backend, sizes of the sets, versions and machine."""
    return {
        "settings": asdict(training.config),
        "backend": training.backend,
        "people": len(training.train_faces.people),
        "train_photographs": len(training.train_faces),
        "test_photographs": len(training.tests["clean"]),
        "notes": list(training.train_faces.notes),
        "machine": machine(training.backend),
    }
