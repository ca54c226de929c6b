"""The tests of the mathematics on every device: the CPU, two stand-ins for a GPU, and a GPU where there is one.

strict    CuPy's rules on the CPU: no NumPy array may meet a device array (``strict_cupy``)
kernels   the same, and the GPU kernels run, compiled by the machine's C++ compiler (``kernel_emulator``)
cupy      an NVIDIA GPU

A test module says ``forward = everywhere(forward)`` for the functions under test and marks tests ``@ON_EVERY_DEVICE``.
NumPy arrays go in and come out; on the way they are on the device of the test's ``device`` fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import kernel_emulator
import numpy as np
import pytest
from strict_cupy import installed

from nn.backend import BackendError, load_backend

STAND_INS = ["strict", "kernels"]
DEVICES = ["numpy", *STAND_INS, pytest.param("cupy", marks=pytest.mark.gpu)]

ON_EVERY_DEVICE = [pytest.mark.usefixtures("device"), pytest.mark.parametrize("device", DEVICES, indirect=True)]

_now: list[ModuleType] = [np]  # the array module of the running test


def on_every_device(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test once a device; it may take the array module as argument ``device``."""
    for mark in ON_EVERY_DEVICE:
        test = mark(test)
    return test


@contextmanager
def on(name: str) -> Iterator[ModuleType]:
    """Within it, ``everywhere`` functions compute on this device; yields its array module."""
    with _module_of(name) as module:
        _now.append(module)
        try:
            yield module
        finally:
            _now.pop()


@contextmanager
def _module_of(name: str) -> Iterator[ModuleType]:
    if name == "numpy":
        yield np
    elif name == "cupy":
        try:
            cupy = load_backend("cupy")
        except BackendError as error:
            pytest.skip(f"no usable GPU, {str(error).split('. ')[0]}")
        yield cupy
    else:
        if name == "kernels" and kernel_emulator.compiler() is None:
            pytest.skip("no C++ compiler: install g++ or clang++")
        with installed(kernels=name == "kernels") as module:
            yield module


def everywhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` for NumPy arrays, computing on the device of the moment."""

    @wraps(function)
    def elsewhere(*arguments: Any, **options: Any) -> Any:
        if _now[-1] is np:
            return function(*arguments, **options)
        moved = (to_device(value) if _is_floating(value) else value for value in arguments)
        return to_host(function(*moved, **{name: to_device(value) for name, value in options.items()}))

    return elsewhere


def _is_floating(value: Any) -> bool:
    """Tell arrays to compute with, and caches, from labels, which stay on the CPU."""
    return not isinstance(value, np.ndarray) or value.dtype.kind == "f"


def to_device(value: Any) -> Any:
    """Move the NumPy arrays in ``value``, an array or a (named) tuple with some, to the device of the moment."""
    return _converted(value, np.ndarray, lambda array: _now[-1].asarray(array))


def to_host(value: Any) -> Any:
    """Move the device arrays in ``value`` to the CPU."""
    return _converted(value, _now[-1].ndarray, lambda array: array if _now[-1] is np else array.get())


def _converted(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [_converted(part, kind, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
