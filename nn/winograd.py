"""Winograd's convolution F(4×4, 3×3): the same numbers as im2col's for 3×3 kernels, with a quarter of the products.

Lavin & Gray 2015 (arXiv 1509.09308). Letters: N pictures, H × W places, C channels in, F filters, OH × OW places out,
T tiles of 4×4 outputs, 6×6 = 36 inputs under each tile, 16 outputs in it.

In one dimension, four outputs of a kernel g of three taps read six inputs d. Turn it round: "input times kernel" is a
product of polynomials, and a polynomial is known by its values. A product of degree 5 is known by its values at six
points, and there each value is a *single* product. So evaluate both factors at the points, multiply, interpolate:
6 products instead of 4·3 = 12. Convolution is the transpose of that polynomial product, which swaps the two ends:

    y = Aᵀ · [(G·g) ⊙ (Bᵀ·d)]      Bᵀ (6, 6) interpolates, G (6, 3) and A (6, 4) evaluate powers at the points

In two dimensions do it along rows and along columns: a 6×6 tile becomes Bᵀ·d·B. Written as one matrix on the 36 numbers
of a tile that is the Kronecker product Bᵀ ⊗ Bᵀ (36, 36), so that every step here is a matrix product:

    V = (Bᵀ ⊗ Bᵀ) @ tiles   (36, T·C)          the inputs' values at 36 points
    U = (G ⊗ G) @ weight    (36, C·F)          the kernel's
    M = V[k] @ U[k]         (36, T, F)         at each point k: sums over channels, as many products as a 1×1 kernel
    Y = (Aᵀ ⊗ Aᵀ) @ M       (16, T·F)          4×4 outputs a tile

36 products for 16 outputs, 2.25 each, where im2col needs 9. The price is rounding: the points are 0, ±2/3, ±3/2 and ∞,
which lose a quarter of what the usual 0, ±1, ±2 and ∞ lose in float32.

Backward is the exact adjoint, the same matrices transposed in the opposite order.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache, reduce
from operator import iadd
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nn.backend import Array, array_module, checked_upstream
from nn.parallel import in_batch_slices, in_threads, scratch, shares, slices, workers

POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))  # and infinity
TILE, INPUTS = 4, 6  # outputs a tile along one axis, and the inputs that they read


class WinogradCache(NamedTuple):
    """What it keeps: no more than im2col does; the transformed tiles are computed again."""

    x: Array  # (N, H, W, C)
    weight: Array  # (3, 3, C, F)
    has_bias: bool
    padding: tuple[int, int]


def one_dimension() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return Bᵀ (6, 6), G (6, 3) and Aᵀ (4, 6) of F(4, 3), in float64, from exact fractions.

    Row i of Bᵀ has the coefficients of Π_{j≠i} (t − pⱼ), Lagrange's polynomial that is zero at all other points; what
    it is at its own point, Π_{j≠i} (pᵢ − pⱼ), is divided out in G. Infinity stands for the highest power.
    """
    b = [_coefficients([p for p in POINTS if p != point]) for point in POINTS] + [_coefficients(list(POINTS))]
    scale = [reduce(Fraction.__mul__, [point - p for p in POINTS if p != point]) for point in POINTS]
    g = [[point**power / s for power in range(3)] for point, s in zip(POINTS, scale, strict=True)] + [[0, 0, 1]]
    a = [[*(point**power for point in POINTS), int(power == TILE - 1)] for power in range(TILE)]
    b = [row + [Fraction(0)] * (INPUTS - len(row)) for row in b]
    return np.array(b, np.float64), np.array(g, np.float64), np.array(a, np.float64)


def _coefficients(roots: list[Fraction]) -> list[Fraction]:
    """Return the coefficients of Π (t − root), lowest power first."""
    product = [Fraction(1)]
    for root in roots:
        product = [
            low - root * high for low, high in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)
        ]
    return product


@cache
def matrices(dtype: str, xp: ModuleType) -> tuple[Array, Array, Array]:
    """Return Bᵀ ⊗ Bᵀ (36, 36), G ⊗ G (36, 9) and Aᵀ ⊗ Aᵀ (16, 36) on the device."""
    b, g, a = (xp.asarray(np.kron(one, one).astype(dtype)) for one in one_dimension())
    return b, g, a


