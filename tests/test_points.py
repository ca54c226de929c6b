"""Where masks go on one's own pictures: a box, a CSV file, its draft; values by hand and every mistake of a user."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet.data import load_faces, points
from resnet.data.batches import masked_copies
from resnet.data.masks import POINTS, TEMPLATES, draw_mask
from resnet.data.points import COLUMNS, draft, is_upright, parse_box, picture_key, points_in_box, read_points, to_shares

FACE = np.array([(20, 18), (10, 20), (30, 20), (12, 28), (28, 28), (20, 36)], float)  # in 40x40 pixels
LINE = ",".join(f"{number:g}" for number in FACE.ravel())
HEADER = ",".join(COLUMNS)


def write_csv(path: Path, *lines: str, header: str = HEADER, encoding: str = "utf-8", end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in (header, *lines)).encode(encoding))
    return path


def write_pictures(root: Path, *files: str, width: int = 40, height: int = 40) -> Path:
    """Grey pictures, all of one level."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, height), 150).save(root / file)
    return root


@pytest.fixture
def people(tmp_path) -> Path:
    return write_pictures(tmp_path / "people", "anna/1.png", "anna/2.png", "bert/1.png", "bert/2.png")


class TestBox:
    def test_by_hand(self):
        assert parse_box("0.2, 0.1,.8,1") == (0.2, 0.1, 0.8, 1.0)

    def test_points_by_hand(self):
        placed = points_in_box((0.2, 0.1, 0.7, 0.9))
        assert placed[0].tolist() == pytest.approx([0.2 + 0.5 * 0.5, 0.1 + 0.51 * 0.8])
        assert placed[5].tolist() == pytest.approx([0.2 + 0.5 * 0.5, 0.1 + 0.97 * 0.8])

    def test_the_whole_picture_is_the_template(self):
        assert np.array_equal(points_in_box((0, 0, 1, 1)), TEMPLATES["centred"])

    @pytest.mark.parametrize(
        "text",
        [
            *("", "0.1,0.2,0.9", "0,0,1,1,1", "a,b,c,d", "0 0 1 1", "nan,0,1,1"),
            *("-0.1,0,1,1", "0,0,1.01,1", "0.5,0,0.5,1", "0,0.9,1,0.1", "10,20,100,120", "0,inf,1,1"),
        ],
    )
    def test_wrong(self, text):
        with pytest.raises(ValueError, match=r"--faces-box as left,top,right,bottom.*; got '") as caught:
            parse_box(text)
        assert repr(text) in str(caught.value)

    def test_loading(self, people):
        faces = load_faces("folder", people, faces_box="0.25,0.5,0.75,1")
        assert faces.points.shape == (6, 2)
        assert np.array_equal(faces.points, points_in_box((0.25, 0.5, 0.75, 1)))
        clean, masked = faces.pictures, masked_copies(faces, 0).pictures
        changed = np.nonzero((clean != masked).any(axis=(0, 3)))  # rows and columns
        assert changed[0].min() > 28  # the nose is at 40 * (0.5 + 0.5 * 0.51) = 30.2
        assert 8 <= changed[1].min() <= 16  # the cheek is at 40 * (0.25 + 0.5 * 0.13) = 12.6
        assert clean.shape == (4, 40, 40, 1)  # it places, it does not crop


