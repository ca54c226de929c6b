"""SGD and Adam: against PyTorch's formulas written out as plain loops, against PyTorch itself, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import assert_close, frozen, normal

from nn import SGD, Adam, Parameter
from nn.optim import Optimizer

STEPS = 10
RATES = [0.1 / (1 + k) for k in range(STEPS)]  # another learning rate at every step


def make_parameters(dtype=np.float64) -> dict[str, Parameter]:
    """Return a weight, which decays, and a bias, which may be exempt."""
    rng = np.random.default_rng(1)
    return {
        "weight": Parameter(normal(rng, (3, 4), dtype)),
        "bias": Parameter(normal(rng, (4,), dtype), decay=False),
    }


def gradients() -> list[dict[str, np.ndarray]]:
    """Return a gradient a step for each parameter."""
    rng = np.random.default_rng(2)
    return [{"weight": normal(rng, (3, 4)), "bias": normal(rng, (4,))} for _ in range(STEPS)]


def train(parameters: dict[str, Parameter], optimizer: Optimizer) -> dict[str, np.ndarray]:
    """Return the values after all steps."""
    for lr, gradient in zip(RATES, gradients(), strict=True):
        for name, parameter in parameters.items():
            parameter.zero_grad()
            parameter.add_grad(gradient[name].astype(parameter.data.dtype))
        optimizer.step(lr)
    return {name: parameter.data for name, parameter in parameters.items()}


def sgd_by_hand(w: float, gradient: list[float], momentum: float, nesterov: bool, decay: float) -> float:
    """torch.optim.SGD's documentation, for a single number."""
    v = None
    for lr, g in zip(RATES, gradient, strict=True):
        g = g + decay * w
        if momentum != 0:
            v = g if v is None else momentum * v + g
            g = g + momentum * v if nesterov else v
        w = w - lr * g
    return w


def adam_by_hand(w: float, gradient: list[float], betas: tuple[float, float], eps: float, decay: float) -> float:
    """torch.optim.Adam's documentation, for a single number."""
    m = v = 0.0
    for t, (lr, g) in enumerate(zip(RATES, gradient, strict=True), start=1):
        g = g + decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = w - lr * m_hat / (math.sqrt(v_hat) + eps)
    return w


def by_hand(formula, decays: dict[str, float], **settings) -> dict[str, np.ndarray]:
    """Run a formula for every number of every parameter."""
    answer = {}
    for name, parameter in make_parameters().items():
        answer[name] = np.zeros_like(parameter.data)
        for index in np.ndindex(parameter.data.shape):
            history = [float(gradient[name][index]) for gradient in gradients()]
            answer[name][index] = formula(float(parameter.data[index]), history, decay=decays[name], **settings)
    return answer


SGD_SETTINGS = [
    {"momentum": 0.0, "nesterov": False},
    {"momentum": 0.9, "nesterov": False},
    {"momentum": 0.8, "nesterov": True},
]
ADAM_SETTINGS = [
    {"betas": (0.9, 0.999), "eps": 1e-8},
    {"betas": (0.5, 0.9), "eps": 0.1},
    {"betas": (0.0, 0.0), "eps": 1e-3},
]
CASES = [(SGD, sgd_by_hand, s) for s in SGD_SETTINGS] + [(Adam, adam_by_hand, s) for s in ADAM_SETTINGS]
DECAYS = pytest.mark.parametrize(("decay", "decay_all"), [(0.0, True), (0.05, True), (0.05, False)])


@DECAYS
@pytest.mark.parametrize(("optimizer", "formula", "settings"), CASES)
def test_equals_the_formula_in_a_plain_loop(optimizer, formula, settings, decay, decay_all):
    parameters = make_parameters()
    steps = optimizer(parameters.items(), weight_decay=decay, decay_all=decay_all, **settings)
    expected = by_hand(formula, {"weight": decay, "bias": decay if decay_all else 0.0}, **settings)
    for name, values in train(parameters, steps).items():
        assert_close(values, expected[name])


@DECAYS
@pytest.mark.parametrize(("optimizer", "formula", "settings"), CASES)
def test_equals_pytorch(optimizer, formula, settings, decay, decay_all):
    torch = pytest.importorskip(
        "torch", exc_type=ImportError, reason="PyTorch, the independent source, is not installed"
    )
    ours = make_parameters()
    theirs = {name: torch.nn.Parameter(torch.tensor(parameter.data)) for name, parameter in ours.items()}
    decays = {"weight": decay, "bias": decay if decay_all else 0.0}
    groups = [{"params": [theirs[name]], "weight_decay": decays[name]} for name in theirs]
    reference = getattr(torch.optim, optimizer.__name__)(groups, lr=1.0, **settings)
    for lr, gradient in zip(RATES, gradients(), strict=True):
        for group in reference.param_groups:
            group["lr"] = lr
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradient[name])
        reference.step()
    values = train(ours, optimizer(ours.items(), weight_decay=decay, decay_all=decay_all, **settings))
    for name, tensor in theirs.items():
        assert_close(values[name], tensor.detach().numpy())


def one(value: float = 1.0) -> Parameter:
    return Parameter(np.array([value]))


def test_two_steps_of_momentum_by_hand():
    """w = 1, gradient 1, lr 0.1, momentum 0.5: the second step is 1 + 0.5 = 1.5 times as long."""
    w = one()
    steps = SGD([("w", w)], momentum=0.5)
    values = []
    for _ in range(2):
        w.zero_grad()
        w.add_grad(np.array([1.0]))
        steps.step(0.1)
        values.append(w.data[0])
    assert values == pytest.approx([0.9, 0.75], rel=1e-15)


