"""A strict stand-in for CuPy, over NumPy: what would fail on a GPU fails here, on any laptop.

It offers what both CuPy and NumPy have (cupy_names.json), never mixes host and device arrays, returns arrays where
CuPy does, counts each wait for the device, and keeps an account of memory. It is stricter than CuPy where that finds
mistakes: ``np.add(device_array, 1)`` is refused, which CuPy would carry out, and fresh memory is full of NaN.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from kernel_emulator import kernel_class
from numpy.typing import NDArray

NAMES: dict[str, Any] = json.loads((Path(__file__).parent / "cupy_names.json").read_text())

#: Numbers that may meet a device array.
NUMBERS = (bool, int, float, complex, np.generic)

#: CuPy returns a 0-d array where NumPy returns Python's bool or int.
ANSWERS_STAY = {"allclose", "array_equal", "array_equiv", "count_nonzero"}

#: The shape of the result depends on the numbers, so CuPy waits for them.
SHAPE_DEPENDS = {"argwhere", "compress", "extract", "flatnonzero", "nonzero", "unique"}

#: Objects of NumPy's that make arrays when they are indexed.
NOT_OFFERED = {"c_", "r_", "mgrid", "ogrid"}

DEFAULT_TOTAL = 8 * 2**30

# cupy._core._routines_linalg
COMPUTE_TYPE_DEFAULT = 1
COMPUTE_TYPE_TF32 = 7


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class Memory:
    """The account of the device's memory: bytes of living arrays; views cost nothing.

    Attributes:
        limit: most bytes, None for no limit.
        used: bytes of the arrays that are alive.
        peak: largest ``used`` so far; may be set.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.used = 0
        self.peak = 0
        self.hooks: list[Any] = []  # that are told of every array taken and given back
        self._lock = threading.RLock()  # a finalizer may run in the middle of take

    def take(self, array: Array) -> None:
        """Book an array until it dies.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        nbytes = array.nbytes
        with self._lock:
            if self.limit is not None and self.used + nbytes > self.limit:
                raise OutOfMemoryError(
                    f"Out of memory allocating {nbytes:,} bytes (allocated so far: {self.used:,} bytes, "
                    f"limit set to: {self.limit:,} bytes)."
                )
            self.used += nbytes
            self.peak = max(self.peak, self.used)
        for hook in self.hooks:
            hook.malloc_postprocess(device_id=0, size=nbytes, mem_size=nbytes, mem_ptr=0, pmem_id=0)
        weakref.finalize(array, self._give_back, nbytes).atexit = False

    def _give_back(self, nbytes: int) -> None:
        with self._lock:
            self.used -= nbytes
        for hook in self.hooks:
            hook.free_postprocess(device_id=0, mem_size=nbytes, mem_ptr=0, pmem_id=0)


class MemoryPool:
    """CuPy's pool, which here never keeps what was freed."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def used_bytes(self) -> int:
        return self._memory.used

    def total_bytes(self) -> int:
        return self._memory.used

    def free_bytes(self) -> int:
        return 0

    def n_free_blocks(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        pass

    def get_limit(self) -> int:
        return self._memory.limit or 0

    def set_limit(self, size: int) -> None:
        self._memory.limit = size or None


class Gate:
    """The border between host and device of one built module: what passes it is checked, wrapped and counted."""

    def __init__(self) -> None:
        self.host_syncs: list[str] = []
        self.waits = 0
        self.memory = Memory()
        self.compute_types: dict[np.dtype[Any], int] = {}  # how matrix products calculate, by dtype
        self.array_type: type[Array] = bound(Array, "ndarray", "cupy", self)
        self._owners: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()

    def wait(self, why: str) -> None:
        """Note that the host waits for the device."""
        self.host_syncs.append(why)
        self.waits += 1

    def unwrap(self, value: Any, met: list[Array]) -> Any:
        """Return ``value`` with NumPy arrays in place of device arrays, which are added to ``met``."""
        if isinstance(value, self.array_type):
            met.append(value)
            return value._host
        if isinstance(value, np.ndarray | Array):
            raise TypeError(
                f"Unsupported type {type(value)}: an array of the host (or of another module) met a device array, "
                "move it with xp.asarray"
            )
        if type(value) in (list, tuple):
            return type(value)(self.unwrap(one, met) for one in value)
        if type(value) is dict:
            return {name: self.unwrap(one, met) for name, one in value.items()}
        if type(value) is slice:
            return slice(*(self.unwrap(one, met) for one in (value.start, value.stop, value.step)))
        return value

    def wrap(self, value: Any, met: list[Array]) -> Any:
        """Return a result of NumPy's as the device has it; an array among ``met`` stays the same object."""
        if isinstance(value, tuple | list):  # a named tuple of NumPy's is a plain one
            return (list if type(value) is list else tuple)(self.wrap(one, met) for one in value)
        if isinstance(value, np.generic):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray):
            return value
        for array in met:
            if value is array._host:
                return array
        memory: Any = value
        while (base := getattr(memory, "base", None)) is not None:
            memory = base
        if not isinstance(memory, np.ndarray):  # memory that NumPy has borrowed somewhere
            value = memory = value.copy()
        owner = self._owners.get(id(memory))
        if owner is None:
            owner = self._own(memory)
        return owner if value is memory else self._new(value, owner)

    def _own(self, host: NDArray[Any]) -> Array:
        array = self._new(host, None)
        self.memory.take(array)
        self._owners[id(host)] = array
        return array

    def _new(self, host: NDArray[Any], owner: Array | None) -> Array:
        array = object.__new__(self.array_type)
        array._host, array._owner = host, owner
        return array

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of NumPy's with device arrays."""
        met: list[Array] = []
        host_args, host_kwargs = self.unwrap(args, met), self.unwrap(kwargs, met)
        if function is np.matmul and all(array.dtype == np.float16 for array in host_args[:2]):
            function = half_product
        if function is np.matmul and self.compute_types.get(np.dtype(np.float32)) == COMPUTE_TYPE_TF32:
            host_args = tuple(as_tf32(array) if array.dtype == np.float32 else array for array in host_args)
        return self.wrap(function(*host_args, **host_kwargs), met)

    def upload(self, value: Any, dtype: Any = None, order: str | None = None, ndmin: int = 0) -> Array:
        """Return a new device array of a NumPy array, of numbers, or of device arrays in a list."""
        return self.wrap(np.array(self._opened(value), dtype=dtype, order=order or "K", ndmin=ndmin), [])

    def _opened(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return [self._opened(one) for one in value]
        return value if type(value) is np.ndarray else self.unwrap(value, [])

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> Array:
        """Return memory in which anything may be."""
        return self.spoilt(np.empty(shape, dtype, order))

    def spoilt(self, host: NDArray[Any]) -> Array:
        """Fill fresh memory with NaN or with all bits, so that whoever reads it before writing it is found out."""
        if host.dtype.kind != "b":
            host[...] = np.frombuffer(b"\xff" * host.itemsize, host.dtype)[0]
        return self.wrap(host, [])


def half_product(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Multiply float16 matrices as cuBLAS does: added up in float32, rounded at the end."""
    product = np.matmul(a.astype(np.float32), b.astype(np.float32))
    if out is None:
        return product.astype(np.float16)
    out[...] = product
    return out


def as_tf32(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the 10 bits behind the binary point that a tensor core looks at."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def bound(cls: type, name: str, module: str, gate: Gate) -> Any:
    """Return a subclass that belongs to one built module."""
    return type(name, (cls,), {"__module__": module, "__slots__": (), "_gate": gate})


def check_arguments(name: str, expected: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that CuPy's function does not have.

    Raises:
        TypeError: too many arguments, too few, or an unknown keyword.
    """
    if expected is None:
        return
    if expected == "ufunc":
        if unknown := kwargs.keys() - {"out", "dtype", "casting"}:
            raise TypeError(f"Wrong arguments {sorted(unknown)} of cupy.{name}")
        return
    words = expected.split()
    known = [word.rstrip("=") for word in words]
    if not any(word.startswith("**") for word in words) and (unknown := kwargs.keys() - set(known)):
        raise TypeError(f"cupy's {name}() got an unexpected keyword argument {min(unknown)!r}")
    stars = next((k for k, word in enumerate(words) if word.startswith("*")), len(words))
    if len(args) > stars and words[stars : stars + 1] in ([], ["*"]):
        raise TypeError(f"cupy's {name}() takes {stars} arguments by place, {len(args)} were given")
    if missing := [word for word in words[len(args) : stars] if not word.endswith("=") and word not in kwargs]:
        raise TypeError(f"cupy's {name}() misses {', '.join(missing)}")


@dataclass(frozen=True)
class Flags:
    """What CuPy's flags tell; arrays on the device are always writeable, so they do not say so."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


def _method(name: str) -> Callable[..., Any]:
    """Return a method that does what NumPy's does, with the arguments that CuPy's has."""

    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        check_arguments(name, NAMES["ndarray"][name], (self, *args), kwargs)
        if name in SHAPE_DEPENDS:
            self._gate.wait(name)
        return self._gate.call(getattr(np.ndarray, name), self, *args, **kwargs)

    method.__name__ = name
    return method


def _property(name: str, wrapped: bool = False) -> property:
    """Return a property that says what NumPy's says, as a device array if ``wrapped``."""

    def get(self: Array) -> Any:
        value = getattr(self._host, name)
        return self._gate.wrap(value, [self]) if wrapped else value

    return property(get)


def _to_number(name: str, convert: Callable[[Any], Any]) -> Callable[[Array], Any]:
    def method(self: Array) -> Any:
        self._gate.wait(name)
        return convert(self._host.item())

    return method


def _operator(ufunc: np.ufunc, reflected: bool = False) -> Callable[[Array, Any], Any]:
    def method(self: Array, other: Any) -> Any:
        if not self._may_meet(other):
            return NotImplemented
        return self._gate.call(ufunc, *((other, self) if reflected else (self, other)))

    return method


def _in_place(ufunc: np.ufunc) -> Callable[[Array, Any], Any]:
    def method(self: Array, other: Any) -> Any:
        return self._gate.call(ufunc, self, other, out=self) if self._may_meet(other) else NotImplemented

    return method


def _unary(ufunc: np.ufunc) -> Callable[[Array], Any]:
    return lambda self: self._gate.call(ufunc, self)


OPERATORS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
}
COMPARISONS = {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
#: They lead to the host, past the count of waits.
LEAK = {"dump", "dumps", "tobytes", "tofile"}


class Array:
    """An array on the device; each built module has a subclass of its own, called cupy.ndarray."""

    __slots__ = ("__weakref__", "_host", "_owner")
    __hash__ = None  # type: ignore[assignment]
    _gate: Gate
    _host: NDArray[Any]
    _owner: Array | None  # None: it owns its memory

    def __new__(cls, shape: Any, dtype: Any = float, order: str = "C") -> Array:
        return cls._gate.empty(shape, dtype, order)

    @property
    def base(self) -> Array | None:
        return self._owner

    @property
    def flags(self) -> Flags:
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self._owner is None)

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> NDArray[Any]:
        self._gate.wait("get")
        if out is None:
            return self._host.copy(order)
        if out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"out must be {self.dtype} of shape {self.shape}, got {out.dtype} of {out.shape}")
        out[...] = self._host
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(f"expected {self.dtype} of shape {self.shape}, got {arr.dtype} of {arr.shape}")
        self._host[...] = arr

    def item(self) -> Any:
        self._gate.wait("item")
        return self._host.item()

    def tolist(self) -> Any:
        self._gate.wait("tolist")
        return self._host.tolist()

    __float__ = _to_number("float", float)
    __int__ = _to_number("int", int)
    __bool__ = _to_number("bool", bool)
    __complex__ = _to_number("complex", complex)
    __index__ = _to_number("__index__", operator.index)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Array]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key: Any) -> Array:
        met: list[Array] = [self]
        host_key = self._gate.unwrap(key, met)
        if any(array.dtype.kind == "b" for array in met[1:]):
            self._gate.wait("a mask as index")
        found = self._host[host_key]
        if isinstance(found, np.generic):  # with an Ellipsis NumPy returns a view of the one element
            found = self._host[(*host_key, ...) if isinstance(host_key, tuple) else (host_key, ...)]
        return self._gate.wrap(found, [])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._gate.call(operator.setitem, self, key, value)

    def __copy__(self) -> Array:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        return self.copy()

    def __repr__(self) -> str:
        return f"device {self._host!r}"

    def __str__(self) -> str:
        self._gate.wait("str")
        return str(self._host)

    def __format__(self, spec: str) -> str:
        self._gate.wait("format")
        return format(self._host[()], spec)

    def __divmod__(self, other: Any) -> Any:
        return self._gate.call(np.divmod, self, other) if self._may_meet(other) else NotImplemented

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Carry out ``np.float32(2) * x``, which NumPy turns into this call; refuse NumPy's functions."""
        if method == "__call__" and not kwargs and ufunc in OPERATORS.values() and isinstance(inputs[0], np.generic):
            return self._gate.call(ufunc, *inputs)
        raise TypeError(f"numpy.{ufunc.__name__} was called with a device array: call xp.{ufunc.__name__}")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was called with a device array: call xp.{func.__name__}")

    def _may_meet(self, other: Any) -> bool:
        """Tell whether ``other`` may be an operand; a list may not, and a NumPy array raises in ``unwrap``."""
        return isinstance(other, (*NUMBERS, np.ndarray, Array))


