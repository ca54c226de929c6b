"""Who is in these pictures? ``python -m resnet.predict --model RUN PICTURE|FOLDER…``.

    python -m resnet.predict --model runs/001 holiday.jpg party/
    python -m resnet.predict --model runs/001 --gallery PEOPLE --save annotated party/
    python -m resnet.predict --model runs/001 --mask-model runs/002 --json party/ > answers.json

What it does, and where:

    find the pictures              -> their files
    ask the network, in batches    -> an `Answer` each: the five best, whether known, whether masked
    show                           -> a table, JSON, annotated pictures

Without a gallery the answer is one of the people that the network learned, with its confidence: the share that softmax
gives to that person. With one it is the most similar person of the gallery, or `unknown`: see :mod:`resnet.gallery`.
A network that learned to tell "mask" from "no mask" says whether a mask is worn.

Letters: B pictures of a batch, H height, W width, C channels, K people.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nn.checkpoint import write_atomically
from nn.parallel import threads
from resnet.annotate import annotate, png_names, to_png
from resnet.command import end_well, make_parser, not_empty
from resnet.data.detection import ANSWERS
from resnet.data.faces import read_picture
from resnet.data.folders import SUFFIXES, is_picture, sorted_entries
from resnet.gallery import THRESHOLD, check_readable, enrol, read_threshold, threshold_file
from resnet.inference import (
    Failures,
    TrainedNetwork,
    add_network_options,
    load_network,
    read_ahead,
    softmax,
)
from resnet.text import columns, fit, printable

MOST_ANSWERS = 5
NO_MASK, MASK = ANSWERS
UNKNOWN = "unknown"
CONFIDENCE, SIMILARITY = "confidence", "similarity"
LONGEST_FILE, LONGEST_PERSON, LONGEST_NEXT = 44, 28, 20  # columns of a terminal

Scores: TypeAlias = NDArray[np.float64]
Ranking: TypeAlias = tuple[tuple[str, float], ...]
"""People with their scores, the best first."""


@dataclass(frozen=True)
class Answer:
    """What the network says of a picture.

    Attributes:
        best: up to five people with their scores, the best first.
        known: whether the best reaches the threshold; None where there is no threshold.
        mask: whether a mask is worn, and how sure that is; None if nothing tells.
    """

    best: Ranking
    known: bool | None = None
    mask: tuple[bool, float] | None = None

    @property
    def person(self) -> str:
        """The person recognised, or "unknown"."""
        return UNKNOWN if self.known is False else self.best[0][0]


@dataclass(frozen=True, eq=False)
class Judge:
    """How pictures are answered.

    Attributes:
        network: looks at them.
        score: a batch of its pictures, uint8 (B, H, W, C) -> scores (B, K), higher is likelier.
        people: K names.
        measure: what the scores are, "confidence" or "similarity".
        threshold: from which the best person counts as known; None for any.
        mask_network: looks for masks; None where nobody asks.
        notes: what a person should know, one sentence each.
    """

    network: TrainedNetwork
    score: Callable[[NDArray[np.uint8]], Scores]
    people: tuple[str, ...]
    measure: str
    threshold: float | None = None
    mask_network: TrainedNetwork | None = None
    notes: tuple[str, ...] = ()

    @property
    def networks(self) -> list[TrainedNetwork]:
        """Those that look at the pictures, that for masks last."""
        return [self.network] if self.mask_network is None else [self.network, self.mask_network]

    @property
    def asks_for_masks(self) -> bool:
        """Whether the answer is "mask" or "no mask", and not a person."""
        return tells_masks(self.network.people)

    def answers(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """Answer a batch: for each network its pictures, uint8 (B, H, W, C)."""
        best = best_people(self.score(pictures[0]), self.people)
        known = [None if self.threshold is None else score >= self.threshold for (_, score), *_ in best]
        return [Answer(*row) for row in zip(best, known, self._masks(pictures, best), strict=True)]

    def _masks(self, pictures: Sequence[NDArray[np.uint8]], best: Sequence[Ranking]) -> list[tuple[bool, float] | None]:
        """Whether each picture of a batch wears a mask, as far as somebody tells."""
        if self.mask_network is not None:
            sure = softmax(self.mask_network.logits(pictures[-1], len(pictures[-1])))  # (B, 2)
            best = best_people(sure, self.mask_network.people)
        elif not self.asks_for_masks:
            return [None] * len(best)
        return [(answer == MASK, confidence) for (answer, confidence), *_ in best]


def best_people(scores: Scores, people: Sequence[str], most: int = MOST_ANSWERS) -> list[Ranking]:
    """The people with the highest scores (B, K), for each picture, the best first; of equals the first in `people`."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]  # (B, K) -> (B, most)
    return [tuple((people[k], float(row[k])) for k in places) for row, places in zip(scores, order, strict=True)]


def tells_masks(people: Sequence[str]) -> bool:
    """Whether a network with these classes detects masks."""
    return sorted(people) == sorted(ANSWERS)


# What is asked for.


