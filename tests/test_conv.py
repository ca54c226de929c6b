"""Convolution: against the naive twin, SciPy and numbers worked out by hand; im2col and its adjoint; bounded memory."""

from __future__ import annotations

import ast
import inspect
import tracemalloc

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import Conv2d, parallel, reference
from nn.conv import (
    col2im,
    conv2d_backward,
    conv2d_forward,
    im2col,
    input_gradient,
    output_size,
    patches,
    unpatched,
)

conv2d_backward, conv2d_forward, patches, unpatched = map(
    everywhere, (conv2d_backward, conv2d_forward, patches, unpatched)
)


@st.composite
def geometries(draw):
    """Shapes of a convolution: x (N, H, W, C), weight (KH, KW, C, F), stride, padding; all sides unlike."""
    n, c, f = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    h, w = (draw(st.integers(max(1, k - 2 * p), 6)) for k, p in zip(kernel, padding, strict=True))
    return (n, h, w, c), (*kernel, c, f), stride, padding


@on_every_device
@given(geometries(), st.booleans(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_equals_naive_twin(geometry, has_bias, dtype, seed):
    shape, weight_shape, stride, padding = geometry
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, shape, dtype), normal(rng, weight_shape, dtype)
    bias = normal(rng, weight_shape[-1:], dtype) if has_bias else None
    y, cache = conv2d_forward(x, weight, bias, stride, padding)
    exact = [None if array is None else array.astype(np.float64) for array in (x, weight, bias)]
    expected, twin_cache = reference.conv2d_forward(*exact, stride, padding)
    dy = normal(rng, y.shape, dtype)
    gradients = conv2d_backward(dy, cache)
    expected_gradients = reference.conv2d_backward(dy.astype(np.float64), twin_cache)

    assert_close(y, expected)
    for gradient, truth in zip(gradients[:2], expected_gradients[:2], strict=True):
        assert_close(gradient, truth)
    if has_bias:
        assert_close(gradients[2], expected_gradients[2], scale=np.abs(dy).sum())
    else:
        assert gradients[2] is None
        assert expected_gradients[2] is None
    assert {array.dtype for array in (y, *gradients) if array is not None} == {np.dtype(dtype)}


NINE = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)  # 1 2 3 / 4 5 6 / 7 8 9
FOUR = np.arange(1.0, 5.0).reshape(2, 2, 1, 1)  # 1 2 / 3 4


@on_every_device
@pytest.mark.parametrize("room", [conv2d_forward, reference.conv2d_forward])
def test_a_picture_of_nine_by_hand(room):
    y, _ = room(NINE, FOUR, np.array([0.5]))
    # 1·1 + 2·2 + 3·4 + 4·5 = 37, and so on
    np.testing.assert_array_equal(y[0, :, :, 0], [[37.5, 47.5], [67.5, 77.5]])


@on_every_device
@pytest.mark.parametrize("twin", ["fast", "naive"])
def test_gradients_of_a_picture_of_nine_by_hand(twin):
    forward, backward = {
        "fast": (conv2d_forward, conv2d_backward),
        "naive": (reference.conv2d_forward, reference.conv2d_backward),
    }[twin]
    _, cache = forward(NINE, FOUR, np.array([0.5]))
    dx, dweight, dbias = backward(FOUR.reshape(1, 2, 2, 1), cache)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 4, 4], [6, 20, 16], [9, 24, 16]])
    np.testing.assert_array_equal(dweight[:, :, 0, 0], [[37, 47], [67, 77]])
    np.testing.assert_array_equal(dbias, [10])


@on_every_device
@pytest.mark.parametrize("room", [conv2d_forward, reference.conv2d_forward])
def test_padding_is_zeros_and_stride_skips_by_hand(room):
    y, _ = room(NINE, np.ones((3, 3, 1, 1)), None, stride=2, padding=1)
    # sums of what lies inside: 1+2+4+5, 2+3+5+6, 4+5+7+8, 5+6+8+9
    np.testing.assert_array_equal(y[0, :, :, 0], [[12, 16], [24, 28]])


@on_every_device
@pytest.mark.parametrize("room", [conv2d_forward, reference.conv2d_forward])
def test_height_comes_before_width(room):
    """A 1×3 kernel on a 3×4 picture, stride (2, 1), padding (0, 1): no two sizes alike."""
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    y, _ = room(x, np.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1), None, (2, 1), (0, 1))
    # rows 0 and 2; e.g. the first place sees 0 | 0 1, the last 10 11 | 0
    np.testing.assert_array_equal(y[0, :, :, 0], [[100, 210, 321, 32], [980, 1098, 1209, 120]])


@on_every_device
@pytest.mark.parametrize("room", [conv2d_forward, reference.conv2d_forward])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 1), (1, 0)), ((2, 3), (2, 1))])
def test_equals_scipy(room, stride, padding, rng):
    signal = pytest.importorskip(
        "scipy.signal", exc_type=ImportError, reason="SciPy, the independent source, is not installed"
    )
    x, weight = normal(rng, (2, 7, 5, 3)), normal(rng, (3, 2, 3, 4))
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    expected = [
        [sum(signal.correlate2d(p[..., c], weight[..., c, f], "valid") for c in range(3))[::sh, ::sw] for f in range(4)]
        for p in padded
    ]  # N × F × (OH, OW)
    y, _ = room(x, weight, None, stride, padding)
    assert_close(y, np.moveaxis(np.array(expected), 1, 3))


