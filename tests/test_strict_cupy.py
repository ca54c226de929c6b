"""The stand-in for CuPy: what it refuses, what it allows, what it counts; and its compiler of kernels."""

from __future__ import annotations

import copy
import importlib
import math
import sys
import threading
import warnings
from types import ModuleType

import kernel_emulator
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strict_cupy import NAMES, Array, build, installed
from write_cupy_names import names

needs_compiler = pytest.mark.skipif(
    kernel_emulator.compiler() is None, reason="no C++ compiler: install g++ or clang++"
)


@pytest.fixture
def cupy() -> ModuleType:
    return build()


def numbers(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=dtype).reshape(shape)


# Names


def test_names():
    """cupy_names.json says what the installed CuPy has; of another version it is told what has gone."""
    try:
        real = importlib.import_module("cupy")
    except ImportError:
        pytest.skip("CuPy is not installed")
    found = names(real)
    if found["version"] == NAMES["version"]:
        assert found == NAMES
        return
    for where, ours in NAMES.items():
        if where != "version" and (gone := sorted(set(ours) - set(found[where]))):
            warnings.warn(f"CuPy {found['version']} has no {where}: {', '.join(gone)}", stacklevel=1)


def test_methods_of_the_array_are_cupys():
    public = {name for name in dir(Array) if not name.startswith("_")}
    assert public <= set(NAMES["ndarray"])
    assert {"T", "argmax", "astype", "fill", "mean", "ravel", "reshape", "sum", "transpose", "view"} <= public
    assert not public & {"tobytes", "flat", "ctypes"}


@pytest.mark.parametrize("name", ["float_", "errstate", "ElementwiseKernel", "nonsense", "c_", "typing", "bmat"])
def test_a_name_that_one_of_them_lacks_is_not_offered(cupy, name):
    with pytest.raises(AttributeError, match=f"module 'cupy' has no attribute '{name}'"):
        getattr(cupy, name)


def test_names_that_pass(cupy):
    assert cupy.__name__ == "cupy"
    assert cupy.float32 is np.float32
    assert cupy.newaxis is None
    assert cupy.inf == math.inf
    assert cupy.sum is cupy.sum
    assert cupy.result_type(cupy.ones(1, np.float32), 2.0) == np.float32


def test_namespaces(cupy):
    x = cupy.asarray(numbers(5))
    windows = cupy.lib.stride_tricks.sliding_window_view(x, 3)
    assert windows.get().tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert windows.base is x
    assert isinstance(cupy.linalg.norm(x), cupy.ndarray)
    with pytest.raises(AttributeError, match=r"module 'cupy\.linalg' has no attribute 'vector_norm'"):
        cupy.linalg.vector_norm(x)


# Host and device do not meet

HOST = np.ones((2, 3), np.float32)

