"""Batch norm folded into the convolution before it: the same outputs, a model of its own, nothing kept."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, normal
from small_networks import with_statistics

from nn import BatchNorm2d, Conv2d, Identity, LeakyReLU, Sequential
from resnet.models import make_model


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18", "resnet20", "plain20"])
def test_a_fused_network_says_the_same(name, dtype, rng):
    model = with_statistics(make_model(name, 7, 2, rng=rng), rng).astype(np.float64).eval()
    x = normal(rng, (2, 40, 33, 2))
    expected = model(x)
    fused = model.astype(dtype).fuse()
    assert not [name for name, module in fused.named_modules() if isinstance(module, BatchNorm2d)]
    y = fused(x.astype(dtype))
    assert y.dtype == dtype
    tolerance = 1e-10 if dtype == np.float64 else 1e-3  # untrained logits of a deep net: rounding adds up
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_a_folded_convolution_by_hand():
    """3·x + 1, normalised with mean 2 and variance 4, scaled by 8 and shifted by 5: 4·(3·x + 1 − 2) + 5 = 12·x + 1."""
    model = Sequential(Conv2d(1, 1, 1), BatchNorm2d(1, eps=0.0)).astype(np.float64)
    values = {
        "0.weight": 3.0,
        "0.bias": 1.0,
        "1.weight": 8.0,
        "1.bias": 5.0,
        "1.running_mean": 2.0,
        "1.running_var": 4.0,
    }
    model.load_state_dict({name: np.full(model.state_dict()[name].shape, value) for name, value in values.items()})
    state = model.fuse().state_dict()
    assert {name: array.item() for name, array in state.items()} == {"0.weight": 12.0, "0.bias": 1.0}


def test_the_model_itself_stays_as_it_is_and_can_go_on_training(rng):
    model = with_statistics(make_model("resnet20", 3, 1, rng=rng), rng).astype(np.float32).train()
    x = normal(rng, (3, 8, 8, 1), np.float32)
    model(x)
    before = model.state_dict()
    fused = model.fuse()
    fused.conv1.weight.data[:] = 0
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert model.training
    model.backward(np.ones((3, 3), np.float32))  # what it had kept is still there
    assert all(parameter._grad is None for parameter in model.fuse().parameters())  # gradients are not copied
    assert not fused.training
    fused(x)
    assert all(module.kept() is None for _, module in fused.named_modules())


def test_only_a_norm_right_behind_its_convolution_is_folded(rng):
    model = Sequential(
        BatchNorm2d(2), Conv2d(2, 3, 1, rng=rng), LeakyReLU(), BatchNorm2d(3), Conv2d(3, 2, 1, bias=False, rng=rng)
    )
    model = with_statistics(model, rng).astype(np.float64)
    x = normal(rng, (2, 3, 4, 2))
    fused = model.fuse()
    assert not [module for _, module in fused.named_modules() if isinstance(module, Identity)]
    assert_close(fused(x), model.eval()(x))


def test_identity_hands_on(rng):
    x = normal(rng, (2, 3))
    assert Identity()(x) is x
    assert Identity().backward(x) is x
