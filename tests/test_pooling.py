"""Max pooling and global average pooling: against the naive twins and numbers worked out by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import GlobalAvgPool2d, MaxPool2d, reference
from nn.pooling import global_avg_pool_backward, global_avg_pool_forward, max_pool2d_backward, max_pool2d_forward

global_avg_pool_backward, global_avg_pool_forward, max_pool2d_backward, max_pool2d_forward = map(
    everywhere, (global_avg_pool_backward, global_avg_pool_forward, max_pool2d_backward, max_pool2d_forward)
)

DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)
FAST_AND_NAIVE = pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (max_pool2d_forward, max_pool2d_backward),
        (reference.max_pool2d_forward, reference.max_pool2d_backward),
    ],
    ids=["fast", "naive"],
)


@st.composite
def windows(draw):
    """Draw a picture's shape, and kernel, stride (or None) and padding, unlike in height and width."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    h, w = (draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True))
    return (draw(st.integers(1, 3)), h, w, draw(st.integers(1, 3))), kernel, stride, padding


@on_every_device
@given(windows(), DTYPES, SEEDS, st.booleans())
def test_max_pool_equals_naive_twin(window, dtype, seed, ties):
    shape, kernel, stride, padding = window
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 1, shape).astype(dtype) if ties else normal(rng, shape, dtype) - dtype(1)
    y, cache = max_pool2d_forward(x, kernel, stride, padding)
    expected, twin_cache = reference.max_pool2d_forward(x, kernel, stride, padding)
    dy = normal(rng, y.shape, dtype)
    dx = max_pool2d_backward(dy, cache)
    np.testing.assert_array_equal(y, expected)
    assert_close(dx, reference.max_pool2d_backward(dy.astype(np.float64), twin_cache))
    assert y.dtype == dx.dtype == dtype


@on_every_device
@FAST_AND_NAIVE
def test_max_pool_by_hand(forward, backward):
    x = np.array([[1.0, 5, 2, 0], [3, 4, 8, 7], [6, 9, -1, -2]]).reshape(1, 3, 4, 1)
    y, cache = forward(x, 2, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[5, 8, 8], [9, 9, 8]])
    dx = backward(np.array([[1.0, 10, 100], [1000, 10000, 100000]]).reshape(1, 2, 3, 1), cache)
    # 8 wins three windows, 9 two: their gradients add up
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 1, 0, 0], [0, 0, 100110, 0], [0, 11000, 0, 0]])


@on_every_device
@FAST_AND_NAIVE
def test_the_frame_is_minus_infinity_and_never_wins(forward, backward):
    """All values negative, as LeakyReLU leaves them: a frame of zeros would beat them at the border."""
    x = -np.arange(1.0, 10.0).reshape(1, 3, 3, 1)  # −1 −2 −3 / −4 −5 −6 / −7 −8 −9
    y, cache = forward(x, 3, 2, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[-1, -2], [-4, -5]])
    dx = backward(np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1), cache)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 2, 0], [3, 4, 0], [0, 0, 0]])


@on_every_device
@FAST_AND_NAIVE
def test_of_equals_the_first_in_row_major_order_gets_the_gradient(forward, backward):
    x = np.array([[0.0, 7, 7], [7, 7, 0]]).reshape(1, 2, 3, 1)
    _, cache = forward(x, (2, 3))
    dx = backward(np.full((1, 1, 1, 1), 3.0), cache)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 3, 0], [0, 0, 0]])


@on_every_device
@FAST_AND_NAIVE
def test_places_after_the_last_whole_window_are_left_out(forward, backward):
    x = np.arange(25.0).reshape(1, 5, 5, 1)
    y, cache = forward(x, 2)  # stride is the window: the fifth row and column are in no window
    np.testing.assert_array_equal(y[0, :, :, 0], [[6, 8], [16, 18]])
    dx = backward(np.ones((1, 2, 2, 1)), cache)
    assert dx.shape == x.shape
    assert dx[:, 4].sum() == dx[:, :, 4].sum() == 0
    assert dx.sum() == 4


