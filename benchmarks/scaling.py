"""How time and memory of our training step grow with the batch and the pictures: ``python -m benchmarks.scaling``.

Each point is a process of its own. Linear is what one hopes for: an exponent of 1. Memory stays below that while
weights, gradients and momentum, which do not grow, outweigh the activations kept for backward.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    CHANNELS,
    CLASSES,
    Measured,
    add_options,
    circumstances,
    exit_status,
    exponent,
    measure,
    table,
    worker_environment,
    write_report,
)
from resnet.models import make_model, summarize

#: Batch and side of each point, by what is varied.
SWEEPS = {
    "batch": [(batch, 64) for batch in (4, 8, 16, 32, 64)],
    "pixels": [(8, size) for size in (32, 64, 96, 128, 160, 192, 224)],
}


def point(batch: int, size: int, measured: Measured) -> dict[str, Any]:
    """Return what is known of one point."""
    model = make_model("resnet18", CLASSES, CHANNELS, rng=np.random.default_rng(0))
    return {
        "batch": batch,
        "size": size,
        "seconds": measured.seconds["step"],
        "median": statistics.median(measured.seconds["step"]),
        "above_bytes": measured.above_bytes,
        "kept_bytes": sum(record.bytes_kept for record in summarize(model, size, batch)),
    }


def exponents(points: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return the power laws' exponents: time against batch and pixels, memory against activations in both sweeps."""
    batches, pixels = points["batch"], points["pixels"]
    return {
        "time against batch": exponent([p["batch"] for p in batches], [p["median"] for p in batches]),
        "time against pixels": exponent([p["size"] ** 2 for p in pixels], [p["median"] for p in pixels]),
        **{
            f"memory against activations, {sweep} varied": exponent(
                [p["kept_bytes"] for p in some], [p["above_bytes"] for p in some]
            )
            for sweep, some in points.items()
        },
    }


def show(points: list[dict[str, Any]]) -> str:
    """Return the points as a table."""
    head = ("batch × side²", "ms a step", "ms a picture", "ns a pixel", "MB above start", "MB kept for backward")
    rows = []
    for p in points:
        pixels = p["batch"] * p["size"] ** 2
        rows.append(
            (
                f"{p['batch']} × {p['size']}²",
                f"{1e3 * p['median']:.1f}",
                f"{1e3 * p['median'] / p['batch']:.2f}",
                f"{1e9 * p['median'] / pixels:.0f}",
                f"{p['above_bytes'] / 1e6:.0f}",
                f"{p['kept_bytes'] / 1e6:.0f}",
            )
        )
    return table(head, rows)


def plot(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time and memory against the pixels of a batch.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # drawn without pyplot, so no window is ever asked for

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for sweep, label in (("batch", "batch 4 – 64 at 64²"), ("pixels", "32² – 224² at batch 8")):
        some = points[sweep]
        pixels = [p["batch"] * p["size"] ** 2 for p in some]
        left.loglog(pixels, [p["median"] for p in some], "o-", label=label)
        lines = right.loglog(pixels, [p["above_bytes"] / 1e6 for p in some], "o-", label=label)
        kept = [p["kept_bytes"] / 1e6 for p in some]
        right.loglog(pixels, kept, ":", color=lines[0].get_color(), label="of it kept for backward")
    left.set(xlabel="pixels in a batch", ylabel="seconds a training step")
    right.set(xlabel="pixels in a batch", ylabel="peak memory above start, MB")
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"written: {path}")


def run(options: argparse.Namespace) -> None:
    """Measure, print, write and draw.

    Raises:
        BenchmarkError: a worker cannot run.
        OSError: a file cannot be written.
    """
    environment, blas_settings = worker_environment(options.keep_blas_settings)
    points: dict[str, list[dict[str, Any]]] = {}
    seen = []
    for sweep, sizes in SWEEPS.items():
        points[sweep] = []
        for batch, size in sizes:
            job = {"kind": "step", "side": "numpy", "arch": "resnet18", "threads": options.threads}
            measured = measure({"ours": job | {"batch": batch, "size": size}}, options.repetitions, environment)["ours"]
            points[sweep].append(point(batch, size, measured))
            seen.append(measured)
        print(f"{show(points[sweep])}\n", flush=True)
    fitted = exponents(points)
    for name, value in fitted.items():
        print(f"exponent of {name}: {value:.2f}")
    report = circumstances(blas_settings, options, seen) | {"points": points, "exponents": fitted}
    write_report(options.json, report)
    if options.plot is not None:
        plot(points, options.plot)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Time and memory against size.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a plot, too")
    add_options(parser)
    return exit_status(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