for _name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides"):
    setattr(Array, _name, _property(_name))
for _name in ("T", "mT", "real", "imag"):
    setattr(Array, _name, _property(_name, wrapped=True))
for _name in NAMES["ndarray"].keys() - LEAK - set(vars(Array)):
    if callable(getattr(np.ndarray, _name, None)):
        setattr(Array, _name, _method(_name))
for _name, _ufunc in {**OPERATORS, "matmul": np.matmul}.items():
    setattr(Array, f"__{_name}__", _operator(_ufunc))
    setattr(Array, f"__r{_name}__", _operator(_ufunc, reflected=True))
    if _name != "matmul":  # CuPy has no __imatmul__
        setattr(Array, f"__i{_name}__", _in_place(_ufunc))
for _name, _ufunc in COMPARISONS.items():
    setattr(Array, f"__{_name}__", _operator(_ufunc))
for _name, _ufunc in {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}.items():
    setattr(Array, f"__{_name}__", _unary(_ufunc))


class Namespace(ModuleType):
    """A module of CuPy's: what is set on it, and what both CuPy and the NumPy module of that name offer."""

    def __init__(self, name: str, gate: Gate, host: ModuleType | None = None, **own: Any) -> None:
        super().__init__(name)
        self._gate, self._host = gate, host
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        known = NAMES.get(self.__name__, {})
        if name in known and name not in NOT_OFFERED and hasattr(vars(self).get("_host"), name):
            offered = self._offered(name, getattr(self._host, name), known[name])
            if offered is not None or name == "newaxis":
                setattr(self, name, offered)  # a second look finds the same object
                return offered
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def _offered(self, name: str, value: Any, expected: str | None) -> Any:
        """Return NumPy's ``value`` as CuPy would offer it, None if it does not."""
        if isinstance(value, type):
            plain = issubclass(value, np.generic | np.dtype | np.finfo | np.iinfo | np.ndindex | Exception)
            return value if plain else None
        if isinstance(value, ModuleType):
            return None  # the modules that are offered are set
        if not callable(value):
            return value

        def function(*args: Any, **kwargs: Any) -> Any:
            check_arguments(name, expected, args, kwargs)
            if name in SHAPE_DEPENDS or (name == "where" and len(args) + len(kwargs) == 1):
                self._gate.wait(name)
            result = self._gate.call(value, *args, **kwargs)
            return self._gate.wrap(np.asarray(result), []) if name in ANSWERS_STAY else result

        function.__name__ = function.__qualname__ = name
        return function


