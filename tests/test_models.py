"""The model family: exact counts, shapes, strides, initial weights, the layer table, and what is refused.

Counts and sizes are those of He et al. 2015 (tables 1 and 6) and of torchvision, worked out independently of this code.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_close, normal

from nn import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from nn.profile import note_kept, record_layers
from resnet.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, PlainBottleneck, Recipe, make_shortcut
from resnet.models import MODELS, build, main, make_model, plain18, resnet18, resnet20, resnet50, summarize

IMAGENET = {  # parameters with 1000 classes, multiply-adds of convolutions and classifier at 224 × 224
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
}
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def modules_of(model, kind):
    """Modules of one kind by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def narrow(block, **options):
    """A thin network of four stages."""
    return build(block, (2, 1, 2, 1), (4, 6, 8, 10), num_classes=3, **options)


# Exact numbers


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_and_multiply_adds_at_224(name, rng):
    model = make_model(name, 1000, rng=rng)
    records = summarize(model, 224)
    parameters, multiply_adds = IMAGENET[name]
    assert model.count_parameters() == sum(record.parameters for record in records) == parameters
    assert sum(record.multiply_adds for record in records) == multiply_adds
    assert records[-1].shape == (1, 1000)


def test_resnet18_for_forty_people(rng):
    assert resnet18(40, rng=rng).count_parameters() == 11_197_032


def test_a_grey_resnet18_has_two_thirds_of_the_first_kernels_less(rng):
    grey, colour = (resnet18(40, channels, rng=rng).count_parameters() for channels in (1, 3))
    assert colour - grey == 2 * 7 * 7 * 64


@pytest.mark.parametrize("depth", CIFAR)
def test_cifar_nets_and_their_plain_twins_have_the_same_parameters(depth, rng):
    """Option A has no parameters: He et al. compare the two at equal size."""
    assert make_model(f"resnet{depth}", 10, rng=rng).count_parameters() == CIFAR[depth]
    assert make_model(f"plain{depth}", 10, rng=rng).count_parameters() == CIFAR[depth]


@pytest.mark.parametrize(("residual", "plain"), [(BasicBlock, PlainBasicBlock), (Bottleneck, PlainBottleneck)])
def test_a_plain_twin_lacks_the_projections_and_nothing_else(residual, plain):
    names = [name for name in narrow(residual).state_dict() if "downsample" not in name]
    assert list(narrow(plain).state_dict()) == names
    assert not modules_of(narrow(plain), PadShortcut)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_the_depth_of_its_name_and_every_part_takes_part(name, rng):
    """Depth counts convolutions off the shortcuts, and the classifier. No gradient is zero, none is not finite."""
    model = make_model(name, 3, rng=rng).eval()
    on_the_path = [part for part in modules_of(model, Conv2d) if "downsample" not in part]
    assert len(on_the_path) + 1 == int(re.sub(r"\D", "", name))
    x = normal(rng, (2, 32, 28, 3), np.float32)
    logits = model(x)
    dx = model.backward(normal(rng, (2, 3), np.float32))
    assert logits.shape == (2, 3)
    assert dx.shape == x.shape
    assert np.isfinite(dx).all()
    assert dx.any()
    grads = model.grad_dict()
    assert [part for part, gradient in grads.items() if not (np.isfinite(gradient).all() and gradient.any())] == []


# Shapes and strides


def sizes_of(model, size):
    """Height of the output of the stem's parts, of each stage, and of the average."""
    records = summarize(model, size)
    last = {record.name.split(".")[0]: record.shape for record in records}
    assert all(shape[1] == shape[2] for name, shape in last.items() if name not in ("flatten", "fc"))
    return {name: shape[1] for name, shape in last.items() if name.startswith(("conv", "max", "layer", "avg"))}


@pytest.mark.parametrize("model", [resnet18, plain18, resnet50])
def test_stages_at_224(model, rng):
    names = ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    assert sizes_of(model(2, rng=rng), 224) == dict(zip(names, [112, 56, 56, 28, 14, 7, 1], strict=True))


