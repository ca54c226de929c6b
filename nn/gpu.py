"""What only a GPU has: fused kernels, copies beside the computing, a clock of its own.

A GPU works off a queue: a call puts a kernel into it and returns at once, long before the kernel has run. Each kernel
reads its arrays from the GPU's memory and writes them back, which for most layers takes far longer than the arithmetic.
So a chain of NumPy calls becomes one fused kernel here, and nothing waits for the device without need.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from nn.backend import Array, array_module

Labels = TypeVar("Labels")

#: From so many numbers on an array's places need 64 bits, whose division takes a GPU several times as long.
SMALL = 2**31

# Kernels


def has_kernels(x: Array) -> bool:
    """Return whether ``x`` lives where kernels of CUDA C run."""
    return hasattr(array_module(x), "ElementwiseKernel")


@cache
def wide_dtype(dtype: Any) -> np.dtype[Any]:
    """Return what numbers of ``dtype`` are added up in: float32 for float16 and float32, float64 for float64."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


class Kernel:
    """A fused elementwise kernel: CUDA C for one number of the output, run for all of them side by side.

    A thin coat around ``cupy.ElementwiseKernel``, whose rules hold: ``i`` counts the numbers, a ``raw`` array is
    indexed in the body, ``T`` is any dtype. CuPy compiles it when it meets new dtypes, and keeps that on disk. On top,
    two words are replaced: ``wide`` by the type to add up in (see :func:`wide_dtype`) and ``idx`` by unsigned whole
    numbers that hold any place in the arrays. Unsigned, a place before the edge of a picture is a huge number, so that
    one comparison finds places beyond either edge.

    Every kernel stands beside the NumPy code that computes the same, and a test compares the two.

    Args:
        inputs: parameters, such as "T x, raw wide mean, idx channels".
        outputs: parameters that are written to (and may be read before).
        body: CUDA C.
        name: for profilers.
        sizes: names of whole numbers that stay the same for a layer. CuPy's compiler is told them as constants, as a
            division by a constant takes a fraction of the time; so there is a kernel for each set of them.
    """

    def __init__(self, inputs: str, outputs: str, body: str, name: str, sizes: tuple[str, ...] = ()) -> None:
        self.inputs, self.outputs, self.body, self.name, self.sizes = inputs, outputs, body, name, sizes
        self._built: dict[tuple[Any, ...], Any] = {}

    def __call__(self, dtype: Any, *arguments: Any, **sizes: int) -> Any:
        """Put the kernel into the GPU's queue.

        Args:
            dtype: of the layer's arrays; decides what ``wide`` is.
            arguments: the inputs, arrays or numbers, then all outputs or none; without them they are made here.
            sizes: a number for each of the names.

        Returns:
            the output, or a tuple of them.
        """
        arrays = [argument for argument in arguments if hasattr(argument, "nbytes")]
        xp = array_module(arrays[0])
        wide = "float64" if wide_dtype(dtype) == np.float64 else "float32"
        idx = "uint32" if max(array.size for array in arrays) < SMALL else "uint64"
        numbers = tuple(sizes[name] for name in self.sizes)
        constants = numbers if hasattr(xp, "RawKernel") else ()  # a stand-in's C++ compiler is too slow for that
        key = (xp, wide, idx, constants)
        if key not in self._built:
            self._built[key] = self._build(*key)
        if not constants:
            first_output = self.inputs.count(",") + 1
            arguments = (*arguments[:first_output], *numbers, *arguments[first_output:])
        return self._built[key](*arguments)

    def _build(self, xp: ModuleType, wide: str, idx: str, constants: tuple[int, ...]) -> Any:
        body, inputs = self.body, self.inputs
        if constants:
            body = "".join(f"const idx {n} = {c};\n" for n, c in zip(self.sizes, constants, strict=True)) + body
        else:
            inputs = ", ".join([inputs, *(f"idx {name}" for name in self.sizes)])
        inputs, outputs = (
            re.sub(r"\bidx\b", idx, re.sub(r"\bwide\b", wide, parameters)) for parameters in (inputs, self.outputs)
        )
        c_wide = {"float32": "float", "float64": "double"}[wide]
        c_idx = {"uint32": "unsigned int", "uint64": "unsigned long long"}[idx]
        preamble = f"typedef {c_wide} wide;\ntypedef {c_idx} idx;\n"
        return xp.ElementwiseKernel(inputs, outputs, body, self.name, preamble=preamble)


