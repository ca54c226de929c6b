"""Training: from a configuration to a run folder with a network that recognises people.

Three parts::

    prepare  faces, split, masks, network                          -> Training
    fit      epoch after epoch of steps, tested after each         -> metrics, weights, checkpoint
    finish   curves, pictures of predictions, table                -> the rest of the run folder

:func:`run` does all three; :func:`resume` goes on where a run was stopped or killed. A single step is in
:mod:`resnet.trainer`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nn.backend import array_module, choose_backend, load_backend
from nn.checkpoint import save_weights
from nn.gpu import uploads
from nn.parallel import threads
from nn.precision import check_precision, matrix_products
from resnet.baselines import evaluate_baselines
from resnet.checkpoint import FILE as CHECKPOINT
from resnet.checkpoint import Progress, read_checkpoint, save_checkpoint
from resnet.config import TrainingConfig
from resnet.data import Faces, detection, load_faces
from resnet.data.augment import Augmentation
from resnet.data.batches import TrainingBatches, masked_copies, prefetch
from resnet.data.faces import join, split_by_person
from resnet.data.rmfrd import load_rmfrd
from resnet.evaluation import rank_k_accuracy
from resnet.inference import predict
from resnet.memory import memory_errors_explained
from resnet.models import ResNet, make_model
from resnet.report import draw_curves, draw_predictions, results_table
from resnet.runfolder import BEST, WEIGHTS, EpochMetrics, machine, make_run_folder, write_json, write_metrics
from resnet.sheet import draw_inputs
from resnet.signals import Stopped, StopRequest, stop_requests
from resnet.trainer import Meter, Trainer, TrainingError
from resnet.weights import load_pretrained

SECONDS_BETWEEN_READINGS = 0.5  # of losses from the device, for the progress bar


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
    notes: list[str] = field(default_factory=list)  # what a person should know, besides the notes on the faces

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the pictures that are learned from and tested on, people and masks' places too."""
        digest = hashlib.sha256()
        for faces in (self.train_faces, *self.tests.values()):
            digest.update(json.dumps(faces.people).encode())
            for array in (faces.pictures, faces.labels, faces.points):
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

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
            bad_pictures=self.config.bad_pictures,
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


def prepare(config: TrainingConfig, *, pretrained: bool = True) -> Training:
    """Load faces, split them, draw the test masks and build the network.

    The split is by photograph and comes before any mask is drawn: no photograph is in both sets, masked or not.

    Args:
        config: settings.
        pretrained: begin with the weights that ``config.weights`` names, if it does.

    Raises:
        ValueError: faces, weights or settings that cannot be used.
        BackendError: the wanted backend cannot be used here.
    """
    check_precision(config.precision, load_backend(choose_backend(config.backend)))  # before faces are read: it is slow
    training = _prepare_detector(config) if config.data == "rmfrd" else _prepare_recogniser(config)
    if config.weights is not None and pretrained:
        training.notes += load_pretrained(training.model, config.weights, training.train_faces.people)
    return training


def _prepare_recogniser(config: TrainingConfig) -> Training:
    """Return a training that tells people apart, masked or not."""
    faces = load_faces(
        config.data,
        config.data_dir,
        config.image_size,
        bad_pictures=config.bad_pictures,
        template=config.template,
        faces_box=config.faces_box,
        points_file=config.points,
    )
    train_faces, test_faces = split_faces(faces, config)
    return assemble(config, train_faces, {"clean": test_faces, "masked": masked_copies(test_faces, config.seed)})


