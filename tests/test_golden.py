"""Equality with PyTorch where PyTorch is not installed: against what it once wrote, ``python tests/write_golden.py``.

A file holds the results of ``experiment.py`` in float64, of each tensor all numbers if they are few, else two: its norm
and its projection on a random direction, which hardly any mistake leaves as they are. The weights and pictures that the
results came from are not in the file: they are drawn again from a seed, and the file has their checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment import TOLERANCE, OurNetwork, Settings, assert_agree, fingerprint, run_experiment
from numpy.typing import NDArray

Array = NDArray[Any]

FOLDER = Path(__file__).with_name("golden")
LARGEST = 60  # a tensor of more numbers than this is condensed
REWRITE = "if that is meant, write the files again, where PyTorch is installed: python tests/write_golden.py"

#: Seeds of small networks are such that no number comes so near a kink that rounding to float32 could push it over.
GOLDEN = {
    "small basic": Settings("small basic", (3, 36, 33), channels=1, negative_slope=0.2),
    "small bottleneck": Settings("small bottleneck", (3, 11, 9), activation="relu", stem="small", seed=12),
    "small option A": Settings("small option A", (5, 9, 7), stem="small", decay_all=False, weight_decay=0.1, seed=9),
    "small plain": Settings("small plain", (5, 7, 9), stem="small", seed=21),
    "small plain bottleneck": Settings("small plain bottleneck", (5, 9, 8), stem="small", nesterov=False, seed=80),
    "resnet18": Settings("resnet18", (3, 37, 45), lr=0.01),
}


def file_of(name: str) -> Path:
    """Where the results of a network are."""
    return FOLDER / f"{name.replace(' ', '_')}.npz"


def condense(results: Mapping[str, Array]) -> dict[str, Array]:
    """Replace each large tensor by its norm and its projection on a random direction (numbers of variance 1)."""
    return {name: _condensed(array) if array.size > LARGEST else array for name, array in results.items()}


def _condensed(array: Array) -> Array:
    flat = array.astype(np.float64).ravel()
    direction = (2 * np.random.default_rng(flat.size).random(flat.size) - 1) * 3**0.5
    return np.array([np.linalg.norm(flat), flat @ direction])  # (M,) @ (M,) -> ()


def read_golden(name: str) -> dict[str, Array]:
    """Return the results in a file, after checking that the experiment still starts from the same numbers."""
    with np.load(file_of(name)) as file:
        assert str(file["fingerprint"]) == fingerprint(GOLDEN[name]), (
            f"{name}: the experiment no longer starts from the weights, names or pictures that PyTorch had: {REWRITE}"
        )
        names, sizes = file["names"].tolist(), file["sizes"]
        return dict(zip(names, np.split(file["values"], np.cumsum(sizes)[:-1]), strict=True))


def flat(results: Mapping[str, Array]) -> dict[str, Array]:
    """Return the results as the files have them: condensed, in one row each."""
    return {name: np.ravel(array) for name, array in condense(results).items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_float64(name):
    golden = read_golden(name)
    (results,) = run_experiment([OurNetwork(GOLDEN[name], "float64")], GOLDEN[name])
    assert_agree(flat(results), golden, TOLERANCE["float64"])


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "resnet18"])
def test_float32(name):
    golden = read_golden(name)
    (results,) = run_experiment([OurNetwork(GOLDEN[name], "float32")], GOLDEN[name])
    assert_agree(flat(results), golden, TOLERANCE["float32"])


def test_resnet18_in_float32():
    """Its losses and logits before the first step: in float32 some of its activations are on the kink's other side."""
    settings, golden = GOLDEN["resnet18"], read_golden("resnet18")
    network = OurNetwork(settings, "float32")
    batches = settings.batches()
    for mode in ("eval", "train"):
        answer = network.answer(*next(batches), training=mode == "train")
        results = {f"{mode}: loss": answer.loss, f"{mode}: logits": answer.logits}
        assert_agree(flat(results), {name: golden[name] for name in results}, TOLERANCE["float32"])


def test_a_single_wrong_number_is_noticed():
    """The comparison itself can fail: in a tensor kept whole, in a condensed one, and for a result that is missing."""
    name = "small basic"
    golden = read_golden(name)
    (results,) = run_experiment([OurNetwork(GOLDEN[name], "float64")], GOLDEN[name])
    for tensor in ("train: logits", "eval: gradient of the pictures"):
        wrong = {**results, tensor: results[tensor].copy()}
        wrong[tensor].flat[5] *= 1 + 1e-6
        with pytest.raises(AssertionError, match=f"1 of .* differ:\\s+{tensor}: off by"):
            assert_agree(flat(wrong), golden, TOLERANCE["float64"])
    del results["loss curve"]
    with pytest.raises(AssertionError, match="only one side has loss curve"):
        assert_agree(flat(results), golden, TOLERANCE["float64"])


def test_other_weights_are_told_from_wrong_results(monkeypatch):
    monkeypatch.setitem(GOLDEN, "small plain", Settings("small plain", (5, 7, 9), stem="small", seed=22))
    with pytest.raises(AssertionError, match=r"no longer starts from the weights.*write_golden"):
        read_golden("small plain")
