"""Two classic ways to recognise faces of which a part is covered; fit, scores and predict as in `resnet.baselines`.

- sparse representation: a picture is a sum of few training pictures, but for few pixels, and those may be anything
  (J. Wright, A. Yang, A. Ganesh, S. Sastry and Y. Ma, "Robust face recognition via sparse representation", IEEE PAMI
  31(2), 2009);
- LBP histograms: how often which pattern of darker and brighter neighbours occurs in each part of the picture
  (T. Ahonen, A. Hadid and M. Pietikäinen, "Face description with local binary patterns", IEEE PAMI 28(12), 2006).

Both look at grey pictures only; colours are turned into grey first.

Letters: N training pictures, M pictures to name, D pixels (times channels) in one, K people, P numbers kept of a
picture; H height and W width of the pictures, h and w of what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resnet.baselines import Matrix, PixelNN, Rows
from resnet.data.masks import LUMA

Floating = TypeVar("Floating", bound=np.floating)
Shape = tuple[int, int] | tuple[int, int, int]

PICTURES_AT_A_TIME = 64
"""Pictures taken at once: what is computed of them stays in the cache, and memory does not grow with their number."""


class GreyPictures(PixelNN):
    """A way to recognise faces that has to know where in a picture each pixel lies.

    Args:
        shape: (H, W), (H, W, 1) or (H, W, 3), the last one red-green-blue, of pictures that come as rows of H·W·C.

    """

    def __init__(self, shape: Shape) -> None:
        if len(shape) not in (2, 3) or min(shape) < 1 or shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"expected a picture's shape as (H, W), (H, W, 1) or (H, W, 3), got {tuple(shape)}")
        self.shape = shape

    def _project(self, pictures: Matrix) -> NDArray[np.float32]:
        D = math.prod(self.shape)
        if pictures.shape[1] != D:
            sizes = "x".join(map(str, self.shape))
            raise ValueError(f"expected pictures of {sizes} = {D} values, got rows of {pictures.shape[1]}")
        starts = range(0, len(pictures), PICTURES_AT_A_TIME)
        slices = (pictures[start : start + PICTURES_AT_A_TIME].reshape(-1, *self.shape) for start in starts)
        return np.concatenate([self._describe(_grey(some)).astype(np.float32) for some in slices])

    def _describe(self, grey: Matrix) -> Rows | NDArray[np.intp]:
        """What is kept of grey pictures (M, H, W): (M, P)."""
        raise NotImplementedError


class SparseRepresentation(GreyPictures):
    """The person whose training pictures take the largest part in the sparsest explanation of a picture.

    Columns of A (P, N) are the training pictures, shrunk to `size` and brought to unit length, as is the picture y.
    A cover changes some pixels and leaves the others alone, so y = A x + e with few of x and few of e not zero. The
    paper's  min ‖x‖₁ + ‖e‖₁  subject to  A x + e = y  is taken in its Lagrangian form, which allows for some noise:

        min ½‖y - A x - e‖² + λ (‖x‖₁ + ‖e‖₁)

    What counts for person k is how much of the uncovered picture is left when only k's pictures explain it: with
    δ_k(x) the numbers of x that belong to k and zeros, the score is  -‖y - e - A δ_k(x)‖₂.

    `size` and `penalty` were chosen on 200 ORL pictures, the training half of the split with seed 0, halved again
    in four ways: with clean and masked pictures to learn from, 24x24 and 0.003 name 89.4 % of the clean and 84.4 % of
    the masked rest. Penalties of 0.001 to 0.01 do as well within 0.3 %, 0.03 loses 5 % of the masked; 16x16 loses 3 %
    of the masked, 32x32 gains 0.6 % and takes more than twice as long.

    Args:
        shape: of the pictures, see `GreyPictures`.
        size: height and width that pictures are shrunk to, by averages over areas; a side that is less stays.
        penalty: λ, above 0. Up to so much may a value be off before it counts as covered; a picture of length 1
            shrunk to 24x24 has values of about 1/24.
        iterations: most iterations, see `sparse_codes`.
        tolerance: change at which iterating ends, see `sparse_codes`.

    """

    def __init__(
        self,
        shape: Shape,
        size: tuple[int, int] = (24, 24),
        penalty: float = 0.003,
        iterations: int = 300,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__(shape)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"expected a size as (height, width) of at least 1, got {tuple(size)}")
        _check_options(penalty, iterations, tolerance)
        self.size = min(size[0], shape[0]), min(size[1], shape[1])
        self.penalty, self.iterations, self.tolerance = penalty, iterations, tolerance

    def _describe(self, grey: Matrix) -> Matrix:
        (_, H, W), (h, w) = grey.shape, self.size
        small = area_weights(H, h) @ grey @ area_weights(W, w).T  # (h, H) @ (M, H, W) @ (W, w) -> (M, h, w)
        rows = small.reshape(len(small), h * w)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)  # (M, 1)
        return rows / np.where(lengths > 0, lengths, 1)  # a black picture stays black

    def _compare(self, rows: Rows) -> Matrix:
        starts = range(0, len(rows), PICTURES_AT_A_TIME)
        return np.concatenate([-self._residuals(rows[start : start + PICTURES_AT_A_TIME].T) for start in starts])

    def _residuals(self, y: Rows) -> Matrix:
        """What each person leaves unexplained of pictures in columns (P, M): its length, (M, K)."""
        A = self._known.T  # (P, N)
        x, e = sparse_codes(A, y, self.penalty, self.iterations, self.tolerance)  # (N, M), (P, M)
        uncovered = y - e
        people = [slice(start, end) for start, end in zip(self._starts, [*self._starts[1:], len(x)], strict=True)]
        left = [np.linalg.norm(uncovered - A[:, own] @ x[own], axis=0) for own in people]  # K of (M,)
        return np.stack(left, axis=1).astype(np.float64)


class LBPHistograms(GreyPictures):
    """The nearest training picture by histograms of local binary patterns, window by window.

    As in the paper: the LBP^{u2}_{8,2} codes of `lbp_codes` and `UNIFORM_BINS`, counted in each window of a grid, are
    compared by the distance  χ²(a, b) = Σ (a - b)² / (a + b)  over all windows and bins. All windows weigh the same;
    the paper's weights were learned, on other faces. Its 7x7 windows had 18x21 pixels, those of a 64x64 picture have
    8x8 or 9x9. The paper's grid is kept. (On ORL training pictures alone, as for `SparseRepresentation`, 7x7 names
    90.0 % of the clean and 80.0 % of the masked pictures, 5x5 90.3 and 81.2 %, 3x3 93.4 and 75.6 %.)

    Args:
        shape: of the pictures, see `GreyPictures`.
        grid: windows along each side; they differ in size by at most one pixel.

    """

    def __init__(self, shape: Shape, grid: int = 7) -> None:
        super().__init__(shape)
        if grid < 1:
            raise ValueError(f"expected a grid of at least 1, got {grid}")
        if min(shape[:2]) < grid + 2 * RADIUS:
            least = f"{grid + 2 * RADIUS}x{grid + 2 * RADIUS}"
            raise ValueError(
                f"expected pictures of at least {least} pixels for {grid}x{grid} windows, got {shape[0]}x{shape[1]}"
            )
        self.grid = grid

    def _describe(self, grey: Matrix) -> NDArray[np.intp]:
        return lbp_histograms(grey, self.grid)

    def _distances(self, rows: Rows) -> Matrix:
        return chi_square_distances(rows, self._known)


def occlusion_baselines(shape: Shape) -> dict[str, Callable[[], PixelNN]]:
    """The baselines for covered faces by the names they have in tables, as makers of fresh ones.

    They are not among `BASELINES` as they take much longer; `evaluate_baselines` takes them as an argument.

    Args:
        shape: (H, W) or (H, W, C) of the pictures.

    """
    return {
        "sparse representation": lambda: SparseRepresentation(shape),
        "LBP histograms": lambda: LBPHistograms(shape),
    }


# Sparse representation.

THRESHOLD = 1 / 30  # how much nearer to zero an iteration brings numbers; 1/10 and 1/100 get to the same z more slowly
RELAXATION = 1.6  # how far beyond each solution to step; 1.5 to 1.8 is usual


def sparse_codes(
    A: NDArray[Floating], y: NDArray[Floating], penalty: float, iterations: int = 300, tolerance: float = 1e-3
) -> tuple[NDArray[Floating], NDArray[Floating]]:
    """The x and e that minimise  ½‖y - A x - e‖² + λ (‖x‖₁ + ‖e‖₁), for many y at once.

    With B = [A I] and z = [x; e] that is the lasso, solved by the alternating direction method of multipliers (S. Boyd,
    N. Parikh, E. Chu, B. Peleato and J. Eckstein, "Distributed optimization and statistical learning via ADMM",
    Foundations and Trends in Machine Learning 3(1), 2011, section 6.4). In turn,

        w = argmin ½‖y - B w‖² + ½ρ‖w - (z - u)‖² = v + Bᵀ (B Bᵀ + ρ I)⁻¹ (y - B v)   with v = z - u,
        z = w + u with its numbers brought nearer to zero by λ/ρ, and u = what that took away.

    B Bᵀ = A Aᵀ + I is only as large as a picture is, and inverted once. Proximal gradient steps, accelerated too
    (FISTA), need 10 to 20 times as many iterations: faces look so alike that the largest eigenvalue of A Aᵀ is
    almost N, and their steps are as short as that is large. ρ is λ / `THRESHOLD`.

    Args:
        A: (P, N), columns of about unit length.
        y: (P, M), columns of about unit length.
        penalty: λ, above 0.
        iterations: most iterations.
        tolerance: iterating ends when no column of z differs from its w, nor z from the z before, by more than this
            share of z's length; 0 for all iterations.

    Returns:
        x (N, M) and e (P, M). e is the best one for that x: y - A x, its numbers brought nearer to zero by λ.

    Raises:
        ValueError: wrong shapes, or an option out of range.

    """
    if A.ndim != 2 or y.ndim != 2 or len(A) != len(y):
        raise ValueError(f"expected A (P, N) and y (P, M), got {A.shape} and {y.shape}")
    _check_options(penalty, iterations, tolerance)
    (P, N), M = A.shape, y.shape[1]
    rho = penalty / THRESHOLD
    product = (A @ A.T).astype(np.float64)  # (P, N) @ (N, P)
    inverse = np.linalg.inv(product + (1 + rho) * np.eye(P)).astype(A.dtype)  # (P, P)
    z = np.zeros((N + P, M), A.dtype)
    u = np.zeros_like(z)
    for _ in range(iterations):
        w = z - u
        q = inverse @ (y - A @ w[:N] - w[N:])  # (P, P) @ ((P, M) - (P, N) @ (N, M) - (P, M))
        w[:N] += A.T @ q  # (N, P) @ (P, M)
        w[N:] += q
        relaxed = RELAXATION * w - (RELAXATION - 1) * z + u
        u = np.clip(relaxed, -THRESHOLD, THRESHOLD)
        before, z = z, relaxed - u
        off = np.maximum(_squares(z - w), _squares(z - before))  # (M,)
        if (off <= tolerance**2 * _squares(z)).all():
            break
    x = z[:N]
    rest = y - A @ x
    return x, rest - np.clip(rest, -penalty, penalty)


def area_weights(many: int, few: int) -> Matrix:
    """Weights (few, many) that average `many` neighbours to `few`, each over an equal length, split where need be."""
    edges = np.arange(few + 1) * (many / few)
    pixels = np.arange(many)
    overlap = np.minimum(edges[1:, np.newaxis], pixels + 1) - np.maximum(edges[:-1, np.newaxis], pixels)
    return np.maximum(overlap, 0) * (few / many)  # (few, many)


def _squares(columns: NDArray[Floating]) -> NDArray[Floating]:
    """The squared length of each column, (n, M) -> (M,)."""
    return np.einsum("nm,nm->m", columns, columns)


def _check_options(penalty: float, iterations: int, tolerance: float) -> None:
    if not 0 < penalty < np.inf:
        raise ValueError(f"expected a penalty above 0, got {penalty}")
    if iterations < 1:
        raise ValueError(f"expected at least 1 iteration, got {iterations}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"expected a tolerance from 0 to below 1, got {tolerance}")


# Local binary patterns.

RADIUS = 2
NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""The directions (down, right) of the 8 neighbours, counter-clockwise from the right; the first is a code's bit 0."""
ROUNDING = 1e-9  # a neighbour darker by less than this share of a picture's largest value is as bright


