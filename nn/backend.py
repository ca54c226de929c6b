"""NumPy or CuPy: whose array is this, move it, split a batch into slices.

Every other file asks the array it was given (``xp = array_module(x)``) and calls ``xp.zeros``, ``xp.matmul``, …, so one
source serves the CPU and the GPU. There is no global switch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

#: A NumPy array, or a CuPy array that answers to the same names.
Array: TypeAlias = NDArray[Any]

Result = TypeVar("Result")

#: Patches of one slice on the CPU: small enough to stay in a core's cache until the matrix product has read them.
CPU_SLICE_BYTES = 2 * 2**20
#: Working memory from which a job is worth being shared out among threads.
THREADING_BYTES = 2**18
#: Share of the GPU's free memory that the patches of one slice may take.
GPU_FREE_SHARE = 0.25


class BackendError(RuntimeError):
    """The wanted backend cannot be used on this machine; the message says why and what to do."""


def array_module(x: Any) -> ModuleType:
    """Return the module that ``x`` belongs to: ``numpy`` or ``cupy``.

    CuPy's array class is defined in the module that has its functions, so the class's own module name tells which.

    Raises:
        TypeError: ``x`` is not an array (a list, a number, None).
    """
    if isinstance(x, np.ndarray | np.generic):
        return np
    if not hasattr(getattr(x, "dtype", None), "kind"):  # a list, a number, another library's tensor
        raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}: convert it with np.asarray first")
    return sys.modules[type(x).__module__]


def check_float(name: str, x: Array, *, like: Array | None = None, ndim: int | None = None) -> None:
    """Check what a layer expects of an array: floating point, the dtype of ``like``, ``ndim`` axes.

    Raises:
        TypeError: not an array, not floating point, or another dtype than ``like``.
        ValueError: another number of axes than ``ndim``.
    """
    array_module(x)
    if x.dtype.kind != "f":
        raise TypeError(f"expected {name} in floating point, got {x.dtype}: convert it with .astype(np.float32)")
    if like is not None and x.dtype != like.dtype:
        raise TypeError(
            f"expected {name} in {like.dtype} like the layer's parameters, got {x.dtype}: "
            f"convert it, or the model with model.astype(np.{x.dtype})"
        )
    if ndim is not None and x.ndim != ndim:
        axes = {4: "(N, H, W, C)", 2: "(N, C)"}.get(ndim, f"{ndim} axes")
        raise ValueError(f"expected {name} of shape {axes}, got {x.ndim} axes: {x.shape}")


def checked_upstream(dy: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Return an upstream gradient after checking its shape; NumPy would spread a smaller one in silence.

    Args:
        dy: upstream gradient.
        shape: of the output that it belongs to.
        dtype: of the layer; another floating-point type is converted, so that float64 cannot creep in from behind.

    Raises:
        TypeError: not an array.
        ValueError: another shape.
    """
    array_module(dy)
    if dy.shape != shape:
        raise ValueError(f"expected an upstream gradient of the output's shape {shape}, got {dy.shape}")
    return dy if dtype is None else dy.astype(dtype, copy=False)