class TestRead:
    def test_by_hand(self, tmp_path):
        read = read_points(
            write_csv(tmp_path / "p.csv", f"anna/1.png,{LINE}", f"bert/2.png,{LINE.replace('36', '37')}")
        )
        assert list(read) == ["anna/1.png", "bert/2.png"]
        assert np.array_equal(read["anna/1.png"], FACE)
        assert read["bert/2.png"][5].tolist() == [20, 37]
        assert read["anna/1.png"].dtype == np.float64

    def test_as_spreadsheets_write_it(self, tmp_path):
        """Byte order mark, semicolons, decimal commas, carriage returns, spaces, quotes, empty and further cells."""
        header = "note; " + " ;".join(reversed(COLUMNS))
        cells = ";".join(f" {number:.2f} ".replace(".", ",") for number in FACE.ravel()[::-1])
        lines = (f'"good; really";{cells};"anna/my picture.png"', ";" * 13, "", f";{cells}; PEOPLE\\bert\\2.png")
        path = write_csv(tmp_path / "p.csv", *lines, header=header, encoding="utf-8-sig", end="\r\n")
        read = read_points(path)
        assert list(read) == ["anna/my picture.png", "bert/2.png"]
        assert np.array_equal(read["bert/2.png"], FACE)

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_separators(self, tmp_path, separator):
        path = tmp_path / "p.csv"
        path.write_text(f"{HEADER}\nanna/1.png,{LINE}\n".replace(",", separator))
        assert np.array_equal(read_points(path)["anna/1.png"], FACE)

    def test_names_in_one_character_or_in_two(self):
        composed, decomposed = (unicodedata.normalize(form, "Zoë/ü.png") for form in ("NFC", "NFD"))
        assert composed != decomposed
        assert picture_key(Path("data") / decomposed) == picture_key(composed) == composed

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["anna/1.png,1,2"], r"line 2: expected 13 cells as in the first line, got 3"),
            ([f"anna/1.png,{LINE}", f"bert/1.png,{LINE},5"], "line 3: expected 13 cells .* got 14"),
            ([f"anna/1.png,{LINE}".replace("36", "x")], "line 2: expected a number in chin_y, got 'x'"),
            (["", f"anna/1.png,{LINE}".replace("36", "")], "line 3: expected a number in chin_y, got ''"),
            ([f"anna/1.png,{LINE}".replace("36", "nan")], "line 2: expected a finite number in chin_y, got 'nan'"),
            ([f"anna/1.png,{LINE}".replace("36", "1e999")], "line 2: expected a finite number"),
            ([f"anna/1.png,{LINE}", f"anna\\1.png,{LINE}"], "line 3: anna/1.png has a line already"),
            ([f"anna/1.png,{'1' * 200_000},{LINE}"], "line 2: field larger"),
        ],
    )
    def test_wrong_lines(self, tmp_path, lines, message):
        with pytest.raises(ValueError, match=rf"p\.csv, {message}"):
            read_points(write_csv(tmp_path / "p.csv", *lines))

    @pytest.mark.parametrize(
        ("header", "named"),
        [
            ("", "see file, nose_bridge_x, .*chin_y$"),
            (HEADER.replace("chin_y", "chin"), "see chin_y$"),
            (HEADER + ",chin_x", "see chin_x$"),
            ("1,2,3", "see file"),
        ],
    )
    def test_wrong_columns(self, tmp_path, header, named):
        with pytest.raises(ValueError, match=rf"p\.csv, line \d: expected a first line with each of .* once, {named}"):
            read_points(write_csv(tmp_path / "p.csv", header=header))

    def test_no_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"at .*absent\.csv \(--points\), found none.*resnet\.data\.points PEOPLE"):
            read_points(tmp_path / "absent.csv")

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
    def test_not_utf8(self, tmp_path, encoding):
        path = write_csv(tmp_path / "p.csv", f"Zoë/1.png,{LINE}", encoding=encoding)
        with pytest.raises(ValueError, match=r"p\.csv: expected text in UTF-8.*save it as CSV in UTF-8"):
            read_points(path)

    @given(content=st.binary(max_size=300), good_header=st.booleans())
    def test_any_bytes(self, tmp_path, content, good_header):
        path = tmp_path / "p.csv"
        path.write_bytes(HEADER.encode() + b"\n" + content if good_header else content)
        try:
            assert all(placed.shape == (6, 2) for placed in read_points(path).values())
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (most bytes are wrong, a few right)


