"""How exactly a GPU computes: float32, TF32 or float16.

::

    float32   every product and sum in float32, rounding errors of about 1e-7.
    tf32      arrays stay float32, but matrix products run on tensor cores, which look at 10 of the 23 bits behind the
              binary point (rounding errors of about 1e-3 a factor) and add up in float32. Several times as fast.
    float16   "mixed precision" (Micikevicius et al. 2017, arXiv 1710.03740): pictures, activations and their gradients
              are float16, half the memory, on tensor cores too. The parameters stay float32 (else small changes would
              be lost in rounding: the paper's section 3.1), so do batch norm's statistics, the loss, and what is added
              up; the loss is scaled up so that small gradients do not become zero (section 3.2).

A layer with float32 parameters that gets float16 pictures computes in float16: here, too, the array decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn.backend import Array, BackendError, to_numpy
from nn.module import Parameter

PRECISIONS = ("float32", "tf32", "float16")
TENSOR_CORES = {"tf32": 80, "float16": 70}  # the compute capability, times ten, that has them

LARGEST_SCALE = 2.0**24
FIRST_SCALE = 2.0**16  # as PyTorch's GradScaler: too large at first costs a few skipped steps
GROWTH_STEPS = 2000


def check_precision(precision: str, xp: ModuleType) -> None:
    """Find out whether the device can compute so.

    Raises:
        ValueError: an unknown precision.
        BackendError: not on the CPU, or not on this GPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision among {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float32":
        return
    if xp is np:
        raise BackendError(
            f"--precision {precision} is for the tensor cores of an NVIDIA GPU; NumPy computes in float32: "
            "run with --backend cupy, or with --precision float32"
        )
    has, needs = int(xp.cuda.Device().compute_capability), TENSOR_CORES[precision]
    if has < needs:
        raise BackendError(
            f"--precision {precision} needs a GPU of compute capability {needs / 10}, this one has {has / 10}: "
            "run with --precision float32"
        )


@contextmanager
def matrix_products(precision: str, xp: ModuleType) -> Iterator[None]:
    """Within it, products of float32 matrices run in TF32 if ``precision`` is "tf32" and in float32 if not.

    The switch is CuPy's, for the whole process; it comes back to where it was. It goes before CUPY_TF32.
    """
    if xp is np:
        yield
        return
    kinds, wanted = xp._core._routines_linalg, precision == "tf32"  # there is no public name for it yet
    before = xp._core.get_compute_type(np.float32)
    xp._core.set_compute_type(np.float32, kinds.COMPUTE_TYPE_TF32 if wanted else kinds.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        xp._core.set_compute_type(np.float32, before)


class LossScale:
    """By how much the loss is scaled up so that the gradients, float16 on their way, do not become zero.

    As much as goes: where a gradient comes out infinite, that step changes nothing and the scale is halved; after a
    while without it is doubled. All of it stays on the device, nothing is read back, so no step waits.

    Args:
        xp: the array module.
        value: to begin with, a power of two, so that scaling itself does not round.
        growth_steps: good steps until it is doubled.

    Attributes:
        value: what to multiply the loss by, a 0-d float32 array.
        finite: whether the gradients of this step are, a 0-d bool array.
    """

    def __init__(self, xp: ModuleType, value: float = FIRST_SCALE, growth_steps: int = GROWTH_STEPS) -> None:
        self.xp, self.growth_steps = xp, growth_steps
        self.value: Array = xp.full((), value, np.float32)
        self.finite: Array = xp.full((), True)
        self._good_steps: Array = xp.zeros((), np.int32)

    @property
    def inverse(self) -> Array:
        """What brings the gradients back to their size, a 0-d float32 array."""
        return 1 / self.value

    def check(self, parameters: Iterable[Parameter]) -> None:
        """Note whether all gradients are finite. One infinity or NaN among a tensor's numbers shows in their sum."""
        sums = self.xp.stack([parameter.grad.sum() for parameter in parameters])  # (parameters,)
        self.finite = self.xp.isfinite(sums).all()

    def update(self) -> None:
        """Halve the scale after a step with an infinite gradient; double it after ``growth_steps`` without."""
        xp, good = self.xp, self.xp.where(self.finite, self._good_steps + 1, 0)  # ()
        grows = good >= self.growth_steps
        larger = xp.where(grows, xp.minimum(2 * self.value, LARGEST_SCALE), self.value)
        self.value = xp.where(self.finite, larger, self.value / 2)  # ()
        self._good_steps = xp.where(grows, 0, good).astype(np.int32)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the scale and of the number of good steps in a row, as 0-d NumPy arrays."""
        return {"value": to_numpy(self.value).copy(), "good_steps": to_numpy(self._good_steps).copy()}

    def check_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Raise a ValueError if ``state`` is not what :meth:`state_dict` gives."""
        if set(state) != {"value", "good_steps"} or any(np.shape(array) != () for array in state.values()):
            shapes = {name: np.shape(array) for name, array in state.items()}
            raise ValueError(f"expected a loss scale's value () and good_steps (), got {shapes}")
        value, steps = state["value"], state["good_steps"]
        if not (0 < value <= LARGEST_SCALE and steps >= 0):
            raise ValueError(
                f"expected a loss scale above 0 to {LARGEST_SCALE:g} and good_steps from 0 on, got {value} and {steps}"
            )

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from ``state``.

        Raises:
            ValueError: as :meth:`check_state_dict`; nothing has been changed then.
        """
        self.check_state_dict(state)
        self.value = self.xp.asarray(state["value"], np.float32)
        self._good_steps = self.xp.asarray(state["good_steps"], np.int32)