def winograd_forward(
    x: Array, weight: Array, bias: Array | None = None, padding: tuple[int, int] = (0, 0)
) -> tuple[Array, WinogradCache]:
    """Convolve with a 3×3 kernel and stride 1; arguments and result as ``nn.conv.conv2d_forward``.

    Args:
        x: (N, H, W, C).
        weight: (3, 3, C, F), same dtype.
        bias: (F,) or None.
        padding: zeros around the picture, (PH, PW).

    Returns:
        y (N, H + 2·PH − 2, W + 2·PW − 2, F), and the cache for :func:`winograd_backward`.
    """
    (n, h, w, c), f, xp = x.shape, weight.shape[3], array_module(x)
    oh, ow = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
    b, _, a = matrices(x.dtype.name, xp)
    kernel = transformed_kernel(weight)  # (36, C, F)
    y = xp.empty((n, oh, ow, f), dtype=x.dtype)

    def convolve(few: slice) -> None:
        values = transformed_tiles(x[few], (oh, ow), padding, b)  # (36, T, C)
        products = scratch("tiles", (36, values.shape[1], f), x.dtype, xp)
        xp.matmul(values, kernel, out=products)  # (36, T, C) @ (36, C, F) -> (36, T, F)
        outputs = scratch("values", (16, products[0].size), x.dtype, xp)
        xp.matmul(a, products.reshape(36, -1), out=outputs)  # (16, 36) @ (36, T·F) -> (16, T·F)
        lay_tiles(outputs, y[few])
        if bias is not None:
            y[few] += bias  # (n, OH, OW, F) + (F,)

    in_batch_slices(convolve, n, tile_bytes(y, max(c, f)), xp)
    return y, WinogradCache(x, weight, bias is not None, padding)


def winograd_backward(
    dy: Array, cache: WinogradCache, needs_dx: bool = True
) -> tuple[Array | None, Array, Array | None]:
    """Turn ``dy`` (N, OH, OW, F) into dx (N, H, W, C), dweight (3, 3, C, F) and dbias (F,), None without a bias.

    Forward's steps transposed, last one first: Y's tiles back to M, M = V @ U to dU = Vᵀ @ dM and dV = dM @ Uᵀ, then
    dU to the kernel and dV to the input tiles, which overlap by two and add up.
    """
    x, weight, has_bias, padding = cache
    (n, h, w, c), f, xp = x.shape, weight.shape[3], array_module(x)
    oh, ow = h + 2 * padding[0] - 2, w + 2 * padding[1] - 2
    dy = checked_upstream(dy, (n, oh, ow, f), x.dtype)
    b, g, a = matrices(x.dtype.name, xp)
    kernel = transformed_kernel(weight) if needs_dx else None  # (36, C, F)
    dx = xp.empty(x.shape, dtype=x.dtype) if needs_dx else None

    def of_slice(few: slice) -> Array:
        values = transformed_tiles(x[few], (oh, ow), padding, b)  # (36, T, C)
        doutputs = take_tiles(dy[few], TILE, (0, 0), (oh, ow))  # (16, T, F)
        dproducts = scratch("products", (36, *doutputs.shape[1:]), x.dtype, xp)
        xp.matmul(a.T, doutputs.reshape(16, -1), out=dproducts.reshape(36, -1))  # (36, 16) @ (16, T·F) -> (36, T·F)
        dkernel: Array = values.transpose(0, 2, 1) @ dproducts  # (36, C, T) @ (36, T, F) -> (36, C, F)
        if dx is not None and kernel is not None:
            xp.matmul(dproducts, kernel.transpose(0, 2, 1), out=values)  # (36, T, F) @ (36, F, C) -> (36, T, C)
            dtiles = scratch("tiles", (36, values[0].size), x.dtype, xp)
            xp.matmul(b.T, values.reshape(36, -1), out=dtiles)  # (36, 36) @ (36, T·C) -> (36, T·C)
            add_tiles(dtiles, dx[few], (oh, ow), padding)
        return dkernel

    def of_share(pictures: slice) -> Array:
        return reduce(iadd, map(of_slice, slices(pictures, tile_bytes(dy, max(c, f)), xp, least=4 * weight.nbytes)))

    dkernel = reduce(iadd, in_threads(of_share, shares(n, workers(n * tile_bytes(dy, c), xp))))  # (36, C, F)
    dweight = (g.T @ dkernel.reshape(36, -1)).reshape(weight.shape)  # (9, 36) @ (36, C·F) -> (3, 3, C, F)
    dbias = dy.sum(axis=2).sum(axis=(0, 1)) if has_bias else None  # (N, OH, OW, F) -> (N, OH, F) -> (F,)
    return dx, dweight, dbias