class TestShares:
    def test_by_hand(self):
        shares = to_shares(FACE, slice(0, 40), slice(0, 80))
        assert shares[0].tolist() == [0.25, 0.45]
        assert shares[5].tolist() == [0.25, 0.9]

    def test_of_a_part(self):
        shares = to_shares(FACE + np.array((100, 50)), slice(50, 100), slice(90, 190))
        assert shares[0].tolist() == [0.3, 0.36]

    def test_edges_are_within(self):
        shares = to_shares(FACE, slice(18, 36), slice(10, 30))
        assert shares.min() == 0
        assert shares.max() == 1

    def test_outside(self):
        with pytest.raises(ValueError, match=r"x from 0 to 29 and y from 0 to 35.*got right_cheek \(30, 20\), chin"):
            to_shares(FACE, slice(0, 35), slice(0, 29))

    def test_upside_down(self):
        with pytest.raises(ValueError, match="upright face, the nose above the chin"):
            to_shares(40 - FACE, slice(0, 40), slice(0, 40))

    @given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.01, 0.05, 0.1, 0.3]))
    def test_upright_is_what_drawing_needs(self, seed, spread):
        rng = np.random.default_rng(seed)
        moved = np.clip(TEMPLATES["centred"] + rng.normal(0, spread, (6, 2)), 0, 1)
        try:
            draw_mask(np.zeros((8, 8, 1), np.uint8), moved, rng)
            drawn = True
        except ValueError:
            drawn = False
        assert is_upright(moved) == drawn


class TestLoading:
    def csv(self, people: Path, *lines: str) -> Path:
        return write_csv(people.parent / "points.csv", *lines)

    def test_each_picture_has_its_own(self, people):
        """Lines come in any order; the pictures' order counts."""
        moved = [FACE + np.array((0, shift)) for shift in range(4)]
        names = ["anna/1.png", "anna/2.png", "bert/1.png", "bert/2.png"]
        lines = [",".join([name, *map(str, at.ravel())]) for name, at in zip(names, moved, strict=True)]
        faces = load_faces("folder", people, size=8, points_file=self.csv(people, *lines[::-1]))
        assert faces.points.shape == (4, 6, 2)
        np.testing.assert_allclose(faces.points, np.stack(moved) / 40, rtol=1e-15)
        assert faces.notes[:0] == ()
        assert not any("line" in note for note in faces.notes)

    def test_masks_go_where_the_points_are(self, people):
        lines = [f"{name},{LINE}" for name in ("anna/1.png", "anna/2.png", "bert/1.png")]
        high = ",".join(f"{number:g}" for number in (FACE - (0, 16)).ravel())
        faces = load_faces("folder", people, points_file=self.csv(people, *lines, f"bert/2.png,{high}"))
        changed = masked_copies(faces, 3).pictures != faces.pictures
        rows = [np.nonzero(picture.any(axis=(1, 2)))[0] for picture in changed]
        assert rows[0].min() > 14
        assert rows[3].max() < 30

    def test_pixels_of_the_upright_picture(self, people):
        for name in ("anna/1.png", "anna/2.png"):
            exif = Image.Exif()
            exif[0x0112] = 6  # stored on its side: 80 wide and 40 high, upright 40 wide and 80 high
            Image.new("L", (80, 40), 150).save(people / name, exif=exif)
        lines = [f"{person}/{n}.png,{LINE}" for person in ("anna", "bert") for n in (1, 2)]
        faces = load_faces("folder", people, points_file=self.csv(people, *lines))
        np.testing.assert_allclose(faces.points[0], FACE / (40, 80))
        np.testing.assert_allclose(faces.points[3], FACE / (40, 40))

    def test_pixels_of_the_whole_frame(self, tmp_path):
        """Of LFW the middle is taken, 45 pixels from the edges of a frame of 250x250."""
        names = [f"{person}/{person}_000{n}.jpg" for person in ("Anna", "Bert") for n in (1, 2)]
        root = write_pictures(tmp_path / "lfw", *names, width=250, height=250)
        at = FACE * 4 + 45
        lines = [",".join([name, *map(str, at.ravel())]) for name in names]
        faces = load_faces("lfw", root, min_pictures=2, points_file=write_csv(tmp_path / "p.csv", *lines))
        np.testing.assert_allclose(faces.points[0], FACE * 4 / 160)

    def test_stop(self, people):
        far = LINE.replace("36", "41")
        with pytest.raises(ValueError, match=r"(?s)3 pictures.*--bad-pictures skip.*anna/2.*bert/1.*chin.*bert/2") as e:
            load_faces("folder", people, points_file=self.csv(people, f"anna/1.png,{LINE}", f"bert/1.png,{far}"))
        assert "expected a line for anna/2.png in the file of points (--points), found none" in str(e.value)

    def test_skip(self, people):
        write_pictures(people, "anna/3.png", "bert/3.png")
        names = ("anna/1.png", "anna/3.png", "bert/2.png", "bert/3.png", "carl/1.png", "anna/9.png")
        lines = [f"{name},{LINE}" for name in names]
        faces = load_faces("folder", people, points_file=self.csv(people, *lines), bad_pictures="skip")
        assert [picture_key(file) for file in faces.files] == [*names[:4]]
        assert faces.points.shape == (4, 6, 2)
        assert faces.notes[0].startswith(f"skipped: {people / 'anna/2.png'}: expected a line for anna/2.png")
        assert faces.notes[2] == f"2 lines of {people.parent / 'points.csv'} without a picture: carl/1.png, anna/9.png"

    def test_no_lines(self, people):
        with pytest.raises(ValueError, match="4 pictures cannot be used"):
            load_faces("folder", people, points_file=self.csv(people))

    @pytest.mark.parametrize(
        ("places", "named"),
        [
            ({"template": "orl", "faces_box": "0,0,1,1"}, "--template and --faces-box"),
            ({"template": "orl", "points_file": "p.csv"}, "--template and --points"),
            ({"faces_box": "0,0,1,1", "points_file": "p.csv"}, "--faces-box and --points"),
        ],
    )
    def test_one_place_only(self, people, places, named):
        with pytest.raises(ValueError, match=rf"expected one of .*, got {named}: each says where masks go"):
            load_faces("folder", people, **places)


