"""cupy.ElementwiseKernel without a GPU: the same CUDA C text, compiled by the machine's C++ compiler.

The rules are CuPy's: which argument decides a type, what is broadcast, when the loop's size is known. Beyond CuPy, an
index outside a raw array is found and raised as IndexError, and the loop runs backwards, so that a kernel whose
elements wait for each other gives another answer.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAGS = ("-O1", "-std=c++17", "-shared", "-fPIC")

#: What CuPy calls NumPy's dtypes in CUDA C.
C_TYPES = {
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "float16": "float16",
    "float32": "float",
    "float64": "double",
    "complex64": "complex<float>",
    "complex128": "complex<double>",
}

PRELUDE = """
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <type_traits>

#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__

template <typename A, typename B> typename std::common_type<A, B>::type min(A a, B b) {
  typedef typename std::common_type<A, B>::type C;
  if constexpr (std::is_floating_point<C>::value) return fmin(C(a), C(b));
  else return C(b) < C(a) ? C(b) : C(a);
}
template <typename A, typename B> typename std::common_type<A, B>::type max(A a, B b) {
  typedef typename std::common_type<A, B>::type C;
  if constexpr (std::is_floating_point<C>::value) return fmax(C(a), C(b));
  else return C(a) < C(b) ? C(b) : C(a);
}
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrtf(float x) { return rsqrt(x); }

struct Argument {
  char *data;
  ptrdiff_t size, ndim;
  const ptrdiff_t *shape, *strides;
};

struct Indexer {
  ptrdiff_t size_;
  ptrdiff_t size() const { return size_; }
};

template <typename T> class CArray {
  Argument a;
  ptrdiff_t *stray;

  const T &nothing(ptrdiff_t index) const {
    static thread_local T none;
    none = T();
    stray[0] = 1;
    stray[1] = index;
    stray[2] = a.size;
    return none;
  }

public:
  CArray(const Argument &argument, ptrdiff_t *stray) : a(argument), stray(stray) {}
  ptrdiff_t size() const { return a.size; }
  const ptrdiff_t *shape() const { return a.shape; }
  const ptrdiff_t *strides() const { return a.strides; }

  const T &operator[](ptrdiff_t i) const {
    if (i < 0 || i >= a.size) return nothing(i);
    const char *place = a.data;
    for (ptrdiff_t axis = a.ndim; axis-- > 0; i /= a.shape[axis]) place += a.strides[axis] * (i % a.shape[axis]);
    return *reinterpret_cast<const T *>(place);
  }
  T &operator[](ptrdiff_t i) { return const_cast<T &>(const_cast<const CArray &>(*this)[i]); }

  template <typename Int, int ndim> const T &operator[](const Int (&index)[ndim]) const {
    if (ndim != a.ndim) return nothing(-1);
    const char *place = a.data;
    for (int axis = 0; axis < ndim; ++axis) {
      const ptrdiff_t k = index[axis];
      if (k < 0 || k >= a.shape[axis]) return nothing(k);
      place += a.strides[axis] * k;
    }
    return *reinterpret_cast<const T *>(place);
  }
  template <typename Int, int ndim> T &operator[](const Int (&index)[ndim]) {
    return const_cast<T &>(const_cast<const CArray &>(*this)[index]);
  }
};
"""

# As CuPy's class: calculations take place in float.
FLOAT16 = """
class float16 {
  _Float16 value;

public:
  float16() {}
  float16(float x) : value(x) {}
  template <typename T> explicit float16(T x) : value(static_cast<float>(x)) {}
  template <typename T> float16 &operator=(const T &x) { return *this = static_cast<float16>(x); }
  operator float() const { return value; }
  float16 &operator+=(float x) { return *this = float16(float(*this) + x); }
  float16 &operator-=(float x) { return *this = float16(float(*this) - x); }
  float16 &operator*=(float x) { return *this = float16(float(*this) * x); }
  float16 &operator/=(float x) { return *this = float16(float(*this) / x); }
};
"""

COMPLEX = """
#include <complex>
using std::complex;
"""


class _Argument(ctypes.Structure):
    """The ``Argument`` of the prelude."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("ndim", ctypes.c_ssize_t),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
    )


def compiler() -> str | None:
    """Return the path of a C++ compiler, None if there is none."""
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


