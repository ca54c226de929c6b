"""Networks as ONNX files: what ONNX's checker, onnxruntime and ONNX's reference evaluator make of them.

Outputs are compared with ours on random pictures. Embeddings and logits may differ by 1e-5 of the largest number of
their batch: absolutely, that is 1e-5 for logits of size 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment import SMALL, Settings
from PIL import Image
from tiny import quick, write_people

import train
from nn import BatchNorm2d, LeakyReLU, ReLU
from nn.checkpoint import load_weights, save_weights
from resnet import __version__, export
from resnet.data.batches import to_network_input
from resnet.inference import TrainedNetwork, load_network

onnx = pytest.importorskip("onnx", exc_type=ImportError)
reference = pytest.importorskip("onnx.reference", exc_type=ImportError)

ROOT = Path(__file__).parent.parent
MEAN, STD = (0.31, 0.52, 0.68), (0.17, 0.26, 0.41)  # so unlike that two colours that change places are noticed


def network(name="resnet20", size=16, channels=3, people=7, **options):
    """A network with weights, scales, shifts and statistics none of which is 0 or 1: folding has something to fold."""
    settings = Settings(name, (1, size, size), channels, people, **({"stem": "small"} | options))
    model = settings.model()
    model.load_state_dict(settings.start(model.state_dict()))
    names = tuple(f"person {number}" for number in range(people))
    return TrainedNetwork(model.eval(), Path("run"), names, size, MEAN[:channels], STD[:channels], name)


def pictures(of: TrainedNetwork, count, seed=1):
    shape = (count, of.image_size, of.image_size, of.model.in_channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ours(of: TrainedNetwork, shown):
    """What our network says, its batch norms not folded, in double precision: embeddings (N, D) and logits (N, K)."""
    model = of.model.astype(np.float64).eval()
    x = to_network_input(shown, of.mean, of.std).astype(np.float64)
    answer = model.embed(x), model(x)
    of.model.astype(np.float32)
    return answer


def session(content: bytes):
    runtime = pytest.importorskip("onnxruntime", exc_type=ImportError)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # on a busy machine others would spin
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def assert_agree(theirs, expected, tolerance=1e-5):
    for array, truth in zip(theirs, expected, strict=True):
        assert array.shape == truth.shape
        assert array.dtype == np.float32
        largest = np.abs(truth).max()
        assert 0 < largest < np.inf
        np.testing.assert_allclose(array / largest, truth / largest, rtol=0, atol=tolerance)


# The same outputs

NETWORKS = {
    "resnet18, grey": {"name": "resnet18", "size": 33, "channels": 1, "stem": "imagenet"},
    "resnet18, small stem, slope 0.37": {"name": "resnet18", "size": 9, "negative_slope": 0.37},
    "resnet50": {"name": "resnet50", "size": 33, "stem": "imagenet"},
    "plain18, grey, ReLU": {"name": "plain18", "size": 37, "channels": 1, "stem": "imagenet", "activation": "relu"},
    "resnet20": {"name": "resnet20", "size": 17},
    "resnet20, imagenet stem": {"name": "resnet20", "size": 33, "stem": "imagenet", "negative_slope": 0.2},
    "resnet56, grey, ReLU": {"name": "resnet56", "size": 13, "channels": 1, "activation": "relu"},
    "plain20, slope 1": {"name": "plain20", "size": 16, "negative_slope": 1.0},
    **{name: {"name": name, "size": 33, "stem": "imagenet", "negative_slope": 0.23} for name in SMALL},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_says_what_we_say_whatever_the_batch(name):
    exported = network(**NETWORKS[name])
    runs = session(export.to_onnx(exported).SerializeToString())
    for count in (1, 2, 5):
        shown = pictures(exported, count)
        assert_agree(runs.run(["embedding", "logits"], {"pictures": shown}), ours(exported, shown))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", SMALL)
def test_so_does_the_reference_evaluator(name, stem):
    exported = network(name, 21, stem=stem, negative_slope=0.23)
    evaluator = reference.ReferenceEvaluator(export.to_onnx(exported))
    shown = pictures(exported, 2)
    assert_agree(evaluator.run(["embedding", "logits"], {"pictures": shown}), ours(exported, shown))


@pytest.mark.parametrize("opset", [11, 12, 15, 18])
def test_other_versions_of_the_operators_say_the_same(opset):
    exported = network(size=9)
    model = export.to_onnx(exported, opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    shown = pictures(exported, 2)
    runs = session(model.SerializeToString())
    assert_agree(runs.run(["embedding", "logits"], {"pictures": shown}), ours(exported, shown))


def test_where_all_is_negative_the_frame_of_max_pooling_does_not_win():
    """Behind LeakyReLU every value is negative; a frame of zeros would be the largest in each window at the edge."""
    exported = network("small basic", 15, stem="imagenet", negative_slope=0.5)
    exported.model.bn1.bias.data[:] = -20
    x = to_network_input(pictures(exported, 2), exported.mean, exported.std)
    stem = exported.model.relu(exported.model.bn1(exported.model.conv1(x)))
    assert stem.max() < 0
    assert exported.model.maxpool(stem).max() < 0
    model, shown = export.to_onnx(exported), pictures(exported, 2)
    expected = ours(exported, shown)
    feed = (["embedding", "logits"], {"pictures": shown})
    assert_agree(session(model.SerializeToString()).run(*feed), expected)
    assert_agree(reference.ReferenceEvaluator(model).run(*feed), expected)


def test_black_and_white_are_normalised_as_ours():
    exported = network(size=8)
    shown = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 255)])
    runs = session(export.to_onnx(exported).SerializeToString())
    assert_agree(runs.run(["embedding", "logits"], {"pictures": shown}), ours(exported, shown))


def test_the_embedding_of_a_picture_and_its_mirror_image_is_ours():
    """That of `TrainedNetwork.embeddings`, as the file's words say."""
    exported = network(size=12)
    shown = pictures(exported, 3)
    runs = session(export.to_onnx(exported).SerializeToString())
    straight, mirrored = (runs.run(["embedding"], {"pictures": x})[0] for x in (shown, shown[:, :, ::-1]))
    assert_agree([(straight + mirrored) / 2], [exported.embeddings(shown)])
    assert "mirror image" in export.to_onnx(exported).doc_string


