"""Linear, Flatten and the residual Add: against the naive twins and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import Add, Flatten, Linear, reference
from nn.linear import linear_backward, linear_forward
from nn.residual import add_backward, add_forward

add_backward, add_forward, linear_backward, linear_forward = map(
    everywhere, (add_backward, add_forward, linear_backward, linear_forward)
)

DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)


@on_every_device
@given(st.tuples(*[st.integers(1, 5)] * 3), st.booleans(), DTYPES, SEEDS)
def test_linear_equals_naive_twin(sizes, has_bias, dtype, seed):
    (n, c, f), rng = sizes, np.random.default_rng(seed)
    x, weight, dy = normal(rng, (n, c), dtype), normal(rng, (c, f), dtype), normal(rng, (n, f), dtype)
    bias = normal(rng, (f,), dtype) if has_bias else None
    y, cache = linear_forward(x, weight, bias)
    gradients = linear_backward(dy, cache)
    exact = [None if array is None else array.astype(np.float64) for array in (x, weight, bias)]
    expected, twin_cache = reference.linear_forward(*exact)
    expected_gradients = reference.linear_backward(dy.astype(np.float64), twin_cache)
    assert (gradients[2] is None) == (expected_gradients[2] is None) == (not has_bias)
    size = np.abs(x).sum() * np.abs(weight).max() + np.abs(dy).sum() * (np.abs(weight).max() + np.abs(x).max() + 1)
    for actual, truth in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        if truth is not None:
            assert actual.dtype == dtype
            assert_close(actual, truth, scale=size)


@on_every_device
@pytest.mark.parametrize("twin", ["fast", "naive"])
def test_linear_by_hand(twin):
    forward, backward = {
        "fast": (linear_forward, linear_backward),
        "naive": (reference.linear_forward, reference.linear_backward),
    }[twin]
    x, weight = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0, -1.0], [2.0, 5.0, 1.0]])
    y, cache = forward(x, weight, np.array([10.0, 20.0, 30.0]))
    np.testing.assert_array_equal(y, [[15, 30, 31], [21, 40, 31]])
    dx, dweight, dbias = backward(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]]), cache)
    np.testing.assert_array_equal(dx, [[1, 2], [-2, 7]])
    np.testing.assert_array_equal(dweight, [[1, 3, 6], [2, 4, 8]])
    np.testing.assert_array_equal(dbias, [1, 1, 2])  # a sum over the batch, not a mean


def test_initial_weights_are_even_within_one_over_the_root_of_the_inputs():
    layer = Linear(400, 90, rng=np.random.default_rng(1))
    values = layer.weight.data
    assert values.shape == (400, 90)
    assert 0.0495 < np.abs(values).max() <= 0.05  # 1/√400
    assert values.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.02)
    assert np.abs(layer.bias.data).max() <= 0.05
    assert values.dtype == layer.bias.data.dtype == np.float32


def test_multiply_adds_of_resnet18s_classifier():
    assert Linear(512, 1000).multiply_adds((2, 1000)) == 2 * 512_000


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((2, 5), np.float32), ValueError, r"\(N, 3\), got \(2, 5\)"),
        (np.zeros((2, 1, 1, 3), np.float32), ValueError, r"\(N, C\).*\(2, 1, 1, 3\)"),
        (np.zeros((2, 3), np.int32), TypeError, "floating point, got int32"),
        (np.zeros((2, 3)), TypeError, "float32.*float64"),
    ],
)
def test_wrong_input_of_linear_is_named(x, error, words):
    with pytest.raises(error, match=words):
        Linear(3, 4)(x)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3)])
def test_impossible_sizes_of_linear_are_named(sizes):
    with pytest.raises(ValueError, match=f"got {sizes[0]} and {sizes[1]}"):
        Linear(*sizes)


# Flatten


def test_flatten_goes_row_by_row_place_by_place_channels_last():
    x = np.arange(24.0).reshape(2, 2, 3, 2)
    layer = Flatten()
    y = layer(x)
    np.testing.assert_array_equal(y, [np.arange(12.0), np.arange(12.0, 24.0)])
    np.testing.assert_array_equal(layer.backward(y), x)


def test_flatten_of_an_empty_batch_keeps_the_width():
    assert Flatten()(np.zeros((0, 2, 3, 4))).shape == (0, 24)


# Add


@on_every_device
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), DTYPES, SEEDS)
def test_add_equals_naive_twin(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    a, b, dy = (normal(rng, shape, dtype) for _ in range(3))
    np.testing.assert_array_equal(add_forward(a, b), reference.add_forward(a, b))
    for side, expected in zip(add_backward(dy), reference.add_backward(dy), strict=True):
        np.testing.assert_array_equal(side, expected)
        assert side.dtype == dtype


@on_every_device
@pytest.mark.parametrize("backward", [add_backward, reference.add_backward])
def test_both_sides_of_an_add_get_the_whole_gradient(backward):
    for side in backward(np.array([3.0, -4.0])):
        np.testing.assert_array_equal(side, [3, -4])


def test_unlike_shapes_are_not_spread_in_silence():
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\) and \(2, 4, 4, 1\).*projection"):
        Add()(np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 1)))


def test_unlike_dtypes_are_named():
    with pytest.raises(TypeError, match=r"float32.*float64"):
        Add()(np.zeros(3, np.float32), np.zeros(3))
    with pytest.raises(TypeError, match="floating point, got int64"):
        Add()(np.zeros(3, np.int64), np.zeros(3))
