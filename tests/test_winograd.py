"""Winograd's convolution: against the naive twin, against exact fractions, as an adjoint, and where it is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import arrays_of, assert_close, frozen, normal, with_holes
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import Conv2d, parallel, reference
from nn.conv import ConvCache, choose_algorithm, conv2d_backward, conv2d_forward
from nn.winograd import WinogradCache, one_dimension, winograd_backward, winograd_forward

winograd_backward, winograd_forward = map(everywhere, (winograd_backward, winograd_forward))

ROUNDING = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}  # of the largest number


@st.composite
def geometries(draw):
    """Shapes of x (N, H, W, C) and weight (3, 3, C, F), and a padding: odd, oblong, smaller and larger than a tile."""
    n, c, f = (draw(st.integers(1, 3)) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    h, w = (draw(st.integers(max(1, 3 - 2 * p), 10)) for p in padding)
    return (n, h, w, c), (3, 3, c, f), padding


@on_every_device
@given(geometries(), st.booleans(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_equals_naive_twin(geometry, has_bias, dtype, seed):
    shape, weight_shape, padding = geometry
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, shape, dtype), normal(rng, weight_shape, dtype)
    bias = normal(rng, weight_shape[-1:], dtype) if has_bias else None
    y, cache = winograd_forward(x, weight, bias, padding)
    exact = [None if array is None else array.astype(np.float64) for array in (x, weight, bias)]
    expected, twin_cache = reference.conv2d_forward(*exact, 1, padding)
    dy = normal(rng, y.shape, dtype)
    gradients = winograd_backward(dy, cache)
    truths = reference.conv2d_backward(dy.astype(np.float64), twin_cache)

    for ours, truth in zip((y, *gradients), (expected, *truths), strict=True):
        if truth is None:
            assert ours is None
            continue
        assert ours.dtype == dtype
        assert ours.shape == truth.shape
        # bias sums have no Winograd in them: their terms may cancel, so they are measured by their terms
        scale = np.abs(dy).sum() if truth.ndim == 1 else np.abs(truth).max()
        np.testing.assert_allclose(ours, truth, rtol=0, atol=ROUNDING[ours.dtype] * scale)


@pytest.mark.parametrize("shape", [(4, 28, 28, 64), (3, 14, 15, 128), (5, 7, 7, 256), (2, 4, 3, 512), (9, 1, 2, 64)])
def test_float32_keeps_five_digits_at_resnets_sizes(shape, rng):
    """Against im2col in float64, which has been tested against the naive twin."""
    x, weight = normal(rng, shape, np.float32), normal(rng, (3, 3, shape[3], 48), np.float32)
    y, cache = winograd_forward(x, weight, None, (1, 1))
    truth, true_cache = conv2d_forward(x.astype(np.float64), weight.astype(np.float64), None, 1, 1)
    dy = normal(rng, y.shape, np.float32)
    pairs = zip(
        (y, *winograd_backward(dy, cache)), (truth, *conv2d_backward(dy.astype(np.float64), true_cache)), strict=True
    )
    errors = [np.abs(ours - exact).max() / np.abs(exact).max() for ours, exact in pairs if ours is not None]
    assert len(errors) == 3
    assert max(errors) < 1e-5  # OpenBLAS's kernels for one CPU or another come out between 2e-6 and 6e-6


def test_four_outputs_of_one_dimension_by_hand():
    """d = 1 2 3 4 5 6 and g = 1 10 100: 321, 432, 543, 654."""
    b, g, a = one_dimension()
    assert [matrix.shape for matrix in (b, g, a)] == [(6, 6), (6, 3), (4, 6)]
    y = a @ ((g @ [1, 10, 100]) * (b @ [1, 2, 3, 4, 5, 6]))
    np.testing.assert_allclose(y, [321, 432, 543, 654], rtol=1e-13)


@on_every_device
def test_backward_is_the_transposed_map(rng):
    """Linear in x and in the weight: <conv(x), dy> = <x, dx> = <weight, dweight>."""
    x, weight = normal(rng, (3, 9, 6, 2)), normal(rng, (3, 3, 2, 5))
    y, cache = winograd_forward(x, weight, None, (1, 0))
    dy = normal(rng, y.shape)
    dx, dweight, _ = winograd_backward(dy, cache)
    whole = (y * dy).sum()
    assert (x * dx).sum() == pytest.approx(whole, rel=1e-11)
    assert (weight * dweight).sum() == pytest.approx(whole, rel=1e-11)


@pytest.mark.parametrize("slice_bytes", [1, 30_000, 2**40])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_slices_and_threads_change_nothing(slice_bytes, cores, monkeypatch, rng):
    x, weight, bias = normal(rng, (7, 6, 5, 3)), normal(rng, (3, 3, 3, 4)), normal(rng, (4,))
    dy = normal(rng, (7, 6, 5, 4))
    expected, twin_cache = reference.conv2d_forward(x, weight, bias, 1, 1)
    monkeypatch.setattr(parallel, "CPU_SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    monkeypatch.setattr(parallel, "THREADING_BYTES", 0)
    y, cache = winograd_forward(x, weight, bias, (1, 1))
    assert_close(y, expected)
    for ours, truth in zip(winograd_backward(dy, cache), reference.conv2d_backward(dy, twin_cache), strict=True):
        assert_close(ours, truth)


def test_inputs_stay_as_they_are_and_may_have_holes(rng):
    x, weight = with_holes(normal(rng, (2, 6, 7, 3))), frozen(normal(rng, (3, 3, 3, 4)))
    x.flags.writeable = False
    y, cache = winograd_forward(x, weight, None, (1, 1))
    assert_close(y, reference.conv2d_forward(x.copy(), weight, None, 1, 1)[0])
    dy = with_holes(normal(rng, y.shape))
    dy.flags.writeable = False
    dx, dweight, _ = winograd_backward(dy, cache)
    _, twin_cache = reference.conv2d_forward(x.copy(), weight, None, 1, 1)
    truth = reference.conv2d_backward(dy.copy(), twin_cache)
    assert_close(dx, truth[0])
    assert_close(dweight, truth[1])


def test_results_are_nobodys_buffer(rng):
    """A second call must not change what the first returned."""
    weight = normal(rng, (3, 3, 3, 4))
    first, cache = winograd_forward(normal(rng, (2, 6, 7, 3)), weight, None, (1, 1))
    dx, dweight, _ = winograd_backward(normal(rng, first.shape), cache)
    before = [array.copy() for array in (first, dx, dweight)]
    second, cache = winograd_forward(normal(rng, (2, 6, 7, 3)), weight, None, (1, 1))
    winograd_backward(normal(rng, second.shape), cache)
    for array, copy in zip((first, dx, dweight), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_keeps_its_input_only(rng):
    layer = Conv2d(3, 4, 3, padding=1, algorithm="winograd", rng=rng)
    x = normal(rng, (2, 6, 5, 3), np.float32)
    layer(x)
    assert isinstance(layer.kept(), WinogradCache)
    assert [array is x or array is layer.weight.data for array in arrays_of(layer.kept())] == [True, True]


def test_the_first_layer_may_leave_out_its_input_gradient(rng):
    for algorithm in ("im2col", "winograd"):
        layer = Conv2d(3, 4, 3, padding=1, algorithm=algorithm, rng=np.random.default_rng(1))
        x, dy = normal(rng, (2, 6, 5, 3), np.float32), normal(rng, (2, 6, 5, 4), np.float32)
        layer(x)
        layer.backward(dy)
        expected = [parameter.grad.copy() for parameter in layer.parameters()]
        layer.zero_grad()
        layer(x)
        assert layer.backward(dy, needs_dx=False) is None
        for parameter, truth in zip(layer.parameters(), expected, strict=True):
            np.testing.assert_array_equal(parameter.grad, truth)


@pytest.mark.parametrize(
    ("x", "weight", "stride", "expected"),
    [
        ((32, 28, 28, 64), (3, 3, 64, 64), (1, 1), "winograd"),
        ((32, 7, 7, 256), (3, 3, 256, 256), (1, 1), "winograd"),
        ((32, 28, 28, 64), (3, 3, 64, 128), (2, 2), "im2col"),  # a stride
        ((32, 56, 56, 3), (7, 7, 3, 64), (1, 1), "im2col"),  # another kernel
        ((32, 28, 28, 3), (3, 3, 3, 64), (1, 1), "im2col"),  # few channels
        ((4, 7, 7, 512), (3, 3, 512, 512), (1, 1), "im2col"),  # few tiles, large kernel
        ((64, 2, 2, 64), (3, 3, 64, 64), (1, 1), "im2col"),  # three quarters of each tile lie outside
    ],
)
def test_auto_chooses_by_shape(x, weight, stride, expected):
    padding = (weight[0] // 2, weight[1] // 2)
    assert choose_algorithm(x, weight, stride, padding) == expected


@pytest.mark.parametrize(("algorithm", "cache"), [("im2col", ConvCache), ("winograd", WinogradCache)])
def test_the_layer_does_as_it_is_told(algorithm, cache, rng):
    layer = Conv2d(2, 2, 3, padding=1, algorithm=algorithm, rng=rng)
    layer(normal(rng, (1, 4, 4, 2), np.float32))
    assert isinstance(layer.kept(), cache)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "fft"}, ["auto, im2col, winograd", "fft"]),
        ({"algorithm": "winograd", "kernel_size": (3, 2)}, ["3×3 kernel", "3×2", "im2col"]),
        ({"algorithm": "winograd", "stride": 2}, ["stride 1", "(2, 2)"]),
    ],
)
def test_what_cannot_be_is_named(settings, words):
    with pytest.raises(ValueError, match=r"expected|needs") as caught:
        Conv2d(2, 3, **{"kernel_size": 3} | settings)
    assert [word for word in words if word not in str(caught.value)] == []


def test_wrong_input_is_named_as_by_im2col():
    layer = Conv2d(2, 3, 3, algorithm="winograd")
    with pytest.raises(ValueError, match="2 channels last"):
        layer(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="as large as the kernel 3×3, got 2×8"):
        layer(np.zeros((1, 2, 8, 2), np.float32))
    layer(np.zeros((1, 8, 8, 2), np.float32))
    with pytest.raises(ValueError, match=r"output's shape \(1, 6, 6, 3\), got \(1, 1, 1, 3\)"):
        layer.backward(np.zeros((1, 1, 1, 3), np.float32))
