"""Weights from elsewhere and to elsewhere: torchvision's names in safetensors files, heads of others, grey pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import assert_close, normal
from experiment import Settings
from tiny import quick, write_people

import train
from nn.checkpoint import load_weights, save_weights
from resnet.config import TrainingConfig
from resnet.models import make_model
from resnet.training import prepare
from resnet.weights import fit_channels, load_pretrained

PEOPLE = [f"person{number}" for number in range(5)]


def network(arch="resnet20", classes=5, channels=1, seed=0, **options):
    return make_model(arch, classes, channels, rng=np.random.default_rng(seed), **options)


def other_weights(model, seed=7):
    """A state dict for a network, none of whose numbers are those it has, or those of a batch norm that is new."""
    return Settings("", (1, 1, 1), seed=seed).start(model.state_dict())


def assert_equal_states(one, other, names=None):
    for name in one if names is None else names:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# What is taken and what is not


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.safetensors"


def test_a_run_of_the_same_people_is_taken_whole_and_without_a_note(file):
    model = network()
    state = other_weights(model)
    save_weights(file, state, {"people": json.dumps(PEOPLE), "activation": '"leaky_relu"'})
    assert load_pretrained(model, file, PEOPLE) == []
    assert_equal_states(state, model.state_dict())


@pytest.mark.parametrize(
    "metadata",
    [
        {"people": json.dumps(PEOPLE[::-1])},  # the same in another order: the first logit would be the last person's
        {"people": json.dumps(["someone", *PEOPLE[1:]])},
        {"people": "5"},
        {"people": "no json ["},
        {"people": "[" * 100_000},
        {},
    ],
)
def test_a_classifier_that_may_be_for_others_is_left_out(metadata, file):
    model = network()
    before, state = model.state_dict(), other_weights(model)
    save_weights(file, state, {"activation": '"leaky_relu"'} | metadata)
    (note,) = load_pretrained(model, file, PEOPLE)
    assert "classifier" in note
    assert "begins anew" in note
    after = model.state_dict()
    assert_equal_states(before, after, ("fc.weight", "fc.bias"))
    assert_equal_states(state, after, [name for name in state if not name.startswith("fc")])


@pytest.mark.parametrize("classes", [1000, 3])
def test_a_classifier_of_another_number_of_people_is_left_out(classes, file):
    model, other = network(), network(classes=classes)
    before = model.state_dict()
    save_weights(file, other_weights(other))
    assert any("begins anew" in note for note in load_pretrained(model, file, PEOPLE))
    assert_equal_states(before, model.state_dict(), ("fc.weight", "fc.bias"))


def test_a_file_may_be_without_a_classifier_and_without_counters(file):
    """Counters of batches are younger than PyTorch 0.4.1, and files that old are still about."""
    model = network()
    before, state = model.state_dict(), other_weights(model)
    kept = {name: array for name, array in state.items() if "num_batches" not in name and "fc" not in name}
    assert len(kept) < len(state) - 2
    save_weights(file, kept)
    load_pretrained(model, file, PEOPLE)
    after = model.state_dict()
    assert_equal_states(kept, after, kept)
    assert_equal_states(before, after, [name for name in before if name not in kept])


def test_kernels_for_colour_by_hand():
    kernels = np.arange(1.0, 13.0).reshape(2, 3, 2, 1)  # (F, C, KH, KW): 1 2, 3 4, 5 6 and 7 8, 9 10, 11 12
    np.testing.assert_array_equal(fit_channels(kernels, 1).ravel(), [9, 12, 27, 30])
    spread = fit_channels(fit_channels(kernels, 1), 3)
    assert spread.shape == kernels.shape
    np.testing.assert_array_equal(spread[0, :, 0, 0], [3, 3, 3])


def test_weights_of_grey_pictures_go_on_with_colour(file, rng):
    """A colour picture without colours gets the embedding that the grey one had."""
    grey, colour = network(channels=1), network(channels=3, seed=1)
    state = other_weights(grey)
    grey.load_state_dict(state)
    save_weights(file, state)
    notes = load_pretrained(colour, file, PEOPLE)
    assert any("spread over three colours" in note for note in notes)
    x = normal(rng, (2, 9, 11, 1), np.float32)
    assert_close(colour.inference().embed(np.repeat(x, 3, axis=3)), grey.inference().embed(x))


def test_half_precision_is_taken_and_summed_in_single(file):
    model = network()
    state = {name: array.astype(np.float16) for name, array in other_weights(network(channels=3)).items()}
    save_weights(file, state)  # counters are of float16 too: PyTorch users convert dictionaries in one go
    load_pretrained(model, file, PEOPLE)
    taken = model.state_dict()["conv1.weight"]
    assert taken.dtype == np.float32
    assert_close(taken, state["conv1.weight"].astype(np.float64).sum(axis=1, keepdims=True))


def test_relu_is_recommended_only_where_the_file_is_silent_and_we_have_none(file):
    state = other_weights(network())
    said = {}
    for name, metadata in (("silent", {}), ("said", {"activation": '"relu"'})):
        save_weights(file, state, metadata)
        for activation in ("relu", "leaky_relu"):
            notes = load_pretrained(network(activation=activation), file, PEOPLE)
            said[name, activation] = any("--activation relu" in note for note in notes)
    assert [pair for pair, note in said.items() if note] == [("silent", "leaky_relu")]


@pytest.mark.parametrize("device", ["strict"], indirect=True)
def test_a_network_on_a_gpu_takes_the_same_weights(device, file):
    on_cpu, on_gpu = network(), network().to("cupy")
    save_weights(file, other_weights(network(channels=3)))
    for model in (on_cpu, on_gpu):
        load_pretrained(model, file, PEOPLE)
    assert isinstance(on_gpu.conv1.weight.data, device.ndarray)
    assert_equal_states(on_cpu.state_dict(), on_gpu.state_dict())


# What is refused; the network stays as it was


def refuses(model, file, words, error=ValueError):
    before = model.state_dict()
    with pytest.raises(error) as caught:
        load_pretrained(model, file, PEOPLE)
    assert_equal_states(before, model.state_dict())
    for word in (*words, str(file)):
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer2.0.bn1.running_var"), ["missing: layer2.0.bn1.running_var (32,)"]),
        (lambda state: state.update(surplus=np.zeros(3)), ["unexpected: surplus (3,)"]),
        (
            lambda state: state.update({"bn1.bias": np.zeros((16, 1))}),
            ["wrong shape: bn1.bias expected (16,), got (16, 1)"],
        ),
        (
            lambda state: state.update({"conv1.weight": np.zeros((16, 2, 3, 3))}),
            ["expected (16, 1, 3, 3), got (16, 2, 3, 3)"],
        ),
        (
            lambda state: state.update({"conv1.weight": np.zeros((16, 3, 7, 7))}),
            ["expected (16, 1, 3, 3), got (16, 3, 7, 7)", "--stem"],
        ),
        (lambda state: state.update({"conv1.weight": np.zeros(3)}), ["expected (16, 1, 3, 3), got (3,)"]),
        (
            lambda state: state.update({"conv1.weight": np.zeros((16, 3, 3, 3), np.int8)}),
            ["expected (16, 1, 3, 3), got (16, 3, 3, 3)"],
        ),
        (lambda state: state.update({"conv1.weight": np.full((16, 3, 3, 3), np.nan)}), ["not finite: conv1.weight"]),
        (lambda state: state["layer1.0.conv1.weight"].fill(np.nan), ["not finite: layer1.0.conv1.weight"]),
        (lambda state: state["bn1.bias"].fill(-np.inf), ["not finite: bn1.bias"]),
        (lambda state: state.update({"bn1.bias": np.full(16, 1e39)}), ["not finite: bn1.bias"]),  # not in float32
        (lambda state: state.update({"bn1.bias": np.zeros(16, np.int8)}), ["wrong kind: bn1.bias", "int8"]),
        (
            lambda state: state.update({"layer1.1.bn2.bias": np.zeros(16, np.complex64)}),
            ["layer1.1.bn2.bias", "C64"],
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, words, file):
    model = network()
    state = other_weights(model)
    change(state)
    save_weights(file, state, {"people": json.dumps(PEOPLE)})
    refuses(model, file, words)


@pytest.mark.parametrize("metadata", [{}, {"arch": '"resnet32"'}])
def test_another_architecture_is_named_as_far_as_it_is_known_and_in_few_lines(metadata, file):
    save_weights(file, network("resnet32").state_dict(), metadata)
    said = refuses(network(), file, ["--arch", "unexpected: layer1.3.", *metadata.values()])
    assert said.count("\n") <= 12


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torch_save_is_not_opened_and_the_error_says_how_to_convert_it(old, tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    file = tmp_path / "resnet18.pth"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=not old)
    refuses(network(), file, ["torch.save", "safetensors.torch.save_file(model.state_dict(), "])


def test_what_else_may_be_given_by_mistake(tmp_path):
    (tmp_path / "text.safetensors").write_text("version https://git-lfs")
    said = refuses(network(), tmp_path / "text.safetensors", ["expected a safetensors file"])
    assert "torch.save" not in said
    refuses(network(), tmp_path / "nothing.safetensors", ["found none"], FileNotFoundError)
    refuses(network(), tmp_path, ["found a folder"], FileNotFoundError)


# PyTorch: torchvision's ResNet18 comes here, ours go there


@pytest.fixture
def one_torch_thread():
    """Keep PyTorch on one thread, as conftest.py keeps NumPy: on a busy machine the others spin."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torch_network(name, classes, channels, stem="imagenet", activation="relu", slope=0.01):
    """PyTorch's twin."""
    pytest.importorskip("torch", exc_type=ImportError)
    from benchmarks.torch_networks import NETWORKS, ResNet, Style

    block, depths, widths, option = NETWORKS[name]
    return ResNet(block, depths, widths, classes, channels, stem, Style(activation, slope, option)).eval()


