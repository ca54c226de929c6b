"""Two looks at a training before it starts: can it learn one batch by heart, and where do its time and memory go?"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from nn import SoftmaxCrossEntropy
from nn.backend import load_backend, synchronize
from nn.parallel import one_blas_thread, threads
from nn.profile import note_kept, record_layers, time_table
from nn.schedule import make_schedule
from resnet.config import TrainingConfig
from resnet.data.batches import to_network_input
from resnet.training import Meter, describe, prepare


def overfit_one_batch(config: TrainingConfig, steps: int = 60) -> tuple[float, float]:
    """Train on one batch again and again: a network that cannot learn 32 pictures by heart has a bug.

    Without masks, augmentation, label smoothing and schedule; prints a line every tenth step.

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
        meter = Meter(step - 1)
        meter.add(*trainer.step(x, chosen.labels), len(chosen))
        meter.read()
        if step % 10 == 0 or step == 1:
            print(f"step {step:3d}  loss {meter.loss:.4f}  accuracy {100 * meter.accuracy:5.1f} %")
    return meter.loss, meter.accuracy


def profile(config: TrainingConfig, repeats: int = 5) -> str:
    """Return a table of where the time and the memory of a training step go, layer by layer.

    Raises:
        ValueError, BackendError: as :func:`resnet.training.prepare`.
    """
    training = prepare(config)
    model, trainer, xp = training.model.train(), training.trainer, load_backend(training.backend)
    batches = (batch for epoch in range(repeats + 2) for batch in training.batches.epoch(epoch))
    seconds: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronize(xp)
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    trainer.step(*next(batches))  # first calls are slower
    with threads(config.threads), one_blas_thread(), record_layers(model) as records:  # as in a step of training
        for repeat in range(repeats + 1):
            if repeat == repeats and xp is np:
                tracemalloc.start()  # in a last step of its own, as it slows down what it watches
            with timed("data (in the background)"):
                x, labels = next(batches)
            model.zero_grad()
            with timed("forward"):
                logits = model(xp.asarray(x))
            with timed("loss"):
                trainer.loss(logits, labels)
                dlogits = trainer.loss.backward()
            note_kept(model, records)
            with timed("backward"):
                model.backward(dlogits, needs_dx=False)
            with timed("optimiser"):
                trainer.optimizer.step(trainer.learning_rate)
    tracemalloc.stop()
    for record in records:
        del record.forward_seconds[repeats:], record.backward_seconds[repeats:]
    lines = [f"{name}: {1000 * float(np.median(times[:repeats])):.1f} ms" for name, times in seconds.items()]
    return "\n".join([time_table(records), *lines, f"(medians of {repeats} steps of {len(labels)} pictures)"])