class Stream:
    """A queue of the device; all is done at once here, so only who waits for whom matters."""

    _gate: Gate
    null: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.is_non_blocking = non_blocking
        self.done = True
        self._outer: list[Stream] = []

    def __enter__(self) -> Stream:
        self._outer.append(self._current())
        return self.use()

    def __exit__(self, *error: Any) -> None:
        self._outer.pop().use()

    def use(self) -> Stream:
        self._threads.stream = self
        return self

    def record(self, event: Event | None = None) -> Event:
        event = self._events() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, self._events):
            raise TypeError(f"expected an Event, got {type(event).__name__}")

    def synchronize(self) -> None:
        self._gate.wait("Stream.synchronize")

    # Set for each built module.
    _threads: threading.local
    _events: type[Event]

    @classmethod
    def _current(cls) -> Stream:
        return vars(cls._threads).get("stream", cls.null)


class Event:
    """A mark in a stream; its time can be read once the host has waited."""

    _gate: Gate

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._timed = not disable_timing
        self._when: float | None = None
        self._waits = math.inf

    def record(self, stream: Stream | None = None) -> None:
        self._when, self._waits = time.perf_counter(), self._gate.waits

    def synchronize(self) -> None:
        self._gate.wait("Event.synchronize")

    @property
    def done(self) -> bool:
        self._waits = -1  # whoever asks knows from now on
        return True

    def _time(self) -> float:
        if self._when is None or not self._timed:
            raise RuntimeError("cudaErrorInvalidResourceHandle: the event was not recorded, or keeps no time")
        if self._waits >= self._gate.waits:
            raise RuntimeError("cudaErrorNotReady: nobody has waited for the event")
        return self._when


