"""Batches: each picture as often as promised, the same for the same seed and epoch, ready in time, no thread left."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resnet.data.batches
from resnet.data.augment import Augmentation
from resnet.data.batches import TrainingBatches, masked_copies, prefetch, to_network_input
from resnet.data.faces import Faces
from resnet.data.masks import TEMPLATES

PLAIN = {
    "pictures_per_epoch": None,
    "mask_probability": 0.0,
    "augmentation": Augmentation.none(),
    "seed": 0,
    "mean": 0.0,
    "std": 1.0,
}


def make_faces(count=10, channels=1, side=16) -> Faces:
    """Picture n is of the grey level n all over and shows person n % 3, so a picture tells who it is."""
    pictures = np.zeros((count, side, side + 2, channels), np.uint8)
    pictures += np.arange(count, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
    return Faces(
        pictures=pictures,
        labels=np.arange(count) % 3,
        people=("anna", "bert", "carl"),
        files=tuple(f"{n}.png" for n in range(count)),
        points=TEMPLATES["centred"].copy(),
    )


def seen(batches: TrainingBatches, epoch: int) -> list[list[int]]:
    """Which pictures are in each batch of an epoch of plain pictures."""
    return [np.rint(x[:, 0, 0, 0] * 255).astype(int).tolist() for x, _ in batches.epoch(epoch)]


def all_seen(batches: TrainingBatches, epoch: int) -> list[int]:
    return list(chain.from_iterable(seen(batches, epoch)))


@pytest.fixture
def pencil(monkeypatch) -> list[np.ndarray]:
    """In place of masks, which take long and hide what is below: all grey levels + 100 + a number drawn up to 99."""
    calls = []

    def draw(picture, points, rng, style=None):
        assert points.shape == (6, 2)
        calls.append(picture)
        return picture + np.uint8(100 + rng.integers(0, 100))

    monkeypatch.setattr(resnet.data.batches, "draw_mask", draw)
    return calls


class TestToNetworkInput:
    def test_by_hand(self):
        x = to_network_input(np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1), mean=0.4, std=0.5)
        assert x.dtype == np.float32
        assert x.ravel().tolist() == pytest.approx([-0.8, -0.4, 1.2], abs=1e-6)

    def test_a_number_a_channel(self):
        pictures = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3) * 3
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        x = to_network_input(pictures, mean, std)
        assert x.shape == pictures.shape
        assert x.flags.c_contiguous
        for channel in range(3):
            expected = (pictures[..., channel].astype(float) / 255 - mean[channel]) / std[channel]
            assert np.abs(x[..., channel] - expected).max() < 1e-6

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            (0.5, 0.0, r"std above 0, got 0\.0"),
            (0.5, [1.0, -1.0, 1.0], "std above 0"),
            ([0.5, 0.5], 1.0, r"mean as one number or 3, .* got \[0\.5, 0\.5\]"),
            (0.5, [[1.0]], "std as one number or 3"),
            (float("nan"), 1.0, "mean .* got nan"),
        ],
    )
    def test_wrong_constants(self, mean, std, message):
        with pytest.raises(ValueError, match=message):
            to_network_input(np.zeros((1, 2, 2, 3), np.uint8), mean, std)

    def test_wrong_pictures(self):
        with pytest.raises(ValueError, match=r"float32 \(1, 2, 2, 3\)"):
            to_network_input(np.zeros((1, 2, 2, 3), np.float32), 0.5, 1.0)


class TestBatches:
    @given(count=st.integers(1, 20), wanted=st.integers(1, 70), size=st.integers(1, 33))
    def test_sizes_and_how_often(self, count, wanted, size):
        batches = TrainingBatches(make_faces(count, side=2), size, **{**PLAIN, "pictures_per_epoch": wanted})
        chosen = seen(batches, 0)
        sizes = [len(batch) for batch in chosen]
        assert len(sizes) == len(batches)
        assert sum(sizes) == wanted
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= (size if size != 2 else 3)
        assert min(sizes) > 1 or size == 1 or wanted == 1
        often = np.bincount(list(chain.from_iterable(chosen)), minlength=count)
        assert often.max() - often.min() <= 1

    @pytest.mark.parametrize(
        ("pictures", "size", "sizes"),
        [
            (10, 4, [4, 3, 3]),
            (9, 8, [5, 4]),
            (33, 32, [17, 16]),
            (3, 2, [3]),
            (5, 2, [3, 2]),
            (1, 8, [1]),
            (2, 1, [1, 1]),
        ],
    )
    def test_sizes_by_hand(self, pictures, size, sizes):
        assert [len(batch) for batch in seen(TrainingBatches(make_faces(pictures), size, **PLAIN), 0)] == sizes

    def test_every_pass_holds_every_picture(self):
        batches = TrainingBatches(make_faces(10), 5, **{**PLAIN, "pictures_per_epoch": 25})
        order = all_seen(batches, 3)
        assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
        assert len(set(order[20:])) == 5

    @pytest.mark.parametrize("channels", [1, 3])
    def test_values_and_labels(self, channels):
        faces = make_faces(10, channels)
        batches = TrainingBatches(faces, 4, **{**PLAIN, "mean": 0.5, "std": 0.25})
        for x, labels in batches.epoch(0):
            assert (x.dtype, labels.dtype) == (np.float32, np.int64)
            assert x.shape == (len(labels), 16, 18, channels)
            numbers = np.rint((x[:, 0, 0, 0] * 0.25 + 0.5) * 255).astype(int)
            assert labels.tolist() == (numbers % 3).tolist()
            expected = (numbers / 255 - 0.5) / 0.25
            assert np.abs(x - expected[:, np.newaxis, np.newaxis, np.newaxis]).max() < 1e-6

    def test_epochs_differ_and_seeds_differ(self):
        batches = TrainingBatches(make_faces(10), 4, **PLAIN)
        other = TrainingBatches(make_faces(10), 4, **{**PLAIN, "seed": 1})
        assert seen(batches, 0) != seen(batches, 1)
        assert seen(batches, 0) != seen(other, 0)

    def test_changes_differ_from_time_to_time(self):
        faces = replace(
            make_faces(1), pictures=np.random.default_rng(0).integers(0, 256, (1, 16, 18, 1), dtype=np.uint8)
        )
        options = {**PLAIN, "augmentation": Augmentation(), "pictures_per_epoch": 6}
        one, two = (TrainingBatches(faces, 2, **{**options, "seed": seed}) for seed in (0, 1))
        versions = [x for batches in (one, two) for epoch in (0, 1) for xs, _ in batches.epoch(epoch) for x in xs]
        assert len({version.tobytes() for version in versions}) == 2 * 2 * 6

    def test_resumed_training_sees_the_same(self):
        options = {**PLAIN, "mask_probability": 0.5, "augmentation": Augmentation(), "pictures_per_epoch": 25}
        through, resumed, ahead = (TrainingBatches(make_faces(10), 4, **options) for _ in range(3))
        for epoch in range(3):
            list(through.epoch(epoch))
        expected = list(through.epoch(3))
        for epoch in (resumed.epoch(3), prefetch(ahead.epoch(3)), through.epoch(3)):
            for (x, labels), (expected_x, expected_labels) in zip(epoch, expected, strict=True):
                assert np.array_equal(x, expected_x)
                assert np.array_equal(labels, expected_labels)

    def test_faces_untouched(self):
        faces = make_faces(6)
        before = faces.pictures.copy()
        list(TrainingBatches(faces, 4, **{**PLAIN, "mask_probability": 1, "augmentation": Augmentation()}).epoch(0))
        assert np.array_equal(faces.pictures, before)

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"batch_size": 0}, "batch_size of at least 1, got 0"),
            ({"pictures_per_epoch": 0}, "pictures_per_epoch of at least 1, got 0"),
            ({"variants": 0}, "variants of at least 1, got 0"),
            ({"mask_probability": 1.5}, "mask_probability from 0 to 1, got 1.5"),
            ({"mask_probability": float("nan")}, "mask_probability from 0 to 1, got nan"),
            ({"seed": -1}, "seed from 0 on, got -1"),
            ({"std": 0}, "std above 0"),
        ],
    )
    def test_option_out_of_range(self, option, message):
        with pytest.raises(ValueError, match=message):
            TrainingBatches(make_faces(4), **{"batch_size": 2, **PLAIN, **option})

    def test_no_pictures(self):
        with pytest.raises(ValueError, match="at least 1 picture to train on, got none"):
            TrainingBatches(make_faces(4).take([]), 2, **PLAIN)


class TestMasks:
    def options(self, **changes):
        return {**PLAIN, "mask_probability": 1.0, "pictures_per_epoch": 200, **changes}

    @pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 65, 135)])
    def test_share_of_masks(self, pencil, probability, least, most):
        options = self.options(mask_probability=probability, pictures_per_epoch=400)
        masked = sum(level >= 100 for level in all_seen(TrainingBatches(make_faces(), 32, **options), 0))
        assert least <= masked <= most  # a quarter of 400 within four standard deviations

    def test_each_variant_is_drawn_once(self, pencil):
        batches = TrainingBatches(make_faces(5), 32, **self.options(variants=3))
        levels = set(all_seen(batches, 0))
        assert len(pencil) == 15
        assert len(levels) > 10  # 15 variants, of which a few may happen to be equal
        assert set(all_seen(batches, 1)) == levels
        assert len(pencil) == 15

    def test_each_picture_has_masks_of_its_own(self, pencil):
        batches = TrainingBatches(make_faces(20), 20, **self.options(variants=1, pictures_per_epoch=None))
        drawn = np.sort(all_seen(batches, 0))  # picture + 100 + 0 to 99
        assert len(set((drawn - drawn[0]).tolist())) > 10
        assert np.ptp(drawn) > 30  # one number for all would leave just the 20 grey levels of the pictures

    def test_variants_hang_on_nothing_else(self, pencil):
        """The same picture has the same masks, whatever the size of batches and the order of epochs."""
        one = TrainingBatches(make_faces(5), 32, **self.options(variants=2))
        two = TrainingBatches(make_faces(5), 7, **self.options(variants=2))
        seen(two, 4)
        assert set(all_seen(one, 0)) == set(all_seen(two, 9))

    def test_large_sets_have_fewer_variants(self, monkeypatch):
        faces = make_faces(10)
        for limit, variants in ((faces.pictures.nbytes * 3 + 5, 3), (faces.pictures.nbytes // 2, 1), (10**9, 8)):
            monkeypatch.setattr(resnet.data.batches, "STORE_BYTES", limit)
            assert TrainingBatches(faces, 4, **PLAIN).variants == variants

    def test_real_masks_change_the_lower_face(self):
        faces = make_faces(6, side=32)
        faces = replace(faces, pictures=faces.pictures + np.uint8(120))
        ((x, _),) = TrainingBatches(faces, 6, **self.options(pictures_per_epoch=None)).epoch(0)
        x = x - x[:, :1, :1]  # grey level of the picture itself
        assert (np.abs(x[:, 24:29, 12:20]).mean(axis=(1, 2, 3)) > 0.02).all()
        assert np.array_equal(x[:, :8], np.zeros_like(x[:, :8]))


class TestMaskedCopies:
    def test_each_picture_once_with_its_own_mask(self, pencil):
        faces = make_faces(6)
        masked = masked_copies(faces, seed=5)
        change = masked.pictures - faces.pictures
        assert (change >= 100).all()
        assert (change == change[:, :1, :1]).all()
        assert len(set(change[:, 0, 0, 0].tolist())) > 3
        assert np.array_equal(masked.labels, faces.labels)
        assert masked.files == faces.files
        assert faces.pictures.max() == 5

    def test_mask_hangs_on_seed_and_place(self):
        faces = make_faces(6)
        first, again, other = (masked_copies(faces, seed).pictures for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert np.array_equal(masked_copies(faces.take([0, 1, 2]), 1).pictures, first[:3])

    def test_masks_are_not_those_of_training(self, pencil):
        faces = make_faces(50)
        tested = masked_copies(faces, seed=0).pictures[:, 0, 0, 0]
        ((x, _),) = TrainingBatches(faces, 50, **{**PLAIN, "mask_probability": 1.0}, variants=1).epoch(0)
        trained = np.rint(x[:, 0, 0, 0] * 255)
        assert sorted(tested.tolist()) != sorted(trained.tolist())

    def test_seed_out_of_range(self):
        with pytest.raises(ValueError, match="seed from 0 on, got -1"):
            masked_copies(make_faces(2), -1)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class TestPrefetch:
    @pytest.fixture(autouse=True)
    def no_thread_is_left(self):
        yield
        assert threads() == []

    @pytest.mark.parametrize("depth", [1, 2, 50])
    @pytest.mark.parametrize("count", [0, 1, 2, 20])
    def test_nothing_lost_nothing_reordered(self, depth, count):
        assert list(prefetch(range(count), depth)) == list(range(count))

    def test_made_in_one_other_thread(self):
        makers = set(prefetch(threading.get_ident() for _ in range(20)))
        assert len(makers) == 1
        assert threading.get_ident() not in makers

    @pytest.mark.parametrize("depth", [1, 3])
    def test_works_ahead_but_not_further(self, depth):
        made = []
        items = prefetch((made.append(n) or n for n in range(50)), depth)
        for taken in range(1, 4):
            next(items)
            for _ in range(200):
                if len(made) == taken + depth + 1:
                    break
                time.sleep(0.005)
            time.sleep(0.02)  # time enough to make too many
            assert len(made) == taken + depth + 1
        items.close()

    def test_error_of_the_producer_comes_in_its_place(self):
        def broken():
            yield 1
            yield 2
            raise ZeroDivisionError("the third")

        items = prefetch(broken())
        assert next(items) == 1
        time.sleep(0.02)  # by now it has been raised over there
        assert next(items) == 2
        with pytest.raises(ZeroDivisionError, match="the third"):
            next(items)

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    def test_even_errors_that_are_no_exceptions(self, error):
        def broken():
            raise error
            yield

        with pytest.raises(error):
            next(prefetch(broken()))

    def test_not_iterable(self):
        with pytest.raises(TypeError, match="not iterable"):
            next(prefetch(5))

    @pytest.mark.parametrize("wait", [0, 0.02])  # close it while it works, and while it waits for room
    def test_closed_early(self, wait):
        items = prefetch(iter(int, 1))  # without end
        next(items)
        time.sleep(wait)
        items.close()
        assert threads() == []
        assert list(items) == []

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_consumer_fails(self, error):
        def consume():
            for _ in prefetch(iter(int, 1)):
                raise error("stop")

        with pytest.raises(error, match="stop"):
            consume()
        gc.collect()

    def test_producer_is_closed(self):
        closed = []

        def careful():
            try:
                yield from range(100)
            finally:
                closed.append(True)

        items = prefetch(careful())
        next(items)
        items.close()
        del items
        gc.collect()
        assert closed == [True]

    def test_never_started(self):
        prefetch(range(3))
        assert threads() == []

    @pytest.mark.parametrize("depth", [0, -1])
    def test_depth_out_of_range(self, depth):
        with pytest.raises(ValueError, match=f"depth of at least 1, got {depth}"):
            prefetch([], depth)
