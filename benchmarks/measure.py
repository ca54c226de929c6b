"""The harness: contestants in processes of their own take turns, one computing at a time; then sums over their seconds.

Turns (A B C A B C …) let a machine that slows down or speeds up do so to all alike, so that ratios are taken within a
round. A process of its own for each gives each its own peak memory and keeps their thread pools apart.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nn.parallel import cores
from resnet.models import make_model, summarize

ROOT = Path(__file__).parent.parent
PAUSE = 0.1  # seconds between turns, for threads of the one before that spin while they wait for work to fall asleep
PRODUCT_SIZE, PRODUCT_REPETITIONS = 2048, 5
#: These make OpenBLAS use another CPU's kernels: on a CPU with AVX-512 about half the speed.
BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
CLASSES, CHANNELS = 1000, 3

Job = dict[str, Any]


class BenchmarkError(RuntimeError):
    """A contestant cannot run; the message says which and why."""


@dataclass(frozen=True)
class Measured:
    """What was seen of one contestant.

    Attributes:
        seconds: of one step, for each phase an entry a repetition.
        start_bytes: held after the imports, before the network was built.
        peak_bytes: the most that was held.
        facts: "versions" and "blas".
    """

    seconds: dict[str, list[float]]
    start_bytes: int
    peak_bytes: int
    facts: dict[str, Any]

    @property
    def above_bytes(self) -> int:
        """The most that network, pictures and computing held; at least 1, so that it can be divided by."""
        return max(1, self.peak_bytes - self.start_bytes)


@dataclass(frozen=True)
class Limits:
    """When measuring has to end, in seconds of ``time.monotonic``.

    Attributes:
        enough: from then on no new round begins.
        end: a process that is still busy then is ended.
    """

    enough: float = math.inf
    end: float = math.inf


UNLIMITED = Limits()


class Worker:
    """A contestant's process. Once constructed, it imports what it will need, while others may do the same.

    Args:
        name: for errors.
        job: what it is to do.
        environment: of the process.
        end: when it is ended, whatever it is doing, in seconds of ``time.monotonic``.
    """

    def __init__(self, name: str, job: Job, environment: dict[str, str], end: float = math.inf) -> None:
        self.name, self.job, self.last_moment = name, job, end
        self.facts: dict[str, Any] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", job["side"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.timer = threading.Timer(min(end - time.monotonic(), threading.TIMEOUT_MAX), self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def prepare(self) -> None:
        """Let it build and warm up.

        Raises:
            BenchmarkError: as :meth:`ask`.
        """
        self.facts = self.ask(self.job)

    def ask(self, question: Job | str) -> dict[str, Any]:
        """Send a line, wait for a line.

        Raises:
            BenchmarkError: the process answered with an error, or not at all.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: what it had to say comes with the answer
        line = self.process.stdout.readline()
        silent = "its time was up" if time.monotonic() >= self.last_moment else "its process ended without an answer"
        answer: dict[str, Any] = json.loads(line) if line else {"error": silent}
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: {answer['error']}")
        return answer

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.timer.cancel()
        self.process.kill()
        self.process.communicate()


def measure(
    jobs: dict[str, Job], repetitions: int, environment: dict[str, str], limits: Limits = UNLIMITED
) -> dict[str, Measured]:
    """Let the contestants take turns.

    Args:
        jobs: what each is to do, by name.
        repetitions: turns of each; fewer, but at least one, where the limits come first.
        environment: of their processes.
        limits: none by default.

    Raises:
        BenchmarkError: one of them cannot run.
    """
    with ExitStack() as stack:
        workers = []
        for name, job in jobs.items():
            workers.append(Worker(name, job, environment, limits.end))
            stack.callback(workers[-1].end)
        for worker in workers:
            worker.prepare()  # one after the other: PyTorch chooses its algorithms by their speed meanwhile
        rounds: list[dict[str, Any]] = []
        while not rounds or (len(rounds) < repetitions and time.monotonic() < limits.enough):
            rounds.append({})
            for worker in workers:
                time.sleep(PAUSE)
                rounds[-1][worker.name] = worker.ask("go")["seconds"]
        return {
            w.name: Measured(
                seconds={phase: [turn[w.name][phase] for turn in rounds] for phase in rounds[0][w.name]},
                start_bytes=w.facts["start_bytes"],
                peak_bytes=w.ask("stop")["peak_bytes"],
                facts={key: w.facts[key] for key in ("versions", "blas")},
            )
            for w in workers
        }