REFUSED = {
    "x + host": lambda xp, x: x + HOST,
    "host + x": lambda xp, x: HOST + x,
    "x + 0-d host": lambda xp, x: x + np.array(1.0),
    "0-d host * x": lambda xp, x: np.array(1.0) * x,
    "host < x": lambda xp, x: HOST < x,  # noqa: SIM300
    "host @ x": lambda xp, x: HOST @ x.T,
    "x == host": lambda xp, x: x == HOST,
    "x += host": lambda xp, x: x.__iadd__(HOST),
    "host += x": lambda xp, x: HOST.copy().__iadd__(x),
    "x + list": lambda xp, x: x + [1, 2, 3],  # noqa: RUF005
    "function": lambda xp, x: xp.sum(HOST),
    "keyword": lambda xp, x: xp.sum(a=HOST),
    "ufunc": lambda xp, x: xp.maximum(x, HOST),
    "list": lambda xp, x: xp.stack([x, HOST]),
    "tuple in tuple": lambda xp, x: xp.concatenate(((x), (HOST))),
    "dict": lambda xp, x: xp.einsum("ij->i", x, **{"out": HOST[:, 0]}),
    "index": lambda xp, x: x[np.array([0, 1])],
    "index in a tuple": lambda xp, x: x[:, np.array([0, 1])],
    "index in a slice": lambda xp, x: x[: np.array(1)],
    "mask": lambda xp, x: x[HOST > 0],
    "assigned": lambda xp, x: x.__setitem__(slice(None), HOST),
    "assigned at": lambda xp, x: x.__setitem__(np.array([0]), 1.0),
    "assigned to the host": lambda xp, x: HOST.copy().__setitem__(slice(None), x),
    "out": lambda xp, x: xp.add(x, x, out=HOST.copy()),
    "out of a method": lambda xp, x: x.sum(axis=0, out=HOST[0].copy()),
    "fill": lambda xp, x: x.fill(np.array(1.0)),
    "set from a list": lambda xp, x: x.set([1.0]),
    "np.asarray": lambda xp, x: np.asarray(x),
    "np.asarray of a list": lambda xp, x: np.asarray([x[0, 0]]),
    "np ufunc": lambda xp, x: np.exp(x),
    "np ufunc with out": lambda xp, x: np.add(x, x, out=x),
    "np reduction": lambda xp, x: np.sum(x),
    "np.add.reduce": lambda xp, x: np.add.reduce(x),
    "np.add.at": lambda xp, x: np.add.at(x, 0, 1),
    "np function": lambda xp, x: np.concatenate([x, x]),
    "np maximum of a scalar": lambda xp, x: np.maximum(np.float32(0), x),
    "np.float32": lambda xp, x: np.float32(x[0, 0]),
    "buffer": lambda xp, x: memoryview(x),
    "another module's": lambda xp, x: x + build().ones((2, 3)),
    "another module's in a function": lambda xp, x: xp.sum(build().ones(3)),
    "where= of a ufunc": lambda xp, x: xp.exp(x, where=x > 0),
    "order= of a ufunc": lambda xp, x: xp.exp(x, order="C"),
    "where= of a function": lambda xp, x: xp.sum(x, where=x > 0),
    "initial= of a method": lambda xp, x: x.max(initial=0),
    "too many places": lambda xp, x: xp.stack([x, x], 0, None, np.float32),
    "too few": lambda xp, x: xp.clip(x, 0),
    "casting": lambda xp, x: xp.add(xp.ones(3, int), 0.5, out=xp.ones(3, int)),
    "iteration over 0-d": lambda xp, x: list(x.sum()),
    "hash": lambda xp, x: hash(x),
}


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
def test_refused(cupy, act):
    x = cupy.asarray(HOST)
    with pytest.raises(TypeError):
        act(cupy, x)
    assert cupy.host_syncs == []


def test_the_refusal_says_what_to_do(cupy):
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>.*move it with xp.asarray"):
        cupy.ones(2) + np.ones(2)
    with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed. Please use `.get\(\)`"):
        np.asarray(cupy.ones(2))
    with pytest.raises(TypeError, match=r"call xp\.exp"):
        np.exp(cupy.ones(2))


def test_no_other_way_out(cupy):
    x = cupy.ones(2)
    for name in ("__array_interface__", "__array_struct__", "__dlpack__", "ctypes", "data_ptr"):
        assert not hasattr(x, name)
    assert not hasattr(x.flags, "writeable")
    assert [(x.flags.c_contiguous, x.flags.f_contiguous, x.flags.owndata)] == [(True, True, True)]


