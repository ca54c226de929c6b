"""Rank-k accuracy, confusion and ROC curves: by hand, by naive loops, and against scikit-learn where installed."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained import write_gallery, write_network

import resnet
from resnet import predict
from resnet.evaluation import (
    area_under_roc,
    balanced_accuracy,
    confusion_matrix,
    cosine_similarity,
    cumulative_match,
    directions,
    equal_error_rate,
    main,
    precision_recall,
    rank_k_accuracy,
    roc_curve,
    threshold_at,
    true_accepts_at,
    verify,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
LABELS = np.array([1, 1, 0, 0])  # at places 1, 2, 3, 1

# Comparisons of two pictures, 3 of one person and 3 of two; one of each scores 0.8.
COMPARED = np.array([0.5, 0.8, 0.3, 0.9, 0.8, 0.6])
SAME = np.array([True, True, False, True, False, False])

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def metrics():
    return pytest.importorskip(
        "sklearn.metrics", exc_type=ImportError, reason="scikit-learn, the independent source, is not installed"
    )


def comparisons(seed, levels):
    """Return up to 40 scores, many of them equal where there are few levels, and whether the person is the same."""
    rng = np.random.default_rng(seed)
    positive = rng.integers(0, 2, rng.integers(2, 41)).astype(bool)
    positive[:2] = rng.permutation([True, False])
    return rng.integers(0, levels, len(positive)) / 8 + rng.integers(0, 2) * positive, positive


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

    def test_several_k(self):
        assert cumulative_match(SCORES, LABELS, [1, 3, 2]) == [0.5, 1.0, 0.75]
        assert cumulative_match(SCORES, LABELS, range(1, 4)) == [0.5, 0.75, 1.0]


class TestConfusion:
    TRUTH = (0, 0, 0, 1, 2, 2)
    ANSWERS = (0, 1, 1, 1, 0, 2)

    def test_rows_are_the_truth(self):
        counts = confusion_matrix(self.TRUTH, self.ANSWERS, 4)
        assert counts.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
        assert counts.dtype == np.int64

    def test_balanced_accuracy_by_hand(self):
        # recalls 1/3, 1/1, 1/2 of the three classes that occur; plain accuracy would be 3/6
        assert balanced_accuracy(self.TRUTH, self.ANSWERS, 4) == pytest.approx((1 / 3 + 1 + 1 / 2) / 3, rel=1e-15)

    def test_always_the_same_answer_is_right_half_the_time(self):
        assert balanced_accuracy([True] * 98 + [False] * 2, [True] * 100) == 0.5

    def test_small_whole_numbers_do_not_overflow(self):
        truth = np.array([99, 99, 1], np.uint8)
        assert confusion_matrix(truth, truth, 100)[[99, 1], [99, 1]].tolist() == [2, 1]

    @given(N=st.integers(1, 30), K=st.integers(1, 6), seed=seeds)
    @pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
    def test_equals_scikit_learn(self, metrics, N, K, seed):
        truth, answers = np.random.default_rng(seed).integers(0, K, (2, N))
        expected = metrics.confusion_matrix(truth, answers, labels=range(K))
        np.testing.assert_array_equal(confusion_matrix(truth, answers, K), expected)
        expected = metrics.balanced_accuracy_score(truth, answers)
        assert balanced_accuracy(truth, answers, K) == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("function", [confusion_matrix, balanced_accuracy])
    @pytest.mark.parametrize(
        ("truth", "answers", "classes", "message"),
        [
            ([], [], 2, r"truth as whole numbers \(N,\), at least one, got float64 \(0,\)"),
            ([[0]], [0], 2, r"truth .*\(1, 1\)"),
            ([0, 1], [0.0, 1.0], 2, "answers .*float64"),
            ([0, 1], [0], 2, r"each truth \(2,\), got \(1,\)"),
            ([0, 2], [0, 1], 2, "truth from 0 to 1, got 0 to 2"),
            ([0, 1], [0, -1], 2, "answers from 0 to 1, got -1 to 0"),
            ([0, 1], [0, 1], 0, "at least 1 class, got 0"),
        ],
    )
    def test_wrong_input(self, function, truth, answers, classes, message):
        with pytest.raises(ValueError, match=message):
            function(truth, answers, classes)


class TestPrecisionRecall:
    def test_by_hand(self):
        # called positive: 5, of which 2 are; positive: 3, of which 2 are called so
        truth = np.array([1, 1, 1, 0, 0, 0, 0], bool)
        answers = np.array([1, 1, 0, 1, 1, 1, 0], bool)
        assert precision_recall(truth, answers) == (2 / 5, 2 / 3)

    def test_nothing_called_positive(self):
        assert precision_recall([True, False], [False, False]) == (0.0, 0.0)

    @given(N=st.integers(1, 12), seed=seeds)
    def test_equals_scikit_learn(self, metrics, N, seed):
        truth, answers = np.random.default_rng(seed).integers(0, 2, (2, N)).astype(bool)
        truth[0] = True
        precision, recall = precision_recall(truth, answers)
        assert precision == pytest.approx(metrics.precision_score(truth, answers, zero_division=0), rel=1e-14)
        assert recall == pytest.approx(metrics.recall_score(truth, answers), rel=1e-14)

    @pytest.mark.parametrize(
        ("truth", "answers", "message"),
        [
            ([True, False], [1, 0], r"booleans \(N,\), got bool \(2,\) and int64 \(2,\)"),
            ([1, 0], [True, False], "int64"),
            ([True, False], [True], r"\(2,\) and bool \(1,\)"),
            ([[True]], [[True]], r"\(1, 1\)"),
            ([False, False], [True, False], "at least one True in truth, got none of 2"),
        ],
    )
    def test_wrong_input(self, truth, answers, message):
        with pytest.raises(ValueError, match=message):
            precision_recall(truth, answers)


class TestRoc:
    def test_curve_by_hand(self):
        curve = roc_curve(COMPARED, SAME)
        assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.5, 0.3]
        assert curve.false_accepts.tolist() == [0, 0, 1 / 3, 2 / 3, 2 / 3, 1]
        assert curve.true_accepts.tolist() == [0, 1 / 3, 2 / 3, 2 / 3, 1, 1]
        assert [array.dtype for array in curve] == [np.float64] * 3

    def test_area_by_hand(self):
        # of the 9 pairs of one genuine and one impostor, 0.9 wins 3, 0.8 wins 2 and ties 1, 0.5 wins 1
        assert area_under_roc(COMPARED, SAME) == 6.5 / 9

    def test_equal_error_by_hand(self):
        assert equal_error_rate(COMPARED, SAME) == pytest.approx(1 / 3, rel=1e-15)  # the point at threshold 0.8
        # Genuine 2 and 1, impostors 1 and 0: from (0, 1/2) at threshold 2 to (1/2, 1) at 1, half way (1/4, 3/4).
        assert equal_error_rate([2, 1, 1, 0], [True, True, False, False]) == 0.25

    @pytest.mark.parametrize(
        ("scores", "area", "equal_error"),
        [([4, 3, 2, 1, 0], 1.0, 0.0), ([0, 1, 2, 3, 4], 0.0, 1.0), ([7, 7, 7, 7, 7], 0.5, 0.5)],
        ids=["perfect", "upside down", "says nothing"],
    )
    def test_extremes(self, scores, area, equal_error):
        positive = np.array([True, True, False, False, False])
        assert area_under_roc(scores, positive) == area
        assert equal_error_rate(scores, positive) == equal_error

    @pytest.mark.parametrize(
        ("false_accepts", "true_accepts", "threshold"),
        [(0, 1 / 3, 0.9), (0.33, 1 / 3, 0.9), (1 / 3, 2 / 3, 0.8), (0.6, 2 / 3, 0.8), (0.67, 1, 0.5), (1, 1, 0.3)],
    )
    def test_operating_points_by_hand(self, false_accepts, true_accepts, threshold):
        assert true_accepts_at(COMPARED, SAME, false_accepts) == true_accepts
        assert threshold_at(COMPARED, SAME, false_accepts) == threshold

    def test_the_highest_score_is_an_impostors(self):
        assert true_accepts_at([3, 2, 1], [False, True, False], 0.4) == 0
        assert threshold_at([3, 2, 1], [False, True, False], 0.4) == np.inf

    @pytest.mark.parametrize("impostors", [10, 30, 70, 1000])
    def test_a_tenth_is_a_tenth(self, impostors):
        scores, positive = np.arange(impostors + 1), np.arange(impostors + 1) == 0
        assert threshold_at(scores, positive, 0.1) == impostors + 1 - impostors / 10

    @given(seed=seeds)
    def test_threshold_holds_for_float32_scores(self, seed):
        rng = np.random.default_rng(seed)
        scores, positive = rng.random(50).astype(np.float32), np.arange(50) % 2 == 0
        accepted = scores >= threshold_at(scores, positive, 0.2)
        assert accepted[~positive].mean() == 0.2
        assert accepted[positive].mean() == true_accepts_at(scores, positive, 0.2)

    @given(seed=seeds, levels=st.sampled_from([1, 3, 8, 1_000_000]), allowed=st.floats(0, 1))
    def test_against_naive_loops(self, seed, levels, allowed):
        scores, positive = comparisons(seed, levels)
        genuine, impostors = scores[positive].tolist(), scores[~positive].tolist()
        wins = sum((g > i) + (g == i) / 2 for g in genuine for i in impostors)
        assert area_under_roc(scores, positive) == wins / (len(genuine) * len(impostors))
        best, lowest = 0.0, np.inf
        for threshold in sorted(scores.tolist()):
            if np.mean([score >= threshold for score in impostors]) <= allowed:
                best, lowest = np.mean([score >= threshold for score in genuine]), threshold
                break
        assert true_accepts_at(scores, positive, allowed) == best
        assert threshold_at(scores, positive, allowed) == lowest

    @given(seed=seeds, levels=st.sampled_from([1, 3, 8, 1_000_000]))
    def test_equals_scikit_learn(self, metrics, seed, levels):
        scores, positive = comparisons(seed, levels)
        false, true, thresholds = metrics.roc_curve(positive, scores, drop_intermediate=False)
        curve = roc_curve(scores, positive)
        np.testing.assert_array_equal(curve.thresholds, thresholds)
        np.testing.assert_allclose(curve.false_accepts, false, rtol=1e-14)
        np.testing.assert_allclose(curve.true_accepts, true, rtol=1e-14)
        assert area_under_roc(scores, positive) == pytest.approx(metrics.auc(false, true), rel=1e-14, abs=1e-15)
        # the crossing with the diagonal, on that step of scikit-learn's curve where the sign changes
        above = true + false - 1
        step = next(i for i in range(len(above)) if above[i + 1] >= 0)
        share = above[step] / (above[step] - above[step + 1])
        expected = false[step] + share * (false[step + 1] - false[step])
        assert equal_error_rate(scores, positive) == pytest.approx(expected, rel=1e-12, abs=1e-15)

    @pytest.mark.parametrize("function", [roc_curve, area_under_roc, equal_error_rate])
    @pytest.mark.parametrize(
        ("scores", "positive", "message"),
        [
            (COMPARED[:5], SAME, r"scores \(M,\).* got \(5,\) and bool \(6,\)"),
            (COMPARED[:, np.newaxis], SAME[:, np.newaxis], r"\(6, 1\)"),
            (COMPARED, SAME.astype(int), "int64"),
            (COMPARED, np.ones(6, bool), "both kinds, got 6 positive of 6"),
            (COMPARED, np.zeros(6, bool), "both kinds, got 0 positive of 6"),
            (np.where(SAME, COMPARED, np.nan), SAME, "3 scores are not finite"),
            (np.where(COMPARED == 0.9, np.inf, COMPARED), SAME, "1 scores are not finite"),
        ],
    )
    def test_wrong_input(self, function, scores, positive, message):
        with pytest.raises(ValueError, match=message):
            function(scores, positive)

    def test_no_comparisons(self):
        with pytest.raises(ValueError, match="got 0 positive of 0"):
            roc_curve([], np.zeros(0, bool))

    @pytest.mark.parametrize("function", [true_accepts_at, threshold_at])
    @pytest.mark.parametrize("false_accepts", [-0.1, 1.1, np.nan])
    def test_wrong_share(self, function, false_accepts):
        with pytest.raises(ValueError, match=f"false_accepts from 0 to 1, got {false_accepts}"):
            function(COMPARED, SAME, false_accepts)
        with pytest.raises(ValueError, match="both kinds"):
            function(COMPARED, np.ones(6, bool), 0.5)


class TestCosine:
    def test_by_hand(self):
        # 3-4-5 triangles: (3, 4)·(4, 3) = 24 of 25
        found = cosine_similarity([[3, 4], [-3, -4], [1, 0]], [[4, 3], [0, -2]])
        np.testing.assert_allclose(found, [[0.96, -0.8], [-0.96, 0.8], [0.8, 0.0]], rtol=1e-15)

    @given(N=st.integers(1, 5), M=st.integers(1, 5), D=st.integers(1, 9), seed=seeds)
    def test_equals_scikit_learn(self, metrics, N, M, D, seed):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(N, D)), rng.normal(size=(M, D))
        expected = metrics.pairwise.cosine_similarity(a, b)
        np.testing.assert_allclose(cosine_similarity(a, b), expected, rtol=0, atol=1e-14)

    def test_computes_in_float64(self, rng):
        a, b = rng.normal(size=(2, 4, 64)).astype(np.float32)
        found = cosine_similarity(a, b)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, cosine_similarity(a.astype(np.float64), b.astype(np.float64)))

    def test_never_beyond_one(self, rng):
        a = rng.normal(size=(200, 3))
        assert cosine_similarity(a, a).max() <= 1
        assert cosine_similarity(a, -a).min() >= -1

    def test_size_does_not_matter(self):
        for size in (1e-320, 1e-200, 1e200):
            assert cosine_similarity([[size, size]], [[1.0, 0.0]])[0, 0] == pytest.approx(np.sqrt(0.5), rel=1e-15)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ([1.0, 2.0], [[1.0, 2.0]], r"a as rows \(N, D\), at least one, got \(2,\)"),
            ([[1.0, 2.0]], np.zeros((0, 2)), r"b as rows .*\(0, 2\)"),
            ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], r"one length, got a \(1, 2\) and b \(1, 3\)"),
            ([[1.0, 2.0], [0.0, 0.0]], [[1.0, 2.0]], "rows of a with a direction, got zeros in row 1"),
            ([[1.0, 2.0]], [[1.0, 2.0], [0.0, -1.0], [0.0, -0.0]], "rows of b .* row 2"),
            ([[np.inf, 2.0]], [[1.0, 2.0]], "1 values of a are not finite"),
        ],
    )
    def test_wrong_input(self, a, b, message):
        with pytest.raises(ValueError, match=message):
            cosine_similarity(a, b)

    def test_directions_by_hand(self):
        np.testing.assert_allclose(directions([[3, 4], [0, -9]]), [[0.6, 0.8], [0.0, -1.0]], rtol=1e-15)
        with pytest.raises(ValueError, match="rows of faces with a direction"):
            directions([[0.0, 0.0]], "faces")


class TestVerify:
    IMPOSTORS = np.arange(100) / 100  # 0.00 to 0.99
    GENUINE = np.array([0.945, 0.5, 0.965, 2.0])

    def both(self):
        scores = np.concatenate([self.IMPOSTORS, self.GENUINE])
        return scores, np.arange(len(scores)) >= 100

    @pytest.mark.parametrize(
        ("asked", "threshold", "false", "true"),
        [
            (0.05, 0.945, 0.05, 0.75),  # 0.95 to 0.99 are five; 0.94 would be the sixth
            (0.059, 0.945, 0.05, 0.75),
            (0.04, 0.96, 0.04, 0.5),  # the threshold is an impostor's score
            (0.01, 0.99, 0.01, 0.25),
            (0.5, 0.5, 0.5, 1.0),  # a genuine and an impostor at 0.5
        ],
    )
    def test_by_hand(self, asked, threshold, false, true):
        found = verify(*self.both(), asked)
        assert (found.threshold, found.false_accepts, found.true_accepts) == (threshold, false, true)
        assert (found.genuine, found.impostors, found.asked) == (4, 100, asked)
        # wins: 95, 51 less half a tie, 97, 100 of 100 each
        assert found.area_under_roc == pytest.approx((95 + 50.5 + 97 + 100) / 400, rel=1e-12)

    def test_the_order_of_pairs_does_not_matter(self, rng):
        scores, positive = self.both()
        order = rng.permutation(len(scores))
        assert verify(scores[order], positive[order], 0.05) == verify(scores, positive, 0.05)

    def test_too_few_impostors_for_the_rate(self):
        scores, positive = self.both()
        with pytest.raises(ValueError, match=r"at least 101 impostor .* got 100 \(and 4 genuine ones\)"):
            verify(scores, positive, 1 / 100.5)
        assert verify(scores, positive, 0.01).threshold == 0.99

    def test_no_threshold_keeps_to_the_rate(self):
        with pytest.raises(ValueError, match=r"no threshold .* 0.1 of the impostors: 0.5 of them have the highest"):
            verify([1.0] * 10 + [0.0] * 10 + [1.0], [False] * 20 + [True], 0.1)

    @pytest.mark.parametrize("asked", [0, 1, -0.1, np.nan, np.inf])
    def test_wrong_rate(self, asked):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            verify(*self.both(), asked)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path):
        write_network(tmp_path / "run" / "model.safetensors", ["x", "dora"])
        return tmp_path / "run"

    @pytest.fixture
    def people(self, tmp_path):
        return write_gallery(tmp_path / "people", {"anna": 4, "bert": 3, "carl": 1, "dora": 2})

    def similarities(self, run, gallery, pictures, capsys):
        """What predict says of pictures: by file and person."""
        words = ["--model", str(run), "--json", "--backend", "numpy", "--gallery", str(gallery), "--threshold", "-1"]
        assert predict.main([*words, *map(str, pictures)]) == 0
        told = json.loads(capsys.readouterr().out)["pictures"]
        return {(row["file"], one["name"]): one["similarity"] for row in told for one in row["best"]}

    def test_it_measures_what_predict_will_say(self, run, people, tmp_path, capsys):
        """Take each picture out of its folder, ask predict of it, and find the threshold by trying all."""
        genuine, impostors = [], []
        for file in sorted(people.rglob("*.png")):
            person = file.parent.name
            shutil.copytree(people, tmp_path / "rest")
            (tmp_path / "rest" / person / file.name).unlink()
            for (_, other), score in self.similarities(run, tmp_path / "rest", [file], capsys).items():
                (genuine if other == person else impostors).append(score)
            shutil.rmtree(tmp_path / "rest")
        assert (len(genuine), len(impostors)) == (9, 30)  # carl's only picture is in no genuine pair

        asked = 0.1
        assert main(["--model", str(run), "--pairs", str(people), "--false-accepts", "0.1", "--backend", "numpy"]) == 0
        facts = json.loads((run / "threshold.json").read_text())
        accepted = {t: sum(score >= t for score in impostors) for t in genuine + impostors}
        best = min(t for t, count in accepted.items() if count <= asked * 30)
        assert facts["threshold"] == pytest.approx(best, abs=1e-6)
        assert facts["false_accepts"] == accepted[best] / 30
        assert facts["true_accepts"] == pytest.approx(sum(score >= best for score in genuine) / 9)
        wins = sum((g > i) + (g == i) / 2 for g in genuine for i in impostors)
        assert facts["area_under_roc"] == pytest.approx(wins / (9 * 30), abs=1e-12)

    def test_what_it_writes_and_says(self, run, people, capsys):
        assert main(["--model", str(run), "--pairs", str(people), "--false-accepts", "0.2", "--batch-size", "3"]) == 0
        facts = json.loads((run / "threshold.json").read_text())
        counts = ("people", "pictures", "genuine", "impostors")
        assert [facts[name] for name in counts] == [4, 10, 9, 30]
        assert facts["asked"] == 0.2
        assert facts["false_accepts"] <= 0.2
        assert facts["sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        assert (facts["weights"], facts["pairs"], facts["gallery"]) == ("model.safetensors", str(people), None)
        assert facts["version"] == resnet.__version__
        assert abs(datetime.fromisoformat(facts["date"]) - datetime.now().astimezone()) < timedelta(minutes=1)
        printed, notes = capsys.readouterr()
        lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
        assert lines["people"] == "4"
        assert lines["threshold"] == f"{facts['threshold']:.4f}"
        assert lines["written:"] == str(run / "threshold.json")
        assert "note: 1 of the 4 people have names that the network learned" in notes  # dora

    def test_against_a_gallery(self, run, people, tmp_path, capsys):
        probes = write_gallery(tmp_path / "probes", {"bert": 2, "emil": 3}, seed=1)
        files = sorted(probes.rglob("*.png"))
        told = self.similarities(run, people, files, capsys)
        arguments = ["--model", str(run), "--pairs", str(probes), "--gallery", str(people), "--false-accepts", "0.25"]
        assert main([*arguments, "--backend", "numpy"]) == 0
        facts = json.loads((run / "threshold.json").read_text())
        assert [facts[name] for name in ("people", "pictures", "genuine", "impostors")] == [2, 5, 2, 18]
        assert facts["gallery"] == str(people)
        genuine = [score for (file, name), score in told.items() if f"/{name}/" in file]
        accepted = sum(score >= facts["threshold"] - 1e-6 for score in told.values())
        right = sum(score >= facts["threshold"] - 1e-6 for score in genuine)
        assert facts["false_accepts"] == (accepted - right) / 18
        assert facts["true_accepts"] == right / 2

    def test_best_weights_have_theirs_beside_them(self, run, people):
        best = write_network(run / "best.safetensors", ["x", "y"], seed=1)
        assert main(["--model", str(best), "--pairs", str(people), "--false-accepts", "0.2"]) == 0
        facts = json.loads((run / "threshold.json").read_text())
        assert facts["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()

    @pytest.mark.parametrize(
        ("counts", "words"),
        [
            ({"anna": 3}, "3 genuine ones and 0 impostors, of 1 people with 3 pictures"),
            ({"anna": 1, "bert": 1}, "0 genuine ones and 2 impostors"),
            ({"anna": 1}, "0 genuine ones and 0 impostors"),
            ({"anna": 2, "bert": 2}, "at least 100 impostor comparisons"),
            ({"anna": 0}, "without a picture"),
        ],
    )
    def test_too_little_to_compare(self, counts, words, run, tmp_path, capsys):
        folder = write_gallery(tmp_path / "few", counts)
        assert main(["--model", str(run), "--pairs", str(folder)]) == 1
        printed, error = capsys.readouterr()
        assert words in error
        assert error.count("\n") == 1
        assert printed == ""
        assert not (run / "threshold.json").exists()

    def test_nobody_is_in_both_folders(self, run, people, tmp_path, capsys):
        other = write_gallery(tmp_path / "others", {"emil": 2})
        assert main(["--model", str(run), "--pairs", str(people), "--gallery", str(other)]) == 1
        assert "one of them with a folder in both" in capsys.readouterr().err

    def test_a_broken_picture_stops_it_or_is_skipped(self, run, people, capsys):
        (people / "anna" / "0.png").write_bytes(b"no picture")
        arguments = ["--model", str(run), "--pairs", str(people), "--false-accepts", "0.2"]
        assert main(arguments) == 1
        assert str(people / "anna" / "0.png") in capsys.readouterr().err
        assert main([*arguments, "--bad-pictures", "skip"]) == 0
        assert "skipped: cannot read picture" in capsys.readouterr().err
        assert json.loads((run / "threshold.json").read_text())["pictures"] == 9

    @pytest.mark.parametrize("text", ["0", "1", "-0.1", "nan", "inf", "1 %", ""])
    def test_wrong_use(self, text, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(["--model", "run", "--pairs", "people", f"--false-accepts={text}"])
        assert exit_.value.code == 2
        assert f"above 0 and below 1, got '{text}'" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["--model", "run"], ["--pairs", "x"], ["--model", "x", "--pairs", ""]])
    def test_what_is_missing(self, arguments, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2

    def test_no_model(self, people, tmp_path, capsys):
        assert main(["--model", str(tmp_path / "nowhere"), "--pairs", str(people)]) == 1
        assert "error: expected a run folder" in capsys.readouterr().err
        with pytest.raises(FileNotFoundError):
            main(["--model", str(tmp_path / "nowhere"), "--pairs", str(people), "--debug"])
