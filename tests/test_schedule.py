"""Learning-rate schedules: against PyTorch's and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from nn.schedule import SCHEDULES, constant, cosine, make_schedule, one_cycle, step_decay, warm_up

EXACT = {"rel": 1e-12, "abs": 1e-15}


def rates(schedule, steps) -> list[float]:
    return [schedule(step) for step in steps]


# By hand


def test_constant_stays():
    assert rates(constant(0.3), (0, 1, 10**6)) == [0.3, 0.3, 0.3]


def test_step_decay_drops_by_its_factor_at_each_multiple():
    assert rates(step_decay(1.0, 3), range(8)) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01], **EXACT)
    assert rates(step_decay(8.0, 1, 0.5), range(4)) == pytest.approx([8, 4, 2, 1], **EXACT)


def test_cosine_by_hand():
    """At 0, 1/3, 1/2, 2/3 and all of the way, (1 + cos)/2 is 1, 3/4, 1/2, 1/4 and 0."""
    assert rates(cosine(2.0, 6), (0, 2, 3, 4, 6)) == pytest.approx([2, 1.5, 1, 0.5, 0], **EXACT)
    assert rates(cosine(2.0, 6, 1.0), (0, 2, 3, 4, 6)) == pytest.approx([2, 1.75, 1.5, 1.25, 1], **EXACT)


def test_one_cycle_by_hand():
    """Of 21 steps a third rises: the peak at step 6; both ways pass half their height half way."""
    schedule = one_cycle(1.0, 21, warm_share=1 / 3, start_divisor=10, final_divisor=100)
    assert rates(schedule, (0, 3, 6, 13, 20)) == pytest.approx([0.1, 0.55, 1, 0.5005, 0.001], rel=1e-9)


def test_one_cycle_rises_then_falls_and_peaks_at_its_peak():
    values = rates(one_cycle(0.1, 100), range(100))
    top = values.index(max(values))
    assert top == 29
    assert values[top] == pytest.approx(0.1, **EXACT)
    assert values[:30] == sorted(values[:30])
    assert values[29:] == sorted(values[29:], reverse=True)
    assert (values[0], values[-1]) == pytest.approx((0.1 / 25, 0.1 / 25 / 1e4), **EXACT)


def test_warm_up_climbs_in_a_straight_line_and_then_leaves_the_schedule_alone():
    assert rates(warm_up(constant(1.0), 4), range(6)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1], **EXACT)
    inner = cosine(1.0, 10)
    assert rates(warm_up(inner, 3), range(3, 12)) == rates(inner, range(3, 12))
    assert rates(warm_up(inner, 0), range(12)) == rates(inner, range(12))
    assert warm_up(inner, 3)(1) == pytest.approx(inner(1) * 2 / 4, **EXACT)


# Against PyTorch


@pytest.mark.parametrize(
    ("schedule", "name", "settings", "start"),
    [
        (lambda lr, n: one_cycle(lr, n), "OneCycleLR", {"max_lr": 0.1, "total_steps": 37}, 0.1),
        (
            lambda lr, n: one_cycle(lr, n, 0.4, 10.0, 100.0),
            "OneCycleLR",
            {"max_lr": 0.1, "total_steps": 37, "pct_start": 0.4, "div_factor": 10, "final_div_factor": 100},
            0.1,
        ),
        (lambda lr, n: cosine(lr, n), "CosineAnnealingLR", {"T_max": 37}, 0.1),
        (lambda lr, n: cosine(lr, n, 0.02), "CosineAnnealingLR", {"T_max": 37, "eta_min": 0.02}, 0.1),
        (lambda lr, n: step_decay(lr, 5), "StepLR", {"step_size": 5}, 0.1),
        (lambda lr, n: step_decay(lr, 7, 0.5), "StepLR", {"step_size": 7, "gamma": 0.5}, 0.1),
    ],
    ids=["one-cycle", "one-cycle with settings", "cosine", "cosine to a minimum", "step", "step with settings"],
)
def test_equals_pytorch(schedule, name, settings, start):
    torch = pytest.importorskip(
        "torch", exc_type=ImportError, reason="PyTorch, the independent source, is not installed"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=start)
    reference = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    expected = []
    for _ in range(37):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step() if len(expected) < 37 else None
    assert rates(schedule(start, 37), range(37)) == pytest.approx(expected, rel=1e-10)


# All of them


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_rates_are_sane_for_any_length_and_depend_on_the_step_alone(name, total):
    schedule = make_schedule(name, 0.1, total)
    values = rates(schedule, range(total))
    assert all(math.isfinite(value) and 0 < value <= 0.1 + 1e-15 for value in values)
    assert max(values) == pytest.approx(0.1, rel=0.1 if name == "one-cycle" else 1e-12)
    assert rates(schedule, reversed(range(total))) == values[::-1]  # nothing is remembered: training can resume


@pytest.mark.parametrize(("name", "last"), [("constant", 0.1), ("cosine", 0.0), ("one-cycle", 0.1 / 25 / 1e4)])
def test_after_its_steps_a_schedule_stays_where_it_is(name, last):
    schedule = make_schedule(name, 0.1, 20)
    assert rates(schedule, (20, 21, 40, 10**6)) == pytest.approx([last] * 4, **EXACT)


def test_make_schedule_gives_the_usual_settings():
    steps = range(10)
    assert rates(make_schedule("step", 1.0, 10), steps) == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2, **EXACT)
    assert rates(make_schedule("cosine", 1.0, 10), steps) == rates(cosine(1.0, 10), steps)
    assert rates(make_schedule("one-cycle", 1.0, 10), steps) == rates(one_cycle(1.0, 10), steps)
    assert rates(make_schedule("constant", 1.0, 10, 4), steps) == rates(warm_up(constant(1.0), 4), steps)


# Errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: step_decay(0.1, 0), "one step between two drops, got 0"),
        (lambda: cosine(0.1, 0), "one step in all, got 0"),
        (lambda: one_cycle(0.1, -3), "one step in all, got -3"),
        (lambda: one_cycle(0.1, 10, warm_share=0.0), "above 0 and below 1, got 0.0"),
        (lambda: one_cycle(0.1, 10, warm_share=1.0), "above 0 and below 1, got 1.0"),
        (lambda: one_cycle(0.1, 10, warm_share=float("nan")), "above 0 and below 1, got nan"),
        (lambda: warm_up(constant(0.1), -1), "0 or more warm-up steps, got -1"),
        (lambda: make_schedule("linear", 0.1, 10), "constant, step, cosine, one-cycle, got 'linear'"),
        (lambda: make_schedule("cosine", 0.1, 0), "one step in all, got 0"),
    ],
)
def test_impossible_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