def _uniform_bins() -> NDArray[np.intp]:
    codes = np.arange(256)
    turned = (codes << 1 | codes >> 7) & 255
    uniform = np.bitwise_count(codes ^ turned) <= 2
    bins = np.full(256, uniform.sum())
    bins[uniform] = np.arange(uniform.sum())
    return bins


UNIFORM_BINS = _uniform_bins()
"""The bin of each code (256,): 0 to 57 for those that change between 0 and 1 at most twice on the way around, in
ascending order, and 58 for all others."""
BINS = 59


def lbp_codes(grey: Matrix) -> NDArray[np.uint8]:
    """Which of its 8 neighbours, on a circle of radius 2, are at least as bright as a pixel: a bit for each.

    Pixels nearer than 2 to the border have no such circle and get no code. Neighbours in the diagonal directions lie
    between pixels; their brightness is interpolated from four. Adding to all brightnesses or multiplying them changes
    no code.

    Args:
        grey: (M, H, W), each side at least 5.

    Returns:
        (M, H - 4, W - 4), 0 to 255.

    """
    _, H, W = grey.shape
    centre = grey[:, RADIUS : H - RADIUS, RADIUS : W - RADIUS]  # (M, h, w)
    least = -ROUNDING * np.abs(grey).max(axis=(1, 2), keepdims=True)  # (M, 1, 1)
    far = math.sqrt(2) - 1  # a diagonal neighbour is at √2 along each axis, so much of the way from pixel 1 to 2
    near = 1 - far

    def brighter(down: int, right: int) -> Matrix:
        rows, columns = slice(RADIUS + down, H - RADIUS + down), slice(RADIUS + right, W - RADIUS + right)
        return grey[:, rows, columns] - centre

    codes = np.zeros(centre.shape, np.uint8)
    for bit, (down, right) in enumerate(NEIGHBOURS):
        more = brighter(2 * down, 2 * right)
        if down and right:
            beside = brighter(2 * down, right) + brighter(down, 2 * right)
            more = far * far * more + far * near * beside + near * near * brighter(down, right)
        codes |= (more >= least).astype(np.uint8) << np.uint8(bit)
    return codes


