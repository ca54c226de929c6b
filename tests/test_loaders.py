"""The loaders of LFW, RMFRD and CIFAR-10, on tiny sets made up here: values by hand, and every mistake of a user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import resnet.data.cifar10
from resnet.config import TrainingConfig
from resnet.data import load_faces
from resnet.data.cifar10 import CLASSES, RECORDS, TEST, TRAIN, load_cifar10
from resnet.data.folders import LoadOptions
from resnet.data.lfw import load_lfw
from resnet.data.masks import TEMPLATES
from resnet.data.rmfrd import MASKED, UNMASKED, load_rmfrd
from resnet.training import prepare


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write PNG, which keeps every pixel as it is, whatever the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="png")
    return path


def cut_short(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def no_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("nothing")
    return path


def ramps(height: int, width: int, blue: int = 7) -> np.ndarray:
    """Return a picture (H, W, 3): red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, blue)], axis=2).astype(np.uint8)


def lfw_file(root: Path, person: str, number: int) -> Path:
    return root / person / f"{person}_{number:04d}.jpg"


def make_lfw(root: Path, side: int = 160, **pictures_of: int) -> Path:
    """Write flat grey pictures; the grey level is the number of the picture."""
    for person, count in pictures_of.items():
        for number in range(1, count + 1):
            save(lfw_file(root, person, number), np.full((side, side), number, np.uint8))
    return root


FEW = LoadOptions(min_pictures=2, colour=False, template="lfw")


