"""Random changes to pictures: geometry by hand and against scipy, light by hand, chance under control."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resnet.data.augment
from resnet.data.augment import Augmentation, augment, inverse_maps, relight, warp

RNG = np.random.default_rng(21)
STILL = {"shifts": [[0, 0]], "scales": [1], "turns": [0], "mirrored": [False]}


def picture(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def warped(pictures: np.ndarray, **changes) -> np.ndarray:
    return warp(pictures, inverse_maps(pictures.shape[1:3], **{**STILL, **changes}))


class TestGeometry:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_whole_pixel_shift_repeats_the_edge(self, channels):
        old = picture(1, 6, 9, channels)
        new = warped(old, shifts=[[2, -3]])  # two down, three to the left
        assert np.array_equal(new[0, 2:, :6], old[0, :4, 3:])
        assert np.array_equal(new[0, 0, :6], old[0, 0, 3:])
        assert np.array_equal(new[0, 1, :6], old[0, 0, 3:])
        assert np.array_equal(new[0, 2:, 8], old[0, :4, 8])

    def test_half_pixel_shift_is_the_mean_of_neighbours(self):
        old = np.array([[10, 20, 40], [0, 100, 200]], np.uint8).reshape(1, 2, 3, 1)
        new = warped(old, shifts=[[0, 0.5]])
        assert new[0, :, :, 0].tolist() == [[10, 15, 30], [0, 50, 150]]

    def test_mirror(self):
        old = picture(1, 5, 8, 3)
        assert np.array_equal(warped(old, mirrored=[True]), old[:, :, ::-1])

    @pytest.mark.parametrize("side", [6, 7])
    def test_quarter_turn_is_counter_clockwise(self, side):
        old = picture(1, side, side, 1)
        assert np.abs(warped(old, turns=[90]) - np.rot90(old, axes=(1, 2))).max() < 1e-2

    def test_half_turn_of_an_oblong(self):
        old = picture(1, 5, 8, 1)
        assert np.abs(warped(old, turns=[180]) - old[:, ::-1, ::-1]).max() < 1e-2

    def test_twice_the_size_keeps_the_middle(self):
        old = picture(1, 5, 7, 1)
        new = warped(old, scales=[2])[0, :, :, 0]
        assert np.array_equal(new[::2, 1::2], old[0, 1:4, 2:5, 0])  # (2, 3) stays, and neighbours are 2 apart

    def test_mirror_comes_first_then_turn_then_shift(self):
        old = picture(1, 6, 6, 1)
        step_by_step = warped(warped(old, mirrored=[True]).astype(np.uint8), turns=[90])
        step_by_step = warped(np.rint(step_by_step).astype(np.uint8), shifts=[[1, 2]])
        at_once = warped(old, mirrored=[True], turns=[90], shifts=[[1, 2]])
        assert np.abs(at_once - step_by_step).max() < 1e-2

    @pytest.mark.parametrize("shape", [(2, 2), (2, 7), (13, 3), (16, 11)])
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_any_map_against_scipy(self, shape, mirrored):
        ndimage = pytest.importorskip("scipy.ndimage")
        old = picture(3, *shape, 3)
        maps = inverse_maps(
            shape,
            shifts=[[1.3, -0.4], [0, 0], [-2.2, 30.0]],
            scales=[0.8, 1.25, 1.0],
            turns=[20, -130, 3],
            mirrored=[mirrored] * 3,
        )
        new = warp(old, maps)
        for n in range(3):
            for channel in range(3):
                expected = ndimage.affine_transform(
                    old[n, :, :, channel].astype(float), maps[n, :, :2], maps[n, :, 2], order=1, mode="nearest"
                )
                assert np.abs(new[n, :, :, channel] - expected).max() < 0.02

    def test_each_picture_has_its_own_map(self):
        old = picture(3, 5, 6, 1)
        maps = inverse_maps((5, 6), shifts=[[0, 0], [1, 0], [0, 1]], scales=[1] * 3, turns=[0] * 3, mirrored=[0] * 3)
        new = warp(old, maps)
        assert np.array_equal(new[0], old[0])
        assert np.array_equal(new[1, 1:], old[1, :-1])
        assert np.array_equal(new[2, :, 1:], old[2, :, :-1])


class TestRelight:
    def test_by_hand(self):
        levels = np.array([0, 100, 127.5, 200, 255], np.float32).reshape(1, 1, 5, 1).repeat(3, axis=0)
        lit = relight(levels, np.array([1.0, 0.5, 2.0]), np.array([0.2, 0.0, -0.2]))
        assert lit.dtype == np.uint8
        assert lit[:, 0, :, 0].tolist() == [
            [26, 126, 153, 226, 255],  # + 25.5; halves go to the even neighbour
            [64, 114, 128, 164, 191],  # 127.5 + (x - 127.5) / 2
            [0, 47, 102, 247, 255],  # 127.5 + 2 (x - 127.5) - 25.5
        ]


class TestAugment:
    @given(
        shape=st.tuples(st.integers(0, 5), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3])),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_no_strength_no_change(self, shape, seed):
        pictures = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        new = augment(pictures, np.random.default_rng(seed), **asdict(Augmentation.none()))
        assert np.array_equal(new, pictures)
        assert not np.shares_memory(new, pictures)

    def test_input_untouched_and_non_contiguous_input(self):
        wide = picture(4, 10, 24, 3)
        pictures = wide[:, ::2, 3:14]
        before = pictures.copy()
        new = augment(pictures, np.random.default_rng(0))
        assert np.array_equal(pictures, before)
        assert np.array_equal(new, augment(before, np.random.default_rng(0)))
        assert new.shape == before.shape

    def test_chance_comes_from_the_generator(self):
        pictures = picture(4, 12, 10, 1)
        first, again, other = (augment(pictures, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_portions_make_no_difference(self, monkeypatch):
        pictures = picture(7, 12, 10, 3)
        at_once = augment(pictures, np.random.default_rng(3))
        monkeypatch.setattr(resnet.data.augment, "_PIXELS_AT_ONCE", 800)  # two pictures at a time
        assert np.array_equal(augment(pictures, np.random.default_rng(3)), at_once)

    def test_half_are_mirrored(self):
        pictures = np.zeros((400, 2, 4, 1), np.uint8)
        pictures[:, :, 3] = 200  # bright on the right
        new = augment(pictures, np.random.default_rng(0), shift=0, scale=0, turn=0, brightness=0)
        mirrored = new[:, 0, 0, 0] == 200
        assert np.array_equal(new[mirrored], pictures[mirrored][:, :, ::-1])
        assert np.array_equal(new[~mirrored], pictures[~mirrored])
        assert 160 <= mirrored.sum() <= 240  # four standard deviations

    def test_strengths_bound_what_is_drawn(self, monkeypatch):
        drawn, light = {}, []

        def note_maps(shape, **changes):
            drawn.update(changes)
            return inverse_maps(shape, **changes)

        def note_light(pictures, contrasts, lights):
            light.append((contrasts, lights))
            return relight(pictures, contrasts, lights)

        monkeypatch.setattr(resnet.data.augment, "inverse_maps", note_maps)
        monkeypatch.setattr(resnet.data.augment, "relight", note_light)
        strengths = {"shift": 0.1, "scale": 0.25, "turn": 8, "flip": False, "brightness": 0.3}
        augment(picture(2000, 20, 10, 1), np.random.default_rng(0), **strengths)
        down, right = np.abs(drawn["shifts"]).max(axis=0)
        assert 1.98 < down <= 2  # a tenth of 20
        assert 0.99 < right <= 1  # a tenth of 10
        assert 0.8 <= drawn["scales"].min() < 0.802
        assert 1.248 < drawn["scales"].max() <= 1.25
        assert 7.95 < np.abs(drawn["turns"]).max() <= 8
        assert not drawn["mirrored"].any()
        contrasts, lights = (np.concatenate(parts) for parts in zip(*light, strict=True))
        assert 0.7 <= contrasts.min() < 0.702
        assert 1.298 < contrasts.max() <= 1.3
        assert 0.298 < np.abs(lights).max() <= 0.3

    @pytest.mark.parametrize(
        ("strength", "message"),
        [
            ({"shift": -0.1}, "shift from 0 to 1, got -0.1"),
            ({"shift": 1.1}, "shift from 0 to 1, got 1.1"),
            ({"scale": -1}, "scale from 0 to inf, got -1"),
            ({"scale": float("inf")}, "scale .* got inf"),
            ({"turn": 181}, "turn from 0 to 180, got 181"),
            ({"brightness": 2}, "brightness from 0 to 1, got 2"),
            ({"brightness": float("nan")}, "brightness .* got nan"),
        ],
    )
    def test_strength_out_of_range(self, strength, message):
        with pytest.raises(ValueError, match=message):
            Augmentation(**strength)
        with pytest.raises(ValueError, match=message):
            augment(picture(1, 4, 4, 1), np.random.default_rng(0), **strength)

    @pytest.mark.parametrize(
        ("pictures", "message"),
        [
            (np.zeros((2, 4, 4, 1)), "float64"),
            (np.zeros((4, 4, 1), np.uint8), r"\(4, 4, 1\)"),
            (np.zeros((2, 1, 4, 1), np.uint8), "at least 2x2 pixels, got 1x4"),
        ],
    )
    def test_wrong_pictures(self, pictures, message):
        with pytest.raises(ValueError, match=message):
            augment(pictures, np.random.default_rng(0))

    def test_settings_are_frozen(self):
        with pytest.raises(FrozenInstanceError):
            Augmentation().shift = 0.5