def find_pictures(arguments: Sequence[str]) -> dict[Path, PurePath]:
    """The pictures that are named, and all in the folders that are, in natural order; a file may have any suffix.

    Returns:
        each file once, with its place in the folder that was named, such as anna/1.jpg.

    Raises:
        ValueError: a folder without a picture in it.
    """
    places: dict[Path, PurePath] = {}
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            places.setdefault(path, PurePath(path.name))
            continue
        inside = list(_pictures_under(path))
        if not inside:
            raise ValueError(
                f"expected pictures in {path} or its subfolders, found none. Their names end in {' '.join(SUFFIXES)}; "
                "files with other names can be named one by one"
            )
        for file in inside:
            places.setdefault(file, file.relative_to(path))
    return places


def _pictures_under(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The pictures in a folder and its subfolders but hidden ones, in natural order."""
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    for entry in sorted_entries(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _pictures_under(entry, (*above, real))
        elif is_picture(entry):
            yield entry


def make_judge(options: argparse.Namespace) -> Judge:
    """Load what the options name.

    Raises:
        ValueError, OSError, BackendError: as :func:`resnet.inference.load_network`, :func:`resnet.gallery.enrol` and
            :func:`resnet.gallery.read_threshold`; networks that do not do what they are asked for.
    """
    network = load_network(options.model, options.backend)
    mask_network = None if options.mask_model is None else load_network(options.mask_model, options.backend)
    if mask_network is not None and not tells_masks(mask_network.people):
        raise ValueError(
            f"expected a network with the classes {MASK!r} and {NO_MASK!r} as --mask-model, {mask_network.path} has "
            f"{len(mask_network.people):,} others: train.py --data rmfrd trains one"
        )
    if tells_masks(network.people) and (mask_network is not None or options.gallery is not None):
        raise ValueError(
            f"{network.path} tells masks, not people: give it without --gallery and --mask-model, or name a network "
            "that tells people as --model"
        )
    if options.gallery is None:
        confidences = lambda pictures: softmax(network.logits(pictures, len(pictures)))  # noqa: E731
        return Judge(network, confidences, network.people, CONFIDENCE, mask_network=mask_network)
    threshold = read_threshold(network) if options.threshold is None else options.threshold
    gallery = enrol(network, options.gallery, batch_size=options.batch_size, bad_pictures=options.bad_pictures)
    notes = gallery.notes
    if threshold is None:
        notes += (
            f"nobody is {UNKNOWN}, as there is no threshold: python -m resnet.evaluation --model {options.model} "
            f"--pairs FOLDER measures one and leaves it in {threshold_file(network)}; --threshold gives one",
        )
    cosines = lambda pictures: gallery.compare(network.embeddings(pictures, len(pictures)))  # noqa: E731
    return Judge(network, cosines, gallery.people, SIMILARITY, threshold, mask_network, notes)


def ask(judge: Judge, files: Sequence[Path], batch_size: int) -> tuple[dict[Path, Answer], Failures]:
    """Answer the pictures that can be read; the second result names the others, each with what is wrong."""
    answers: dict[Path, Answer] = {}
    bad: Failures = []
    for batch in read_ahead(files, judge.networks, batch_size):
        if batch.files:
            answers |= zip(batch.files, judge.answers(batch.pictures), strict=True)
        bad += batch.bad
    return answers, bad


# What is shown.


def score_text(score: float, measure: str) -> str:
    """A confidence in percent, a similarity as it is."""
    return f"{100 * score:.1f} %" if measure == CONFIDENCE else f"{score:.3f}"


def mask_text(mask: tuple[bool, float]) -> str:
    """Whether a mask is worn, and how sure that is."""
    return f"{MASK if mask[0] else NO_MASK} {score_text(mask[1], CONFIDENCE)}"


def table(answers: Mapping[Path, Answer], judge: Judge) -> str:
    """The answers, a line each, below a heading; long names are shortened, what cannot be printed is escaped."""
    with_masks = judge.mask_network is not None
    heading = ["file", MASK if judge.asks_for_masks else "person", judge.measure, *([MASK] * with_masks), "next"]
    rows = [heading]
    for file, answer in answers.items():
        others = answer.best if answer.known is False else answer.best[1:]
        row = [fit(str(file), LONGEST_FILE), fit(answer.person, LONGEST_PERSON)]
        row.append(score_text(answer.best[0][1], judge.measure))
        if with_masks and answer.mask is not None:
            row.append(mask_text(answer.mask))
        row.append(", ".join(f"{fit(name, LONGEST_NEXT)} {score_text(score, judge.measure)}" for name, score in others))
        rows.append(row)
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells side by side, the third, a number, to the right and the others to the left."""
    gaps = [" " * (width - columns(cell)) for cell, width in zip(cells, widths, strict=True)]
    padded = [
        gap + cell if place == 2 else cell + gap for place, (cell, gap) in enumerate(zip(cells, gaps, strict=True))
    ]
    return "  ".join(padded).rstrip()


def document(answers: Mapping[Path, Answer], bad: Failures, judge: Judge, gallery: str | None) -> dict[str, Any]:
    """The answers as what `--json` prints."""
    pictures = [
        {
            "file": str(file),
            "person": None if judge.asks_for_masks else answer.person,
            "known": answer.known,
            judge.measure: answer.best[0][1],
            "best": [{"name": name, judge.measure: score} for name, score in answer.best],
            "mask": None if answer.mask is None else answer.mask[0],
            "mask_confidence": None if answer.mask is None else answer.mask[1],
        }
        for file, answer in answers.items()
    ]
    return {
        "model": str(judge.network.path),
        "mask_model": None if judge.mask_network is None else str(judge.mask_network.path),
        "gallery": gallery,
        "threshold": judge.threshold,
        "pictures": pictures,
        "unreadable": [{"file": str(file), "reason": reason} for file, reason in bad],
    }


def caption(answer: Answer, judge: Judge) -> list[str]:
    """The lines below an annotated picture."""
    nearest = f", nearest {printable(answer.best[0][0])}" if answer.known is False else ""
    lines = [printable(answer.person), f"{judge.measure} {score_text(answer.best[0][1], judge.measure)}{nearest}"]
    return lines if answer.mask is None or judge.asks_for_masks else [*lines, mask_text(answer.mask)]


def save_annotated(
    answers: Mapping[Path, Answer], places: Mapping[Path, PurePath], judge: Judge, folder: Path
) -> tuple[list[Path], Failures]:
    """Write a copy of each picture with the answer below it; no file that is there is overwritten.

    Returns:
        the files written, and the pictures that could be read before, but not any more.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = png_names([places[file] for file in answers], os.listdir(folder))
    written: list[Path] = []
    bad: Failures = []
    rows = zip(answers.items(), names, strict=True)
    for (file, answer), name in tqdm(rows, "writing", len(names), unit=" pictures", disable=None, leave=False):
        try:
            picture = read_picture(file, colour=True)
        except ValueError as error:
            bad.append((file, str(error)))
            continue
        try:
            write_atomically(folder / name, to_png(annotate(picture, caption(answer, judge))))
        except OSError as error:
            raise OSError(
                f"cannot write {folder / name} ({error.strerror or error}); {len(written):,} annotated pictures were "
                "written before it"
            ) from error
        written.append(folder / name)
    return written, bad


# The command.


def main(arguments: list[str] | None = None) -> int:
    """Answer pictures; returns the exit status, see :mod:`resnet.command`."""
    parser = predict_parser()
    options = parser.parse_args(arguments)
    if options.threshold is not None and options.gallery is None:
        parser.error("--threshold is for --gallery: without one, the answer is always one of the people learned")
    return end_well(lambda: _predict(options), debug=options.debug)


def predict_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser("python -m resnet.predict", "Say who is in pictures, and whether a mask is worn.")
    parser.add_argument(
        "pictures",
        nargs="+",
        type=not_empty,
        metavar="PICTURE|FOLDER",
        help="folders are searched with their subfolders, but for what is hidden; each file is answered once",
    )
    add_network_options(parser, bad_pictures="skip")
    parser.add_argument(
        "--gallery",
        type=not_empty,
        metavar="FOLDER",
        help="compare with the people in it, one folder a person, instead of those that the network learned",
    )
    parser.add_argument(
        "--threshold",
        type=cosine,
        metavar="X",
        help=f"similarity below which a picture is of somebody {UNKNOWN}, from -1 to 1 (that in RUN/{THRESHOLD}, which "
        "python -m resnet.evaluation measures)",
    )
    parser.add_argument(
        "--mask-model",
        type=not_empty,
        metavar="RUN",
        help=f"also say whether a mask is worn, by a network that learned the folders {MASK!r} and {NO_MASK!r}; "
        "as --model it says nothing else",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument(
        "--save",
        type=not_empty,
        metavar="DIR",
        help="write annotated pictures there, too; no file is overwritten, names that are taken get a number",
    )
    return parser


def cosine(text: str) -> float:
    """Read a number from -1 to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from -1 to 1, got {text!r}")
    return number


def _predict(options: argparse.Namespace) -> int:
    """Do the command's work; returns the exit status."""
    folder = None if options.save is None else Path(options.save)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder to write to as --save, {folder} is a file")
    places = find_pictures(options.pictures)
    with threads(options.threads):
        judge = make_judge(options)
        answers, bad = ask(judge, list(places), options.batch_size)
    check_readable(len(answers), bad, options.bad_pictures)
    _note(*judge.notes, *_skipped(bad))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks letters of a name
    if options.json:
        print(json.dumps(document(answers, bad, judge, options.gallery), indent=2, allow_nan=False))
    else:
        print(table(answers, judge))
    written, lost = ([], []) if folder is None else save_annotated(answers, places, judge, folder)
    _note(*_skipped(lost))
    if not options.json:
        print(f"{len(answers):,} pictures answered, {len(bad):,} could not be read")
    if written:
        names = ", ".join(printable(str(path)) for path in written)
        print(f"written: {names}", file=sys.stderr if options.json else sys.stdout)
    return 0


def _skipped(bad: Failures) -> list[str]:
    return [f"skipped: {reason}" for _, reason in bad]


def _note(*notes: str) -> None:
    """Tell what a person should know where it does not disturb the answers."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
