"""The backend: whose array is this, is a GPU usable. No GPU is needed: a stand-in plays CuPy."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import devices
import numpy as np
import pytest

import nn.backend.__main__ as report
from nn import BackendError, array_module, to_numpy
from nn.backend import (
    check_float,
    choose_backend,
    load_backend,
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
    runtime = SimpleNamespace(getDeviceCount=device_count)
    module.cuda = SimpleNamespace(runtime=runtime)
    return module


@pytest.fixture
def cupy(monkeypatch) -> ModuleType:
    """Put a CuPy with a working GPU in place."""
    module = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def no_gpu(monkeypatch) -> ModuleType:
    """CuPy can be imported, but there is no driver: importable is not usable."""
    error = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    module = fake_cupy(error)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


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


@pytest.mark.parametrize(
    ("driver", "wheel", "words"),
    [
        (0, 12090, r"no NVIDIA driver: install one, .*nvidia-smi .*\(.*InsufficientDriver.*--backend numpy"),
        (12040, 13000, r"built for CUDA 13.0, but the driver knows CUDA 12.4 at most: pip uninstall cupy-cuda13x .*"
         r"\[cuda12\].*, or update the driver"),
        (12040, 12090, r"the driver works but shows no GPU: .*nvidia-smi.*CUDA_VISIBLE_DEVICES, now 'unset'"),
    ],
)  # fmt: skip
def test_cupy_without_a_gpu_names_cause_and_remedy(driver, wheel, words, no_gpu, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    no_gpu.cuda.runtime.driverGetVersion = lambda: driver
    no_gpu.cuda.runtime.runtimeGetVersion = lambda: wheel
    with pytest.raises(BackendError, match=words) as caught:
        load_backend("cupy")
    assert "\n" not in str(caught.value)


def test_a_count_of_no_devices_is_an_error_too(cupy, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    cupy.cuda.runtime.driverGetVersion = cupy.cuda.runtime.runtimeGetVersion = lambda: 12040
    with pytest.raises(BackendError, match=r"shows no GPU: .*CUDA_VISIBLE_DEVICES, now '', does not hide it"):
        load_backend("cupy")


def test_a_gpu_that_cannot_run_a_kernel_is_not_usable(cupy):
    """A wheel for another CUDA counts devices well and fails in the first kernel."""

    def broken(n: int) -> FakeArray:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    cupy.ones = broken
    with pytest.raises(BackendError, match=r"a first kernel fails \(.*gpu-architecture\)\. .*\[cuda12\]"):
        load_backend("cupy")


def test_a_cupy_that_is_installed_and_broken_is_a_backend_error(monkeypatch):
    for error in (ImportError("libcudart.so.12: cannot open shared object file"), RuntimeError("libcudart\nand more")):
        monkeypatch.setattr(importlib, "import_module", lambda name, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(BackendError, match=r"cannot be imported \(libcudart[^\n]*\)"):
            load_backend("cupy")


# The report, python -m nn.backend


def test_the_report_without_a_gpu_says_why_and_is_no_failure(no_cupy, capsys):
    assert report.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"numpy   {np.__version__} on ")
    assert lines[-1].startswith("cupy    not usable: CuPy cannot be imported (")


def test_the_report_tells_of_kernels_that_the_environment_forces(no_cupy, capsys, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    report.main()
    assert "OPENBLAS_CORETYPE=Haswell" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["kernels", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_the_report_of_a_gpu_tries_everything_that_training_uses(device, capsys):
    with devices.on(device) as xp:
        assert report.main() == 0
        out = capsys.readouterr().out
    assert f"cupy    {xp.__version__} for CUDA " in out
    assert re.search(r"device 0 \(in use\): .+, compute capability \d+\.\d, [\d.]+ of [\d.]+ GB free\n", out)
    for line in ("fused kernel", "matrix product", "copy beside", "--precision tf32", "--precision float16"):
        assert re.search(rf"{line}.* works\n", out)


def test_the_report_names_what_fails(capsys, monkeypatch):
    with devices.on("kernels") as xp:
        xp.cuda.Device.compute_capability = "75"
        assert report.main() == 1
    assert re.search(
        r"--precision tf32 +FAILS: .*needs a GPU of compute capability 8.0, this one has 7.5", capsys.readouterr().out
    )


def test_the_command_prints_no_warning():
    done = subprocess.run([sys.executable, "-m", "nn.backend"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


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
