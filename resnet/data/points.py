"""Where drawn masks go on pictures of one's own: in a box around the face, or by six points in each picture.

A mask hangs on six facial points, the `POINTS` of `resnet.data.masks`. Where all pictures are framed alike, it is
enough to say where the face is in them:

    0.2,0.1,0.8,0.9        left, top, right and bottom of the face, as shares of the picture's width and height

Where they are not, a CSV file gives the points of each picture, in pixels of the upright picture from its upper left
corner, set by hand or by a detector of facial landmarks:

    file,nose_bridge_x,nose_bridge_y,left_cheek_x,left_cheek_y,right_cheek_x,...,chin_y
    anna/1.jpg,50.0,61.2,13.0,67.2,87.0,...,116.4

`python -m resnet.data.points PEOPLE > points.csv` writes a draft of that file, to be corrected.
"""

from __future__ import annotations

import csv
import io
import math
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet.command import end_well, make_parser
from resnet.data.masks import CHIN, LEFT_CHEEK, LEFT_JAW, NOSE, POINTS, RIGHT_CHEEK, RIGHT_JAW, SIDES, TEMPLATES, Points

COLUMNS = ("file", *(f"{point}_{axis}" for point in POINTS for axis in "xy"))
"""The columns that a CSV file of points must have; it may have more, in any order."""

SEPARATORS = ",;\t"
"""What may stand between two cells; a decimal point may be a comma where that is none of them in the file at hand."""

LARGEST_FILE = 2**24
"""Bytes of a CSV file that is read; a line has about 100, so that is room for 160,000 pictures."""

