"""The residual add: where the shortcut meets the branch (He et al. 2015, arXiv 1512.03385, equation 1).

y = F(x) + x. Its gradient goes to both sides unchanged, which is why depth does not starve the early layers. Both sides
receive the *same array*: that is why no backward of this project may write into its ``dy``.
"""

from __future__ import annotations

from nn.backend import Array, array_module, check_float
from nn.module import Module
from nn.parallel import elementwise


def add_forward(a: Array, b: Array) -> Array:
    """Compute a + b for two arrays of one shape.

    Raises:
        TypeError: not floating point, or unlike dtypes.
        ValueError: unlike shapes (NumPy would spread the smaller one in silence).
    """
    check_float("branch", a)
    check_float("shortcut", b, like=a)
    if a.shape != b.shape:
        raise ValueError(
            f"expected branch and shortcut of one shape, got {a.shape} and {b.shape}: "
            "a block that changes stride or channels needs a projection on its shortcut"
        )
    return elementwise(array_module(a).add, a, b)


def add_backward(dy: Array) -> tuple[Array, Array]:
    """Return ``dy`` for both sides: d(a + b)/da = d(a + b)/db = 1."""
    return dy, dy


class Add(Module):
    """a + b, with no parameters and nothing to keep."""

    def forward(self, a: Array, b: Array) -> Array:
        """Two arrays of one shape -> their sum."""
        return add_forward(a, b)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        """Return (dy, dy): the same array twice, to be read only."""
        return add_backward(dy)