def _prepare_detector(config: TrainingConfig) -> Training:
    """Return a training that tells masked faces from bare ones; whoever is tested on was not learned from."""
    if config.data_dir is None:
        raise ValueError("the data set 'rmfrd' needs --data-dir DIR, the folder of the unpacked set (docs/data.md)")
    rmfrd = load_rmfrd(
        config.data_dir, config.image_size, bad_pictures=config.bad_pictures, most_each=detection.MOST_EACH
    )
    people = np.random.default_rng([config.seed, 0]).permutation(len(rmfrd.masked.people))
    tested = people[: max(1, round(config.test_share * len(people)))]
    learned, test = detection.divide(rmfrd, tested)
    shown = detection.with_drawn_masks(learned, config.seed)
    training = assemble(replace(config, mask_probability=0.0), shown, {"clean": test})  # masks are drawn already
    training.notes.append(
        f"{len(people) - len(tested)} people are learned from, {len(tested)} others tested on; to learn from there are "
        "bare faces, the same with drawn masks, and real masks"
    )
    return training


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

    Args:
        config: settings.
        quiet: print nothing.

    Returns:
        the run folder.

    Raises:
        ValueError, BackendError: as :func:`prepare`.
        OSError: the run folder cannot be written, or holds a run already.
        TrainingError: the loss exploded, or a picture broke; the checkpoint before it is intact.
        Stopped: by SIGINT or SIGTERM, after a whole step; the checkpoint has it.
    """
    training = prepare(config)
    folder = make_run_folder(config.run_dir)
    _say(quiet, describe(training))
    progress = Progress()
    save_checkpoint(folder, training, progress)
    _write_beginning(training, folder)
    return _go(training, folder, progress, quiet)


CHANGEABLE = ("backend", "threads", "algorithm", "data_dir", "bad_pictures", "learning_rate")
"""Settings that may be others when a run goes on. The learning rate is for a loss that exploded; all others leave the
result as it is, but for its last digits."""


def resume(folder: str | Path, changes: Mapping[str, Any] | None = None, *, quiet: bool = False) -> Path:
    """Go on with a run that was stopped or killed, as if it had not been.

    Args:
        folder: of the run.
        changes: settings that shall be others from here on, among :data:`CHANGEABLE`.
        quiet: print nothing.

    Returns:
        the run folder.

    Raises:
        FileNotFoundError: no checkpoint is there.
        ValueError: the checkpoint is damaged, the pictures are others, or a change is not possible.
        BackendError, OSError, TrainingError, Stopped: as :func:`run`.
    """
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    config = changed(checkpoint.config, {**(changes or {}), "run_dir": str(folder)})
    training = prepare(config, pretrained=False)
    progress = checkpoint.restore(training)
    for leftover in folder.glob(".*.tmp"):  # of a write that was killed
        leftover.unlink()
    _say(quiet, describe(training))
    steps, total = training.trainer.steps, config.epochs * len(training.batches)
    _say(quiet, f"going on after {steps} of {total} steps ({len(progress.history)} of {config.epochs} epochs)")
    _write_beginning(training, folder)
    return _go(training, folder, progress, quiet)


def changed(config: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """Return settings with some others, as :func:`resume` allows.

    Raises:
        ValueError: a setting that would make it another training.
    """
    may_change = (*CHANGEABLE, "run_dir")
    fixed = [name for name, value in changes.items() if name not in may_change and value != getattr(config, name)]
    if fixed:
        raise ValueError(
            "; ".join(f"--{n.replace('_', '-')} was {getattr(config, n)} when the run began" for n in fixed)
            + ". A run that goes on keeps its settings, but for "
            + ", ".join("--" + name.replace("_", "-") for name in CHANGEABLE)
            + "; to train with others from what it learned, start a run with --weights RUN/model.safetensors"
        )
    return replace(config, **changes)


def _write_beginning(training: Training, folder: Path) -> None:
    """Write what stands before the first step, except for the checkpoint."""
    files = {"train_files": training.train_faces.files, "test_files": training.tests["clean"].files}
    write_json(folder / "config.json", facts(training) | files)
    draw_inputs(training, folder / "sheet.png")


def _go(training: Training, folder: Path, progress: Progress, quiet: bool) -> Path:
    """Train from where the trainer stands, keep what every epoch brought, and finish the run folder."""
    go_on = f"python train.py --resume {folder}"
    try:
        with stop_requests() as request:
            write_metrics(folder, progress.history)
            for metrics in fit(training, progress, quiet=quiet, request=request):
                _keep(training, folder, progress)
                _say(quiet, epoch_line(metrics, training.config.epochs))
                for file, reason in training.batches.failures.items():
                    _say(quiet, f"note: {file} was left out: {reason}")
                request.check()
    except Stopped as stopped:
        _keep(training, folder, progress)
        _say(quiet, f"\n{stopped} after {training.trainer.steps} steps, which are saved. Go on with: {go_on}")
        raise
    except TrainingError as error:
        raise TrainingError(
            f"{error}. The last good checkpoint, after epoch {len(progress.history)}, is {folder / CHECKPOINT}; go on "
            f"from it with: {go_on} --learning-rate {training.config.learning_rate / 10:g}"
        ) from error
    except (KeyboardInterrupt, ValueError, RuntimeError, MemoryError):
        _say(quiet, f"\nthe checkpoint after epoch {len(progress.history)} is intact; go on from it with: {go_on}")
        raise
    finish(training, progress.history, folder, lambda words: _say(quiet, words))
    return folder


def _keep(training: Training, folder: Path, progress: Progress) -> None:
    """Write weights, checkpoint and metrics; the weights twice if this epoch is the best so far.

    Raises:
        OSError: one of them could not be written; what was there before is intact.
    """
    try:
        state, metadata = training.model.state_dict(), model_metadata(training)
        if progress.history and not progress.meter.sizes:  # an epoch has just ended
            score = _score(progress.history[-1])
            if score >= progress.best:
                progress.best = score
                save_weights(folder / BEST, state, metadata)
        save_weights(folder / WEIGHTS, state, metadata)
        save_checkpoint(folder, training, progress)
        write_metrics(folder, progress.history)
    except OSError as error:
        raise OSError(
            f"cannot save after {training.trainer.steps} steps: {error.strerror or error}. What {folder} had before is "
            f"intact; make room or make it writable, then go on with: python train.py --resume {folder}"
        ) from error


def _score(metrics: EpochMetrics) -> float:
    """What the best epoch is best by: the accuracy on masked test photographs, or on clean ones if none were masked."""
    score = metrics.clean_accuracy if math.isnan(metrics.masked_accuracy) else metrics.masked_accuracy
    return -math.inf if math.isnan(score) else score


def _say(quiet: bool, words: str) -> None:
    """Print a line without disturbing the progress bar."""
    if not quiet:
        tqdm.write(words)


def fit(
    training: Training, progress: Progress | None = None, *, quiet: bool = False, request: StopRequest | None = None
) -> Iterator[EpochMetrics]:
    """Train epoch after epoch, from where the trainer stands; yield what each brought.

    Args:
        training: as :func:`assemble` made it, or restored from a checkpoint.
        progress: of the epochs before; what they and the one under way bring is added to it.
        quiet: show no progress bar.
        request: asked after every step whether to stop.

    Raises:
        TrainingError: the loss exploded.
        Stopped: as ``request`` asked for.
    """
    config, batches, trainer = training.config, training.batches, training.trainer
    progress = Progress() if progress is None else progress
    start = time.perf_counter() - progress.seconds
    done = trainer.steps // len(batches)
    shown = {"total": config.epochs * batches.pictures_per_epoch, "initial": done * batches.pictures_per_epoch}
    with tqdm(**shown, unit=" pictures", disable=True if quiet else None, leave=False) as bar:
        for epoch in range(done + 1, config.epochs + 1):
            bar.set_description(f"epoch {epoch}/{config.epochs}")
            pictures_per_second = _train_epoch(training, progress.meter, bar, request or StopRequest())
            accuracy = training.test()
            metrics = EpochMetrics(
                epoch=epoch,
                steps=trainer.steps,
                learning_rate=trainer.schedule(trainer.steps - 1),
                train_loss=progress.meter.loss,
                train_accuracy=progress.meter.accuracy,
                clean_accuracy=accuracy.get("clean", math.nan),
                masked_accuracy=accuracy.get("masked", math.nan),
                pictures_per_second=pictures_per_second,
                seconds=time.perf_counter() - start,
            )
            progress.history.append(metrics)
            progress.meter = Meter()
            yield metrics


def _train_epoch(training: Training, meter: Meter, bar: Any, request: StopRequest) -> float:
    """Train on the batches that are left of an epoch, showing the progress; return pictures a second."""
    trainer, batches = training.trainer, training.batches
    epoch, first = divmod(trainer.steps, len(batches))
    training.model.train()
    start = last_reading = time.perf_counter()
    pictures = 0
    config, (height, width, channels) = training.config, training.train_faces.pictures.shape[1:]
    with (
        memory_errors_explained(training.model, (config.batch_size, height, width, channels), config.precision),
        closing(prefetch(batches.epoch(epoch, first))) as made,
    ):
        for x, labels in uploads(made, load_backend(training.backend)):
            learning_rate = trainer.learning_rate
            loss, right = trainer.step(x, labels)
            meter.add(loss, right, len(labels))
            pictures += len(labels)
            if request.number is not None or time.perf_counter() - last_reading > SECONDS_BETWEEN_READINGS:
                meter.read(trainer)
                last_reading = time.perf_counter()
                shown = f"loss {meter.loss:.3f}, accuracy {100 * meter.accuracy:.1f} %, lr {learning_rate:.4f}"
                bar.set_postfix_str(shown, refresh=False)
            bar.update(len(labels))
            if trainer.steps % len(batches):  # else the epoch is done, and is tested before anything stops
                request.check()
    meter.read(trainer)
    return pictures / (time.perf_counter() - start)


def finish(training: Training, history: list[EpochMetrics], folder: Path, say: Any) -> None:
    """Write curves, predictions and results, and print the table of results.

    Raises:
        OSError: the folder cannot be written.
    """
    draw_curves(history, folder / "curves.png")
    kind, shown = list(training.tests.items())[-1]  # the harder ones, masked, if there are any
    draw_predictions(shown, training.scores(shown.pictures), kind, folder / "predictions.png")
    gallery = training.train_faces
    if "masked" in training.tests:
        gallery = join(gallery, masked_copies(gallery, training.config.seed + 1))  # other masks than the test's
    name = training.config.arch + (" LeakyReLU" if training.config.activation == "leaky_relu" else " ReLU")
    rows = evaluate_baselines(gallery, training.tests) | {name: training.test()}
    epochs = [{key: value for key, value in asdict(row).items() if not math.isnan(value)} for row in history]
    write_json(folder / "results.json", facts(training) | {"rank1": rows, "epochs": epochs})
    say(results_table(rows, len(shown), len(training.train_faces)))
    say("written: " + ", ".join(str(path) for path in sorted(folder.iterdir())))


def describe(training: Training) -> str:
    """Return in a few lines what is about to be trained on what."""
    config, faces = training.config, training.train_faces
    height, width, channels = faces.pictures.shape[1:]
    classes = "answers" if config.data == "rmfrd" else "people"
    lines = [
        f"{len(faces.people)} {classes}, {len(faces)} photographs to train on, {len(training.tests['clean'])} to test, "
        f"{height}x{width} {'grey' if channels == 1 else 'colour'}",
        *(f"note: {note}" for note in (*faces.notes, *training.notes)),
        f"{config.arch} ({config.activation}), {training.model.count_parameters():,} parameters, "
        f"on {training.backend} in {config.precision}; {config.epochs} epochs of {len(training.batches)} steps",
    ]
    return "\n".join(lines)


def epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    """Return an epoch's metrics in one line."""
    left = metrics.seconds / metrics.epoch * (epochs - metrics.epoch)
    accuracies = {"train": metrics.train_accuracy, "clean": metrics.clean_accuracy, "masked": metrics.masked_accuracy}
    shown = [f"{name} {100 * value:5.1f} %" for name, value in accuracies.items() if not math.isnan(value)]
    return (
        f"epoch {metrics.epoch:3d}/{epochs}  loss {metrics.train_loss:.3f}  {'  '.join(shown)}  "
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
        "data": config.data,
        "steps": training.trainer.steps,
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
        "notes": [*training.train_faces.notes, *training.notes],
        "machine": machine(training.backend),
    }