def product_rates(sides: dict[str, Job], environment: dict[str, str]) -> dict[str, float]:
    """Return the GFLOP/s of a float32 2048² matrix product in each side's own library, the best of 5."""
    jobs = {name: {"kind": "product", "size": PRODUCT_SIZE} | side | {"threads": 0} for name, side in sides.items()}
    seen = measure(jobs, PRODUCT_REPETITIONS, environment)
    return {name: 2e-9 * PRODUCT_SIZE**3 / min(one.seconds["product"]) for name, one in seen.items()}


# Sums


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def fastest(seconds: dict[str, list[float]]) -> str:
    """Return the name with the smallest median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def speed_ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return how many times as fast as theirs ours is: median, least and most of the rounds' ratios."""
    return spread([their / our for our, their in zip(ours, theirs, strict=True)])


def gflop(arch: str, batch: int, size: int, *, training: bool) -> float:
    """Return the nominal number of floating-point operations of one step, in 10⁹.

    Two for each multiply-add of the convolutions and the classifier. A training step counts as three forwards: backward
    has two products of forward's size, for the gradients by the input and by the weight. Winograd's algorithm needs
    fewer, so its share of the matrix-product rate may exceed 100 %.
    """
    records = summarize(make_model(arch, CLASSES, CHANNELS, rng=np.random.default_rng(0)), size)
    return (3 if training else 1) * 2e-9 * batch * sum(record.multiply_adds for record in records)


def exponent(x: list[float], y: list[float]) -> float:
    """Return the p of the power law y = c · xᵖ that fits best: the slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# Command lines and files


def whole(least: int) -> Any:
    """Return an argparse type: a whole number that is at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} up, got {text!r}")
        return value

    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks share."""
    parser.add_argument("--repetitions", type=whole(1), default=7, help="turns of each contestant (7)")
    parser.add_argument("--threads", type=whole(0), default=0, help="threads of each; 0 for all cores (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument(
        "--keep-blas-settings",
        action="store_true",
        help=f"leave {' and '.join(BLAS_VARIABLES)} in the environment; by default the contestants do not see them",
    )


def worker_environment(keep_blas_settings: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the workers' environment and a note of the BLAS variables for the result file; say it where they are set.

    OpenBLAS reads the variables when it is loaded, so they must be out of the environment before a worker starts.
    """
    found = {name: os.environ[name] for name in BLAS_VARIABLES if name in os.environ}
    if found:
        what = "left in" if keep_blas_settings else "taken out of"
        print(f"{what} the environment: {', '.join(f'{name}={value}' for name, value in found.items())}")
    hidden = () if keep_blas_settings else BLAS_VARIABLES
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return environment, {"variables": found, "kept": keep_blas_settings}


def now() -> str:
    """Return date and time with their zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return what computes, short of the GPU."""
    return {"cpu": _cpu(), "cores": cores(), "platform": platform.platform()}


def circumstances(
    blas_settings: dict[str, Any], options: argparse.Namespace, measured: list[Measured]
) -> dict[str, Any]:
    """Return what a result depends on: date, machine, versions, BLAS, settings."""
    versions: dict[str, str] = {}
    for one in measured:
        versions |= one.facts["versions"]
    return {
        "date": now(),
        "machine": machine(),
        "versions": versions,
        "blas": measured[0].facts["blas"],
        "blas_settings": blas_settings,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write a result file, if one is wanted.

    Raises:
        OSError: it cannot be written.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written: {path}")


def check_folder(path: Path | None) -> None:
    """Find out before minutes of measuring whether a result file can be written, if one is wanted.

    Raises:
        BenchmarkError: it cannot.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise BenchmarkError(f"--json: expected a folder that can be written, got {path} ({error})") from error


def exit_status(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a benchmark; return 0, or 1 after an error, said in one line."""
    try:
        check_folder(options.json)
        run(options)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return aligned text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
