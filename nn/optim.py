"""SGD with momentum, and Adam: PyTorch's formulas.

An optimiser gets a model's named parameters and keeps, beside each, the running averages that it needs. ``step(lr)``
takes the learning rate of this step from a schedule (``nn.schedule``), so the optimiser itself knows no time table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from nn.backend import Array, array_module, to_numpy
from nn.gpu import Kernel, has_kernels, wide_dtype
from nn.module import Parameter
from nn.parallel import in_slices, scratch
from nn.precision import LossScale


class Optimizer:
    """What SGD and Adam share: the parameters, their state arrays, weight decay.

    A subclass names the state arrays that it keeps beside each parameter in ``kinds`` and writes ``update``.

    Args:
        parameters: (name, parameter) pairs, as ``model.named_parameters()`` yields them.
        weight_decay: λ; adds λ·w to the gradient of w.
        decay_all: whether biases and batch norm's parameters decay too, as in PyTorch's default; False exempts them.
    """

    kinds: tuple[str, ...] = ()

    def __init__(
        self, parameters: Iterable[tuple[str, Parameter]], weight_decay: float = 0.0, decay_all: bool = True
    ) -> None:
        self.parameters = dict(parameters)
        if not self.parameters:
            raise ValueError("expected at least one parameter to optimise, got none")
        if not weight_decay >= 0:
            raise ValueError(f"expected a weight decay of 0 or more, got {weight_decay}")
        self.weight_decay, self.decay_all = float(weight_decay), decay_all
        self.steps = 0
        self.state: dict[str, Array] = {}  # "<kind>/<parameter>", e.g. "momentum/conv1.weight"

    def step(self, lr: float, scale: LossScale | None = None) -> None:
        """Change every parameter once, by its gradient.

        Args:
            lr: learning rate of this step.
            scale: by how much the gradients are too large; where one of them is not finite, nothing changes.

        Raises:
            ValueError: a learning rate that is negative or not finite.
        """
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"expected a finite learning rate of 0 or more, got {lr}")
        self.steps += 1
        unscale = None
        if scale is not None:
            scale.check(self.parameters.values())
            unscale = scale.inverse, scale.finite
        for name, parameter in self.parameters.items():
            self._step(name, parameter, float(lr), unscale)
        if scale is not None:
            scale.update()

    def _step(self, name: str, parameter: Parameter, lr: float, unscale: tuple[Array, Array] | None) -> None:
        """Change one parameter, slice by slice, or on a GPU all of it by one kernel.

        ``unscale`` has what to multiply the gradient by, and whether to change anything; None for 1 and yes.
        """
        decay = self.weight_decay if self.decay_all or parameter.decay else 0.0
        xp = array_module(parameter.data)
        parameter.data = xp.asarray(parameter.data, order="C")  # so that the flat views below are views
        state = [self._running(kind, name, parameter).reshape(-1) for kind in self.kinds]  # any shape -> (size,)
        data, gradient = parameter.data.reshape(-1), parameter.grad.reshape(-1)

        if has_kernels(data):
            inverse, finite = unscale or (1.0, True)
            if unscale is not None:
                inverse = unscale[0].astype(wide_dtype(data.dtype), copy=False)
            self.update_by_kernel(data, (gradient, decay, inverse, finite), lr, *state)
            return

        def update(part: slice) -> None:
            decayed = xp.multiply(data[part], decay, out=scratch("decayed", data[part].shape, data.dtype, xp))
            decayed += gradient[part] if unscale is None else gradient[part] * unscale[0]
            parts = [array[part] for array in (data, *state)]
            before = None if unscale is None else [array.copy() for array in parts]
            self.update(parts[0], decayed, lr, *parts[1:])
            if unscale is not None and before is not None:
                for array, old in zip(parts, before, strict=True):
                    array[...] = xp.where(unscale[1], array, old)

        in_slices(update, data.size, data.itemsize, xp)

    def update(self, data: Array, gradient: Array, lr: float, *state: Array) -> None:
        """Change ``data`` and ``state`` in place: flat slices of a parameter and of what ``kinds`` names.

        ``gradient`` has the weight decay in it and may be written into.
        """
        raise NotImplementedError

    def update_by_kernel(self, data: Array, inputs: tuple[Any, ...], lr: float, *state: Array) -> None:
        """Do the same by one GPU kernel for all of a parameter.

        ``inputs`` are the gradient, the weight decay that is still to be added, what to multiply the gradient by before
        that, and whether to change anything.
        """
        raise NotImplementedError

    def _running(self, kind: str, name: str, parameter: Parameter) -> Array:
        """Return the state array ``kind`` of a parameter; zeros at the start."""
        key = f"{kind}/{name}"
        if key not in self.state:
            self.state[key] = array_module(parameter.data).zeros_like(parameter.data, order="C")
        return self.state[key]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the state arrays as NumPy arrays (``steps`` is a plain attribute)."""
        return {key: to_numpy(array).copy() for key, array in self.state.items()}

    def check_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Raise a ValueError that names each array that does not belong to these parameters, or has another shape."""
        shapes = {f"{kind}/{name}": p.data.shape for kind in self.kinds for name, p in self.parameters.items()}
        problems = [
            f"{key}: expected {shapes.get(key, 'nothing of this name')}, got {array.shape}"
            for key, array in state.items()
            if shapes.get(key) != array.shape
        ]
        if problems:
            raise ValueError("the state does not fit this optimiser:\n  " + "\n  ".join(problems))

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the state arrays over, to where the parameters are (``steps`` is a plain attribute).

        Raises:
            ValueError: as :meth:`check_state_dict`; nothing has been changed then.
        """
        self.check_state_dict(state)
        parameters = self.parameters
        self.state = {
            key: array_module(parameters[key.partition("/")[2]].data).array(array) for key, array in state.items()
        }


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013): v ← μ·v + g, w ← w − lr·v.

    With Nesterov's look-ahead, w ← w − lr·(g + μ·v).

    Args:
        parameters: (name, parameter) pairs.
        momentum: μ, in [0, 1).
        nesterov: whether to look ahead; needs momentum.
        weight_decay, decay_all: as :class:`Optimizer`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Parameter]],
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_all: bool = True,
    ) -> None:
        super().__init__(parameters, weight_decay, decay_all)
        if not 0 <= momentum < 1:
            raise ValueError(f"expected momentum from 0 to below 1, got {momentum}")
        if nesterov and momentum == 0:
            raise ValueError("expected a momentum above 0 for Nesterov's look-ahead, got 0")
        self.momentum, self.nesterov = float(momentum), nesterov
        self.kinds = ("momentum",) if momentum else ()

    def update(self, data: Array, gradient: Array, lr: float, *state: Array) -> None:
        """Change a slice in place."""
        for velocity in state:
            velocity *= self.momentum
            velocity += gradient
            gradient = gradient + self.momentum * velocity if self.nesterov else velocity
        data -= lr * gradient

    def update_by_kernel(self, data: Array, inputs: tuple[Any, ...], lr: float, *state: Array) -> None:
        """Change all of a parameter in place."""
        if state:
            SGD_MOMENTUM(data.dtype, *inputs, lr, self.momentum, self.nesterov, data, *state)
        else:
            SGD_PLAIN(data.dtype, *inputs, lr, data)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2014, arXiv 1412.6980, algorithm 1); weight decay is added to the gradient.

    Args:
        parameters: (name, parameter) pairs.
        betas: decay rates of the running mean of g and of g², each in [0, 1).
        eps: keeps the division away from zero.
        weight_decay, decay_all: as :class:`Optimizer`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Parameter]],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay_all: bool = True,
    ) -> None:
        super().__init__(parameters, weight_decay, decay_all)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected betas from 0 to below 1, got {betas}")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)

    kinds = ("mean", "square")

    def update(self, data: Array, gradient: Array, lr: float, *state: Array) -> None:
        """Change a slice in place."""
        (mean, square), (beta1, beta2) = state, self.betas
        mean *= beta1
        mean += (1 - beta1) * gradient
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        # The averages start at zero and so are too small at first; dividing by 1 − βᵗ makes up for it.
        root = array_module(square).sqrt(square) / math.sqrt(1 - beta2**self.steps) + self.eps
        data -= (lr / (1 - beta1**self.steps)) * mean / root

    def update_by_kernel(self, data: Array, inputs: tuple[Any, ...], lr: float, *state: Array) -> None:
        """Change all of a parameter in place."""
        (beta1, beta2), t = self.betas, self.steps
        corrections = lr / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)
        ADAM(data.dtype, *inputs, *corrections, beta1, beta2, self.eps, data, *state)


