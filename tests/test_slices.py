"""Elementwise layers and optimisers in slices and threads say what they say in one piece: against the naive twins."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, normal

from nn import SGD, Adam, Parameter, activation, batchnorm, parallel, pooling, reference, residual


@pytest.fixture(autouse=True, params=[(16, 1), (200, 2), (2**20, 3)], ids=["rows", "slices", "threads"])
def pieces(request, monkeypatch) -> None:
    """Slices of a few bytes, or threads without a lower bound of work."""
    nbytes, cores = request.param
    monkeypatch.setattr(parallel, "ELEMENTWISE_BYTES", nbytes)
    monkeypatch.setattr(parallel, "THREADING_BYTES", 0)
    monkeypatch.setattr(parallel, "cores", lambda: cores)


def test_batch_norm_with_the_batchs_statistics(rng):
    x, dy = 5 + 3 * normal(rng, (5, 4, 3, 2)), normal(rng, (5, 4, 3, 2))
    gamma, beta = rng.normal(size=(2, 2))
    y, cache, mean, variance = batchnorm.batchnorm2d_forward(x, gamma, beta)
    expected, twin_cache, true_mean, true_variance = reference.batchnorm2d_forward(x, gamma, beta)
    for ours, truth in zip((y, mean, variance), (expected, true_mean, true_variance), strict=True):
        assert_close(ours, truth)
    gradients = zip(
        batchnorm.batchnorm2d_backward(dy, cache), reference.batchnorm2d_backward(dy, twin_cache), strict=True
    )
    for ours, truth in gradients:
        assert_close(ours, truth, scale=np.abs(dy).sum())


def test_batch_norm_with_given_statistics(rng):
    x, dy = normal(rng, (3, 2, 5, 4)), normal(rng, (3, 2, 5, 4))
    gamma, beta, mean = rng.normal(size=(3, 4))
    variance = rng.uniform(0.5, 2, 4)
    y, cache = batchnorm.batchnorm2d_eval_forward(x, gamma, beta, mean, variance)
    expected, twin_cache = reference.batchnorm2d_eval_forward(x, gamma, beta, mean, variance)
    assert_close(y, expected)
    gradients = zip(
        batchnorm.batchnorm2d_backward(dy, cache), reference.batchnorm2d_backward(dy, twin_cache), strict=True
    )
    for ours, truth in gradients:
        assert_close(ours, truth, scale=np.abs(dy).sum())


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0])
def test_activations(slope, rng):
    x, dy = rng.integers(-3, 4, (3, 5, 2, 3)) * 0.5, normal(rng, (3, 5, 2, 3))
    y, cache = activation.leaky_relu_forward(x, slope)
    expected, twin_cache = reference.leaky_relu_forward(x, slope)
    assert_close(y, expected)
    if slope > 0:
        assert_close(
            activation.leaky_relu_backward(dy, cache, slope), reference.leaky_relu_backward(dy, twin_cache, slope)
        )
    y, cache = activation.relu_forward(x)
    expected, twin_cache = reference.relu_forward(x)
    assert_close(y, expected)
    assert_close(activation.relu_backward(dy, cache), reference.relu_backward(dy, twin_cache))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), ((2, 3), (1, 2), 0)])
def test_max_pooling_with_ties(kernel, stride, padding, rng):
    x = rng.integers(-2, 3, (5, 7, 6, 2)).astype(np.float64)
    y, cache = pooling.max_pool2d_forward(x, kernel, stride, padding)
    expected, twin_cache = reference.max_pool2d_forward(x, kernel, stride, padding)
    assert_close(y, expected)
    dy = normal(rng, y.shape)
    assert_close(pooling.max_pool2d_backward(dy, cache), reference.max_pool2d_backward(dy, twin_cache))


def test_residual_add(rng):
    a, b = normal(rng, (3, 4, 5, 2)), normal(rng, (3, 4, 5, 2))
    assert_close(residual.add_forward(a, b), a + b)


def test_two_steps_of_sgd_by_formula(rng):
    """v ← 0.9·v + (g + 0.1·w), w ← w − lr·(g + 0.1·w + 0.9·v)."""
    w, gradients = rng.normal(size=(7, 5)), rng.normal(size=(2, 7, 5))
    parameter = Parameter(w.T.copy().T)  # not contiguous: the flat views must still be views
    optimizer = SGD([("w", parameter)], momentum=0.9, nesterov=True, weight_decay=0.1)
    v = np.zeros_like(w)
    for g, lr in zip(gradients, (0.5, 0.25), strict=True):
        parameter.zero_grad()
        parameter.add_grad(g.copy())
        optimizer.step(lr)
        decayed = g + 0.1 * w
        v = 0.9 * v + decayed
        w = w - lr * (decayed + 0.9 * v)
        np.testing.assert_array_equal(parameter.grad, g)  # decay must not end up in the gradient
    assert_close(parameter.data, w)


def test_two_steps_of_adam_by_formula(rng):
    w, gradients = rng.normal(size=(6, 3)), rng.normal(size=(2, 6, 3))
    parameter = Parameter(w.copy())
    optimizer = Adam([("w", parameter)], betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    mean, square = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        parameter.zero_grad()
        parameter.add_grad(g.copy())
        optimizer.step(0.1)
        g = g + 0.1 * w
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g**2
        w = w - 0.1 * (mean / (1 - 0.8**t)) / (np.sqrt(square / (1 - 0.9**t)) + 1e-3)
    assert_close(parameter.data, w)