def get_elapsed_time(start: Event, stop: Event) -> float:
    """Return the milliseconds between two events."""
    return 1e3 * (stop._time() - start._time())


class Device:
    """The one device."""

    _gate: Gate
    compute_capability = "90"

    def __init__(self, device: Any = None) -> None:
        self.id = int(getattr(device, "id", device or 0))

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __int__(self) -> int:
        return self.id

    def use(self) -> Device:
        return self

    def synchronize(self) -> None:
        self._gate.wait("Device.synchronize")


class MemoryHook:
    """Told, while it is entered, of memory taken and given back."""

    _gate: Gate

    def __enter__(self) -> MemoryHook:
        self._gate.memory.hooks.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self._gate.memory.hooks.remove(self)

    def malloc_postprocess(self, **facts: Any) -> None:
        """Do nothing; for subclasses."""

    def free_postprocess(self, **facts: Any) -> None:
        """Do nothing; for subclasses."""


def _cuda(gate: Gate) -> Namespace:
    memory = gate.memory

    def total() -> int:
        return DEFAULT_TOTAL if memory.limit is None else memory.limit

    def properties(device: int) -> dict[str, Any]:
        return {
            "name": b"strict stand-in",
            "totalGlobalMem": total(),
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 1,
        }

    runtime = Namespace(
        "cupy.cuda.runtime",
        gate,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        memGetInfo=lambda: (total() - memory.used, total()),
        driverGetVersion=lambda: 12040,
        runtimeGetVersion=lambda: 12040,
        getDeviceProperties=properties,
        deviceSynchronize=lambda: gate.wait("deviceSynchronize"),
    )
    stream, event = bound(Stream, "Stream", "cupy.cuda", gate), bound(Event, "Event", "cupy.cuda", gate)
    stream._threads, stream._events, stream.null = threading.local(), event, stream(null=True)
    return Namespace(
        "cupy.cuda",
        gate,
        runtime=runtime,
        memory=Namespace("cupy.cuda.memory", gate, OutOfMemoryError=OutOfMemoryError),
        Device=bound(Device, "Device", "cupy.cuda", gate),
        Stream=stream,
        Event=event,
        MemoryHook=bound(MemoryHook, "MemoryHook", "cupy.cuda", gate),
        get_current_stream=stream._current,
        get_elapsed_time=get_elapsed_time,
        is_available=lambda: True,
    )


