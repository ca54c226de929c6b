"""Weights to and from disk; what others made, or what is damaged, is refused by name, and nothing is changed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_loaders import trainings
from hypothesis import given
from hypothesis import strategies as st

import nn.checkpoint
from nn import BatchNorm2d, Conv2d, Sequential
from nn.checkpoint import LARGEST_HEADER, load_weights, save_weights, write_atomically
from resnet.checkpoint import FILE, read_checkpoint
from resnet.models import resnet20


def test_a_state_dict_survives_the_disk(tmp_path):
    model = resnet20(3, rng=np.random.default_rng(1))
    save_weights(tmp_path / "model.safetensors", model.state_dict(), {"people": "3"})
    state, metadata = load_weights(tmp_path / "model.safetensors")
    assert metadata == {"people": "3"}
    assert set(state) == set(model.state_dict())
    assert state["conv1.weight"].shape == (16, 3, 3, 3)  # OIHW
    assert state["bn1.num_batches_tracked"].shape == ()
    for name, array in model.state_dict().items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)


def test_a_strided_array_is_written_as_it_reads(tmp_path):
    array = np.arange(24.0).reshape(4, 6)[::2, ::-1]
    save_weights(tmp_path / "a.safetensors", {"a": array})
    np.testing.assert_array_equal(load_weights(tmp_path / "a.safetensors")[0]["a"], array)


def test_a_failed_write_leaves_the_earlier_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors, found none"):
        load_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        load_weights(tmp_path)


# Files of other kinds


def zipped() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [zipped(), *(pickle.dumps({"a": 1}, protocol) for protocol in (2, 3, 4, 5))])
def test_a_pickle_is_not_read_and_it_is_told_how_to_convert_it(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth: expected a safetensors file, found a .*pickle") as error:
        load_weights(tmp_path / "a.pth")
    assert 'safetensors.torch.save_file(model.state_dict(), "FILE.safetensors")' in str(error.value)


def test_a_file_of_torch_save_is_a_pickle(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError, reason="PyTorch is not installed")
    for new in (True, False):
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match=r"found a .*pickle"):
            load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 64,
        b"\x01" + b"\0" * 7 + b"0",
        b"\x93NUMPY\x01\0",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        b"conv1.weight,1.0\n" * 9,
        b"\xff" * 64,
        (10**15).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_foreign_or_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    length, size = f"{int.from_bytes(content[:8], 'little'):,}", f"{len(content):,}"
    words = rf"broken\.safetensors: expected a safetensors file, .* length of {length} in a file of {size} bytes"
    with pytest.raises(ValueError, match=words):
        load_weights(path)


# Headers


def make_file(path: Path, header: Any, numbers: bytes = b"") -> Path:
    """Write a file by hand: the header as JSON, or as it is if it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file_by_hand_is_read(tmp_path):
    header = {"a.b": tensor(), "c": tensor("I64", [], [8, 16]), "d": tensor("F16", [0, 3], [8, 8])}
    numbers = np.array([1.5, -2], "<f4").tobytes() + np.array(7, "<i8").tobytes()
    state, metadata = load_weights(make_file(tmp_path / "a", header | {"__metadata__": {"k": "v"}}, numbers))
    assert metadata == {"k": "v"}
    assert {name: (array.dtype, array.tolist()) for name, array in state.items()} == {
        "a.b": (np.float32, [1.5, -2.0]), "c": (np.int64, 7), "d": (np.float16, []),
    }  # fmt: skip
    assert state["d"].shape == (0, 3)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{,", "whose header is JSON: Expecting"),
        (b"\xff\xfe{}", "whose header is JSON: .*utf-8"),
        (b"[" * 200_000, "whose header is JSON: .*recursion"),
        (b"9" * 9000, "whose header is JSON: .*4300 digits"),
        ([], r"expected a header that tells of tensors by name, got \[\]"),
        ({"__metadata__": []}, r"metadata as words by name, got \[\]"),
        ({"__metadata__": {"a": 1}}, "expected words for 'a' in the metadata, got 1"),
        ({"a": 5}, "a: expected dtype, shape and data_offsets, got 5"),
        ({"a": {"dtype": "F32"}}, "a: expected dtype, shape and data_offsets, got dict"),
        ({"a": tensor("F8_E4M3", [8])}, "a: expected a dtype of F64, F32, .*, got 'F8_E4M3'; .*float"),
        ({"a": tensor("C64", [1])}, "a: expected a dtype of .*, got 'C64'"),
        ({"a": tensor(["F32"])}, r"a: expected a dtype of .*, got \['F32'\]"),
        ({"a": tensor(shape=[-2])}, r"a: expected a shape of up to 64 whole numbers from 0 on, got \[-2\]"),
        ({"a": tensor(shape=[2.0])}, r"a: expected a shape .*, got \[2\.0\]"),
        ({"a": tensor(shape=[True, 2])}, r"a: expected a shape .*, got \[True, 2\]"),
        ({"a": tensor(shape="2")}, "a: expected a shape .*, got '2'"),
        ({"a": tensor(shape=[1] * 65 + [2])}, "a: expected a shape of up to 64"),
        ({"a": tensor(shape=[2**62, 8])}, "a: expected 147573952589676412928 bytes for F32 of shape"),
        ({"a": tensor(shape=[10**15])}, "a: expected 4000000000000000 bytes .*, got 8"),
        ({"a": tensor(shape=[0, 2**62], offsets=[0, 0])}, "a: expected a shape that an array can have"),
        ({"a": tensor(shape=[3])}, r"a: expected 12 bytes for F32 of shape \[3\], got 8"),
        ({"a": tensor(offsets=[0])}, r"a: expected data_offsets as begin and end, got \[0\]"),
        ({"a": tensor(offsets=[8, 0])}, r"a: expected data_offsets as begin and end, got \[8, 0\]"),
        ({"a": tensor(offsets=[-8, 0])}, r"a: expected data_offsets as begin and end, got \[-8, 0\]"),
        ({"a": tensor(offsets=[4, 12])}, "a: expected its numbers to begin at byte 0, behind its header, got 4"),
        ({"a": tensor(), "b": tensor(offsets=[4, 12])}, "b: expected its numbers to begin at byte 8, behind a, got 4"),
        ({"a": tensor(), "b": tensor()}, "b: expected its numbers to begin at byte 8, behind a, got 0"),
        ({"a": tensor(), "b": tensor(offsets=[8, 16])}, "b: expected 8 bytes of numbers, got 0: cut short"),
        ({"a": tensor(shape=[1], offsets=[0, 4])}, "to end with the numbers of a, got 4 bytes more"),
        ({}, "to end with the numbers of its header, got 8 bytes more"),
        ({"a\x1b[31m": tensor()}, r"expected names of up to 1000 printable letters, got 'a\\x1b\[31m'"),
        ({"\ud800": tensor()}, r"printable letters, got '\\ud800'"),
        ({"a" * 1001: tensor()}, "printable letters, got 'aaaaaa"),
        (b'{"a": 1, "a": 1}', "expected each name once, got 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "expected each name once, got 'dtype' twice"),
        (b'{"__metadata__": {"x": "\\ud800"}, "a": ' + json.dumps(tensor()).encode() + b"}", "hex escape"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused(header, words, tmp_path):
    path = make_file(tmp_path / "odd.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=rf"(?s)^{re.escape(str(path))}: .*{words}") as error:
        load_weights(path)
    assert len(str(error.value)) < 1000


def test_a_header_too_large_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "large.safetensors"
    path.write_bytes((LARGEST_HEADER + 1).to_bytes(8, "little"))
    os.truncate(path, 2 * LARGEST_HEADER)
    with pytest.raises(ValueError, match=r"large\.safetensors: expected a header of at most 16,777,216 bytes"):
        load_weights(path)
    save_weights(path, {"a": np.zeros(1)}, {"words": "x" * 1000})
    monkeypatch.setattr(nn.checkpoint, "LARGEST_HEADER", 500)
    with pytest.raises(ValueError, match="at most 500 bytes of names and metadata, got 1,0"):
        save_weights(path, {"a": np.zeros(1)}, {"words": "x" * 1000})


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large.safetensors"
    save_weights(path, {"a": np.zeros(100)})
    with pytest.raises(ValueError, match=r"at most 800 bytes, got 8\d\d"):
        load_weights(path, largest=800)
    os.truncate(path, 2**40)  # of which nothing is stored
    with pytest.raises(ValueError, match="at most 4,294,967,296 bytes, got 1,099,511,627,776"):
        load_weights(path)


@pytest.mark.parametrize("cut", [1, 8, 400, 799])
def test_a_file_cut_short_is_refused(cut, tmp_path):
    path = tmp_path / "cut.safetensors"
    save_weights(path, {"a": np.arange(3.0), "last": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"cut\.safetensors: last: expected 800 bytes .*, got {800 - cut}: cut short"):
        load_weights(path)


def test_bytes_behind_the_last_tensor_are_refused(tmp_path):
    path = tmp_path / "long.safetensors"
    save_weights(path, {"a": np.arange(3.0)})
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"to end with the numbers of a, got 4 bytes more"):
        load_weights(path)


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_every_dtype_of_numpy_survives(kind, tmp_path):
    array = np.array([[0, 1], [1, 100]]).astype(kind)
    save_weights(tmp_path / "a", {"a": array})
    found = load_weights(tmp_path / "a")[0]["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_bfloat16_is_read_as_float32(tmp_path):
    """1 sign, 8 exponent and 7 fraction bits: 0x3F80 is 1, 0xC049 is -3.140625, 0x0001 is 2⁻¹³³, 0x7F80 is infinite."""
    numbers = np.array([0x3F80, 0xC049, 0x0001, 0x7F80], "<u2").tobytes()
    header = {"b": tensor("BF16", [4, 1], [4, 12]), "a": tensor("F32", [1], [0, 4]), "c": tensor("BF16", [], [12, 14])}
    path = make_file(tmp_path / "a", header, np.float32(9).tobytes() + numbers + b"\0\x40")
    state, _ = load_weights(path)
    assert state["b"].dtype == np.float32
    assert state["b"].tolist() == [[1.0], [-3.140625], [2.0**-133], [np.inf]]
    assert (state["c"].shape, state["c"][()]) == ((), 2.0)


def test_bfloat16_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError, reason="PyTorch is not installed")
    from safetensors.torch import save_file

    exact = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    save_file({"a": exact.bfloat16(), "b": exact}, tmp_path / "a")
    state, _ = load_weights(tmp_path / "a")
    np.testing.assert_array_equal(state["a"], exact.bfloat16().float().numpy())
    np.testing.assert_array_equal(state["b"], exact.numpy())


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1) | st.integers(0, 300))
def test_any_bytes_are_refused_by_name(content, length):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + content)
        with pytest.raises(ValueError, match=r"any\.safetensors: expected"):
            load_weights(path)


# Into a network


def small() -> Sequential:
    return Sequential(Conv2d(2, 3, 3, rng=np.random.default_rng(0)), BatchNorm2d(3))


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "0.weight",
            np.ones((3, 2, 3, 3), np.int64),
            "wrong kind: 0.weight expected floating-point .*float32, got int64",
        ),
        ("0.weight", np.ones((3, 2, 3, 3), complex), "wrong kind: 0.weight expected floating-point .*, got complex128"),
        ("0.weight", np.ones((3, 2, 3, 3), bool), "wrong kind: 0.weight expected floating-point .*, got bool"),
        ("1.weight", np.array([1, np.nan, 2]), "not finite: 1.weight expected finite .*, got 1 of 3 that are not"),
        ("1.bias", np.array([np.inf, -np.inf, 2]), "not finite: 1.bias expected finite .* float32, got 2 of 3"),
        ("1.bias", np.array([1e300, 1, 2]), "not finite: 1.bias expected finite numbers in float32, got 1 of 3"),
        ("1.running_var", np.array([1, -0.5, 2]), "negative: 1.running_var expected variances from 0 on, got -0.5"),
        ("1.num_batches_tracked", np.array(1.5), "wrong kind: 1.num_batches_tracked expected whole .*, got float64"),
        ("1.num_batches_tracked", np.array(np.nan), "wrong kind: 1.num_batches_tracked expected whole numbers"),
        ("1.num_batches_tracked", np.array(2**63, np.uint64), "wrong kind: 1.num_batches_tracked .* int64 has"),
        ("1.num_batches_tracked", np.array(True), "wrong kind: 1.num_batches_tracked expected whole .*, got bool"),
        ("1.num_batches_tracked", np.array([1]), r"wrong shape: 1.num_batches_tracked expected \(\), got \(1,\)"),
        ("1.bias", np.zeros((0,)), r"wrong shape: 1.bias expected \(3,\), got \(0,\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_of_another_kind_are_refused_and_nothing_is_changed(name, array, words):
    network = small()
    before = network.state_dict()
    state = {key: value + 1 for key, value in before.items()}
    for strict in (True, False):
        with pytest.raises(ValueError, match=rf"does not fit this Sequential \(1 entries\):\n  {words}"):
            network.load_state_dict(state | {name: array}, strict=strict)
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_numbers_of_other_precisions_are_taken():
    network = small()
    for kind in ("f2", "f4", "f8"):
        network.load_state_dict({"1.bias": np.array([0.5, -2, 3], kind)}, strict=False)
        assert network.state_dict()["1.bias"].tolist() == [0.5, -2, 3]
    for count in (np.array(7, np.int32), np.array(7, np.uint64), np.array(7.0)):
        network.load_state_dict({"1.num_batches_tracked": count}, strict=False)
        assert network.state_dict()["1.num_batches_tracked"] == 7


def test_the_state_of_an_exploded_training_can_be_restored_on_request():
    network, other = small(), small()
    network[1].bias.data[1] = np.nan
    network[1].running_var.data[2] = np.inf
    with pytest.raises(ValueError, match=r"(?s)2 entries.*1\.bias.*1\.running_var"):
        other.load_state_dict(network.state_dict())
    other.load_state_dict(network.state_dict(), finite=False)
    np.testing.assert_array_equal(other.state_dict()["1.bias"], network.state_dict()["1.bias"])
    assert other.state_dict()["1.running_var"][2] == np.inf


# Into a training


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("model/fc.weight", np.zeros((4, 65), np.float32), r"wrong shape: fc.weight expected \(4, 64\), got \(4, 65\)"),
        ("model/fc.weight", np.zeros((4, 64), np.int32), "wrong kind: fc.weight expected floating-point .*, got int32"),
        ("model/fc.bias", np.full(4, np.nan, np.float32), "not finite: fc.bias"),
        ("model/extra", np.zeros(3), r"unexpected: extra \(3,\)"),
        ("optimizer/momentum/fc.bias", np.zeros(5, np.float32), r"momentum/fc.bias: expected \(4,\), got \(5,\)"),
        ("optimizer/momentum/fc.bias", np.zeros(4), "momentum/fc.bias: expected float32, got float64"),
        ("optimizer/momentum/fc.bias", np.zeros(4, complex), "momentum/fc.bias: expected float32, got complex128"),
        ("optimizer/momentum/fc.bias", np.full(4, np.inf, np.float32), "momentum/fc.bias: expected finite numbers"),
        ("optimizer/momentum/fc.bias", None, r"momentum/fc.bias: expected float32 \(4,\), found none"),
        ("optimizer/mean/fc.bias", np.zeros(4, np.float32), "mean/fc.bias: expected nothing of this name"),
        ("scale/value", np.float32(1), "expected the state of a training"),
        ("steps", None, "steps: expected one whole number from 0 on, got none"),
        ("steps", np.zeros(2, np.int64), r"steps: expected one whole number from 0 on, got int64 \(2,\)"),
        ("steps", np.array(2.0), r"steps: expected one whole number from 0 on, got float64 \(\)"),
        ("steps", np.array(np.nan), "steps: expected one whole number"),
        ("steps", np.array(-2), "expected metrics of -1 epochs"),
        ("steps", np.array(2**62), "after 4611686018427387904 steps, found 1 and 0"),
    ],
)
def test_a_checkpoint_with_foreign_arrays_is_refused_and_nothing_is_changed(name, array, words, tmp_path):
    training, content = trainings()
    (tmp_path / FILE).write_bytes(content)
    checkpoint = read_checkpoint(tmp_path)
    assert int(checkpoint.state["steps"]) == 2
    state = {key: value for key, value in checkpoint.state.items() if key != name}
    state |= {} if array is None else {name: array}
    checkpoint = dataclasses.replace(checkpoint, state=state)
    before, steps = training.trainer.state_dict(), training.trainer.steps
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(tmp_path / FILE))}: .*{words}"):
        checkpoint.restore(training)
    after = training.trainer.state_dict()
    assert training.trainer.steps == steps
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key], err_msg=key)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"best": 10**400}, "the best score as a number, got 1000"),
        ({"best": float("nan")}, "the best score as a number, got nan"),
        ({"best": "0.5"}, "the best score as a number, got '0.5'"),
        ({"best": True}, "the best score as a number, got True"),
        ({"meter": {"losses": [float("nan")], "sizes": [6], "right": 0}}, "a loss for each of 1 steps"),
        ({"meter": {"losses": [1.0], "sizes": [0], "right": 0}}, "numbers of pictures"),
        ({"meter": {"losses": [1.0], "sizes": [10**400], "right": 0}}, "numbers of pictures"),
        ({"meter": {"losses": [1.0], "sizes": [6], "right": 10**400}}, "numbers of pictures"),
        ({"meter": {"losses": {}, "sizes": "", "right": [[]]}}, "numbers of pictures"),
        ({"config": {"epochs": 10**400}}, "--epochs: expected a whole number below 2.63, got a number of 1329 bits"),
        ({"config": {"learning_rate": 10**400}}, "--learning-rate: expected a number below 2.63"),
        ({"config": {"arch": ["x"] * 10**5}}, "--arch: expected a text, got a list"),
        ({"config": []}, "mapping"),
    ],
)
def test_facts_that_no_training_writes_are_refused(facts, words, tmp_path):
    (tmp_path / FILE).write_bytes(trainings()[1])
    arrays, metadata = load_weights(tmp_path / FILE)
    save_weights(tmp_path / FILE, arrays, metadata | {name: json.dumps(value) for name, value in facts.items()})
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / FILE))} is no checkpoint.*{words}") as error:
        read_checkpoint(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(("name", "value"), [("seconds", 10**400), ("epoch", 10**400), ("train_loss", -float("inf"))])
def test_metrics_that_cannot_be_computed_with_are_refused(name, value, tmp_path):
    (tmp_path / FILE).write_bytes(trainings()[1])
    arrays, metadata = load_weights(tmp_path / FILE)
    history = json.loads(metadata["history"])
    history[0][name] = value
    save_weights(tmp_path / FILE, arrays, metadata | {"history": json.dumps(history)})
    with pytest.raises(ValueError, match=f"history: expected {name} of at most 9,007,199,254,740,992"):
        read_checkpoint(tmp_path)