# What is in the file


def test_nodes_and_numbers_have_the_names_of_our_parts_and_the_batch_norms_are_gone():
    model = export.to_onnx(network("small basic", 33, stem="imagenet"))
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    kinds = {name: node.op_type for name, node in nodes.items() if not name.startswith("normalise")}
    assert list(kinds.items())[:8] == [
        ("conv1", "Conv"),
        ("relu", "LeakyRelu"),
        ("maxpool", "MaxPool"),
        ("layer1.0.conv1", "Conv"),
        ("layer1.0.relu1", "LeakyRelu"),
        ("layer1.0.conv2", "Conv"),
        ("layer1.0.add", "Add"),
        ("layer1.0.relu2", "LeakyRelu"),
    ]
    assert kinds["layer2.0.downsample.0"] == "Conv"
    assert list(kinds.items())[-3:] == [("avgpool", "GlobalAveragePool"), ("flatten", "Flatten"), ("fc", "Gemm")]
    assert "BatchNormalization" not in kinds.values()
    assert list(nodes["layer2.0.conv1"].input) == [
        "layer1.0.relu2",
        "layer2.0.conv1.weight",
        "layer2.0.conv1.bias",
    ]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert shapes["layer2.0.conv1.weight"] == (5, 3, 3, 3)  # F, C, KH, KW
    assert shapes["fc.weight"] == (7, 8)
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_what_the_file_says_of_itself(tmp_path):
    exported = replace(network("resnet20", 24, channels=1, people=3), people=("Zoë", "José\n", "王"))
    onnx.save(export.to_onnx(exported), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["people"]) == ["Zoë", "José\n", "王"]
    assert {name: facts[name] for name in ("image_size", "channels", "arch", "version")} == {
        "image_size": "24",
        "channels": "1",
        "arch": "resnet20",
        "version": __version__,
    }
    assert ".convert('L').resize((24, 24), Image.Resampling.BILINEAR)" in facts["resize"]
    assert "RGB" in export.metadata(network())["resize"]
    assert "uint8 (batch, 24, 24, 1)" in model.doc_string
    assert (model.producer_name, model.producer_version) == ("masked-resnet", __version__)
    assert [entry.version for entry in model.opset_import] == [13]
    assert model.ir_version == 7  # what came with opset 13: runtimes of 2020 read it
    assert session(model.SerializeToString()).get_modelmeta().custom_metadata_map == facts


