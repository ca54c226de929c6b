"""Weights to and from disk."""

from __future__ import annotations

import os

import numpy as np
import pytest

from nn.checkpoint import load_weights, save_weights, write_atomically
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


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}"])
def test_a_foreign_or_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a safetensors file"):
        load_weights(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_weights(path, {"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        load_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_weights(tmp_path / "nothing.safetensors")