ALLOWED = {
    "number": (lambda x, xp: 2 * x + 1.0, np.float32),
    "NumPy scalar": (lambda x, xp: x * np.float32(2), np.float32),
    "scalar on the left": (lambda x, xp: np.float32(2) - x, np.float32),
    "float64 scalar promotes": (lambda x, xp: x * np.float64(2), np.float64),
    "compare": (lambda x, xp: x <= 2, np.bool_),
    "logic": (lambda x, xp: ~((x > 1) & (x < 4)) ^ (x == 2), np.bool_),
    "matmul": (lambda x, xp: x @ x.T, np.float32),
    "divmod": (lambda x, xp: divmod(x, 2)[1], np.float32),
    "floor": (lambda x, xp: 7 // (x + 1) % 3 - -(x**2), np.float32),
    "abs": (lambda x, xp: abs(-x), np.float32),
    "sum": (lambda x, xp: x.sum(axis=1, keepdims=True), np.float32),
    "function": (lambda x, xp: xp.clip(xp.where(x > 2, x, 0), 1, 3), np.float32),
    "list": (lambda x, xp: xp.stack([x, x], axis=1), np.float32),
    "slice": (lambda x, xp: x[::-1, 1:], np.float32),
    "new axis": (lambda x, xp: x[None, ..., 0], np.float32),
    "index by array": (lambda x, xp: x[xp.asarray([1, 0, 1])], np.float32),
    "take": (lambda x, xp: xp.take(x, xp.asarray([2, 0]), axis=1), np.float32),
    "argmax": (lambda x, xp: x.argmax(axis=1), np.int64),
    "einsum": (lambda x, xp: xp.einsum("ij,kj->ik", x, x), np.float32),
    "pad": (lambda x, xp: xp.pad(x, ((1, 0), (0, 1)), constant_values=7), np.float32),
    "var": (lambda x, xp: xp.var(x, axis=0), np.float32),
    "0-d": (lambda x, xp: x.sum(), np.float32),
    "0-d arithmetic": (lambda x, xp: x.mean() * 2 + x.max(), np.float32),
    "element": (lambda x, xp: x[1, 2], np.float32),
    "verdict": (lambda x, xp: xp.asarray(xp.array_equal(x, x)), np.bool_),
}


@pytest.mark.parametrize(("act", "dtype"), ALLOWED.values(), ids=ALLOWED)
def test_the_same_as_numpy(cupy, act, dtype):
    """And each result is a device array, never a number."""
    found, expected = act(cupy.asarray(numbers(2, 3)), cupy), np.asarray(act(numbers(2, 3), np))
    assert type(found) is cupy.ndarray
    assert type(found).__module__ == "cupy"
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert cupy.host_syncs == []
    np.testing.assert_array_equal(found.get(), expected)


def test_the_way_in_copies_and_so_does_the_way_out(cupy):
    host = numbers(3)
    x = cupy.asarray(host)
    host[0] = 9
    out = x.get()
    out[1] = 9
    assert x.tolist() == [0, 1, 2]
    assert cupy.asarray(x) is x
    assert cupy.asarray(x[1:]).base is x
    assert cupy.asarray(x, np.float64).dtype == np.float64
    assert cupy.array(x) is not x
    assert cupy.asarray([1, 2]).dtype == np.int64
    assert cupy.array([host, x[:]]).shape == (2, 3)
    filled = np.empty(3, np.float32)
    assert x.get(out=filled) is filled
    x.set(host)
    assert x.tolist() == [9, 1, 2]


def test_views_write_through_and_know_their_owner(cupy):
    x = cupy.zeros((2, 3), np.float32)
    row = x[1]
    last = row[1:]
    last += 1
    last[0] = 5
    element = x[0, 0]
    element += np.float64(2)
    assert x.tolist() == [[2, 0, 0], [0, 5, 1]]
    assert x.base is None
    assert row.base is last.base is element.base is x.T.reshape(3, 2).base is x
    assert x.ravel().base is x
    assert x.reshape(6) is not x
    assert x.copy().base is None
    assert (x.T @ x).T.base.base is None
    assert cupy.may_share_memory(x, last)


def test_in_place_keeps_object_and_dtype(cupy):
    x = cupy.ones(3, np.float32)
    same = x
    x += np.float64(1)
    x *= 2
    x -= cupy.ones(3)
    assert x is same
    assert x.dtype == np.float32
    assert cupy.add(x, 1, out=x) is x
    assert cupy.matmul(x, x).shape == ()
    assert x.tolist() == [4, 4, 4]


def test_copies(cupy):
    x = cupy.ones(3)
    twin = copy.deepcopy({"x": x})["x"]
    twin += 1
    assert x.tolist() == [1, 1, 1]
    assert x.astype(float, copy=False) is x
    assert (x == None) is False  # noqa: E711 - no array, and no error


def test_fresh_memory_is_anything(cupy):
    assert cupy.isnan(cupy.empty(3)).all()
    assert cupy.isnan(cupy.empty_like(cupy.ones((2, 2), np.float16))).all()
    assert (cupy.ndarray((2,), np.int32) == -1).all()


# What is counted

SYNCS = {
    "get": lambda xp, x: x.get(),
    "item": lambda xp, x: x.item(),
    "tolist": lambda xp, x: x.tolist(),
    "float": lambda xp, x: float(x),
    "int": lambda xp, x: int(x),
    "bool": lambda xp, x: bool(x),
    "complex": lambda xp, x: complex(x),
    "__index__": lambda xp, x: range(x.astype(int)),
    "format": lambda xp, x: f"{x:.1f}",
    "Stream.synchronize": lambda xp, x: xp.cuda.get_current_stream().synchronize(),
    "Event.synchronize": lambda xp, x: xp.cuda.Event().synchronize(),
    "deviceSynchronize": lambda xp, x: xp.cuda.runtime.deviceSynchronize(),
    "Device.synchronize": lambda xp, x: xp.cuda.Device().synchronize(),
    "nonzero": lambda xp, x: xp.nonzero(xp.ones(2)),
    "where": lambda xp, x: xp.where(xp.ones(2)),
    "a mask as index": lambda xp, x: xp.ones(2)[xp.ones(2) > 0],
}


@pytest.mark.parametrize("name", SYNCS)
def test_each_wait_is_counted(cupy, name):
    x = cupy.ones(1).sum()
    assert cupy.host_syncs == []
    SYNCS[name](cupy, x)
    assert cupy.host_syncs == [name]


def test_asnumpy(cupy):
    assert isinstance(cupy.asnumpy(cupy.ones(2)), np.ndarray)
    assert cupy.host_syncs == ["get"]


def test_only_one_element_is_a_number(cupy):
    assert float(cupy.ones((1, 1))) == 1.0
    with pytest.raises(ValueError, match="size 1"):
        float(cupy.ones(2))


def test_memory_is_accounted(cupy):
    memory, pool = cupy.memory, cupy.get_default_memory_pool()
    x = cupy.zeros((4, 8), np.float32)
    view = x[1:]
    assert (memory.used, memory.peak, pool.used_bytes(), pool.free_bytes()) == (128, 128, 128, 0)
    y = x + 1
    assert memory.used == 256
    del x, y
    assert (memory.used, memory.peak) == (128, 256)
    del view
    assert memory.used == 0


def test_out_of_memory(cupy):
    cupy.memory.limit = 1000
    assert cupy.cuda.runtime.memGetInfo() == (1000, 1000)
    x = cupy.zeros(100)
    assert cupy.cuda.runtime.memGetInfo() == (200, 1000)
    message = r"Out of memory allocating 800 bytes \(allocated so far: 800 bytes, limit set to: 1,000 bytes\)"
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=message) as caught:
        x + 1
    assert isinstance(caught.value, MemoryError)
    x += 1
    assert cupy.memory.used == 800