class TestLfw:
    def test_the_middle_of_a_frame(self, tmp_path):
        make_lfw(tmp_path, Anna=2, Bert=2)
        save(lfw_file(tmp_path, "Bert", 2), ramps(250, 250))
        picture = load_faces("lfw", tmp_path, min_pictures=2, colour=True).pictures[3]
        assert picture.shape == (160, 160, 3)
        assert picture[:, 0, 0].tolist() == list(range(45, 205))
        assert picture[0, :, 1].tolist() == list(range(45, 205))
        assert (picture[:, :, 2] == 7).all()

    def test_the_middle_is_taken_before_resizing(self, tmp_path):
        frame = np.full((250, 250), 255, np.uint8)
        frame[45:205, 45:205] = 0
        for person in ("Anna", "Bert"):
            for number in (1, 2):
                save(lfw_file(tmp_path, person, number), frame)
        faces = load_faces("lfw", tmp_path, 16, min_pictures=2)
        assert faces.pictures.shape == (4, 16, 16, 1)
        assert faces.pictures.max() == 0
        assert faces.notes == ()

    def test_pictures_cut_out_already_are_taken_as_they_are(self, tmp_path):
        make_lfw(tmp_path, Anna=2, Bert=1)
        picture = ramps(160, 160)
        save(lfw_file(tmp_path, "Bert", 2), picture)
        faces = load_faces("lfw", tmp_path, min_pictures=2, colour=True)
        assert np.array_equal(faces.pictures[3], picture)
        assert faces.notes == ()

    def test_frames_and_cut_pictures_together(self, tmp_path):
        make_lfw(tmp_path, 250, Anna=2)
        make_lfw(tmp_path, 160, Bert=2)
        faces = load_lfw(tmp_path, FEW)
        assert faces.pictures.shape == (4, 160, 160, 1)
        assert faces.notes == ()

    def test_order_labels_files(self, tmp_path):
        make_lfw(tmp_path, Carl_X=2, Anna_B_C=11, Bert=2)
        faces = load_lfw(tmp_path, FEW)
        assert faces.people == ("Anna_B_C", "Bert", "Carl_X")
        assert faces.labels.tolist() == [0] * 11 + [1] * 2 + [2] * 2
        assert faces.pictures[:, 80, 80, 0].tolist() == [*range(1, 12), 1, 2, 1, 2]
        assert faces.files[10] == str(tmp_path / "Anna_B_C/Anna_B_C_0011.jpg")

    def test_defaults(self, tmp_path):
        make_lfw(tmp_path, Anna=20, Bert=19, Carl=21)
        save(lfw_file(tmp_path, "Carl", 21), ramps(160, 160))
        faces = load_faces("lfw", tmp_path)
        assert faces.people == ("Anna", "Carl")
        assert faces.pictures.shape == (41, 160, 160, 1)  # grey, although a file is coloured
        assert np.array_equal(faces.points, TEMPLATES["lfw"])
        assert faces.notes == ("1 people left out, fewer than 20 pictures: Bert (19)",)
        assert np.array_equal(load_lfw(tmp_path).pictures, faces.pictures)

    def test_wishes_come_before_defaults(self, tmp_path):
        make_lfw(tmp_path, Anna=3, Bert=3, Carl=2)
        faces = load_faces("lfw", tmp_path, 12, min_pictures=3, colour=True, template="centred")
        assert faces.people == ("Anna", "Bert")
        assert faces.pictures.shape == (6, 12, 12, 3)
        assert np.array_equal(faces.points, TEMPLATES["centred"])

    def test_other_sets_keep_their_default_of_two_pictures(self, tmp_path):
        faces = load_faces("folder", make_lfw(tmp_path, Anna=2, Bert=2, Carl=1))
        assert faces.people == ("Anna", "Bert")

    def test_people_with_too_few_pictures_are_counted_and_not_opened(self, tmp_path):
        make_lfw(tmp_path, Anna=20, Bert=20)
        for number in range(30):
            no_picture(lfw_file(tmp_path, f"Rare{number}", 1))
        faces = load_faces("lfw", tmp_path)
        assert len(faces) == 40
        (note,) = faces.notes
        assert note.startswith("30 people left out, fewer than 20 pictures: Rare0 (1), Rare1 (1), ")
        assert note.endswith("Rare9 (1), +20 more")

    def test_too_few_people(self, tmp_path):
        make_lfw(tmp_path, Anna=20, Bert=19)
        with pytest.raises(ValueError, match=r"at least 2 people with 20 or more .* got 1; .* Bert \(19\)"):
            load_faces("lfw", tmp_path)

    @pytest.mark.parametrize("below", [".", "lfw", "lfw_funneled", "lfw-deepfunneled"])
    def test_where_the_archives_unpack_to(self, tmp_path, below):
        make_lfw(tmp_path / below, Anna=2, Bert=2)
        (tmp_path / below / "pairs_01.txt").touch()  # as in lfw-funneled.tgz
        faces = load_lfw(tmp_path, FEW)
        assert faces.people == ("Anna", "Bert")
        assert faces.notes[0].startswith("1 ignored")

    def test_two_variants(self, tmp_path):
        for name in ("lfw", "lfw_funneled"):
            make_lfw(tmp_path / name, Anna=2, Bert=2)
        with pytest.raises(ValueError, match=r"one variant .*/lfw, .*/lfw_funneled; name one of them"):
            load_lfw(tmp_path, FEW)
        assert "lfw_funneled" in load_lfw(tmp_path / "lfw_funneled", FEW).files[0]

    @pytest.mark.parametrize(("height", "width"), [(160, 250), (250, 160), (112, 92), (249, 249)])
    def test_another_size(self, tmp_path, height, width):
        make_lfw(tmp_path, Anna=3, Bert=2)
        odd = save(lfw_file(tmp_path, "Anna", 2), np.zeros((height, width), np.uint8))
        with pytest.raises(ValueError, match=rf"(?s)1 pictures .*{odd}: expected 250x250 .*160x160.*{width}x{height}"):
            load_lfw(tmp_path, FEW)
        faces = load_faces("lfw", tmp_path, min_pictures=2, bad_pictures="skip")
        assert faces.pictures[:, 0, 0, 0].tolist() == [1, 3, 1, 2]
        (note,) = faces.notes
        assert note.startswith(f"skipped: {odd}: expected 250x250")

    def test_all_that_is_wrong_is_told_at_once_in_order(self, tmp_path):
        make_lfw(tmp_path, Anna=3, Bert=3)
        cut_short(save(lfw_file(tmp_path, "Anna", 1), ramps(160, 160)))
        save(lfw_file(tmp_path, "Anna", 3), np.zeros((9, 9), np.uint8))
        no_picture(lfw_file(tmp_path, "Bert", 2))
        with pytest.raises(ValueError, match=r"(?s)3 pictures .*Anna_0001.*Anna_0003.*9x9.*Bert_0002"):
            load_lfw(tmp_path, FEW)

    def test_no_place_given(self):
        with pytest.raises(ValueError, match=r"'lfw' needs --data-dir DIR.*vis-www\.cs\.umass\.edu/lfw/lfw\.tgz"):
            load_faces("lfw")

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"absent, found nothing there\. Download lfw\.tgz"):
            load_faces("lfw", tmp_path / "absent")
        (tmp_path / "lfw.tgz").touch()
        with pytest.raises(ValueError, match=r"lfw\.tgz, found a file there\. Download"):
            load_faces("lfw", tmp_path / "lfw.tgz")

    def test_another_set(self, tmp_path):
        save(tmp_path / "anna/1.jpg", ramps(160, 160))
        with pytest.raises(
            ValueError, match=rf"<Name>/<Name>_0001\.jpg .* in {tmp_path} .*data set 'folder'.*Download"
        ):
            load_faces("lfw", tmp_path)

    def test_train_takes_it(self, tmp_path):
        make_lfw(tmp_path / "lfw", Anna=20, Bert=20)
        config = TrainingConfig(data="lfw", data_dir=str(tmp_path), image_size=8, arch="resnet20", backend="numpy")
        training = prepare(config)
        assert training.train_faces.people == ("Anna", "Bert")
        assert training.train_faces.pictures.shape == (20, 8, 8, 1)