@on_every_device
def test_backward_is_the_transposed_map(rng):
    """Convolution is linear in x and in the weight: <conv(x), dy> = <x, dx> = <weight, dweight>."""
    x, weight = normal(rng, (2, 7, 6, 3)), normal(rng, (3, 2, 3, 4))
    y, cache = conv2d_forward(x, weight, None, (2, 1), (1, 1))
    dy = normal(rng, y.shape)
    dx, dweight, _ = conv2d_backward(dy, cache)
    whole = (y * dy).sum()
    assert (x * dx).sum() == pytest.approx(whole, rel=1e-12)
    assert (weight * dweight).sum() == pytest.approx(whole, rel=1e-12)


# im2col


@on_every_device
def test_a_row_of_im2col_is_a_patch_row_by_row_channels_last():
    x = np.arange(24.0).reshape(1, 3, 4, 2)  # place (i, j), channel c: 8i + 2j + c
    cols = patches(x, (2, 2), (1, 2), (0, 0))
    assert cols.shape == (4, 8)  # 2 × 2 places, 2·2·2 numbers
    np.testing.assert_array_equal(cols[0], [0, 1, 2, 3, 8, 9, 10, 11])
    np.testing.assert_array_equal(cols[1], [4, 5, 6, 7, 12, 13, 14, 15])
    np.testing.assert_array_equal(cols[2], [8, 9, 10, 11, 16, 17, 18, 19])


@on_every_device
def test_col2im_counts_how_many_patches_see_each_place():
    counts = unpatched(np.ones((1, 2, 2, 3, 3, 1)), (1, 4, 4, 1), (1, 1), (0, 0))
    np.testing.assert_array_equal(counts[0, :, :, 0], np.outer([1, 2, 2, 1], [1, 2, 2, 1]))


