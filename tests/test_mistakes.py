"""Wide, famous mistakes of hand-written networks, a test each, named after the mistake."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_close, frozen, normal

from nn import (
    SGD,
    Adam,
    Add,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from nn.activation import leaky_relu_backward, leaky_relu_forward
from nn.batchnorm import batchnorm2d_eval_forward, batchnorm2d_forward
from resnet.blocks import BasicBlock, Bottleneck, Recipe
from resnet.models import WIDTHS, build

NARROW = tuple(width // 16 for width in WIDTHS)


def test_batch_norm_per_activation_instead_of_per_channel():
    """Two pictures of two places: one mean (6) and variance (26) for all four numbers, not a pair for each place."""
    layer = BatchNorm2d(1, eps=0.0).astype(np.float64)
    y = layer(np.array([[0.0, 10.0], [2.0, 12.0]]).reshape(2, 1, 2, 1))
    np.testing.assert_allclose(y.ravel(), np.array([-6, 4, -4, 6]) / np.sqrt(26), rtol=1e-14)
    assert layer.count_parameters() == 2  # one γ and one β a channel, whatever the size of the pictures


def test_max_pool_padded_with_zeros():
    """ResNet's stem with LeakyReLU: what comes into max-pool may be negative all over."""
    net = Sequential(LeakyReLU(0.5), MaxPool2d(3, 2, 1))
    y = net(np.full((1, 5, 4, 2), -2.0))
    np.testing.assert_array_equal(y, np.full((1, 3, 2, 2), -1.0))


def test_height_and_width_mixed_up():
    """A (3, 1) kernel in torchvision's layout (F, C, KH, KW) looks up and down, not left and right."""
    layer = Conv2d(1, 1, (3, 1), stride=(1, 2), padding=(1, 0), bias=False)
    layer.load_state_dict({"weight": np.array([1.0, 0.0, -1.0]).reshape(1, 1, 3, 1)})
    x = np.arange(20, dtype=np.float32).reshape(1, 4, 5, 1)  # row i, column j: 5i + j
    y = layer(x)
    # above minus below, in columns 0, 2, 4; zeros lie outside
    np.testing.assert_array_equal(y[0, :, :, 0], [[-5, -7, -9], [-10, -10, -10], [-10, -10, -10], [10, 12, 14]])
    assert layer.backward(y).shape == x.shape
    assert MaxPool2d((3, 1), (2, 1))(x).shape == (1, 1, 5, 1)