def make_rmfrd(root: Path, masked: dict[str, int], unmasked: dict[str, int]) -> Path:
    """Write flat pictures, 6 high and 4 wide: red tells the number, green the mask, blue the last letter."""
    for folder, people, green in ((MASKED, masked, 200), (UNMASKED, unmasked, 50)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for person, count in people.items():
            for number in range(1, count + 1):
                colour = np.array([number, green, ord(person[-1])], np.uint8)
                save(root / folder / person / f"{number}.png", np.tile(colour, (6, 4, 1)))
    return root


class TestRmfrd:
    @pytest.mark.parametrize("below", [".", "self-built-masked-face-recognition-dataset"])
    def test_a_label_means_the_same_person_in_both(self, tmp_path, below):
        make_rmfrd(tmp_path / below, {"zoe": 2, "ann": 1, "kim": 1}, {"bob": 2, "zoe": 11, "kim": 1})
        masked, unmasked = load_rmfrd(tmp_path)
        assert masked.people == unmasked.people == ("ann", "bob", "kim", "zoe")
        assert masked.labels.tolist() == [0, 2, 3, 3]
        assert unmasked.labels.tolist() == [1, 1, 2] + [3] * 11
        assert masked.pictures.shape == (4, 6, 4, 3)
        for part, green in ((masked, 200), (unmasked, 50)):
            assert (part.pictures[..., 1] == green).all()
            names = [part.people[label] for label in part.labels]
            assert part.pictures[:, 5, 3, 2].tolist() == [ord(name[-1]) for name in names]
            assert [Path(file).parent.name for file in part.files] == names
            assert part.notes == ()
            assert np.array_equal(part.points, TEMPLATES["rmfrd"])
        assert unmasked.pictures[3:, 0, 0, 0].tolist() == list(range(1, 12))  # 10.png after 9.png
        assert MASKED in masked.files[0]
        assert UNMASKED in unmasked.files[0]

    def test_pixels(self, tmp_path):
        make_rmfrd(tmp_path, {"ann": 1}, {"bob": 1})
        save(tmp_path / MASKED / "ann/1.png", ramps(6, 4))
        assert np.array_equal(load_rmfrd(tmp_path).masked.pictures[0], ramps(6, 4))

    def test_size_of_both_together(self, tmp_path):
        make_rmfrd(tmp_path, {"ann": 3}, {"bob": 3})  # 6 high and 4 wide
        for number in (2, 3):
            save(tmp_path / MASKED / f"ann/{number}.png", ramps(9, 5))  # the most frequent among masked ones alone
        masked, unmasked = load_rmfrd(tmp_path)
        assert masked.pictures.shape == unmasked.pictures.shape == (3, 6, 4, 3)
        assert masked.notes == unmasked.notes
        assert "mixed sizes, all made 4x6 (width x height)" in masked.notes[0]
        masked, unmasked = load_rmfrd(tmp_path, 8)
        assert masked.pictures.shape == unmasked.pictures.shape == (3, 8, 8, 3)

    def test_colour(self, tmp_path):
        make_rmfrd(tmp_path, {"ann": 1}, {"bob": 1})
        grey = np.arange(24, dtype=np.uint8).reshape(6, 4)
        save(tmp_path / UNMASKED / "bob/1.png", grey)
        in_colour, in_grey = load_rmfrd(tmp_path), load_rmfrd(tmp_path, colour=False)
        assert np.array_equal(in_colour.unmasked.pictures[0], np.stack([grey] * 3, axis=2))
        assert np.array_equal(in_grey.unmasked.pictures[0, :, :, 0], grey)
        assert in_grey.masked.pictures.shape == (1, 6, 4, 1)

    def test_broken_pictures_and_nested_oddities_are_noted(self, tmp_path):
        make_rmfrd(tmp_path, {"ann": 2, "bob": 1}, {"bob": 2, "cid": 1})
        broken = cut_short(save(tmp_path / MASKED / "ann/3.png", ramps(60, 60)))
        lost = no_picture(tmp_path / UNMASKED / "cid/1.png")
        (tmp_path / MASKED / "empty").mkdir()
        nested = save(tmp_path / MASKED / "ann/deeper/1.png", ramps(6, 4)).parent
        stray = no_picture(tmp_path / UNMASKED / "list.txt")
        masked, unmasked = load_rmfrd(tmp_path)
        assert masked.people == unmasked.people == ("ann", "bob")
        assert masked.labels.tolist() == [0, 0, 1]
        assert unmasked.labels.tolist() == [1, 1]
        ignored, *skipped, left_out = masked.notes
        assert ignored == f"2 ignored, hidden or not a picture in a person's folder: {nested}, {stray}"
        assert skipped[0].startswith(f"skipped: cannot read picture {broken}: ")
        assert skipped[1].startswith(f"skipped: cannot read picture {lost}: ")
        assert left_out == "2 people left out, fewer than 1 pictures: cid (0), empty (0)"
        with pytest.raises(ValueError, match=rf"(?s)2 pictures cannot be used.*{broken}.*{lost}"):
            load_rmfrd(tmp_path, bad_pictures="stop")

    def test_one_part_without_a_usable_picture(self, tmp_path):
        make_rmfrd(tmp_path, {}, {"ann": 1, "bob": 1})
        with pytest.raises(ValueError, match=rf"{MASKED}/<person>, found none that can be used\. Download"):
            load_rmfrd(tmp_path)
        make_rmfrd(tmp_path, {"ann": 1, "bob": 1}, {})
        for path in (tmp_path / UNMASKED).glob("*/*"):
            no_picture(path)
        with pytest.raises(ValueError, match=rf"{UNMASKED}/<person>, found none that can be used\. Download"):
            load_rmfrd(tmp_path)

    def test_nothing_usable(self, tmp_path):
        with pytest.raises(ValueError, match=r"at least 2 people .* got 0"):
            load_rmfrd(make_rmfrd(tmp_path, {}, {}))

    def test_a_part_is_missing(self, tmp_path):
        with pytest.raises(ValueError, match=rf"{MASKED} and {UNMASKED} together in {tmp_path} .*found neither\. Down"):
            load_rmfrd(tmp_path)
        (tmp_path / UNMASKED).mkdir()
        with pytest.raises(ValueError, match=rf"found only {UNMASKED}\. Download .*X-zhangyang"):
            load_rmfrd(tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"absent, found nothing there\. Download"):
            load_rmfrd(tmp_path / "absent")

    @pytest.mark.parametrize(
        ("option", "message"),
        [({"size": 0}, "at least 1 pixel, got 0"), ({"bad_pictures": "ignore"}, "got 'ignore'")],
    )
    def test_option_out_of_range(self, tmp_path, option, message):
        with pytest.raises(ValueError, match=message):
            load_rmfrd(make_rmfrd(tmp_path, {"ann": 1}, {"bob": 1}), **option)


def record(label: int, start: int = 0) -> bytes:
    """Return a record byte by byte: red is start + row, green start + column, blue 100 + start + row - column."""
    places = [(row, column) for row in range(32) for column in range(32)]
    red = bytes(start + row for row, _ in places)
    green = bytes(start + column for _, column in places)
    blue = bytes(100 + start + row - column for row, column in places)
    return bytes([label]) + red + green + blue


def make_cifar10(root: Path, records: int = 2, train: tuple[str, ...] = TRAIN) -> Path:
    """Write the official files; the first byte of red in record k of file f is 10f + k, the test file being f = 6."""
    root.mkdir(parents=True, exist_ok=True)
    for name in (*train, TEST):
        f = 6 if name == TEST else 1 + TRAIN.index(name)
        (root / name).write_bytes(b"".join(record((f + k) % 10, 10 * f + k) for k in range(records)))
    (root / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")  # as officially: an empty line at the end
    return root


@pytest.fixture
def two_records_are_all(monkeypatch):
    monkeypatch.setattr(resnet.data.cifar10, "RECORDS", 2)


class TestCifar10:
    @pytest.mark.parametrize("below", [".", "cifar-10-batches-bin"])
    def test_planes_rows_and_columns(self, tmp_path, below):
        make_cifar10(tmp_path / below)
        picture = load_cifar10(tmp_path).train.pictures[3]  # of file 2, record 1: start 21
        assert picture.shape == (32, 32, 3)
        assert picture[5, 9].tolist() == [21 + 5, 21 + 9, 121 + 5 - 9]
        assert picture[31, 0].tolist() == [21 + 31, 21, 121 + 31]
        rows, columns = np.mgrid[:32, :32]
        assert np.array_equal(picture, np.stack([21 + rows, 21 + columns, 121 + rows - columns], axis=2))

    def test_all_files_in_order(self, tmp_path, two_records_are_all):
        train, test = load_cifar10(make_cifar10(tmp_path))
        assert train.pictures[:, 0, 0, 0].tolist() == [10, 11, 20, 21, 30, 31, 40, 41, 50, 51]
        assert train.labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
        assert train.files[:3] == ("data_batch_1.bin#0", "data_batch_1.bin#1", "data_batch_2.bin#0")
        assert test.pictures[:, 0, 0, 0].tolist() == [60, 61]
        assert test.labels.tolist() == [6, 7]
        assert test.files == ("test_batch.bin#0", "test_batch.bin#1")
        assert train.pictures.flags.c_contiguous
        assert train.people == test.people == CLASSES
        assert train.notes == test.notes == ()

    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(1, 4), min_size=2, max_size=6))
    def test_what_is_written_is_read(self, seed, counts):
        rng = np.random.default_rng(seed)
        names = [*TRAIN[: len(counts) - 1], TEST]
        pictures = [rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in counts]
        labels = [rng.integers(0, 10, count) for count in counts]
        with tempfile.TemporaryDirectory() as folder:
            for name, some, theirs in zip(names, pictures, labels, strict=True):
                red, green, blue = (some[..., channel].reshape(len(some), -1) for channel in range(3))
                rows = np.concatenate([theirs[:, np.newaxis].astype(np.uint8), red, green, blue], axis=1)
                Path(folder, name).write_bytes(rows.tobytes())
            train, test = load_cifar10(folder)
        assert np.array_equal(train.pictures, np.concatenate(pictures[:-1]))
        assert np.array_equal(train.labels, np.concatenate(labels[:-1]))
        assert np.array_equal(test.pictures, pictures[-1])
        assert np.array_equal(test.labels, labels[-1])

    @settings(max_examples=100)
    @given(
        length=st.one_of(st.integers(0, 4 * 3073), st.sampled_from([3072, 3073, 3074, 2 * 3073])),
        seed=st.integers(0, 2**32 - 1),
        highest=st.sampled_from([9, 10, 255]),
        name=st.sampled_from([*TRAIN, TEST]),
    )
    def test_any_bytes_are_loaded_or_refused(self, length, seed, highest, name):
        content = np.random.default_rng(seed).integers(0, highest + 1, length, dtype=np.uint8).tobytes()
        with tempfile.TemporaryDirectory() as folder:
            path = make_cifar10(Path(folder), records=1) / name
            path.write_bytes(content)
            if not length or length % 3073 or max(content[::3073]) > 9:
                with pytest.raises(ValueError, match=str(path)):
                    load_cifar10(folder)
            else:
                train, test = load_cifar10(folder)
                records = length // 3073
                assert (len(train), len(test)) == ((5, records) if name == TEST else (4 + records, 1))

    @settings(max_examples=50)
    @given(content=st.one_of(st.binary(max_size=40), st.text("ab\r\n\x0c", max_size=40).map(str.encode)))
    def test_any_names_are_ten_or_refused(self, content):
        with tempfile.TemporaryDirectory() as folder:
            path = make_cifar10(Path(folder), records=1, train=TRAIN[:1]) / "batches.meta.txt"
            path.write_bytes(content)
            try:
                people = load_cifar10(folder).train.people
            except ValueError as error:
                people = ()
                message = str(error)
            assert len(set(people)) == 10 or str(path) in message

    def test_subsets_are_noted(self, tmp_path):
        train, test = load_cifar10(make_cifar10(tmp_path, 1, train=(TRAIN[0], TRAIN[3])))
        assert train.notes == (
            "3 of the 5 training files are missing: data_batch_2.bin, data_batch_3.bin, data_batch_5.bin",
            "data_batch_1.bin has 1 of the 10000 official pictures",
            "data_batch_4.bin has 1 of the 10000 official pictures",
        )
        assert train.files == ("data_batch_1.bin#0", "data_batch_4.bin#0")
        assert test.notes == ("test_batch.bin has 1 of the 10000 official pictures",)

    def test_names_of_its_own(self, tmp_path):
        make_cifar10(tmp_path)
        (tmp_path / "batches.meta.txt").write_text("\r\n".join("abcdefghij"))
        assert load_cifar10(tmp_path).train.people == tuple("abcdefghij")

    def test_no_names(self, tmp_path):
        (make_cifar10(tmp_path) / "batches.meta.txt").unlink()
        for part in load_cifar10(tmp_path):
            assert part.people == CLASSES
            assert part.notes[0].startswith("no batches.meta.txt there: classes have their well-known names, airplane")

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ("abcdefghi", "9 names, 9 different"),
            ("abcdefghijk", "11 names, 11"),
            ("abcdefghii", "10 names, 9"),
            ("abcdefghija", "11 names, 10"),
        ],
    )
    def test_wrong_names(self, tmp_path, names, found):
        (make_cifar10(tmp_path) / "batches.meta.txt").write_text("\n".join(names))
        with pytest.raises(
            ValueError, match=rf"batches\.meta\.txt: expected 10 different .*, found {found}.* Download"
        ):
            load_cifar10(tmp_path)

    def test_a_large_file_of_names_is_refused_unread(self, tmp_path):
        path = make_cifar10(tmp_path) / "batches.meta.txt"
        os.truncate(path, 2**40)  # of which nothing is stored
        with pytest.raises(ValueError, match=rf"{path}: expected names of classes in up to 10000 bytes, found 1099511"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
    @pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
    def test_cut_short(self, tmp_path, name, size):
        path = make_cifar10(tmp_path) / name
        os.truncate(path, size)
        with pytest.raises(ValueError, match=rf"{path}: expected a multiple of 3073 .*{size}: cut short.*Download"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("records", [RECORDS + 1, 10**9])
    def test_too_long_is_refused_unread(self, tmp_path, records):
        path = make_cifar10(tmp_path) / "data_batch_2.bin"
        os.truncate(path, records * 3073)  # three terabytes of zeros, none of them stored
        with pytest.raises(ValueError, match=rf"{path}: expected at most 10000 records, found {records}"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("label", [10, 255])
    def test_label_out_of_range(self, tmp_path, label):
        path = make_cifar10(tmp_path) / "data_batch_2.bin"
        path.write_bytes(record(9) + record(label) + record(77))
        with pytest.raises(ValueError, match=rf"{path}: expected labels from 0 to 9, found {label} in record 1,"):
            load_cifar10(tmp_path)

    def test_files_missing(self, tmp_path):
        path = make_cifar10(tmp_path) / TEST
        path.unlink()
        with pytest.raises(ValueError, match=rf"expected test_batch\.bin in {tmp_path}, found no such file\. Download"):
            load_cifar10(tmp_path)
        path.write_bytes(record(0))
        for name in TRAIN:
            (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=r"expected data_batch_1\.bin \.\.\. data_batch_5\.bin in"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("below", [".", "cifar-10-batches-py"])
    @pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
    def test_the_pickled_version(self, tmp_path, below, name):
        path = no_picture(tmp_path / below / name)
        with pytest.raises(ValueError, match=rf"found the pickled {path}\. Download .*cifar-10-binary\.tar\.gz"):
            load_cifar10(tmp_path)

    def test_no_cifar_there(self, tmp_path):
        with pytest.raises(ValueError, match=rf"in {tmp_path} or in cifar-10-batches-bin below it, found none\. Down"):
            load_cifar10(tmp_path)
        with pytest.raises(ValueError, match=r"absent, found nothing there\. Download"):
            load_cifar10(tmp_path / "absent")
        archive = no_picture(tmp_path / "cifar-10-binary.tar.gz")
        with pytest.raises(ValueError, match=r"tar\.gz, found a file there\. Download"):
            load_cifar10(archive)
