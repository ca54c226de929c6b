"""Any set of faces: one folder a person.

    DIR/anna/1.jpg
    DIR/anna/2.png
    DIR/bert/holiday.jpeg

What cannot be used is never dropped in silence: it ends in an error or in the notes of the set, by file name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnet.data.faces import Faces, read_header, read_picture, resize
from resnet.data.masks import TEMPLATES, Points
from resnet.data.points import picture_key, points_in_box, read_points, to_shares

SUFFIXES = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Files that are taken for pictures, by the end of their names, in small or capital letters."""

Box: TypeAlias = tuple[slice, slice]
"""The part of a picture that is taken: rows and columns, both with start and stop."""

Crop: TypeAlias = Callable[[Path, int, int], Box]
"""Chooses the part to take of a picture, given its file, height and width; a ValueError says that it does not fit."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class LoadOptions:
    """How a set of faces is read.

    Attributes:
        size: every picture is squashed or stretched to size x size; None keeps the size most pictures have.
        colour: RGB or grey; None means RGB if any file can hold colours.
        min_pictures: people with fewer usable pictures are left out; the notes count them and name the first. Where
            there are too few files from the start, they are not even opened.
        bad_pictures: "stop" raises one error that lists the pictures that cannot be read; "skip" leaves them out
            and lists them in the notes.
        template: where the facial points lie, a key of `resnet.data.masks.TEMPLATES`.
        faces_box: left, top, right and bottom of the face in every picture, as shares of what is taken of it; None
            leaves the points where the template has them.
        points_file: CSV file with the points of each picture, see `resnet.data.points`; None if they are the same in
            all.

    Raises:
        ValueError: an option is out of range; the message names it.

    """

    size: int | None = None
    colour: bool | None = None
    min_pictures: int = 2
    bad_pictures: str = "stop"
    template: str = "centred"
    faces_box: tuple[float, float, float, float] | None = None
    points_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"expected a picture size of at least 1 pixel, got {self.size}")
        if self.min_pictures < 1:
            raise ValueError(f"expected min_pictures of at least 1, got {self.min_pictures}")
        if self.bad_pictures not in ("stop", "skip"):
            raise ValueError(f'expected bad_pictures "stop" or "skip", got {self.bad_pictures!r}')
        if self.template not in TEMPLATES:
            raise ValueError(f"unknown template {self.template!r}; known are {', '.join(TEMPLATES)}")
        if self.faces_box is not None and self.points_file is not None:
            raise ValueError("expected --faces-box or --points, got both: each says where masks go")

    @property
    def points(self) -> Points:
        """The facial points (6, 2) that all pictures share, unless a file gives those of each."""
        return TEMPLATES[self.template].copy() if self.faces_box is None else points_in_box(self.faces_box)


DEFAULTS = LoadOptions()


def whole(path: Path, height: int, width: int) -> Box:
    """All of a picture: the usual `Crop`."""
    return slice(0, height), slice(0, width)


def load_folder(data_dir: str | Path, options: LoadOptions = DEFAULTS, crop: Crop = whole) -> Faces:
    """Load a set of faces laid out as one folder a person; the folder's name is the person's.

    People and pictures come in alphabetical order, numbers in numeric order (s2 before s10).

    Args:
        data_dir: the folder that holds the person folders.
        options: how to read them.
        crop: the part to take of each picture, before it is resized.

    Raises:
        ValueError: there is no such folder, it holds no person folders or no pictures, a picture cannot be read and
            `options.bad_pictures` is "stop", or fewer than two people are left.

    """
    root = check_folder(data_dir, "one folder a person")
    people, ignored = list_people(root)
    if not any(people.values()):
        loose = sum(is_picture(path) for path in ignored)
        raise ValueError(
            f"expected one folder a person, {root}/<person>/<picture>.jpg; found {len(people)} folders without a "
            f"picture in them and {loose} pictures outside of folders. Sort the pictures into one folder a person, or "
            f"name the folder that holds the person folders, if they lie elsewhere. Names of pictures end in "
            f"{' '.join(SUFFIXES)}"
        )
    return assemble(people, options, note_ignored(ignored), crop)


def assemble(
    people: Mapping[str, Sequence[Path]], options: LoadOptions, notes: Iterable[str] = (), crop: Crop = whole
) -> Faces:
    """Read the given files of each person into one set of faces, in the order given.

    Args:
        people: the picture files of each person.
        options: how to read them.
        notes: what is to stand before the notes made here.
        crop: the part to take of each picture, before it is resized.

    Raises:
        ValueError: a picture cannot be read or has no good points in `options.points_file`, and
            `options.bad_pictures` is "stop"; that file cannot be used; or fewer than two people are left.

    """
    table = None if options.points_file is None else read_points(options.points_file)
    owner = {path: person for person, paths in people.items() if len(paths) >= options.min_pictures for path in paths}
    pictures, shapes, points, bad = _read(list(owner), options, crop, table)
    if bad and options.bad_pictures == "stop":
        raise ValueError(
            f"{len(bad)} pictures cannot be used; repair or delete them, or leave them out with "
            f'--bad-pictures skip (bad_pictures="skip"):\n  ' + "\n  ".join(shortened(list(bad.values())))
        )
    counts = {person: sum(path not in bad for path in paths) for person, paths in people.items()}
    kept = (person for person in people if counts[person] >= options.min_pictures)
    label = {person: position for position, person in enumerate(kept)}
    left_out = [f"{person} ({counts[person]})" for person in people if person not in label]
    if len(label) < 2:
        raise ValueError(
            f"expected at least 2 people with {options.min_pictures} or more pictures each, got {len(label)}; "
            f"left out, with their number of pictures: {', '.join(shortened(left_out)) or 'nobody'}"
        )
    remarks = [*notes, *(f"skipped: {reason}" for reason in bad.values())]
    if left_out:
        names = ", ".join(shortened(left_out))
        remarks.append(f"{len(left_out)} people left out, fewer than {options.min_pictures} pictures: {names}")
    if table is not None:
        remarks += _note_unused(table, people, options.points_file)

    used = [path for path in pictures if owner[path] in label]
    stacked = np.stack([pictures[path] for path in used])  # N of (H, W, C) -> (N, H, W, C)
    return Faces(
        pictures=stacked,
        labels=np.array([label[owner[path]] for path in used], dtype=np.int64),
        people=tuple(label),
        files=tuple(str(path) for path in used),
        points=options.points if table is None else np.stack([points[path] for path in used]),  # (6, 2) or (N, 6, 2)
        notes=(*remarks, *_mixed_sizes({path: shapes[path] for path in used}, stacked.shape[1:3])),
    )


def shortened(items: Sequence[str], most: int = 10) -> list[str]:
    """The first `most` items and, if there are more, a last one that says how many: "+5 more"."""
    rest = len(items) - most
    return [*items[:most], f"+{rest} more"] if rest > 0 else list(items)


def check_folder(path: str | Path, expected: str, remedy: str = "") -> Path:
    """Return `path` if it is a folder.

    Raises:
        ValueError: it is not; the message says what was `expected` in it and, if given, what to do.

    """
    if not Path(path).is_dir():
        found = "a file" if Path(path).exists() else "nothing"
        raise ValueError(f"expected {expected} in the folder {path}, found {found} there. {remedy}".rstrip())
    return Path(path)


def list_people(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The pictures in each person folder under `root`, and all that is neither a person folder nor a picture there.

    Raises:
        ValueError: a name is no text in UTF-8, so that it could not be shown.

    """
    people: dict[str, list[Path]] = {}
    ignored = []
    for entry in sorted_entries(root):
        if entry.name.startswith(".") or not entry.is_dir():
            ignored.append(entry)
            continue
        inside = sorted_entries(entry)
        people[entry.name] = [path for path in inside if is_picture(path)]
        ignored.extend(path for path in inside if not is_picture(path))
    return people, ignored


