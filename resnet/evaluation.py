"""How good are the answers: rank-k accuracy.

Letters: N pictures, K people (classes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def rank_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """The share of pictures whose true person is among the k highest scores; k = 1 is plain accuracy.

    Ties count against: the true person's place is one plus the number of others who score as high or higher. So the
    result does not hang on the order of people, and a network that says the same of everybody is right about nobody.

    Args:
        scores: (N, K), higher means more likely; any real scale, infinities allowed.
        labels: (N,) whole numbers from 0 to K - 1.
        k: from 1 to K.

    Returns:
        from 0 to 1.

    Raises:
        ValueError: wrong shapes, no pictures, a score that is not a number, a label or k out of range.

    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"expected scores (N, K) of at least one picture and one person, got {scores.shape}")
    N, K = scores.shape
    if labels.shape != (N,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected labels as whole numbers ({N},), got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"expected labels from 0 to {K - 1}, got {labels.min()} to {labels.max()}")
    if not 1 <= k <= K:
        raise ValueError(f"expected k from 1 to {K}, the number of people, got {k}")
    undefined = np.isnan(scores).any(axis=1)
    if undefined.any():
        raise ValueError(f"{undefined.sum()} pictures have scores that are not a number, first {undefined.argmax()}")
    true_scores = np.take_along_axis(scores, labels[:, np.newaxis], axis=1)  # (N, K), (N, 1) -> (N, 1)
    rivals = (scores >= true_scores).sum(axis=1) - 1  # (N,), not counting the true person
    return float((rivals < k).mean())