def with_weights(model):
    """Give a PyTorch network weights that nobody else has, and statistics as after a training."""
    import torch

    state = Settings("", (1, 1, 1), seed=3).start({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model


def torch_logits(model, x):
    import torch

    with torch.no_grad():
        turned = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))  # (N, H, W, C) -> (N, C, H, W)
        return model(turned).numpy()


def torch_embedding(model, x):
    import torch

    fc, model.fc = model.fc, torch.nn.Identity()
    embedding = torch_logits(model, x)
    model.fc = fc
    return embedding


TORCHVISION = {"activation": "relu", "rng": np.random.default_rng(0)}


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory):
    """A network as torchvision's ResNet18, with 1000 classes and for colour, and the file that PyTorch wrote of it."""
    pytest.importorskip("torch", exc_type=ImportError)
    import safetensors.torch

    model = with_weights(torch_network("resnet18", 1000, 3))
    file = tmp_path_factory.mktemp("torchvision") / "resnet18.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return model, file


@pytest.mark.usefixtures("one_torch_thread")
def test_torchvisions_resnet18_gives_the_same_1000_logits_here(torchvision, rng):
    theirs, file = torchvision
    ours = make_model("resnet18", 1000, 3, **TORCHVISION)
    assert ours.load_state_dict(load_weights(file)[0], strict=True) == ([], [])
    x = normal(rng, (2, 65, 50, 3), np.float32)
    assert_close(ours.inference()(x), torch_logits(theirs, x))
    x = x.astype(np.float64)
    assert_close(ours.astype(np.float64)(x), torch_logits(theirs.double(), x))
    theirs.float()