# The formulas as GPU kernels, one pass each. Gradients too large by a loss scale come back to size by ``inverse``

_GRADIENT = "T gradient, wide decay, wide inverse, bool finite"
_DECAYED = "if (!finite) continue;\nconst wide g = wide(gradient) * inverse + decay * wide(data);\n"

SGD_PLAIN = Kernel(f"{_GRADIENT}, wide lr", "T data", _DECAYED + "data = T(wide(data) - lr * g);", "sgd")
SGD_MOMENTUM = Kernel(
    f"{_GRADIENT}, wide lr, wide momentum, bool nesterov",
    "T data, T velocity",
    _DECAYED
    + """
    const wide v = momentum * wide(velocity) + g;
    velocity = T(v);
    data = T(wide(data) - lr * (nesterov ? g + momentum * v : v));
    """,
    "sgd_momentum",
)
ADAM = Kernel(
    f"{_GRADIENT}, wide corrected_lr, wide correction, wide beta1, wide beta2, wide eps",
    "T data, T mean, T square",
    _DECAYED
    + """
    const wide m = beta1 * wide(mean) + (1 - beta1) * g, s = beta2 * wide(square) + (1 - beta2) * g * g;
    mean = T(m);
    square = T(s);
    data = T(wide(data) - corrected_lr * m / (sqrt(s) * correction + eps));
    """,
    "adam",
)
