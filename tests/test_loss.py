"""Softmax cross-entropy: against the naive twin, SciPy, PyTorch and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import assert_close, normal
from devices import everywhere, on_every_device
from hypothesis import given
from hypothesis import strategies as st

from nn import SoftmaxCrossEntropy, reference
from nn.loss import check_labels, cross_entropy_backward, cross_entropy_forward

cross_entropy_backward, cross_entropy_forward = map(everywhere, (cross_entropy_backward, cross_entropy_forward))

FAST_AND_NAIVE = pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (cross_entropy_forward, cross_entropy_backward),
        (reference.cross_entropy_forward, reference.cross_entropy_backward),
    ],
    ids=["fast", "naive"],
)


@on_every_device
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.1, 0.7]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_equals_naive_twin(n, k, smoothing, dtype, seed):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * normal(rng, (n, k), dtype), rng.integers(0, k, n)
    loss, cache = cross_entropy_forward(logits, labels, smoothing)
    dlogits = cross_entropy_backward(cache, 0.7)
    expected, twin_cache = reference.cross_entropy_forward(logits.astype(np.float64), labels, smoothing)
    assert_close(loss, expected, scale=np.abs(logits).max())
    assert_close(dlogits, reference.cross_entropy_backward(twin_cache, 0.7), scale=1.0)
    assert loss.shape == ()
    assert loss.dtype == dlogits.dtype == dtype


@on_every_device
@FAST_AND_NAIVE
def test_two_classes_by_hand(forward, backward):
    """Logits (0, ln 3) mean probabilities (1/4, 3/4)."""
    loss, cache = forward(np.array([[0.0, math.log(3)]]), [0])
    assert loss == pytest.approx(math.log(4), rel=1e-15)
    np.testing.assert_allclose(backward(cache), [[-3 / 4, 3 / 4]], rtol=1e-14)


@on_every_device
@FAST_AND_NAIVE
def test_the_loss_is_a_mean_over_the_batch(forward, backward):
    loss, cache = forward(np.array([[0.0, math.log(3)], [0.0, math.log(3)]]), [0, 1])
    assert loss == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, rel=1e-15)
    np.testing.assert_allclose(backward(cache), [[-3 / 8, 3 / 8], [1 / 8, -1 / 8]], rtol=1e-14)


@on_every_device
@FAST_AND_NAIVE
def test_label_smoothing_by_hand(forward, backward):
    """Smoothing 0.2 over two classes makes the target (0.9, 0.1): the true class gets a share, too."""
    loss, cache = forward(np.array([[0.0, math.log(3)]]), [0], 0.2)
    assert loss == pytest.approx(-0.9 * math.log(1 / 4) - 0.1 * math.log(3 / 4), rel=1e-15)
    np.testing.assert_allclose(backward(cache), [[1 / 4 - 0.9, 3 / 4 - 0.1]], rtol=1e-14)


@on_every_device
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_ignorant_network_starts_at_the_logarithm_of_the_classes(smoothing):
    loss, _ = cross_entropy_forward(np.zeros((3, 40), np.float32), [0, 17, 39], smoothing)
    assert loss == pytest.approx(math.log(40), rel=1e-6)


@on_every_device
@pytest.mark.parametrize("forward", [cross_entropy_forward, reference.cross_entropy_forward])
def test_equals_scipy(forward, rng):
    special = pytest.importorskip(
        "scipy.special", exc_type=ImportError, reason="SciPy, the independent source, is not installed"
    )
    logits, labels = 5 * normal(rng, (6, 7)), rng.integers(0, 7, 6)
    loss, _ = forward(logits, labels)
    assert loss == pytest.approx(-special.log_softmax(logits, axis=1)[np.arange(6), labels].mean(), rel=1e-13)


@on_every_device
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_pytorch(smoothing, rng):
    torch = pytest.importorskip(
        "torch", exc_type=ImportError, reason="PyTorch, the independent source, is not installed"
    )
    logits, labels = 5 * normal(rng, (6, 7)), rng.integers(0, 7, 6)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(labels), label_smoothing=smoothing)
    expected.backward()
    layer = SoftmaxCrossEntropy(smoothing)
    assert layer(logits, labels) == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(layer.backward(), tensor.grad.numpy(), rtol=1e-12, atol=1e-15)


@on_every_device
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_neither_overflow_nor_vanish(dtype):
    logits = np.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss, cache = cross_entropy_forward(logits, [0, 2])
        dlogits = cross_entropy_backward(cache)
    assert loss == pytest.approx(1e4)  # (0 + 2e4) / 2
    np.testing.assert_allclose(dlogits, [[0, 0, 0], [0.5, 0, -0.5]], atol=1e-12)


@on_every_device
def test_a_constant_added_to_all_logits_changes_nothing(rng):
    logits, labels = normal(rng, (4, 5)), [0, 4, 2, 2]
    plain, lifted = (cross_entropy_forward(z, labels, 0.1)[0] for z in (logits, logits + 1000))
    assert lifted == pytest.approx(plain, rel=1e-11)


@on_every_device
def test_gradients_of_a_picture_add_up_to_zero(rng):
    _, cache = cross_entropy_forward(normal(rng, (4, 5)), [0, 4, 2, 2], 0.1)
    np.testing.assert_allclose(cross_entropy_backward(cache).sum(axis=1), 0, atol=1e-16)


@pytest.mark.parametrize("dloss", [1.0, np.float64(1.0), np.ones(()), np.float32(1.0)])
def test_an_upstream_of_any_dtype_leaves_float32(dloss, rng):
    layer = SoftmaxCrossEntropy(np.float64(0.1))
    layer(normal(rng, (4, 5), np.float32), [0, 4, 2, 2])
    assert layer.backward(dloss).dtype == np.float32


# Errors


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        ([0, 5, 1], ValueError, ["0 to 4", "5 at position 1", "1 out of range"]),
        ([0, 2, -1], ValueError, ["0 to 4", "-1 at position 2", "1 out of range"]),
        ([40, -3, 99], ValueError, ["0 to 4", "40 at position 0", "3 out of range"]),
        ([0, 1], ValueError, ["3 labels", "(2,)"]),
        ([[0], [1], [2]], ValueError, ["3 labels", "(3, 1)"]),
        ([0.0, 1.0, 2.0], TypeError, ["integer", "float64"]),
        ([True, False, True], TypeError, ["integer", "bool"]),
    ],
)
def test_wrong_labels_are_named(labels, error, words):
    with pytest.raises(error) as caught:
        SoftmaxCrossEntropy()(np.zeros((3, 5)), labels)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("labels", [[0, 4, 2], (0, 4, 2), np.array([0, 4, 2], np.uint8), np.array([0, 4, 2], np.int32)])
def test_any_kind_of_integer_label_is_welcome(labels):
    np.testing.assert_array_equal(check_labels(labels, 3, 5), [0, 4, 2])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2, float("nan")])
def test_smoothing_out_of_range_is_named(smoothing):
    for make in (SoftmaxCrossEntropy, lambda s: cross_entropy_forward(np.zeros((1, 2)), [0], s)):
        with pytest.raises(ValueError, match=f"from 0 to below 1, got {smoothing}"):
            make(smoothing)


@pytest.mark.parametrize(
    ("logits", "error", "words"),
    [
        (np.zeros(5), ValueError, r"\(N, C\).*\(5,\)"),
        (np.zeros((1, 5), np.int64), TypeError, "logits in floating point, got int64"),
        ([[0.0, 1.0]], TypeError, "array, got list"),
    ],
)
def test_wrong_logits_are_named(logits, error, words):
    with pytest.raises(error, match=words):
        SoftmaxCrossEntropy()(logits, [0])
