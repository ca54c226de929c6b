"""ReLU and LeakyReLU: against the naive twins and by hand, with the conventions at the kink."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import LeakyReLU, ReLU, reference
from nn.activation import leaky_relu_backward, leaky_relu_forward, relu_backward, relu_forward

leaky_relu_backward, leaky_relu_forward, relu_backward, relu_forward = map(
    everywhere, (leaky_relu_backward, leaky_relu_forward, relu_backward, relu_forward)
)

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)


def with_zeros(rng, shape, dtype):
    """Return random numbers, about a quarter of them exactly 0: the kink must be among the cases."""
    return normal(rng, shape, dtype) * (rng.random(shape) > 0.25)


@on_every_device
@given(SHAPES, DTYPES, SEEDS)
def test_relu_equals_naive_twin(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, dy = with_zeros(rng, shape, dtype), normal(rng, shape, dtype)
    (y, cache), (expected, twin_cache) = relu_forward(x), reference.relu_forward(x)
    dx = relu_backward(dy, cache)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, reference.relu_backward(dy, twin_cache))
    assert y.dtype == dx.dtype == dtype


@on_every_device
@given(SHAPES, DTYPES, SEEDS, st.sampled_from([0.0, 1e-3, 0.01, 0.25, 1.0]))
def test_leaky_relu_equals_naive_twin(shape, dtype, seed, slope):
    rng = np.random.default_rng(seed)
    x, dy = with_zeros(rng, shape, dtype), normal(rng, shape, dtype)
    (y, cache), (expected, twin_cache) = leaky_relu_forward(x, slope), reference.leaky_relu_forward(x, slope)
    dx = leaky_relu_backward(dy, cache, slope)
    assert_close(y, expected)
    assert_close(dx, reference.leaky_relu_backward(dy, twin_cache, slope))
    assert y.dtype == dx.dtype == dtype


X = np.array([-2.0, -0.0, 0.0, 3.0])
DY = np.array([1.0, 10.0, 100.0, 1000.0])


@pytest.mark.parametrize(
    ("layer", "y", "dx"),
    [
        (ReLU(), [0, 0, 0, 3], [0, 0, 0, 1000]),
        (LeakyReLU(0.25), [-0.5, 0, 0, 3], [0.25, 2.5, 25, 1000]),
        (LeakyReLU(), [-0.02, 0, 0, 3], [0.01, 0.1, 1, 1000]),
        (LeakyReLU(0), [0, 0, 0, 3], [0, 0, 0, 1000]),
        (LeakyReLU(1), [-2, 0, 0, 3], [1, 10, 100, 1000]),
    ],
    ids=repr,
)
def test_by_hand_with_the_derivative_at_zero(layer, y, dx):
    """ReLU'(0) = 0 and LeakyReLU'(0) = slope."""
    np.testing.assert_allclose(layer(X), y, rtol=1e-15)
    np.testing.assert_allclose(layer.backward(DY), dx, rtol=1e-15)


@on_every_device
@pytest.mark.parametrize(
    ("forward", "backward", "slope"),
    [(reference.relu_forward, reference.relu_backward, 0), (reference.leaky_relu_forward, None, 0.01)],
)
def test_the_twins_by_hand(forward, backward, slope):
    y, cache = forward(X)
    backward = backward or reference.leaky_relu_backward
    np.testing.assert_allclose(y, [-2 * slope, 0, 0, 3], rtol=1e-15)
    np.testing.assert_allclose(backward(DY, cache), [slope, 10 * slope, 100 * slope, 1000], rtol=1e-15)


@on_every_device
@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_infinities_go_through_and_nan_stays_visible(slope):
    y, _ = leaky_relu_forward(np.array([-np.inf, np.inf, np.nan]), slope)
    np.testing.assert_array_equal(y, [-np.inf if slope else 0.0, np.inf, np.nan])


@on_every_device
def test_backward_goes_by_the_sign_of_the_input_not_of_the_upstream():
    layer = ReLU()
    layer(np.array([-1.0, -1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(layer.backward(np.array([-5.0, 5.0, -5.0, 5.0])), [0, 0, -5, 5])


def test_keeps_its_output_and_nothing_else(rng):
    """A convolution that comes next keeps the same array, so behind most activations nothing is kept for them alone."""
    for layer in (ReLU(), LeakyReLU(0.1)):
        y = layer(normal(rng, (2, 3, 4, 2)))
        assert len(layer.kept()) == 1
        assert layer.kept()[0] is y


@pytest.mark.parametrize("slope", [-0.01, 1.5, float("nan"), -1])
def test_a_slope_out_of_range_is_named(slope):
    for make in (LeakyReLU, lambda s: leaky_relu_forward(np.ones(3), s)):
        with pytest.raises(ValueError, match=f"from 0 .* to 1 .* got {slope}"):
            make(slope)


@pytest.mark.parametrize("layer", [ReLU(), LeakyReLU(), LeakyReLU(0)], ids=repr)
@pytest.mark.parametrize("x", [np.array([1, 2]), np.array([True]), [1.0, 2.0]], ids=["int", "bool", "list"])
def test_input_that_is_not_floating_point_is_named(layer, x):
    with pytest.raises(TypeError, match=r"floating point, got (int64|bool)|array, got list"):
        layer(x)