def note_ignored(ignored: Sequence[Path]) -> list[str]:
    """One sentence on what `list_people` found beside pictures, if it did."""
    if not ignored:
        return []
    names = ", ".join(shortened([str(path) for path in ignored]))
    return [f"{len(ignored)} ignored, hidden or not a picture in a person's folder: {names}"]


class _Read(NamedTuple):
    """What `_read` makes of picture files: each is in the first three, or in the last."""

    pictures: dict[Path, NDArray[np.uint8]]
    shapes: dict[Path, tuple[int, int]]  # (height, width) of what was taken of each, before it was resized
    points: dict[Path, Points]  # of those in a table: (6, 2), as shares of what was taken
    bad: dict[Path, str]  # what is wrong, in the order of the files


def _read(paths: Sequence[Path], options: LoadOptions, crop: Crop, table: Mapping[str, Points] | None) -> _Read:
    """Read pictures, crop them, bring them to one size and, if a `table` has points in pixels, place those.

    All headers are read first, for size and colour, so that each picture is shrunk as soon as it is decoded and
    large photographs never lie in memory together.
    """
    headers, unreadable = _try_each(read_header, paths)
    boxes, unfit = _try_each(lambda path: crop(path, *headers[path][:2]), headers)
    points, misplaced = ({}, {}) if table is None else _try_each(lambda path: _place(path, boxes[path], table), boxes)
    boxes = {path: box for path, box in boxes.items() if path not in misplaced}
    shapes = {path: (rows.stop - rows.start, columns.stop - columns.start) for path, (rows, columns) in boxes.items()}
    colour = any(headers[path][2] for path in boxes) if options.colour is None else options.colour
    shape = _most_frequent(shapes.values()) if options.size is None else (options.size, options.size)
    pictures, damaged = _try_each(lambda path: resize(read_picture(path, colour)[boxes[path]], shape), boxes)
    failures = unreadable | unfit | misplaced | damaged
    return _Read(pictures, shapes, points, {path: failures[path] for path in paths if path in failures})


