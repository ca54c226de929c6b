"""Draw a mask on a face: a surgical, cloth, KN95 or dark mask from six facial points.

A mask is a sheet with coordinates of its own: `u` runs from -1 at its left side over 0 at the nose to 1 at its right
side, `v` from 0 at its top edge to 1 at its bottom edge. Outline, pleats, seams, wrinkles and prints are short formulas
in `u` and `v`, so they follow the face; `resnet.data.mask_styles` has those of each style. They are computed on a grid
finer than the picture and averaged down to it, which makes the edges smooth.

The light on a mask is measured on what stays visible above it, never on what it covers: a mask must not tell a
recogniser whether the face below it is bright or bearded.

`python -m resnet.data.masks` writes a sheet of examples.

Letters: N faces, H height, W width, C channels (1 grey, 3 RGB); F samples a pixel along each axis; h, w height and
width of the part of the picture that the mask touches; K points along a strap.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from resnet.command import end_well, make_parser
from resnet.data.mask_styles import COLOURS, CUTS, STRAPS, STYLES, Cut, Floats, roundness, wrinkles

Picture: TypeAlias = NDArray[np.uint8]
Points: TypeAlias = NDArray[np.float64]

POINTS = ("nose_bridge", "left_cheek", "right_cheek", "left_jaw", "right_jaw", "chin")
"""The six facial points, left and right as in the picture. A mask's top edge runs over the bridge of the nose to both
ends of the face below the eyes, its bottom edge under the chin to both ends of the face beside the mouth."""
NOSE, LEFT_CHEEK, RIGHT_CHEEK, LEFT_JAW, RIGHT_JAW, CHIN = range(len(POINTS))
SIDES = ((LEFT_CHEEK, LEFT_JAW), (RIGHT_CHEEK, RIGHT_JAW))

TEMPLATES: dict[str, Points] = {
    "orl": np.array([(0.49, 0.53), (0.12, 0.58), (0.87, 0.58), (0.19, 0.81), (0.80, 0.81), (0.49, 0.97)]),
    "lfw": np.array([(0.50, 0.48), (0.24, 0.53), (0.76, 0.53), (0.28, 0.76), (0.72, 0.76), (0.50, 0.92)]),
    "rmfrd": np.array([(0.48, 0.51), (0.07, 0.56), (0.90, 0.56), (0.15, 0.82), (0.82, 0.82), (0.48, 0.99)]),
    "centred": np.array([(0.50, 0.51), (0.13, 0.56), (0.87, 0.56), (0.20, 0.80), (0.80, 0.80), (0.50, 0.97)]),
}
"""Where the points lie in a data set's aligned pictures, as (x / width, y / height): read off mean faces, checked on a
hundred single ones. "lfw" is the central 160x160 of the 250x250 frame, "centred" any tight crop of a frontal face."""

JITTER, DROP, TILT = 0.02, 0.09, 4.0  # how far a mask strays: two shares of its height (nose bridge to chin), degrees
SKIN = np.array([205, 165, 145])  # light skin in good light, in a photograph: the measure of the light on a face
LUMA = np.array([0.299, 0.587, 0.114])  # how much red, green and blue count in a grey picture (ITU-R BT.601)
SMALLEST = 8  # pixels a side: below, a mask has no room for its edges


# Geometry, in pixels.


def _worn(points: Points, size: tuple[int, int], cut: Cut, rng: np.random.Generator) -> Points:
    """The six points (6, 2) in a picture of `size` (W, H), moved a little, lowered and tilted as masks are worn.

    Only jitter and tilt can raise a point, so points that clear the eyes keep clear of them.
    """
    worn = points * size
    height = worn[CHIN, 1] - worn[NOSE, 1]
    worn += rng.uniform(-JITTER, JITTER, worn.shape) * height
    worn[[NOSE, LEFT_CHEEK, RIGHT_CHEEK], 1] += np.array([1, 0.6, 0.6]) * rng.uniform(0, DROP) * height
    tilt = np.deg2rad(rng.uniform(-TILT, TILT))
    turn = np.array([(np.cos(tilt), np.sin(tilt)), (-np.sin(tilt), np.cos(tilt))])
    worn = (worn - worn[NOSE]) @ turn + worn[NOSE]  # (6, 2) @ (2, 2)
    for cheek, jaw in SIDES:
        side = worn[jaw] - worn[cheek]
        worn[cheek] += cut.short * side
        worn[jaw] -= 0.5 * cut.short * side
    return worn


def _straps(worn: Points, width: float, height: float) -> Points:
    """The four straps (4, K, 2, 2): both borders (x, y) of each along its way from the mask to the ear."""
    along = np.linspace(0, 1, 9 + int(height) // 10)[:, None]  # (K, 1)
    middle = worn.mean(axis=0)
    straps = []
    for cheek, jaw in SIDES:
        ear = worn[cheek] + (0.28 * (worn[cheek, 0] - worn[NOSE, 0]), 0)
        for corner, lift in ((worn[cheek], 0.07), (worn[jaw], -0.14)):
            start = corner + width * (middle - corner) / np.hypot(*(middle - corner))  # its end hides under the mask
            way = ear - (0, lift * height) - start
            line = start + along * way + along * (1 - along) * (0, 0.06 * height)  # (K, 2), sagging a little
            border = 0.5 * width * (1 - 0.6 * along) * (-way[1], way[0]) / np.hypot(*way)  # (K, 2), tapering
            straps.append(np.stack([line - border, line + border], axis=1))  # (K, 2, 2)
    return np.stack(straps)


def _window(touched: Points, margin: float, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns, within a picture of `size` (W, H), of all points touched (n, 2) and a margin around them."""
    left, top = np.clip(touched.min(axis=0) - margin, 0, np.subtract(size, 1)).astype(int).tolist()
    right, bottom = np.clip(touched.max(axis=0) + margin + 1, 1, size).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


