"""Batch norm: against the naive twin (which derives it in stages) and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import BatchNorm2d, reference
from nn.batchnorm import batchnorm2d_backward, batchnorm2d_eval_forward, batchnorm2d_forward

batchnorm2d_backward, batchnorm2d_eval_forward, batchnorm2d_forward = map(
    everywhere, (batchnorm2d_backward, batchnorm2d_eval_forward, batchnorm2d_forward)
)

EPS = 1e-5
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)


def drawn(shape, dtype, seed):
    """Return x, γ, β and dy; γ and β are random, for 1 and 0 would hide a forgotten factor or term."""
    rng = np.random.default_rng(seed)
    x = normal(rng, shape, dtype) + dtype(0.5)
    return x, normal(rng, shape[-1:], dtype), normal(rng, shape[-1:], dtype), normal(rng, shape, dtype)


def exact(*arrays):
    return [array.astype(np.float64) for array in arrays]


@on_every_device
@given(SHAPES.filter(lambda shape: np.prod(shape[:3]) >= 4), DTYPES, SEEDS)
def test_training_equals_the_derivation_in_stages(shape, dtype, seed):
    x, gamma, beta, dy = drawn(shape, dtype, seed)
    y, cache, mean, variance = batchnorm2d_forward(x, gamma, beta, EPS)
    results = (y, mean, variance, *batchnorm2d_backward(dy, cache))
    true_y, true_cache, true_mean, true_variance = reference.batchnorm2d_forward(*exact(x, gamma, beta), EPS)
    expected = (true_y, true_mean, true_variance, *reference.batchnorm2d_backward(dy.astype(np.float64), true_cache))
    steepest, size, upstream = np.abs(gamma / np.sqrt(true_variance + EPS)).max(), np.abs(x).max(), np.abs(dy).sum()
    # Sizes of the terms that y, mean, variance, dx, dγ and dβ add up; the sums themselves may be much smaller.
    x_hat = np.abs(true_cache.centred / np.sqrt(true_variance + EPS)).max()
    scales = (steepest * size, size, size**2, steepest * np.abs(dy).max() * (1 + x_hat), upstream * x_hat, upstream)
    for actual, truth, scale in zip(results, expected, scales, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, truth, scale)


@on_every_device
@given(SHAPES, DTYPES, SEEDS)
def test_eval_equals_naive_twin(shape, dtype, seed):
    x, gamma, beta, dy = drawn(shape, dtype, seed)
    rng = np.random.default_rng(seed + 1)
    mean, variance = normal(rng, shape[-1:], dtype), rng.uniform(0.5, 2, shape[-1]).astype(dtype)
    y, cache = batchnorm2d_eval_forward(x, gamma, beta, mean, variance, EPS)
    true_y, true_cache = reference.batchnorm2d_eval_forward(*exact(x, gamma, beta, mean, variance), EPS)
    results = (y, *batchnorm2d_backward(dy, cache))
    expected = (true_y, *reference.batchnorm2d_backward(dy.astype(np.float64), true_cache))
    for actual, truth in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, truth, scale=np.abs(dy).sum())


ONE_TO_SEVEN = np.array([1.0, 3.0, 5.0, 7.0]).reshape(2, 1, 2, 1)  # mean 4, biased variance 5


@on_every_device
@pytest.mark.parametrize("room", [batchnorm2d_forward, reference.batchnorm2d_forward])
def test_four_numbers_by_hand(room):
    y, _, mean, variance = room(ONE_TO_SEVEN, np.array([2.0]), np.array([10.0]), 4.0)
    assert (mean[0], variance[0]) == (4.0, 5.0)
    # ε = 4 makes the root √(5 + 4) = 3: y = 2·(x − 4)/3 + 10
    np.testing.assert_allclose(y.ravel(), [8, 10 - 2 / 3, 10 + 2 / 3, 12], rtol=1e-15)


@on_every_device
@pytest.mark.parametrize("twin", ["fast", "naive"])
def test_gradients_of_four_numbers_by_hand(twin):
    """dy = (1, 0, 0, 0), γ = 2, ε = 4, so σ = 3 and x̂ = (−1, −1/3, 1/3, 1).

    mean(dy) = 1/4 and mean(dy·x̂) = −1/4, so dx = 2/3 · (dy − 1/4 + x̂/4).
    """
    forward, backward = {
        "fast": (batchnorm2d_forward, batchnorm2d_backward),
        "naive": (reference.batchnorm2d_forward, reference.batchnorm2d_backward),
    }[twin]
    _, cache, _, _ = forward(ONE_TO_SEVEN, np.array([2.0]), np.array([10.0]), 4.0)
    dx, dgamma, dbeta = backward(np.array([1.0, 0, 0, 0]).reshape(2, 1, 2, 1), cache)
    np.testing.assert_allclose(dx.ravel(), [1 / 3, -2 / 9, -1 / 9, 0], atol=1e-15)
    np.testing.assert_allclose((dgamma[0], dbeta[0]), (-1, 1), rtol=1e-15)


@on_every_device
def test_gradient_has_no_mean_and_no_part_along_the_normalised_input(rng):
    """Moving all x together, or stretching them, leaves y as it is (but for ε), so dx has no such parts."""
    x, dy = normal(rng, (3, 4, 5, 2)), normal(rng, (3, 4, 5, 2))
    _, cache, mean, _ = batchnorm2d_forward(x, np.ones(2), np.zeros(2), eps=0.0)
    dx, _, _ = batchnorm2d_backward(dy, cache)
    np.testing.assert_allclose(dx.sum(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose((dx * (x - mean)).sum(axis=(0, 1, 2)), 0, atol=1e-12)


@on_every_device
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_variance_in_float32_survives_a_large_mean(mean, rng):
    """E[x²] − E[x]² would subtract 1e8 from 1e8 + 1, which float32 cannot tell apart."""
    x = (mean + rng.normal(size=(8, 16, 16, 3))).astype(np.float32)
    _, _, _, variance = batchnorm2d_forward(x, np.ones(3, np.float32), np.zeros(3, np.float32))
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axis=(0, 1, 2)), rtol=1e-2)


def test_sums_of_many_float32_numbers_keep_their_digits(rng):
    """A float32 sum that runs over 802,816 numbers one by one would be wrong in the fifth digit."""
    x = (1 + 0.1 * rng.normal(size=(16, 224, 224, 1))).astype(np.float32)
    _, _, mean, variance = batchnorm2d_forward(x, np.ones(1, np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axis=(0, 1, 2)), rtol=1e-5)


# Running statistics


def test_running_statistics_start_at_zero_and_one():
    layer = BatchNorm2d(3)
    np.testing.assert_array_equal(layer.running_mean.data, [0, 0, 0])
    np.testing.assert_array_equal(layer.running_var.data, [1, 1, 1])
    assert (layer.eps, layer.momentum) == (1e-5, 0.1)
    assert layer.num_batches_tracked.data == 0


def test_running_statistics_after_two_steps_by_hand():
    """Batches of two values (1, 3) and (4, 8): means 2 and 6, unbiased variances 2 and 8 (biased 1 and 4)."""
    layer = BatchNorm2d(1).astype(np.float64)
    for values in ([1.0, 3.0], [4.0, 8.0]):
        layer(np.array(values).reshape(2, 1, 1, 1))
    assert layer.running_mean.data[0] == pytest.approx(0.9 * (0.9 * 0 + 0.1 * 2) + 0.1 * 6)  # 0.78
    assert layer.running_var.data[0] == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 8)  # 1.79
    assert layer.num_batches_tracked.data == 2


def test_running_statistics_after_many_steps_by_formula(rng):
    layer = BatchNorm2d(3, momentum=0.25).astype(np.float64)
    mean, variance = np.zeros(3), np.ones(3)
    for size in (2, 5, 3, 4):
        x = normal(rng, (size, 3, 4, 3)) * 2 + 1
        layer(x)
        columns = x.reshape(-1, 3)
        mean = 0.75 * mean + 0.25 * columns.mean(axis=0)
        variance = 0.75 * variance + 0.25 * columns.var(axis=0, ddof=1)
    assert_close(layer.running_mean.data, mean)
    assert_close(layer.running_var.data, variance)
    assert layer.num_batches_tracked.data == 4


@pytest.mark.parametrize("state", ["eval", "inference"])
def test_outside_training_running_statistics_are_used_and_stay(state, rng):
    layer = BatchNorm2d(2).astype(np.float64)
    layer.running_mean.data[:], layer.running_var.data[:] = [1, -2], [4, 9]
    layer.weight.data[:], layer.bias.data[:] = [3, 1], [0, 5]
    getattr(layer, state)()
    y = layer(np.array([[[[5.0, 4.0]]]]))
    np.testing.assert_allclose(y.ravel(), [3 * 4 / np.sqrt(4 + EPS), 6 / np.sqrt(9 + EPS) + 5], rtol=1e-14)
    np.testing.assert_array_equal(layer.running_mean.data, [1, -2])
    np.testing.assert_array_equal(layer.running_var.data, [4, 9])
    assert layer.num_batches_tracked.data == 0


def test_running_statistics_are_not_those_of_the_batch_itself(rng):
    """The output of training must not depend on the running statistics."""
    x = normal(rng, (3, 4, 5, 2))
    fresh, worn = BatchNorm2d(2).astype(np.float64), BatchNorm2d(2).astype(np.float64)
    worn.running_mean.data[:], worn.running_var.data[:] = 7, 100
    np.testing.assert_array_equal(fresh(x), worn(x))


# Errors


def test_one_value_a_channel_is_refused_in_training_only():
    layer = BatchNorm2d(3)
    x = np.ones((1, 1, 1, 3), np.float32)
    with pytest.raises(ValueError, match=r"at least 2 values a channel.*\(1, 1, 1, 3\).*eval") as caught:
        layer(x)
    assert "batch of 2" in str(caught.value)
    assert layer.num_batches_tracked.data == 0
    np.testing.assert_array_equal(layer.running_var.data, 1)
    assert layer.eval()(x).shape == x.shape
    assert layer.train()(np.concatenate([x, x])).shape == (2, 1, 1, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((2, 4, 4, 5), np.float32), ValueError, ["3 channels", "(2, 4, 4, 5)"]),
        (np.zeros((2, 4, 4, 1), np.float32), ValueError, ["3 channels", "(2, 4, 4, 1)"]),  # NumPy would spread it
        (np.zeros((8, 3), np.float32), ValueError, ["(N, H, W, C)", "(8, 3)"]),
        (np.zeros((2, 4, 4, 3), np.int64), TypeError, ["floating point", "int64"]),
        (np.zeros((2, 4, 4, 3), np.float64), TypeError, ["float32", "float64"]),
    ],
)
def test_wrong_input_is_named(x, error, words, training):
    layer = BatchNorm2d(3) if training else BatchNorm2d(3).eval()
    with pytest.raises(error) as caught:
        layer(x)
    assert [word for word in words if word not in str(caught.value)] == []
