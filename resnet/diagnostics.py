"""Two looks at a training before it starts: can it learn one batch by heart, and where do its time and memory go?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nn import SoftmaxCrossEntropy
from nn.backend import load_backend
from nn.gpu import mark, seconds_between
from nn.profile import LayerRecord, note_kept, record_layers, time_table, watch_memory
from nn.schedule import make_schedule
from resnet.config import TrainingConfig
from resnet.data.batches import to_network_input
from resnet.trainer import Meter
from resnet.training import describe, prepare


def overfit_one_batch(config: TrainingConfig, steps: int = 60) -> tuple[float, float]:
    """Train on one batch again and again: a network that cannot learn 32 pictures by heart has a bug.

    Without masks, augmentation and label smoothing, by a short warm-up and half a cosine from half the learning rate.
    Prints a line every tenth step.

    Args:
        config: settings; learning rate, batch size and network count.
        steps: how often.

    Returns:
        loss and accuracy at the end.

    Raises:
        ValueError, BackendError, TrainingError: as :func:`run`.
    """
    training = prepare(config)
    trainer = training.trainer
    trainer.loss = SoftmaxCrossEntropy()
    trainer.schedule = make_schedule("cosine", config.learning_rate / 2, steps, warm_up_steps=5)
    rng = np.random.default_rng([config.seed, 2])
    chosen = training.train_faces.take(rng.permutation(len(training.train_faces))[: config.batch_size])
    x = to_network_input(chosen.pictures, training.mean, training.std)
    print(describe(training))
    for step in range(1, steps + 1):
        meter = Meter()
        meter.add(*trainer.step(x, chosen.labels), len(chosen))
        meter.read(trainer)
        if step % 10 == 0 or step == 1:
            print(f"step {step:3d}  loss {meter.loss:.4f}  accuracy {100 * meter.accuracy:5.1f} %")
    return meter.loss, meter.accuracy


def profile(config: TrainingConfig, repeats: int = 5) -> str:
    """Return a table of where the time and the memory of a training step go, layer by layer.

    Raises:
        ValueError, BackendError: as :func:`resnet.training.prepare`.
        MemoryError: as :meth:`resnet.training.Trainer.step`.
    """
    training = prepare(config)
    model, trainer, xp = training.model.train(), training.trainer, load_backend(training.backend)
    batches = (batch for epoch in range(repeats + 3) for batch in training.batches.epoch(epoch))
    marks: dict[str, list[tuple[Any, Any]]] = {}
    waiting, sizes = list[float](), list[int]()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = mark(xp)
        yield
        marks.setdefault(name, []).append((start, mark(xp)))

    def step(records: list[LayerRecord]) -> None:
        start = time.perf_counter()
        x, labels = next(batches)
        sizes.append(len(labels))
        waiting.append(time.perf_counter() - start)
        model.zero_grad()
        with trainer.circumstances(x.shape):
            with timed("forward"):
                logits = trainer.forward(xp.asarray(x))
            with timed("loss"):
                trainer.loss(logits, labels)
                dlogits = trainer.loss.backward(trainer.loss_scale)
            note_kept(model, records)
            with timed("backward"):
                trainer.backward(dlogits)
            with timed("optimiser"):
                trainer.optimizer.step(trainer.learning_rate, trainer.scale)

    trainer.step(*next(batches))  # first calls are slower
    with record_layers(model) as records:
        for _ in range(repeats):
            step(records)
    with watch_memory(xp) as memory, record_layers(model, memory) as watched:
        trainer.step(*next(batches))
    for record, other in zip(records, watched, strict=True):
        record.working_bytes = other.working_bytes
    medians = {"data (in the background)": float(np.median(waiting))}
    for name, times in marks.items():
        medians[name] = float(np.median([seconds_between(xp, start, stop) for start, stop in times]))
    lines = [f"{name}: {1000 * seconds:.1f} ms" for name, seconds in medians.items()]
    if xp is not np:
        lines.append(f"device memory held by the pool: {xp.get_default_memory_pool().total_bytes() / 1e6:.0f} MB")
    return "\n".join([time_table(records), *lines, f"(medians of {repeats} steps of {sizes[-1]} pictures)"])