@pytest.mark.usefixtures("one_torch_thread")
def test_torchvisions_resnet18_begins_a_training_of_40_people_on_grey_pictures(torchvision, rng):
    """The embedding of a grey picture is that of PyTorch's network for it in three equal colours; the head is new."""
    theirs, file = torchvision
    ours = make_model("resnet18", 40, 1, **TORCHVISION)
    before = ours.state_dict()
    notes = load_pretrained(ours, file, [f"s{number}" for number in range(40)])
    assert [("summed for grey" in note, "begins anew" in note) for note in notes] == [(True, False), (False, True)]
    x = normal(rng, (2, 65, 50, 1), np.float32)
    assert_close(ours.inference().embed(x), torch_embedding(theirs, np.repeat(x, 3, axis=3)))
    assert_equal_states(before, ours.state_dict(), ("fc.weight", "fc.bias"))


@pytest.mark.usefixtures("one_torch_thread")
def test_torchvisions_resnet18_begins_a_training_in_colour(torchvision, rng):
    theirs, file = torchvision
    ours = make_model("resnet18", 40, 3, **TORCHVISION)
    (note,) = load_pretrained(ours, file, PEOPLE)
    assert "begins anew" in note
    x = normal(rng, (2, 33, 50, 3), np.float32)
    assert_close(ours.inference().embed(x), torch_embedding(theirs, x))


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(
    ("name", "size", "channels", "stem", "activation", "slope"),
    [
        ("resnet18", (39, 33), 1, "imagenet", "leaky_relu", 0.01),
        ("resnet18", (9, 14), 3, "small", "leaky_relu", 0.3),
        ("resnet50", (39, 33), 3, "imagenet", "leaky_relu", 0.01),
        ("resnet20", (9, 14), 1, "small", "relu", 0.0),
    ],
)
def test_ours_give_the_same_logits_in_pytorch(name, size, channels, stem, activation, slope, file, rng):
    theirs = torch_network(name, 6, channels, stem, activation, slope)
    import safetensors.torch

    ours = make_model(name, 6, channels, stem=stem, activation=activation, negative_slope=slope, rng=rng)
    norms = {name: array for name, array in ours.state_dict().items() if array.ndim < 2}
    ours.load_state_dict(Settings("", (1, 1, 1)).start(norms), strict=False)  # as after a training
    save_weights(file, ours.state_dict(), {"people": json.dumps(PEOPLE)})
    assert (
        str(theirs.load_state_dict(safetensors.torch.load_file(file), strict=True)) == "<All keys matched successfully>"
    )
    x = normal(rng, (2, *size, channels), np.float32)
    expected = torch_logits(theirs, x)
    assert np.abs(expected).max() > 0.1
    assert_close(ours.inference()(x), expected)
    x = x.astype(np.float64)
    assert_close(ours.astype(np.float64)(x), torch_logits(theirs.double(), x))


