"""Networks small enough to be put together by hand, with the statistics of trained ones, and cells done at once."""

from __future__ import annotations

import json

import numpy as np

from nn import BatchNorm2d, Module
from resnet.blocks import BasicBlock, Bottleneck, PlainBasicBlock, PlainBottleneck
from resnet.data import Faces
from resnet.experiments import degradation
from resnet.experiments.harness import Lab
from resnet.experiments.trainings import Task
from resnet.models import build
from resnet.training import assemble

KINDS = {  # block, shortcut option, activation
    "option A": (BasicBlock, "A", "relu"),
    "projection": (BasicBlock, "B", "leaky_relu"),
    "bottleneck": (Bottleneck, "B", "leaky_relu"),
    "bottleneck, option A": (Bottleneck, "A", "relu"),
    "plain": (PlainBasicBlock, "A", "relu"),
    "plain bottleneck": (PlainBottleneck, "A", "leaky_relu"),
}


def small(kind, rng, depths=(3, 2), slope=0.1):
    """Return a network of two stages in float64, with the statistics of a trained one, in the state of eval."""
    block, option, activation = KINDS[kind]
    options = {"activation": activation, "negative_slope": slope, "stem": "small", "option": option, "rng": rng}
    return with_statistics(build(block, depths, (4, 6), 3, 2, **options), rng).astype(np.float64).eval()


def with_statistics(model: Module, rng: np.random.Generator) -> Module:
    """Give every batch norm a scale, a shift and statistics as after a training."""
    for _, module in model.named_modules():
        if isinstance(module, BatchNorm2d):
            channels = module.weight.data.size
            module.weight.data = rng.uniform(-1.5, 1.5, channels)
            module.bias.data = rng.normal(size=channels)
            module.running_mean.data = rng.normal(size=channels)
            module.running_var.data = rng.uniform(0.1, 2.0, channels)
    return model


def act(kind, x, slope=0.1):
    return np.where(x > 0, x, (slope if KINDS[kind][2] == "leaky_relu" else 0.0) * x)


def done(cells):
    """Do those cells that need CIFAR-10; return their results as they are kept."""
    return {cell.name: json.loads(json.dumps(cell.work())) for cell in cells if "cifar10" in cell.needs}


def noise_task(rng):
    """Return a training of ResNet-20 on noise that has not begun."""
    faces = Faces(
        rng.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3, ("a", "b", "c"), ("",) * 12, np.zeros((6, 2))
    )
    config = Lab(backend="numpy", threads=1, quiet=True).config(arch="resnet20", stem="small", epochs=1, batch_size=6)
    return Task(assemble(config, faces, {}), {"clean": faces})


def untrained_lab(task, monkeypatch):
    """Return a laboratory in which every CIFAR training is that of ``task``, and ends at once."""
    monkeypatch.setattr(degradation, "cifar_task", lambda *_: task)
    monkeypatch.setattr(Lab, "train", lambda *_: [])
    return Lab(threads=1, quiet=True)
