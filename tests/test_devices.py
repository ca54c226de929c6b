"""Layers, networks, optimisers, training on a GPU and on its stand-ins: the numbers of the CPU, and nothing waits."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator

import devices
import numpy as np
import pytest
from conftest import arrays_of, assert_close, normal, with_holes
from devices import DEVICES, STAND_INS
from test_layers import LAYERS, prepare
from tiny import quick, write_people

import train
from nn import SGD, Adam, Conv2d, MaxPool2d, Parameter, Sequential
from nn.backend import BackendError, to_numpy
from nn.conv import conv2d_backward, conv2d_forward
from nn.gpu import mark, seconds_between, uploads
from nn.parallel import GPU_SLICE_BYTES
from nn.precision import LossScale, check_precision
from nn.profile import watch_memory
from resnet.blocks import BasicBlock
from resnet.config import TrainingConfig
from resnet.inference import predict
from resnet.memory import step_need
from resnet.models import ResNet, build, resnet18, summarize
from resnet.trainer import Meter, Trainer

ELSEWHERE = DEVICES[1:]  # the CPU is what they are compared with


@pytest.fixture(params=ELSEWHERE)
def xp(request: pytest.FixtureRequest) -> Iterator:
    """Let "cupy" be a GPU or one of its stand-ins; the value is the array module."""
    with devices.on(request.param) as module:
        yield module


@pytest.fixture(params=STAND_INS)
def stand_in(request: pytest.FixtureRequest) -> Iterator:
    """Let "cupy" be one of the stand-ins, which count waits and memory."""
    with devices.on(request.param) as module:
        yield module


def results(layer, inputs, upstream, state) -> list[np.ndarray]:
    """Return on the CPU y, the gradient of each input and parameter, and the buffers afterwards."""
    getattr(layer, state)()
    layer.zero_grad()
    y = layer(*inputs)
    dx = layer.backward(upstream)
    arrays = [y, *(dx if isinstance(dx, tuple) else (dx,)), *(parameter.grad for parameter in layer.parameters())]
    running = [buffer.data for _, buffer in layer.named_buffers() if buffer.data.dtype.kind == "f"]
    return [to_numpy(array) for array in arrays + running]


# Layers


@pytest.mark.parametrize("state", ["train", "eval"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_computes_on_the_cpu(name, dtype, state, xp):
    layer, inputs, upstream = prepare(name, dtype)
    expected = results(layer, inputs, upstream, state)
    there = prepare(name, dtype).layer.to("cupy")
    moved = [xp.asarray(x) for x in inputs], xp.asarray(upstream)
    for actual, truth in zip(results(there, *moved, state), expected, strict=True):
        assert_close(actual, truth, scale=10.0)
        assert actual.dtype == truth.dtype
    for array, original in zip([*moved[0], moved[1]], [*inputs, upstream], strict=True):
        np.testing.assert_array_equal(array.get(), original)  # only read


@pytest.mark.parametrize("name", LAYERS)
def test_memory_layout_is_without_influence(name, xp):
    """Views with holes between their numbers, and NaN in the holes."""
    layer, inputs, upstream = prepare(name, np.float32)
    expected = results(layer, inputs, upstream, "train")
    there = prepare(name, np.float32).layer.to("cupy")
    for actual, truth in zip(
        results(there, [holey(x, xp) for x in inputs], holey(upstream, xp), "train"), expected, strict=True
    ):
        assert_close(actual, truth, scale=10.0)


def holey(array: np.ndarray, xp):
    """Return the same numbers on the device, every second one along each axis of an array twice as long."""
    return xp.asarray(with_holes(array).base)[(..., *[slice(None, None, 2)] * array.ndim)]


@pytest.mark.parametrize("name", LAYERS)
def test_two_runs_are_equal_to_the_last_bit(name, xp):
    runs = []
    for _ in range(2):
        layer, inputs, upstream = prepare(name, np.float32)
        moved = [xp.asarray(x) for x in inputs], xp.asarray(upstream)
        runs.append(results(layer.to("cupy"), *moved, "train"))
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "SoftmaxCrossEntropy"])  # stays in float32
def test_float16_pictures_make_a_float32_layer_compute_in_float16(name, device):
    """Activations and their gradients are float16, gradients of parameters and statistics float32."""
    layer, inputs, upstream = prepare(name, np.float32)
    expected = results(prepare(name, np.float64).layer, [x.astype(float) for x in inputs], upstream, "train")
    with devices.on(device) as xp:
        layer.to("numpy" if device == "numpy" else "cupy")
        moved = [xp.asarray(x.astype(np.float16)) for x in inputs], xp.asarray(upstream.astype(np.float16))
        actual = results(layer, *moved, "train")
        held = [array for _, m in layer.named_modules() for array in arrays_of(m.kept())]
    assert held == []
    activations = 1 + len(inputs)
    assert {array.dtype for array in actual[:activations]} == {np.dtype(np.float16)}
    assert {array.dtype for array in actual[activations:]} <= {np.dtype(np.float32), np.dtype(np.int64)}
    for one, truth in zip(actual, expected, strict=True):
        scale = max(1.0, float(np.abs(truth).max(initial=0.0)))
        assert np.abs(one.astype(float) - truth).max() <= 0.02 * scale


def test_the_first_convolution_gets_channels_of_zeros_and_nobody_sees_them(xp, rng):
    """Three channels of float32 do not fill 16 bytes."""
    layer = Conv2d(3, 5, 7, 2, 3, rng=rng)
    x = normal(rng, (2, 15, 13, 3), np.float32)
    dy = normal(rng, layer(x).shape, np.float32)
    expected = [layer(x), layer.backward(dy), layer.weight.grad]
    layer.to("cupy").zero_grad()
    y = layer(xp.asarray(x))
    actual = [y, layer.backward(xp.asarray(dy)), layer.weight.grad]
    for one, truth in zip(actual, expected, strict=True):
        assert_close(to_numpy(one), truth)


def test_sizes_may_be_constants_of_the_kernel(rng, monkeypatch):
    """As CuPy has them: the stand-in is told so only here, as its compiler needs longer."""
    layer = Sequential(Conv2d(3, 4, (3, 2), 2, 1, rng=rng), MaxPool2d(3, 2, 1))
    x = normal(rng, (2, 13, 12, 3), np.float32)
    dy = normal(rng, layer(x).shape, np.float32)
    expected = layer.backward(dy)
    with devices.on("kernels") as xp:
        texts = []
        build = xp.ElementwiseKernel
        monkeypatch.setattr(xp, "RawKernel", object, raising=False)
        monkeypatch.setattr(xp, "ElementwiseKernel", lambda *a, **k: (texts.append(a), build(*a, **k))[1])
        layer.to("cupy")(xp.asarray(x))
        assert_close(layer.backward(xp.asarray(dy)).get(), expected)
    im2col = next(text for text in texts if text[3] == "im2col")
    assert im2col[0] == "raw T x"
    assert "const idx h = 13;\nconst idx w = 12;\n" in im2col[2]


def test_patches_of_a_large_batch_are_cut_in_slices(stand_in, rng, monkeypatch):
    """A step of convolution may take a share of the free memory for patches, and not more."""
    layer = Conv2d(4, 4, 3, padding=1, bias=False, rng=rng).to("cupy")
    x = stand_in.asarray(normal(rng, (8, 32, 32, 4), np.float32))
    whole = 9 * x.nbytes
    reference = layer(x).get()
    monkeypatch.setattr("nn.parallel.GPU_UNASKED_BYTES", 0)
    layer._cache = None
    stand_in.memory.limit = stand_in.memory.used + x.nbytes + whole // 2  # half of the patches, beside the output
    stand_in.memory.peak = stand_in.memory.used
    np.testing.assert_allclose(layer(x).get(), reference, rtol=1e-5, atol=1e-5)
    assert stand_in.memory.peak <= stand_in.memory.limit
    assert whole < GPU_SLICE_BYTES  # it was the free memory that decided


@pytest.mark.parametrize("device", DEVICES)
def test_float16_gradients_of_slices_are_added_up_in_float32(device, rng, monkeypatch):
    """Nine slices of 30,000 each are more than float16 can hold."""
    x, dy = np.full((9, 10, 10, 8), 300.0, np.float16), np.ones((9, 10, 10, 8), np.float16)
    weight = normal(rng, (1, 1, 8, 8), np.float16)
    monkeypatch.setattr("nn.parallel.GPU_SLICE_BYTES", 1)
    monkeypatch.setattr("nn.parallel.GPU_UNASKED_BYTES", 0)
    monkeypatch.setattr("nn.parallel.CPU_SLICE_BYTES", 1)
    with devices.on(device) as xp:
        _, cache = conv2d_forward(xp.asarray(x), xp.asarray(weight))
        _, dweight, _ = conv2d_backward(xp.asarray(dy), cache)
        found = to_numpy(dweight)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 9 * 30_000, rtol=1e-3)


# Optimisers

OPTIMISERS = {
    "SGD": lambda named: SGD(named, weight_decay=0.1),
    "SGD momentum": lambda named: SGD(named, momentum=0.9, weight_decay=0.1, decay_all=False),
    "SGD nesterov": lambda named: SGD(named, momentum=0.9, nesterov=True),
    "Adam": lambda named: Adam(named, weight_decay=0.1),
}


def optimised(make, module, dtype, scaled) -> list[np.ndarray]:
    """Return parameters and state after six steps; with a loss scale, the third gradient is infinite."""
    rng = np.random.default_rng(8)
    parameters = {
        "weight": Parameter(module.asarray(normal(rng, (3, 5), dtype))),
        "bias": Parameter(module.asarray(normal(rng, (4,), dtype)), decay=False),
    }
    optimizer = make(parameters.items())
    scale = LossScale(module, value=1024.0, growth_steps=2) if scaled else None
    for step in range(6):
        factor = 1.0 if scale is None else float(scale.value)
        for parameter in parameters.values():
            parameter.zero_grad()
            gradient = factor * normal(rng, parameter.data.shape, dtype)
            if scaled and step == 2:
                gradient[-1] = np.inf
            parameter.add_grad(module.asarray(gradient.astype(dtype)))
        with np.errstate(invalid="ignore"):
            optimizer.step(0.1 / (1 + step), scale)
    state = [parameter.data for parameter in parameters.values()] + list(optimizer.state.values())
    return [to_numpy(array) for array in state] + ([] if scale is None else [to_numpy(scale.value)])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_computes_what_it_computes_on_the_cpu(name, dtype, scaled, xp):
    expected = optimised(OPTIMISERS[name], np, dtype, scaled)
    for actual, truth in zip(optimised(OPTIMISERS[name], xp, dtype, scaled), expected, strict=True):
        assert np.isfinite(actual).all()
        assert_close(actual, truth, scale=1.0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_scale_halves_after_infinity_and_doubles_after_a_while_by_hand(device):
    with devices.on(device) as module:
        scale = LossScale(module, value=8.0, growth_steps=2)
        parameter = Parameter(module.zeros(3, np.float32))
        seen = []
        for last in (1.0, np.inf, 1.0, 1.0, np.nan, 1.0, 1.0, 1.0):
            parameter.zero_grad()
            parameter.add_grad(module.asarray(np.array([0.0, 2.0, last], np.float32)))
            scale.check([parameter])
            scale.update()
            seen.append((bool(scale.finite), float(scale.value)))
    good, bad = True, False
    assert seen == [(good, 8), (bad, 4), (good, 4), (good, 8), (bad, 4), (good, 4), (good, 8), (good, 8)]
    assert LossScale(np, value=4.0).inverse == 0.25


# Training


def small(seed: int = 3, **options) -> ResNet:
    """Return a network with everything in it that ResNet18 has, small."""
    return build(BasicBlock, (1, 1), (4, 8), 5, 3, activation="leaky_relu", rng=np.random.default_rng(seed), **options)


def batches(steps: int, size: int = 20, n: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(9)
    return [(normal(rng, (n, size, size, 3), np.float32), rng.integers(5, size=n)) for _ in range(steps)]


def losses(model: ResNet, config: TrainingConfig, given) -> list[float]:
    trainer, meter = Trainer(model.train(), config, len(given)), Meter()
    for x, labels in given:
        meter.add(*trainer.step(x, labels), len(labels))
    meter.read(trainer)
    return meter.losses


def test_five_steps_give_the_losses_of_the_cpu(xp):
    """Same seed, float32, ResNet18: within 1e-4 relative for three steps, within 1e-3 for five.

    Five steps on one batch halve the loss. Rounding grows from step to step where it moves a number to the other side
    of a kink: by how much depends on OpenBLAS's kernels for this CPU, and it is so between any two CPUs, too.
    """
    given = batches(1, size=64, n=16) * 5
    config = TrainingConfig(learning_rate=3e-4, schedule="constant")
    expected, actual = (
        losses(resnet18(5, rng=np.random.default_rng(4)).to(backend), config, given) for backend in ("numpy", "cupy")
    )
    np.testing.assert_allclose(actual[:3], expected[:3], rtol=1e-4)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    assert expected[4] < 0.6 * expected[0]


def test_two_trainings_are_equal_to_the_last_bit(xp):
    given, models = batches(3, size=32), [resnet18(5, rng=np.random.default_rng(4)).to("cupy") for _ in range(2)]
    one, other = (losses(model, TrainingConfig(), given) for model in models)
    assert one == other
    states = [model.state_dict() for model in models]
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name])


def test_a_whole_training_runs_and_learns_what_it_learns_on_the_cpu(xp, tmp_path):
    people = write_people(tmp_path / "people")
    rows = {}
    for backend in ("numpy", "cupy"):
        options = quick(people, tmp_path / backend, backend=backend, learning_rate=0.001, schedule="constant")
        assert train.main(options) == 0
        with open(tmp_path / backend / "metrics.csv") as file:
            rows[backend] = list(csv.DictReader(file))
    for there, here in zip(rows["cupy"], rows["numpy"], strict=True):
        assert float(there["train_loss"]) == pytest.approx(float(here["train_loss"]), rel=1e-3)
        assert there["masked_accuracy"] == here["masked_accuracy"]
    facts = json.loads((tmp_path / "cupy" / "config.json").read_text())
    assert facts["backend"] == "cupy"
    assert {"name", "memory", "compute_capability", "cupy", "cuda_of_driver"} <= facts["machine"]["gpu"].keys()


@pytest.mark.parametrize(("first", "then"), [("numpy", "cupy"), ("cupy", "numpy")])
def test_a_training_goes_on_on_another_device(first, then, xp, no_pictures, tmp_path, monkeypatch):
    """Stopped after four of six steps, within the second epoch, it ends as one that stayed on the CPU."""
    people, stepping = write_people(tmp_path / "people"), Trainer.step

    def stopped(self, x, labels):
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return stepping(self, x, labels)

    options = {"epochs": 3, "learning_rate": 0.001, "schedule": "constant"}
    assert train.main(quick(people, tmp_path / "calm", **options)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        assert train.main(quick(people, tmp_path / "moved", backend=first, **options)) == 130
    assert train.main(["--resume", str(tmp_path / "moved"), "--backend", then]) == 0
    calm, moved = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("calm", "moved"))
    assert moved["backend"] == then
    for there, here in zip(moved["epochs"], calm["epochs"], strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)
    assert moved["epochs"][-1]["steps"] == 6


def test_predictions_are_those_of_the_cpu(xp, rng):
    model = small()
    pictures = rng.integers(256, size=(7, 20, 20, 3), dtype=np.uint8)
    expected = predict(model, pictures, [0.5] * 3, [0.2] * 3, batch_size=3)
    assert_close(predict(model.to("cupy"), pictures, [0.5] * 3, [0.2] * 3, batch_size=3), expected, scale=1.0)


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
def test_nothing_in_a_step_waits_for_the_device(precision, stand_in):
    trainer = Trainer(small().to("cupy").train(), TrainingConfig(precision=precision), 3)
    stand_in.host_syncs.clear()
    meter = Meter()
    for x, labels in uploads(iter(batches(3)), stand_in):
        meter.add(*trainer.step(x, labels), len(labels))
    assert stand_in.host_syncs == []
    meter.read(trainer)
    assert stand_in.host_syncs == ["get", "get"]  # all losses at once, and all right answers


def test_in_float16_the_network_computes_in_float16_and_the_loss_in_float32(xp):
    trainer = Trainer(small().to("cupy").train(), TrainingConfig(precision="float16"), 3)
    logits = trainer.forward(xp.asarray(batches(1)[0][0]))
    assert logits.dtype == np.float32
    assert trainer.model.fc.kept().x.dtype == np.float16
    trainer.loss(logits, [0, 1, 2, 3])
    dlogits = trainer.loss.backward(trainer.loss_scale)
    assert dlogits.dtype == np.float32
    np.testing.assert_allclose(to_numpy(dlogits).sum(axis=1), 0, atol=1e-2)
    assert np.abs(to_numpy(dlogits)).max() > 1000  # scaled up by 65536


@pytest.mark.parametrize("device", DEVICES)
def test_training_in_float16_learns_and_keeps_float32_parameters(device):
    given = batches(1) * 30
    with devices.on(device):
        model = small().to("numpy" if device == "numpy" else "cupy")
        learned = losses(model, TrainingConfig(precision="float16", learning_rate=0.05, label_smoothing=0.0), given)
        state = model.state_dict()
    assert learned[-1] < 0.2 * learned[0]
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32), np.dtype(np.int64)}


def test_float16_and_float32_begin_with_the_same_loss(xp):
    given = batches(1)
    half, full = (losses(small().to("cupy"), TrainingConfig(precision=p), given)[0] for p in ("float16", "float32"))
    assert half == pytest.approx(full, rel=5e-3)
    assert half != full


def test_tf32_is_on_within_a_step_and_float32_means_float32(stand_in, monkeypatch):
    core = stand_in._core
    kinds = core._routines_linalg
    seen = []
    forward = Sequential.forward
    monkeypatch.setattr(
        Sequential, "forward", lambda *a: (seen.append(core.get_compute_type("float32")), forward(*a))[1]
    )
    core.set_compute_type("float32", kinds.COMPUTE_TYPE_TF32)  # as with CUPY_TF32=1
    losses(small().to("cupy"), TrainingConfig(precision="float32"), batches(1))
    assert set(seen) == {kinds.COMPUTE_TYPE_DEFAULT}
    assert core.get_compute_type("float32") == kinds.COMPUTE_TYPE_TF32  # back to where it was
    seen.clear()
    core.set_compute_type("float32", kinds.COMPUTE_TYPE_DEFAULT)
    losses(small().to("cupy"), TrainingConfig(precision="tf32"), batches(1))
    assert set(seen) == {kinds.COMPUTE_TYPE_TF32}
    assert core.get_compute_type("float32") == kinds.COMPUTE_TYPE_DEFAULT


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_tensor_cores_are_not_to_be_had_on_the_cpu(precision, tmp_path, capsys):
    options = quick(write_people(tmp_path / "people"), tmp_path / "run", precision=precision)
    assert train.main(options) == 1
    assert f"error: --precision {precision} is for the tensor cores of an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("precision", "has", "needs"), [("tf32", "75", "8.0"), ("float16", "61", "7.0")])
def test_a_gpu_without_tensor_cores_is_named(precision, has, needs, stand_in):
    check_precision("float32", stand_in)
    check_precision(precision, stand_in)  # the stand-in says 9.0
    stand_in.cuda.Device.compute_capability = has
    with pytest.raises(
        BackendError, match=f"needs a GPU of compute capability {needs}, this one has {has[0]}.{has[1]}"
    ):
        check_precision(precision, stand_in)
    check_precision("float32", stand_in)


def test_an_unknown_precision_is_named(stand_in):
    with pytest.raises(ValueError, match="float32, tf32, float16, got 'half'"):
        check_precision("half", stand_in)


def test_the_precision_stands_in_the_config(stand_in, tmp_path):
    people = write_people(tmp_path / "people")
    assert train.main(quick(people, tmp_path / "run", backend="cupy", precision="float16", epochs=1)) == 0
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["settings"]["precision"] == "float16"


# Copies, time, memory


def test_uploads_are_the_batches_one_sent_ahead(xp):
    asked = []

    def made():
        for number in range(4):
            asked.append(number)
            yield np.full((3, 2), number, np.float32), f"labels {number}"

    for number, (x, labels) in enumerate(uploads(made(), xp)):
        assert labels == f"labels {number}"
        assert asked[-1] == min(number + 1, 3)  # the next one is on its way
        np.testing.assert_array_equal(to_numpy(x), np.full((3, 2), number))
    assert number == 3
    assert list(uploads(iter([]), xp)) == []


def test_the_two_queues_of_uploads_wait_for_each_other(stand_in, monkeypatch):
    """Computing waits for its batch; a copy, whose memory may be an earlier batch's, for what was computed with it."""
    waits = []
    wait_event = stand_in.cuda.Stream.wait_event

    def watched(stream, event):
        waits.append((stream, event))
        return wait_event(stream, event)

    monkeypatch.setattr(stand_in.cuda.Stream, "wait_event", watched)
    computing = stand_in.cuda.get_current_stream()
    given = iter([(np.ones(3, np.float32), "a"), (np.ones(3, np.float32), "b")])
    for number, _ in enumerate(uploads(given, stand_in)):
        queues = ["computing" if stream is computing else "copying" for stream, _ in waits]
        assert queues == [["copying", "copying", "computing"], ["copying", "copying", "computing", "computing"]][number]
    assert len({id(event) for _, event in waits}) == 4


