"""What this machine has and what works on it: ``python -m nn.backend``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from nn.backend import BackendError, first_line, gpu_facts, load_backend
from nn.gpu import Kernel, mark, seconds_between, uploads
from nn.parallel import cores
from nn.precision import PRECISIONS, check_precision, matrix_products

SQUARE_PLUS = Kernel("T x, wide a", "T y", "y = T(wide(x) * wide(x) + a)", "square_plus")


def report_numpy() -> list[str]:
    """Return lines about NumPy."""
    blas = [
        f"{library['internal_api']} {library.get('version')}, {library.get('architecture', 'unknown')} kernels"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    lines = [
        f"numpy   {np.__version__} on {cores()} cores; matrix products by {', '.join(blas) or 'an unknown library'}"
    ]
    forced = [f"{name}={os.environ[name]}" for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if forced:
        lines.append(f"        {' and '.join(forced)} set: other kernels than this CPU's own, perhaps slower ones")
    return lines


def report_cupy(cupy: Any) -> list[str]:
    """Return lines about CuPy, its GPU, and a small test of everything that training uses."""
    facts, in_use = gpu_facts(cupy), cupy.cuda.Device().id
    lines = [
        f"cupy    {facts['cupy']} for CUDA {facts['cuda_of_cupy']}; the driver knows CUDA {facts['cuda_of_driver']}"
    ]
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(number):
            free, total = cupy.cuda.runtime.memGetInfo()
        facts = gpu_facts(cupy, number)
        lines.append(
            f"        device {number}{' (in use)' if number == in_use else ''}: {facts['name']}, compute capability "
            f"{facts['compute_capability']}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        )
    tests: dict[str, Callable[[Any], None]] = {
        "fused kernel": _kernel,
        "matrix product": _product,
        "copy beside computing": _copies,
    }
    tests |= {f"--precision {precision}": partial(_precise, precision) for precision in PRECISIONS}
    for name, test in tests.items():
        try:
            test(cupy)
            lines.append(f"        {name:<22} works")
        except Exception as error:
            lines.append(f"        {name:<22} FAILS: {first_line(error)}")
    return lines


def _expect(what: float, wanted: float, tolerance: float) -> None:
    if not abs(what - wanted) <= tolerance * abs(wanted):
        raise ValueError(f"expected {wanted}, got {what}")


def _kernel(xp: Any) -> None:
    _expect(float(SQUARE_PLUS(np.float32, xp.full(1000, 3, np.float32), 1.0).sum()), 10_000, 1e-6)


def _product(xp: Any) -> None:
    start = mark(xp)
    _expect(float((xp.full((8, 100), 2, np.float32) @ xp.full((100, 8), 3, np.float32))[3, 4]), 600, 1e-6)
    seconds_between(xp, start, mark(xp))


def _copies(xp: Any) -> None:
    batches = ((np.full(1000, number, np.float32), number) for number in range(4))
    for x, number in uploads(batches, xp):
        _expect(float(x.sum()), 1000 * number, 1e-6)


def _precise(precision: str, xp: Any) -> None:
    """Whether a matrix product is as exact as it should be, and with TF32 not more exact: then it was not TF32."""
    check_precision(precision, xp)
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512))
    dtype = np.float16 if precision == "float16" else np.float32
    with matrix_products(precision, xp):
        product = (xp.asarray(a.astype(dtype)) @ xp.asarray(b.astype(dtype))).get()
    error = float(np.abs(product - a @ b).max() / np.sqrt(512))  # relative to the size of a number of the product
    least, most = {"float32": (0.0, 1e-5), "tf32": (1e-5, 1e-2), "float16": (1e-5, 1e-2)}[precision]
    if not least <= error <= most:
        raise ValueError(f"expected an error of {least:g} to {most:g} in a matrix product, got {error:.1e}")


def main() -> int:
    """Print the report; return 0 if the CPU or a GPU works as it should, 1 if a GPU is there and something fails."""
    print("\n".join(report_numpy()))
    try:
        lines = report_cupy(load_backend("cupy"))
    except BackendError as error:
        lines = [f"cupy    not usable: {str(error).removeprefix('backend cupy: ')}"]
    print("\n".join(lines))
    return 1 if any("FAILS" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