@on_every_device
@given(geometries(), st.integers(0, 2**32 - 1))
def test_col2im_is_the_adjoint_of_im2col(geometry, seed):
    shape, (kh, kw, _, _), stride, padding = geometry
    rng = np.random.default_rng(seed)
    x = normal(rng, shape)
    cols = patches(x, (kh, kw), stride, padding)
    c = normal(rng, cols.shape)
    oh, ow = (output_size(*sizes) for sizes in zip(shape[1:3], (kh, kw), stride, padding, strict=True))
    back = unpatched(c.reshape(shape[0], oh, ow, kh, kw, shape[3]), shape, stride, padding)
    assert back.shape == shape
    assert (cols * c).sum() == pytest.approx((x * back).sum(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [(224, 7, 2, 3, 112), (112, 3, 2, 1, 56), (56, 1, 2, 0, 28), (5, 2, 3, 0, 2), (6, 3, 2, 0, 2), (3, 3, 1, 0, 1)],
)
def test_output_size_rounds_down(size, kernel, stride, padding, expected):
    assert output_size(size, kernel, stride, padding) == expected


# Slices and memory


@pytest.mark.parametrize("slice_bytes", [1, 20_000, 2**40])  # one picture at a time, a few, all at once
@pytest.mark.parametrize("cores", [1, 2, 3])  # seven pictures among three threads: 2, 2, 3
def test_slices_and_threads_change_nothing(slice_bytes, cores, monkeypatch, rng):
    x, weight, bias = normal(rng, (7, 6, 5, 3)), normal(rng, (3, 3, 3, 4)), normal(rng, (4,))
    dy = normal(rng, (7, 3, 5, 4))
    expected, twin_cache = reference.conv2d_forward(x, weight, bias, (2, 1), 1)
    monkeypatch.setattr(parallel, "CPU_SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    monkeypatch.setattr(parallel, "THREADING_BYTES", 0)
    y, cache = conv2d_forward(x, weight, bias, (2, 1), 1)
    assert_close(y, expected)
    for gradient, truth in zip(conv2d_backward(dy, cache), reference.conv2d_backward(dy, twin_cache), strict=True):
        assert_close(gradient, truth)


def peak_bytes(work) -> int:
    """Return the most memory that ``work`` held at one moment on top of what was there."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_patches_are_never_built_for_the_whole_batch(rng, monkeypatch):
    x, weight = normal(rng, (16, 32, 32, 32), np.float32), normal(rng, (3, 3, 32, 32), np.float32)
    all_patches = 9 * x.nbytes  # 18.9 MB
    y, cache = conv2d_forward(x, weight, None, 1, 1)
    # What must be there: one output as large as x and, in each thread, a slice's patches (and in backward their
    # gradient, within the same bound), with room for one slice's padded pictures and products.
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    bound = x.nbytes + 2 * 2 * parallel.CPU_SLICE_BYTES
    assert bound < 0.6 * all_patches
    assert peak_bytes(lambda: conv2d_forward(x, weight, None, 1, 1)) < bound
    assert peak_bytes(lambda: conv2d_backward(y, cache)) < bound


def test_keeps_its_input_and_not_the_patches(rng):
    layer = Conv2d(3, 4, 3, padding=1, rng=rng)
    x = normal(rng, (2, 6, 5, 3), np.float32)
    layer(x)
    kept = [value for value in layer.kept() if isinstance(value, np.ndarray)]
    assert [array is x or array is layer.weight.data for array in kept] == [True, True]


def test_the_path_of_im2col_stays_a_lesson():
    """Forward and backward together, with all that they are made of: fewer than 40 lines of code."""
    path = (im2col, col2im, conv2d_forward, conv2d_backward, input_gradient)
    lines = set()
    for function in path:
        definition = ast.parse(inspect.getsource(function)).body[0]
        lines |= {(function, line) for part in definition.body[1:] for line in code_lines(part)}  # [0] is the docstring
    assert 20 < len(lines) < 40


def code_lines(part: ast.stmt) -> set[int]:
    """Lines on which something of the syntax tree stands; comments and empty lines do not."""
    return {node.lineno for node in ast.walk(part) if hasattr(node, "lineno")}


# The layer


def test_initial_weights_are_he_normal_over_the_outputs():
    slope = 0.5
    layer = Conv2d(40, 60, (3, 5), negative_slope=slope, rng=np.random.default_rng(1))
    expected = np.sqrt(2 / (1 + slope**2) / (3 * 5 * 60))  # gain² / fan-out
    values = layer.weight.data
    assert values.shape == (3, 5, 40, 60)
    assert values.std() == pytest.approx(expected, rel=0.02)  # 36,000 numbers: one standard error is 0.4 %
    assert abs(values.mean()) < 4 * expected / np.sqrt(values.size)
    inside = (np.abs(values) < expected).mean()
    assert inside == pytest.approx(0.6827, abs=0.01)  # a normal distribution, not an even one
    assert np.abs(layer.bias.data).max() <= 1 / np.sqrt(3 * 5 * 40)


def test_one_seed_gives_the_same_weights_in_float32():
    first, second = (Conv2d(3, 4, 3, rng=np.random.default_rng(7)) for _ in range(2))
    other = Conv2d(3, 4, 3, rng=np.random.default_rng(8))
    np.testing.assert_array_equal(first.weight.data, second.weight.data)
    np.testing.assert_array_equal(first.bias.data, second.bias.data)
    assert not np.array_equal(first.weight.data, other.weight.data)
    assert first.weight.data.dtype == first.bias.data.dtype == np.float32


def test_multiply_adds_of_resnets_first_convolution():
    layer = Conv2d(3, 64, 7, 2, 3, bias=False)
    assert layer.multiply_adds((1, 112, 112, 64)) == 112 * 112 * 64 * 7 * 7 * 3 == 118_013_952


# Errors


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((2, 8, 8, 5), np.float32), ValueError, ["3 channels", "(2, 8, 8, 5)", "channels-last"]),
        (np.zeros((2, 3, 8, 8), np.float32), ValueError, ["3 channels", "(2, 3, 8, 8)", "channels-last"]),
        (np.zeros((8, 8, 3), np.float32), ValueError, ["(N, H, W, C)", "(8, 8, 3)"]),
        (np.zeros((2, 8, 8, 3), np.uint8), TypeError, ["floating point", "uint8"]),
        (np.zeros((2, 8, 8, 3), np.float64), TypeError, ["float32", "float64", "astype"]),
        (np.zeros((2, 2, 9, 3), np.float32), ValueError, ["5×3", "2×9", "padding 1, 0"]),
        (np.zeros((2, 9, 2, 3), np.float32), ValueError, ["5×3", "9×2", "padding 1, 0"]),
        (np.zeros((0, 8, 8, 3), np.float32), ValueError, ["at least one picture", "(0, 8, 8, 3)"]),
        ([[1.0]], TypeError, ["array", "list"]),
    ],
)
def test_wrong_input_is_named(x, error, words):
    layer = Conv2d(3, 4, (5, 3), padding=(1, 0))
    with pytest.raises(error) as caught:
        layer(x)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel_size": 0}, ["kernel_size", "0"]),
        ({"kernel_size": (3, 3, 3)}, ["kernel_size", "(3, 3, 3)"]),
        ({"kernel_size": 3, "stride": 0}, ["stride", ">= 1", "0"]),
        ({"kernel_size": 3, "stride": (1, 2.5)}, ["stride", "2.5"]),
        ({"kernel_size": 3, "padding": (0, -1)}, ["padding", ">= 0", "-1"]),
        ({"kernel_size": 3, "in_channels": 0}, ["channel", "0"]),
        ({"kernel_size": 3, "out_channels": -2}, ["channel", "-2"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match="expected") as caught:
        Conv2d(**{"in_channels": 3, "out_channels": 4} | settings)
    assert [word for word in words if word not in str(caught.value)] == []