# The command


@pytest.fixture
def people(tmp_path):
    return write_people(tmp_path / "people")


def test_a_training_begins_with_the_weights_of_a_run(people, tmp_path):
    """The same people keep the classifier; others get a new one, and all else is the run's."""
    assert train.main(quick(people, tmp_path / "first", epochs=1, learning_rate=0.01)) == 0
    file = tmp_path / "first" / "best.safetensors"
    state, _ = load_weights(file)
    settings = {"data": "folder", "arch": "resnet20", "stem": "small", "image_size": 16, "backend": "numpy"}
    same = prepare(TrainingConfig(**settings, data_dir=str(people), weights=str(file)))
    assert same.notes == []
    assert_equal_states(state, same.model.state_dict())

    others = write_people(tmp_path / "others", people=3, seed=1)
    config = TrainingConfig(**settings, data_dir=str(others), weights=str(file))
    new, plain = prepare(config).model.state_dict(), prepare(config, pretrained=False).model.state_dict()
    heads = ("fc.weight", "fc.bias")
    assert_equal_states(new, plain, heads)
    assert_equal_states(new, state, [name for name in state if name not in heads])
    assert not np.array_equal(new["conv1.weight"], plain["conv1.weight"])


def test_a_training_begins_with_pytorchs_weights(people, tmp_path, capsys):
    theirs = with_weights(torch_network("resnet20", 1000, 3, "small"))
    import safetensors.torch

    file = tmp_path / "pytorch.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    arguments = quick(people, tmp_path / "run", epochs=1, weights=file, learning_rate=1e-30, schedule="constant")
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    for words in ("summed for grey", "begins anew", "--activation relu keeps"):
        assert words in printed
    trained, _ = load_weights(tmp_path / "run" / "model.safetensors")
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert_equal_states(trained, state, ["layer1.0.conv1.weight", "layer3.2.bn2.weight"])
    assert_close(trained["conv1.weight"], state["conv1.weight"].astype(np.float64).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 a zip"])
def test_weights_that_cannot_be_used_end_the_command_before_it_writes(content, people, tmp_path, capsys):
    file = tmp_path / "weights"
    if content is not None:
        file.write_bytes(content)
    assert train.main(quick(people, tmp_path / "run", weights=file)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(file) in error
    assert not (tmp_path / "run").exists()
