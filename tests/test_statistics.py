"""Intervals and tests of significance: by hand, by counting, and against SciPy where it is installed."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet import statistics
from resnet.statistics import bootstrap_interval, kendall_tau, mcnemar_test, paired_t_test, sign_flip_test

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def stats():
    return pytest.importorskip(
        "scipy.stats", exc_type=ImportError, reason="SciPy, the independent source, is not installed"
    )


class TestBootstrap:
    def test_two_values_by_hand(self, rng):
        # four samples, equally likely: means 0, 1/2, 1/2, 1
        assert bootstrap_interval([0.0, 1.0], rng, confidence=0.9) == (0.0, 1.0)
        assert bootstrap_interval([0.0, 1.0], rng, confidence=0.4) == (0.5, 0.5)

    def test_three_values_by_counting(self, rng):
        # Of 27 samples 1 has mean 0 and 3 have 1/3, so the lowest 5 % end among the latter. From above: 1 has mean 3,
        # 3 have 7/3.
        assert bootstrap_interval([0.0, 1.0, 3.0], rng, confidence=0.9) == pytest.approx((1 / 3, 7 / 3))

    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    def test_width_for_many_normal_values(self, rng, confidence):
        values = rng.normal(5, 2, 400)
        lower, upper = bootstrap_interval(values, rng, confidence=confidence)
        z = {0.8: 1.2816, 0.95: 1.9600}[confidence]
        assert upper - lower == pytest.approx(2 * z * values.std() / 20, rel=0.03)
        assert (lower + upper) / 2 == pytest.approx(values.mean(), abs=0.02)

    def test_too_narrow_for_few_values_as_documented(self, rng):
        widths = []
        for _ in range(200):
            values = rng.normal(size=5)
            lower, upper = bootstrap_interval(values, rng, resamples=1000)
            widths.append((upper - lower) / (2 * 2.776 * values.std(ddof=1) / math.sqrt(5)))
        assert np.mean(widths) == pytest.approx(0.63, abs=0.02)

    def test_covers_the_true_mean_about_as_often_as_it_says(self, rng):
        hits = 0
        for _ in range(400):
            lower, upper = bootstrap_interval(rng.normal(size=60), rng, confidence=0.9, resamples=500)
            hits += lower <= 0 <= upper
        assert hits / 400 == pytest.approx(0.9, abs=0.045)  # three standard errors

    @pytest.mark.parametrize("n", [5, 40])
    def test_equals_scipy(self, stats, rng, n):
        values = rng.exponential(size=n)
        expected = stats.bootstrap((values,), np.mean, method="percentile", random_state=1).confidence_interval
        width = expected.high - expected.low
        assert bootstrap_interval(values, rng) == pytest.approx(tuple(expected), abs=0.03 * width)

    def test_same_generator_same_interval(self):
        values = np.arange(10) ** 2
        first, second, other = (bootstrap_interval(values, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first == second != other

    def test_portions_do_not_change_the_interval(self, monkeypatch):
        values = np.arange(10) ** 2
        whole = bootstrap_interval(values, np.random.default_rng(0), resamples=999)
        monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 64)
        assert bootstrap_interval(values, np.random.default_rng(0), resamples=999) == pytest.approx(whole, rel=1e-12)

    def test_memory_is_bounded(self, rng):
        values = rng.normal(size=100_000)
        tracemalloc.start()
        bootstrap_interval(values, rng, resamples=60)  # 96 MB if drawn at once
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40e6

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([1.0], {}, r"values \(n,\), at least 2, got \(1,\)"),
            ([[1.0, 2.0]], {}, r"\(1, 2\)"),
            ([1.0, np.nan, np.inf], {}, "2 values are not finite"),
            ([1.0, 2.0], {"confidence": 0}, "confidence between 0 and 1, got 0"),
            ([1.0, 2.0], {"confidence": 95}, "got 95"),
            ([1.0, 2.0], {"confidence": np.nan}, "got nan"),
            ([1.0, 2.0], {"resamples": 0}, "at least 1 resample, got 0"),
        ],
    )
    def test_wrong_input(self, rng, values, options, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(values, rng, **options)


class TestSignFlip:
    @pytest.mark.parametrize(
        ("differences", "p"),
        [
            ([1, 2, 3], 2 / 8),  # only +++ and --- reach 6
            ([-1, 2, 3], 4 / 8),  # sums ±6, ±4 (observed), ±2 and ±0: four as far as 4
            ([1, 2, 3, 0], 4 / 16),  # a zero doubles both counts
            ([5], 1.0),
            ([1, -1], 1.0),
            ([0, 0, 0], 1.0),
            ([1] * 16, 2 / 2**16),
        ],
    )
    def test_by_hand(self, differences, p):
        assert sign_flip_test(differences) == p
        assert sign_flip_test(np.negative(differences)) == p

    def test_rounding_makes_no_difference(self):
        assert sign_flip_test([0.1, 0.2, -0.3]) == 1  # their sum is 2.8e-17, others' 0
        # Tenths add up to the same in any order only but for a rounding: as the whole numbers do.
        tenths, wholes = np.array([7, -1, 3, 2, 3, -6, 1, 3, 4, -2]) / 10, [7, -1, 3, 2, 3, -6, 1, 3, 4, -2]
        for _ in range(10):
            assert sign_flip_test(tenths) == sign_flip_test(wholes)
            tenths = np.roll(tenths, 1)

    @given(n=st.integers(2, 9), seed=seeds, levels=st.sampled_from([3, 1_000_000]))
    def test_equals_scipy(self, stats, n, seed, levels):
        differences = np.random.default_rng(seed).integers(-levels, levels + 2, n).astype(float)
        expected = stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        # SciPy doubles the smaller tail, which is the same as the distribution is symmetric
        assert sign_flip_test(differences) == pytest.approx(min(expected.pvalue, 1.0), rel=1e-12)

    def test_many_by_drawing(self, rng):
        differences = rng.integers(-3, 5, 20)
        ways = Counter({0: 1})  # in how many ways each sum comes about
        for d in differences.tolist():
            shorter, ways = ways, Counter()
            for total, count in shorter.items():
                ways[total - d] += count
                ways[total + d] += count
        exact = sum(count for total, count in ways.items() if abs(total) >= abs(differences.sum())) / 2**20
        assert 0.05 < exact < 0.95
        assert sign_flip_test(differences, rng) == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))

    def test_drawing_never_says_impossible(self, rng):
        assert sign_flip_test(np.ones(60), rng) == 1 / 100_001
        assert sign_flip_test(np.zeros(17), rng) == 1

    def test_drawing_in_portions(self, rng, monkeypatch):
        differences = rng.normal(0.1, 1, 200)
        whole = sign_flip_test(differences, np.random.default_rng(0))
        monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 100_000)
        assert sign_flip_test(differences, np.random.default_rng(0)) == whole

    def test_few_need_no_generator_and_leave_it_alone(self):
        rng = np.random.default_rng(0)
        before = rng.bit_generator.state
        assert sign_flip_test(np.arange(16), rng) == sign_flip_test(np.arange(16))
        assert rng.bit_generator.state == before

    @pytest.mark.parametrize(
        ("differences", "message"),
        [
            ([], r"differences \(n,\), at least 1, got \(0,\)"),
            ([[1.0]], r"\(1, 1\)"),
            ([1.0, np.nan], "1 differences are not finite"),
            (np.ones(17), "more than 16 differences, here 17, need rng"),
            (np.eye(17)[0], "more than 16 differences, here 17"),  # zeros count
        ],
    )
    def test_wrong_input(self, differences, message):
        with pytest.raises(ValueError, match=message):
            sign_flip_test(differences)


class TestPairedT:
    def test_two_pairs_by_hand(self):
        # Mean 2, s² = (1² + 1²) / 1 = 2, so t = 2 / √(2/2) = 2. For one degree of freedom (Cauchy's distribution)
        # p = 1 - 2 arctan(t) / π.
        assert paired_t_test([1, 3]) == pytest.approx((2.0, 1 - 2 * math.atan(2) / math.pi), rel=1e-14)

    def test_three_pairs_by_hand(self):
        # Mean 2, s² = (1 + 0 + 1) / 2 = 1, so t = 2√3. For two degrees of freedom p = 1 - t / √(2 + t²).
        t, p = paired_t_test([-1, -2, -3])
        assert t == pytest.approx(-2 * math.sqrt(3), rel=1e-14)
        assert p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-13)

    def test_five_percent_of_the_tables(self):
        # t = 2.776 is the two-sided 5 % point at 4 degrees of freedom in any table; these have mean m and s = √2.5
        mean = 2.776445 * math.sqrt(2.5 / 5)
        assert paired_t_test(np.array([-2, -1, 0, 1, 2]) + mean)[1] == pytest.approx(0.05, rel=1e-6)

    def test_mean_zero(self):
        assert paired_t_test([-1, 1]) == (0.0, 1.0)

    @given(n=st.integers(2, 300), shift=st.floats(-2, 2), seed=seeds)
    def test_equals_scipy(self, stats, n, shift, seed):
        rng = np.random.default_rng(seed)
        first, second = rng.normal(shift, 1, n), rng.normal(0, 1, n)
        expected = stats.ttest_rel(first, second)
        t, p = paired_t_test(first - second)
        assert t == pytest.approx(expected.statistic, rel=1e-10)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)

    @pytest.mark.parametrize("freedom", [1, 2, 3, 5, 30, 1000, 100_000])
    def test_tails_of_the_t_distribution(self, stats, freedom):
        for t in (1e-6, 0.01, 0.5, 1.0, 1.7, 3.0, 10.0, 30.0):
            expected = 2 * stats.t.sf(t, freedom)
            x, rest = freedom / (freedom + t * t), t * t / (freedom + t * t)
            assert statistics._incomplete_beta(freedom / 2, 0.5, x, rest) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        ("differences", "message"),
        [
            ([1.0], r"differences \(n,\), at least 2, got \(1,\)"),
            ([1.0, np.inf], "1 differences are not finite"),
            ([0.5, 0.5, 0.5], "not all equal, got 3 times 0.5"),
            ([0.3, 0.1 + 0.2], "not all equal, got 2 times"),
            ([0, 0], "not all equal"),
        ],
    )
    def test_wrong_input(self, differences, message):
        with pytest.raises(ValueError, match=message):
            paired_t_test(differences)


def answers(only_first, only_second, both=3, neither=2):
    """Return two times booleans with so many pictures of each kind."""
    first = [True] * (only_first + both) + [False] * (only_second + neither)
    second = [False] * only_first + [True] * (both + only_second) + [False] * neither
    return first, second


class TestMcNemar:
    @pytest.mark.parametrize(
        ("only_first", "only_second", "p"),
        [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 0, 2 / 32),
            (0, 1000, 2.0**-999),  # more digits than a machine's whole numbers have
            (1, 5, 2 * (1 + 6) / 64),
            (3, 1, 2 * (1 + 4) / 16),
            (2, 2, 1.0),  # 2 (1 + 4 + 6) / 16 is more than 1
        ],
    )
    def test_by_hand(self, only_first, only_second, p):
        first, second = answers(only_first, only_second)
        assert mcnemar_test(first, second) == p
        assert mcnemar_test(second, first) == p
        assert mcnemar_test(*answers(only_first, only_second, both=70, neither=0)) == p

    @given(only_first=st.integers(0, 3000), only_second=st.integers(0, 3000))
    def test_equals_scipy(self, stats, only_first, only_second):
        expected = stats.binomtest(only_first, max(only_first + only_second, 1)).pvalue
        first, second = answers(only_first, only_second)
        if only_first + only_second:
            assert mcnemar_test(first, second) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ([True], [1], r"booleans \(n,\), at least one, got bool \(1,\) and int64 \(1,\)"),
            ([0.5], [True], "float64"),
            ([True, False], [True], r"\(2,\) and bool \(1,\)"),
            ([[True]], [[True]], r"\(1, 1\)"),
            (np.zeros(0, bool), np.zeros(0, bool), r"\(0,\)"),
        ],
    )
    def test_wrong_input(self, first, second, message):
        with pytest.raises(ValueError, match=message):
            mcnemar_test(first, second)


class TestKendall:
    @pytest.mark.parametrize(
        ("order", "tau"),
        [
            ([0, 1, 2, 3], 1.0),
            ([3, 2, 1, 0], -1.0),
            ([1, 0], -1.0),
            ([0, 2, 1, 3], 4 / 6),  # of six pairs one descends
            ([2, 0, 3, 1], 0.0),  # 2 before 0, 2 before 1 and 3 before 1 descend, three ascend
            ([40, 7, -2, 90], 0.0),
        ],
    )
    def test_by_hand(self, order, tau):
        assert kendall_tau(order) == tau

    def test_all_orders_of_five_average_out(self):
        assert math.fsum(map(kendall_tau, itertools.permutations(range(5)))) == pytest.approx(0, abs=1e-12)

    @given(n=st.integers(2, 40), seed=seeds)
    def test_equals_scipy(self, stats, n, seed):
        order = np.random.default_rng(seed).permutation(n)
        assert kendall_tau(order) == pytest.approx(stats.kendalltau(np.arange(n), order).statistic, abs=1e-12)

    def test_unsigned_numbers(self):
        assert kendall_tau(np.array([2, 1, 0], np.uint8)) == -1

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            ([0], r"whole numbers \(n,\), at least two, got int64 \(1,\)"),
            ([[0, 1]], r"\(1, 2\)"),
            ([0.0, 1.0], "float64"),
            ([0, 1, 1], "distinct numbers, got 2 among 3"),
        ],
    )
    def test_wrong_input(self, order, message):
        with pytest.raises(ValueError, match=message):
            kendall_tau(order)
