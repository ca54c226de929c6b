"""Gradient checks: finite differences against every backward.

``python -m nn.gradcheck`` prints a table for every layer, the blocks and ResNet18; ``--break LAYER`` shows what
failure looks like. :func:`gradcheck` does the same for a layer or network of your own.

How it works. A random upstream gradient dy turns the output into one number, L = Σ y·dy, whose gradient backward
claims to know. (An upstream of ones would make batch norm's gradient zero and its check empty.) In float64, one number
v of the input or of a parameter moves by ±h and ±2h, and

    dL/dv ≈ (8·(L(v + h) − L(v − h)) − (L(v + 2h) − L(v − 2h))) / 12h        with an error of order h⁴

is compared with what backward says. Where there are too many numbers, all of a tensor's move at once along a random
direction d, and the derivative along d is compared with Σ gradient·d.

ReLU, LeakyReLU and max-pool have kinks, where a difference quotient straddles two slopes and means nothing. A kink lies
between two points if some layer is on another linear piece there (``Module.pieces``). Such an element is not excused by
a wider tolerance but checked again at a fresh random point.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn.module import Module
from nn.parallel import one_blas_thread

Array = NDArray[Any]
STENCIL = ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0))  # steps of h, weight; to be divided by 12h


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        layer: what was checked.
        what: "input", a parameter's name, or a habit that every layer must have.
        elements: how many numbers were compared.
        error: largest relative error.
        tolerance: what is allowed.
        resampled: how many of them were checked at another point because of a kink.
        note: a word on what failed.
    """

    layer: str
    what: str
    elements: int
    error: float
    tolerance: float
    resampled: int = 0
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


def gradcheck(
    module: Module,
    *inputs: Array,
    rng: np.random.Generator,
    name: str | None = None,
    step: float = 1e-4,
    directions: int | None = None,
    tolerance: float = 1e-7,
    attempts: int = 30,
) -> list[Check]:
    """Check the backward of a layer or network against finite differences, and the habits of the contract.

    Works on a float64 copy on the CPU; ``module`` and ``inputs`` stay as they are. Batch norm in training mode and in
    eval mode are both fine.

    Args:
        module: takes ``inputs``, returns one array; its backward returns one gradient an input.
        inputs: arrays in the shapes to check with; batches of 2 or more, odd and oblong show more.
        rng: draws the upstream gradient, the directions and fresh points.
        name: for the table; the class by default.
        step: h; along a direction, the share of the tensor's own size.
        directions: None moves every number by itself; k moves each tensor along k random directions.
        tolerance: largest relative error allowed.
        attempts: fresh points to try for elements that sit at a kink.

    Returns:
        a check a tensor, in the order input, parameters; then one for the habits: inputs, parameters and upstream
        untouched, memory layout without influence, zero upstream gives zero, a second run agrees, backward adds up.
    """
    name = name or type(module).__name__
    module = copy.deepcopy(module).to("numpy").astype(np.float64)
    point = [np.array(x, np.float64) for x in inputs]
    elsewhere = [x + rng.normal(size=x.shape) for x in point]  # a layer that clings to its first input is found out
    upstream = np.asarray(rng.normal(size=np.shape(module(*elsewhere))))
    problem = _Problem(module, point, upstream)
    with one_blas_thread():  # thousands of small products
        checks = _check_gradients(problem, rng, step, directions, attempts)
        habits = _check_habits(problem)
    return [*(replace(check, layer=name, tolerance=tolerance) for check in checks), replace(habits, layer=name)]


