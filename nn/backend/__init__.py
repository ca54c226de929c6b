"""NumPy or CuPy: whose array is this, check it, move it.

Every other file asks the array it was given (``xp = array_module(x)``) and calls ``xp.zeros``, ``xp.matmul``, …, so one
source serves the CPU and the GPU. There is no global switch. ``python -m nn.backend`` prints what this machine has.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: A NumPy array, or a CuPy array that answers to the same names.
Array: TypeAlias = NDArray[Any]


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
        BackendError: CuPy is not installed, or finds no usable NVIDIA GPU; says why and what to do.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"expected backend 'numpy' or 'cupy', got {name!r}")
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # a broken installation may raise anything
        raise BackendError(
            f"backend cupy: CuPy cannot be imported ({first_line(error)}). Install the wheel for your driver, "
            "pip install -e '.[cuda12]' or '.[cuda13]', or run with --backend numpy"
        ) from error
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise RuntimeError("no device")
    except Exception as error:
        raise BackendError(
            f"backend cupy: {_why_no_device(cupy)} ({first_line(error)}), or run with --backend numpy"
        ) from error
    try:
        float(cupy.ones(1).sum())
    except Exception as error:
        raise BackendError(
            f"backend cupy: a GPU is there, but a first kernel fails ({first_line(error)}). Free its memory, or "
            "install CuPy with the CUDA libraries that it needs to compile: pip install -e '.[cuda12]' or '.[cuda13]'"
        ) from error
    return cupy


def _why_no_device(cupy: Any) -> str:
    """Return what keeps CuPy from finding a GPU, and the remedy: no driver, one that is too old, or no device."""
    try:
        driver, wheel = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    except Exception:  # not even that works
        driver = wheel = 0
    if driver == 0:
        return "there is no NVIDIA driver: install one, so that nvidia-smi lists your GPU"
    if driver // 1000 < wheel // 1000:
        major = driver // 1000
        return (
            f"CuPy is built for CUDA {cuda_version(wheel)}, but the driver knows CUDA {cuda_version(driver)} at most: "
            f"pip uninstall cupy-cuda{wheel // 1000}x and pip install -e '.[cuda{major}]', or update the driver"
        )
    return (
        "the driver works but shows no GPU: see that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES, now "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')!r}, does not hide it"
    )


def gpu_facts(cupy: Any, device: int | None = None) -> dict[str, Any]:
    """Return what is known of a GPU, by default the one in use: name, memory in bytes, capability, and versions."""
    number = cupy.cuda.Device().id if device is None else device
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    return {
        "name": properties["name"].decode(),
        "memory": int(properties["totalGlobalMem"]),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": int(properties["multiProcessorCount"]),
        "cupy": cupy.__version__,
        "cuda_of_cupy": cuda_version(cupy.cuda.runtime.runtimeGetVersion()),
        "cuda_of_driver": cuda_version(cupy.cuda.runtime.driverGetVersion()),
    }


def cuda_version(number: int) -> str:
    """Return e.g. "12.9" for CUDA's 12090."""
    return f"{number // 1000}.{number % 1000 // 10}"


def first_line(error: Exception) -> str:
    """Return an error's first line, or its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


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
