"""What the tests of nn share: random arrays, and what "equal" means in float32 and in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import devices
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

Array = NDArray[Any]

#: Largest difference allowed, relative to the largest number of the array.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}

# The same examples in every run, and no time limit for a single one: the naive twins are slow. All examples of a test
# may share its fixtures: the device stays the same, and generators of random numbers take a seed among the examples.
settings.register_profile(
    "nn",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("nn")


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread() -> Iterator[None]:
    """Keep the matrix products of tiny arrays on one thread: on a busy machine the others spin, ten times as long."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that starts alike in every test."""
    return np.random.default_rng(2023)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings write dots in place of pictures: these take longer to draw than small networks to learn."""
    for name in ("draw_inputs", "draw_curves", "draw_predictions"):
        monkeypatch.setattr(f"resnet.training.{name}", lambda *arguments: Image.new("L", (1, 1)).save(arguments[-1]))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
    """Return normally distributed numbers."""
    return rng.normal(size=shape).astype(dtype)


def assert_close(actual: Array, expected: Any, scale: float = 0.0) -> None:
    """Compare shapes and numbers; the dtype of ``actual`` decides how close they must be.

    Args:
        actual: what our code says.
        expected: the truth, best in float64.
        scale: size of the terms that were added up, where these are larger than their sum.
    """
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(scale, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype] * scale)


def frozen(array: Array) -> Array:
    """Return a copy that raises when somebody writes into it."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def with_holes(array: Array) -> Array:
    """Return the same numbers, every second one along each axis of an array twice as long that is NaN elsewhere."""
    roomy = np.full([2 * size for size in array.shape], np.nan, array.dtype)
    view = roomy[(..., *[slice(None, None, 2)] * array.ndim)]
    view[...] = array
    return view


def arrays_of(cache: Any) -> list[Array]:
    """Return the arrays in what a layer keeps: an array, or a tuple with arrays and other things in it."""
    values = cache if isinstance(cache, tuple) else (cache,)
    return [value for value in values if isinstance(value, np.ndarray)]


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``import cupy`` fail, as on a machine where it is not installed."""
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Let functions made by ``devices.everywhere`` compute on this device; the value is its array module."""
    with devices.on(request.param) as module:
        yield module
