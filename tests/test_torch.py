"""Equality with PyTorch: single layers against torch.nn.functional, whole networks against their twins.

Without PyTorch all of this file is skipped, and ``test_golden.py`` compares with what PyTorch once wrote to files.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import normal
from experiment import SMALL, TOLERANCE, OurNetwork, Settings, assert_agree, relative_error, run_experiment

torch = pytest.importorskip(
    "torch", exc_type=ImportError, reason="PyTorch is not installed: the golden files keep this check alive"
)

from torch.nn import functional  # noqa: E402
from torch_twin import TorchNetwork  # noqa: E402

from nn import BatchNorm2d, Conv2d, GlobalAvgPool2d, LeakyReLU, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Keep PyTorch on one thread, as conftest.py keeps NumPy: the nets are small, and order of summing stays fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Single layers. Ours are (N, H, W, C), PyTorch's (N, C, H, W).


def to_torch(array):
    """An array as a leaf tensor that wants its gradient; four axes are turned to PyTorch's order."""
    turned = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array  # (N, H, W, C) -> (N, C, H, W)
    return torch.tensor(np.ascontiguousarray(turned), requires_grad=True)


def to_numpy(tensor):
    """The way back."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array  # (N, C, H, W) -> (N, H, W, C)


def assert_layer_equals(layer, function, x, rng, parameters=()):
    """Compare output, input gradient and the gradients of ``parameters``, PyTorch tensors by our names."""
    theirs = to_torch(x)
    expected = function(theirs)
    y = layer(x)
    dy = normal(rng, y.shape)
    expected.backward(to_torch(dy).detach())
    dx = layer.backward(dy)
    pairs = {"y": (y, to_numpy(expected)), "dx": (dx, to_numpy(theirs.grad))}
    pairs |= {name: (layer.grad_dict()[name], tensor.grad.numpy()) for name, tensor in dict(parameters).items()}
    errors = {name: relative_error(ours, truth) for name, (ours, truth) in pairs.items()}
    assert max(errors.values()) < 1e-12, errors


def parameters_of(layer):
    """Our weights as PyTorch tensors, by name."""
    state = layer.state_dict()
    return {name: torch.tensor(state[name], requires_grad=True) for name, _ in layer.named_parameters()}


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((3, 7, 10, 3), (3, 3), (1, 1), (1, 1)),
        ((2, 11, 8, 2), (3, 3), (2, 2), (1, 1)),  # floor: a row and no column is left over
        ((2, 12, 9, 4), (1, 1), (2, 2), (0, 0)),
        ((2, 15, 13, 1), (7, 7), (2, 2), (3, 3)),
        ((2, 9, 14, 3), (2, 5), (3, 1), (1, 2)),
        ((1, 6, 9, 2), (4, 1), (1, 3), (0, 2)),  # whole patches in the padding
        ((2, 5, 6, 3), (5, 6), (1, 1), (0, 0)),  # one place left
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv2d(shape, kernel, stride, padding, bias, rng):
    layer = Conv2d(shape[3], 5, kernel, stride, padding, bias=bias, rng=rng).astype(np.float64)
    weights = parameters_of(layer)
    assert_layer_equals(
        layer,
        lambda x: functional.conv2d(x, weights["weight"], weights.get("bias"), stride, padding),
        normal(rng, shape),
        rng,
        weights,
    )


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((3, 9, 12, 3), (3, 3), (2, 2), (1, 1)),
        ((2, 8, 11, 2), (2, 2), None, (0, 0)),
        ((2, 10, 7, 3), (3, 2), (1, 3), (1, 0)),
        ((2, 7, 9, 1), (5, 3), (2, 1), (2, 1)),
    ],
)
def test_max_pool2d(shape, kernel, stride, padding, rng):
    """All numbers are negative: a frame of zeros instead of −∞ would win."""
    x = -1 - np.abs(normal(rng, shape))
    assert_layer_equals(
        MaxPool2d(kernel, stride, padding), lambda t: functional.max_pool2d(t, kernel, stride, padding), x, rng
    )


def test_max_pool2d_sends_the_gradient_of_ties_to_the_same_place(rng):
    x = rng.integers(0, 2, (2, 9, 8, 3)).astype(np.float64)
    assert_layer_equals(MaxPool2d(3, 2, 1), lambda t: functional.max_pool2d(t, 3, 2, 1), x, rng)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, rng):
    """With an ε and a momentum that are easy to tell from none, on channels of unlike mean and size, twice."""
    layer = BatchNorm2d(4, eps=0.01, momentum=0.3).astype(np.float64)
    layer.train() if training else layer.eval()
    running = {"running_mean": normal(rng, 4), "running_var": rng.uniform(0.5, 2, 4)}
    layer.load_state_dict({"weight": normal(rng, 4), "bias": normal(rng, 4)} | running)
    theirs = parameters_of(layer)
    mean, variance = (torch.tensor(array) for array in running.values())
    for _ in range(2):
        x = normal(rng, (3, 5, 4, 4)) * [0.1, 1, 2, 30] + [5, 0, -3, 100]
        layer.zero_grad()
        for tensor in theirs.values():
            tensor.grad = None
        assert_layer_equals(
            layer,
            lambda t: functional.batch_norm(t, mean, variance, theirs["weight"], theirs["bias"], training, 0.3, 0.01),
            x,
            rng,
            theirs,
        )
    assert relative_error(layer.running_mean.data, mean.numpy()) < 1e-12
    assert relative_error(layer.running_var.data, variance.numpy()) < 1e-12


@pytest.mark.parametrize("slope", [0.01, 0.2, 1.0])
def test_leaky_relu(slope, rng):
    x = rng.integers(-3, 4, (3, 5, 4, 2)) * 0.5  # many exact zeros: the convention at the kink
    assert_layer_equals(LeakyReLU(slope), lambda t: functional.leaky_relu(t, slope), x, rng)


def test_relu(rng):
    assert_layer_equals(ReLU(), functional.relu, rng.integers(-3, 4, (3, 5, 4, 2)) * 0.5, rng)


def test_global_average_pooling(rng):
    assert_layer_equals(
        GlobalAvgPool2d(), lambda t: functional.adaptive_avg_pool2d(t, 1), normal(rng, (3, 5, 4, 2)), rng
    )


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, rng):
    layer = Linear(7, 4, bias=bias, rng=rng).astype(np.float64)
    weights = parameters_of(layer)
    assert_layer_equals(
        layer, lambda t: functional.linear(t, weights["weight"], weights.get("bias")), normal(rng, (5, 7)), rng, weights
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy(smoothing, rng):
    logits, labels = 20 * normal(rng, (6, 5)), rng.integers(0, 5, 6)
    theirs = to_torch(logits)
    expected = functional.cross_entropy(theirs, torch.tensor(labels), label_smoothing=smoothing)
    expected.backward()
    layer = SoftmaxCrossEntropy(smoothing)
    assert relative_error(layer(logits, labels), expected.detach().numpy()) < 1e-12
    assert relative_error(layer.backward(), theirs.grad.numpy()) < 1e-12


# Whole networks. All but resnet50 learn with the learning rate of a real training or a fifth of it; resnet50 on 16
# places a channel is so badly conditioned that any step worth the name would magnify rounding a millionfold.

NETWORKS = {
    "resnet18, colour": Settings("resnet18", (4, 45, 37), lr=0.01),
    "resnet18, all by im2col": Settings("resnet18", (4, 45, 37), lr=0.01, algorithm="im2col"),
    "resnet18, all by Winograd": Settings("resnet18", (4, 45, 37), lr=0.01, algorithm="winograd"),
    "resnet18, grey, ReLU": Settings("resnet18", (4, 37, 45), channels=1, activation="relu", lr=0.01),
    "resnet18, small stem, slope 0.2": Settings("resnet18", (4, 17, 13), stem="small", negative_slope=0.2),
    "resnet50": Settings("resnet50", (4, 47, 33), lr=1e-4),
    "resnet50, all by Winograd": Settings("resnet50", (4, 47, 33), lr=1e-4, algorithm="winograd"),
    "resnet20": Settings("resnet20", (4, 11, 9), stem="small"),
    "resnet20, grey, ReLU": Settings("resnet20", (5, 9, 12), 1, stem="small", activation="relu"),
    "plain20": Settings("plain20", (4, 11, 9), stem="small", lr=0.01),
    **{name: Settings(name, (5, 47, 36), negative_slope=0.2) for name in SMALL},
    "no decay of norms and biases": Settings("small basic", (4, 36, 45), weight_decay=0.5, decay_all=False),
    "bare momentum": Settings("small basic", (4, 36, 45), nesterov=False, weight_decay=0.0, label_smoothing=0.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_float64(name):
    assert_experiment_equals(NETWORKS[name], "float64")


@pytest.mark.parametrize("name", [name for name in NETWORKS if "resnet50" not in name])
def test_float32(name):
    assert_experiment_equals(NETWORKS[name], "float32")


def assert_experiment_equals(settings, dtype):
    """Compare logits, every gradient, running statistics, losses and weights; and what we return is of ``dtype``."""
    ours, theirs = run_experiment([OurNetwork(settings, dtype), TorchNetwork(settings, dtype)], settings)
    assert_agree(ours, theirs, TOLERANCE[dtype])
    assert {array.dtype for name, array in ours.items() if "num_batches" not in name} == {np.dtype(dtype)}


def test_resnet50_in_float32():
    """Its logits only: of its millions of activations some are always on different sides of a kink in float32."""
    settings = NETWORKS["resnet50"]
    pictures, labels = next(settings.batches())
    ours, theirs = OurNetwork(settings, "float32"), TorchNetwork(settings, "float32")
    for training in (False, True):
        got, expected = (network.answer(pictures, labels, training).logits for network in (ours, theirs))
        assert relative_error(got, expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", ["resnet18, colour", "resnet50", "resnet20", "small plain"])
def test_state_dicts_have_the_same_names_shapes_and_types_in_the_same_order(name):
    ours, theirs = (network(NETWORKS[name], "float32").state_dict() for network in (OurNetwork, TorchNetwork))
    describe = [[(name, array.shape, array.dtype) for name, array in state.items()] for state in (ours, theirs)]
    assert describe[0] == describe[1]


@pytest.mark.parametrize("name", ["resnet18, small stem, slope 0.2", "small bottleneck", "resnet20"])
def test_weights_of_pytorch_move_here_and_back_unchanged(name):
    settings = NETWORKS[name]
    torch.manual_seed(1)
    ours, theirs = OurNetwork(settings, "float32"), TorchNetwork(settings, "float32")
    for tensor in theirs.model.parameters():
        torch.nn.init.uniform_(tensor)
    state = theirs.state_dict()
    assert ours.model.load_state_dict(state, strict=True) == ([], [])
    back = ours.state_dict()
    assert list(back) == list(state)
    assert all(np.array_equal(back[entry], state[entry]) for entry in state)
