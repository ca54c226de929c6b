"""CIFAR-10: small colour pictures of ten classes, from the official binary files. Classes take the place of people.

Credit: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009. data_batch_1.bin to
data_batch_5.bin are for training, test_batch.bin is for testing, 10,000 records each: one byte for the label, then the
red, the green and the blue plane, 32 rows of 32 bytes each. The Python version of the set is pickled and never read
here: to unpickle a file is to run whatever program it brings along.

Letters: N pictures, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet.data.faces import Faces
from resnet.data.folders import check_folder
from resnet.data.masks import TEMPLATES

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN, TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"
NAMES = "batches.meta.txt"
BELOW = "cifar-10-batches-bin"
"""The folder that the official archive unpacks to."""

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of one picture with its label: 3,073."""

RECORDS = 10_000
"""Pictures in each official file."""

_LARGEST_NAMES = 10_000
"""Bytes of the file of names; the official one has 61."""

_PICKLED = ("data_batch_1", "test_batch", "batches.meta")
_REMEDY = (
    "Download the binary version, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, unpack it and name the "
    f"folder {BELOW}; docs/data.md has the checksums"
)


class Cifar10(NamedTuple):
    """The official split: pictures to train on and to test on.

    In both, `pictures` are uint8 (N, 32, 32, 3), `people` are the names of the ten classes, `files` tell file and
    record, counted from 0, as in "data_batch_1.bin#17", and `points` mean nothing: there are no faces to mask.
    """

    train: Faces
    test: Faces


def load_cifar10(data_dir: str | Path) -> Cifar10:
    """Load CIFAR-10, the pictures in the order of the files.

    A cut-down copy will do, with fewer records in a file or fewer files to train on; the notes tell.

    Args:
        data_dir: the folder that holds the .bin files, itself or as cifar-10-batches-bin right below it.

    Raises:
        ValueError: there are no files to train on or none to test on, or only those of the pickled version; a file is
            empty, cut short or too long; a label is not 0 to 9; there are not ten names of classes.

    """
    root = _unpacked(data_dir)
    train = [root / name for name in TRAIN if (root / name).is_file()]
    if not train or not (root / TEST).is_file():
        expected = TEST if train else f"{TRAIN[0]} ... {TRAIN[-1]}"
        raise ValueError(f"expected {expected} in {root}, found no such file. {_REMEDY}")
    classes, notes = _class_names(root / NAMES)
    missing = [name for name in TRAIN if root / name not in train]
    gaps = [f"{len(missing)} of the {len(TRAIN)} training files are missing: {', '.join(missing)}"] if missing else []
    return Cifar10(_read(train, classes, [*notes, *gaps]), _read([root / TEST], classes, notes))


def _unpacked(data_dir: str | Path) -> Path:
    """The folder that holds any of the .bin files: the one given or the official one right below it."""
    given = check_folder(data_dir, "the binary files of CIFAR-10", _REMEDY)
    for root in (given, given / BELOW):
        if any((root / name).is_file() for name in (*TRAIN, TEST)):
            return root
    for root in (given, given / "cifar-10-batches-py"):
        for name in _PICKLED:
            if (root / name).is_file():
                raise ValueError(f"expected CIFAR-10 as .bin files, found the pickled {root / name}. {_REMEDY}")
    raise ValueError(f"expected {TRAIN[0]} ... {TEST} in {given} or in {BELOW} below it, found none. {_REMEDY}")


def _class_names(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The ten names and, if they are not from the file, a note."""
    if not path.is_file():
        return CLASSES, [f"no {path.name} there: classes have their well-known names, {CLASSES[0]} ... {CLASSES[-1]}"]
    if (size := path.stat().st_size) > _LARGEST_NAMES:
        raise ValueError(f"{path}: expected names of classes in up to {_LARGEST_NAMES} bytes, found {size}. {_REMEDY}")
    lines = path.read_text("ascii", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != len(CLASSES) or len(names) != len(CLASSES):
        raise ValueError(
            f"{path}: expected {len(CLASSES)} different names of classes, one a line, found {len(names)} names, "
            f"{len(set(names))} different. {_REMEDY}"
        )
    return names, []


def _read(paths: Sequence[Path], classes: tuple[str, ...], notes: Sequence[str]) -> Faces:
    """One set of pictures from all the files."""
    batches = [_read_records(path) for path in paths]
    short = [
        f"{path.name} has {len(batch)} of the {RECORDS} official pictures"
        for path, batch in zip(paths, batches, strict=True)
        if len(batch) < RECORDS
    ]
    records = np.concatenate(batches)
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)  # (N, 3·H·W) -> (N, C, H, W)
    return Faces(
        pictures=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),  # -> (N, H, W, C)
        labels=records[:, 0].astype(np.int64),
        people=classes,
        files=tuple(f"{path.name}#{i}" for path, batch in zip(paths, batches, strict=True) for i in range(len(batch))),
        points=TEMPLATES["centred"].copy(),  # Faces must have some
        notes=(*notes, *short),
    )


def _read_records(path: Path) -> NDArray[np.uint8]:
    """The records (N, 3073) of one file, whose size is checked before it is read."""
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise ValueError(
            f"{path}: expected a multiple of {RECORD} bytes, not 0, found {size}: cut short, or no CIFAR-10 file? "
            f"{_REMEDY}"
        )
    if size > RECORDS * RECORD:
        raise ValueError(f"{path}: expected at most {RECORDS} records, found {size // RECORD}. {_REMEDY}")
    records = np.fromfile(path, np.uint8, count=size).reshape(-1, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if wrong.size:
        raise ValueError(
            f"{path}: expected labels from 0 to {len(CLASSES) - 1}, found {records[wrong[0], 0]} in record {wrong[0]}, "
            f"counted from 0: damaged, or no CIFAR-10 file? {_REMEDY}"
        )
    return records
