"""Write the golden files with PyTorch: ``python tests/write_golden.py``, then look at what git says has changed."""

from __future__ import annotations

import sys

import numpy as np
import torch
from experiment import Answer, Array, Settings, fingerprint, run_experiment
from test_golden import FOLDER, GOLDEN, file_of, flat
from torch import nn
from torch_twin import TorchNetwork

NEAREST = 1e-5  # ten times float32's rounding of an activation, relative to the largest of its layer


class CarefulNetwork(TorchNetwork):
    """Remembers how near an activation's input has come to 0, relative to the largest of its layer."""

    nearest = float("inf")

    def answer(self, pictures: Array, labels: Array, training: bool) -> Answer:
        answer = super().answer(pictures, labels, training)
        for name, x in self.seen.items():
            if not isinstance(self.model.get_submodule(name), nn.MaxPool2d):
                self.nearest = min(self.nearest, float(x.abs().min() / x.abs().max()))
        return answer


def write(name: str, settings: Settings) -> None:
    """Write one file; stop where float32 could end up on the other side of a kink, and no golden number could tell."""
    network = CarefulNetwork(settings, "float64")
    (results,) = run_experiment([network], settings)
    if name != "resnet18" and network.nearest < NEAREST:
        sys.exit(f"{name}: an activation comes as near as {network.nearest:.1e} to its kink: choose another seed")
    rows = flat(results)
    np.savez_compressed(
        file_of(name),
        fingerprint=np.array(fingerprint(settings)),
        names=np.array(list(rows)),
        sizes=np.array([row.size for row in rows.values()]),
        values=np.concatenate([row.astype(np.float64) for row in rows.values()]),
    )
    print(f"{file_of(name).name}: {len(rows)} tensors, {file_of(name).stat().st_size:,} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name, settings in GOLDEN.items():
        write(name, settings)
