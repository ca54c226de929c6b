"""The backend: whose array is this, is a GPU usable, slices of a batch. No GPU is needed: a stand-in plays CuPy."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn import BackendError, array_module, backend, to_numpy
from nn.backend import (
    check_float,
    choose_backend,
    in_threads,
    load_backend,
    slice_bytes,
    slices,
    synchronize,
    to_backend,
)


class FakeArray:
    """What this file needs of a CuPy array: where its class lives, a dtype, and the way to the host."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values)
        self.dtype = self.values.dtype

    def get(self) -> np.ndarray:
        return self.values.copy()

    def sum(self) -> float:
        return self.values.sum()


FakeArray.__module__ = "cupy"


def fake_cupy(device_error: Exception | None = None) -> ModuleType:
    """Return a module that answers like CuPy, on a machine with a GPU or with an error in its place."""

    def device_count() -> int:
        if device_error is not None:
            raise device_error
        return 1

    module = ModuleType("cupy")
    module.asarray = FakeArray
    module.ones = lambda n: FakeArray(np.ones(n))
    module.waited = []
    runtime = SimpleNamespace(getDeviceCount=device_count, memGetInfo=lambda: (6 * 2**30, 8 * 2**30))
    stream = SimpleNamespace(synchronize=lambda: module.waited.append("stream"))
    module.cuda = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
    module.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 2 * 2**30)
    return module


@pytest.fixture
def cupy(monkeypatch) -> ModuleType:
    """Put a CuPy with a working GPU in place."""
    module = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    """CuPy can be imported, but there is no driver: importable is not usable."""
    error = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(error))


# Whose array is this


def test_array_module_asks_the_array(cupy):
    assert array_module(np.ones(2)) is np
    assert array_module(np.float32(1)) is np
    assert array_module(FakeArray([1.0])) is cupy


def test_array_module_of_a_file_mapped_into_memory(tmp_path):
    mapped = np.memmap(tmp_path / "pictures", np.float32, "w+", shape=(2, 3))
    assert array_module(mapped) is np


@pytest.mark.parametrize("thing", [[1.0, 2.0], (1.0,), 3.0, None, "x"], ids=repr)
def test_array_module_refuses_what_is_no_array(thing):
    with pytest.raises(TypeError, match=f"array, got {type(thing).__name__}: convert it with np.asarray"):
        array_module(thing)


# Is it usable


def test_numpy_is_always_there():
    assert load_backend("numpy") is np
    assert choose_backend("numpy") == "numpy"


@pytest.mark.parametrize("name", ["tpu", "NumPy", "", "torch"])
def test_an_unknown_backend_is_named(name):
    for ask in (load_backend, choose_backend):
        with pytest.raises(ValueError, match=f"'numpy' or 'cupy', got '{name}'"):
            ask(name)


def test_auto_falls_back_to_numpy_without_cupy(no_cupy):
    assert choose_backend("auto") == "numpy"


def test_auto_falls_back_to_numpy_without_a_gpu(no_gpu):
    assert choose_backend("auto") == "numpy"


def test_auto_takes_a_gpu_that_works(cupy):
    assert choose_backend("auto") == "cupy"


def test_cupy_that_is_not_installed_names_cause_and_remedy(no_cupy):
    for ask in (load_backend, choose_backend, lambda name: to_backend(np.ones(2), name)):
        with pytest.raises(BackendError, match=r"cannot be imported \(.+\).*\[cuda12\].*\[cuda13\].*--backend numpy"):
            ask("cupy")


def test_cupy_without_a_gpu_names_cause_and_remedy(no_gpu):
    with pytest.raises(BackendError, match=r"no NVIDIA GPU is usable \(.*InsufficientDriver.*nvidia-smi.*numpy"):
        load_backend("cupy")


def test_a_gpu_that_cannot_run_a_kernel_is_not_usable(cupy):
    """A wheel for another CUDA counts devices well and fails in the first kernel."""

    def broken(n: int) -> FakeArray:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    cupy.ones = broken
    with pytest.raises(BackendError, match="gpu-architecture"):
        load_backend("cupy")


def test_a_cupy_that_is_installed_and_broken_is_a_backend_error(monkeypatch):
    def fails(name: str) -> ModuleType:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(BackendError, match="libcudart"):
        load_backend("cupy")


# Moving


def test_moving_there_and_back(cupy):
    x = np.arange(3.0)
    moved = to_backend(x, "cupy")
    assert isinstance(moved, FakeArray)
    back = to_backend(moved, "numpy")
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(to_numpy(moved), x)


def test_an_array_that_is_already_there_is_returned_as_it_is():
    x = np.arange(3.0)
    assert to_numpy(x) is x
    assert to_backend(x, "numpy") is x


