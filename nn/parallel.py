"""Split work into slices: as large as a cache or a GPU's memory takes, and as many at a time as there are cores.

NumPy lets go of the interpreter while it computes, so Python's threads really run side by side. A GPU needs neither
threads nor caches looked after: there the same functions hand the whole of the work over in one piece.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, reduce
from itertools import pairwise
from math import prod
from operator import iadd
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from nn.backend import Array, array_module
from nn.gpu import wide_dtype

Part = TypeVar("Part")
Result = TypeVar("Result")

#: Patches of one slice on the CPU: small enough to stay in a core's cache until the matrix product has read them.
CPU_SLICE_BYTES = 2 * 2**20
#: One slice of an elementwise job on the CPU: in a core's cache for the job's next step, and yet large enough that
#: threads seldom wait for each other at the interpreter.
ELEMENTWISE_BYTES = 2**21
#: Working memory from which a job is worth being shared out among threads.
THREADING_BYTES = 2**18
#: Largest buffer that a thread keeps for the next layer to work in.
SCRATCH_BYTES = 64 * 2**20
#: Patches of one slice on a GPU: enough to keep all of it busy, and a bound on what a large batch takes.
GPU_SLICE_BYTES = 256 * 2**20
#: Share of the GPU's free memory that they may take at most.
GPU_FREE_SHARE = 0.25
#: Patches that a GPU has room for in any case: asking it how much is free would take longer than it is worth.
GPU_UNASKED_BYTES = 128 * 2**20

# Threads

_limit: ContextVar[int] = ContextVar("limit", default=0)
_one_blas_thread: ContextVar[bool] = ContextVar("one_blas_thread", default=False)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within it, layers compute in at most ``n`` threads; 0 stands for all cores, which is also the default.

    Raises:
        ValueError: a negative number.
    """
    if n < 0:
        raise ValueError(f"expected a number of threads, or 0 for all cores, got {n}")
    token = _limit.set(n)
    try:
        yield
    finally:
        _limit.reset(token)


def workers(work_bytes: int, xp: ModuleType) -> int:
    """Return how many threads a job is worth that needs ``work_bytes`` of working memory.

    One for little work, as waking threads would take longer than it saves, and one on a GPU, which needs none.
    """
    return (_limit.get() or cores()) if xp is np and work_bytes >= THREADING_BYTES else 1


