"""PyTorch's side of the benchmarks: each kind of job as phases to be timed. Nothing of ours is imported here."""

from __future__ import annotations

import os
import time
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
torch.backends.cudnn.benchmark = True  # sizes never change here: let it look for its fastest convolution


def mark(job: dict[str, Any]) -> Any:
    """Note this moment, on a GPU by an event in its queue."""
    if job["device"] == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(job: dict[str, Any], start: Any, stop: Any) -> float:
    """Return the seconds from one mark to another, after waiting for the GPU to pass the second."""
    if job["device"] == "cpu":
        return float(stop - start)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000  # from milliseconds


def _prepare(job: dict[str, Any]) -> Any:
    """Set threads and precision; return the memory format that is this contestant's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(job["threads"] or cores)
    tf32 = job.get("precision") == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return torch.channels_last if job["side"] == "channels_last" else torch.contiguous_format


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


def _on_host(x: Tensor, job: dict[str, Any]) -> Tensor:
    """Return what each step is to copy to the device: for a GPU in pinned memory, so that no copy is waited for."""
    return x if job["device"] == "cpu" else x.pin_memory()


def _pictures(job: dict[str, Any]) -> Tensor:
    x = _noise((job["batch"], CHANNELS, job["size"], job["size"]), 0)
    return _on_host(x.contiguous(memory_format=_prepare(job)), job)


def step(job: dict[str, Any]) -> worker.Phases:
    """Pictures to the device, forward, loss, backward, SGD; the loss stays on the device."""
    device, half = job["device"], job.get("precision") == "float16"
    model, x = _model(job).train(), _pictures(job)
    labels = _on_host(torch.from_numpy(np.random.default_rng(2).integers(CLASSES, size=job["batch"])), job)
    # Ours spares biases and batch norms the decay; here it is for all parameters, which is no more work.
    optimizer = torch.optim.SGD(model.parameters(), 0.004, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scaler = torch.amp.GradScaler(device, enabled=half)  # hands everything on as it is where it is not enabled

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16, enabled=half):
            y = model(x.to(device, non_blocking=True))
            loss = functional.cross_entropy(y, labels.to(device, non_blocking=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # where it is enabled, it waits to learn whether a gradient is infinite
        scaler.update()

    return {"step": work}


def infer(job: dict[str, Any]) -> worker.Phases:
    """Pictures in, logits out."""
    model, x = _model(job).eval(), _pictures(job)

    def work() -> None:
        with torch.no_grad():
            model(x.to(job["device"], non_blocking=True))

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

    def backward() -> None:
        torch.autograd.grad(y, wanted, dy)

    return {"forward": forward, "backward": backward}


def product(job: dict[str, Any]) -> worker.Phases:
    """One product of two square matrices, by all cores."""
    _prepare(job)
    dtype = torch.float16 if job.get("precision") == "float16" else torch.float32
    a, b = (_noise((job["size"],) * 2, seed).to(job["device"], dtype) for seed in (4, 5))
    out = torch.empty_like(a)

    def work() -> None:
        torch.matmul(a, b, out=out)

    return {"product": work}


def versions(job: dict[str, Any]) -> dict[str, str]:
    """Return the versions of what computes, besides Python's and NumPy's."""
    facts = {"torch": torch.__version__}
    if job["device"] == "cuda":
        facts |= {"cuda_of_torch": torch.version.cuda, "cudnn_of_torch": str(torch.backends.cudnn.version())}
    return facts


def used_bytes(job: dict[str, Any]) -> int:
    """Return what is held now: by the process, or on the GPU."""
    return worker.used_bytes() if job["device"] == "cpu" else peak_bytes(job)


def forget_warm_up(job: dict[str, Any]) -> None:
    """Let a GPU's pool give back what only the first steps needed: cuDNN tries algorithms that take gigabytes."""
    if job["device"] != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(job: dict[str, Any]) -> int:
    """Return the most that was held: by the process, or by PyTorch's pool on the GPU."""
    return worker.peak_bytes() if job["device"] == "cpu" else int(torch.cuda.max_memory_reserved())