def test_all_uploads_to_a_device_go_through_one_queue(stand_in, monkeypatch):
    """CuPy keeps the memory of a queue that is gone."""
    made = []
    stream = stand_in.cuda.Stream
    monkeypatch.setattr(stand_in.cuda, "Stream", lambda **options: (made.append(options), stream(**options))[1])
    for _ in range(3):
        list(uploads(iter([(np.ones(3, np.float32), "a")]), stand_in))
    assert made == [{"non_blocking": True}]  # which does not wait for the computing one by itself


def test_the_memory_of_the_device_is_watched(stand_in):
    before = stand_in.zeros(1000, np.uint8)
    with watch_memory(stand_in) as memory:
        kept = stand_in.zeros(300, np.uint8)
        brief = stand_in.zeros(500, np.uint8)
        del brief
        assert (memory.used(), memory.peak()) == (300, 800)
        memory.restart()
        assert memory.peak() == 300
        del kept
        assert memory.used() == 0
    stand_in.zeros(400, np.uint8)
    assert (memory.used(), memory.peak(), before.size) == (0, 300, 1000)  # nothing is noted any more


def test_the_clock_of_the_device_runs_forwards(xp):
    start = mark(xp)
    xp.ones((50, 50)) @ xp.ones((50, 50))
    middle = mark(xp)
    stop = mark(xp)
    assert 0 <= seconds_between(xp, middle, stop) <= seconds_between(xp, start, stop) < 60


