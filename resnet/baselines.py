"""What a network has to beat: three classic ways to recognise faces, each a few lines of linear algebra.

Each keeps the training pictures and answers with the person of the nearest one. They differ in the space in which
"near" is measured:

- pixel 1-NN: the pixels themselves;
- eigenfaces: the directions in which faces vary most, by principal components (M. Turk and A. Pentland, "Eigenfaces
  for recognition", Journal of Cognitive Neuroscience 3(1), 1991);
- Fisherfaces: the directions in which people differ most for how much one person's pictures differ, by Fisher's
  discriminant (P. Belhumeur, J. Hespanha and D. Kriegman, "Eigenfaces vs. Fisherfaces", IEEE PAMI 19(7), 1997).

Two that are made for covered faces, and take longer, are in `resnet.occlusion_baselines`.

Letters: N training pictures, M pictures to name, D pixels (times channels) in one, K people, P dimensions kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet.data.faces import Faces
from resnet.evaluation import rank_k_accuracy

Matrix = NDArray[np.float64]
Rows = NDArray[np.floating]


class TooFewPicturesError(ValueError):
    """No person has two training pictures, so how one person's pictures differ cannot be learned."""


class PixelNN:
    """The nearest training picture, pixel by pixel (Euclidean distance)."""

    def fit(self, pictures: ArrayLike, labels: ArrayLike) -> Self:
        """Learn from pictures (N, D) and the people in them (N,), numbered 0 to K - 1; returns itself.

        Raises:
            ValueError: wrong shapes, values that are not finite, or a number below K without a picture.

        """
        pictures, labels = _checked_pictures(pictures), np.asarray(labels)
        if labels.shape != (len(pictures),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"expected labels as whole numbers ({len(pictures)},), got {labels.dtype} {labels.shape}")
        if labels.min() < 0:
            raise ValueError(f"expected labels from 0 on, got {labels.min()}")
        counts = np.bincount(labels)
        if not counts.all():
            raise ValueError(f"no training picture for the labels {np.flatnonzero(counts == 0).tolist()}")
        order = np.argsort(labels, kind="stable")
        pictures = pictures[order]
        self._learn(pictures, labels[order])
        self._pixels = pictures.shape[1]
        self._known = self._project(pictures)  # (N, P), one person's pictures side by side
        self._starts = np.cumsum(counts) - counts  # (K,), where each person's pictures begin
        return self

    def scores(self, pictures: ArrayLike) -> Matrix:
        """How likely each picture (M, D) shows each person, (M, K): minus the distance to that person's nearest one.

        Raises:
            ValueError: not fitted yet, wrong shape, or values that are not finite.

        """
        if not hasattr(self, "_known"):
            raise ValueError("fit(pictures, labels) must come before scores or predict")
        pictures = _checked_pictures(pictures)
        if pictures.shape[1] != self._pixels:
            raise ValueError(f"expected pictures of {self._pixels} values like those fitted, got {pictures.shape[1]}")
        return self._compare(self._project(pictures))

    def predict(self, pictures: ArrayLike) -> NDArray[np.intp]:
        """The number of the nearest person for each picture (M, D) -> (M,); the lower number wins a tie."""
        return self.scores(pictures).argmax(axis=1)

    def _learn(self, pictures: Matrix, labels: NDArray[np.integer]) -> None:
        """Find the space to measure in, from pictures (N, D) sorted by label."""

    def _project(self, pictures: Matrix) -> Rows:
        """Pictures (M, D) in the space to measure in, (M, P)."""
        return pictures

    def _compare(self, rows: Rows) -> Matrix:
        """The scores (M, K) of projected pictures (M, P)."""
        return -np.minimum.reduceat(self._distances(rows), self._starts, axis=1)  # (M, N) -> (M, K)

    def _distances(self, rows: Rows) -> Matrix:
        """How far projected pictures (M, P) are from the known ones (N, P): (M, N)."""
        return euclidean_distances(rows, self._known)


