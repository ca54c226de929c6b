"""How much memory a training step needs, and what to say where it is not there."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import add

from nn.backend import array_module, to_numpy
from nn.module import Buffer, Parameter
from nn.parallel import GPU_SLICE_BYTES, slice_bytes
from resnet.models import ResNet, summarize


@dataclass(frozen=True)
class Need:
    """What a training step needs, in bytes.

    Attributes:
        fixed: parameters, gradients, momentum, and patches of one slice.
        per_picture: what layers keep of one picture for their backward, and gradients on their way.
    """

    fixed: int
    per_picture: int

    def of(self, batch: int) -> int:
        """Return the bytes that a batch needs."""
        return self.fixed + batch * self.per_picture

    def fits(self, available: int) -> int:
        """Return how many pictures a batch can have."""
        return max(0, (available - self.fixed) // self.per_picture)


def step_need(model: ResNet, size: int, precision: str = "float32") -> Need:
    """Estimate what a training step with SGD and momentum needs, from what the layers say they keep.

    Args:
        model: on any device; it stays as it is.
        size: side of the pictures.
        precision: with float16, pictures take half, and the weights have a copy.
    """
    records = summarize(_on_cpu(model), size)
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    itemsize, half = model.fc.weight.data.itemsize, precision == "float16"
    kept = accumulate(record.bytes_kept for record in records)  # what is still held when backward comes to a layer,
    gradients = (3 * itemsize * math.prod(record.shape) for record in records)  # that in, that out, the shortcut's
    per_picture = max(map(add, kept, gradients))
    patches = slice_bytes(array_module(model.fc.weight.data), wanted=GPU_SLICE_BYTES)
    return Need(
        fixed=int(3.5 * weights if half else 3 * weights) + patches,
        per_picture=per_picture // 2 if half else per_picture,
    )


def _on_cpu(model: ResNet) -> ResNet:
    """Return a copy on the CPU, made without asking for any memory where the model is."""
    memo: dict[int, object] = {}
    for _, module in model.named_modules():
        memo[id(module._cache)] = None
        for value in vars(module).values():
            if isinstance(value, Parameter):
                memo[id(value)] = Parameter(to_numpy(value.data), axes=value.axes, decay=value.decay)
            elif isinstance(value, Buffer):
                memo[id(value)] = Buffer(to_numpy(value.data))
    return copy.deepcopy(model, memo)


class OutOfMemoryError(MemoryError):
    """The message says what was wanted and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: CuPy's pool and NumPy say so by MemoryError, CUDA's libraries in words."""
    words = str(error)
    return isinstance(error, MemoryError) or "cudaErrorMemoryAllocation" in words or "ALLOC_FAILED" in words


@contextmanager
def memory_errors_explained(model: ResNet, shape: tuple[int, ...], precision: str) -> Iterator[None]:
    """Turn running out of memory within it into an error that says what was wanted and what to do.

    Raises:
        OutOfMemoryError: batch size, what a step needs, what there is, and the options that lower it.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_explanation(model, shape, precision)) from error


def _explanation(model: ResNet, shape: tuple[int, ...], precision: str) -> str:
    batch, height, width, _ = shape
    need, xp = step_need(model, max(height, width), precision), array_module(model.fc.weight.data)
    lines = f"out of memory: a training step of {batch} pictures of {height}x{width} in {precision} needs about "
    lines += _readable(need.of(batch))
    if xp.__name__ != "cupy":
        return f"{lines}. Lower --batch-size or --image-size, or take a smaller --arch"
    pool = xp.get_default_memory_pool()
    free, total = xp.cuda.runtime.memGetInfo()
    available = free + pool.total_bytes()
    half = "" if precision == "float16" else ", try --precision float16 (pictures and activations take half)"
    return (
        f"{lines}, the GPU has {_readable(available)} of {_readable(total)} for it. Lower --batch-size (about "
        f"{need.fits(available)} should fit) or --image-size{half}, or take a smaller --arch"
    )


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