def _core(gate: Gate) -> Namespace:
    """Return cupy._core as far as it decides how a matrix product calculates."""

    def checked(dtype: Any) -> np.dtype[Any]:
        found = np.dtype(dtype)
        if found.char not in "efdFD":
            raise TypeError(f"dtype is not supported: {found}")
        return found

    def get_compute_type(dtype: Any) -> int:
        return gate.compute_types.get(checked(dtype), COMPUTE_TYPE_DEFAULT)

    def set_compute_type(dtype: Any, compute_type: int) -> None:
        gate.compute_types[checked(dtype)] = compute_type

    both: dict[str, Any] = {"get_compute_type": get_compute_type, "set_compute_type": set_compute_type}
    linalg = Namespace(
        "cupy._core._routines_linalg",
        gate,
        COMPUTE_TYPE_DEFAULT=COMPUTE_TYPE_DEFAULT,
        COMPUTE_TYPE_TF32=COMPUTE_TYPE_TF32,
        **both,
    )
    return Namespace("cupy._core", gate, _routines_linalg=linalg, **both)


def build(kernels: bool = False) -> ModuleType:
    """Return a new stand-in, which shares nothing with another.

    Args:
        kernels: offer ElementwiseKernel, which needs a C++ compiler when it is called.

    Returns:
        a module called "cupy"; beside CuPy's names it has ``host_syncs``, the list of all waits for the device, and
        ``memory``, the :class:`Memory`.
    """
    gate = Gate()
    ndarray = gate.array_type

    def array(
        obj: Any,
        dtype: Any = None,
        copy: bool | None = True,
        order: str = "K",
        subok: bool = False,
        ndmin: int = 0,
        *,
        blocking: bool = False,
    ) -> Array:
        if not isinstance(obj, ndarray):
            return gate.upload(obj, dtype, order, ndmin)
        return gate.call(np.array, obj, dtype=dtype, copy=copy or None, order=order, ndmin=ndmin)

    def asarray(
        a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
    ) -> Array:
        return array(a, dtype, copy, order or "K")

    def asnumpy(
        a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
    ) -> NDArray[Any]:
        return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a, order=order)

    def empty_like(a: Array, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> Array:
        return gate.spoilt(np.empty_like(gate.unwrap(a, []), dtype, order, shape=shape))

    pool = MemoryPool(gate.memory)
    own = {
        "ndarray": ndarray,
        "array": array,
        "asarray": asarray,
        "asanyarray": asarray,
        "asnumpy": asnumpy,
        "empty": gate.empty,
        "empty_like": empty_like,
        "get_array_module": lambda *args: module if any(isinstance(a, ndarray) for a in args) else np,
        "get_default_memory_pool": lambda: pool,
        "is_available": lambda: True,
        "cuda": _cuda(gate),
        "_core": _core(gate),
        "linalg": Namespace("cupy.linalg", gate, np.linalg),
        "lib": Namespace("cupy.lib", gate),
        "host_syncs": gate.host_syncs,
        "memory": gate.memory,
        "__version__": NAMES["version"],
    }
    own["lib"].stride_tricks = Namespace("cupy.lib.stride_tricks", gate, np.lib.stride_tricks)
    if kernels:
        own["ElementwiseKernel"] = kernel_class(ndarray, gate.empty)
    module = Namespace("cupy", gate, np, **own)
    return module


def _ours(name: str) -> bool:
    return name.split(".")[0] in ("cupy", "cupyx")


@contextlib.contextmanager
def installed(kernels: bool = False) -> Iterator[ModuleType]:
    """Put a new stand-in where ``import cupy`` finds it; afterwards all is as before."""
    before = {name: module for name, module in sys.modules.items() if _ours(name)}
    module = build(kernels)
    try:
        extension = ModuleType("cupyx")
        vars(extension)["empty_pinned"] = np.empty  # memory of the host, from which copies need not be waited for
        _replace({"cupy": module, "cupyx": extension, **dict(_submodules(module))})
        yield module
    finally:
        _replace(before)


def _replace(modules: dict[str, ModuleType]) -> None:
    for name in [name for name in sys.modules if _ours(name)]:
        del sys.modules[name]
    sys.modules.update(modules)


def _submodules(module: ModuleType) -> Iterator[tuple[str, ModuleType]]:
    for value in list(vars(module).values()):
        if isinstance(value, Namespace):
            yield value.__name__, value
            yield from _submodules(value)