class Eigenfaces(PixelNN):
    """The nearest training picture among the first principal components."""

    def __init__(self, components: int = 100) -> None:
        if components < 1:
            raise ValueError(f"expected at least 1 component, got {components}")
        self.components = components

    def _learn(self, pictures: Matrix, labels: NDArray[np.integer]) -> None:
        self._mean = pictures.mean(axis=0)
        self._basis = principal_components(pictures - self._mean, self.components)  # (D, P)

    def _project(self, pictures: Matrix) -> Matrix:
        return (pictures - self._mean) @ self._basis  # (M, D) @ (D, P) -> (M, P)


class Fisherfaces(PixelNN):
    """The nearest training picture along Fisher's discriminants, found among the principal components.

    Pictures have far more pixels than there are pictures, so the scatter within people, W, cannot be inverted as it
    stands. As in the paper, pictures are first projected on N - K principal components, where it can. But the
    least of W's eigenvalues are chance there, and inverting makes them count most: bare, this gets 42 % right on the
    ORL faces (64x64, 5 pictures a person). With `shrinkage` times its mean diagonal added to W's diagonal, 95 %.
    """

    def __init__(self, shrinkage: float = 0.1) -> None:
        if not 0 < shrinkage < np.inf:
            raise ValueError(f"expected a shrinkage above 0, got {shrinkage}")
        self.shrinkage = shrinkage

    def _learn(self, pictures: Matrix, labels: NDArray[np.integer]) -> None:
        N, K = len(pictures), int(labels[-1]) + 1
        if N <= K:
            raise TooFewPicturesError(
                f"Fisherfaces needs more training pictures than people to see how one person's pictures differ, "
                f"got {N} pictures of {K} people: 1 picture a person is too few, give 2 or more"
            )
        self._mean = pictures.mean(axis=0)
        centred = pictures - self._mean
        components = principal_components(centred, N - K)  # (D, P)
        rows = centred @ components  # (N, D) @ (D, P) -> (N, P)
        self._basis = components @ fisher_discriminants(rows, labels, self.shrinkage)  # (D, P) @ (P, K - 1)

    def _project(self, pictures: Matrix) -> Matrix:
        return (pictures - self._mean) @ self._basis  # (M, D) @ (D, K - 1) -> (M, K - 1)


BASELINES: dict[str, Callable[[], PixelNN]] = {
    "pixel 1-NN": PixelNN,
    "eigenfaces": Eigenfaces,
    "Fisherfaces": Fisherfaces,
}
"""The baselines by the names they have in tables, as makers of fresh ones."""


def principal_components(centred: Matrix, count: int) -> Matrix:
    """The orthonormal directions along which rows (N, D) of mean zero vary most, strongest first: (D, P).

    P is `count`, or less where the rows vary in fewer directions. With more pixels than pictures, the eigenvectors of
    the small X Xᵀ (N, N) are found instead of those of XᵀX (D, D), as Turk and Pentland do: if X Xᵀ u = λ u, then
    XᵀX (Xᵀu) = λ (Xᵀu), and Xᵀu has the length √λ.
    """
    N, D = centred.shape
    if N > D:
        return _strongest(centred.T @ centred, count)[1]  # (D, N) @ (N, D) -> (D, D); (D, P)
    values, vectors = _strongest(centred @ centred.T, count)  # (N, D) @ (D, N) -> (N, N); (P,), (N, P)
    return centred.T @ vectors / np.sqrt(values)  # (D, N) @ (N, P) / (P,) -> (D, P)


