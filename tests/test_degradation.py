"""The experiment on degradation: its measures by value, its verdict, and one small run from CIFAR's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet.experiments import degradation, harness
from resnet.experiments.harness import Lab
from resnet.experiments.sources import Sources
from resnet.models import MODELS

PER_CLASS = {"data_batch_1.bin": 6, "test_batch.bin": 3}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return a lab with a made-up CIFAR-10: a colour a class, with noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 215, (10, 3, 1))
    (tmp_path / "cifar").mkdir()
    for file, each in PER_CLASS.items():
        labels = np.repeat(np.arange(10), each)
        planes = np.clip(colours[labels] + rng.normal(0, 20, (len(labels), 3, 1024)), 0, 255).astype(np.uint8)
        records = np.concatenate([labels[:, None].astype(np.uint8), planes.reshape(len(labels), -1)], axis=1)
        (tmp_path / "cifar" / file).write_bytes(records.tobytes())
    return Lab(Sources({"cifar10": tmp_path / "cifar"}), tmp_path / "work", backend="numpy", quiet=True)


SETTINGS = degradation.Settings(1, 40, 20, 2, 1, 32, 1, 0)


def test_a_run_from_the_files_to_the_figures(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(degradation, "PRESETS", {"quick": SETTINGS})
    for kind in ("plain", "resnet"):
        monkeypatch.setitem(MODELS, f"{kind}56", MODELS[f"{kind}20"])  # as deep a net takes its time
    harness.run("degradation", "quick", lab, tmp_path, tmp_path, say=lambda line: None)
    report = json.loads((tmp_path / "degradation-quick.json").read_text())
    cell = report["cells"]["cifar10/resnet20/seed 0"]["result"]
    assert len(cell["train_error"]) == len(cell["test_error"]) == 2
    assert cell["final_test_error"]["clean"] == pytest.approx(cell["test_error"][-1])
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"degradation-cifar10-quick", "degradation-depth-quick"}


def test_sizes_by_depth_are_those_of_a_training_step_and_leave_the_network_alone(lab):
    training = degradation.cifar_task(lab, SETTINGS, "resnet20", 0).training
    before = training.model.state_dict()
    sizes = degradation.sizes_by_depth(training)
    for name, array in training.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert all(not gradient.any() for gradient in training.model.grad_dict().values())
    assert sizes["layers"][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert len(sizes["layers"]) == len(sizes["response"]) == len(sizes["gradient"]) == 19
    np.testing.assert_allclose(sizes["response"], 1, atol=1e-3)  # fresh batch norm has a standard deviation of 1
    training.model.layer2[1].bn2.weight.data[:] = 3
    np.testing.assert_allclose(degradation.sizes_by_depth(training)["response"][10], 3, atol=1e-2)
    assert sizes["layers"][10] == "layer2.1.conv2"


def results(**errors: float) -> dict[str, Any]:
    """Return the results of one seed and another one a little worse, by network."""
    return {
        f"cifar10/{arch}/seed {seed}": {
            "train_loss": [2.0, 1.0],
            "train_error": [0.9, error + 0.01 * seed],
            "final_test_error": {"clean": 0.5},
        }
        for arch, error in errors.items()
        for seed in (0, 1)
    }


def test_the_verdict():
    def verdict(**errors: float) -> bool:
        return degradation.summarize(SETTINGS, results(**errors))["holds"]

    assert verdict(plain20=0.3, plain56=0.5, resnet20=0.3, resnet56=0.25) is True
    assert verdict(plain20=0.3, plain56=0.5, resnet20=0.3, resnet56=0.315) is True
    assert verdict(plain20=0.3, plain56=0.5, resnet20=0.3, resnet56=0.33) is False
    assert verdict(plain20=0.5, plain56=0.3, resnet20=0.3, resnet56=0.2) is False
    orl = {
        f"orl/{arch}/seed 0": {"train_loss": [loss], "train_error": [0.1], "final_test_error": {"clean": 0.1}}
        for arch, loss in (("plain34", 0.5), ("resnet34", 0.6))
    }
    both = results(plain20=0.3, plain56=0.5, resnet20=0.3, resnet56=0.25) | orl
    found = degradation.summarize(SETTINGS, both)
    assert found["holds"] is False
    assert "plain-56 50.5 %" in found["finding"]
    assert "training loss of plain-34 0.500, of ResNet-34 0.600" in found["finding"]