def test_stages_of_the_small_stem_at_32(rng):
    names = ["conv1", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    assert sizes_of(resnet18(2, stem="small", rng=rng), 32) == dict(zip(names, [32, 32, 16, 8, 4, 1], strict=True))
    assert sizes_of(resnet20(2, rng=rng), 32) == dict(zip([*names[:4], "avgpool"], [32, 32, 16, 8, 1], strict=True))


def test_odd_and_oblong_pictures(rng):
    """Floor((n + 2p − k) / s) + 1 all the way: 45 → 23 → 12 → 6 → 3 → 2 and 70 → 35 → 18 → 9 → 5 → 3."""
    model = resnet18(2, rng=rng).eval()
    with record_layers(model) as records:
        model(np.zeros((1, 45, 70, 3), np.float32))
    shapes = {record.name: record.shape[1:3] for record in records}
    wanted = {"conv1": (23, 35), "maxpool": (12, 18), "layer1.1.relu2": (12, 18), "layer2.1.relu2": (6, 9)}
    wanted |= {"layer3.1.relu2": (3, 5), "layer4.1.relu2": (2, 3), "avgpool": (1, 1)}
    assert {name: shapes[name] for name in wanted} == wanted


@pytest.mark.parametrize("size", [1, 2, 7])
def test_no_picture_is_too_small(size, rng):
    """Each kernel fits into one place with its padding; such a network learns nothing, but nothing is undefined."""
    assert summarize(resnet18(2, rng=rng), size)[-1].shape == (1, 2)


@pytest.mark.parametrize(
    ("block", "strided"),
    [(BasicBlock, "conv1"), (PlainBasicBlock, "conv1"), (Bottleneck, "conv2"), (PlainBottleneck, "conv2")],
)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_only_the_stem_and_the_first_block_of_stages_2_to_4_have_a_stride(block, strided, stem):
    convolutions = modules_of(narrow(block, stem=stem), Conv2d)
    expected = {"conv1"} if stem == "imagenet" else set()
    for stage in (2, 3, 4):
        expected |= {f"layer{stage}.0.{strided}", f"layer{stage}.0.downsample.0"} & set(convolutions)
    assert {name for name, conv in convolutions.items() if conv.stride != (1, 1)} == expected
    assert all(convolutions[name].stride == (2, 2) for name in expected)


def test_bottlenecks_are_1_3_1_and_widen_four_times(rng):
    block = Bottleneck(6, 5, 2, Recipe(rng=rng))
    kernels = {name: conv.weight.data.shape for name, conv in modules_of(block, Conv2d).items()}
    assert kernels == {
        "conv1": (1, 1, 6, 5),
        "conv2": (3, 3, 5, 5),
        "conv3": (1, 1, 5, 20),
        "downsample.0": (1, 1, 6, 20),
    }


@pytest.mark.parametrize("name", ["resnet18", "plain18", "resnet50", "resnet20"])
def test_no_bias_before_batch_norm(name, rng):
    assert all(conv.bias is None for conv in modules_of(make_model(name, 2, rng=rng), Conv2d).values())


# Shortcuts


@pytest.mark.parametrize(
    ("block", "with_projection"),
    [(BasicBlock, {"layer2.0", "layer3.0", "layer4.0"}), (Bottleneck, {f"layer{stage}.0" for stage in (1, 2, 3, 4)})],
)
def test_projections_stand_only_where_size_or_channels_change(block, with_projection):
    names = {name.split(".downsample")[0] for name in narrow(block).state_dict() if "downsample" in name}
    assert names == with_projection


@pytest.mark.parametrize("option", ["A", "B"])
def test_nothing_stands_on_a_shortcut_that_changes_nothing(option):
    assert make_shortcut(4, 4, 1, option, Recipe()) is None


def test_option_a_takes_every_second_place_and_adds_zero_channels():
    x = np.arange(24.0).reshape(1, 3, 4, 2)
    shortcut = PadShortcut(2, 5, 2)
    np.testing.assert_array_equal(shortcut(x)[0, :, :, :2], [[[0, 1], [4, 5]], [[16, 17], [20, 21]]])
    assert not shortcut(x)[..., 2:].any()
    dx = shortcut.backward(np.ones((1, 2, 2, 5)))
    np.testing.assert_array_equal(dx[0, ..., 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(dx[..., 1], dx[..., 0])


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("training", [True, False])
def test_zero_init_residual_makes_each_block_the_activation_of_its_shortcut(block, option, training, rng):
    model = narrow(block, option=option, zero_init_residual=True, negative_slope=0.2, rng=rng)
    blocks = modules_of(model.train() if training else model.eval(), block)
    assert len(blocks) == 6
    for part in blocks.values():
        x = normal(rng, (2, 5, 4, part.conv1.weight.data.shape[2]), np.float32)
        shortcut = x if part.downsample is None else part.downsample(x)
        np.testing.assert_array_equal(part(x), np.where(shortcut > 0, shortcut, np.float32(0.2) * shortcut))


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
@pytest.mark.parametrize("zero_init", [True, False])
def test_only_the_last_norm_of_a_branch_starts_at_zero(block, last, zero_init):
    """Any norm of the branch would silence it, but with an earlier one no gradient would reach what lies before it."""
    norms = modules_of(narrow(block, zero_init_residual=zero_init), BatchNorm2d)
    silent = {name for name, norm in norms.items() if not norm.weight.data.any()}
    assert silent == ({name for name in norms if name.endswith(f".{last}")} if zero_init else set())
    assert all((norm.weight.data == 1).all() for name, norm in norms.items() if name not in silent)


# Initial weights


@pytest.mark.parametrize(
    ("options", "gain"),
    [
        ({}, np.sqrt(2 / 1.0001)),
        ({"negative_slope": 0.5}, np.sqrt(1.6)),
        ({"activation": "relu", "negative_slope": 0.5}, np.sqrt(2)),
    ],
)
@pytest.mark.parametrize("builder", [resnet18, resnet50])
def test_convolutions_start_as_he_et_al_say(builder, options, gain, rng):
    """Normal, mean 0, standard deviation gain / √fan-out: the standard deviation of 8000 numbers is good to 1 %."""
    weights = {name: conv.weight.data for name, conv in modules_of(builder(2, rng=rng, **options), Conv2d).items()}
    large = {name: weight for name, weight in weights.items() if weight.size >= 8000}
    assert len(large) >= 19
    for name, weight in large.items():
        kh, kw, _, filters = weight.shape
        expected = gain / np.sqrt(kh * kw * filters)
        assert weight.std() == pytest.approx(expected, rel=0.02), name
        assert abs(weight.mean()) < 5 * expected / np.sqrt(weight.size), name
        assert np.mean(np.abs(weight) < expected) == pytest.approx(0.6827, abs=0.03), name  # the normal distribution


def test_norms_and_classifier_start_as_in_pytorch(rng):
    model = resnet18(40, rng=rng)
    start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for norm in modules_of(model, BatchNorm2d).values():
        assert {name: set(np.ravel(array).tolist()) for name, array in norm.state_dict().items()} == {
            name: {value} for name, value in start.items()
        }
    bound = 1 / np.sqrt(512)  # evenly in ±1/√fan-in: the standard deviation is a √3rd of that
    assert np.abs(model.fc.weight.data).max() <= bound
    assert model.fc.weight.data.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert 0 < np.abs(model.fc.bias.data).max() <= bound


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_one_seed_one_network(block):
    first, same, other = (narrow(block, rng=np.random.default_rng(seed)).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    drawn = [name for name, array in first.items() if array.ndim > 1]
    assert not any(np.array_equal(first[name], other[name]) for name in drawn)


def test_without_a_generator_two_networks_differ():
    first, second = narrow(BasicBlock).state_dict(), narrow(BasicBlock).state_dict()
    assert not np.array_equal(first["conv1.weight"], second["conv1.weight"])


# Settings


def test_defaults_are_those_of_the_paper(rng):
    model = resnet18(40, rng=rng)
    assert (model.num_classes, model.in_channels, model.stem) == (40, 3, "imagenet")
    activations = modules_of(model, LeakyReLU).values()
    assert len(activations) == 1 + 2 * 8
    assert {activation.negative_slope for activation in activations} == {0.01}


def test_the_activation_reaches_every_place(rng):
    relu = narrow(Bottleneck, activation="relu")
    assert not modules_of(relu, LeakyReLU)
    assert len(modules_of(relu, ReLU)) == 1 + 3 * 6
    leaky = narrow(Bottleneck, negative_slope=0.3)
    assert {activation.negative_slope for activation in modules_of(leaky, LeakyReLU).values()} == {0.3}


def test_the_cifar_nets_have_a_small_stem_unless_asked(rng):
    assert resnet20(2, rng=rng).stem == "small"
    assert resnet20(2, stem="imagenet", rng=rng).stem == "imagenet"


def test_the_embedding_is_what_the_classifier_sees(rng):
    model = narrow(BasicBlock, rng=rng).eval()
    x = normal(rng, (3, 40, 33, 3), np.float32)
    embedding = model.embed(x)
    assert embedding.shape == (3, 10)
    fc = model.fc.state_dict()  # torchvision's layout, (K, features)
    assert_close(embedding @ fc["weight"].T + fc["bias"], model(x))  # (N, features) @ (features, K) -> (N, K)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "large"}, "stem among imagenet, small, got 'large'"),
        ({"activation": "gelu"}, "activation among leaky_relu, relu, got 'gelu'"),
        ({"option": "C"}, "option 'A' or 'B', got 'C'"),
        ({"num_classes": 0}, "at least one class, got 0"),
        ({"num_classes": -3}, "at least one class, got -3"),
        ({"in_channels": 0}, "at least one channel in and out, got 0 and 4"),
        ({"negative_slope": 2}, r"slope from 0 \(ReLU\) to 1 .*, got 2"),
        ({"negative_slope": -0.1}, "got -0.1"),
        ({"negative_slope": float("nan")}, "got nan"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(BasicBlock, (1, 1), (4, 6), **({"num_classes": 3} | arguments))


def test_unlike_numbers_of_depths_and_widths():
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        build(BasicBlock, (1, 1, 1), (4, 6), num_classes=3)


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"among resnet18, resnet34, .*plain110, got 'resnet19'"):
        make_model("resnet19", 10)


def test_option_a_cannot_lose_channels():
    with pytest.raises(ValueError, match="as many channels out as in, got 4 → 2"):
        PadShortcut(4, 2, 1)


@pytest.mark.parametrize(
    ("pictures", "error", "message"),
    [
        (np.zeros((2, 33, 33, 1), np.float32), ValueError, r"3 channels last, .* got \(2, 33, 33, 1\)"),
        (np.zeros((2, 3, 33, 32), np.float32), ValueError, "pictures are channels-last here"),
        (np.zeros((33, 33, 3), np.float32), ValueError, r"\(N, H, W, C\), got 3 axes"),
        (np.zeros((2, 33, 33, 3), np.uint8), TypeError, "floating point, got uint8"),
        (np.zeros((2, 33, 33, 3), np.float64), TypeError, "in float32 like the layer's parameters, got float64"),
    ],
)
def test_wrong_pictures(pictures, error, message):
    with pytest.raises(error, match=message):
        narrow(BasicBlock)(pictures)


def test_a_batch_of_one_on_maps_of_one_place_can_be_used_but_not_trained_on():
    model = narrow(BasicBlock)
    picture = np.zeros((1, 32, 32, 3), np.float32)  # 32 → 16 → 8 → 4 → 2 → 1
    with pytest.raises(ValueError, match="at least 2 values a channel to train batch norm"):
        model(picture)
    assert model.eval()(picture).shape == (1, 3)


# The table


def test_bytes_kept_by_hand():
    """Two pictures of 4 × 6 × 2 in float32; an array that two layers hold counts once, at the first of them."""
    model = Sequential(
        Conv2d(2, 3, 3, padding=1, bias=False),  # its input: 2·4·6·2 numbers of 4 bytes
        BatchNorm2d(3),  # its input, 2·4·6·3 numbers, and mean and 1/σ, 3 each
        LeakyReLU(),  # its output, 2·4·6·3
        Conv2d(3, 5, 1),  # the output of LeakyReLU, counted there
        MaxPool2d(2),  # a byte for each of 2·2·3·5 windows
        GlobalAvgPool2d(),  # a shape
        Flatten(),  # a shape
        Linear(5, 4),  # its input, 2·5
    )
    with record_layers(model) as records:
        model(np.ones((2, 4, 6, 2), np.float32))
    note_kept(model, records)
    assert [record.bytes_kept for record in records] == [384, 600, 576, 0, 60, 0, 0, 40]


def test_a_record_of_each_layer_in_order_and_nothing_left_behind(rng):
    model = narrow(BasicBlock, rng=rng)
    records = summarize(model, 48, batch=2)
    first = records[0]
    assert (first.name, first.kind, first.detail) == ("conv1", "Conv2d", "7×7, 3 → 4, stride 2")
    assert first.shape == (2, 24, 24, 4)
    assert first.multiply_adds == 2 * 24 * 24 * 4 * 7 * 7 * 3
    assert first.bytes_kept == 2 * 48 * 48 * 3 * 4
    leaves = {name for name, module in model.named_modules() if not any(module.children())}
    assert {record.name for record in records} == leaves
    assert not any("forward" in vars(module) or "backward" in vars(module) for _, module in model.named_modules())


@pytest.mark.parametrize(("size", "batch"), [(0, 1), (-4, 1), (32, 0)])
def test_no_table_without_pictures(size, batch):
    with pytest.raises(ValueError, match=f"at least 1, got {size} and {batch}"):
        summarize(narrow(BasicBlock), size, batch)


def test_the_command_prints_the_table():
    """As a reader runs it, with everything at its default."""
    command = [sys.executable, "-m", "resnet.models", "resnet18"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=True, encoding="utf-8")
    lines = done.stdout.splitlines()
    assert lines[0] == "resnet18: pictures 1 × 224 × 224 × 3"
    assert lines[1].split("  ")[0] == "layer"
    assert re.split(r"\s{2,}", lines[3])[:5] == [
        *("conv1", "Conv2d 7×7, 3 → 64, stride 2", "1 × 112 × 112 × 64", "9,408", "118,013,952")
    ]
    assert lines[-1].split()[:3] == ["total", "11,689,512", "1,814,073,344"]


def test_the_command_takes_size_classes_channels_and_batch(capsys):
    assert main(["resnet20", "--input", "9", "--classes", "5", "--channels", "1", "--batch", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet20: pictures 2 × 9 × 9 × 1"
    assert "2 × 9 × 9 × 16" in lines[3]
    assert re.split(r"\s{2,}", lines[-3])[:4] == ["fc", "Linear 64 → 5", "2 × 5", "325"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--input", "0"], "error: expected a picture size and a batch of at least 1, got 0 and 1"),
        (["resnet20", "--input", "-32"], "got -32 and 1"),
        (["resnet20", "--batch", "0"], "got 224 and 0"),
        (["resnet20", "--classes", "0"], "error: expected at least one class, got 0"),
        (["resnet20", "--channels", "0"], "error: expected at least one channel in and out, got 0 and 16"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19"], "invalid choice: 'resnet19'"),
        (["resnet18", "--input", "big"], "invalid int value"),
        ([], "MODEL"),
    ],
)
def test_the_command_says_how_it_is_used(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_plain_network_cannot_start_as_its_shortcuts():
    with pytest.raises(ValueError, match="zero_init_residual needs shortcuts"):
        make_model("plain20", 10, zero_init_residual=True)


@pytest.mark.parametrize("training", [True, False])
def test_a_summary_leaves_the_state_and_no_caches(training, rng):
    model = make_model("resnet20", 3, rng=rng)
    model = model.train() if training else model.eval()
    summarize(model, 16)
    assert all(module.training is training and module.kept() is None for _, module in model.named_modules())


def test_pictures_too_large_for_the_machine_are_an_error_without_a_traceback(capsys):
    assert main(["resnet18", "--input", "10000000"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
