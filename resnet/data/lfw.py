"""Labeled Faces in the Wild: press photographs of 5,749 people, 62 of whom have 20 pictures or more (3,023 in all).

Credit: G. B. Huang, M. Ramesh, T. Berg and E. Learned-Miller, "Labeled Faces in the Wild: A Database for Studying Face
Recognition in Unconstrained Environments", 2007. The official layout is <Name>/<Name>_0001.jpg, frames of 250x250 with
the detected face in the middle. The central 160x160 is taken; the rest is background.
"""

from __future__ import annotations

from pathlib import Path

from resnet.data.faces import Faces
from resnet.data.folders import Box, LoadOptions, check_folder, load_folder

FRAME, FACE = 250, 160
"""Pixels a side: an official frame, and what is taken from its middle."""

VARIANTS = ("lfw", "lfw_funneled", "lfw-deepfunneled")
"""What the official archives unpack to: frames as they were cut, and two alignments of them."""

DEFAULTS = LoadOptions(colour=False, min_pictures=20, template="lfw")

_REMEDY = (
    "Download lfw.tgz, from http://vis-www.cs.umass.edu/lfw/lfw.tgz or, as that address has not answered since 2025, "
    "the same file from https://ndownloader.figshare.com/files/5976018, unpack it and name the folder lfw with "
    "--data-dir DIR; docs/data.md has the checksums"
)


def load_lfw(data_dir: str | Path | None, options: LoadOptions = DEFAULTS) -> Faces:
    """Load Labeled Faces in the Wild, the people in alphabetical order.

    Pictures of 160x160 are taken as they are: a copy of the set in which the middle is cut out already.

    Args:
        data_dir: the folder that holds the people's folders, itself or as one of `VARIANTS` right below it.
        options: how to read them; the defaults take the 62 people with 20 pictures or more, grey, 160x160. Pictures
            of people who have too few are not opened.

    Raises:
        ValueError: there are no LFW pictures at the place given, or none given; there are several variants of them; a
            picture cannot be read or has another size and `options.bad_pictures` is "stop"; fewer than two people
            are left.

    """
    if data_dir is None:
        raise ValueError(f"the data set 'lfw' needs --data-dir DIR (data_dir). {_REMEDY}")
    return load_folder(_unpacked(data_dir), options, _middle)


def _unpacked(data_dir: str | Path) -> Path:
    """The folder that holds the people's folders: the one given or one of the variants right below it."""
    given = check_folder(data_dir, "Labeled Faces in the Wild", _REMEDY)
    if _has_people(given):
        return given
    found = [given / name for name in VARIANTS if _has_people(given / name)]
    if len(found) > 1:
        raise ValueError(f"expected one variant of LFW, found {', '.join(map(str, found))}; name one of them")
    if not found:
        raise ValueError(
            f"expected <Name>/<Name>_0001.jpg of Labeled Faces in the Wild in {given} or in {' or '.join(VARIANTS)} "
            f"below it, found none; for a set with other names, one folder a person, use the data set 'folder'. "
            f"{_REMEDY}"
        )
    return found[0]


def _has_people(root: Path) -> bool:
    return root.is_dir() and any((person / f"{person.name}_0001.jpg").is_file() for person in root.iterdir())


def _middle(path: Path, height: int, width: int) -> Box:
    """The central 160x160 of a frame, or all of a picture that is no larger."""
    if (height, width) not in ((FRAME, FRAME), (FACE, FACE)):
        expected = f"expected {FRAME}x{FRAME} pixels, or {FACE}x{FACE} cut out of them"
        raise ValueError(f"{path}: {expected}, found {width}x{height}")
    start = (height - FACE) // 2
    return slice(start, start + FACE), slice(start, start + FACE)
