"""Whole training steps, or inference, beside PyTorch: ``python -m benchmarks.step --batch 32 --size 112``.

A training step is forward, loss, backward and SGD (Nesterov's momentum 0.9, weight decay 5e-4); 1000 classes, colour
pictures, LeakyReLU 0.01. PyTorch runs twice, with contiguous and with channels-last arrays, in the same precision as
ours; ratios are taken against the faster. Several cases in one go and one file, as in the README, or on a GPU:

    python -m benchmarks.step --cases "32x112 8x224 infer:1x112" --json benchmarks/results/step.json
    python -m benchmarks.step --backend cupy --precision tf32 --cases "128x64 256x224"

On a GPU the times are those of its own clock, and the memory is that of the device. Copying the pictures there is part
of a step on both sides.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.measure import (
    UNLIMITED,
    BenchmarkError,
    Job,
    Limits,
    Measured,
    add_options,
    circumstances,
    exit_status,
    fastest,
    gflop,
    measure,
    product_rates,
    speed_ratio,
    spread,
    table,
    whole,
    worker_environment,
    write_report,
)
from nn.precision import PRECISIONS
from resnet.models import MODELS

OURS, LAYOUTS = "ours", ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    """What is computed, on how many pictures of which side."""

    kind: str  # "step" or "infer"
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{'training step' if self.kind == 'step' else 'inference'}, {self.batch} × {self.size}²"


def parse_cases(text: str) -> list[Case]:
    """Read e.g. "32x112 infer:1x112": batch and side, training unless said otherwise.

    Raises:
        argparse.ArgumentTypeError: something else, or a batch of one in training (batch norm).
    """
    cases = []
    for word in text.split():
        match = re.fullmatch(r"(infer:)?([1-9]\d*)x([1-9]\d*)", word)
        if match is None:
            raise argparse.ArgumentTypeError(f"expected cases such as 32x112 or infer:1x112, got {word!r}")
        case = Case("infer" if match[1] else "step", int(match[2]), int(match[3]))
        if case.kind == "step" and case.batch == 1:
            raise argparse.ArgumentTypeError(f"training needs a batch of at least 2, got {word!r}")
        cases.append(case)
    if not cases:
        raise argparse.ArgumentTypeError("expected at least one case, such as 32x112")
    return cases


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; ``cases`` is always filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split(":")[0] + ".")
    parser.add_argument("--arch", choices=MODELS, default="resnet18", metavar="ARCH", help="network (resnet18)")
    parser.add_argument("--batch", type=whole(1), default=32, help="pictures a step (32)")
    parser.add_argument("--size", type=whole(1), default=112, help="side of the pictures (112)")
    parser.add_argument("--infer", action="store_true", help="inference instead of training steps")
    parser.add_argument("--cases", type=parse_cases, help='several, e.g. "32x112 infer:1x112", for --batch and --size')
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy", help="ours: CPU or GPU (numpy)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of both, on a GPU (float32)")
    parser.add_argument("--against", choices=("torch", "none"), default="torch", help="beside whom (torch)")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.cases is None:
        try:
            options.cases = parse_cases(f"{'infer:' if options.infer else ''}{options.batch}x{options.size}")
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    if options.backend == "numpy" and options.precision != "float32":
        parser.error(f"--precision {options.precision} is for --backend cupy: NumPy computes in float32")
    if options.precision == "float16" and any(case.kind == "infer" for case in options.cases):
        parser.error("--precision float16 is for training steps only: evaluation stays in float32")
    return options


def contestants(backend: str, precision: str = "float32", *, pytorch: bool = True, threads: int = 0) -> dict[str, Job]:
    """Return who takes part and how: ours and, if wanted, PyTorch in both layouts."""
    device = "cpu" if backend == "numpy" else "cuda"
    sides = {OURS: backend} | ({f"PyTorch {layout}": layout for layout in LAYOUTS} if pytorch else {})
    return {
        name: {"side": side, "device": device, "precision": precision, "threads": threads}
        for name, side in sides.items()
    }


def take_turns(
    jobs: dict[str, Job], repetitions: int, environment: dict[str, str], limits: Limits
) -> tuple[dict[str, Measured], bool]:
    """Measure all contestants in turns, or one after the other where they do not fit on the device together.

    Returns:
        what was seen, and whether they took turns.

    Raises:
        BenchmarkError: one of them cannot run.
    """
    try:
        return measure(jobs, repetitions, environment, limits), True
    except BenchmarkError as error:
        if len(jobs) == 1 or "out of memory" not in str(error).lower():
            raise
    alone = {name: measure({name: job}, repetitions, environment, limits)[name] for name, job in jobs.items()}
    rounds = min(len(next(iter(one.seconds.values()))) for one in alone.values())
    return {
        name: replace(one, seconds={phase: values[:rounds] for phase, values in one.seconds.items()})
        for name, one in alone.items()
    }, False


def measure_case(
    case: Case,
    arch: str,
    sides: dict[str, Job],
    repetitions: int,
    environment: dict[str, str],
    *,
    limits: Limits = UNLIMITED,
    product_rate: float | None = None,
) -> tuple[dict[str, Any], list[Measured]]:
    """Return a case's result, as :func:`summary`, and what was seen of its contestants.

    Raises:
        BenchmarkError: a contestant cannot run.
    """
    job = {"kind": case.kind, "arch": arch, "batch": case.batch, "size": case.size}
    jobs = {name: job | side for name, side in sides.items()}
    measured, in_turns = take_turns(jobs, repetitions, environment, limits)
    step_gflop = gflop(arch, case.batch, case.size, training=case.kind == "step")
    result = summary(case, measured, step_gflop, product_rate) | {"in_turns": in_turns}
    return result, list(measured.values())


def summary(
    case: Case, measured: dict[str, Measured], step_gflop: float, product_rate: float | None = None
) -> dict[str, Any]:
    """Return a case's result: each contestant's seconds and what follows from them, and ours against the best other.

    Args:
        case: what was computed.
        measured: contestants by name, ours among them.
        step_gflop: operations of one step, in 10⁹.
        product_rate: of the machine, GFLOP/s, if it was measured.
    """
    seconds = {name: one.seconds[case.kind] for name, one in measured.items()}
    result: dict[str, Any] = {"kind": case.kind, "batch": case.batch, "size": case.size, "gflop": step_gflop}
    result["contestants"] = {}
    for name, one in measured.items():
        pictures = spread([case.batch / s for s in seconds[name]])
        rate = pictures["median"] / case.batch * step_gflop
        result["contestants"][name] = {
            "seconds": seconds[name],
            "pictures_per_second": pictures,
            "gflops": rate,
            "share": None if product_rate is None else rate / product_rate,
            "peak_bytes": one.peak_bytes,
            "above_bytes": one.above_bytes,
        }
    others = {name: values for name, values in seconds.items() if name != OURS}
    if others:
        best = fastest(others)
        result["against"] = {
            "name": best,
            "speed": speed_ratio(seconds[OURS], seconds[best]),
            "peak": measured[OURS].peak_bytes / measured[best].peak_bytes,
            "above": measured[OURS].above_bytes / measured[best].above_bytes,
        }
    return result


def show(result: dict[str, Any]) -> str:
    """Return a case's result as a table, with the ratios below."""
    head = ("", "pictures/s", "(min – max)", "GFLOP/s", "of product", "peak MB", "above start MB")
    rows = []
    for name, one in result["contestants"].items():
        speed = one["pictures_per_second"]
        rows.append(
            (
                name,
                f"{speed['median']:.1f}",
                f"({speed['min']:.1f} – {speed['max']:.1f})",
                f"{one['gflops']:.1f}",
                "" if one["share"] is None else f"{100 * one['share']:.0f} %",
                f"{one['peak_bytes'] / 1e6:.0f}",
                f"{one['above_bytes'] / 1e6:.0f}",
            )
        )
    lines = [table(head, rows)]
    if "against" in result:
        ratio = result["against"]
        speed = ratio["speed"]
        lines += [
            f"speed, ours / {ratio['name']}: {speed['median']:.2f} ({speed['min']:.2f} – {speed['max']:.2f})",
            f"peak memory, ours / {ratio['name']}: {ratio['peak']:.2f}; above start: {ratio['above']:.2f}",
        ]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        BenchmarkError: a contestant cannot run.
        OSError: the file cannot be written.
    """
    environment, blas_settings = worker_environment(options.keep_blas_settings)
    sides = contestants(options.backend, options.precision, pytorch=options.against == "torch", threads=options.threads)
    libraries = {"PyTorch" if name != OURS else options.backend: side for name, side in sides.items()}
    rates = product_rates(libraries, environment)
    print("matrix product: " + ", ".join(f"{name} {rate:.1f} GFLOP/s" for name, rate in rates.items()))
    results, seen = [], list[Measured]()
    for case in options.cases:
        result, measured = measure_case(
            case, options.arch, sides, options.repetitions, environment, product_rate=max(rates.values())
        )
        results.append(result)
        seen += measured
        print(f"\n{options.arch}, {case}\n{show(result)}", flush=True)
    options.cases = [str(case) for case in options.cases]
    report = circumstances(blas_settings, options, seen) | {"product_gflops": rates, "cases": results}
    write_report(options.json, report)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return exit_status(run, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