class _Problem:
    """A module, the point at which it is checked, and the upstream gradient."""

    def __init__(self, module: Module, inputs: list[Array], upstream: Array) -> None:
        self.module, self.inputs, self.upstream = module, inputs, upstream

    def variables(self) -> dict[str, Array]:
        """Return every array that L depends on, by name: the inputs and the parameters themselves, no copies."""
        names = ["input"] if len(self.inputs) == 1 else [f"input {number}" for number in range(1, len(self.inputs) + 1)]
        parameters = {name: parameter.data for name, parameter in self.module.named_parameters()}
        return dict(zip(names, self.inputs, strict=True)) | parameters

    def gradients(self, inputs: list[Array] | None = None, upstream: Array | None = None) -> dict[str, Array]:
        """Return what backward says, under the names of :meth:`variables`, and the output under "output".

        Works on copies unless arrays are given, so that a layer that writes into them spoils nothing else.
        """
        self.module.zero_grad()
        y = np.array(self.module(*(map(np.copy, self.inputs) if inputs is None else inputs)))
        claimed = self.module.backward(np.copy(self.upstream) if upstream is None else upstream)
        claimed = claimed if isinstance(claimed, tuple) else (claimed,)
        arrays = [*claimed, *(parameter.grad for parameter in self.module.parameters())]
        return {name: np.array(array) for name, array in zip(self.variables(), arrays, strict=True)} | {"output": y}

    def output(self) -> tuple[Array, list[Array]]:
        """Return y, and the linear pieces that all layers are on."""
        y = self.module(*map(np.copy, self.inputs))
        pieces = [module.pieces() for _, module in self.module.named_modules()]
        return y, [piece for piece in pieces if piece is not None]

    def derivative(self, variable: Array, direction: Array, step: float) -> float | None:
        """Return dL/dt of L(variable + t·direction) at t = 0 by finite differences, or None next to a kink."""
        original = variable.copy()
        y, here = self.output()
        total = np.zeros_like(y)
        try:
            for steps, weight in STENCIL:
                variable[...] = original + steps * step * direction
                y, there = self.output()
                if not all(np.array_equal(a, b) for a, b in zip(here, there, strict=True)):
                    return None
                total += weight * y
        finally:
            variable[...] = original
        return float((total * self.upstream).sum()) / (12 * step)

    def move(self, rng: np.random.Generator) -> None:
        """Go to a fresh point near by: the inputs change, the parameters stay."""
        for x in self.inputs:
            x += 0.1 * (x.std() or 1.0) * rng.normal(size=x.shape)


def _check_gradients(
    problem: _Problem, rng: np.random.Generator, step: float, directions: int | None, attempts: int
) -> list[Check]:
    """Compare backward with finite differences for every variable; tolerance and layer are filled in by the caller."""
    variables = problem.variables()
    open_ = {
        name: list(_element_directions(v) if directions is None else _random_directions(v, directions, rng))
        for name, v in variables.items()
    }
    count = {name: len(todo) if directions is None else variables[name].size for name, todo in open_.items()}
    errors = dict.fromkeys(variables, 0.0)
    resampled = dict.fromkeys(variables, 0)
    for _ in range(attempts):
        claimed = problem.gradients()
        for name, variable in variables.items():
            if claimed[name].shape != variable.shape:
                errors[name], open_[name] = float("nan"), []
                continue
            at_kink = []
            scale = _scale(claimed[name], problem.upstream)
            for direction in open_[name]:
                numeric = problem.derivative(variable, direction, step)
                if numeric is None:
                    at_kink.append(direction)
                else:
                    errors[name] = _worse(errors[name], _relative_error(claimed[name], direction, numeric, scale))
            open_[name] = at_kink
            resampled[name] += len(at_kink)
        if not any(open_.values()):
            break
        problem.move(rng)
    return [_gradient_check(name, count[name], errors[name], resampled[name], len(open_[name])) for name in variables]


def _gradient_check(name: str, elements: int, error: float, resampled: int, unfinished: int) -> Check:
    if unfinished:
        return Check("", name, elements, float("nan"), 0.0, resampled, f"{unfinished} always at a kink: smaller step?")
    note = "not finite, or of another shape than what it is the gradient of" if np.isnan(error) else ""
    return Check("", name, elements, error, 0.0, resampled, note)


def _element_directions(variable: Array) -> Iterator[Array]:
    """Yield one direction an element: one there, zero elsewhere."""
    for index in np.ndindex(variable.shape):
        direction = np.zeros_like(variable)
        direction[index] = 1.0
        yield direction