def lbp_histograms(grey: Matrix, grid: int) -> NDArray[np.intp]:
    """How often each bin of `UNIFORM_BINS` occurs in each of grid x grid windows: (M, H, W) -> (M, grid·grid·59)."""
    bins = UNIFORM_BINS[lbp_codes(grey)]  # (M, h, w)
    M, h, w = bins.shape
    windows = (np.arange(h) * grid // h)[:, np.newaxis] * grid + np.arange(w) * grid // w  # (h, 1) + (w,) -> (h, w)
    pictures = np.arange(M)[:, np.newaxis, np.newaxis]  # (M, 1, 1)
    places = (pictures * grid**2 + windows) * BINS + bins  # (M, h, w)
    return np.bincount(places.ravel(), minlength=M * grid**2 * BINS).reshape(M, grid**2 * BINS)


def chi_square_distances(a: Rows, b: Rows) -> Matrix:
    """Σ (a - b)² / (a + b) between rows (M, P) and rows (N, P) of counts: (M, N); 0/0 counts as 0.

    As (a - b)² = (a + b)² - 4ab, it is  Σ a + Σ b - 4 Σ a · b/(a + b). Slices of b stay in the cache for all of a.
    """
    shares = np.empty((len(a), len(b)))
    scratch = np.empty((min(len(b), PICTURES_AT_A_TIME), b.shape[1]), b.dtype)
    for start in range(0, len(b), PICTURES_AT_A_TIME):
        some = b[start : start + PICTURES_AT_A_TIME]  # (n, P)
        share = scratch[: len(some)]
        for m, row in enumerate(a):
            np.add(some, row + 1e-12, out=share)  # counts are whole: this changes a sum of 0 only
            np.divide(some, share, out=share)
            shares[m, start : start + PICTURES_AT_A_TIME] = share @ row  # (n, P) @ (P,) -> (n,)
    totals = a.sum(axis=1, dtype=np.float64)[:, np.newaxis] + b.sum(axis=1, dtype=np.float64)  # (M, 1) + (N,)
    return np.maximum(totals - 4 * shares, 0.0)


def _grey(pictures: Matrix) -> Matrix:
    """Pictures (M, H, W), (M, H, W, 1) or (M, H, W, 3) as grey ones (M, H, W)."""
    if pictures.ndim == 3:
        return pictures
    return pictures @ LUMA if pictures.shape[3] == 3 else pictures[..., 0]
