"""Parameter, Buffer, Module, Sequential, pair: names and their order, states, conversion, exchange of weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import assert_close, normal

from nn import BackendError, BatchNorm2d, Buffer, Conv2d, LeakyReLU, Linear, Module, Parameter, ReLU, Sequential
from nn.module import pair


class Net(Module):
    """A network with parts in parts, whose attributes are assigned in no alphabetical order."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.stem = Conv2d(2, 3, (3, 2), rng=rng)
        self.body = Sequential(BatchNorm2d(3), LeakyReLU(0.1), Conv2d(3, 4, 1, bias=False, rng=rng))
        self.absent = None
        self.activation = ReLU()

    def forward(self, x):
        return self.activation(self.body(self.stem(x)))

    def backward(self, dy):
        return self.stem.backward(self.body.backward(self.activation.backward(dy)))


STATE = {
    "stem.weight": (3, 2, 3, 2),  # F, C, KH, KW
    "stem.bias": (3,),
    "body.0.weight": (3,),
    "body.0.bias": (3,),
    "body.0.running_mean": (3,),
    "body.0.running_var": (3,),
    "body.0.num_batches_tracked": (),
    "body.2.weight": (4, 3, 1, 1),
}
LEARNED = ["stem.weight", "stem.bias", "body.0.weight", "body.0.bias", "body.2.weight"]


def trained(seed: int = 0) -> Net:
    """Return a network that has made a forward and a backward, so that nothing in it is 0 or 1."""
    net, rng = Net(seed), np.random.default_rng(seed + 100)
    for _ in range(2):
        y = net(normal(rng, (3, 6, 5, 2), np.float32))
        net.backward(normal(rng, y.shape, np.float32))
    return net


def snapshot(net: Module) -> dict[str, np.ndarray]:
    return {f"{kind}{name}": a for kind, d in (("", net.state_dict()), ("∂", net.grad_dict())) for name, a in d.items()}


def assert_same(net: Module, before: dict[str, np.ndarray]) -> None:
    """Compare with a snapshot, bit for bit and dtype by dtype."""
    after = snapshot(net)
    assert list(after) == list(before)
    for name, array in after.items():
        assert array.dtype == before[name].dtype
        np.testing.assert_array_equal(array, before[name], err_msg=name)


# Names


def test_names_and_shapes_go_by_the_order_of_assignment():
    net = Net()
    assert {name: array.shape for name, array in net.state_dict().items()} == STATE
    assert list(net.state_dict()) == list(STATE)
    assert [name for name, _ in net.named_parameters()] == list(net.grad_dict()) == LEARNED
    assert [name for name, _ in net.named_buffers()] == [name for name in STATE if name not in LEARNED]
    assert [name for name, _ in net.named_modules()] == [
        *("", "stem", "body", "body.0", "body.1", "body.2", "activation")
    ]
    assert [name for name, _ in net.children()] == ["stem", "body", "activation"]


def test_parameters_are_those_of_the_named_ones():
    net = Net()
    assert all(a is b for a, (_, b) in zip(net.parameters(), net.named_parameters(), strict=True))
    assert net.count_parameters() == 3 * 2 * 3 * 2 + 3 + 3 + 3 + 4 * 3


def test_biases_and_batch_norm_are_exempt_from_decay():
    decay = {name: parameter.decay for name, parameter in Net().named_parameters()}
    assert [name for name in decay if decay[name]] == ["stem.weight", "body.2.weight"]


def test_the_eleventh_part_comes_after_the_tenth():
    """As words, "10" stands before "2"."""
    net = Sequential(*(Linear(1, 1, bias=False) for _ in range(12)))
    assert list(net.state_dict()) == [f"{number}.weight" for number in range(12)]
    assert len(net) == 12


# Sequential


def test_sequential_runs_in_order_and_back_in_reverse():
    double, up = Linear(1, 1, bias=True), LeakyReLU(0.5)
    double.load_state_dict({"weight": np.array([[2.0]]), "bias": np.array([-10.0])})
    net = Sequential(double, up, ReLU())
    assert (net[0], net[1], len(net)) == (double, up, 3)
    assert isinstance(net[-1], ReLU)
    x = np.array([[3.0], [8.0]], np.float32)
    np.testing.assert_array_equal(Sequential(double, up)(x), [[-2], [6]])  # 2x − 10, then halved where negative
    np.testing.assert_array_equal(Sequential(up, double)(x), [[-4], [6]])
    np.testing.assert_array_equal(net(x), [[0], [6]])
    np.testing.assert_array_equal(net.backward(np.ones((2, 1), np.float32)), [[0], [2]])


def test_an_empty_sequential_hands_everything_on():
    x = np.ones((2, 3))
    assert Sequential()(x) is x
    assert Sequential().backward(x) is x


def test_a_module_without_forward_or_backward_says_so():
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        Module()(np.ones(1))
    with pytest.raises(NotImplementedError, match="Module has no backward"):
        Module().backward(np.ones(1))


# States