class TestDraft:
    def test_it_says_what_the_template_says(self, people):
        write_pictures(people, "Zoë Öz/1 ü.png", "Zoë Öz/2.png", width=300, height=200)
        text, notes = draft(people)
        assert notes == []
        path = people.parent / "points.csv"
        path.write_bytes(text.encode())
        faces = load_faces("folder", people, points_file=path)
        assert len(faces) == 6
        assert np.abs(faces.points - TEMPLATES["centred"]).max() < 0.05 / 40 + 1e-9  # tenths of pixels
        assert faces.notes == load_faces("folder", people).notes

    def test_the_command(self, people, capsysbinary):
        (people / "bert/2.png").write_bytes(b"")
        assert points.main([str(people)]) == 0
        out, err = capsysbinary.readouterr()
        lines = out.decode().splitlines()
        assert lines[0] == HEADER
        assert lines[1].startswith("anna/1.png,20.0,20.4,5.2,22.4,")
        assert len(lines) == 4
        assert err.decode().startswith(f"note: cannot read picture {people / 'bert/2.png'}: ")

    def test_no_folder(self, tmp_path, capsys):
        assert points.main([str(tmp_path / "absent")]) == 1
        assert capsys.readouterr().err.startswith("error: expected one folder a person in the folder ")
        with pytest.raises(ValueError, match="absent, found nothing there"):
            points.main(["--debug", str(tmp_path / "absent")])

    def test_as_a_module(self, people):
        """No warning of a module that was loaded before it ran, and the same bytes in any locale."""
        write_pictures(people, "Zoë/1.png")
        command = [sys.executable, "-W", "error", "-m", "resnet.data.points", str(people)]
        told = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parent.parent)
        assert told.stdout.decode() == draft(people)[0]
        assert told.stderr == b""


def test_columns():
    assert COLUMNS[:3] == ("file", "nose_bridge_x", "nose_bridge_y")
    assert len(COLUMNS) == 1 + 2 * len(POINTS)
