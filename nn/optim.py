"""SGD with momentum, and Adam: PyTorch's formulas.

An optimiser gets a model's named parameters and keeps, beside each, the running averages that it needs. ``step(lr)``
takes the learning rate of this step from a schedule (``nn.schedule``), so the optimiser itself knows no time table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from nn.backend import Array, array_module, to_numpy
from nn.module import Parameter


class Optimizer:
    """What SGD and Adam share: the parameters, their state arrays, weight decay.

    Args:
        parameters: (name, parameter) pairs, as ``model.named_parameters()`` yields them.
        weight_decay: λ; adds λ·w to the gradient of w.
        decay_all: whether biases and batch norm's parameters decay too, as in PyTorch's default; False exempts them.
    """

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

    def step(self, lr: float) -> None:
        """Change every parameter once, by its gradient.

        Args:
            lr: learning rate of this step.

        Raises:
            ValueError: a learning rate that is negative or not finite.
        """
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"expected a finite learning rate of 0 or more, got {lr}")
        self.steps += 1
        for name, parameter in self.parameters.items():
            self.update(name, parameter, self._decayed(parameter), float(lr))

    def update(self, name: str, parameter: Parameter, gradient: Array, lr: float) -> None:
        """Change one parameter in place; ``gradient`` must not be written into."""
        raise NotImplementedError

    def _decayed(self, parameter: Parameter) -> Array:
        if self.weight_decay and (self.decay_all or parameter.decay):
            return parameter.grad + self.weight_decay * parameter.data
        return parameter.grad

    def _running(self, kind: str, name: str, parameter: Parameter) -> Array:
        """Return the state array ``kind`` of a parameter; zeros at the start."""
        key = f"{kind}/{name}"
        if key not in self.state:
            self.state[key] = array_module(parameter.data).zeros_like(parameter.data)
        return self.state[key]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the state arrays as NumPy arrays (``steps`` is a plain attribute)."""
        return {key: to_numpy(array).copy() for key, array in self.state.items()}


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

    def update(self, name: str, parameter: Parameter, gradient: Array, lr: float) -> None:
        """Change one parameter in place."""
        direction = gradient
        if self.momentum:
            velocity = self._running("momentum", name, parameter)
            velocity *= self.momentum
            velocity += gradient
            direction = gradient + self.momentum * velocity if self.nesterov else velocity
        parameter.data -= lr * direction


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

    def update(self, name: str, parameter: Parameter, gradient: Array, lr: float) -> None:
        """Change one parameter in place."""
        beta1, beta2 = self.betas
        mean, square = self._running("mean", name, parameter), self._running("square", name, parameter)
        mean *= beta1
        mean += (1 - beta1) * gradient
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        # The averages start at zero and so are too small at first; dividing by 1 − βᵗ makes up for it.
        root = array_module(square).sqrt(square) / math.sqrt(1 - beta2**self.steps) + self.eps
        parameter.data -= (lr / (1 - beta1**self.steps)) * mean / root