def tiles_along(size: int) -> int:
    """Return how many tiles cover ``size`` outputs; the last one may reach over the edge."""
    return -(-size // TILE)


def tile_bytes(y: Array, channels: int) -> int:
    """Return the size in bytes of the tiles of one picture, for outputs y (N, OH, OW, F)."""
    return INPUTS**2 * tiles_along(y.shape[1]) * tiles_along(y.shape[2]) * channels * y.itemsize


def transformed_kernel(weight: Array) -> Array:
    """Return U = (G ⊗ G) @ weight: (3, 3, C, F) -> (36, C, F). The thread's buffer, written over at the next call."""
    _, _, c, f = weight.shape
    xp = array_module(weight)
    _, g, _ = matrices(weight.dtype.name, xp)
    taps = weight.reshape(9, c * f)  # (3, 3, C, F) -> (9, C·F)
    kernel = scratch("kernel", (36, c * f), weight.dtype, xp)

    def transform(part: slice) -> None:
        xp.matmul(g, taps[:, part], out=kernel[:, part])  # (36, 9) @ (9, C·F) -> (36, C·F)

    in_threads(transform, shares(c * f, workers(kernel.nbytes // 8, xp)))
    return kernel.reshape(36, c, f)  # (36, C·F) -> (36, C, F)


def transformed_tiles(x: Array, places: tuple[int, int], padding: tuple[int, int], b: Array) -> Array:
    """Return V = (Bᵀ ⊗ Bᵀ) @ tiles: (n, H, W, C) -> (36, T, C). The thread's buffer."""
    xp = array_module(x)
    tiles = take_tiles(x, INPUTS, padding, places)  # (36, T, C)
    values = scratch("values", tiles.shape, x.dtype, xp)
    xp.matmul(b, tiles.reshape(36, -1), out=values.reshape(36, -1))  # (36, 36) @ (36, T·C) -> (36, T·C)
    return values


def grid(name: str, n: int, places: tuple[int, int], channels: int, like: Array) -> Array:
    """Return room for pictures cut into cells of 4×4, one more than the tiles each way: (n, TH + 1, 4, TW + 1, 4, C).

    A tile of 6×6 inputs is a cell, two columns of the next to its right, two rows of the one below, and the corner.
    The thread's buffer; as (n, 4·TH + 4, 4·TW + 4, C) it is the padded pictures.
    """
    shape = (n, tiles_along(places[0]) + 1, TILE, tiles_along(places[1]) + 1, TILE, channels)
    return scratch(name, shape, like.dtype, array_module(like))


def as_pictures(cells: Array) -> Array:
    """Return a view of a grid (n, TH, 4, TW, 4, C) as pictures: (n, 4·TH, 4·TW, C)."""
    n, th, _, tw, _, c = cells.shape
    return cells.reshape(n, th * TILE, tw * TILE, c)


def cell_parts(size: int) -> list[tuple[slice, slice, slice]]:
    """Return along one axis: which part of a tile of ``size`` lies in which cells, and where in the cell."""
    own = (slice(0, TILE), slice(0, -1), slice(0, TILE))
    return [own, (slice(TILE, size), slice(1, None), slice(0, size - TILE))][: 1 + (size > TILE)]


def take_tiles(x: Array, size: int, padding: tuple[int, int], places: tuple[int, int]) -> Array:
    """Cut x (n, H, W, C) into tiles of size² every 4 places: (size², T, C), place by place. The thread's buffer."""
    (n, h, w, c), (ph, pw), xp = x.shape, padding, array_module(x)
    cells = grid("cells", n, places, c, x)  # (n, TH + 1, 4, TW + 1, 4, C)
    padded = as_pictures(cells)
    padded[:, :ph] = padded[:, ph + h :] = padded[:, :, :pw] = padded[:, :, pw + w :] = 0
    padded[:, ph : ph + h, pw : pw + w] = x
    tiles = scratch("tiles", (size, size, n, cells.shape[1] - 1, cells.shape[3] - 1, c), x.dtype, xp)
    for i, rows, inner_rows in cell_parts(size):
        for j, columns, inner_columns in cell_parts(size):
            part = cells[:, rows, inner_rows, columns, inner_columns]  # (n, TH, i, TW, j, C)
            tiles[i, j] = part.transpose(2, 4, 0, 1, 3, 5)  # -> (i, j, n, TH, TW, C)
    return tiles.reshape(size * size, -1, c)  # -> (size², T, C)


def add_tiles(dtiles: Array, dx: Array, places: tuple[int, int], padding: tuple[int, int]) -> None:
    """Add tiles (36, T·C) up to where ``take_tiles`` cut them from, in dx (n, H, W, C): its exact adjoint."""
    (n, h, w, c), (ph, pw) = dx.shape, padding
    cells = grid("cells", n, places, c, dx)  # (n, TH + 1, 4, TW + 1, 4, C)
    cells[:, -1] = cells[:, :, :, -1] = 0
    dtiles = dtiles.reshape(INPUTS, INPUTS, n, cells.shape[1] - 1, cells.shape[3] - 1, c)  # (36, T·C) -> (6, 6, n, …)
    for i, rows, inner_rows in cell_parts(INPUTS):
        for j, columns, inner_columns in cell_parts(INPUTS):
            part = cells[:, rows, inner_rows, columns, inner_columns].transpose(2, 4, 0, 1, 3, 5)  # as in take_tiles
            if i.start == j.start == 0:
                part[...] = dtiles[i, j]  # a tile's own cell comes first
            else:
                part += dtiles[i, j]
    dx[...] = as_pictures(cells)[:, ph : ph + h, pw : pw + w]


def lay_tiles(outputs: Array, y: Array) -> None:
    """Lay tiles (16, T·F) side by side in y (n, OH, OW, F); what reaches over its edge is left out."""
    n, oh, ow, f = y.shape
    outputs = outputs.reshape(TILE, TILE, n, tiles_along(oh), tiles_along(ow), f)  # (16, T·F) -> (4, 4, n, TH, TW, F)
    side_by_side = scratch("cells", (n, outputs.shape[3], TILE, outputs.shape[4], TILE, f), y.dtype, array_module(y))
    side_by_side[...] = outputs.transpose(2, 3, 0, 4, 1, 5)  # (4, 4, n, TH, TW, F) -> (n, TH, 4, TW, 4, F)
    y[...] = as_pictures(side_by_side)[:, :oh, :ow]
