"""What the data path costs a training: ``python -m benchmarks.data``.

An epoch of ``train.py`` as it is, its pictures masked, augmented and normalised in the background, beside the same
epoch on batches that were made before the clock started. The two take turns in one process; what the first takes longer
is what the data path adds. Takes the options of ``train.py``, e.g. ``--data folder --data-dir PEOPLE``.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure import spread, whole, write_report
from nn import BackendError
from resnet.config import TrainingConfig, add_options, given_settings
from resnet.data.batches import prefetch
from resnet.runfolder import machine
from resnet.training import Training, prepare


def train(training: Training, batches: Iterable[Any]) -> float:
    """Train on all batches; return the seconds it took, the last loss read."""
    start = time.perf_counter()
    loss: Any = 0.0
    for x, labels in batches:
        loss, _ = training.trainer.step(x, labels)
    float(loss)
    return time.perf_counter() - start


def measure(training: Training, repetitions: int) -> dict[str, Any]:
    """Return the seconds of epochs with the data path and without it, and by which share the first are longer."""
    seconds: dict[str, list[float]] = {"as in train.py": [], "batches made before": []}
    training.model.train()
    for number in range(repetitions + 1):
        made = list(training.batches.epoch(number))
        turns = list(seconds) if number % 2 else list(reversed(seconds))  # neither always has the second turn
        for name in turns:
            with closing(prefetch(training.batches.epoch(number))) as in_background:
                spent = train(training, in_background if name == "as in train.py" else made)
            if number > 0:  # the first is the warm-up
                seconds[name].append(spent)
    pairs = zip(*seconds.values(), strict=True)
    return {"seconds": seconds, "adds": spread([longer / shorter - 1 for longer, shorter in pairs])}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").split(":")[0] + ".")
    add_options(parser)
    parser.add_argument("--repetitions", type=whole(1), default=7, help="epochs of each (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    options = parser.parse_args(arguments)
    try:
        config = TrainingConfig(**given_settings(options))
        training = prepare(config)
        result = measure(training, options.repetitions)
        adds = result["adds"]
        print(f"{len(training.batches)} steps of {config.batch_size} pictures of {config.image_size}²")
        for name, seconds in result["seconds"].items():
            print(f"{name:20s} {spread(seconds)['median']:.2f} s an epoch")
        print(f"the data path adds {100 * adds['median']:.1f} % ({100 * adds['min']:.1f} – {100 * adds['max']:.1f})")
        write_report(options.json, {"machine": machine("numpy"), "settings": dataclasses.asdict(config)} | result)
    except (ValueError, OSError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