# The module


def test_installed_and_restored(monkeypatch):
    before, cuda = ModuleType("cupy"), sys.modules.get("cupy.cuda")
    monkeypatch.setitem(sys.modules, "cupy", before)
    with installed() as outer:
        assert importlib.import_module("cupy") is outer
        assert importlib.import_module("cupy.cuda.runtime").getDeviceCount() == 1
        assert sys.modules[type(outer.ones(1)).__module__] is outer
        with installed(kernels=True) as inner:
            assert sys.modules["cupy"] is inner
            assert hasattr(inner, "ElementwiseKernel")
        assert sys.modules["cupy"] is outer
        assert not hasattr(outer, "ElementwiseKernel")
    assert sys.modules["cupy"] is before
    assert sys.modules.get("cupy.cuda") is cuda
    monkeypatch.delitem(sys.modules, "cupy")
    with pytest.raises(KeyError), installed():
        raise KeyError
    assert "cupy" not in sys.modules


def test_streams_and_events(cupy):
    cuda = cupy.cuda
    side = cuda.Stream(non_blocking=True)
    seen = []
    with side as entered:
        assert entered is side
        assert cuda.get_current_stream() is side
        with cuda.Stream():
            assert cuda.get_current_stream() is not side
        assert cuda.get_current_stream() is side
        other = threading.Thread(target=lambda: seen.append(cuda.get_current_stream()))
        other.start()
        other.join()
    assert seen == [cuda.Stream.null]
    assert cuda.get_current_stream() is cuda.Stream.null
    start, stop = side.record(), cuda.Event()
    cuda.Stream.null.wait_event(start)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidResourceHandle"):
        cuda.get_elapsed_time(start, stop)
    stop.record(side)
    with pytest.raises(RuntimeError, match="cudaErrorNotReady"):
        cuda.get_elapsed_time(start, stop)
    stop.synchronize()
    assert 0 <= cuda.get_elapsed_time(start, stop) < 1000
    assert start.done