def test_inputs_and_outputs():
    runs = session(export.to_onnx(network("resnet20", 24, channels=1, people=3)).SerializeToString())
    (shown,) = runs.get_inputs()
    assert (shown.name, shown.type, shown.shape) == ("pictures", "tensor(uint8)", ["batch", 24, 24, 1])
    assert [(output.name, output.type, output.shape) for output in runs.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 3]),
        ("embedding", "tensor(float)", ["batch", 64]),
    ]


def test_the_network_itself_stays_as_it_is():
    exported = network(size=8)
    before = exported.model.state_dict()
    export.to_onnx(exported)
    assert all(np.array_equal(array, before[name]) for name, array in exported.model.state_dict().items())
    assert isinstance(exported.model.bn1, BatchNorm2d)


@pytest.mark.parametrize("device", ["strict"], indirect=True)
def test_a_network_on_a_gpu_gives_the_same_file(device):
    exported = network(size=8)
    expected = export.to_onnx(exported).SerializeToString()
    exported.model.to("cupy")
    assert isinstance(exported.model.conv1.weight.data, device.ndarray)
    assert export.to_onnx(exported).SerializeToString() == expected
    assert isinstance(exported.model.conv1.weight.data, device.ndarray)


# What is refused


def test_a_module_of_a_kind_that_is_not_known_is_named():
    class Swish(ReLU):
        """A subclass may compute anything."""

    exported = network(size=8)
    exported.model.layer2[1].relu1 = Swish()
    with pytest.raises(
        ValueError, match=r"layer2\.1\.relu1: a Swish cannot be exported; .* Known: ResNet, .*LeakyReLU"
    ):
        export.to_onnx(exported)


