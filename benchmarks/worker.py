"""One contestant in a process of its own: ``python -m benchmarks.worker``, a line of JSON in, a line of JSON out.

    from benchmarks.measure             from here
    {"kind": "step", "side": …, …}  ->  imports, then builds and warms up
                                    <-  {"versions": …, "blas": …, "start_bytes": …}
    "go"                            ->  one repetition
                                    <-  {"seconds": {"step": 0.021}}      or, for a layer, "forward" and "backward"
    "stop"                          ->
                                    <-  {"peak_bytes": …}

What goes wrong is answered as {"error": …}. The sides are two modules with the same functions, ours and pytorch; only
one of them is imported, so that neither pays for the other's memory.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
from threadpoolctl import threadpool_info

SECONDS = 0.5  # a repetition lasts at least that long: the first step after a pause, with cold caches, weighs little
WARM_UP = 2

#: The parts of one round that are timed apart, in the order in which they are done.
Phases = dict[str, Callable[[], object]]


def repetition(phases: Phases) -> dict[str, float]:
    """Do round after round until the time is up; return the mean seconds of each phase."""
    spent, rounds = dict.fromkeys(phases, 0.0), 0
    while sum(spent.values()) < SECONDS:
        rounds += 1
        for name, work in phases.items():
            start = time.perf_counter()
            work()
            spent[name] += time.perf_counter() - start
    return {name: seconds / rounds for name, seconds in spent.items()}


def serve(questions: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Read the job, then do as told until "stop"."""
    job = json.loads(questions.readline())
    side = importlib.import_module("benchmarks.ours" if job["side"] in ("numpy", "cupy") else "benchmarks.pytorch")
    start_bytes = side.used_bytes(job)
    phases: Phases = getattr(side, job["kind"])(job)
    for _ in range(WARM_UP):
        for work in phases.values():
            work()
    versions = {"python": platform.python_version(), "numpy": np.__version__} | side.versions(job)
    wanted = ("internal_api", "version", "architecture", "num_threads")
    blas = [{key: lib.get(key) for key in wanted} for lib in threadpool_info() if lib["user_api"] == "blas"]
    answer({"versions": versions, "blas": blas, "start_bytes": start_bytes})
    while json.loads(questions.readline()) == "go":
        answer({"seconds": repetition(phases)})
    answer({"peak_bytes": side.peak_bytes(job)})


def used_bytes() -> int:
    """Return what this process holds at the moment, and let its peak start from there."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: forget the peak so far, which imports may have set
    except OSError:
        pass  # elsewhere the peak of the imports stands for what they hold
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most that this process has held."""
    try:
        with open("/proc/self/status") as file:  # unlike ru_maxrss, does not count the parent from before the exec
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def main() -> int:
    """Serve one job on stdin and stdout; return the exit status."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not look like an answer

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        serve(sys.stdin, answer)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
