"""Contestants take turns within one process: each round another one first, ratios taken within a round.

A turn during which other processes computed is done again, as long as patience lasts; its own seconds have no say in
that.
"""

from __future__ import annotations

import operator
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import speed_ratio, spread
from benchmarks.worker import Phases, repetition

SECONDS = 0.1  # a turn lasts at least that long
PAUSE = 0.03  # seconds between turns: BLAS's own threads spin for a while after a product, then fall asleep
DISTURBANCE = 0.03  # seconds of other processes' computing within a turn, from which on it is done again
#: Phases that belong together, and the name of their sum.
PARTS, WHOLE = ("forward", "backward"), "forward + backward"

Row = dict[str, Any]


@dataclass
class Rounds:
    """How many rounds there are to be, and what came of them.

    Attributes:
        repetitions: rounds.
        patience: seconds that may be spent on doing turns again that other processes disturbed.
        again: turns that were done again.
        disturbed: turns that count although they were disturbed, as patience had come to an end.
    """

    repetitions: int
    patience: float = 0.0
    again: int = 0
    disturbed: int = 0

    def turn(self, phases: Phases) -> dict[str, float]:
        """Return the seconds of each phase in one turn."""
        while True:
            time.sleep(PAUSE)
            start, others = time.perf_counter(), others_seconds()
            seconds = repetition(phases, time.perf_counter, between, SECONDS)
            if others_seconds() - others < DISTURBANCE:
                return seconds
            if self.patience <= 0:
                self.disturbed += 1
                return seconds
            time.sleep(10 * PAUSE)
            self.again += 1
            self.patience -= time.perf_counter() - start


def others_seconds() -> float:
    """Return how long other processes have computed since the machine was started; 0 where that is not known."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, *more = map(int, file.readline().split()[1:9])  # without idle and waiting
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def take_turns(contestants: dict[str, Phases], rounds: Rounds) -> dict[str, dict[str, list[float]]]:
    """Let the contestants take turns, in each round another one first; return seconds by contestant and phase."""
    for phases in contestants.values():
        repetition(phases, time.perf_counter, between, seconds=0)  # warm up
    seconds: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in phases} for name, phases in contestants.items()
    }
    names = list(contestants)
    for number in range(rounds.repetitions):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for phase, spent in rounds.turn(contestants[name]).items():
                seconds[name][phase].append(spent)
    return seconds


def between(start: float, stop: float) -> float:
    """Return the seconds from one mark to another."""
    return stop - start


def compare(
    case: str,
    contestants: dict[str, Phases],
    rounds: Rounds,
    against: str | None = None,
    facts: dict[str, dict[str, Any]] | None = None,
) -> list[Row]:
    """Measure a case; return a row for each contestant and phase.

    Args:
        case: what is computed.
        contestants: who computes it.
        rounds: how many.
        against: with whom the others are compared; None where they do unlike work.
        facts: what else is known of a contestant, by its name.
    """
    seconds = take_turns(contestants, rounds)
    print(f"measured: {case}", file=sys.stderr, flush=True)
    return rows_of(case, seconds, against, facts or {})


def rows_of(
    case: str, seconds: dict[str, dict[str, list[float]]], against: str | None, facts: dict[str, dict[str, Any]]
) -> list[Row]:
    """Return a row for each contestant and phase, and for the sum of forward and backward; arguments as `compare`."""
    seconds = {name: with_sum(phases) for name, phases in seconds.items()}
    return [
        {"case": case, "phase": phase, "contestant": name, "seconds": values}
        | {"ms": spread([1000 * value for value in values])}
        | ({} if against is None else relative(values, seconds[against][phase]) | {"against": against})
        | rates(facts.get(name, {}), statistics.median(values))
        for name, phases in seconds.items()
        for phase, values in phases.items()
    ]


def with_sum(phases: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the phases with forward and backward added up within a round, if they are there."""
    if not set(PARTS) <= set(phases):
        return phases
    return phases | {WHOLE: list(map(operator.add, *(phases[part] for part in PARTS)))}


def relative(these: list[float], others: list[float]) -> dict[str, dict[str, float]]:
    """Return how many times as long, and how many times as fast, these seconds are as the others."""
    return {"time": speed_ratio(others, these), "speed": speed_ratio(these, others)}


def rates(facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the facts and what follows from the seconds for "gflop" and "moved_bytes" among them."""
    found = dict(facts)
    if "gflop" in facts:
        found["gflops"] = facts["gflop"] / seconds
    if "moved_bytes" in facts:
        found["gb_per_second"] = 1e-9 * facts["moved_bytes"] / seconds
    return found
