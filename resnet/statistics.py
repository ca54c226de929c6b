"""Is it more than chance: an interval for a mean, tests of paired differences, and how alike two orders are.

NumPy and the standard library only. "Two-sided p" is the probability, if there were no difference at all, of one at
least as large as that observed, in either direction.

Letters: n values or pairs, m random draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

EXACT_UP_TO = 16  #: values whose 2ⁿ sign flips are all tried
SIGN_DRAWS = 100_000  #: random sign flips beyond that
NUMBERS_AT_ONCE = 2**20  #: random numbers held at a time, 8 MiB


def bootstrap_interval(
    values: ArrayLike, rng: np.random.Generator, *, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """A confidence interval for the mean: the middle of the means of `resamples` samples drawn from the values.

    Each sample has n values drawn with replacement; the bounds are the quantiles (1 ± confidence) / 2 of their means
    (percentile interval). It is too narrow for few values: a sample's spread is divided by n where n - 1 would be
    fair, which makes it about √((n - 1) / n) times as wide as it should be, and it does without the t distribution's
    wider tails. Together, for 95 % at n = 5, that is about 0.63 times the width of the t interval: T. Hesterberg, "What
    teachers should know about the bootstrap", The American Statistician 69(4), 2015.

    Values are drawn one by one, so they must be independent: pictures of one person are not, means a person are.

    Args:
        values: (n,) finite, n >= 2.
        rng: source of the draws; the same state gives the same interval.
        confidence: between 0 and 1.
        resamples: m, at least 1; some thousands for bounds that hardly depend on the draws.

    Returns:
        lower and upper bound.

    Raises:
        ValueError: wrong shape, fewer than two values, one not finite, `confidence` or `resamples` out of range.

    """
    values = _checked_numbers("values", values, 2)
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}")
    n = len(values)
    means = [values[rng.integers(0, n, (rows, n))].mean(axis=1) for rows in _portions(resamples, n)]
    lower, upper = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lower), float(upper)


def sign_flip_test(differences: ArrayLike, rng: np.random.Generator | None = None) -> float:
    """Two-sided p that paired differences have mean zero: how often do random signs give a mean as far from zero?

    If a pair's two sides are exchangeable, its difference is as likely with the other sign (R. Fisher, "The Design of
    Experiments", 1935, §21). Zeros stay in; they change nothing. Up to n = 16 all 2ⁿ choices of signs are counted, the
    observed among them, so p is at least 2 / 2ⁿ: five pairs cannot go below 0.0625. Beyond, m = 100 000 choices are
    drawn, b of them at least as far from zero, and p = (b + 1) / (m + 1), which is never zero: B. Phipson and G. Smyth,
    "Permutation p-values should never be zero", Statistical Applications in Genetics and Molecular Biology 9(1), 2010.

    Args:
        differences: (n,) finite, n >= 1. Sums that differ by a rounding count as equal.
        rng: source of the draws, needed for n > 16.

    Raises:
        ValueError: wrong shape, no values, one not finite, or no `rng` where it is needed.

    """
    differences = _checked_numbers("differences", differences, 1)
    n = len(differences)
    enough = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if n <= EXACT_UP_TO:
        flipped = np.arange(2**n)[:, np.newaxis] >> np.arange(n) & 1  # (2ⁿ, n) of 0 and 1: every choice once
        return float((_flipped_sums(differences, flipped) >= enough).mean())
    if rng is None:
        raise ValueError(f"more than {EXACT_UP_TO} differences, here {n}, need rng to draw signs")
    extreme = 0
    for rows in _portions(SIGN_DRAWS, n):
        extreme += int((_flipped_sums(differences, rng.integers(0, 2, (rows, n))) >= enough).sum())
    return (extreme + 1) / (SIGN_DRAWS + 1)


def paired_t_test(differences: ArrayLike) -> tuple[float, float]:
    """Student's t of paired differences, and two-sided p that their mean is zero.

    t = mean / (s / √n), where s² = Σ (d - mean)² / (n - 1). With ν = n - 1 degrees of freedom and
    x = ν / (ν + t²), p is the regularised incomplete beta function I_x(ν/2, 1/2) (Abramowitz and Stegun, 26.5.27).
    Exact for normally distributed differences, good for others where n is large.

    Args:
        differences: (n,) finite, n >= 2, not all equal.

    Returns:
        t and p.

    Raises:
        ValueError: wrong shape, fewer than two values, one not finite, or all equal (but for rounding), so that
            nothing says how far their mean is to be trusted.

    """
    differences = _checked_numbers("differences", differences, 2)
    n, mean, spread = len(differences), differences.mean(), differences.std(ddof=1)
    if spread <= 1e-12 * np.abs(differences).max():
        raise ValueError(f"expected differences that are not all equal, got {n} times {mean}")
    t = float(mean / (spread / math.sqrt(n)))
    freedom = n - 1
    return t, _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t), t * t / (freedom + t * t))


def mcnemar_test(first_right: ArrayLike, second_right: ArrayLike) -> float:
    """Two-sided p that two classifiers, asked about the same pictures, are equally often right.

    Only pictures about which exactly one is right tell them apart. Of d such, the first would be right about k with
    probability C(d, k) / 2ᵈ; so p = min(1, 2 P(k <= the lesser of the two counts)), and 1 if d = 0. This is the exact
    form of Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12(2), 1947.

    Args:
        first_right: (n,) booleans, n >= 1: was the first right about each picture?
        second_right: (n,) booleans, of the same pictures.

    Raises:
        ValueError: wrong shapes, no pictures, or no booleans.

    """
    first, second = np.asarray(first_right), np.asarray(second_right)
    if first.dtype != bool or second.dtype != bool or first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(
            f"expected two times booleans (n,), at least one, got {first.dtype} {first.shape} and "
            f"{second.dtype} {second.shape}"
        )
    only_first, only_second = (int(np.count_nonzero(those)) for those in (first & ~second, ~first & second))
    deciding = only_first + only_second
    ways, tail = 1, 0  # C(d, k) and its sum, in whole numbers of any size
    for k in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (deciding - k) // (k + 1)
    return min(1.0, 2 * tail / 2**deciding)


def kendall_tau(order: ArrayLike) -> float:
    """Kendall's rank correlation of an order with the ascending one: 1 if ascending, -1 if descending.

    τ = (C - D) / (n (n - 1) / 2), where C pairs ascend and D descend: M. Kendall, "A new measure of rank correlation",
    Biometrika 30, 1938. Looks at every pair, row by row.

    Args:
        order: (n,) distinct whole numbers, n >= 2.

    Raises:
        ValueError: wrong shape, fewer than two, no whole numbers, or one that comes twice.

    """
    order = np.asarray(order)
    if order.ndim != 1 or order.size < 2 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"expected an order of whole numbers (n,), at least two, got {order.dtype} {order.shape}")
    n = len(order)
    if len(np.unique(order)) < n:
        raise ValueError(f"expected distinct numbers, got {len(np.unique(order))} among {n}")
    ascending = sum(int(np.count_nonzero(order[i + 1 :] > order[i])) for i in range(n - 1))
    pairs = n * (n - 1) // 2
    return (2 * ascending - pairs) / pairs  # D = pairs - C


def _flipped_sums(differences: Floats, flipped: NDArray[np.int64]) -> Floats:
    """How far from zero the sum is with some signs changed, (rows, n) of 0 and 1 -> (rows,): |Σ d - 2 Σ flipped d|."""
    return np.abs(differences.sum() - 2 * (flipped @ differences))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), the share of the beta distribution below x, where rest = 1 - x, given apart to keep its digits.

    I_x(a, b) = xᵃ (1 - x)ᵇ / (a B(a, b)) · 1 / (1 + d₁ / (1 + d₂ / (1 + …))), worked out from the far end (Digital
    Library of Mathematical Functions, 8.17.22). It converges fast below about the mean; above it,
    I_x(a, b) = 1 - I₁₋ₓ(b, a).
    """
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, rest, x)
    if x == 0:
        return 0.0
    fraction = 1.0
    for j in range(100 + int(5 * math.sqrt(max(a, b))), -1, -1):
        even = (j + 1) * (b - j - 1) * x / ((a + 2 * j + 1) * (a + 2 * j + 2))  # d with number 2j + 2
        odd = -(a + j) * (a + b + j) * x / ((a + 2 * j) * (a + 2 * j + 1))  # d with number 2j + 1
        fraction = 1 + odd / (1 + even / fraction)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(logarithm) / (a * fraction)


def _portions(total: int, width: int) -> Iterator[int]:
    """Cut `total` rows of `width` numbers into portions that fit in memory: the number of rows in each."""
    rows = max(1, NUMBERS_AT_ONCE // width)
    for start in range(0, total, rows):
        yield min(rows, total - start)


def _checked_numbers(name: str, values: ArrayLike, least: int) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size < least:
        raise ValueError(f"expected {name} (n,), at least {least}, got {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(numbers))} {name} are not finite")
    return numbers