def test_the_device(cupy):
    with cupy.cuda.Device(0) as device:
        assert (device.id, device.compute_capability) == (0, "90")
    assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"strict stand-in"
    assert cupy.cuda.runtime.driverGetVersion() == cupy.cuda.runtime.runtimeGetVersion() == 12040


def test_how_matrix_products_calculate(cupy):
    core = cupy._core
    assert core.get_compute_type(np.float32) == core._routines_linalg.COMPUTE_TYPE_DEFAULT == 1
    core.set_compute_type("f", core._routines_linalg.COMPUTE_TYPE_TF32)
    assert core.get_compute_type(np.dtype(np.float32)) == 7
    assert core.get_compute_type(np.float64) == build()._core.get_compute_type(np.float32) == 1
    with pytest.raises(TypeError, match="int32"):
        core.get_compute_type(np.int32)


# Kernels


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return build(kernels=True)


def test_what_is_wrong_before_a_compiler_is_needed(gpu):
    double = gpu.ElementwiseKernel("T x, raw float32 w", "T y", "y = 2 * x + w[0]", "double_it")
    x, w = gpu.ones(3, np.float32), gpu.ones(1, np.float32)
    with pytest.raises(TypeError, match=r"Type is mismatched\. w float64 float32"):
        double(x, w.astype(float))
    with pytest.raises(TypeError, match=r"Type is mismatched\. x float32 float64 T"):
        double(x, w, gpu.ones(3))
    with pytest.raises(TypeError, match="either 2 or 3"):
        double(x)
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>"):
        double(np.ones(3, np.float32), w)
    with pytest.raises(TypeError, match="Output arguments must be"):
        double(x, w, 1.0)
    with pytest.raises(ValueError, match="Out shape is mismatched"):
        double(gpu.ones((2, 3), np.float32), w, x)
    with pytest.raises(ValueError, match="Loop size is undecided"):
        double(2.0, w)
    with pytest.raises(ValueError, match="only if all of the ndarray are 'raw'"):
        double(x, w, size=3)
    with pytest.raises(KeyError, match="T"):
        double(2.0, w, size=3)
    with pytest.raises(TypeError, match="grid"):
        double(x, w, grid=1)
    with pytest.raises(ValueError, match="block_size"):
        double(x, w, block_size=0)
    with pytest.raises(ValueError, match="Output array size is Undecided"):
        gpu.ElementwiseKernel("T x", "raw T y", "y[i] = x")(x)
    with pytest.raises(ValueError, match="'i'"):
        gpu.ElementwiseKernel("T i", "T y", "y = i")
    assert gpu.ElementwiseKernel("T x", "T y", "y = x")(gpu.ones((0, 3))).shape == (0, 3)


