"""PyTorch's side of the benchmarks: each kind of job as phases to be timed. Nothing of ours is imported here."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks import worker

try:
    import torch
except ImportError as error:
    raise RuntimeError(f"PyTorch cannot be imported ({error}): install it, or run with --against none") from error
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_networks import NETWORKS, ResNet, Style

CHANNELS, CLASSES = 3, 1000
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as ours, which has no TF32
torch.backends.cudnn.benchmark = True  # sizes never change here: let it look for its fastest convolution


def _prepare(job: dict[str, Any]) -> Any:
    """Set the number of threads; return the memory format that is this contestant's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(job["threads"] or cores)
    return torch.channels_last if job["side"] == "channels_last" else torch.contiguous_format


def _wait(job: dict[str, Any]) -> None:
    if job["device"] == "cuda":
        torch.cuda.synchronize()


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def _model(job: dict[str, Any]) -> Any:
    if job["arch"] not in NETWORKS:
        raise ValueError(f"PyTorch's side has {', '.join(NETWORKS)}, not {job['arch']}: run with --against none")
    block, depths, widths, option = NETWORKS[job["arch"]]
    stem = "imagenet" if len(depths) == 4 else "small"  # the CIFAR nets have three stages
    style = Style("leaky_relu", 0.01, option, inplace=True)
    model = ResNet(block, depths, widths, CLASSES, CHANNELS, stem, style)
    return model.to(device=job["device"], memory_format=_prepare(job))


def _pictures(job: dict[str, Any]) -> Tensor:
    x = _noise((job["batch"], CHANNELS, job["size"], job["size"]), 0)
    return x.contiguous(memory_format=_prepare(job))


def step(job: dict[str, Any]) -> worker.Phases:
    """Forward, loss, backward, SGD; reading the loss waits for the device."""
    model, x = _model(job).train(), _pictures(job)
    labels = torch.from_numpy(np.random.default_rng(2).integers(CLASSES, size=job["batch"]))
    # Ours spares biases and batch norms the decay; here it is for all parameters, which is no more work.
    optimizer = torch.optim.SGD(model.parameters(), 0.004, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def work() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x.to(job["device"])), labels.to(job["device"]))
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return {"step": work}


def infer(job: dict[str, Any]) -> worker.Phases:
    """Pictures in, logits out."""
    model, x = _model(job).eval(), _pictures(job)

    def work() -> None:
        with torch.no_grad():
            model(x.to(job["device"]))
        _wait(job)

    return {"infer": work}


class _Add(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def layer(job: dict[str, Any]) -> worker.Phases:
    """Forward and backward of one layer."""
    memory_format, kind, (n, h, w, c) = _prepare(job), job["layer"], job["shape"]
    modules: dict[str, Any] = {
        "BatchNorm2d": lambda: nn.BatchNorm2d(c),
        "LeakyReLU": lambda: nn.LeakyReLU(0.01),
        "ReLU": nn.ReLU,
        "MaxPool2d": lambda: nn.MaxPool2d(job["kernel"], job["stride"], job["padding"]),
        "Add": _Add,
        "Conv2d": lambda: nn.Conv2d(c, job["filters"], job["kernel"], job["stride"], job["padding"], bias=False),
    }
    module = modules[kind]().to(device=job["device"], memory_format=memory_format)
    inputs = [
        _noise((n, c, h, w), seed).to(job["device"]).contiguous(memory_format=memory_format).requires_grad_()
        for seed in range(2 if kind == "Add" else 1)
    ]
    wanted = [*inputs, *module.parameters()]
    y = module(*inputs)
    dy = _noise(tuple(y.shape), 3).to(job["device"]).contiguous(memory_format=memory_format)

    def forward() -> None:
        nonlocal y
        y = module(*inputs)
        _wait(job)

    def backward() -> None:
        torch.autograd.grad(y, wanted, dy)
        _wait(job)

    return {"forward": forward, "backward": backward}


def product(job: dict[str, Any]) -> worker.Phases:
    """One product of two square float32 matrices, by all cores."""
    _prepare(job)
    a, b = (_noise((job["size"],) * 2, seed).to(job["device"]) for seed in (4, 5))
    out = torch.empty_like(a)

    def work() -> None:
        torch.matmul(a, b, out=out)
        _wait(job)

    return {"product": work}


def versions(job: dict[str, Any]) -> dict[str, str]:
    """Return the versions of what computes, besides Python's and NumPy's."""
    return {"torch": torch.__version__}


def used_bytes(job: dict[str, Any]) -> int:
    """Return what is held now: by the process, or on the GPU."""
    return worker.used_bytes() if job["device"] == "cpu" else peak_bytes(job)


def peak_bytes(job: dict[str, Any]) -> int:
    """Return the most that was held: by the process, or by PyTorch's pool on the GPU."""
    return worker.peak_bytes() if job["device"] == "cpu" else int(torch.cuda.max_memory_reserved())
