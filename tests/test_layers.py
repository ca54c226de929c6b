"""The contract that every layer, block and network keeps (``nn.module``), whatever it computes."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from conftest import arrays_of, assert_close, frozen, normal, with_holes

from nn import (
    Add,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
)
from nn.conv import conv2d_forward
from nn.linear import linear_forward
from resnet.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, PlainBottleneck, Recipe
from resnet.gradcheck_cases import LossOfLabels


def recipe() -> Recipe:
    return Recipe(negative_slope=0.2, rng=np.random.default_rng(3))


# Name -> how to build it, shapes of its inputs. Odd, oblong, batches of several pictures.
LAYERS = {
    "Conv2d": (lambda: Conv2d(3, 4, (3, 2), (2, 1), (1, 0), rng=np.random.default_rng(3)), (2, 7, 5, 3)),
    "Conv2d 1×1": (lambda: Conv2d(3, 4, 1, bias=False, rng=np.random.default_rng(3)), (2, 7, 5, 3)),
    "BatchNorm2d": (lambda: BatchNorm2d(3), (2, 5, 4, 3)),
    "ReLU": (ReLU, (2, 5, 4, 3)),
    "LeakyReLU": (lambda: LeakyReLU(0.1), (2, 5, 4, 3)),
    "LeakyReLU slope 0": (lambda: LeakyReLU(0), (2, 5, 4, 3)),
    "MaxPool2d": (lambda: MaxPool2d(3, 2, 1), (2, 7, 5, 3)),
    "MaxPool2d oblong": (lambda: MaxPool2d((2, 3), (1, 2)), (2, 7, 5, 3)),
    "GlobalAvgPool2d": (GlobalAvgPool2d, (2, 5, 4, 3)),
    "Flatten": (Flatten, (2, 5, 4, 3)),
    "Linear": (lambda: Linear(5, 4, rng=np.random.default_rng(3)), (3, 5)),
    "Linear no bias": (lambda: Linear(5, 4, bias=False, rng=np.random.default_rng(3)), (3, 5)),
    "Add": (Add, (2, 5, 4, 3), (2, 5, 4, 3)),
    "SoftmaxCrossEntropy": (lambda: LossOfLabels(np.array([4, 0, 4]), 0.1), (3, 5)),
    "PadShortcut": (lambda: PadShortcut(3, 5, 2), (2, 7, 5, 3)),
    "PlainBasicBlock": (lambda: PlainBasicBlock(3, 4, 2, recipe()), (2, 7, 5, 3)),
    "PlainBottleneck": (lambda: PlainBottleneck(3, 2, 2, recipe()), (2, 7, 5, 3)),
    "BasicBlock": (lambda: BasicBlock(3, 3, 1, recipe()), (2, 7, 5, 3)),
    "BasicBlock projection": (lambda: BasicBlock(3, 4, 2, recipe()), (2, 7, 5, 3)),
    "BasicBlock option A": (lambda: BasicBlock(3, 4, 2, recipe(), "A"), (2, 7, 5, 3)),
    "Bottleneck": (lambda: Bottleneck(8, 2, 1, recipe()), (2, 5, 4, 8)),
    "Sequential": (
        lambda: Sequential(Conv2d(3, 4, 3, rng=np.random.default_rng(3)), BatchNorm2d(4), ReLU(), MaxPool2d(2)),
        (2, 7, 6, 3),
    ),
}
ALL = pytest.mark.parametrize("name", LAYERS)
REMEMBERING = pytest.mark.parametrize("name", [name for name in LAYERS if name != "Add"])  # Add has nothing to keep


class Run(NamedTuple):
    """A layer with inputs and an upstream gradient that fit it."""

    layer: Module
    inputs: list[np.ndarray]
    upstream: np.ndarray


def prepare(name: str, dtype=np.float64) -> Run:
    """Build a layer with random γ, β and biases, and draw its inputs and an upstream gradient."""
    build, *shapes = LAYERS[name]
    rng = np.random.default_rng(5)
    layer = build().astype(dtype)
    for parameter in layer.parameters():
        if parameter.data.ndim == 1:  # 1 and 0 would hide a forgotten factor or term
            parameter.data = parameter.data + normal(rng, parameter.data.shape, dtype) / 3
    inputs = [normal(rng, shape, dtype) for shape in shapes]
    upstream = normal(rng, layer(*inputs).shape, dtype)
    return Run(build_again(layer), inputs, upstream)


def build_again(layer: Module) -> Module:
    """Return a copy that has seen no picture yet."""
    fresh = copy.deepcopy(layer).train()
    for name, buffer in fresh.named_buffers():
        buffer.data[...] = name.endswith("running_var")
    return fresh


def results(layer: Module, inputs, upstream) -> list[np.ndarray]:
    """Return y, the gradient of each input, and of each parameter."""
    y = layer(*inputs)
    dx = layer.backward(upstream)
    return [y, *(dx if isinstance(dx, tuple) else (dx,)), *(parameter.grad for parameter in layer.parameters())]


def kept(layer: Module) -> list:
    """Return what the layer and its parts hold for backward."""
    return [module.kept() for _, module in layer.named_modules() if module.kept() is not None]


@ALL
def test_inputs_upstream_and_parameters_are_only_read(name):
    layer, inputs, upstream = prepare(name)
    before = [parameter.data.copy() for parameter in layer.parameters()]
    for parameter in layer.parameters():
        parameter.data.flags.writeable = False
    results(layer, [frozen(x) for x in inputs], frozen(upstream))  # writing would raise
    loose = [x.copy() for x in inputs], upstream.copy()
    results(layer, *loose)
    for array, original in zip([*loose[0], loose[1]], [*inputs, upstream], strict=True):
        np.testing.assert_array_equal(array, original)
    for parameter, original in zip(layer.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.data, original)


@ALL
def test_memory_layout_is_without_influence(name):
    layer, inputs, upstream = prepare(name)
    expected = results(layer, inputs, upstream)
    layer.zero_grad()
    actual = results(layer, [with_holes(x) for x in inputs], with_holes(upstream))
    turned = build_again(layer)
    turned.zero_grad()
    also = results(turned, [np.asfortranarray(x) for x in inputs], np.asfortranarray(upstream))
    for a, b, truth in zip(actual, also, expected, strict=True):
        assert_close(a, truth, scale=1.0)
        assert_close(b, truth, scale=1.0)


@ALL
def test_gradients_have_the_shapes_of_what_they_belong_to(name):
    layer, inputs, upstream = prepare(name)
    _, *gradients = results(layer, inputs, upstream)
    wanted = [*inputs, *(parameter.data for parameter in layer.parameters())]
    assert [gradient.shape for gradient in gradients] == [array.shape for array in wanted]


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("state", ["train", "eval"])
def test_dtype_in_is_dtype_out(name, dtype, state):
    layer, inputs, upstream = prepare(name, dtype)
    getattr(layer, state)()
    layer(*inputs)
    held = {array.dtype for cache in kept(layer) for array in arrays_of(cache)}
    assert held <= {np.dtype(dtype), np.dtype(np.uint8)}  # bytes: max-pool's winners
    assert {array.dtype for array in results(layer, inputs, upstream)} == {np.dtype(dtype)}
    assert {buffer.data.dtype for _, buffer in layer.named_buffers()} <= {np.dtype(dtype), np.dtype(np.int64)}


@ALL
def test_backward_adds_into_the_gradient(name):
    layer, inputs, upstream = prepare(name)
    results(layer, inputs, upstream)
    once = [parameter.grad.copy() for parameter in layer.parameters()]
    results(layer, inputs, upstream)
    for parameter, gradient in zip(layer.parameters(), once, strict=True):
        assert_close(parameter.grad, 2 * gradient, scale=1.0)
    results(layer, inputs, -2 * upstream)
    for parameter in layer.parameters():
        assert_close(parameter.grad, np.zeros_like(parameter.data), scale=10.0)


@ALL
def test_backward_is_linear_in_the_upstream_gradient(name):
    layer, inputs, upstream = prepare(name)
    _, *once = results(layer, inputs, upstream)
    layer.zero_grad()
    _, *tripled = results(layer, inputs, -3 * upstream)
    for gradient, expected in zip(tripled, once, strict=True):
        assert_close(gradient, -3 * expected, scale=10.0)


@ALL
def test_backward_belongs_to_the_last_forward(name):
    """A layer that clings to an older input is right at first and wrong from the second batch on."""
    layer, inputs, upstream = prepare(name)
    layer(*(x + 0.7 for x in inputs))
    layer.backward(upstream)
    layer(*(x - 0.7 for x in inputs))  # a forward whose backward never comes
    layer.zero_grad()
    actual = results(layer, inputs, upstream)
    expected = results(prepare(name).layer, inputs, upstream)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@ALL
def test_two_equal_layers_share_nothing(name):
    layer, inputs, upstream = prepare(name)
    twin = copy.deepcopy(layer)
    expected = results(prepare(name).layer, inputs, upstream)
    layer(*inputs)
    twin(*(x + 1 for x in inputs))
    dx = layer.backward(upstream)
    for a, b in zip(dx if isinstance(dx, tuple) else (dx,), expected[1:], strict=False):
        np.testing.assert_array_equal(a, b)
    assert all(not np.any(parameter.grad) for parameter in twin.parameters())


NOT_CHECKING = ("Add", "Flatten", "PadShortcut", "SoftmaxCrossEntropy")  # they hand dy on, reshape it, or take a number


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NOT_CHECKING])
def test_an_upstream_of_another_shape_is_named(name):
    """NumPy would spread one channel over all, and a convolution would take turned pictures for its own."""
    layer, inputs, upstream = prepare(name)
    others = [upstream[..., :1], upstream[:1]] + ([upstream.swapaxes(1, 2)] if upstream.ndim == 4 else [])
    for other in (array for array in others if array.shape != upstream.shape):
        layer(*inputs)
        with pytest.raises(ValueError, match="upstream gradient of the output's shape") as caught:
            layer.backward(other)
        assert str(upstream.shape) in str(caught.value)
        assert str(other.shape) in str(caught.value)


@REMEMBERING
def test_every_backward_needs_its_own_forward(name):
    layer, inputs, upstream = prepare(name)
    with pytest.raises(RuntimeError, match="backward has nothing to work on: each backward needs a forward"):
        layer.backward(upstream)
    results(layer, inputs, upstream)
    with pytest.raises(RuntimeError, match="backward has nothing to work on: each backward needs a forward"):
        layer.backward(upstream)


@REMEMBERING
def test_what_forward_keeps_is_let_go_after_backward(name):
    layer, inputs, upstream = prepare(name)
    y = layer(*inputs)
    assert kept(layer)
    parameters = {id(parameter.data) for parameter in layer.parameters()}
    held = [*inputs, *(array for cache in kept(layer) for array in arrays_of(cache) if id(array) not in parameters)]
    references = [weakref.ref(array) for array in held]
    layer.backward(upstream)
    assert kept(layer) == []
    del y, inputs, held
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


@ALL
def test_inference_keeps_nothing_and_says_so(name):
    layer, inputs, upstream = prepare(name)
    expected = layer.eval()(*inputs)
    layer.inference()
    np.testing.assert_array_equal(layer(*inputs), expected)
    assert kept(layer) == []
    if name != "Add":
        with pytest.raises(RuntimeError, match=r"the inference state keeps nothing: call train\(\) or eval\(\)"):
            layer.backward(upstream)


@ALL
def test_eval_allows_backward(name):
    layer, inputs, upstream = prepare(name)
    _, *gradients = results(layer.eval(), inputs, upstream)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


@REMEMBERING
@pytest.mark.parametrize("change", [Module.train, Module.eval, Module.inference], ids=lambda change: change.__name__)
def test_changing_the_state_forgets_what_was_kept(name, change):
    layer, inputs, upstream = prepare(name)
    layer(*inputs)
    change(layer)
    assert kept(layer) == []
    with pytest.raises(RuntimeError):
        layer.backward(upstream)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "SoftmaxCrossEntropy"])  # a mean over the batch
def test_a_picture_does_not_depend_on_its_neighbours_in_eval(name):
    layer, inputs, _ = prepare(name)
    layer.eval()
    whole = layer(*inputs)
    first = layer(*(x[:1] for x in inputs))
    assert_close(first, whole[:1])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv2d(2, 3, 3), (2, 5, 4, 2)),
        (BatchNorm2d(2), (2, 5, 4, 2)),
        (ReLU(), (2, 5, 4, 2)),
        (LeakyReLU(0.1), (2, 5, 4, 2)),
        (MaxPool2d(2), (2, 5, 4, 2)),
        (GlobalAvgPool2d(), (2, 5, 4, 2)),
        (Linear(4, 3), (2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_an_upstream_that_numpy_would_spread_is_refused(layer, shape, rng):
    y = layer(normal(rng, shape, np.float32))
    with pytest.raises(ValueError, match=r"upstream gradient of the output's shape .* got \(1, "):
        layer.backward(np.ones((1, *y.shape[1:]), np.float32))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv2d(2, 3, 3), (2, 5, 4, 2)),
        (BatchNorm2d(2), (2, 5, 4, 2)),
        (ReLU(), (2, 5, 4, 2)),
        (LeakyReLU(0.1), (2, 5, 4, 2)),
        (Linear(4, 3), (2, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_float64_cannot_creep_in_from_behind(layer, shape, rng):
    y = layer(normal(rng, shape, np.float32))
    assert layer.backward(normal(rng, y.shape)).dtype == np.float32
    assert all(parameter.grad.dtype == np.float32 for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda: BatchNorm2d(0), "at least 1 channel"),
        (lambda: BatchNorm2d(2, eps=-1), "eps of at least 0"),
        (lambda: BatchNorm2d(2, momentum=7), "momentum from 0 to 1"),
        (lambda: conv2d_forward(np.ones((1, 3, 3, 2)), np.ones((3, 3, 2, 4)), np.ones(1)), r"bias of shape \(4,\)"),
        (lambda: linear_forward(np.ones((1, 3)), np.ones((3, 4)), np.ones(1)), r"bias of shape \(4,\)"),
        (lambda: SoftmaxCrossEntropy()(np.ones((0, 3)), np.ones(0, int)), "at least one picture"),
        (lambda: Conv2d(2, 3, 3)(np.ones((0, 5, 5, 2), np.float32)), "at least one picture"),
    ],
)
def test_impossible_settings_and_arrays_are_named(work, words):
    with pytest.raises(ValueError, match=words):
        work()
