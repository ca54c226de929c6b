"""One contestant in a process of its own: ``python -m benchmarks.worker SIDE``, a line of JSON in, a line of JSON out.

    from benchmarks.measure             from here
                                        imports its side
    {"kind": "step", "side": …, …}  ->  builds and warms up
                                    <-  {"versions": …, "blas": …, "start_bytes": …}
    "go"                            ->  one repetition
                                    <-  {"seconds": {"step": 0.021}}      or, for a layer, "forward" and "backward"
    "stop"                          ->
                                    <-  {"peak_bytes": …}

What goes wrong is answered as {"error": …}. The sides are two modules with the same functions, ours and pytorch; only
one of them is imported, so that neither pays for the other's memory. Each has a clock: ``mark`` notes a moment, on a
GPU by an event in its queue, and ``seconds_between`` reads two marks.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import numpy as np
from threadpoolctl import threadpool_info

SECONDS = 0.5  # a repetition lasts at least that long: the first step after a pause, with cold caches, weighs little
WARM_UP = 2

#: The parts of one round that are timed apart, in the order in which they are done.
Phases = dict[str, Callable[[], object]]


def repetition(
    phases: Phases,
    mark: Callable[[], Any],
    seconds_between: Callable[[Any, Any], float],
    seconds: float = SECONDS,
    least_rounds: int = 1,
) -> dict[str, float]:
    """Do round after round until the time is up; return the mean seconds of each phase.

    On a GPU a phase only puts kernels into a queue, so nothing here waits for the device before all rounds are in it.
    Each phase lies between two marks in the queue. Where Python is slower than the device, the queue runs empty, the
    device passes the first mark at once and has to wait for the phase's kernels: what launching takes counts, too.
    Python cannot run far ahead, as the queue holds about a thousand kernels.
    """
    marks: list[tuple[str, Any, Any]] = []
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < least_rounds or time.perf_counter() < end:
        rounds += 1
        for name, work in phases.items():
            start = mark()
            work()
            marks.append((name, start, mark()))
    spent = dict.fromkeys(phases, 0.0)
    for name, start, stop in reversed(marks):  # the last mark is waited for, the others were passed before it
        spent[name] += seconds_between(start, stop)
    return {name: total / rounds for name, total in spent.items()}


def serve(side: Any, questions: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Read the job, then do as told until "stop"."""
    job = json.loads(questions.readline())
    start_bytes = side.used_bytes(job)
    phases: Phases = getattr(side, job["kind"])(job)
    measured = partial(repetition, phases, partial(side.mark, job), partial(side.seconds_between, job))
    measured(seconds=0, least_rounds=WARM_UP)
    side.forget_warm_up(job)
    versions = {"python": platform.python_version(), "numpy": np.__version__} | side.versions(job)
    wanted = ("internal_api", "version", "architecture", "num_threads")
    blas = [{key: lib.get(key) for key in wanted} for lib in threadpool_info() if lib["user_api"] == "blas"]
    answer({"versions": versions, "blas": blas, "start_bytes": start_bytes})
    while json.loads(questions.readline()) == "go":
        answer({"seconds": measured()})
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


def main(name: str) -> int:
    """Serve one job of the side ``name`` on stdin and stdout; return the exit status."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not look like an answer

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        side = importlib.import_module("benchmarks.ours" if name in ("numpy", "cupy") else "benchmarks.pytorch")
        serve(side, sys.stdin, answer)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
