"""Our side of the benchmarks: each kind of job as phases to be timed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import worker
from nn import Add, BatchNorm2d, Conv2d, LeakyReLU, MaxPool2d, Module, ReLU
from nn.backend import Array, array_module, load_backend, synchronize
from nn.parallel import cores_for, keep_freed_memory, one_blas_thread, threads
from resnet.config import TrainingConfig
from resnet.models import ResNet, make_model
from resnet.training import Trainer

CHANNELS, CLASSES = 3, 1000


def pictures(job: dict[str, Any]) -> NDArray[np.float32]:
    """Return a batch of noise, (N, H, W, C)."""
    shape = (job["batch"], job["size"], job["size"], CHANNELS)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _model(job: dict[str, Any]) -> ResNet:
    return make_model(job["arch"], CLASSES, CHANNELS, rng=np.random.default_rng(1)).to(job["side"])


def step(job: dict[str, Any]) -> worker.Phases:
    """Forward, loss, backward, SGD; reading the loss waits for the device."""
    config = TrainingConfig(batch_size=job["batch"], threads=job["threads"], label_smoothing=0.0)
    trainer = Trainer(_model(job), config, total_steps=10**6)
    x, labels = pictures(job), np.random.default_rng(2).integers(CLASSES, size=job["batch"])
    return {"step": lambda: float(trainer.step(x, labels)[0])}


def infer(job: dict[str, Any]) -> worker.Phases:
    """Pictures in, logits out, batch norms folded into the convolutions."""
    keep_freed_memory()  # as training and prediction do
    fused = _model(job).fuse()
    x, xp = pictures(job), load_backend(job["side"])

    def work() -> None:
        with threads(job["threads"]), cores_for(job["batch"]):
            fused(xp.asarray(x))
        synchronize(xp)

    return {"infer": work}


def layer(job: dict[str, Any]) -> worker.Phases:
    """Forward and backward of one layer, with as many threads as in training."""
    keep_freed_memory()
    xp, rng = load_backend(job["side"]), np.random.default_rng(3)
    kind, shape = job["layer"], tuple(job["shape"])
    modules: dict[str, Any] = {
        "BatchNorm2d": lambda: BatchNorm2d(shape[-1]),
        "LeakyReLU": LeakyReLU,
        "ReLU": ReLU,
        "MaxPool2d": lambda: MaxPool2d(job["kernel"], job["stride"], job["padding"]),
        "Add": Add,
        "Conv2d": lambda: Conv2d(
            *(shape[-1], job["filters"], job["kernel"], job["stride"], job["padding"]),
            bias=False,
            algorithm=job["algorithm"],
            rng=rng,
        ),
    }
    module: Module = modules[kind]().to(job["side"])
    inputs = [xp.asarray(rng.standard_normal(shape, dtype=np.float32)) for _ in range(2 if kind == "Add" else 1)]

    def forward() -> Array:
        with threads(job["threads"]), one_blas_thread():
            y: Array = module(*inputs)
        synchronize(xp)
        return y

    y_shape = forward().shape
    dy = xp.asarray(rng.standard_normal(y_shape, dtype=np.float32))

    def backward() -> None:
        with threads(job["threads"]), one_blas_thread():
            module.zero_grad()
            module.backward(dy)
        synchronize(xp)

    return {"forward": forward, "backward": backward}


def product(job: dict[str, Any]) -> worker.Phases:
    """One product of two square float32 matrices, by all cores."""
    xp = load_backend(job["side"])
    a, b = (xp.asarray(np.random.default_rng(n).standard_normal((job["size"],) * 2, np.float32)) for n in (4, 5))
    out = xp.empty_like(a)

    def work() -> None:
        xp.matmul(a, b, out=out)
        synchronize(array_module(out))

    return {"product": work}


def versions(job: dict[str, Any]) -> dict[str, str]:
    """Return the versions of what computes, besides Python's and NumPy's."""
    return {"cupy": load_backend("cupy").__version__} if job["side"] == "cupy" else {}


def used_bytes(job: dict[str, Any]) -> int:
    """Return what is held now: by the process, or on the GPU."""
    return worker.used_bytes() if job["side"] == "numpy" else peak_bytes(job)


def peak_bytes(job: dict[str, Any]) -> int:
    """Return the most that was held: by the process, or by CuPy's pool on the GPU, which never shrinks by itself."""
    if job["side"] == "numpy":
        return worker.peak_bytes()
    return int(load_backend("cupy").get_default_memory_pool().total_bytes())