def fisher_discriminants(rows: Matrix, labels: NDArray[np.integer], shrinkage: float) -> Matrix:
    """The directions v that make vᵀBv large for vᵀWv = 1, strongest first: (P, K - 1), or (P, P) if P is less.

    B is the scatter of people's means, W that of pictures about their person's mean, with `shrinkage` times its mean
    diagonal added to the diagonal. They solve B v = λ W v. As B = G Gᵀ with only K columns in G, that large problem is
    a small one in disguise: if GᵀW⁻¹G u = λ u (K, K), then v = W⁻¹G u / √λ.

    Args:
        rows: (N, P) of mean zero.
        labels: (N,), 0 to K - 1, each at least once.
        shrinkage: above 0 if W may be singular.

    """
    counts = np.bincount(labels)
    K, P = len(counts), rows.shape[1]
    sums = np.zeros((K, P))
    np.add.at(sums, labels, rows)  # rows (N, P) into (K, P)
    means = sums / counts[:, np.newaxis]  # (K, P)
    deviations = rows - means[labels]  # (N, P)
    W = deviations.T @ deviations  # (P, N) @ (N, P) -> (P, P)
    W[np.diag_indices(P)] += shrinkage * np.trace(W) / P
    G = means.T * np.sqrt(counts)  # (P, K)
    Z = np.linalg.solve(W, G)  # (P, P), (P, K) -> (P, K)
    values, vectors = _strongest(G.T @ Z, min(K - 1, P))  # (K, P) @ (P, K) -> (K, K)
    return Z @ vectors / np.sqrt(values)  # (P, K) @ (K, K - 1) / (K - 1,) -> (P, K - 1)


def evaluate_baselines(
    train: Faces, tests: Mapping[str, Faces], baselines: Mapping[str, Callable[[], PixelNN]] = BASELINES
) -> dict[str, dict[str, float]]:
    """Rank-1 accuracy of every baseline, trained on `train`, on every test set: result[baseline][test], 0 to 1.

    Fisherfaces cannot learn from one picture a person; its accuracy is then NaN.

    Raises:
        ValueError: a test set has pictures of another shape or other people than the training set.

    """
    for name, test in tests.items():
        if test.pictures.shape[1:] != train.pictures.shape[1:]:
            raise ValueError(
                f"test set {name!r} has pictures {test.pictures.shape[1:]}, training {train.pictures.shape[1:]}"
            )
        if test.people != train.people:
            raise ValueError(f"test set {name!r} has other people than the training set, or in another order")
    return {name: _evaluate(make(), train, tests) for name, make in baselines.items()}


def _evaluate(baseline: PixelNN, train: Faces, tests: Mapping[str, Faces]) -> dict[str, float]:
    try:
        baseline.fit(_rows(train), train.labels)
    except TooFewPicturesError:
        return dict.fromkeys(tests, float("nan"))
    return {name: rank_k_accuracy(baseline.scores(_rows(test)), test.labels) for name, test in tests.items()}


def _rows(faces: Faces) -> Matrix:
    return faces.pictures.reshape(len(faces), -1) / 255.0  # (N, H, W, C) -> (N, H·W·C)


def _strongest(symmetric: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """The `count` largest eigenvalues (P,) and their eigenvectors as columns (n, P), largest first; no zeros."""
    values, vectors = np.linalg.eigh(symmetric)  # ascending
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[0] * len(values) * np.finfo(np.float64).eps
    kept = min(count, int((values > noise).sum()))
    return values[:kept], vectors[:, :kept]


def euclidean_distances(a: Rows, b: Rows) -> Matrix:
    """Euclidean distances between rows (M, P) and rows (N, P): (M, N), by ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b."""
    squares = (a * a).sum(axis=1)[:, np.newaxis] + (b * b).sum(axis=1) - 2 * a @ b.T  # (M, 1) + (N,) - (M, N)
    return np.sqrt(np.maximum(squares, 0.0))  # rounding may leave a tiny negative for equal rows


def _checked_pictures(pictures: ArrayLike) -> Matrix:
    rows = np.asarray(pictures, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"expected pictures as rows (N, D), at least one, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(rows))} values of the pictures are not finite")
    return rows