@pytest.mark.parametrize("opset", [10, 1000])
def test_operators_that_are_too_old_or_of_the_future(opset):
    with pytest.raises(ValueError, match=rf"expected --opset from 11 to \d+, .* got {opset}"):
        export.to_onnx(network(size=8), opset)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny training, and the photographs it was tested on."""
    home = tmp_path_factory.mktemp("export")
    assert train.main(quick(write_people(home / "people"), home / "run", epochs=2, learning_rate=0.05)) == 0
    return home / "run"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.onnx"


def test_the_command_writes_what_a_program_without_us_can_use(run, file, capsys):
    """Picture files through Pillow and onnxruntime: the logits of our network, and the accuracy in results.json."""
    assert export.main([str(run), str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert "pictures uint8 (batch, 16, 16, 1) -> logits float32 (batch, 4), embedding float32 (batch, 64)" in lines[0]
    difference = float(lines[1].split(" by ")[1].split()[0])
    assert 0 < difference <= 1e-5
    assert lines[2].startswith(f"written: {file} (")

    runs = session(file.read_bytes())
    facts = runs.get_modelmeta().custom_metadata_map
    size, people = int(facts["image_size"]), json.loads(facts["people"])
    files = json.loads((run / "config.json").read_text())["test_files"]
    resized = [Image.open(f).convert("L").resize((size, size), Image.Resampling.BILINEAR) for f in files]
    shown = np.stack([np.asarray(picture) for picture in resized])[..., None]  # (N, H, W) -> (N, H, W, 1)
    (logits,) = runs.run(["logits"], {"pictures": shown})
    assert_agree([logits], [load_network(run, "numpy").logits(shown)])
    right = np.mean([people[k] == Path(f).parent.name for k, f in zip(logits.argmax(axis=1), files, strict=True)])
    assert right == json.loads((run / "results.json").read_text())["rank1"]["resnet20 LeakyReLU"]["clean"]


def test_a_file_of_weights_can_be_exported_as_well(run, file, tmp_path):
    state, metadata = load_weights(run / "best.safetensors")
    state["fc.bias"] += np.float32([100, 0, 0, 0])
    save_weights(tmp_path / "other.safetensors", state, metadata)
    assert export.main([str(tmp_path / "other.safetensors"), str(file), "--opset", "17"]) == 0
    (logits,) = session(file.read_bytes()).run(["logits"], {"pictures": np.zeros((2, 16, 16, 1), np.uint8)})
    assert (logits.argmax(axis=1) == 0).all()
    assert onnx.load(file).opset_import[0].version == 17


def fails(arguments, capsys, status=1):
    """Run the command, see it fail without a traceback, and return what it said."""
    assert export.main([str(argument) for argument in arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_an_earlier_file_is_replaced_only_if_told_so(run, file, capsys):
    file.write_bytes(b"earlier")
    assert "--overwrite" in fails([run, file], capsys)
    assert file.read_bytes() == b"earlier"
    assert export.main([str(run), str(file), "--overwrite"]) == 0
    onnx.checker.check_model(onnx.load(file))


def test_places_that_cannot_be_written_to(run, tmp_path, monkeypatch, capsys):
    assert "name a file in it" in fails([run, tmp_path], capsys)
    assert "make it first" in fails([run, tmp_path / "nowhere" / "model.onnx"], capsys)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_atomically", full)
    error = fails([run, tmp_path / "model.onnx"], capsys)
    assert f"cannot write {tmp_path / 'model.onnx'} (No space left on device)" in error


def test_runs_that_cannot_be_exported(tmp_path, file, capsys):
    assert "train one" in fails([tmp_path / "nothing", file], capsys)
    save_weights(tmp_path / "torchvision.safetensors", network().model.state_dict())
    assert "train.py --weights" in fails([tmp_path / "torchvision.safetensors", file], capsys)
    assert not file.exists()


def test_without_onnx_the_error_says_how_to_install_it(run, file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install -e '.[onnx]'" in fails([run, file], capsys)
    assert not file.exists()


def test_without_onnxruntime_it_is_written_and_said_not_to_be_compared(run, file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main([str(run), str(file)]) == 0
    assert "not compared" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(file), full_check=True)


@pytest.mark.parametrize("mistake", ["slope", "not a number"])
def test_nothing_is_written_if_onnxruntime_differs(mistake, run, file, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", exc_type=ImportError)

    def wrong(graph, relu, x, name):
        alpha = 0.011 if mistake == "slope" else np.nan
        return graph.add("LeakyRelu", name, x, alpha=alpha)

    monkeypatch.setattr(export, "KINDS", export.KINDS | {LeakyReLU: wrong})
    assert "onnxruntime's outputs differ from ours by" in fails([run, file], capsys)
    assert not file.exists()
    assert not list(file.parent.glob(".*"))


def test_a_file_that_onnxruntime_does_not_run_is_an_error(run, file, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", exc_type=ImportError)

    def unheard(graph, relu, x, name):
        return graph.add("Unheard", name, x)

    monkeypatch.setattr(export, "KINDS", export.KINDS | {LeakyReLU: unheard})
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    assert "does not run the file" in fails([run, file], capsys)
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "RUN"),
        (["run"], "FILE"),
        (["", "model.onnx"], "empty"),
        (["run", "model.onnx", "--opset", "10"], "whole number from 11 on"),
    ],
)
def test_wrong_use_exits_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        export.main(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, file):
    with pytest.raises(FileNotFoundError):
        export.main([str(tmp_path / "nothing"), str(file), "--debug"])


def test_the_command_runs_as_a_module(run, file):
    command = [sys.executable, "-m", "resnet.export", run, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"written: {file}" in done.stdout.splitlines()[-1]