LONGEST_CELL = 500
"""Letters of a cell: a person, a file, or a number. To bring much longer names into one form can take minutes."""


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Read where the face is in every picture: "left,top,right,bottom", as shares of width and height.

    Raises:
        ValueError: not four numbers, or no box within the picture.

    """
    expected = "expected --faces-box as left,top,right,bottom, shares of the picture from 0 to 1, such as 0.2,0.1,0.8,1"
    try:
        left, top, right, bottom = (float(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(f"{expected}; got {text!r}") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"{expected}, left below right and top below bottom; got {text!r}")
    return left, top, right, bottom


def points_in_box(box: tuple[float, float, float, float]) -> Points:
    """The six points (6, 2), as (x, y) shares, of a face that fills a box (left, top, right, bottom)."""
    corner, opposite = np.array(box[:2]), np.array(box[2:])
    return corner + TEMPLATES["centred"] * (opposite - corner)  # (2,) + (6, 2) * (2,)


def picture_key(path: str | Path) -> str:
    """A picture as the CSV file names it, person/file: alike with backslashes, and for ü in one character or in two."""
    return unicodedata.normalize("NFC", "/".join(str(path).replace("\\", "/").split("/")[-2:]))


def read_points(path: str | Path) -> dict[str, Points]:
    """Read a CSV file of six facial points a picture, as spreadsheets write it too.

    Returns:
        (6, 2) pixels from the picture's upper left corner, right and down, by `picture_key`.

    Raises:
        ValueError: there is no such file, it is too large, it is no table in UTF-8, a column is missing, a cell is no
            number, or a picture comes twice. The message names file and line.

    """
    if not Path(path).is_file():
        raise ValueError(f"expected a CSV file of facial points at {path} (--points), found none. {_DRAFT}")
    if (size := Path(path).stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: expected a CSV file of at most {LARGEST_FILE:,} bytes, got {size:,}")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, {error}; save it as CSV in UTF-8") from error
    first_line = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=first_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    points: dict[str, Points] = {}
    try:
        header = [name.strip() for name in next(rows, [])]
        wrong = [name for name in COLUMNS if header.count(name) != 1]
        if wrong:
            raise ValueError(f"expected a first line with each of {', '.join(COLUMNS)} once, see {', '.join(wrong)}")
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} cells as in the first line, got {len(cells)}")
            if max(map(len, cells)) > LONGEST_CELL:
                raise ValueError(f"expected cells of up to {LONGEST_CELL} letters, got one of {max(map(len, cells))}")
            row = dict(zip(header, cells, strict=True))
            key = picture_key(row["file"].strip())
            if key in points:
                raise ValueError(f"{key} has a line already")
            numbers = [_number(row[name], name, decimal_comma=separator != ",") for name in COLUMNS[1:]]
            points[key] = np.array(numbers).reshape(len(POINTS), 2)  # (12,) -> (6, 2)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    return points


def to_shares(points: Points, rows: slice, columns: slice) -> Points:
    """Points in pixels as shares of the part of a picture that is taken.

    Args:
        points: (6, 2), (x, y) in pixels of the whole picture.
        rows: of the part, with start and stop.
        columns: likewise.

    Returns:
        (6, 2), (x / width, y / height).

    Raises:
        ValueError: a point is outside of that part, or they are not those of an upright face.

    """
    corner, opposite = np.array((columns.start, rows.start)), np.array((columns.stop, rows.stop))
    outside = ((points < corner) | (points > opposite)).any(axis=1)  # (6, 2) -> (6,)
    if outside.any():
        places = ", ".join(f"{POINTS[n]} ({points[n, 0]:g}, {points[n, 1]:g})" for n in np.flatnonzero(outside))
        allowed = f"x from {columns.start} to {columns.stop} and y from {rows.start} to {rows.stop}"
        raise ValueError(f"expected points with {allowed}, within the picture, got {places}")
    if not is_upright(points):
        order = "the nose above the chin and between the cheeks, cheeks above jaws, left and right as in the picture"
        raise ValueError(f"expected points of an upright face, {order}; got {points.tolist()}")
    shares: Points = (points - corner) / (opposite - corner)  # ((6, 2) - (2,)) / (2,)
    return shares


def is_upright(points: NDArray[np.float64]) -> bool:
    """Whether points (6, 2) are in the order that `resnet.data.masks.draw_mask` needs."""
    x, y = points.T  # (6,) each
    falls = y[NOSE] < y[CHIN] and all(y[cheek] < y[jaw] for cheek, jaw in SIDES)
    return bool(falls and x[LEFT_CHEEK] < x[NOSE] < x[RIGHT_CHEEK] and x[LEFT_JAW] < x[CHIN] < x[RIGHT_JAW])


def draft(data_dir: str | Path) -> tuple[str, list[str]]:
    """A CSV file of points for a folder of people, as if each picture were a tight crop of a frontal face.

    Returns:
        (text, notes): the file's content, and what is wrong with the pictures that cannot be read.

    Raises:
        ValueError: there is no such folder.

    """
    from resnet.data.faces import read_header  # here, as loading a folder needs this module
    from resnet.data.folders import check_folder, list_people

    text, notes = io.StringIO(), list[str]()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    people, _ = list_people(check_folder(data_dir, "one folder a person"))
    for path in (path for paths in people.values() for path in paths):
        try:
            height, width, _ = read_header(path)
        except ValueError as error:
            notes.append(str(error))
            continue
        pixels = TEMPLATES["centred"] * (width, height)  # (6, 2) * (2,)
        writer.writerow([picture_key(path), *(f"{number:.1f}" for number in pixels.ravel())])  # (6, 2) -> (12,)
    return text.getvalue(), notes


_DRAFT = "python -m resnet.data.points PEOPLE > points.csv writes a draft of one"


def _number(cell: str, column: str, *, decimal_comma: bool) -> float:
    try:
        number = float(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError as error:
        raise ValueError(f"expected a number in {column}, got {cell!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number in {column}, got {cell!r}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Write a draft of a CSV file of points to standard output; returns the exit status, see :mod:`resnet.command`."""
    parser = make_parser(
        "python -m resnet.data.points",
        "Write a draft of a CSV file of facial points, to be corrected and given to train.py --points.",
    )
    parser.add_argument("people", metavar="PEOPLE", type=Path, help="folder with one folder of pictures a person")
    options = parser.parse_args(argv)

    def work() -> int:
        text, notes = draft(options.people)
        sys.stdout.buffer.write(text.encode())
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        return 0

    return end_well(work, debug=options.debug)


if __name__ == "__main__":
    raise SystemExit(main())