@needs_compiler
def test_elementwise(gpu):
    kernel = gpu.ElementwiseKernel(
        "T x, T slope", "T y, bool positive", "positive = x >= 0; y = positive ? x : slope * x", "leaky"
    )
    y, positive = kernel(gpu.asarray([-2.0, 3.0]), 0.5)
    assert (y.tolist(), positive.tolist()) == ([-1.0, 3.0], [False, True])
    y, _ = kernel(gpu.asarray([-2, 3]), 0.5)  # the number becomes an integer like the array
    assert (y.dtype, y.tolist()) == (np.int64, [0, 3])


axes = st.integers(1, 3)


@needs_compiler
@given(st.lists(st.tuples(axes, st.booleans(), st.booleans()), max_size=4), st.booleans())
def test_broadcasting(axes, transposed):
    """As NumPy's, whatever the arrays' strides."""
    gpu = build(kernels=True)
    a = numbers(*(1 if one else n for n, one, _ in axes))
    b = numbers(*(1 if one else n for n, _, one in axes))[..., ::-1] if axes else numbers()
    a, b = (a.T, b.T) if transposed else (a, b)
    kernel = gpu.ElementwiseKernel("T a, S b", "T y", "y = 10 * a + b", "broadcast")
    y = kernel(gpu.asarray(a), gpu.asarray(b.astype(np.int32)).T.T)
    assert y.shape == (a + b).shape
    np.testing.assert_array_equal(y.get(), 10 * a + b)


@needs_compiler
@pytest.mark.parametrize("turned", [False, True])
def test_raw_arrays_are_indexed_in_c_order(gpu, turned):
    gather = gpu.ElementwiseKernel("raw T x, int32 k", "T y", "y = x[k] + x.shape()[0] * 100 + x.size() * 1000", "get")
    host = numbers(2, 3)
    x = gpu.asarray(host).T if turned else gpu.asarray(host)
    host = host.T if turned else host
    k = gpu.asarray(np.array([5, 0, 1, 4], np.int32))
    assert gather(x, k).tolist() == (host.ravel()[[5, 0, 1, 4]] + len(host) * 100 + 6000).tolist()


@needs_compiler
def test_raw_arrays_are_indexed_by_axes(gpu):
    kernel = gpu.ElementwiseKernel("raw T x, int32 k", "T y", "ptrdiff_t at[] = {k, 1}; y = x[at]", "by_axes")
    x = gpu.asarray(numbers(2, 3))
    assert kernel(x, gpu.asarray(np.array([1, 0], np.int32))).tolist() == [4, 1]
    for wrong in (gpu.ones((1, 3), np.float32), gpu.ones(3, np.float32)):
        with pytest.raises(IndexError):
            kernel(wrong, gpu.ones(1, np.int32))


@needs_compiler
def test_in_place_on_a_view(gpu):
    step = gpu.ElementwiseKernel("T g, T lr, T m", "T p, T v", "v = m * v + g; p -= lr * v;", "sgd")
    memory = gpu.ones((3, 2), np.float32)
    p, v, g = memory[:, 1], gpu.ones(3, np.float32), gpu.asarray(numbers(3))
    out = step(g, 0.5, 2.0, p, v)
    assert out[0] is p
    assert out[1] is v
    assert v.tolist() == [2, 3, 4]
    assert memory.tolist() == [[1, 0], [1, -0.5], [1, -1]]