def test_two_steps_of_nesterov_by_hand():
    """The steps are g + μv: 1 + 0.5·1 = 1.5, then 1 + 0.5·1.5 = 1.75."""
    w = one()
    steps = SGD([("w", w)], momentum=0.5, nesterov=True)
    w.add_grad(np.array([1.0]))
    steps.step(0.1)
    assert w.data[0] == pytest.approx(0.85, rel=1e-15)
    steps.step(0.1)
    assert w.data[0] == pytest.approx(0.675, rel=1e-15)


@pytest.mark.parametrize("gradient", [1e-3, 7.0, -50.0])
def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient(gradient):
    w = one()
    w.add_grad(np.array([gradient]))
    Adam([("w", w)], eps=0.0).step(0.25)
    assert w.data[0] == pytest.approx(1 - math.copysign(0.25, gradient), rel=1e-14)


def test_weight_decay_shrinks_a_weight_without_gradient_by_hand():
    w = one(2.0)
    SGD([("w", w)], weight_decay=0.1).step(0.5)
    assert w.data[0] == pytest.approx(2 - 0.5 * 0.1 * 2, rel=1e-15)


@pytest.mark.parametrize(
    "make",
    [SGD, lambda p: SGD(p, 0.9), lambda p: SGD(p, 0.9, True), lambda p: SGD(p, 0.9, True, 0.1), Adam],
    ids=["plain", "momentum", "Nesterov", "decay", "Adam"],
)
def test_a_step_reads_the_gradient_and_writes_into_the_very_array(make):
    """A layer holds the array, and two optimisers or a gradient clip may want the same gradient."""
    w = one()
    array, gradient = w.data, frozen(np.array([0.5]))  # writing would raise
    w.add_grad(gradient)
    steps = make([("w", w)])
    for _ in range(3):
        steps.step(0.1)
    assert w.data is array
    assert array[0] != 1
    assert w.grad is gradient
    np.testing.assert_array_equal(gradient, [0.5])


def test_a_learning_rate_of_zero_changes_nothing_but_the_averages():
    w = one()
    w.add_grad(np.array([1.0]))
    steps = SGD([("w", w)], momentum=0.9)
    steps.step(0.0)
    assert w.data[0] == 1
    assert steps.state["momentum/w"][0] == 1


@pytest.mark.parametrize(
    ("make", "kinds"), [(lambda p: SGD(p, 0.9), ["momentum"]), (lambda p: SGD(p), []), (Adam, ["mean", "square"])]
)
def test_state_is_named_copied_and_of_the_parameters_shape(make, kinds):
    parameters = make_parameters(np.float32)
    steps = make(parameters.items())
    train(parameters, steps)
    state = steps.state_dict()
    assert sorted(state) == sorted(f"{kind}/{name}" for kind in kinds for name in parameters)
    for key, array in state.items():
        assert array.shape == parameters[key.split("/")[1]].data.shape
        assert array.dtype == np.float32
        array[...] = 77
    assert not any((array == 77).any() for array in steps.state.values())
    assert steps.steps == STEPS


def test_training_goes_on_from_saved_state_as_if_never_interrupted():
    def run(interrupted: bool) -> np.ndarray:
        w = Parameter(np.ones(3))
        steps = Adam([("w", w)])
        for k, gradient in enumerate(gradients()):
            if interrupted and k == 4:
                saved, count = steps.state_dict(), steps.steps
                steps = Adam([("w", w)])
                steps.state, steps.steps = saved, count
            w.zero_grad()
            w.add_grad(gradient["weight"][:, 0])
            steps.step(0.1)
        return w.data

    np.testing.assert_array_equal(run(True), run(False))


# Errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: SGD(p, momentum=1.0), "momentum from 0 to below 1, got 1.0"),
        (lambda p: SGD(p, momentum=-0.1), "momentum from 0 to below 1, got -0.1"),
        (lambda p: SGD(p, momentum=float("nan")), "momentum from 0 to below 1, got nan"),
        (lambda p: SGD(p, nesterov=True), "momentum above 0 for Nesterov's look-ahead, got 0"),
        (lambda p: SGD(p, weight_decay=-1e-4), "weight decay of 0 or more, got -0.0001"),
        (lambda p: Adam(p, weight_decay=-2), "weight decay of 0 or more, got -2"),
        (lambda p: Adam(p, betas=(0.9, 1.0)), r"betas from 0 to below 1, got \(0.9, 1.0\)"),
        (lambda p: Adam(p, betas=(-0.5, 0.9)), r"betas from 0 to below 1, got \(-0.5, 0.9\)"),
        (lambda p: SGD(p, weight_decay=float("nan")), "weight decay of 0 or more, got nan"),
    ],
)
def test_impossible_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make([("w", one())])


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_nothing_to_optimise_is_an_error(optimizer):
    with pytest.raises(ValueError, match="at least one parameter to optimise, got none"):
        optimizer([])


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_an_impossible_learning_rate_is_named_and_changes_nothing(optimizer, lr):
    w = one()
    w.add_grad(np.array([1.0]))
    steps = optimizer([("w", w)])
    with pytest.raises(ValueError, match=f"finite learning rate of 0 or more, got {lr}"):
        steps.step(lr)
    assert (w.data[0], steps.steps, steps.state) == (1, 0, {})
