"""Learning-rate schedules: functions of the step number, counted from 0.

A schedule remembers nothing, so training can resume at any step: ``lr = schedule(step)``. After its
``total`` of steps a schedule stays at its last value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]

SCHEDULES = ("constant", "step", "cosine", "one-cycle")


def constant(lr: float) -> Schedule:
    """Return a schedule that is always ``lr``."""
    return lambda step: lr


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies ``lr`` by ``factor`` each ``every`` steps (He et al. 2015, section 3.4).

    Raises:
        ValueError: ``every`` below 1.
    """
    if every < 1:
        raise ValueError(f"expected at least one step between two drops, got {every}")
    return lambda step: lr * factor ** (step // every)


def cosine(lr: float, total: int, minimum: float = 0.0) -> Schedule:
    """Return half a cosine wave from ``lr`` at step 0 to ``minimum`` at step ``total`` (arXiv 1608.03983, equation 5).

    Raises:
        ValueError: ``total`` below 1.
    """
    _check_total(total)
    return lambda step: _wave(lr, minimum, step / total)


def one_cycle(
    peak: float, total: int, warm_share: float = 0.3, start_divisor: float = 25.0, final_divisor: float = 1e4
) -> Schedule:
    """Return Smith's one-cycle policy (arXiv 1708.07120) in PyTorch's two-phase cosine form.

    Args:
        peak: largest learning rate.
        total: steps of the whole training.
        warm_share: share of the steps that rises, above 0 and below 1.
        start_divisor: the first learning rate is peak / start_divisor.
        final_divisor: the last one is the first / final_divisor.

    Raises:
        ValueError: ``total`` below 1, or a share out of range.
    """
    _check_total(total)
    if not 0 < warm_share < 1:
        raise ValueError(f"expected a share of rising steps above 0 and below 1, got {warm_share}")
    top = max(warm_share * total - 1, 0.0)  # the step of the peak; a fraction, as in PyTorch
    first = peak / start_divisor

    def schedule(step: int) -> float:
        if step <= top:
            return _wave(first, peak, step / top if top else 1.0)
        return _wave(peak, first / final_divisor, (step - top) / max(total - 1 - top, 1e-9))

    return schedule


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """Return ``schedule`` with a straight rise at its start: (k + 1) / (steps + 1) of its value at step k < ``steps``.

    Raises:
        ValueError: a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"expected 0 or more warm-up steps, got {steps}")
    return lambda step: schedule(step) * min(1.0, (step + 1) / (steps + 1))


def make_schedule(name: str, lr: float, total: int, warm_up_steps: int = 0) -> Schedule:
    """Return the schedule ``name`` with its usual settings: "step" drops tenfold at each third of ``total``.

    Raises:
        ValueError: an unknown name.
    """
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: constant(lr),
        "step": lambda: step_decay(lr, every=max(1, math.ceil(total / 3))),
        "cosine": lambda: cosine(lr, total),
        "one-cycle": lambda: one_cycle(lr, total),
    }
    if name not in makers:
        raise ValueError(f"expected a schedule among {', '.join(SCHEDULES)}, got {name!r}")
    return warm_up(makers[name](), warm_up_steps)


def _wave(start: float, end: float, share: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine wave; ``share`` in [0, 1] of the way, held there outside."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def _check_total(total: int) -> None:
    if total < 1:
        raise ValueError(f"expected at least one step in all, got {total}")
