"""The gradient check itself: it passes what is right, and it catches what is wrong, by the row that should."""

from __future__ import annotations

import copy
from types import MethodType

import numpy as np
import pytest
from conftest import normal

import nn.gradcheck
from nn import Add, BatchNorm2d, Conv2d, GlobalAvgPool2d, LeakyReLU, Linear, MaxPool2d, Module, ReLU, Sequential
from nn.broken import BUGS
from nn.gradcheck import Check, format_check, gradcheck, main, run_case
from resnet.gradcheck_cases import CASES

QUICK = [case for case in CASES if case.layer != "ResNet18"]


def check(module: Module, *inputs: np.ndarray, **options) -> dict[str, Check]:
    """Run a gradient check and return its rows by what they checked."""
    return {row.what: row for row in gradcheck(module, *inputs, rng=np.random.default_rng(7), **options)}


def failed(rows: dict[str, Check]) -> list[str]:
    return [what for what, row in rows.items() if not row.passed]


# What is right passes


@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.layer} {case.detail}".strip())
def test_every_layer_and_block_passes(case):
    rows = run_case(case, seed=1)
    assert [row.what for row in rows if not row.passed] == []
    assert max(row.error for row in rows) <= 1e-7
    assert rows[0].what.startswith("input")
    assert rows[-1].what == "habits"


def test_the_whole_of_resnet18_and_every_known_bug_are_on_the_list():
    """Every layer of the table can be broken, but for a container that has no arithmetic of its own and a twin."""
    layers = {case.layer for case in CASES}
    assert "ResNet18" in layers
    assert set(BUGS) == layers - {"Sequential", "PlainBasicBlock"}


def test_rows_name_input_and_parameters_and_count_their_numbers(rng):
    net = Sequential(Conv2d(2, 3, (3, 2), rng=rng), LeakyReLU(0.1))
    rows = check(net, normal(rng, (2, 5, 4, 2)))
    assert {what: row.elements for what, row in rows.items() if what != "habits"} == {
        "input": 2 * 5 * 4 * 2,
        "0.weight": 3 * 2 * 2 * 3,
        "0.bias": 3,
    }
    assert {row.layer for row in rows.values()} == {"Sequential"}
    assert list(check(Add(), np.ones((2, 3)), np.ones((2, 3)))) == ["input 1", "input 2", "habits"]


def test_module_and_inputs_stay_as_they_are(rng):
    net = Sequential(Conv2d(2, 3, 3, rng=rng), BatchNorm2d(3), LeakyReLU(0.1), MaxPool2d(2))
    x = normal(rng, (2, 6, 5, 2), np.float32)
    y = net(x)
    before_state, before_x = net.state_dict(), x.copy()
    check(net, x)
    np.testing.assert_array_equal(x, before_x)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before_state[name])
        assert array.dtype == before_state[name].dtype
    assert not any(gradient.any() for gradient in net.grad_dict().values())
    assert net.backward(y).shape == x.shape  # what the user's own forward kept is still there


def test_batch_norm_in_eval_stays_in_eval(rng):
    layer = BatchNorm2d(2).eval()
    layer.running_var.data[:] = 4
    rows = check(layer, normal(rng, (3, 4, 5, 2)))
    assert failed(rows) == []
    assert not layer.training


def test_directions_check_a_large_network_quickly_and_still_see_a_bug(rng):
    net = Sequential(Conv2d(2, 3, 3, rng=rng), LeakyReLU(0.1), GlobalAvgPool2d())
    x = normal(rng, (2, 6, 5, 2))
    assert failed(check(net, x, directions=3, step=1e-6, tolerance=1e-6)) == []
    distort(net[0], "weight", lambda gradient: gradient * (1 + 1e-4))
    assert failed(check(net, x, directions=3, step=1e-6, tolerance=1e-6)) == ["0.weight"]


# Kinks


@pytest.mark.parametrize("layer", [ReLU(), LeakyReLU(0.1), MaxPool2d(2, 1), Sequential(ReLU(), MaxPool2d(2))], ids=repr)
def test_inputs_exactly_at_a_kink_are_checked_elsewhere_not_excused(layer):
    x = np.zeros((2, 4, 5, 2))  # ReLU's kink, and ties in every window
    row = check(layer, x)["input"]
    assert row.passed
    assert row.error <= 1e-7
    assert row.resampled >= x.size
    assert row.elements == x.size