def shares(n: int, most: int) -> list[slice]:
    """Split ``n`` things into up to ``most`` slices, as equal as can be and none empty."""
    count = max(1, min(n, most))
    return [slice(*edges) for edges in pairwise(n * share // count for share in range(count + 1))]


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Call ``work`` on each part in a thread of its own; the caller's does the first.

    Each thread has its matrix products done by one BLAS thread, its own: two layers of threads would only get in each
    other's way. The caller's BLAS setting comes back at the end, and the caller's ``np.errstate`` holds in the threads.

    Args:
        work: must not write what belongs to another part.
        parts: what to call it with, at most one a thread.

    Returns:
        what ``work`` returned, in the order of the parts.
    """
    first, *others = parts
    if not others:
        return [work(first)]
    with one_blas_thread():
        pool = _pool(len(others))
        futures = [pool.submit(copy_context().run, work, part) for part in others]
        try:
            return [work(first), *(future.result() for future in futures)]
        finally:
            wait(futures)  # after an error nobody may be left behind who still writes


def in_slices(work: Callable[[slice], Result], n: int, bytes_each: int, xp: ModuleType) -> list[Result]:
    """Call ``work`` on slices of ``n`` rows that fit in a core's cache, several at a time; a GPU takes one slice.

    For elementwise work in several steps: each step finds in the cache what the step before has left there.

    Args:
        work: gets a slice of the rows, never an empty one; must not write what belongs to other slices.
        n: rows.
        bytes_each: of one row.
        xp: the array module.

    Returns:
        what ``work`` returned, in the order of the rows.
    """
    if xp is not np:
        return [work(slice(0, n))]
    step = max(1, ELEMENTWISE_BYTES // max(1, bytes_each))

    def do_share(share: slice) -> list[Result]:
        return [work(slice(at, min(at + step, share.stop))) for at in range(share.start, share.stop, step)]

    done = in_threads(do_share, shares(n, workers(n * bytes_each, xp)))
    return [result for share in done for result in share]


def elementwise(work: Callable[..., Any], *inputs: Array) -> Array:
    """Return a new array of the inputs' shape and dtype, filled in by ``work`` slice by slice.

    Args:
        work: gets a slice of each input and of the result, which it fills in; all flat.
        inputs: arrays of one shape and dtype, read only.
    """
    xp = array_module(inputs[0])
    flat = [array.reshape(-1) for array in inputs]  # any shape -> (size,)
    out = xp.empty(flat[0].shape, dtype=flat[0].dtype)
    in_slices(lambda part: work(*(array[part] for array in flat), out[part]), out.size, out.itemsize, xp)
    return out.reshape(inputs[0].shape)  # (size,) -> any shape


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="slice")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: a child that waited for them would hang
    os.register_at_fork(after_in_child=_pool.cache_clear)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, each matrix product is done by one BLAS thread; then the caller's setting comes back.

    For our own threads, and for products so small that waking a second BLAS thread takes longer than it saves.
    """
    if _one_blas_thread.get():  # asking the BLAS libraries takes a while, so only the outermost does
        yield
        return
    token = _one_blas_thread.set(True)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        _one_blas_thread.reset(token)


@contextmanager
def cores_for(n: int) -> Iterator[None]:
    """Within it, the cores are shared out for batches of ``n`` pictures.

    By our own threads, which need pictures to share; for a single one BLAS's threads do better, inside its products.
    """
    if n > 1:
        with one_blas_thread():
            yield
    else:
        with _blas().limit(limits=_limit.get() or cores(), user_api="blas"), threads(1):
            yield


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # finds the loaded BLAS libraries once; that takes a millisecond


# Working memory

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names of glibc's mallopt


def keep_freed_memory() -> bool:
    """Ask the C library to keep large memory blocks that were freed, for the next array; return whether it can.

    By default glibc hands them back to the system and gets them again at the next step, zeroed page by page, which can
    take half of a small step's time. It concerns the whole process, so commands call it, never an import.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any, xp: ModuleType) -> Array:
    """Return an array to work in, of a buffer that this thread uses again and again; what is in it is anything.

    It stays valid until this thread asks for the same name again, so it must not leave the function that asked.
    Memory fresh from the system costs more than a pass over it; CuPy keeps its own pool, so there it is simply empty.
    """
    nbytes = prod(shape) * np.dtype(dtype).itemsize
    if xp is not np or nbytes > SCRATCH_BYTES:
        return xp.empty(shape, dtype=dtype)
    buffer = vars(_kept).get(name)
    if buffer is None or buffer.nbytes < nbytes:
        buffer = vars(_kept)[name] = np.empty(nbytes, np.uint8)
    return np.ndarray(shape, dtype, buffer=buffer)


def contiguous(view: Array, name: str) -> Array:
    """Return ``view`` as it is if it is contiguous, else copied into this thread's buffer ``name``."""
    if view.flags.c_contiguous:
        return view
    copy = scratch(name, view.shape, view.dtype, array_module(view))
    copy[...] = view
    return copy


def slices(batch: slice, bytes_each: int, xp: ModuleType, least: int = 0) -> Iterator[slice]:
    """Split a slice of the batch further, into slices whose working memory stays bounded.

    Args:
        batch: first and last picture.
        bytes_each: working memory one picture needs, in bytes.
        xp: the array module, which decides the bound: a core's cache on the CPU, a share of the free memory on a GPU.
        least: a higher bound on the CPU, in bytes, where each slice has a price of its own.

    Yields:
        slices that cover ``batch`` in order, each of at least one picture.
    """
    wanted = (batch.stop - batch.start) * bytes_each
    step = max(1, max(slice_bytes(xp, wanted), least) // max(1, bytes_each))
    for start in range(batch.start, batch.stop, step):
        yield slice(start, min(start + step, batch.stop))


def slice_bytes(xp: ModuleType, wanted: int) -> int:
    """Return the working memory in bytes that one slice may use of a batch that would need ``wanted`` in one piece."""
    if xp.__name__ != "cupy":
        return CPU_SLICE_BYTES
    if wanted <= GPU_UNASKED_BYTES:
        return wanted
    free, _ = xp.cuda.runtime.memGetInfo()
    pooled = xp.get_default_memory_pool().free_bytes()  # freed by us, kept by CuPy for the next request
    share = int(GPU_FREE_SHARE * (free + pooled))
    return min(
        GPU_SLICE_BYTES, 2 ** (max(1, share).bit_length() - 1)
    )  # a power of two: the same in two runs, as a rule


# Convolutions


def in_batch_slices(work: Callable[[slice], Result], n: int, bytes_each: int, xp: ModuleType) -> None:
    """Call ``work`` on slices of ``n`` pictures whose working memory fits in the cache, several threads at a time."""

    def do_share(share: slice) -> None:
        for few in slices(share, bytes_each, xp):
            work(few)

    in_threads(do_share, shares(n, workers(n * bytes_each, xp)))


def in_parts(work: Callable[[slice, slice], Any], y: Array, bytes_each: int, least: int = 0) -> Any:
    """Call ``work(pictures, filters)`` on parts of a convolution that fit in the cache, several threads at a time.

    The cores share out the pictures, or the filters where there are fewer pictures than cores or fewer places than
    filters: then each thread cuts all patches, but reads its own part of the weight only.

    Args:
        work: returns None, or a matrix (any, filters); must not write what belongs to other parts.
        y: (N, OH, OW, F), an array like the output.
        bytes_each: patches of one picture, in bytes.
        least: as :func:`slices`.

    Returns:
        what ``work`` returned, added up over the pictures, (any, F); float32 for float16.
    """
    (n, oh, ow, f), xp = y.shape, array_module(y)
    most = workers(n * bytes_each, xp)
    by_pictures = n >= most and n * oh * ow >= f
    if by_pictures:
        parts = [(pictures, slice(0, f)) for pictures in shares(n, most)]
    else:
        parts = [(slice(0, n), filters) for filters in shares(f, min(most, f // 16 or 1))]

    def do_part(part: tuple[slice, slice]) -> Any:
        total = None
        for few in slices(part[0], bytes_each, xp, least):
            found = work(few, part[1])
            if found is None:
                continue
            if total is None:
                total = found.astype(wide_dtype(found.dtype), copy=False)  # sums of float16 are float32
            else:
                total += found
        return total

    found = in_threads(do_part, parts)
    if found[0] is None or len(found) == 1:
        return found[0]
    return reduce(iadd, found) if by_pictures else xp.concatenate(found, axis=1)