def load_backend(name: str) -> ModuleType:
    """Return the module of the backend ``name``, after checking that it really works here.

    Importable is not usable: CuPy imports on a machine without a GPU, so a device is asked for and one kernel is run.

    Raises:
        ValueError: ``name`` is neither "numpy" nor "cupy".
        BackendError: CuPy is not installed, or finds no usable NVIDIA GPU.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"expected backend 'numpy' or 'cupy', got {name!r}")
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise BackendError(
            f"backend cupy: CuPy cannot be imported ({error}). Install the wheel for your driver, "
            "pip install -e '.[cuda12]' or '.[cuda13]', or run with --backend numpy"
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()
        float(cupy.ones(1).sum())
    except Exception as error:
        raise BackendError(
            f"backend cupy: CuPy is installed but no NVIDIA GPU is usable ({error}). Check the driver with nvidia-smi, "
            "that CuPy's wheel fits it (cuda12 or cuda13), or run with --backend numpy"
        ) from error
    return cupy


def choose_backend(name: str) -> str:
    """Resolve "auto" to "cupy" where a GPU works and to "numpy" elsewhere; check any other name and return it.

    Raises:
        ValueError, BackendError: as :func:`load_backend`; never for "auto".
    """
    if name == "auto":
        try:
            load_backend("cupy")
        except BackendError:
            return "numpy"
        return "cupy"
    load_backend(name)
    return name


def to_backend(x: Array, name: str) -> Array:
    """Return ``x`` on the backend ``name``; an array that is already there is returned as it is."""
    if name == "numpy":
        return to_numpy(x)
    moved: Array = load_backend(name).asarray(x)
    return moved


def to_numpy(x: Array) -> NDArray[Any]:
    """Return ``x`` as a NumPy array; a NumPy array is returned as it is, a GPU array is copied to the host."""
    if array_module(x) is np:
        return np.asarray(x)
    host: NDArray[Any] = x.get()  # type: ignore[attr-defined]
    return host


def synchronize(xp: ModuleType) -> None:
    """Wait until the device has done all that was asked of it; NumPy is never behind."""
    if xp.__name__ == "cupy":
        xp.cuda.get_current_stream().synchronize()


def in_threads(work: Callable[[slice], Result], n: int, bytes_each: int, xp: ModuleType) -> list[Result]:
    """Share out ``n`` pictures among the cores: call ``work`` on a slice of the batch in each of as many threads.

    NumPy lets go of the interpreter while it computes, so the threads really run side by side. Each has its matrix
    products done by one BLAS thread, its own: two layers of threads would only get in each other's way. The caller's
    BLAS setting comes back at the end. With fewer pictures than cores, BLAS's own threads do better; for little work,
    waking threads takes longer than it saves; a GPU needs none.

    Args:
        work: gets a slice of the batch, never an empty one; must not touch what belongs to other slices.
        n: pictures in the batch.
        bytes_each: working memory one picture needs, in bytes.
        xp: the array module.

    Returns:
        what ``work`` returned, in the order of the slices.
    """
    workers = cores() if xp is np else 1
    if workers == 1 or n < workers or n * bytes_each < THREADING_BYTES:
        return [work(slice(0, n))]
    shares = [slice(*edges) for edges in pairwise(n * share // workers for share in range(workers + 1))]
    contexts = [copy_context() for _ in shares]  # the caller's np.errstate holds in the threads, too
    with one_blas_thread():
        return list(_threads(workers).map(lambda context, share: context.run(work, share), contexts, shares))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="slice")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: a child that waited for them would hang
    os.register_at_fork(after_in_child=_threads.cache_clear)


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which each matrix product is done by one BLAS thread; then the caller's setting comes back.

    For our own threads, and for products so small that waking a second BLAS thread takes longer than it saves.
    """
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # finds the loaded BLAS libraries once; that takes a millisecond


def slices(batch: slice, bytes_each: int, xp: ModuleType) -> Iterator[slice]:
    """Split a slice of the batch further, into slices whose working memory stays bounded.

    Args:
        batch: first and last picture.
        bytes_each: working memory one picture needs, in bytes.
        xp: the array module, which decides the bound: a core's cache on the CPU, a share of the free memory on a GPU.

    Yields:
        slices that cover ``batch`` in order, each of at least one picture.
    """
    step = max(1, slice_bytes(xp) // max(1, bytes_each))
    for start in range(batch.start, batch.stop, step):
        yield slice(start, min(start + step, batch.stop))


def slice_bytes(xp: ModuleType) -> int:
    """Return the working memory in bytes that one slice of a batch may use."""
    if xp.__name__ != "cupy":
        return CPU_SLICE_BYTES
    free, _ = xp.cuda.runtime.memGetInfo()
    pooled = xp.get_default_memory_pool().free_bytes()  # freed by us, kept by CuPy for the next request
    return int(GPU_FREE_SHARE * (free + pooled))