def test_ties_in_max_pool_are_checked_elsewhere(rng):
    row = check(MaxPool2d(3, 2, 1), rng.integers(0, 2, (2, 5, 4, 2)).astype(float))["input"]
    assert row.passed
    assert row.resampled > 0


def test_a_bug_is_found_after_moving_away_from_a_kink():
    layer = ReLU()
    distort(layer, "input", lambda gradient: gradient * (1 + 1e-4))
    assert failed(check(layer, np.zeros((2, 4, 5, 2)))) == ["input"]


class Sawtooth(Module):
    """y = x, with a kink that it says is everywhere."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        self.keep(x)
        return x.copy()

    def backward(self, dy):
        self.take()
        return dy.copy()

    def pieces(self):
        return np.array(self.calls)


def test_elements_always_at_a_kink_fail_and_are_counted():
    row = check(Sawtooth(), np.ones((2, 3)), attempts=4)["input"]
    assert not row.passed
    assert np.isnan(row.error)
    assert "6 always at a kink" in row.note


# What is wrong is caught


def distort(layer: Module, target: str, change) -> None:
    """Plant a bug into this instance: its backward changes one gradient, of the input or of a parameter."""

    def backward(self, dy):
        if target != "input":
            before = getattr(self, target).grad.copy()
        dx = type(self).backward(self, dy)
        if target == "input":
            return change(dx)
        parameter = getattr(self, target)
        added = parameter.grad - before
        parameter.grad[...] = before + change(added)
        return dx

    layer.backward = MethodType(backward, layer)


def without_last(gradient: np.ndarray) -> np.ndarray:
    """Drop a term: the gradient of the very last number."""
    gradient = gradient.copy()
    gradient[(-1,) * gradient.ndim] = 0
    return gradient


LAYERS = {
    "Conv2d": (lambda r: Conv2d(2, 3, (3, 2), (2, 1), 1, rng=r), (2, 5, 4, 2), ["input", "weight", "bias"]),
    "Linear": (lambda r: Linear(4, 3, rng=r), (3, 4), ["input", "weight", "bias"]),
    "BatchNorm2d": (lambda r: BatchNorm2d(2), (2, 3, 4, 2), ["input", "weight", "bias"]),
    "ReLU": (lambda r: ReLU(), (2, 3, 4, 2), ["input"]),
    "LeakyReLU": (lambda r: LeakyReLU(0.1), (2, 3, 4, 2), ["input"]),
    "MaxPool2d": (lambda r: MaxPool2d(2, 1), (2, 3, 4, 2), ["input"]),
    "GlobalAvgPool2d": (lambda r: GlobalAvgPool2d(), (2, 3, 4, 2), ["input"]),
}
CHANGES = {
    "sign": lambda gradient: -gradient,
    "factor 1 + 1e-4": lambda gradient: gradient * (1 + 1e-4),
    "halved": lambda gradient: gradient / 2,
    "zero": np.zeros_like,
    "reversed": lambda gradient: gradient[::-1].copy(),
    "small constant": lambda gradient: gradient + 1e-5,
    "not a number": lambda gradient: gradient * np.nan,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "target"), [(name, target) for name in LAYERS for target in LAYERS[name][2]])
def test_a_bug_in_any_backward_is_caught_in_its_own_row(name, target, change, rng):
    build, shape, _ = LAYERS[name]
    layer = build(rng)
    distort(layer, target, CHANGES[change])
    caught = failed(check(layer, normal(rng, shape)))
    assert caught[0] == target
    assert set(caught) <= {target, "habits"}  # e.g. a constant is more than zero where the upstream is zero


@pytest.mark.parametrize("name", ["Conv2d", "Linear", "BatchNorm2d"])
def test_one_dropped_term_is_caught(name, rng):
    build, shape, targets = LAYERS[name]
    for target in targets:
        layer = build(rng)
        distort(layer, target, without_last)
        assert failed(check(layer, normal(rng, shape))) == [target]


def test_batch_norm_with_an_upstream_of_ones_would_hide_everything(rng):
    """Why the upstream is random: for ones, dx is zero whatever backward returns as a multiple of it."""
    layer, x = BatchNorm2d(2).astype(np.float64), normal(rng, (3, 4, 5, 2))
    layer(x)
    assert np.abs(layer.backward(np.ones_like(x))).max() < 1e-12
    distort(layer, "input", lambda gradient: 3 * gradient)
    assert failed(check(layer, x)) == ["input"]


# Every known bug of the command


@pytest.mark.parametrize("name", BUGS)
def test_break_is_caught_and_the_command_says_so(name, capsys):
    assert main(["--break", name]) == 1
    printed = capsys.readouterr().out
    assert f"{name} with a bug in its backward: {BUGS[name].description}" in printed
    assert "FAIL" in printed
    last = printed.splitlines()[-1]
    assert " good, 0 failed" not in last


def test_a_planted_bug_stays_in_its_instance(rng):
    sound, broken = Linear(4, 3, rng=rng), Linear(4, 3, rng=rng)
    BUGS["Linear"].plant(broken)
    x = normal(rng, (3, 4))
    assert failed(check(broken, x)) == ["bias"]
    assert failed(check(copy.deepcopy(broken), x)) == ["bias"]
    assert failed(check(sound, x)) == failed(check(Linear(4, 3, rng=rng), x)) == []


# Habits


class Double(Module):
    """y = 2x: right, so that only the bad habits of what is built upon it show."""

    def forward(self, x):
        self.keep(x.shape)
        return 2 * x

    def backward(self, dy):
        self.take()
        return 2 * dy


class WritesIntoUpstream(Double):
    def backward(self, dy):
        dx = super().backward(dy)
        dy *= 0.5
        return dx


class WritesIntoInput(Double):
    def forward(self, x):
        y = super().forward(x)
        x *= 0.5
        return y


class ReluInPlace(ReLU):
    def forward(self, x):
        y = super().forward(x)
        x[...] = y
        return y


class Remembers(Double):
    """Every second backward is right."""

    calls = 0

    def backward(self, dy):
        self.calls += 1
        return super().backward(dy) * (1 + self.calls % 2)


class ReadsMemoryOrder(Double):
    """Right for plain memory, and for any other permutation of it wrong."""

    def backward(self, dy):
        dx = super().backward(dy)
        return dx if dy.flags.c_contiguous else dx[::-1].copy()


class AlwaysAddsOne(Double):
    def backward(self, dy):
        return super().backward(dy) + 1.0


class ReplacesGradient(Linear):
    def backward(self, dy):
        self.weight.zero_grad()
        return super().backward(dy)


class ChangesParameter(Linear):
    def backward(self, dy):
        dx = super().backward(dy)
        self.bias.data += 1e-3
        return dx


HABITS = {
    "writes into its input or upstream": [WritesIntoUpstream(), WritesIntoInput(), ReluInPlace()],
    "a second run differs": [Remembers()],
    "memory layout matters": [ReadsMemoryOrder()],
    "a zero upstream gives more than zero": [AlwaysAddsOne()],
    "backward replaces the gradient instead of adding": [ReplacesGradient(4, 3)],
    "changes a parameter": [ChangesParameter(4, 3)],
}


@pytest.mark.parametrize(
    ("words", "layer"),
    [(words, layer) for words, layers in HABITS.items() for layer in layers],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_a_bad_habit_is_caught_and_named(words, layer, rng):
    shape = (3, 4) if isinstance(layer, Linear) else (3, 5, 4, 2)
    row = check(layer, normal(rng, shape))["habits"]
    assert not row.passed
    assert words in row.note


def test_there_is_a_bad_layer_for_every_habit(rng):
    assert check(Double(), normal(rng, (3, 4)))["habits"].elements == len(HABITS)
    assert failed(check(Double(), normal(rng, (3, 4)))) == []


# Layers that an earlier form of the check let slip through


class ClingsToItsFirstInput(Linear):
    """A cache filled once: right for the first batch, wrong for all others."""

    first = None

    def forward(self, x):
        y = super().forward(x)
        self.first = self.first or self.kept()
        self.keep(self.first)
        return y


class ForgetsToSpread(GlobalAvgPool2d):
    """Returns (N, 1, 1, C) for an input of (N, H, W, C)."""

    def backward(self, dy):
        _, h, w, _ = self.take()
        return dy / (h * w)


class ReadsBetweenTheNumbers(Double):
    """Takes any memory for contiguous, and so reads the holes."""

    def forward(self, x):
        self.keep(x.shape)
        plain = np.empty(x.shape, x.dtype).strides
        return 2 * np.lib.stride_tricks.as_strided(x, x.shape, plain)


class WritesTheSameAgain(Double):
    """Silences channel 0 in the input itself: a second time changes nothing more."""

    def forward(self, x):
        self.keep(x.shape)
        x[..., 0] = 0
        return 2 * x

    def backward(self, dy):
        dx = super().backward(dy)
        dx[..., 0] = 0
        return dx


class WritesTheSameAgainAndLearns(Linear):
    """The same with parameters: while these are moved, the input must not be silenced for good."""

    def forward(self, x):
        x[..., 0] = 0
        return super().forward(x.copy())

    def backward(self, dy):
        dx = super().backward(dy)
        dx[..., 0] = 0
        return dx


class SpoilsUpstream(Double):
    def backward(self, dy):
        dx = super().backward(dy)
        dy[...] = np.nan
        return dx


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ClingsToItsFirstInput(4, 3), (3, 4)),
        (ForgetsToSpread(), (2, 3, 4, 2)),
        (ReadsBetweenTheNumbers(), (2, 3, 4, 2)),
        (WritesTheSameAgain(), (2, 3, 4, 2)),
        (WritesTheSameAgainAndLearns(4, 3), (3, 4)),
        (SpoilsUpstream(), (2, 3, 4, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_nothing_slips_through(layer, shape, rng):
    assert failed(check(layer, normal(rng, shape))) != []


# The command


def test_the_command_passes_one_layer(capsys):
    assert main(["--only", "Linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "checked", "elements", "rel.", "error", "tolerance", "verdict"]
    rows = [line.split() for line in lines[1:5]]
    assert [row[:3] for row in rows] == [
        *(["Linear", "input", "28"], ["Linear", "weight", "35"], ["Linear", "bias", "5"], ["Linear", "habits", "6"])
    ]
    assert {row[-1] for row in rows} == {"ok"}
    assert lines[-1].startswith("4 good, 0 failed, in ")


def test_another_seed_draws_other_numbers(capsys):
    tables = []
    for seed in ("0", "0", "3"):
        assert main(["--only", "Conv2d", "--seed", seed]) == 0
        tables.append(capsys.readouterr().out.splitlines()[:-1])  # the last line has the time
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize("arguments", [["--only", "Conv3d"], ["--break", "Conv3d"], ["--break", "Sequential"]])
def test_an_unknown_layer_lists_the_known_ones(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    words = capsys.readouterr().err
    assert "BatchNorm2d" in words
    assert arguments[1] in words


def test_a_row_says_what_failed_where_and_by_how_much():
    row = Check("Conv2d", "weight", 1234, 0.5, 1e-7, resampled=3, note="why")
    text = format_check(row)
    for word in ("Conv2d", "weight", "1,234", "5.0e-01", "1e-07", "FAIL", "why", "3 resampled at kinks"):
        assert word in text
    assert not Check("", "", 1, float("nan"), 1e-7).passed
    assert Check("", "", 1, 1e-7, 1e-7).passed


def test_many_parameters_become_one_row_that_names_the_worst(rng, monkeypatch):
    net = Sequential(*(Linear(2, 2, rng=rng) for _ in range(7)))
    distort(net[3], "weight", lambda gradient: gradient * (1 + 1e-4))
    case = nn.gradcheck.Case("Deep", "", lambda r: (net, (normal(r, (3, 2)),)), {})
    rows = {row.what: row for row in run_case(case, 0)}
    assert list(rows) == ["input", "14 parameters", "habits"]
    assert not rows["14 parameters"].passed
    assert rows["14 parameters"].elements == 7 * (4 + 2)
    assert "worst: 3.weight" in rows["14 parameters"].note