def _random_directions(variable: Array, count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield random directions of the variable's own size, so that a step is a share of it."""
    size = float(np.sqrt(np.mean(variable**2))) or 1.0
    for _ in range(count):
        yield size * rng.normal(size=variable.shape)


def _scale(claimed: Array, upstream: Array) -> float:
    """Return the size below which a gradient of this tensor counts as small: its root mean square.

    A thousandth of the upstream's at least, so that the rounding of a gradient that is zero (a bias before batch norm)
    is not compared with itself.
    """
    return max(float(np.sqrt(np.mean(claimed**2))), 1e-3 * float(np.sqrt(np.mean(upstream**2))))


def _relative_error(claimed: Array, direction: Array, numeric: float, scale: float) -> float:
    """Return |claimed − numeric| along ``direction``, relative to the larger of both and to what is usual there."""
    along = float((claimed * direction).sum())
    usual = scale * float(np.sqrt((direction**2).sum()))
    return abs(along - numeric) / max(abs(along), abs(numeric), usual, np.finfo(float).tiny)


def _worse(a: float, b: float) -> float:
    return b if np.isnan(b) or b > a else a


def _check_habits(problem: _Problem) -> Check:
    """Check what the contract of a layer asks besides correct gradients."""
    inputs, upstream = [x.copy() for x in problem.inputs], problem.upstream.copy()
    parameters = [parameter.data.copy() for parameter in problem.module.parameters()]
    first = problem.gradients(inputs, upstream)
    touched = _largest_difference([*problem.inputs, problem.upstream], [*inputs, upstream])
    changed = _largest_difference(parameters, [p.data for p in problem.module.parameters()])
    second = problem.gradients()
    strided = problem.gradients([_strided(x) for x in problem.inputs], _strided(problem.upstream))
    zero = problem.gradients(upstream=np.zeros_like(problem.upstream))
    zero.pop("output")
    nothing = [np.zeros_like(array) for array in zero.values()]
    failures = {
        "writes into its input or upstream": touched > 0,
        "changes a parameter": changed > 0,
        "a second run differs": _largest_difference(first.values(), second.values()) > 0,
        "memory layout matters": _largest_difference(first.values(), strided.values()) > 1e-12,
        "a zero upstream gives more than zero": _largest_difference(nothing, zero.values()) > 0,
        "backward replaces the gradient instead of adding": _accumulates(problem, first) > 1e-12,
    }
    failed = [words for words, is_failure in failures.items() if is_failure]
    return Check("", "habits", len(failures), float(len(failed)), 0.0, note="; ".join(failed))


def _accumulates(problem: _Problem, once: dict[str, Array]) -> float:
    """Return how far two backwards in a row are from twice the gradient of one, for the parameters."""
    problem.gradients()
    problem.module(*map(np.copy, problem.inputs))
    problem.module.backward(np.copy(problem.upstream))
    names = [name for name, _ in problem.module.named_parameters()]
    return _largest_difference([2 * once[name] for name in names], [p.grad for p in problem.module.parameters()])


def _largest_difference(expected: Iterable[Array], actual: Iterable[Array]) -> float:
    """Return the largest difference between two rows of arrays, relative to the size of each; NaN is far from all."""
    largest = 0.0
    for wanted, got in zip(expected, actual, strict=True):
        gap = float(np.nan_to_num(np.abs(got - wanted), nan=np.inf).max(initial=0.0))
        largest = max(largest, gap / (float(np.abs(wanted).max(initial=0.0)) or 1.0))
    return largest


def _strided(x: Array) -> Array:
    """Return the same numbers in memory with holes: every axis twice as long, every second taken."""
    roomy = np.full([2 * size for size in x.shape], np.nan)
    every_second: Any = (..., *[slice(None, None, 2)] * x.ndim)  # the dots keep a 0-d array an array
    view: Array = roomy[every_second]
    view[...] = x
    return view


# The command


@dataclass(frozen=True)
class Case:
    """A line of work for the command: a layer, how to build it and its inputs, and how to check it.

    Attributes:
        layer: name, as ``--only`` and ``--break`` know it.
        detail: what is special about this case.
        build: rng -> (module, inputs).
        options: for :func:`gradcheck`.
    """

    layer: str
    detail: str
    build: Callable[[np.random.Generator], tuple[Module, tuple[Array, ...]]]
    options: dict[str, Any]


def run_case(case: Case, seed: int, prepare: Callable[[Module], None] | None = None) -> list[Check]:
    """Build a case with random γ, β and biases, let ``prepare`` change the module, and check it."""
    rng = np.random.default_rng(seed)
    module, inputs = case.build(rng)
    for parameter in module.parameters():
        if parameter.data.ndim == 1:  # scales and shifts of 1 and 0 would hide a forgotten factor or term
            parameter.data = parameter.data + 0.3 * rng.normal(size=parameter.data.shape)
    if prepare is not None:
        prepare(module)
    name = f"{case.layer} {case.detail}".strip()
    return _shorten(gradcheck(module, *inputs, rng=rng, name=name, **case.options))


def _shorten(checks: list[Check]) -> list[Check]:
    """Merge the parameters of a whole network into one row, which names the worst."""
    parameters = [check for check in checks if not check.what.startswith(("input", "habits"))]
    if len(parameters) <= 12:
        return checks
    worst = max(parameters, key=lambda check: np.inf if np.isnan(check.error) else check.error)
    merged = replace(
        worst,
        what=f"{len(parameters)} parameters",
        elements=sum(check.elements for check in parameters),
        resampled=sum(check.resampled for check in parameters),
        note=f"worst: {worst.what}" + (f"; {worst.note}" if worst.note else ""),
    )
    return [check for check in checks if check.what.startswith("input")] + [merged, checks[-1]]


ROW = "{:<38} {:<20} {:>10} {:>10} {:>10}  {}"


def format_check(check: Check) -> str:
    """Return one row of the table."""
    remarks = [check.note] if check.note else []
    if check.resampled:
        remarks.append(f"{check.resampled} resampled at kinks")
    verdict = ("ok" if check.passed else "FAIL") + (f"  ({'; '.join(remarks)})" if remarks else "")
    tolerance = f"{check.tolerance:.0e}" if check.tolerance else "0"
    error = f"{check.error:.1e}" if check.error else "0"
    return ROW.format(check.layer, check.what, f"{check.elements:,}", error, tolerance, verdict)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks: the command ``python -m nn.gradcheck``. Returns 0 if all are good, 1 otherwise."""
    # The command, not the library, looks upwards: blocks and ResNet18 are made of nn, and are checked from here.
    from nn.broken import BUGS
    from resnet.gradcheck_cases import CASES

    layers = sorted({case.layer for case in CASES}, key=[case.layer for case in CASES].index)
    parser = argparse.ArgumentParser(prog="python -m nn.gradcheck", description="Check every backward pass.")
    parser.add_argument("--only", choices=layers, metavar="LAYER", help="check one layer: " + ", ".join(layers))
    parser.add_argument(
        "--break", dest="broken", choices=BUGS, metavar="LAYER", help="check a broken copy: " + ", ".join(BUGS)
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs, weights and upstream gradients (0)")
    options = parser.parse_args(arguments)
    bug = BUGS.get(options.broken)
    if bug is not None:
        print(f"{options.broken} with a bug in its backward: {bug.description}\n")
    wanted = options.broken or options.only
    start = time.perf_counter()
    print(ROW.format("layer", "checked", "elements", "rel. error", "tolerance", "verdict"))
    checks = []
    for case in CASES:
        if wanted in (None, case.layer):
            for check in run_case(case, options.seed, None if bug is None else bug.plant):
                checks.append(check)
                print(format_check(check), flush=True)
    failed = sum(not check.passed for check in checks)
    print(f"\n{len(checks) - failed} good, {failed} failed, in {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