def _place(path: Path, box: Box, table: Mapping[str, Points]) -> Points:
    """The points of a picture (6, 2), from pixels to shares of the part of it that is taken."""
    key = picture_key(path)
    if key not in table:
        raise ValueError(f"{path}: expected a line for {key} in the file of points (--points), found none")
    try:
        return to_shares(table[key], *box)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _note_unused(
    table: Mapping[str, Points], people: Mapping[str, Sequence[Path]], file: str | Path | None
) -> list[str]:
    """One sentence on lines of the file of points that belong to no picture, if there are any."""
    present = {picture_key(path) for paths in people.values() for path in paths}
    unused = [key for key in table if key not in present]
    names = ", ".join(shortened(unused))
    return [f"{len(unused)} lines of {file} without a picture: {names}"] if unused else []


def is_picture(path: Path) -> bool:
    """Whether a file is taken for a picture, by its name."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def sorted_entries(folder: Path) -> list[Path]:
    """What is in a folder, in natural order.

    Raises:
        ValueError: a name is no text in UTF-8, so that it could not be shown.

    """
    entries = list(folder.iterdir())
    odd = [os.fsencode(entry) for entry in entries if any("\ud800" <= letter <= "\udfff" for letter in entry.name)]
    if odd:
        raise ValueError(f"expected names in UTF-8, got {', '.join(map(repr, odd[:3]))}; rename what is called so")
    return sorted(entries, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Sort key: letters without regard to case, numbers as numbers; the plain name settles a tie."""
    parts = re.split(r"(\d+)", path.name)  # text, number, text, number, ..., text
    return [int(part) if part.isdecimal() else part.casefold() for part in parts], path.name


def _try_each(function: Callable[[Path], Result], paths: Iterable[Path]) -> tuple[dict[Path, Result], dict[Path, str]]:
    """Apply `function` to each path: (what it returned, the messages of the ValueErrors it raised)."""
    results, failures = {}, {}
    for path in paths:
        try:
            results[path] = function(path)
        except ValueError as error:
            failures[path] = str(error)
    return results, failures


def _most_frequent(shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) most pictures have, the first seen of equals; (1, 1) if there is no picture to resize."""
    return max(Counter(shapes).items(), key=lambda item: item[1], default=((1, 1), 0))[0]


def _mixed_sizes(shapes: dict[Path, tuple[int, int]], target: tuple[int, ...]) -> list[str]:
    """One sentence on sizes, with a file to look at for each, if not all pictures had the same."""
    counts = Counter(shapes.values())
    if len(counts) == 1:
        return []
    example = {shape: path for path, shape in reversed(shapes.items())}
    sizes = [
        f"{width}x{height} ({count}, such as {example[height, width]})"
        for (height, width), count in counts.most_common()
    ]
    height, width = target
    return [f"mixed sizes, all made {width}x{height} (width x height): {', '.join(shortened(sizes))}"]