def test_a_number_of_numpy_becomes_an_array():
    assert isinstance(to_numpy(np.float32(2)), np.ndarray)


def test_only_a_gpu_is_waited_for(cupy):
    synchronize(np)
    assert cupy.waited == []
    synchronize(cupy)
    assert cupy.waited == ["stream"]


# Slices


@given(st.integers(0, 9), st.integers(0, 100), st.integers(0, 10**8), st.integers(1, 10**9))
def test_slices_cover_a_share_of_the_batch_in_order_without_gaps(start, n, bytes_each, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "CPU_SLICE_BYTES", bound)
        parts = list(slices(slice(start, start + n), bytes_each, np))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(start, start + n))
    sizes = [part.stop - part.start for part in parts]
    assert all(size == 1 or size * bytes_each <= bound for size in sizes)
    assert len(set(sizes[:-1])) <= 1  # all but the last alike
    if sizes and bytes_each:
        assert max(sizes) == min(n, max(1, bound // bytes_each))  # no smaller than need be


def test_a_gpu_slice_takes_a_share_of_the_free_memory(cupy):
    """6 GiB free on the device and 2 GiB that CuPy keeps for itself: a quarter of 8."""
    assert slice_bytes(cupy) == 2 * 2**30
    assert slice_bytes(np) == backend.CPU_SLICE_BYTES
    assert [(part.start, part.stop) for part in slices(slice(0, 5), 2**30, cupy)] == [(0, 2), (2, 4), (4, 5)]


# check_float


def test_check_float_is_content_with_what_fits():
    x = np.zeros((2, 3), np.float32)
    check_float("x", x)
    check_float("x", x, like=np.zeros(1, np.float32), ndim=2)


@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        ([1.0], {}, TypeError, "array, got list"),
        (np.zeros(2, np.int64), {}, TypeError, r"pictures in floating point, got int64: .*astype\(np.float32\)"),
        (np.zeros(2, complex), {}, TypeError, "pictures in floating point, got complex128"),
        (
            np.zeros(2),
            {"like": np.zeros(1, np.float32)},
            TypeError,
            r"float32 .*got float64: .*model.astype\(np.float64\)",
        ),
        (np.zeros(2), {"ndim": 4}, ValueError, r"pictures of shape \(N, H, W, C\), got 1 axes: \(2,\)"),
        (np.zeros((2, 3, 4)), {"ndim": 2}, ValueError, r"pictures of shape \(N, C\), got 3 axes: \(2, 3, 4\)"),
        (np.zeros(2), {"ndim": 3}, ValueError, "pictures of shape 3 axes"),
    ],
)
def test_check_float_names_what_does_not_fit(x, options, error, words):
    with pytest.raises(error, match=words):
        check_float("pictures", x, **options)


# Threads


def test_work_is_shared_out_in_order_and_each_share_is_done_once(monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: 3)
    shares = in_threads(lambda share: (share.start, share.stop), 10, 2**20, np)
    assert shares == [(0, 3), (3, 6), (6, 10)]


@pytest.mark.parametrize(("n", "workers", "bytes_each"), [(1, 2, 2**20), (3, 4, 2**20), (5, 1, 2**20), (4, 2, 2**10)])
def test_few_pictures_a_single_core_or_little_work_are_one_share(n, workers, bytes_each, monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: workers)
    assert in_threads(lambda share: (share.start, share.stop), n, bytes_each, np) == [(0, n)]


def test_a_thread_has_one_blas_thread_and_the_callers_setting_comes_back(monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: 2)
    blas = backend._blas()

    def blas_threads() -> set[int]:
        return {library["num_threads"] for library in blas.info() if library["user_api"] == "blas"}

    with blas.limit(limits=2, user_api="blas"):
        assert blas_threads() == {2}
        assert in_threads(lambda share: blas_threads(), 4, 2**20, np) == [{1}, {1}]
        assert blas_threads() == {2}


def test_the_callers_errstate_holds_in_the_threads(monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: 2)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_threads(lambda share: np.ones(1) / 0, 4, 2**20, np)


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda share: 1 // share.start, 4, 2**20, np)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_threads_of_its_own():
    """In a process of its own, as pytest's threads and a fork do not go together."""
    program = """
import os, signal
import numpy as np
from nn import backend
backend.cores = lambda: 2
work = lambda share: share.stop
assert backend.in_threads(work, 4, 2**20, np) == [2, 4]
child = os.fork()
if child == 0:
    os._exit(0 if backend.in_threads(work, 4, 2**20, np) == [2, 4] else 1)
_, status = os.waitpid(child, 0)
assert status == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
