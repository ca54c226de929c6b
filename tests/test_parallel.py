"""Slices, threads and buffers: the same work whole, in pieces and side by side. No GPU is needed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn import parallel
from nn.parallel import (
    cores_for,
    elementwise,
    in_parts,
    in_slices,
    in_threads,
    keep_freed_memory,
    one_blas_thread,
    scratch,
    shares,
    slice_bytes,
    slices,
    threads,
    workers,
)


@pytest.fixture
def cupy() -> ModuleType:
    """6 GiB free on the device and 2 GiB that CuPy keeps for itself."""
    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (6 * 2**30, 8 * 2**30)))
    module.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 2 * 2**30)
    module.empty = np.empty
    return module


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in parallel._blas().info() if library["user_api"] == "blas"}


# Slices


@given(st.integers(0, 9), st.integers(0, 100), st.integers(0, 10**8), st.integers(1, 10**9))
def test_slices_cover_a_share_of_the_batch_in_order_without_gaps(start, n, bytes_each, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "CPU_SLICE_BYTES", bound)
        parts = list(slices(slice(start, start + n), bytes_each, np))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(start, start + n))
    sizes = [part.stop - part.start for part in parts]
    assert all(size == 1 or size * bytes_each <= bound for size in sizes)
    assert len(set(sizes[:-1])) <= 1  # all but the last alike
    if sizes and bytes_each:
        assert max(sizes) == min(n, max(1, bound // bytes_each))  # no smaller than need be


def test_a_gpu_slice_takes_a_share_of_the_free_memory(cupy, monkeypatch):
    """6 GiB free on the device and 2 GiB that CuPy keeps for itself: a quarter of 8."""
    assert slice_bytes(cupy, 2**40) == parallel.GPU_SLICE_BYTES
    assert slice_bytes(np, 2**40) == parallel.CPU_SLICE_BYTES
    assert slice_bytes(cupy, 1000) == 1000  # so little that nobody asks
    monkeypatch.setattr(parallel, "GPU_SLICE_BYTES", 2**40)
    assert slice_bytes(cupy, 2**40) == 2 * 2**30
    assert [(part.start, part.stop) for part in slices(slice(0, 5), 2**30, cupy)] == [(0, 2), (2, 4), (4, 5)]
    monkeypatch.setattr(parallel, "GPU_FREE_SHARE", 0.24)
    assert slice_bytes(cupy, 2**40) == 2**30  # a power of two: a few bytes more or less change nothing
    monkeypatch.setattr(parallel, "GPU_FREE_SHARE", 0.0)
    assert slice_bytes(cupy, 2**40) == 1  # and a picture at a time where nothing is free


def test_a_higher_least_makes_larger_slices_on_the_cpu():
    parts = list(slices(slice(0, 10), parallel.CPU_SLICE_BYTES, np, least=4 * parallel.CPU_SLICE_BYTES))
    assert [(part.start, part.stop) for part in parts] == [(0, 4), (4, 8), (8, 10)]


# Threads


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_as_equal_as_can_be_and_none_is_empty(n, most):
    parts = shares(n, most)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert len(sizes) == max(1, min(n, most))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("nbytes", "limit", "expected"), [(2**30, 0, 3), (2**30, 2, 2), (2**30, 8, 8), (2**10, 0, 1)])
def test_workers_are_the_cores_or_the_limit_and_one_for_little_work(nbytes, limit, expected, monkeypatch, cupy):
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    with threads(limit):
        assert workers(nbytes, np) == expected
        assert workers(nbytes, cupy) == 1
    assert workers(2**30, np) == 3


def test_a_negative_number_of_threads_is_an_error():
    with pytest.raises(ValueError, match=r"threads, or 0 .*got -1"), threads(-1):
        pass


def test_parts_are_done_once_each_and_answered_in_order():
    seen = []
    assert in_threads(lambda part: (seen.append(part), 10 * part)[1], [3, 1, 2]) == [30, 10, 20]
    assert sorted(seen) == [1, 2, 3]


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_in_slices_covers_the_rows_in_order(wanted, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: wanted)
    monkeypatch.setattr(parallel, "ELEMENTWISE_BYTES", 3 * 2**18)
    parts = in_slices(lambda part: (part.start, part.stop), 10, 2**18, np)
    assert [i for part in parts for i in range(*part)] == list(range(10))
    assert max(stop - start for start, stop in parts) == min(3, -(-10 // wanted))


@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize(("n", "places"), [(6, 50), (6, 2), (1, 50)])  # by pictures; few places; fewer than cores
def test_in_parts_adds_up_the_whole_product(n, places, cores, monkeypatch, rng):
    """Against the product in one piece: A is (N·places, 3), B is (N·places, 70)."""
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    monkeypatch.setattr(parallel, "CPU_SLICE_BYTES", 2**20)
    a, b = rng.normal(size=(n, places, 3)), rng.normal(size=(n, places, 70))

    def work(few: slice, filters: slice) -> np.ndarray:
        return a[few].reshape(-1, 3).T @ b[few].reshape(-1, 70)[:, filters]

    y = np.empty((n, places, 1, 70))
    total = in_parts(work, y, 2**19)
    np.testing.assert_allclose(total, a.reshape(-1, 3).T @ b.reshape(-1, 70), rtol=1e-12, atol=1e-12)
    assert in_parts(lambda few, filters: None, y, 2**19) is None


def test_elementwise_fills_an_array_like_the_inputs(rng):
    a, b = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(3, 5, 2)).astype(np.float32).T
    result = elementwise(np.subtract, a, b)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, a - b)


def test_a_part_has_one_blas_thread_and_the_callers_setting_comes_back():
    with parallel._blas().limit(limits=2, user_api="blas"):
        assert blas_threads() == {2}
        assert in_threads(lambda part: blas_threads(), [0, 1]) == [{1}, {1}]
        assert blas_threads() == {2}
        with one_blas_thread():
            with one_blas_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {1}  # the inner one changed nothing
        assert blas_threads() == {2}


def test_a_single_picture_is_left_to_the_threads_of_blas(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with cores_for(1):
        assert (blas_threads(), workers(2**30, np)) == ({2}, 1)
    with cores_for(2):
        assert (blas_threads(), workers(2**30, np)) == ({1}, 2)


def test_the_callers_errstate_holds_in_the_threads():
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_threads(lambda part: np.ones(1) / part, [1, 0])


@pytest.mark.parametrize("bad", [0, 1])  # in the caller's thread, in another
def test_an_error_reaches_the_caller_when_all_have_finished(bad):
    done = []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda part: 1 // (part != bad) and done.append(part), [0, 1, 2])
    assert sorted(done) == [part for part in (0, 1, 2) if part != bad]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_threads_of_its_own():
    """In a process of its own, as pytest's threads and a fork do not go together."""
    program = """
import os
from nn import parallel
work = lambda part: part + 1
assert parallel.in_threads(work, [1, 2]) == [2, 3]
child = os.fork()
if child == 0:
    os._exit(0 if parallel.in_threads(work, [1, 2]) == [2, 3] else 1)
_, status = os.waitpid(child, 0)
assert status == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


# Buffers


def test_scratch_is_the_same_memory_for_one_name_and_thread(monkeypatch, cupy):
    first, again = (scratch("test", (3, 4), np.float32, np) for _ in range(2))
    assert np.shares_memory(first, again)
    assert scratch("test", (2, 2), np.float64, np).dtype == np.float64
    assert not np.shares_memory(first, scratch("another", (3, 4), np.float32, np))
    other_thread = in_threads(lambda part: scratch("test", (3, 4), np.float32, np), [0, 1])
    assert not np.shares_memory(*other_thread)
    assert not np.shares_memory(first, scratch("test", (3, 4), np.float32, cupy))  # CuPy has a pool of its own
    monkeypatch.setattr(parallel, "SCRATCH_BYTES", 10)
    assert not np.shares_memory(first, scratch("test", (3, 4), np.float32, np))  # too large to be kept


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    class NoMallopt:
        def __init__(self, name: object) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", NoMallopt)
    assert keep_freed_memory() is False


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt is asked for")
def test_kept_memory_needs_no_new_pages():
    """Arrays of 40 MB, made and freed three times: without the setting each brings its pages anew."""
    program = """
import resource
import numpy as np
from nn.parallel import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if not keep_freed_memory():
    raise SystemExit
np.ones(10**7, np.float32)
before = faults()
for _ in range(3):
    np.ones(10**7, np.float32)
assert faults() - before < 1000, faults() - before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