def test_relu_in_place_corrupts_the_skip_branch():
    """y = ReLU(x) + x at x = −3 is −3, and its slope is 1: the shortcut must see what ReLU has not touched."""
    relu, add = ReLU(), Add()
    x = np.array([-3.0, 2.0])
    y = add(relu(x), x)
    np.testing.assert_array_equal(y, [-3, 4])
    dbranch, dshortcut = add.backward(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(relu.backward(dbranch) + dshortcut, [1, 2])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize(("block", "channels"), [(BasicBlock, 6), (Bottleneck, 24)])
def test_a_block_whose_branch_is_silent_hands_its_input_and_gradient_on(block, channels, activation, rng):
    """With the last batch norm at 0, y = act(x): nothing of the branch may have leaked into the shortcut."""
    part = block(channels, 6, 1, Recipe(activation, 0.25, rng)).astype(np.float64)
    part.last_norm.weight.data[:] = 0
    x, dy = normal(rng, (2, 5, 4, channels)), normal(rng, (2, 5, 4, channels))
    slope = 0.25 if activation == "leaky_relu" else 0.0
    assert_close(part(frozen(x)), np.where(x > 0, x, slope * x))
    assert_close(part.backward(frozen(dy)), np.where(x > 0, dy, slope * dy))


def strides_of(model) -> dict[str, tuple[int, int]]:
    """Return the name and stride of every convolution that does not go step by step."""
    convolutions = ((name, module) for name, module in model.named_modules() if isinstance(module, Conv2d))
    return {name: conv.stride for name, conv in convolutions if conv.stride != (1, 1)}


@pytest.mark.parametrize(
    ("block", "depths", "strided"),
    [(BasicBlock, (2, 2, 2, 2), "conv1"), (Bottleneck, (3, 4, 6, 3), "conv2")],
    ids=["resnet18", "resnet50"],
)
def test_stride_in_the_wrong_block(block, depths, strided, rng):
    """The stem and the first block of stages 2, 3, 4 halve the size; a bottleneck does so in its 3×3 (torchvision)."""
    model = build(block, depths, NARROW, num_classes=2, rng=rng)
    firsts = [f"layer{stage}.0" for stage in (2, 3, 4)]
    expected = ["conv1", *(f"{first}.{name}" for first in firsts for name in (strided, "downsample.0"))]
    assert strides_of(model) == dict.fromkeys(expected, (2, 2))


def test_running_statistics_left_out_of_the_state_dict(rng):
    """Trained, saved, loaded: eval must give the same answers."""

    def net():
        return Sequential(Conv2d(2, 3, 3, bias=False, rng=rng), BatchNorm2d(3), LeakyReLU())

    trained, loaded = net(), net()
    x = normal(rng, (4, 6, 5, 2), np.float32)
    for _ in range(3):
        trained(3 * x + 1)
    state = trained.state_dict()
    assert [name for name in state if name.startswith("1.")] == [
        *("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    ]
    assert state["1.num_batches_tracked"] == 3
    loaded.load_state_dict(state)
    np.testing.assert_array_equal(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("state", ["train", "eval"])
@pytest.mark.parametrize("optimizer", ["SGD", "Nesterov", "Adam"])
def test_float64_creeping_in(state, optimizer, rng):
    """float32 times a NumPy float64 number is float64: none of the settings may let that happen."""
    double = np.float64
    net = Sequential(
        Conv2d(2, 3, 3, 2, 1, negative_slope=double(0.1), rng=rng),
        BatchNorm2d(3, eps=double(1e-5), momentum=double(0.1)),
        LeakyReLU(double(0.1)),
        MaxPool2d(2),
        GlobalAvgPool2d(),
        Flatten(),
        Linear(3, 4, rng=rng),
    )
    loss = SoftmaxCrossEntropy(double(0.1))
    make = {
        "SGD": lambda p: SGD(p, momentum=double(0.9), weight_decay=double(5e-4)),
        "Nesterov": lambda p: SGD(p, momentum=double(0.9), nesterov=True, weight_decay=double(5e-4)),
        "Adam": lambda p: Adam(p, betas=(double(0.9), double(0.99)), eps=double(1e-8), weight_decay=double(5e-4)),
    }
    steps = make[optimizer](net.named_parameters())
    getattr(net, state)()
    seen = []
    for _ in range(2):
        net.zero_grad()
        x = normal(rng, (3, 8, 7, 2), np.float32)
        for _, layer in net.children():
            seen.append(x := layer(x))
        seen.append(loss(x, [0, 3, 1]))
        seen.append(dy := loss.backward(double(1.0)))
        for _, layer in reversed(list(net.children())):
            seen.append(dy := layer.backward(dy))
        steps.step(double(0.1))
        seen += [array for parameter in net.parameters() for array in (parameter.data, parameter.grad)]
    seen += [*steps.state.values(), *steps.state_dict().values()]
    state_arrays = [array for name, array in net.state_dict().items() if not name.endswith("num_batches_tracked")]
    assert len(steps.state) == {"SGD": 1, "Nesterov": 1, "Adam": 2}[optimizer] * len(net.parameters())
    assert {array.dtype for array in [*seen, *state_arrays]} == {np.dtype(np.float32)}


X = np.ones((2, 3, 3, 2), np.float32)
C = np.ones(2, np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda number: leaky_relu_forward(X, number)[0],
        lambda number: leaky_relu_backward(X, leaky_relu_forward(X, number)[1], number),
        lambda number: batchnorm2d_forward(X, C, C, number)[0],
        lambda number: batchnorm2d_eval_forward(X, C, C, C, C, number)[0],
    ],
    ids=["leaky_relu_forward", "leaky_relu_backward", "batchnorm2d_forward", "batchnorm2d_eval_forward"],
)
def test_float64_creeping_in_by_a_number_given_to_a_function(call):
    assert call(np.float64(0.1)).dtype == np.float32


def names(prefix: str, *parts: str) -> list[str]:
    """Return the state of a few parts: "conv…" has a weight, "bn…" its five arrays."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    fields = {"c": ("weight",), "b": norm, "f": ("weight", "bias")}
    return [f"{prefix}{part}.{field}" for part in parts for field in fields[part[0]]]


def test_shuffled_parameter_order(rng):
    """The order of torchvision's resnet18: optimiser state and old weight files go by it."""
    expected = names("", "conv1", "bn1")
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            block = f"layer{stage}.{number}."
            expected += names(block, "conv1", "bn1", "conv2", "bn2")
            if stage > 1 and number == 0:
                expected += [f"{block}downsample.0.weight"]
                expected += [name.replace("bn", "downsample.1") for name in names(block, "bn")]
    expected += names("", "fc")
    model = build(BasicBlock, (2, 2, 2, 2), NARROW, num_classes=2, rng=rng)
    assert list(model.state_dict()) == expected
    learned = [name for name in expected if not name.endswith(("mean", "var", "tracked"))]
    assert [name for name, _ in model.named_parameters()] == list(model.grad_dict()) == learned
    assert len(learned) == 62
