"""People told apart by what a network makes of their pictures: enrolled without training, compared by cosine.

What the classifier of a trained network looks at, the embedding, serves for people whom it never saw as well. Only its
direction counts. A person's template is the mean direction of the embeddings of their pictures, and a picture is as
similar to a person as the cosine of the angle between its embedding and the template. From a threshold on, the person
counts as recognised; where to put it is measured on pairs by ``python -m resnet.evaluation``, which leaves it in
``threshold.json`` beside the weights.

Letters: N pictures, K people, D features of an embedding.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet.data.folders import SUFFIXES, check_folder, list_people, note_ignored, shortened
from resnet.evaluation import cosine_similarity, directions
from resnet.inference import Failures, TrainedNetwork, read_ahead
from resnet.text import printable

Floats = NDArray[np.float64]

THRESHOLD = "threshold.json"
LARGEST_FILE = 2**20  # bytes of a file with a threshold: it has a dozen short facts


@dataclass(frozen=True, eq=False)
class Gallery:
    """People to compare pictures with.

    Attributes:
        people: K names.
        templates: a direction a person, float64 (K, D).
        notes: what a person should know about the enrolment, one sentence each.

    Raises:
        ValueError: nobody is in it, or there is not one template a person.
    """

    people: tuple[str, ...]
    templates: Floats
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.templates.ndim != 2 or len(self.templates) != len(self.people) or not self.people:
            raise ValueError(
                f"expected templates (K, D), one for each of {len(self.people)} people, at least one person; "
                f"got {self.templates.shape}"
            )

    def compare(self, embeddings: ArrayLike) -> Floats:
        """How similar pictures are to people.

        Args:
            embeddings: (N, D), of the network that made the templates.

        Returns:
            cosines, (N, K), from -1 to 1.

        Raises:
            ValueError: as :func:`resnet.evaluation.cosine_similarity`.
        """
        return cosine_similarity(embeddings, self.templates)  # (N, D), (K, D) -> (N, K)


def enrol(network: TrainedNetwork, folder: str | Path, *, batch_size: int = 32, bad_pictures: str = "stop") -> Gallery:
    """Make a gallery from a folder with one folder a person; the folder's name is the person's.

    One picture is enough for a person, and one person for a gallery.

    Args:
        network: makes the embeddings.
        folder: holds the person folders.
        batch_size: pictures at a time.
        bad_pictures: "stop" raises one error that lists the pictures that cannot be read; "skip" leaves them out and
            lists them in the notes.

    Raises:
        ValueError: no such folder, nobody in it, or pictures that cannot be read.
    """
    known = embed_people(network, folder, batch_size=batch_size, bad_pictures=bad_pictures)
    return Gallery(known.people, templates(known.embeddings, known.labels), known.notes)


@dataclass(frozen=True, eq=False)
class EmbeddedPeople:
    """The embeddings of the pictures in a folder with one folder a person.

    Attributes:
        people: K names, each of somebody with at least one picture.
        labels: int64 (N,), whose each picture is, as a place in `people`.
        embeddings: float32 (N, D).
        notes: what a person should know about the reading, one sentence each.
    """

    people: tuple[str, ...]
    labels: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    notes: tuple[str, ...]


def embed_people(
    network: TrainedNetwork, folder: str | Path, *, batch_size: int = 32, bad_pictures: str = "stop"
) -> EmbeddedPeople:
    """Read and embed all pictures of a folder with one folder a person.

    Args and raises: as :func:`enrol`.
    """
    if bad_pictures not in ("stop", "skip"):
        raise ValueError(f'expected bad_pictures "stop" or "skip", got {bad_pictures!r}')
    listed, ignored = list_people(check_folder(folder, "one folder a person"))
    owner = {path: person for person, paths in listed.items() for path in paths}
    if not owner:
        raise ValueError(
            f"expected one folder a person, {folder}/<person>/<picture>.jpg, found {len(listed)} folders without a "
            f"picture in them. Names of pictures end in {' '.join(SUFFIXES)}"
        )
    files: list[Path] = []
    embeddings: list[NDArray[np.float32]] = []  # of a batch each, (B, D)
    bad: Failures = []
    for batch in read_ahead(list(owner), [network], batch_size, f"embedding {Path(folder).name}"):
        if batch.files:
            embeddings.append(network.embeddings(batch.pictures[0], batch_size))
        files += batch.files
        bad += batch.bad
    check_readable(len(files), bad, bad_pictures)
    owners = [owner[path] for path in files]
    people = tuple(person for person in listed if person in set(owners))
    place = {person: number for number, person in enumerate(people)}
    nobody = [person for person in listed if person not in place]
    notes = [*note_ignored(ignored), *(f"skipped: {reason}" for _, reason in bad)]
    if nobody:
        notes.append(f"{len(nobody)} people left out, without a usable picture: {', '.join(shortened(nobody))}")
    labels = np.array([place[person] for person in owners], dtype=np.int64)
    return EmbeddedPeople(people, labels, np.concatenate(embeddings), tuple(notes))  # batches of (B, D) -> (N, D)


def check_readable(good: int, bad: Failures, bad_pictures: str) -> None:
    """Raise a ValueError if no picture could be read, or if one could not and ``bad_pictures`` is "stop"."""
    if bad and (bad_pictures == "stop" or not good):
        remedy = ", or leave them out with --bad-pictures skip" if good else ""
        raise ValueError(
            f"{len(bad)} of {good + len(bad)} pictures cannot be read; repair or delete them{remedy}:\n  "
            + "\n  ".join(shortened([printable(reason) for _, reason in bad]))
        )


# The mathematics.


def templates(embeddings: ArrayLike, labels: NDArray[np.int64]) -> Floats:
    """The mean direction of each person's pictures, so that none counts for more because its embedding is longer.

    Args:
        embeddings: (N, D).
        labels: (N,), whole numbers from 0 to K - 1, each at least once.

    Returns:
        (K, D), each of length 1.
    """
    return directions(_sums(directions(embeddings), labels))


def all_pairs(gallery: Gallery, probes: EmbeddedPeople) -> tuple[Floats, NDArray[np.bool_]]:
    """Compare each picture with each person of a gallery that was enrolled by other pictures.

    Returns:
        scores, (N·K,), the cosines; genuine, (N·K,), whether picture and person have the same name.
    """
    places = {name: place for place, name in enumerate(gallery.people)}
    own = np.array([places.get(name, -1) for name in probes.people])[probes.labels]  # (N,), -1 for a stranger
    genuine = own[:, np.newaxis] == np.arange(len(places))  # (N, 1) == (K,) -> (N, K)
    return gallery.compare(probes.embeddings).ravel(), genuine.ravel()  # (N, K) -> (N·K,)


def leave_one_out(embeddings: ArrayLike, labels: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Compare each picture with each person, as if it had not been among the pictures that the person was enrolled by.

    A picture's cosine with a template that it is part of would be too high. So its own person's template is made
    without it; where a person has no other picture, the two are not compared.

    Args:
        embeddings: (N, D).
        labels: (N,), whole numbers from 0 to K - 1, each at least once.

    Returns:
        scores, (M,), the cosines; genuine, (M,), whether picture and person belong together.
        M = N·K - the number of people with a single picture.
    """
    unit = directions(embeddings)  # (N, D)
    sums = _sums(unit, labels)  # (K, D)
    cosines = cosine_similarity(unit, sums)  # (N, D), (K, D) -> (N, K)
    others = np.bincount(labels)[labels] > 1  # (N,), whether the person has other pictures
    rest = sums[labels] - unit  # (N, D), of the other pictures of the same person; zeros if there are none
    lengths = np.where(others, np.linalg.norm(rest, axis=1), 1.0)  # (N,)
    cosines[np.arange(len(unit)), labels] = np.clip((unit * rest).sum(axis=1) / lengths, -1, 1)  # (N, D) -> (N,)
    own = np.arange(len(sums)) == labels[:, np.newaxis]  # (K,) == (N, 1) -> (N, K)
    compared = ~own | others[:, np.newaxis]  # (N, K) | (N, 1)
    return cosines[compared], own[compared]