@needs_compiler
def test_size_and_raw_outputs(gpu):
    kernel = gpu.ElementwiseKernel("raw T x", "raw T y", "y[_ind.size() - 1 - i] = x[i]", "turn", no_return=True)
    x, y = gpu.asarray(numbers(2, 2)), gpu.empty((2, 2), np.float32)
    assert kernel(x, y, size=4) is None
    assert y.tolist() == [[3, 2], [1, 0]]
    made = gpu.ElementwiseKernel("raw T x", "T y", "y = x[i]", "line", return_tuple=True)(x, size=3)
    assert made[0].tolist() == [0, 1, 2]


@needs_compiler
@pytest.mark.parametrize("index", ["i + 1", "i - 1"])
def test_an_index_outside_is_an_error_and_no_crash(gpu, index):
    kernel = gpu.ElementwiseKernel("raw T x", "T y", f"y = x[{index}]", "stray")
    with pytest.raises(IndexError, match=r"kernel 'stray': index (4|-1) outside a raw array of 4 elements"):
        kernel(gpu.ones(4), gpu.ones(4))


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint16, np.int64, np.uint64])
def test_types(gpu, dtype):
    kernel = gpu.ElementwiseKernel("T x", "T y, float64 z", "y = x * x; y += x; z = sqrt((double)x) + max(x, x)", "t")
    y, z = kernel(gpu.asarray(numbers(4, dtype=dtype)))
    assert y.dtype == dtype
    assert y.tolist() == [0, 2, 6, 12]
    np.testing.assert_allclose(z.get(), np.sqrt(np.arange(4)) + np.arange(4))


@needs_compiler
def test_complex_and_preamble(gpu):
    kernel = gpu.ElementwiseKernel(
        "complex64 x", "complex64 y", "y = twice(x)", preamble="__device__ complex<float> twice(complex<float> x) "
        "{ return x + x; }",
    )  # fmt: skip
    assert kernel(gpu.asarray([1 + 2j]).astype(np.complex64)).tolist() == [2 + 4j]


@needs_compiler
def test_what_cuda_has_in_the_global_namespace(gpu):
    kernel = gpu.ElementwiseKernel(
        "float32 x",
        "float32 y",
        "y = isfinite(x) && !isnan(x) ? min(fabsf(x), 3.0f) * rsqrt(4.0f) : -INFINITY",
        "maths",
    )
    x = gpu.asarray(np.array([-2, np.nan, np.inf, 8], np.float32))
    assert kernel(x).tolist() == [1, -np.inf, -np.inf, 1.5]


@needs_compiler
def test_elements_that_wait_for_each_other_are_found(gpu):
    """A running sum over the loop holds only when the loop runs forwards, which no GPU promises."""
    kernel = gpu.ElementwiseKernel("raw T x", "raw T y", "y[i] = x[i] + (i > 0 ? y[i - 1] : 0)", "running")
    x, y = gpu.ones(4), gpu.zeros(4)
    kernel(x, y, size=4)
    assert y.tolist() != [1, 2, 3, 4]


@needs_compiler
def test_an_input_is_const_and_the_compiler_says_so(gpu):
    kernel = gpu.ElementwiseKernel("raw T x", "T y", "x[i] = 1; y = 1", "write")
    with pytest.raises(RuntimeError, match="does not compile"):
        kernel(gpu.ones(2), gpu.ones(2))


@needs_compiler
def test_one_compilation_serves_all_shapes(gpu, monkeypatch):
    kernel = gpu.ElementwiseKernel("T x", "T y", "y = x + 1", "increment")
    assert kernel(gpu.zeros(2)).tolist() == [1, 1]
    monkeypatch.setattr(kernel_emulator.subprocess, "run", None)
    assert kernel(gpu.zeros((3, 2, 1)).T[::-1]).sum().item() == 6


def test_without_a_compiler_the_remedy_is_named(gpu, monkeypatch):
    monkeypatch.setattr(kernel_emulator.shutil, "which", lambda name: None)
    assert kernel_emulator.compiler() is None
    with pytest.raises(RuntimeError, match=r"install g\+\+ or clang"):
        gpu.ElementwiseKernel("T x", "T y", "y = x + 12345", "never_compiled")(gpu.ones(2))