@functools.cache
def compiled(source: str) -> Any:
    """Return the function ``run`` of a C++ source; what any process has compiled before is loaded only.

    Raises:
        RuntimeError: there is no compiler, or it refuses the source.
    """
    path = compiler()
    if path is None:
        raise RuntimeError("no C++ compiler: install g++ or clang++")
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"masked-resnet-kernels-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != user:
        raise RuntimeError(f"{folder} belongs to somebody else, its libraries are not loaded")
    library = folder / (hashlib.sha256("\0".join((path, *FLAGS, source)).encode()).hexdigest() + ".so")
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            text, built = Path(own) / "kernel.cpp", Path(own) / "kernel.so"
            text.write_text(source)
            done = subprocess.run([path, *FLAGS, "-o", built, text], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the kernel does not compile:\n{done.stderr}\n{source}")
            built.replace(library)  # at once: a test process beside this one finds all of it or nothing
    run = ctypes.CDLL(str(library)).run
    run.argtypes = (ctypes.c_ssize_t, ctypes.POINTER(_Argument), ctypes.POINTER(ctypes.c_ssize_t))
    run.restype = None
    return run


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: ``raw float32 x`` or ``T y``."""

    name: str
    placeholder: str | None  # "T"
    dtype: np.dtype[Any] | None  # where it is no placeholder
    raw: bool

    @classmethod
    def parse(cls, text: str) -> Parameter:
        """Read one parameter of CuPy's list."""
        *keywords, kind, name = text.split()
        if set(keywords) - {"raw"}:
            raise ValueError(f"unknown keyword in {text!r}")
        letter = len(kind) == 1
        return cls(name, kind if letter else None, None if letter else np.dtype(kind), "raw" in keywords)

    @property
    def c_type(self) -> str:
        """What the kernel's text calls the type."""
        return self.placeholder or C_TYPES[self.dtype.name]


def _parameters(text: str) -> tuple[Parameter, ...]:
    return tuple(Parameter.parse(one) for one in text.split(",") if one.strip())


class ElementwiseKernel:
    """CuPy's class of the same name; :func:`kernel_class` ties it to an array class.

    Args:
        in_params, out_params: as in ``"T x, raw float32 y"``.
        operation: the loop's body.
        name: of the kernel, for messages.
        reduce_dims: taken and ignored: what it decides cannot be seen.
        preamble: put before the kernel.
        no_return: return None.
        return_tuple: return a tuple even of one array.
        loop_prep, after_loop: put before and behind the loop.
        options: of CuPy's compiler, ignored.
    """

    array_type: type
    empty: Callable[..., Any]

    def __init__(
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        reduce_dims: bool = True,
        preamble: str = "",
        no_return: bool = False,
        return_tuple: bool = False,
        *,
        loop_prep: str = "",
        after_loop: str = "",
        options: tuple[str, ...] = (),
    ) -> None:
        if not name.isidentifier():
            raise ValueError(f'Invalid kernel name: "{name}"')
        self.in_params, self.out_params = _parameters(in_params), _parameters(out_params)
        self.params = self.in_params + self.out_params
        self.nin, self.nout, self.nargs = len(self.in_params), len(self.out_params), len(self.params)
        if any(p.name == "i" for p in self.params):
            raise ValueError("Can not use 'i' as a parameter name")
        self.operation, self.name, self.preamble = operation, name, preamble
        self.no_return, self.return_tuple = no_return, return_tuple
        self.loop_prep, self.after_loop = loop_prep, after_loop

    def __call__(self, *args: Any, size: int = -1, block_size: int = 128, stream: Any = None) -> Any:
        """Run the kernel on ``args``: the inputs, or the inputs and the outputs."""
        if block_size <= 0:
            raise ValueError("block_size must be greater than zero")
        if len(args) not in (self.nin, self.nargs):
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or {self.nargs} "
                f"(with outputs), but given {len(args)}."
            )
        for arg in args:
            if not isinstance(arg, self.array_type | bool | int | float | complex | np.generic):
                raise TypeError(f"Unsupported type {type(arg)}: move it to the device with xp.asarray")
        shape = self._loop_shape(args, size)
        types = self._types(args)
        outs = self._outputs(args[self.nin :], types, shape, size)
        if 0 not in shape:
            self._launch((*args[: self.nin], *outs), types, shape)
        if self.no_return:
            return None
        return outs[0] if self.nout == 1 and not self.return_tuple else tuple(outs)

    def _loop_shape(self, args: tuple[Any, ...], size: int) -> tuple[int, ...]:
        """Return the shape that all arrays which are not raw are broadcast to."""
        # Without outputs among the arguments, zip leaves their parameters out.
        shapes = [a.shape for a, p in zip(args, self.params, strict=False) if self._is_array(a) and not p.raw]
        if size != -1:
            if shapes:
                raise ValueError("Specified 'size' can be used only if all of the ndarray are 'raw'.")
            return (size,)
        if not shapes:
            raise ValueError("Loop size is undecided.")
        return np.broadcast_shapes(*shapes)

    def _types(self, args: tuple[Any, ...]) -> dict[str, np.dtype[Any]]:
        """Return the dtype of each placeholder; arrays decide, outputs first, and numbers never do."""
        types: dict[str, np.dtype[Any]] = {}
        given = [*zip(self.out_params, args[self.nin :], strict=False), *zip(self.in_params, args, strict=False)]
        for p, arg in given:
            if not self._is_array(arg):
                if p in self.out_params:
                    raise TypeError("Output arguments must be cupy.ndarray")
                continue
            expected = p.dtype if p.placeholder is None else types.setdefault(p.placeholder, arg.dtype)
            if expected != arg.dtype:
                raise TypeError(f"Type is mismatched. {p.name} {arg.dtype} {expected} {p.placeholder or ''}".rstrip())
        for p in self.params:
            if p.placeholder is not None and p.placeholder not in types:
                raise KeyError(p.placeholder)
        return types

    def _outputs(self, given: tuple[Any, ...], types: dict[str, Any], shape: tuple[int, ...], size: int) -> list[Any]:
        """Check the outputs that were given, or make them."""
        if not given:
            if size == -1 and any(p.raw for p in self.out_params):
                raise ValueError("Output array size is Undecided")
            return [type(self).empty(shape, self._dtype(p, types)) for p in self.out_params]
        for p, out in zip(self.out_params, given, strict=True):
            if not p.raw and out.shape != shape:
                raise ValueError("Out shape is mismatched")
        return list(given)

    def _launch(self, args: tuple[Any, ...], types: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Compile the kernel for these types, or find it compiled, and run it."""
        hosts: list[NDArray[Any]] = []
        for p, arg in zip(self.params, args, strict=True):
            if not self._is_array(arg):
                # As in CuPy the number is converted without a word, to the type that the arrays decided.
                hosts.append(np.asarray(arg).astype(self._dtype(p, types)))
            else:
                hosts.append(arg._host if p.raw else np.broadcast_to(arg._host, shape))
        packed = (_Argument * self.nargs)(
            *(_Argument(host.ctypes.data, host.size, host.ndim, host.ctypes.shape, host.ctypes.strides)
              for host in hosts)
        )  # fmt: skip
        stray = (ctypes.c_ssize_t * 3)()
        compiled(self.source([self._is_array(arg) for arg in args], types))(math.prod(shape), packed, stray)
        if stray[0]:
            raise IndexError(f"kernel {self.name!r}: index {stray[1]} outside a raw array of {stray[2]} elements")

    def source(self, is_array: list[bool], types: dict[str, np.dtype[Any]]) -> str:
        """Return the C++ source for arguments of these types, arrays or numbers."""
        parts, before, inside = [PRELUDE], [], []
        used = {self._dtype(p, types).name for p in self.params}
        parts += [FLOAT16] * ("float16" in used) + [COMPLEX] * bool(used & {"complex64", "complex128"})
        parts += [f"typedef {C_TYPES[dtype.name]} {letter};" for letter, dtype in sorted(types.items())]
        for k, (p, array) in enumerate(zip(self.params, is_array, strict=True)):
            const = "const " if k < self.nin else ""
            if not array:
                before.append(f"const {p.c_type} {p.name} = *reinterpret_cast<const {p.c_type} *>(args[{k}].data);")
                continue
            before.append(f"{const}CArray<{p.c_type}> {'' if p.raw else '_raw_'}{p.name}(args[{k}], stray);")
            if not p.raw:
                inside.append(f"{const}{p.c_type} &{p.name} = _raw_{p.name}[i];")
        return "\n".join(
            [
                *parts,
                self.preamble,
                'extern "C" void run(ptrdiff_t size, const Argument *args, ptrdiff_t *stray) {',
                "const Indexer _ind{size};",
                *before,
                self.loop_prep + ";",
                "for (ptrdiff_t _left = size; _left > 0; --_left) {",
                "const ptrdiff_t i = _left - 1;",
                *inside,
                self.operation + ";",
                "}",
                self.after_loop + ";",
                "}",
            ]
        )

    def _is_array(self, arg: Any) -> bool:
        return isinstance(arg, self.array_type)

    @staticmethod
    def _dtype(p: Parameter, types: dict[str, np.dtype[Any]]) -> np.dtype[Any]:
        return types[p.placeholder] if p.dtype is None else p.dtype


def kernel_class(array_type: type, empty: Callable[..., Any]) -> type[ElementwiseKernel]:
    """Return CuPy's ElementwiseKernel for arrays of the class ``array_type``.

    Args:
        array_type: each array holds a NumPy array as ``_host``.
        empty: makes such an array of a shape and a dtype.
    """
    return type("ElementwiseKernel", (ElementwiseKernel,), {"array_type": array_type, "empty": staticmethod(empty)})