def test_train_eval_and_inference_reach_every_part():
    net = Net()
    for change, training, keeps in ((net.eval, False, True), (net.inference, False, False), (net.train, True, True)):
        assert change() is net
        states = {(module.training, module.keeps_cache) for _, module in net.named_modules()}
        assert states == {(training, keeps)}


# Gradients


def test_a_gradient_is_zero_until_a_backward_and_after_zero_grad():
    net = trained()
    assert all(np.any(gradient) for gradient in net.grad_dict().values())
    net.zero_grad()
    for parameter in [*net.parameters(), *Net().parameters()]:
        assert parameter.grad.shape == parameter.data.shape
        assert parameter.grad.dtype == parameter.data.dtype
        assert not parameter.grad.any()


def test_the_gradient_is_one_array_and_may_be_changed_in_place():
    """Clipping writes ``parameter.grad *= …``: the change must stay."""
    parameter = Parameter(np.ones(2))
    parameter.grad[:] = 3.0
    parameter.add_grad(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(parameter.grad, [4, 5])


def test_grad_dict_has_the_layouts_of_the_state_dict():
    net = trained()
    for (name, gradient), parameter in zip(net.grad_dict().items(), net.parameters(), strict=True):
        assert gradient.shape == STATE[name]
        assert gradient.size == parameter.grad.size
    f, c, i, j = 2, 1, 0, 1
    assert net.grad_dict()["stem.weight"][f, c, i, j] == net.stem.weight.grad[i, j, c, f] != 0


# Exchange


def test_state_dict_speaks_torchvisions_layouts():
    """Convolution (F, C, KH, KW) and linear (F, C), number by number."""
    conv, linear = Conv2d(2, 3, (3, 4)), Linear(5, 6)
    exported = conv.state_dict()["weight"]
    for f, c, i, j in np.ndindex(3, 2, 3, 4):
        assert exported[f, c, i, j] == conv.weight.data[i, j, c, f]
    exported = linear.state_dict()["weight"]
    for f, c in np.ndindex(6, 5):
        assert exported[f, c] == linear.weight.data[c, f]


def test_state_dict_and_grad_dict_are_copies_in_plain_memory():
    net = trained()
    before = snapshot(net)
    for array in [*net.state_dict().values(), *net.grad_dict().values()]:
        assert array.flags.c_contiguous
        array[...] = 77
    assert_same(net, before)


def test_round_trip_from_one_network_to_another():
    source, target = trained(1), trained(2)
    assert target.load_state_dict(source.state_dict()) == ([], [])
    x = normal(np.random.default_rng(0), (2, 6, 5, 2), np.float32)
    np.testing.assert_array_equal(target.eval()(x), source.eval()(x))
    for name, array in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[name], array)


def test_loading_copies_and_keeps_the_networks_own_dtype():
    net, state = Net().astype(np.float64), {name: a.astype(np.float32) for name, a in trained().state_dict().items()}
    arrays = [parameter.data for parameter in net.parameters()]
    net.load_state_dict(state)
    loaded = snapshot(net)
    for array in state.values():
        array[...] = 77
    assert_same(net, loaded)
    assert {parameter.data.dtype for parameter in net.parameters()} == {np.dtype(np.float64)}
    assert all(a is b.data for a, b in zip(arrays, net.parameters(), strict=True))  # an optimiser may hold on to them
    assert net.state_dict()["body.0.num_batches_tracked"].dtype == np.int64


def test_weights_of_pytorch_give_pytorchs_answer():
    torch = pytest.importorskip(
        "torch", exc_type=ImportError, reason="PyTorch, the independent source, is not installed"
    )
    torch.manual_seed(0)
    twin = torch.nn.Sequential(torch.nn.Conv2d(2, 3, (3, 2)), torch.nn.BatchNorm2d(3), torch.nn.LeakyReLU(0.1))
    twin = twin.double()
    x = normal(np.random.default_rng(0), (2, 6, 5, 2))
    pictures = torch.tensor(x).permute(0, 3, 1, 2)
    twin(3 * pictures + 1)  # moves the running statistics
    twin.eval()
    net = Sequential(Conv2d(2, 3, (3, 2)), BatchNorm2d(3), LeakyReLU(0.1)).astype(np.float64).eval()
    state = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    assert_close(net(x), twin(pictures).detach().permute(0, 2, 3, 1).numpy())


def test_every_misfit_is_listed_at_once_and_nothing_is_changed():
    net = trained()
    before = snapshot(net)
    state = {name: array + 1 for name, array in net.state_dict().items()}
    del state["stem.bias"], state["body.0.running_var"]
    state["body.2.weight"] = state["body.2.weight"].transpose(2, 3, 1, 0)  # our own layout, not torchvision's
    state["body.0.bias"] = np.zeros(4)
    state["fc.weight"], state["body.7.bias"] = np.zeros((5, 4)), np.zeros(9)
    with pytest.raises(ValueError, match=r"does not fit this Net \(6 entries\)") as caught:
        net.load_state_dict(state)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "missing: stem.bias (3,)",
        "missing: body.0.running_var (3,)",
        "unexpected: fc.weight (5, 4)",
        "unexpected: body.7.bias (9,)",
        "wrong shape: body.0.bias expected (3,), got (4,)",
        "wrong shape: body.2.weight expected (4, 3, 1, 1), got (1, 1, 3, 4)",
    ]
    assert_same(net, before)


