"""One step of training and what it needs: network, loss, optimiser, schedule; and a meter for the steps' losses.

A step is: pictures to the device, forward, loss, backward, optimiser. On a GPU nothing in it waits for the device;
losses are read in bunches, when the progress bar shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn import SGD, SoftmaxCrossEntropy
from nn.backend import Array, array_module, to_numpy
from nn.optim import Optimizer
from nn.parallel import keep_freed_memory, one_blas_thread, threads
from nn.precision import LossScale, matrix_products
from nn.schedule import make_schedule
from resnet.config import TrainingConfig
from resnet.memory import memory_errors_explained
from resnet.models import ResNet

EXPLODED = 1e4  # nats: a network that gives the right person a chance of exp(-10000) does not come back


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


class Trainer:
    """A network, its loss, its optimiser and its schedule: everything that a step changes or needs.

    Args:
        model: on its device already.
        config: settings.
        total_steps: of the whole training, for the schedule.
    """

    def __init__(self, model: ResNet, config: TrainingConfig, total_steps: int) -> None:
        self.model = model
        self.loss = SoftmaxCrossEntropy(config.label_smoothing)
        self.optimizer = SGD(
            model.named_parameters(),
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            decay_all=False,
        )
        self.threads, self.precision = config.threads, config.precision
        xp = array_module(model.fc.weight.data)
        self.scale = LossScale(xp) if config.precision == "float16" else None
        keep_freed_memory()
        self.schedule = make_schedule(config.schedule, config.learning_rate, total_steps, config.warm_up)
        self.steps = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule(self.steps)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies, as NumPy arrays, of all that a step changes.

        No generator of random numbers is among them: each batch has its own, made from seed, epoch and place.
        """
        state = {f"model/{name}": array for name, array in self.model.state_dict().items()}
        state |= {f"optimizer/{name}": array for name, array in self.optimizer.state_dict().items()}
        if self.scale is not None:
            state |= {f"scale/{name}": array for name, array in self.scale.state_dict().items()}
        return state | {"steps": np.array(self.steps)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from ``state``: the next steps are those that would have followed it, bit for bit.

        Raises:
            ValueError: the state is that of another network or optimiser; nothing has been changed then.
        """
        parts: dict[str, dict[str, NDArray[Any]]] = {"model": {}, "optimizer": {}}
        if self.scale is not None:
            parts["scale"] = {}
        expected = set(parts)
        for name, array in state.items():
            part, _, rest = name.partition("/")
            if name != "steps":
                parts.setdefault(part, {})[rest] = array
        if "steps" not in state or set(parts) != expected:
            wanted = ", ".join(f"{part}/…" for part in sorted(expected))
            raise ValueError(f"expected the state of a training ({wanted}, steps), got {', '.join(sorted(parts))}")
        steps = np.asarray(state["steps"])
        if steps.shape != () or not np.issubdtype(steps.dtype, np.integer) or steps < 0:
            raise ValueError(f"steps: expected one whole number from 0 on, got {steps.dtype} {steps.shape}")
        self.optimizer.check_state_dict(parts["optimizer"])
        if self.scale is not None:
            self.scale.check_state_dict(parts["scale"])
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        if self.scale is not None:
            self.scale.load_state_dict(parts["scale"])
        self.steps = self.optimizer.steps = int(steps)

    def step(self, x: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
        """Train on one batch. On a GPU nothing here waits for the device.

        Args:
            x: (N, H, W, C), float32, on the CPU or on the model's device.
            labels: (N,) on the CPU.

        Returns:
            the mean loss and the number of right answers before the step, 0-d arrays on the device.

        Raises:
            OutOfMemoryError: not enough memory; says what it would need and what lowers that.
            TrainingError: the loss exploded (on a GPU found out by :class:`Meter`); the step has
                changed no parameter then.
        """
        xp = array_module(self.model.fc.weight.data)
        self.model.zero_grad()
        with self.circumstances(x.shape):
            logits = self.forward(xp.asarray(x))  # (N, K)
            loss = self.loss(logits, labels)
            if xp is np:
                check_loss(float(loss), self.steps + 1, self.optimizer)
            self.backward(self.loss.backward(self.loss_scale))
            self.optimizer.step(self.learning_rate, self.scale)
            right = (logits.argmax(axis=1) == xp.asarray(labels)).sum()
        self.steps += 1
        return loss, right

    @contextmanager
    def circumstances(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Within it, pictures of ``shape`` can be trained on: threads, precision, and errors as in :meth:`step`."""
        with (
            memory_errors_explained(self.model, shape, self.precision),
            matrix_products(self.precision, array_module(self.model.fc.weight.data)),
            threads(self.threads),
            one_blas_thread(),
            np.errstate(over="ignore", invalid="ignore"),  # a loss that is not finite is reported with its step
        ):
            yield

    @property
    def loss_scale(self) -> Array | float:
        """What the loss is multiplied by for the backward pass; not 1 in half precision only."""
        return 1.0 if self.scale is None else self.scale.value

    def forward(self, x: Array) -> Array:
        """(N, H, W, C) -> logits (N, K). In half precision the network computes in float16, the loss does not."""
        if self.scale is None:
            return self.model(x)
        return self.model(x.astype(np.float16)).astype(np.float32)

    def backward(self, dlogits: Array) -> None:
        """(N, K) -> the gradients of all parameters, multiplied by :attr:`loss_scale`."""
        self.model.backward(dlogits if self.scale is None else dlogits.astype(np.float16), needs_dx=False)


def check_loss(loss: float, step: int, optimizer: Optimizer) -> None:
    """Find out whether a loss has exploded.

    Raises:
        TrainingError: it is above :data:`EXPLODED` or not a number; names the step and the largest gradient.
    """
    if loss <= EXPLODED:
        return
    raise TrainingError(
        f"the loss became {loss:.4g} at step {step}. {largest_gradient(optimizer)}. Try a lower --learning-rate, some "
        "--warm-up steps, or more --label-smoothing; check the pictures with --profile or --overfit-one-batch"
    )


def largest_gradient(optimizer: Optimizer) -> str:
    """Say in which layer the gradients of the last steps were largest, by the optimiser's running mean of them.

    The gradients themselves are gone by then: keeping them through the next forward pass would cost as much memory as
    the parameters.
    """
    if not optimizer.state:
        return "Without momentum no gradients are kept that could say which layer's was the largest"
    means = {n: array for n, array in optimizer.state_dict().items() if n.startswith(f"{optimizer.kinds[0]}/")}
    norms = {name.partition("/")[2]: float(np.linalg.norm(array.astype(float))) for name, array in means.items()}
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if bad:
        return f"{len(bad)} of {len(norms)} gradients are not finite any more, that of {bad[-1]} among them"
    name = max(norms, key=norms.__getitem__)
    return f"The largest gradient was that of {name}, norm {norms[name]:.3g} (running mean)"


class Meter:
    """Collects losses and right answers on the device, and reads them in bunches.

    Reading makes a GPU's queue run empty, so it is not done in every step. No step is lost: a loss that is not finite
    is found at the next reading and reported with its own step.

    Attributes:
        losses: of the steps read so far.
        sizes: pictures of each step, those not read yet too.
        right: right answers in the steps read so far.
    """

    def __init__(self, losses: Iterable[float] = (), sizes: Iterable[int] = (), right: int = 0) -> None:
        self.losses, self.sizes, self.right = list(losses), list(sizes), right
        self._pending: list[tuple[Array, Array]] = []

    def add(self, loss: Array, right: Array, pictures: int) -> None:
        """Take in what a step returned."""
        self._pending.append((loss, right))
        self.sizes.append(pictures)

    def read(self, trainer: Trainer) -> None:
        """Fetch what is pending; ``trainer`` has just made the last of these steps.

        Raises:
            TrainingError: a loss has exploded.
        """
        if not self._pending:
            return
        xp = array_module(self._pending[0][0])
        losses = to_numpy(xp.stack([loss for loss, _ in self._pending])).tolist()
        self.right += int(to_numpy(xp.stack([right for _, right in self._pending])).sum())
        self.losses += losses
        self._pending = []
        for step, loss in enumerate(losses, start=trainer.steps - len(losses) + 1):
            check_loss(loss, step, trainer.optimizer)

    @property
    def pictures(self) -> int:
        """How many pictures the steps read so far had."""
        return sum(self.sizes[: len(self.losses)])

    @property
    def loss(self) -> float:
        """Mean loss over the pictures read so far."""
        return float(np.dot(self.losses, self.sizes[: len(self.losses)]) / self.pictures)

    @property
    def accuracy(self) -> float:
        """Share of right answers so far."""
        return self.right / self.pictures
