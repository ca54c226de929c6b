"""Rank-k accuracy by hand and by sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet.evaluation import rank_k_accuracy

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
LABELS = np.array([1, 1, 0, 0])  # at places 1, 2, 3, 1


class TestRankK:
    @pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.75), (3, 1.0)])
    def test_by_hand(self, k, expected):
        assert rank_k_accuracy(SCORES, LABELS, k) == expected

    def test_ties_count_against(self):
        scores = [[2.0, 2.0, 1.0], [2.0, 2.0, 1.0]]
        assert rank_k_accuracy(scores, [0, 1], k=1) == 0
        assert rank_k_accuracy(scores, [0, 1], k=2) == 1
        assert rank_k_accuracy(np.zeros((5, 4)), [0, 1, 2, 3, 0], k=3) == 0

    def test_infinite_scores(self):
        assert rank_k_accuracy([[-np.inf, 0.0], [np.inf, 0.0]], [1, 0]) == 1

    def test_one_person(self):
        assert rank_k_accuracy([[3.0], [4.0]], [0, 0]) == 1

    @given(
        N=st.integers(1, 8), K=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([3, 1_000_000])
    )
    def test_against_sorting(self, N, K, seed, levels):
        rng = np.random.default_rng(seed)
        scores, labels = rng.integers(0, levels, (N, K)), rng.integers(0, K, N)
        for k in range(1, K + 1):
            found = 0
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
                # the true person behind all with the same score
                order = sorted(range(K), key=lambda person: (-row[person], person == label))
                found += label in order[:k]
            assert rank_k_accuracy(scores, labels, k) == pytest.approx(found / N)

    @pytest.mark.parametrize(
        ("scores", "labels", "k", "message"),
        [
            (SCORES[0], LABELS, 1, r"scores \(N, K\).* got \(3,\)"),
            (np.zeros((0, 3)), [], 1, r"\(0, 3\)"),
            (SCORES, LABELS[:3], 1, r"\(4,\), got int64 \(3,\)"),
            (SCORES, LABELS.astype(float), 1, "float64"),
            (SCORES, [0, 1, 3, 0], 1, "from 0 to 2, got 0 to 3"),
            (SCORES, [0, 1, -1, 0], 1, "from 0 to 2, got -1 to 1"),
            (SCORES, LABELS, 0, "k from 1 to 3, .* got 0"),
            (SCORES, LABELS, 4, "k from 1 to 3, .* got 4"),
            (np.where(SCORES == 0.7, np.nan, SCORES), LABELS, 1, "1 pictures .* not a number, first 0"),
        ],
    )
    def test_wrong_input(self, scores, labels, k, message):
        with pytest.raises(ValueError, match=message):
            rank_k_accuracy(scores, labels, k)
