"""NumPy or CuPy: whose array is this, check it, move it.

Every other file asks the array it was given (``xp = array_module(x)``) and calls ``xp.zeros``, ``xp.matmul``, …, so one
source serves the CPU and the GPU. There is no global switch.
"""

from __future__ import annotations

import importlib
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
