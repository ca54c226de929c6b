"""Our side of the benchmarks: each kind of job as phases to be timed."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import worker
from nn import Add, BatchNorm2d, Conv2d, LeakyReLU, MaxPool2d, Module, ReLU, gpu, parallel
from nn.backend import Array, gpu_facts, load_backend
from nn.parallel import cores_for, keep_freed_memory, one_blas_thread, threads
from nn.precision import check_precision, matrix_products
from resnet.config import TrainingConfig
from resnet.models import ResNet, make_model
from resnet.trainer import Trainer

CHANNELS, CLASSES = 3, 1000


def pictures(job: dict[str, Any]) -> NDArray[np.float32]:
    """Return a batch of noise, (N, H, W, C)."""
    shape = (job["batch"], job["size"], job["size"], CHANNELS)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if job["side"] == "numpy":
        return x
    pinned: NDArray[np.float32] = importlib.import_module("cupyx").empty_pinned(shape, np.float32)  # as PyTorch's side
    pinned[...] = x
    return pinned


@cache
def backend(side: str) -> ModuleType:
    """Return the array module. Asked for once only: finding out whether a GPU works waits for it."""
    return load_backend(side)


def mark(job: dict[str, Any]) -> Any:
    """Note this moment, on a GPU by an event in its queue."""
    return gpu.mark(backend(job["side"]))


def seconds_between(job: dict[str, Any], start: Any, stop: Any) -> float:
    """Return the seconds from one mark to another."""
    return gpu.seconds_between(backend(job["side"]), start, stop)


def _prepare(job: dict[str, Any]) -> tuple[ModuleType, str]:
    """Return the array module and the precision, which it can compute in; set the size of a GPU's slices if asked to.

    Raises:
        BackendError: it cannot.
    """
    xp, precision = backend(job["side"]), job.get("precision", "float32")
    check_precision(precision, xp)
    parallel.GPU_SLICE_BYTES = job.get("gpu_slice_bytes", parallel.GPU_SLICE_BYTES)
    return xp, precision


def _model(job: dict[str, Any], classes: int = CLASSES) -> ResNet:
    return make_model(job["arch"], classes, CHANNELS, rng=np.random.default_rng(1)).to(job["side"])


def new_trainer(job: dict[str, Any], classes: int = CLASSES) -> Trainer:
    """Return a network that was not trained yet with its trainer, at a learning rate that hardly rises."""
    _, precision = _prepare(job)
    config = TrainingConfig(batch_size=job["batch"], threads=job["threads"], precision=precision, label_smoothing=0.0)
    return Trainer(_model(job, classes), config, total_steps=10**6)


def labels(job: dict[str, Any], classes: int = CLASSES) -> NDArray[np.int64]:
    """Return the classes of a batch, (N,)."""
    return np.random.default_rng(2).integers(classes, size=job["batch"])


def step(job: dict[str, Any]) -> worker.Phases:
    """Pictures to the device, forward, loss, backward, SGD; the loss stays on the device."""
    trainer, x, classes = new_trainer(job), pictures(job), labels(job)
    return {"step": lambda: trainer.step(x, classes)}


def infer(job: dict[str, Any]) -> worker.Phases:
    """Pictures in, logits out, batch norms folded into the convolutions."""
    keep_freed_memory()  # as training and prediction do
    xp, precision = _prepare(job)
    fused, x = _model(job).fuse(), pictures(job)

    def work() -> None:
        with matrix_products(precision, xp), threads(job["threads"]), cores_for(job["batch"]):
            fused(xp.asarray(x))

    return {"infer": work}


def layer(job: dict[str, Any]) -> worker.Phases:
    """Forward and backward of one layer, with as many threads as in training."""
    keep_freed_memory()
    (xp, _), rng = _prepare(job), np.random.default_rng(3)
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
        return y

    y_shape = forward().shape
    dy = xp.asarray(rng.standard_normal(y_shape, dtype=np.float32))

    def backward() -> None:
        with threads(job["threads"]), one_blas_thread():
            module.zero_grad()
            module.backward(dy)

    return {"forward": forward, "backward": backward}


def product(job: dict[str, Any]) -> worker.Phases:
    """One product of two square matrices, by all cores."""
    xp, precision = _prepare(job)
    dtype = np.float16 if precision == "float16" else np.float32
    square = (job["size"],) * 2
    a, b = (xp.asarray(np.random.default_rng(n).standard_normal(square, np.float32), dtype) for n in (4, 5))
    out = xp.empty_like(a)

    def work() -> None:
        with matrix_products(precision, xp):
            xp.matmul(a, b, out=out)

    return {"product": work}


def versions(job: dict[str, Any]) -> dict[str, str]:
    """Return the versions of what computes, besides Python's and NumPy's."""
    if job["side"] == "numpy":
        return {}
    facts = gpu_facts(backend("cupy"))
    return {"gpu": facts["name"], **{key: facts[key] for key in ("cupy", "cuda_of_cupy", "cuda_of_driver")}}


def used_bytes(job: dict[str, Any]) -> int:
    """Return what is held now: by the process, or on the GPU."""
    return worker.used_bytes() if job["side"] == "numpy" else peak_bytes(job)


def forget_warm_up(job: dict[str, Any]) -> None:
    """Let a GPU's pool give back what only the first steps needed, so that it does not count."""
    if job["side"] != "numpy":
        backend("cupy").get_default_memory_pool().free_all_blocks()


def peak_bytes(job: dict[str, Any]) -> int:
    """Return the most that was held: by the process, or by CuPy's pool on the GPU, which never shrinks by itself."""
    if job["side"] == "numpy":
        return worker.peak_bytes()
    return int(backend("cupy").get_default_memory_pool().total_bytes())
