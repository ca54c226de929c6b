"""Parameter, Buffer, Module, Sequential: what every layer shares.

A module is a layer or is made of modules. It finds its parts by looking at its own attributes, in the order in which
they were assigned; that order is the order of parameters, of the state dict and of the optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nn.backend import Array, array_module, choose_backend, to_backend, to_numpy


class Parameter:
    """An array that is learned, and its gradient.

    Attributes:
        data: the values, in the layout that our layers compute with.
        axes: how the axes are permuted to reach torchvision's layout (OIHW for a convolution); None if they agree.
        decay: whether weight decay is meant for it (not for biases and batch norm's scale and shift).
    """

    def __init__(self, data: Array, *, axes: tuple[int, ...] | None = None, decay: bool = True) -> None:
        self.data = data
        self.axes = axes
        self.decay = decay
        self._grad: Array | None = None

    @property
    def grad(self) -> Array:
        """The gradient, same shape and dtype as ``data``; zeros until a backward has added to it."""
        if self._grad is None:
            self._grad = array_module(self.data).zeros_like(self.data)
        return self._grad

    def like(self, x: Array) -> Array:
        """Return the values to compute with: ``data`` itself, but for float16 input and float32 data a float16 copy.

        That is mixed precision: what is learned stays in float32 (see ``nn.precision``).
        """
        mixed = self.data.dtype == np.float32 and getattr(x, "dtype", None) == np.float16
        return self.data.astype(np.float16) if mixed else self.data

    def add_grad(self, gradient: Array) -> None:
        """Add into ``grad``. The first gradient after ``zero_grad`` becomes the sum itself, which saves a pass."""
        if self._grad is None:
            self._grad = gradient.astype(self.data.dtype, copy=False)
        else:
            self._grad += gradient

    def zero_grad(self) -> None:
        """Forget the gradient: ``grad`` reads as zeros again."""
        self._grad = None

    def convert(self, change: Any) -> None:
        """Replace the values by ``change(values)``, and the gradient likewise."""
        self.data = change(self.data)
        self._grad = None if self._grad is None else change(self._grad)


class Buffer:
    """An array that belongs to the state but is not learned: batch norm's running statistics."""

    axes: tuple[int, ...] | None = None

    def __init__(self, data: Array) -> None:
        self.data = data

    def convert(self, change: Any) -> None:
        """Replace the values by ``change(values)``."""
        self.data = change(self.data)


class Module:
    """A layer, or a network made of layers.

    A subclass writes ``forward(x) -> y`` and ``backward(dy) -> dx``. ``backward`` also adds into the ``grad`` of each
    parameter. What forward must remember it hands to :meth:`keep`; backward gets it back from :meth:`take`, which lets
    go of it. So every backward needs its own forward, and one instance stands at one place of a network only.

    Three states: :meth:`train` (batch statistics), :meth:`eval` (running statistics; backward still works) and
    :meth:`inference` (running statistics, nothing kept, no backward).
    """

    training: bool = True
    keeps_cache: bool = True
    _cache: Any = None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the output."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, *upstream: Any) -> Any:
        """Turn the gradient by the output into the gradient by the input."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run forward."""
        return self.forward(*inputs, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        """Return the layer's settings in a few words, for tables."""
        return ", ".join(name for name, _ in self.children())

    # What forward keeps for backward

    def keep(self, cache: Any) -> None:
        """Remember ``cache`` for the coming backward (not in the state of inference)."""
        self._cache = cache if self.keeps_cache else None

    def take(self) -> Any:
        """Return what forward kept, and let go of it.

        Raises:
            RuntimeError: no forward came before, or its cache has been used, or the model is in the inference state.
        """
        if self._cache is None:
            reason = (
                "the inference state keeps nothing: call train() or eval()"
                if not self.keeps_cache
                else ("each backward needs a forward of its own before it")
            )
            raise RuntimeError(f"{type(self).__name__}.backward has nothing to work on: {reason}")
        cache, self._cache = self._cache, None
        return cache

    def kept(self) -> Any:
        """Return what this module itself (not its parts) holds for backward at this moment, or None."""
        return self._cache

    def multiply_adds(self, y_shape: tuple[int, ...]) -> int:
        """Return how many products forward adds up for an output of this shape (only convolutions and linear count)."""
        return 0

    def pieces(self) -> Array | None:
        """Return which linear piece each element was on in the last forward, or None for a smooth layer.

        ReLU answers with the sign of its input, max-pool with the position of the maximum. Two points of the input
        space with unlike pieces have a kink between them: gradient checks ask for this.
        """
        return None

    # Parts, in the order of assignment

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for each direct part."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) for this module (name "") and, depth first, for all below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named(self, kind: Any) -> Iterator[tuple[str, Any]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter) in the fixed order."""
        return self._named(Parameter)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield (dotted name, buffer) in the fixed order."""
        return self._named(Buffer)

    def parameters(self) -> list[Parameter]:
        """Return all parameters in the fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def count_parameters(self) -> int:
        """Return how many numbers are learned."""
        return sum(parameter.data.size for parameter in self.parameters())

    # State

    def _set(self, *, training: bool, keeps_cache: bool) -> Self:
        for _, module in self.named_modules():
            module.training, module.keeps_cache, module._cache = training, keeps_cache, None
        return self

    def train(self) -> Self:
        """Batch norm uses the batch's statistics and updates the running ones. Returns the module."""
        return self._set(training=True, keeps_cache=True)

    def eval(self) -> Self:
        """Batch norm uses the running statistics; backward still works. Returns the module."""
        return self._set(training=False, keeps_cache=True)

    def inference(self) -> Self:
        """As :meth:`eval`, but forward keeps nothing, so there is no backward. Returns the module."""
        return self._set(training=False, keeps_cache=False)

    def norms(self) -> Iterator[tuple[str, str]]:
        """Yield the names of direct parts (convolution, batch norm of its output), for :meth:`fuse`."""
        yield from ()

    def fuse(self) -> Self:
        """Return a copy in the state of inference, in which each batch norm is folded into the convolution before it.

        With fixed statistics batch norm is y = scale · x + shift a channel, and a convolution can do that itself:
        scale its filters, shift its bias. The outputs are equal up to rounding; the module itself stays as it is.
        """
        memo = {id(module._cache): None for _, module in self.named_modules()}  # what is for backward stays here
        memo |= {id(parameter._grad): None for parameter in self.parameters()}
        fused = deepcopy(self, memo)
        for _, module in fused.named_modules():
            for convolution, norm in module.norms():
                getattr(module, convolution).absorb(*getattr(module, norm).affine())
                setattr(module, norm, Identity())
        return fused.inference()

    def zero_grad(self) -> None:
        """Set every parameter's gradient to zero."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def _convert(self, change: Any) -> Self:
        for _, module in self.named_modules():
            module._cache = None
        for _, array in self._named((Parameter, Buffer)):
            array.convert(change)
        return self

    def to(self, backend: str) -> Self:
        """Move parameters, gradients and buffers to "numpy" or "cupy". Returns the module.

        Raises:
            ValueError, BackendError: unknown or unusable backend; nothing has been moved then.
        """
        name = choose_backend(backend)
        return self._convert(lambda array: to_backend(array, name))

    def astype(self, dtype: DTypeLike) -> Self:
        """Convert parameters, gradients and floating-point buffers to ``dtype``. Returns the module.

        Raises:
            TypeError: ``dtype`` is not a floating-point type.
        """
        if np.dtype(dtype).kind != "f":
            raise TypeError(f"expected a floating-point dtype, got {np.dtype(dtype)}")
        return self._convert(lambda array: array.astype(dtype) if array.dtype.kind == "f" else array)

    # Exchange, in torchvision's names and layouts

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of all parameters and buffers as NumPy arrays, in torchvision's names and layouts."""
        return {name: _export(array.data, array.axes) for name, array in self._named((Parameter, Buffer))}

    def grad_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of all gradients as NumPy arrays, under the names and in the layouts of ``state_dict``."""
        return {name: _export(parameter.grad, parameter.axes) for name, parameter in self.named_parameters()}

    def load_state_dict(
        self, state: Mapping[str, NDArray[Any]], strict: bool = True, finite: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy values in; each array keeps the module's own backend and dtype.

        A missing ``num_batches_tracked`` (a mere counter, absent from old PyTorch files) is left as it is.

        Whether numbers are finite is asked here and not where a file is read, because here it shows what becomes of
        them: a float64 of 1e300 is none that float32 has.

        Args:
            state: NumPy arrays in torchvision's names and layouts.
            strict: whether missing and unexpected names are errors.
            finite: whether numbers that are infinite or NaN in the module's dtype, and variances below 0, are errors;
                False takes back even the state of a training that exploded.

        Returns:
            the missing and the unexpected names (both empty if ``strict``).

        Raises:
            ValueError: lists every missing, unexpected and wrongly shaped entry at once, and every one whose numbers
                are of another kind (integers or complex numbers for weights, fractions for counters) or not finite;
                nothing has been changed then.
        """
        own = dict(self._named((Parameter, Buffer)))
        missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in state if name not in own]
        problems = []
        if strict:
            problems += [f"missing: {name} {_exported_shape(own[name])}" for name in missing]
            problems += [f"unexpected: {name} {np.shape(state[name])}" for name in unexpected]
        for name, array in own.items():
            if name in state:
                problems += _misfits(name, array, np.asarray(state[name]), finite)
        if problems:
            raise ValueError(
                f"the state dict does not fit this {type(self).__name__} ({len(problems)} entries):\n  "
                + "\n  ".join(problems)
            )
        for name, array in own.items():
            if name in state:
                array.data[...] = array_module(array.data).asarray(_import(state[name], array.axes))
        return missing, unexpected


class Identity(Module):
    """Hands on what it gets: stands where :meth:`Module.fuse` took a batch norm away."""

    def forward(self, x: Array) -> Array:
        """Return x."""
        return x

    def backward(self, dy: Array) -> Array:
        """Return dy."""
        return dy


class Sequential(Module):
    """Modules one after another; named "0", "1", … as in torchvision."""

    def __init__(self, *modules: Module) -> None:
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, index: int) -> Module:
        return [module for _, module in self.children()][index]

    def norms(self) -> Iterator[tuple[str, str]]:
        """Yield each convolution with the batch norm right behind it."""
        for (first, before), (second, after) in pairwise(self.children()):
            if hasattr(before, "absorb") and hasattr(after, "affine"):
                yield first, second

    def forward(self, x: Array) -> Array:
        """Run the modules in order."""
        for _, module in self.children():
            x = module(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Run the modules' backwards in reverse order."""
        for _, module in reversed(list(self.children())):
            dy = module.backward(dy)
        return dy


def pair(value: int | tuple[int, int], name: str, minimum: int) -> tuple[int, int]:
    """Return (height, width) from one number for both or from a pair.

    Raises:
        ValueError: not one or two whole numbers, or one of them below ``minimum``.
    """
    numbers = value if isinstance(value, tuple | list) else (value, value)
    if len(numbers) != 2 or any(not isinstance(n, int | np.integer) or n < minimum for n in numbers):
        raise ValueError(f"expected {name} as a whole number or a pair (height, width), each >= {minimum}, got {value}")
    return int(numbers[0]), int(numbers[1])


def _export(array: Array, axes: tuple[int, ...] | None) -> NDArray[Any]:
    ours = to_numpy(array)
    return np.array(ours if axes is None else ours.transpose(axes), order="C")  # our axes -> torchvision's, a copy


def _import(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    theirs = np.asarray(array)
    return np.array(theirs if axes is None else theirs.transpose(np.argsort(axes)), order="C")  # theirs -> ours


def _exported_shape(array: Parameter | Buffer) -> tuple[int, ...]:
    shape = array.data.shape
    return shape if array.axes is None else tuple(shape[axis] for axis in array.axes)


def _misfits(name: str, own: Parameter | Buffer, theirs: NDArray[Any], finite: bool) -> Iterator[str]:
    """Yield what is wrong with an array that is to become ``own``, the first thing only."""
    shape, dtype = _exported_shape(own), own.data.dtype
    kinds, numbers = ("f", "floating-point numbers") if dtype.kind == "f" else ("iuf", "whole numbers")
    if theirs.shape != shape:
        yield f"wrong shape: {name} expected {shape}, got {theirs.shape}"
        return
    if theirs.dtype.kind not in kinds:
        yield f"wrong kind: {name} expected {numbers}, such as {dtype}, got {theirs.dtype}"
        return
    with np.errstate(over="ignore", invalid="ignore"):  # what our dtype does not have is told below
        ours = theirs.astype(dtype, copy=False)
    if dtype.kind != "f" and not np.array_equal(ours, theirs):
        yield f"wrong kind: {name} expected {numbers} that {dtype} has, got {theirs.dtype} that are not"
    elif finite and dtype.kind == "f" and (bad := ours.size - int(np.isfinite(ours).sum())):
        yield f"not finite: {name} expected finite numbers in {dtype}, got {bad} of {ours.size} that are not"
    elif finite and name.endswith("running_var") and (ours < 0).any():
        yield f"negative: {name} expected variances from 0 on, got {ours.min():g}"