def _samples(pixels: slice, F: int) -> Points:
    """Where the samples of a row or column of pixels lie, F to a pixel."""
    return pixels.start + (np.arange((pixels.stop - pixels.start) * F) + 0.5) / F


def _edge(x: Points, left: Points, middle: Points, right: Points, power: float) -> Points:
    """The y at each x of a curve from the left point (2,) over the middle one to the right one, and on beyond them."""
    end_x, end_y = np.where(x < middle[0], left[:, None], right[:, None])  # (2, w·F)
    share = np.clip((x - middle[0]) / (end_x - middle[0]), 0, 1.3)
    edge: Points = middle[1] + (end_y - middle[1]) * share**power
    return edge


def _coordinates(worn: Points, cut: Cut, y: Points, x: Points) -> tuple[Floats, Floats]:
    """The sheet's coordinates (u, v), (h·F, w·F) each, at the samples y (h·F,) and x (w·F,)."""
    top = _edge(x, worn[LEFT_CHEEK], worn[NOSE], worn[RIGHT_CHEEK], cut.top)
    bottom = _edge(x, worn[LEFT_JAW], worn[CHIN], worn[RIGHT_JAW], cut.bottom)
    v = (y[:, None] - top) / np.maximum(bottom - top, 1)  # (h·F, w·F)
    lines = ((LEFT_CHEEK, LEFT_JAW), (NOSE, CHIN), (RIGHT_CHEEK, RIGHT_JAW))
    left, middle, right = (np.interp(y, worn[line, 1], worn[line, 0])[:, None] for line in lines)  # (h·F, 1) each
    u = (x - middle) / np.maximum(np.where(x < middle, middle - left, right - middle), 1)  # (h·F, w·F)
    return u.astype(np.float32), v.astype(np.float32)