@on_every_device
def test_windows_of_more_than_256_places_find_their_winner():
    """A byte is too small to name the winner of 17 × 17 = 289 places."""
    x = np.zeros((1, 17, 17, 1))
    x[0, 16, 15, 0] = 1.0  # place number 287
    _, cache = max_pool2d_forward(x, 17)
    np.testing.assert_array_equal(max_pool2d_backward(np.full((1, 1, 1, 1), 5.0), cache), 5 * x)


@on_every_device
def test_nan_stays_visible():
    x = np.zeros((1, 4, 4, 1))
    x[0, 0, 0, 0] = np.nan
    y, _ = max_pool2d_forward(x, 2)
    np.testing.assert_array_equal(np.isnan(y[0, :, :, 0]), [[True, False], [False, False]])


def test_keeps_one_byte_a_window(rng):
    layer = MaxPool2d(3, 2, 1)
    y = layer(normal(rng, (2, 7, 5, 3), np.float32))
    arrays = [value for value in layer.kept() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == y.size


@on_every_device
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    DTYPES,
    SEEDS,
)
def test_global_average_equals_naive_twin(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, dy = normal(rng, shape, dtype), normal(rng, (shape[0], 1, 1, shape[3]), dtype)
    (y, cache), (expected, twin_cache) = global_avg_pool_forward(x), reference.global_avg_pool_forward(x)
    dx = global_avg_pool_backward(dy, cache)
    assert_close(y, expected, scale=np.abs(x).max())
    assert_close(dx, reference.global_avg_pool_backward(dy, twin_cache))
    assert y.dtype == dx.dtype == dtype


@on_every_device
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (global_avg_pool_forward, global_avg_pool_backward),
        (reference.global_avg_pool_forward, reference.global_avg_pool_backward),
    ],
    ids=["fast", "naive"],
)
def test_global_average_by_hand(forward, backward):
    x = np.array([[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50], [9, 90]]).reshape(1, 2, 3, 2)
    y, cache = forward(x)
    np.testing.assert_allclose(y, np.array([4.0, 40.0]).reshape(1, 1, 1, 2), rtol=1e-15)
    dx = backward(np.array([6.0, -12.0]).reshape(1, 1, 1, 2), cache)
    np.testing.assert_allclose(dx, np.broadcast_to([1.0, -2.0], x.shape), rtol=1e-15)


# Errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel_size": 3, "padding": 2}, ["half the window", "3×3", "2, 2"]),
        ({"kernel_size": (4, 1), "padding": (2, 1)}, ["half the window", "4×1", "2, 1"]),
        ({"kernel_size": (7, 2)}, ["7×2", "5×4"]),
        ({"kernel_size": (2, 5)}, ["2×5", "5×4"]),
    ],
)
def test_windows_that_do_not_fit_are_named(settings, words):
    with pytest.raises(ValueError, match="expected") as caught:
        MaxPool2d(**settings)(np.zeros((1, 5, 4, 1)))
    assert [word for word in words if word not in str(caught.value)] == []


def test_padding_of_exactly_half_a_window_is_welcome():
    y = MaxPool2d((4, 2), 1, (2, 1))(np.full((1, 5, 4, 1), -3.0))
    np.testing.assert_array_equal(y, np.full((1, 6, 5, 1), -3.0))


@pytest.mark.parametrize(("name", "value"), [("kernel_size", 0), ("stride", 0), ("padding", -1), ("stride", (1, 2, 3))])
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"expected {name} .* got {re.escape(str(value))}"):
        MaxPool2d(**{"kernel_size": 2, name: value})


@pytest.mark.parametrize("layer", [MaxPool2d(2), GlobalAvgPool2d()], ids=repr)
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((8, 8, 3)), ValueError, r"\(N, H, W, C\).*\(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), TypeError, "floating point, got uint8"),
    ],
)
def test_wrong_input_is_named(layer, x, error, words):
    with pytest.raises(error, match=words):
        layer(x)


def test_in_inference_nobody_asks_who_won(rng):
    x = normal(rng, (2, 7, 6, 3))
    layer = MaxPool2d(3, 2, 1)
    expected = layer(x)
    layer.inference()
    np.testing.assert_array_equal(layer(x), expected)
    assert layer.kept() is None
    assert max_pool2d_forward(x, 3, 2, 1, needs_winner=False)[1] is None