def _sums(unit: Floats, labels: NDArray[np.int64]) -> Floats:
    """The sum of each person's vectors: (N, D) -> (K, D)."""
    sums = np.zeros((labels.max() + 1, unit.shape[1]))
    np.add.at(sums, labels, unit)
    return sums


# The threshold.


def threshold_file(network: TrainedNetwork) -> Path:
    """Where the threshold of a network is kept: in its run folder, or beside its file."""
    return network.path.with_name(THRESHOLD)


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, as sha256sum prints it.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_threshold(network: TrainedNetwork) -> float | None:
    """The threshold that ``python -m resnet.evaluation`` left for a network, None if there is none.

    Raises:
        ValueError: it belongs to other weights, or the file is damaged; says what to do.
        OSError: the file cannot be read.
    """
    path = threshold_file(network)
    if not path.is_file():
        return None
    remedy = f"run python -m resnet.evaluation --model {network.path} --pairs FOLDER again, or give a --threshold"
    try:
        facts = _read_facts(path)
        threshold, weights = facts["threshold"], facts["sha256"]
        if type(threshold) not in (float, int) or not -1 <= threshold <= 1:
            raise ValueError(f"expected threshold as a number from -1 to 1, got {threshold!r:.100}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no threshold ({error}): {remedy}") from error
    if weights != fingerprint(network.path):
        raise ValueError(f"{path} belongs to other weights than {network.path}: {remedy}")
    return float(threshold)


def _read_facts(path: Path) -> Any:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"expected at most {LARGEST_FILE:,} bytes, got {path.stat().st_size:,}")
    return json.loads(path.read_bytes())