def _strap_cover(straps: Points, size: tuple[int, int]) -> Floats:
    """How much of each sample, (h·F, w·F), straps given in samples cover; they fade on their way behind the ear."""
    layer = Image.new("L", size)
    pen = ImageDraw.Draw(layer)
    for strap in straps:
        for to_go, (near, far) in zip(range(len(strap) - 1, 0, -1), pairwise(strap), strict=True):
            pen.polygon([*map(tuple, near), *map(tuple, far[::-1])], fill=min(500 * to_go // len(strap), 255))
    return np.asarray(layer, dtype=np.float32) / np.float32(255)


def _average(samples: Floats, F: int) -> Floats:
    """The mean of every F x F samples: (h·F, w·F, C) to (h, w, C)."""
    rows, columns, C = samples.shape
    return samples.reshape(rows // F, F, columns // F, F, C).mean(axis=(1, 3))  # (h, F, w, F, C) -> (h, w, C)


# Light and colour.


def _seen(colour: Sequence[float] | Points, C: int) -> Floats:
    """An RGB colour as a picture of C channels shows it: (3,), or its grey (1,)."""
    rgb = np.asarray(colour)
    return (rgb if C == 3 else np.atleast_1d(rgb @ LUMA)).astype(np.float32)  # (3,) @ (3,)


def _light(picture: Picture, worn: Points, height: float) -> Floats:
    """The light on the left and on the right of a face, (2, C); 1 is the light in which light skin looks like `SKIN`.

    It is the 70th percentile of the strip above the mask, as eyes, brows and hair are dark. Half of its tint counts as
    the skin's own, and a third of it reaches the other side.
    """
    _, W, C = picture.shape
    bottom = max(int(worn[:, 1].min()), 1)
    top = max(int(bottom - 0.55 * height), 0)
    left, middle, right = np.clip(worn[[LEFT_CHEEK, NOSE, RIGHT_CHEEK], 0], 0, W - 1).astype(int).tolist()
    sides = []
    for start, stop in ((left, middle), (middle, right)):
        strip = np.sort(picture[top:bottom, start : max(stop, start + 1)].reshape(-1, C), axis=0)  # (pixels, C)
        sides.append(strip[int(0.7 * len(strip))])
    light = np.stack(sides) / _seen(SKIN, C)  # (2, C)
    light = 0.5 * light + 0.5 * light.mean(axis=1, keepdims=True)
    return np.clip(0.65 * light + 0.35 * light.mean(axis=0), 0.1, 1.05).astype(np.float32)


def _shadow(cover: Floats, reach: float) -> Floats:
    """The soft shadow (h, w, 1) that a cover (h, w, 1) casts: only below itself, as light comes from above."""
    layer = Image.fromarray((255 * cover[..., 0]).astype(np.uint8))
    soft = np.asarray(layer.filter(ImageFilter.BoxBlur(reach)), dtype=np.float32) / np.float32(255)
    down = math.ceil(reach) + 1
    return np.pad(soft, ((down, 0), (0, 0)))[: len(soft), :, None]  # (h, w) moved down, -> (h, w, 1)


def _cloth(style: str, u: Floats, v: Floats, C: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The colours of a mask (h·F, w·F, C) and of its straps (C,) in a light of 1."""
    cut, colours = CUTS[style], COLOURS[style]
    first = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.92, 1.05) + rng.normal(0, 3, 3)
    second = first * rng.choice((0.6, 0.75, 1.25, 1.4))
    ground, ink = (_seen(np.clip(colour, 8, 235), C) for colour in (first, second))
    shade = cut.relief(u, v, rng) * wrinkles(u, v, rng) * roundness(u, v)
    cloth = ground + (ink - ground) * cut.print(u, v, rng)[..., None]  # (h·F, w·F, C)
    return cloth * shade[..., None], _seen(STRAPS[style], C) if style in STRAPS else ground


# What others call.


def draw_mask(picture: Picture, points: Points, rng: np.random.Generator, style: str | None = None) -> Picture:
    """Return the picture with a mask drawn on its face: over mouth, chin and most of the nose, never over the eyes.

    Colour, height, tilt and folds (and the style, if None) come from `rng`: one state of it always gives one mask. The
    top edge keeps below the points of nose and cheeks, but for a jitter of 2 % of the mask's height and a tilt of at
    most 4 degrees about the nose.

    Args:
        picture: uint8 (H, W, C), C = 1 (grey) or 3 (RGB), or (H, W); left untouched.
        points: (6, 2), where the `POINTS` are, as (x / width, y / height).
        rng: the only source of chance.
        style: one of `STYLES`.

    Returns:
        A new uint8 array of the picture's shape.

    Raises:
        ValueError: a wrong dtype, shape or number of channels, an unknown style, points outside the picture or not in
            upright order.

    """
    pixels, points = _checked(picture, points, style)
    H, W, C = pixels.shape
    style = style or STYLES[rng.integers(len(STYLES))]
    cut = CUTS[style]
    F = min(max(360 // max(H, W), 2), 4)  # small pictures show their edges most, and can afford more samples
    worn = _worn(points, (W, H), cut, rng)
    height = float(worn[CHIN, 1] - worn[NOSE, 1])
    straps = _straps(worn, cut.strap * height, height)
    window = _window(np.vstack([worn, straps.reshape(-1, 2)]), 2 + 0.1 * height, (W, H))  # (6 + 4·K·2, 2)
    y, x = (_samples(pixels, F) for pixels in window)

    u, v = _coordinates(worn, cut, y, x)
    mask = (np.abs(u) < 1 + cut.bulge * np.sin(np.pi * v)) & (v > 0) & (v < 1)
    thread = _strap_cover((straps - (window[1].start, window[0].start)) * F, (len(x), len(y)))
    cover = np.maximum(mask, thread)[..., None]  # (h·F, w·F, 1)
    cloth, strap = _cloth(style, u, v, C, rng)
    left, right = _light(pixels, worn, height)
    light = left + (right - left) * (0.5 + 0.5 * np.clip(u, -1, 1))[..., None]  # (h·F, w·F, C)
    colour = _average(np.where(mask[..., None], cloth, 0.92 * strap) * light * cover, F)  # (h, w, C)
    cover = _average(cover, F)  # (h, w, 1)

    skin = pixels[window] * (1 - 0.4 * _shadow(cover, max(0.05 * height, 1.0)))
    grain = rng.normal(0, 2, cover.shape) * cover
    masked = pixels.copy()
    masked[window] = np.clip(np.round(skin * (1 - cover) + colour + grain), 0, 255)
    return masked.reshape(picture.shape)


def _checked(picture: Picture, points: Points, style: str | None) -> tuple[Picture, Points]:
    """The picture as (H, W, C) and the points as float64 (6, 2), once found good; see `draw_mask`."""
    pixels = picture[..., None] if picture.ndim == 2 else picture  # (H, W) -> (H, W, 1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"expected a picture uint8 (H, W, 1 or 3) or (H, W), got {picture.dtype} {picture.shape}")
    if min(picture.shape[:2]) < SMALLEST:
        raise ValueError(f"expected a picture of at least {SMALLEST}x{SMALLEST} pixels, got {picture.shape}")
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known are {', '.join(STYLES)}")
    points = np.asarray(points, dtype=np.float64)
    if points.shape != (len(POINTS), 2):
        raise ValueError(f"expected points (6, 2), an (x, y) for each of {', '.join(POINTS)}; got {points.shape}")
    if not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"expected points as (x / width, y / height) between 0 and 1, got {points.tolist()}")
    x, y = points.T  # (6,) each
    upright = y[NOSE] < y[CHIN] and all(y[cheek] < y[jaw] for cheek, jaw in SIDES)
    if not (upright and x[LEFT_CHEEK] < x[NOSE] < x[RIGHT_CHEEK] and x[LEFT_JAW] < x[CHIN] < x[RIGHT_JAW]):
        raise ValueError(f"expected points of an upright face: {', '.join(POINTS)}; got {points.tolist()}")
    return pixels, points


# The command.

GAP, HEADER, TILE = 4, 16, 128  # pixels: between tiles, for the names on top, least height of a tile


def mask_sheet(pictures: Picture, points: Points, rng: np.random.Generator, columns: int = 1) -> Image.Image:
    """Each face (N, H, W, C) beside itself in a mask of every style, `columns` faces in a row, styles named on top.

    Pictures are enlarged by the smallest whole number that makes them 128 pixels high. Raises what `draw_mask` does.
    """
    titles = ("original", *STYLES) * columns
    H, W = pictures.shape[1:3]
    zoom = -(-TILE // H)
    across, down = W * zoom + GAP, H * zoom + GAP
    sheet = Image.new("RGB", (len(titles) * across + GAP, -(-len(pictures) // columns) * down + HEADER + GAP), "white")
    for place, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((GAP + place * across, 3), title, fill="black")
    tiles = [tile for face in pictures for tile in (face, *(draw_mask(face, points, rng, style) for style in STYLES))]
    for place, tile in enumerate(tiles):
        row, column = divmod(place, len(titles))
        image = Image.fromarray(tile.squeeze()).resize((W * zoom, H * zoom), Image.Resampling.BICUBIC)  # grey: (H, W)
        sheet.paste(image, (GAP + column * across, GAP + HEADER + row * down))
    return sheet


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser("python -m resnet.data.masks", "Write a sheet of masked faces.")
    parser.add_argument("--data", default="orl", help="orl, lfw, or folder for one folder a person (default: orl)")
    parser.add_argument("--data-dir", type=Path, help="where its pictures are")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="facial points (default: those of the data set)")
    parser.add_argument("--out", type=Path, default=Path("masks.png"), help="file to write (default: masks.png)")
    parser.add_argument("--seed", type=int, default=0, help="chooses people and masks (default: 0)")
    parser.add_argument("--rows", type=int, default=8, help="rows of faces (default: 8)")
    parser.add_argument("--columns", type=int, default=1, help="faces in a row, each with all its masks (default: 1)")
    parser.add_argument("--size", type=int, help="make the pictures so many pixels square (default: as they are)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a sheet of faces with every style of mask; returns the exit status, see :mod:`resnet.command`."""
    from resnet.data import load_faces  # here, as every loader takes its TEMPLATES from this module

    options = _options(argv)

    def work() -> int:
        if options.rows < 1 or options.columns < 1 or options.seed < 0:
            given = f"got {options.rows}, {options.columns} and {options.seed}"
            raise ValueError(f"expected --rows and --columns of at least 1 and --seed of at least 0, {given}")
        faces = load_faces(options.data, options.data_dir, options.size, template=options.template)
        rng = np.random.default_rng(options.seed)
        shuffled = rng.permutation(len(faces.pictures))
        _, firsts = np.unique(faces.labels[shuffled], return_index=True)  # one picture a person
        chosen = shuffled[rng.permutation(firsts)[: options.rows * options.columns]]
        mask_sheet(faces.pictures[chosen], faces.points, rng, options.columns).save(options.out)
        print(f"{len(chosen)} people, each in {len(STYLES)} masks ({', '.join(STYLES)}): {options.out}")
        return 0

    return end_well(work, debug=options.debug)


if __name__ == "__main__":
    raise SystemExit(main())
