"""ResNet18 layer by layer, beside PyTorch: ``python -m benchmarks.layers --batch 32 --size 112``.

Every distinct convolution of the network at this input, and batch norm (training), LeakyReLU, ReLU, residual add and
max pooling each at its largest shape; forward and backward apart. Backward gives the gradient by the input everywhere,
also for the stem. Times are medians; PyTorch's are those of its faster layout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from math import prod
from typing import Any

import numpy as np

from benchmarks.measure import (
    CHANNELS,
    CLASSES,
    Job,
    Measured,
    add_options,
    circumstances,
    exit_status,
    fastest,
    measure,
    speed_ratio,
    table,
    whole,
    worker_environment,
    write_report,
)
from benchmarks.step import LAYOUTS
from nn import Add, BatchNorm2d, Conv2d, LeakyReLU, MaxPool2d, Module
from resnet.models import make_model

PHASES = ("forward", "backward")


def input_shapes(model: Module, x_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each leaf of the model gets to see, by name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def noted(name: str, forward: Any, *inputs: Any, **options: Any) -> Any:
        shapes[name] = inputs[0].shape
        return forward(*inputs, **options)

    for name, layer in model.named_modules():
        if not any(layer.children()):
            layer.forward = partial(noted, name, layer.forward)  # type: ignore[method-assign]
    model.eval()
    model(np.zeros(x_shape, np.float32))
    return shapes


def layer_jobs(batch: int, size: int) -> dict[str, Job]:
    """Return what is to be measured, each layer once, in the network's order."""
    model = make_model("resnet18", CLASSES, CHANNELS, rng=np.random.default_rng(0))
    shapes = input_shapes(model, (1, size, size, CHANNELS))
    convolutions: dict[str, Job] = {}
    largest: dict[str, Job] = {}
    for name, layer in model.named_modules():
        if len(shapes.get(name, ())) != 4:
            continue  # a module with parts, or the classifier
        _, h, w, c = shapes[name]
        shape = (batch, h, w, c)
        job: Job = {"kind": "layer", "layer": type(layer).__name__, "shape": shape, "device": "cpu"}
        if isinstance(layer, Conv2d):
            kernel, _, _, filters = layer.weight.data.shape
            job |= {"filters": filters, "kernel": kernel, "stride": layer.stride[0], "padding": layer.padding[0]}
            convolutions[f"conv {kernel}×{kernel}, {h}×{w}×{c} → {filters}, stride {layer.stride[0]}"] = job
        elif isinstance(layer, BatchNorm2d | LeakyReLU | Add | MaxPool2d):
            if isinstance(layer, MaxPool2d):
                job |= {"kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": layer.padding[0]}
            if prod(shape) > prod(largest.get(job["layer"], {"shape": (0,)})["shape"]):
                largest[job["layer"]] = job
    largest["ReLU"] = largest["LeakyReLU"] | {"layer": "ReLU"}  # where the other activation would stand
    named = {"{} {}×{}×{}".format(kind, *job["shape"][1:]): job for kind, job in largest.items()}
    return convolutions | named


def contestants(job: Job, threads: int) -> dict[str, Job]:
    """Return who takes part for this layer: ours with each algorithm that can compute it, PyTorch in both layouts."""
    algorithms = [""]
    if job["layer"] == "Conv2d":
        algorithms = ["im2col", *(["winograd"] if (job["kernel"], job["stride"]) == (3, 1) else [])]
    ours = {f"ours {algorithm}".strip(): {"side": "numpy", "algorithm": algorithm} for algorithm in algorithms}
    sides = ours | {f"PyTorch {layout}": {"side": layout} for layout in LAYOUTS}
    return {name: job | side | {"threads": threads} for name, side in sides.items()}


def layer_rows(name: str, measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """Return a row for each of our algorithms and phase: milliseconds, PyTorch's, and the ratio of speeds."""
    rows = []
    for phase in PHASES:
        theirs = {key: one.seconds[phase] for key, one in measured.items() if key.startswith("PyTorch")}
        best = fastest(theirs)
        for key, one in measured.items():
            if key not in theirs:
                ours = one.seconds[phase]
                rows.append(
                    {
                        "layer": name,
                        "phase": phase,
                        "ours": key,
                        "ours_ms": 1000 * statistics.median(ours),
                        "against": best,
                        "against_ms": 1000 * statistics.median(theirs[best]),
                        "speed": speed_ratio(ours, theirs[best]),
                        "seconds": {"ours": ours, "against": theirs[best]},
                    }
                )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table."""
    head = ("layer", "phase", "ours", "ms", "PyTorch ms", "layout", "speed")
    cells = [
        (
            row["layer"],
            row["phase"],
            row["ours"].removeprefix("ours").strip(),
            f"{row['ours_ms']:.2f}",
            f"{row['against_ms']:.2f}",
            row["against"].removeprefix("PyTorch "),
            f"{row['speed']['median']:.2f}",
        )
        for row in rows
    ]
    return table(head, cells)


def run(options: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        BenchmarkError: a contestant cannot run.
        OSError: the file cannot be written.
    """
    environment, blas_settings = worker_environment(options.keep_blas_settings)
    rows, seen = list[dict[str, Any]](), list[Measured]()
    for name, job in layer_jobs(options.batch, options.size).items():
        measured = measure(contestants(job, options.threads), options.repetitions, environment)
        rows += layer_rows(name, measured)
        seen += measured.values()
        print(f"measured: {name}", file=sys.stderr, flush=True)
    print(show(rows))
    write_report(options.json, circumstances(blas_settings, options, seen) | {"rows": rows})


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description="ResNet18's layers one by one.")
    parser.add_argument("--batch", type=whole(2), default=32, help="pictures a step (32)")
    parser.add_argument("--size", type=whole(8), default=112, help="side of the pictures (112)")
    add_options(parser)
    return exit_status(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