def test_not_strict_returns_what_is_missing_and_unexpected_and_loads_the_rest():
    net, state = Net(), trained(5).state_dict()
    kept = net.stem.bias.data.copy()
    del state["stem.bias"]
    state["fc.weight"] = np.zeros((5, 4))
    assert net.load_state_dict(state, strict=False) == (["stem.bias"], ["fc.weight"])
    np.testing.assert_array_equal(net.stem.bias.data, kept)
    np.testing.assert_array_equal(net.state_dict()["stem.weight"], state["stem.weight"])


def test_not_strict_still_refuses_wrong_shapes():
    net = trained()
    before = snapshot(net)
    state = net.state_dict() | {"stem.bias": np.zeros(1)}  # NumPy would spread it
    with pytest.raises(ValueError, match=re.escape("wrong shape: stem.bias expected (3,), got (1,)")):
        net.load_state_dict(state, strict=False)
    assert_same(net, before)


def test_a_missing_counter_of_batches_is_no_error():
    """Files of PyTorch before 0.4.1 have none."""
    net, state = Net(), trained().state_dict()
    del state["body.0.num_batches_tracked"]
    assert net.load_state_dict(state) == ([], [])
    assert net.body[0].num_batches_tracked.data == 0


class Table(Module):
    """A layer of a reader's own, whose parameter has two axes in the order that everybody uses."""

    def __init__(self) -> None:
        self.values = Parameter(np.arange(6.0).reshape(2, 3))


def test_a_parameter_without_axes_is_exported_as_it_is():
    table = Table()
    np.testing.assert_array_equal(table.state_dict()["values"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(table.grad_dict()["values"], np.zeros((2, 3)))
    table.load_state_dict({"values": np.arange(6.0, 12.0).reshape(2, 3)})
    np.testing.assert_array_equal(table.values.data, [[6, 7, 8], [9, 10, 11]])


# Conversion


def test_astype_converts_parameters_gradients_and_floating_buffers():
    net = trained()
    before = snapshot(net)
    assert net.astype(np.float64) is net
    after = snapshot(net)
    for name, array in after.items():
        assert array.dtype == (np.int64 if name.endswith("num_batches_tracked") else np.float64)
        np.testing.assert_array_equal(array, before[name])  # float64 holds every float32 exactly
    assert_same(net.astype("float32"), before)
    with pytest.raises(RuntimeError, match="nothing to work on"):  # what was kept has the old dtype
        net.backward(np.ones((3, 4, 4, 4), np.float32))


@pytest.mark.parametrize("dtype", [np.int32, "bool", complex])
def test_astype_refuses_what_is_not_floating_point(dtype):
    net = trained()
    before = snapshot(net)
    with pytest.raises(TypeError, match=f"floating-point dtype, got {np.dtype(dtype)}"):
        net.astype(dtype)
    assert_same(net, before)


def test_to_a_gpu_that_is_not_there_names_cause_and_remedy_and_leaves_the_model(no_cupy):
    net = trained()
    before = snapshot(net)
    arrays = [array.data for _, array in (*net.named_parameters(), *net.named_buffers())]
    with pytest.raises(BackendError, match=r"CuPy cannot be imported.*pip install.*--backend numpy"):
        net.to("cupy")
    assert_same(net, before)
    assert all(a is b.data for a, (_, b) in zip(arrays, (*net.named_parameters(), *net.named_buffers()), strict=True))


def test_to_numpy_stays_and_an_unknown_backend_is_named():
    net = trained()
    before = snapshot(net)
    assert_same(net.to("numpy"), before)
    with pytest.raises(ValueError, match=r"'numpy' or 'cupy', got 'tpu'"):
        net.to("tpu")


def test_a_buffer_is_state_but_is_not_learned():
    class Counter(Module):
        def __init__(self) -> None:
            self.count = Buffer(np.array([3.0]))

    assert Counter().parameters() == []
    assert Counter().state_dict() == {"count": [3.0]}


# pair


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, (3, 3)), ((3, 5), (3, 5)), ([1, 2], (1, 2)), (np.int64(4), (4, 4)), ((np.int32(1), 2), (1, 2))],
)
def test_pair_of_one_number_or_two(value, expected):
    numbers = pair(value, "stride", 1)
    assert numbers == expected
    assert {type(number) for number in numbers} == {int}


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, (2, 0), (1,), (1, 2, 3), (), (1.0, 2), "ab", 2.5, None),
    ],
    ids=repr,
)
def test_pair_names_what_it_cannot_use(value):
    with pytest.raises(
        ValueError, match=re.escape(f"stride as a whole number or a pair (height, width), each >= 1, got {value}")
    ):
        pair(value, "stride", 1)


def test_pair_of_zeros_where_zero_is_allowed():
    assert pair(0, "padding", 0) == (0, 0)