def test_out_of_memory_names_batch_need_and_options(stand_in):
    model = small().to("cupy").train()
    trainer = Trainer(model, TrainingConfig(), 3)
    (x, labels) = batches(1, size=64, n=32)[0]
    stand_in.memory.limit = stand_in.memory.used + 4_000_000
    with pytest.raises(MemoryError, match=r"a training step of 32 pictures of 64x64 in float32 needs about") as caught:
        trainer.step(x, labels)
    for words in (" MB, the GPU has ", "--batch-size (about ", "--image-size", "--precision float16", "--arch"):
        assert words in str(caught.value)


def test_out_of_memory_ends_the_command_with_one_line(stand_in, tmp_path, capsys):
    people = write_people(tmp_path / "people")
    stand_in.memory.limit = 3_500_000  # the network fits, its training does not
    assert train.main(quick(people, tmp_path / "run", backend="cupy")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: a training step of 6 pictures of 16x16 in float32 needs about ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_a_step_needs_is_estimated(precision, stand_in, monkeypatch):
    """The estimate, which is to say whether a batch fits, lies within a fifth of what a step takes."""
    monkeypatch.setattr("nn.parallel.GPU_SLICE_BYTES", 2**20)
    monkeypatch.setattr("resnet.memory.GPU_SLICE_BYTES", 2**20)
    monkeypatch.setattr("nn.parallel.GPU_UNASKED_BYTES", 2**16)
    for n, size in ((8, 64), (24, 48)):
        model = build(BasicBlock, (1, 1, 1), (32, 64, 128), 5, 3, rng=np.random.default_rng(4)).to("cupy").train()
        trainer = Trainer(model, TrainingConfig(precision=precision), 3)
        x, labels = batches(1, size=size, n=n)[0]
        trainer.step(x, labels)  # momentum is made in the first
        stand_in.memory.peak = 0
        trainer.step(x, labels)
        need = step_need(model, size, precision).of(n)
        assert 0.8 <= stand_in.memory.peak / need <= 1.2


def test_a_model_on_the_device_is_summarised_there(xp):
    there, here = summarize(small().to("cupy"), 20), summarize(small(), 20)
    assert [(r.name, r.shape, r.bytes_kept) for r in there if r.name != "conv1"] == [
        (r.name, r.shape, r.bytes_kept)
        for r in here
        if r.name != "conv1"  # whose input is wider there
    ]


def test_profile_tells_device_times_and_memory(xp, tmp_path, capsys):
    people = write_people(tmp_path / "people")
    assert train.main([*quick(people, tmp_path / "run", backend="cupy"), "--profile"]) == 0
    printed = capsys.readouterr().out
    for words in ("conv1", "backward ms", "optimiser:", "device memory held by the pool:"):
        assert words in printed
