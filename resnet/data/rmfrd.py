"""RMFRD, the Real-world Masked Face Recognition Dataset: people photographed with a real mask on and without.

Credit: Z. Wang et al., "Masked Face Recognition Dataset and Application", arXiv 2003.09093. The official layout is
``AFDB_masked_face_dataset/<person>/*`` and ``AFDB_face_dataset/<person>/*``. The pictures were gathered from the web:
some show somebody else, some are the same twice, some files are broken, and sizes differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet.data.faces import Faces
from resnet.data.folders import LoadOptions, assemble, check_folder, list_people, note_ignored

MASKED, UNMASKED = "AFDB_masked_face_dataset", "AFDB_face_dataset"

_REMEDY = (
    "Download the real-world masked face recognition dataset from "
    "https://github.com/X-zhangyang/Real-World-Masked-Face-Dataset (docs/data.md), unpack it and name the folder that "
    f"holds {MASKED} and {UNMASKED}"
)


class Rmfrd(NamedTuple):
    """Pictures of the same people with and without a mask, all of one size.

    Both parts have the same `people`, so a label means the same person in both; some people are in one part only. Both
    have the same notes, on all that was read.
    """

    masked: Faces
    unmasked: Faces


def load_rmfrd(
    data_dir: str | Path,
    size: int | None = None,
    *,
    colour: bool = True,
    bad_pictures: str = "skip",
    most_each: int | None = None,
) -> Rmfrd:
    """Load RMFRD, the people in alphabetical order.

    Args:
        data_dir: the folder that holds the two official ones, itself or one level down.
        size: every picture is squashed or stretched to size x size; None takes the size most pictures have, masked or
            not. The full set has over 90,000 pictures: at 160x160 they need 7 GB, at 64x64 1.1 GB, twice while loading.
        colour: RGB or grey.
        bad_pictures: "skip" leaves pictures that cannot be read out and lists them in the notes; "stop" raises one
            error that lists them.
        most_each: most pictures of one person with a mask, and as many without: the first ones. None takes all.

    Raises:
        ValueError: the two folders are not there, or no picture in one of them can be used; a picture cannot be read
            and `bad_pictures` is "stop"; fewer than two people are left; an option out of range.

    """
    options = LoadOptions(size=size, colour=colour, min_pictures=1, bad_pictures=bad_pictures, template="rmfrd")
    root = _unpacked(data_dir)
    masked, ignored = list_people(root / MASKED)
    unmasked, ignored_too = list_people(root / UNMASKED)
    masked, unmasked = ({name: paths[:most_each] for name, paths in part.items()} for part in (masked, unmasked))
    people = {name: [*masked.get(name, []), *unmasked.get(name, [])] for name in sorted({*masked, *unmasked})}
    both = assemble(people, options, note_ignored([*ignored, *ignored_too]))

    masked_files = {str(path) for paths in masked.values() for path in paths}
    wears_mask = np.array([file in masked_files for file in both.files])
    for folder, count in ((MASKED, wears_mask.sum()), (UNMASKED, (~wears_mask).sum())):
        if count == 0:
            raise ValueError(f"expected pictures in {root / folder}/<person>, found none that can be used. {_REMEDY}")
    return Rmfrd(both.take(np.flatnonzero(wears_mask)), both.take(np.flatnonzero(~wears_mask)))


def _unpacked(data_dir: str | Path) -> Path:
    """The folder that holds both official ones: the one given or one right below it."""
    given = check_folder(data_dir, f"{MASKED} and {UNMASKED}", _REMEDY)
    below = sorted(path for path in given.iterdir() if path.is_dir())
    root = next((root for root in [given, *below] if (root / MASKED).is_dir() and (root / UNMASKED).is_dir()), None)
    if root is None:
        found = [name for name in (MASKED, UNMASKED) if (given / name).is_dir()]
        raise ValueError(
            f"expected {MASKED} and {UNMASKED} together in {given} or in a folder right below it, found "
            f"{f'only {found[0]}' if found else 'neither'}. {_REMEDY}"
        )
    return root