# Kernels over windows, for convolution and pooling

#: Picture, channels, window, places, stride, padding.
WINDOW_SIZES = ("h", "w", "c", "kh", "kw", "oh", "ow", "sh", "sw", "ph", "pw")


def window_sizes(shape: tuple[int, ...], *pairs: tuple[int, ...]) -> dict[str, int]:
    """Return the sizes by name, from the pictures' (N, H, W, C) and the pairs window, places, stride, padding."""
    return dict(zip(WINDOW_SIZES, (*shape[1:], *(number for pair in pairs for number in pair)), strict=True))


def gather(term: str) -> str:
    """Return the body of a kernel in which each place (N, H, W, C) of ``dx`` adds up over the windows that saw it.

    Args:
        term: C for what is added to ``sum``; the window is at (p, q) of picture ``at``, and saw the place at its tap
            (row, column). Each place collects its own, in a fixed order, so nothing is scattered by atomics.
    """
    return f"""
    idx at = i;                                             // place in (N, H, W, C), taken apart from behind
    const idx channel = at % c;                             at /= c;
    const idx across = at % w + pw;                         at /= w;    // place in the padded picture
    const idx down = at % h + ph;                           at /= h;    // what is left of at is the picture
    wide sum = 0;
    for (idx row = 0; row < kh; ++row) {{
        const idx p = (down - row) / sh;
        if (down < row || (down - row) % sh || p >= oh) continue;
        for (idx column = 0; column < kw; ++column) {{
            const idx q = (across - column) / sw;
            if (across < column || (across - column) % sw || q >= ow) continue;
            {term}
        }}
    }}
    dx = T(sum);
    """


# Time


def mark(xp: ModuleType) -> Any:
    """Note this moment, on a GPU by an event in its queue, which is passed when all before it is done."""
    if xp is np:
        return time.perf_counter()
    return xp.cuda.get_current_stream().record(xp.cuda.Event())


def seconds_between(xp: ModuleType, start: Any, stop: Any) -> float:
    """Return the seconds from one mark to another, after waiting for the GPU to pass the second."""
    if xp is np:
        return float(stop - start)
    stop.synchronize()
    return float(xp.cuda.get_elapsed_time(start, stop)) / 1000  # from milliseconds


# Copies


def uploads(batches: Iterator[tuple[Array, Labels]], xp: ModuleType) -> Iterator[tuple[Array, Labels]]:
    """Yield the batches with their pictures on the device, each sent while the one before it is computed with.

    CuPy copies by way of pinned memory and does not wait, but copies queue up behind all that was asked for before.
    So they have a queue of their own, and the other queue waits for its batch only. A new copy may be given the memory
    of an earlier batch: before it starts, its queue waits for what was to be computed until then.
    """
    if xp is np:
        yield from batches
        return
    computing, copying = xp.cuda.get_current_stream(), _copying_queue(xp, xp.cuda.Device().id)

    def send(x: Array) -> tuple[Array, Any]:
        copying.wait_event(computing.record())
        with copying:
            return xp.asarray(x), copying.record()

    sent = ((*send(x), labels) for x, labels in batches)
    waiting = next(sent, None)
    while waiting is not None:
        (x, copied, labels), waiting = waiting, next(sent, None)  # the next one is sent before this one is used
        computing.wait_event(copied)
        yield x, labels


@cache
def _copying_queue(xp: ModuleType, device: int) -> Any:
    """Return the queue for copies to a device, always the same: CuPy would keep the memory of one that is gone."""
    with xp.cuda.Device(device):
        return xp.cuda.Stream(non_blocking=True)
