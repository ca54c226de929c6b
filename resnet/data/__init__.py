"""Faces: loading them, drawing masks on them, and handing them to the network in batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet.data.faces import Faces

__all__ = ["DATASETS", "Faces", "load_faces"]

DATASETS = ("orl", "folder", "lfw")
"""The names `load_faces` knows: the ORL Database of Faces, any set laid out as one folder a person, and Labeled Faces
in the Wild. Two sets that come in two parts have loaders of their own: `resnet.data.rmfrd`, masked and unmasked, and
`resnet.data.cifar10`, training and test."""


def load_faces(
    name: str,
    data_dir: str | Path | None = None,
    size: int | None = None,
    *,
    colour: bool | None = None,
    min_pictures: int | None = None,
    bad_pictures: str = "stop",
    template: str | None = None,
    faces_box: str | None = None,
    points_file: str | Path | None = None,
) -> Faces:
    """Load a data set by its name.

    Args:
        name: one of `DATASETS`.
        data_dir: where the pictures are; may be None only for "orl" (see `resnet.data.orl.load_orl`).
        size: every picture is squashed or stretched to size x size, antialiased; None keeps the size most have.
        colour: RGB or grey; None means grey for "lfw", as in most published work, else RGB if any file can hold
            colours.
        min_pictures: people with fewer usable pictures are left out, with a note; None means 2, for "lfw" 20.
        bad_pictures: "stop" raises one error that lists the pictures that cannot be read, "skip" leaves them out.
        template: where the facial points lie, a key of `resnet.data.masks.TEMPLATES`; None means "orl" and "lfw"
            for those sets and "centred" for others.
        faces_box: where the face is in every picture instead, "left,top,right,bottom" as shares of width and height.
        points_file: a CSV file with six facial points for each picture instead, see `resnet.data.points`.

    Raises:
        ValueError: an unknown name, no or a wrong `data_dir`, pictures that cannot be read, fewer than two people,
            an option out of range, more than one of `template`, `faces_box` and `points_file`, points that cannot be
            used. The message says what was expected, what was found and what to do.

    """
    # Imported here and not above, or `python -m resnet.data.masks` would find that module loaded before it runs.
    from resnet.data import folders, lfw, orl
    from resnet.data.points import parse_box

    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    defaults = {"orl": orl.DEFAULTS, "folder": folders.DEFAULTS, "lfw": lfw.DEFAULTS}[name]
    places = {"--template": template, "--faces-box": faces_box, "--points": points_file}
    given = [option for option, place in places.items() if place is not None]
    if len(given) > 1:
        raise ValueError(f"expected one of {', '.join(places)}, got {' and '.join(given)}: each says where masks go")
    box = None if faces_box is None else parse_box(faces_box)
    wishes: dict[str, Any] = {"size": size, "colour": colour, "min_pictures": min_pictures, "template": template}
    chosen = {option: wish for option, wish in wishes.items() if wish is not None}
    options = replace(defaults, bad_pictures=bad_pictures, faces_box=box, points_file=points_file, **chosen)
    if name == "orl":
        return orl.load_orl(data_dir, options)
    if name == "lfw":
        return lfw.load_lfw(data_dir, options)
    if data_dir is None:
        raise ValueError("the data set 'folder' needs --data-dir DIR (data_dir), a folder with one folder a person")
    return folders.load_folder(data_dir, options)
