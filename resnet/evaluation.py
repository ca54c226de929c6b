"""How good are the answers: rank-k accuracy, right and wrong by class, and "the same person?" by ROC curve.

``python -m resnet.evaluation --model RUN --pairs FOLDER`` measures how well a network tells people apart whom it never
saw, and sets the threshold from which ``python -m resnet.predict --gallery`` takes a person for recognised. Each
picture of FOLDER, one folder a person, is compared with each person, as predict does it; with its own person as if it
had not been among the pictures that they were enrolled by. The threshold is the lowest that accepts at most a chosen
share of the impostors. That share is a rate per comparison: a stranger is compared with all K people of a gallery, and
taken for one of them with up to about K times the rate. It holds for pictures like those it was measured on: for bare
faces enrolled and masked ones asked about, give the bare ones as --gallery and the masked ones as --pairs.

Letters: N pictures, K people (classes), M comparisons of two pictures, G of them of one person (genuine), I of two
(impostors), T distinct scores among them, D numbers in a feature vector. For intervals and tests of what comes out
here see :mod:`resnet.statistics`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet import __version__
from resnet.command import end_well, make_parser, not_empty
from resnet.text import printable

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class RocCurve(NamedTuple):
    """What every threshold would do, strictest first: from nobody accepted to everybody.

    Three arrays (T + 1,): `false_accepts`, the share of impostors accepted; `true_accepts`, the share of genuine
    comparisons accepted; `thresholds`, where a comparison is accepted if its score >= threshold.
    """

    false_accepts: Floats
    true_accepts: Floats
    thresholds: Floats


def rank_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """The share of pictures whose true person is among the k highest scores; k = 1 is plain accuracy.

    Ties count against: the true person's place is one plus the number of others who score as high or higher. So the
    result does not hang on the order of people, and a network that says the same of everybody is right about nobody.

    Args:
        scores: (N, K), higher means more likely; any real scale, infinities allowed.
        labels: (N,) whole numbers from 0 to K - 1.
        k: from 1 to K.

    Returns:
        from 0 to 1.

    Raises:
        ValueError: wrong shapes, no pictures, a score that is not a number, a label or k out of range.

    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"expected scores (N, K) of at least one picture and one person, got {scores.shape}")
    N, K = scores.shape
    if labels.shape != (N,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected labels as whole numbers ({N},), got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"expected labels from 0 to {K - 1}, got {labels.min()} to {labels.max()}")
    if not 1 <= k <= K:
        raise ValueError(f"expected k from 1 to {K}, the number of people, got {k}")
    undefined = np.isnan(scores).any(axis=1)
    if undefined.any():
        raise ValueError(f"{undefined.sum()} pictures have scores that are not a number, first {undefined.argmax()}")
    true_scores = np.take_along_axis(scores, labels[:, np.newaxis], axis=1)  # (N, K), (N, 1) -> (N, 1)
    rivals = (scores >= true_scores).sum(axis=1) - 1  # (N,), not counting the true person
    return float((rivals < k).mean())


def cumulative_match(scores: ArrayLike, labels: ArrayLike, ks: Iterable[int]) -> list[float]:
    """:func:`rank_k_accuracy` for each k of `ks`: points of the cumulative match characteristic (CMC)."""
    return [rank_k_accuracy(scores, labels, k) for k in ks]


def confusion_matrix(truth: ArrayLike, answers: ArrayLike, classes: int) -> Counts:
    """How often each class was answered for each: C[i, j] pictures of class i were called j.

    Args:
        truth: (N,) whole numbers from 0 to K - 1, or booleans, which count as 0 and 1.
        answers: (N,) likewise.
        classes: how many, K.

    Returns:
        (K, K), rows are the truth and columns the answers. Its sum is N, its diagonal what was right.

    Raises:
        ValueError: wrong shapes, no pictures, no whole numbers, or one out of range.

    """
    K = classes
    if K < 1:
        raise ValueError(f"expected at least 1 class, got {K}")
    true, answered = _checked_classes("truth", truth, K), _checked_classes("answers", answers, K)
    if true.shape != answered.shape:
        raise ValueError(f"expected an answer for each truth {true.shape}, got {answered.shape}")
    return np.bincount(true * K + answered, minlength=K * K).astype(np.int64).reshape(K, K)


def balanced_accuracy(truth: ArrayLike, answers: ArrayLike, classes: int = 2) -> float:
    """The mean over classes of the share of their pictures that was recognised (recall): (1/K) Σᵢ C[i, i] / Σⱼ C[i, j].

    Unlike plain accuracy it gives each class the same say, however few its pictures: one who always answers with the
    same of two classes gets 1/2. Classes without a picture in `truth` are left out of the mean, as scikit-learn does.

    Args and raises: as :func:`confusion_matrix`.
    """
    confusion = confusion_matrix(truth, answers, classes)  # (K, K)
    pictures = confusion.sum(axis=1)  # (K,)
    occurs = pictures > 0
    return float((confusion.diagonal()[occurs] / pictures[occurs]).mean())


def precision_recall(truth: ArrayLike, answers: ArrayLike) -> tuple[float, float]:
    """How many of the pictures called positive are, and how many of the positive ones were called so.

    precision = TP / (TP + FP), recall = TP / (TP + FN), where TP are the true positives, FP the false positives and
    FN the false negatives. Precision is defined as 0 if no answer is positive.

    Args:
        truth: (N,) booleans, at least one True.
        answers: (N,) booleans.

    Raises:
        ValueError: wrong shapes, no booleans, or nothing positive in `truth`.

    """
    truth, answers = np.asarray(truth), np.asarray(answers)
    if truth.dtype != bool or answers.dtype != bool or truth.ndim != 1 or truth.shape != answers.shape:
        raise ValueError(
            f"expected truth and answers as booleans (N,), got {truth.dtype} {truth.shape} and "
            f"{answers.dtype} {answers.shape}"
        )
    if not truth.any():
        raise ValueError(f"recall needs at least one True in truth, got none of {truth.size}")
    hits, called, there = (int(np.count_nonzero(those)) for those in (truth & answers, answers, truth))
    return hits / max(called, 1), hits / there


def roc_curve(scores: ArrayLike, positive: ArrayLike) -> RocCurve:
    """The receiver operating characteristic: what is falsely and truly accepted at every threshold.

    A comparison is accepted if its score >= threshold. Only scores that occur matter as thresholds, and those with
    the same score are accepted together: one point for each distinct score, after the point (0, 0) at threshold ∞.
    The last point is (1, 1). T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), 2006.

    Args:
        scores: (M,), higher means more likely the same person; finite.
        positive: (M,) booleans, True for a genuine comparison; at least one of either kind.

    Returns:
        T + 1 points; both shares ascend, thresholds descend.

    Raises:
        ValueError: wrong shapes, a score that is not finite, `positive` no booleans or all alike.

    """
    false, true, thresholds = _accepted(scores, positive)
    return RocCurve(false / false[-1], true / true[-1], thresholds)


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The area under the ROC curve, its points joined by straight lines: 1 is perfect, 1/2 is guessing.

    It equals the probability that a genuine comparison scores higher than an impostor's, a tie counting half, which
    is the statistic of Mann and Whitney over G·I: J. Hanley and B. McNeil, "The meaning and use of the area under a
    receiver operating characteristic (ROC) curve", Radiology 143(1), 1982. Counted in whole numbers, so exact.

    Args and raises: as :func:`roc_curve`.
    """
    false, true, _ = _accepted(scores, positive)
    doubled = (np.diff(false) * (true[1:] + true[:-1])).sum()  # twice the trapezoids, in whole numbers
    return float(doubled / (2 * false[-1] * true[-1]))


def equal_error_rate(scores: ArrayLike, positive: ArrayLike) -> float:
    """The error where as many impostors are accepted as genuine comparisons rejected (both as shares).

    Mostly no threshold makes them equal, so this is a convention: where the ROC curve, its points joined by straight
    lines, crosses the diagonal true accepts = 1 - false accepts. 0 is perfect, 1/2 is guessing.

    Args and raises: as :func:`roc_curve`.
    """
    curve = roc_curve(scores, positive)
    surplus = curve.false_accepts - (1 - curve.true_accepts)  # (T + 1,), from -1 to 1, each point above the last
    return float(np.interp(0.0, surplus, curve.false_accepts))


def true_accepts_at(scores: ArrayLike, positive: ArrayLike, false_accepts: float) -> float:
    """The share of genuine comparisons accepted where at most this share of impostors is ("TAR at FAR").

    The largest among the thresholds that keep to it; nothing is interpolated. With I impostors a share below 1/I
    asks that none be accepted, so it says nothing that 0 would not.

    Args:
        scores, positive: as :func:`roc_curve`.
        false_accepts: from 0 to 1.

    Raises:
        ValueError: as :func:`roc_curve`, or `false_accepts` out of range.

    """
    curve = roc_curve(scores, positive)
    return float(curve.true_accepts[_last_within(curve, false_accepts)])


def threshold_at(scores: ArrayLike, positive: ArrayLike, false_accepts: float) -> float:
    """The threshold of :func:`true_accepts_at`: the lowest score that, as threshold, keeps to this false-accept share.

    Accept where score >= threshold. The result is one of `scores`, or ∞ if even the highest lets too many impostors in.

    Args and raises: as :func:`true_accepts_at`.
    """
    curve = roc_curve(scores, positive)
    return float(curve.thresholds[_last_within(curve, false_accepts)])


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> Floats:
    """The cosine of the angle between rows: S[i, j] = aᵢ·bⱼ / (‖aᵢ‖ ‖bⱼ‖), from -1 to 1, computed in float64.

    Args:
        a: (N, D), finite, no row all zeros.
        b: (M, D) likewise.

    Returns:
        (N, M); never beyond ±1, though equal rows may miss 1 by a rounding.

    Raises:
        ValueError: wrong shapes, a value that is not finite, or a row of zeros, which has no direction.

    """
    directions_a, directions_b = directions(a, "a"), directions(b, "b")
    if directions_a.shape[1] != directions_b.shape[1]:
        raise ValueError(f"expected rows of one length, got a {directions_a.shape} and b {directions_b.shape}")
    return np.clip(directions_a @ directions_b.T, -1.0, 1.0)  # (N, D) @ (D, M) -> (N, M)


def directions(rows: ArrayLike, name: str = "vectors") -> Floats:
    """Rows (N, D) in float64, their lengths made 1.

    Args:
        rows: (N, D), finite, none all zeros.
        name: what the errors call them.

    Raises:
        ValueError: wrong shape, a value that is not finite, or a row of zeros, which has no direction.

    """
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"expected {name} as rows (N, D), at least one, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(rows))} values of {name} are not finite")
    largest = np.abs(rows).max(axis=1, keepdims=True)  # (N, 1)
    if not largest.all():
        raise ValueError(f"expected rows of {name} with a direction, got zeros in row {int(largest.argmin())}")
    rows = rows / largest  # so that squares neither overflow nor vanish
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # (N, D) / (N, 1)


@dataclass(frozen=True)
class Verification:
    """How well genuine comparisons are told from impostors, and where to put the threshold.

    Attributes:
        genuine, impostors: numbers of comparisons.
        area_under_roc, equal_error_rate: see the functions of these names.
        asked: the share of impostors that may be accepted at most.
        threshold: the lowest that keeps to it; a comparison is accepted if its score >= threshold.
        false_accepts: the share of impostors that it accepts.
        true_accepts: the share of genuine comparisons that it accepts.
    """

    genuine: int
    impostors: int
    area_under_roc: float
    equal_error_rate: float
    asked: float
    threshold: float
    false_accepts: float
    true_accepts: float


def verify(scores: ArrayLike, positive: ArrayLike, false_accepts: float) -> Verification:
    """Measure comparisons and choose a threshold.

    Args:
        scores, positive: as :func:`roc_curve`.
        false_accepts: the share of impostors to accept at most, above 0 and below 1.

    Raises:
        ValueError: as :func:`roc_curve`; a share out of range; fewer impostors than one in 1 / share; or no threshold
            keeps to the share, as too many impostors have the highest score of all.

    """
    if not 0 < false_accepts < 1:
        raise ValueError(f"expected false_accepts above 0 and below 1, got {false_accepts}")
    curve = roc_curve(scores, positive)
    genuine = int(np.count_nonzero(positive))
    impostors = np.size(positive) - genuine
    if impostors * false_accepts < 1:
        raise ValueError(
            f"expected at least {math.ceil(1 / false_accepts):,} impostor comparisons, to say where {false_accepts:g} "
            f"of them are accepted, got {impostors:,} (and {genuine:,} genuine ones): take more people or pictures, or "
            "a larger share (--false-accepts)"
        )
    place = _last_within(curve, false_accepts)
    if place == 0:
        raise ValueError(
            f"no threshold accepts at most {false_accepts:g} of the impostors: {curve.false_accepts[1]:.2g} of them "
            "have the highest score of all. Are the same pictures in the folders of several people?"
        )
    return Verification(
        genuine=genuine,
        impostors=impostors,
        area_under_roc=area_under_roc(scores, positive),
        equal_error_rate=equal_error_rate(scores, positive),
        asked=false_accepts,
        threshold=float(curve.thresholds[place]),
        false_accepts=float(curve.false_accepts[place]),
        true_accepts=float(curve.true_accepts[place]),
    )


def _accepted(scores: ArrayLike, positive: ArrayLike) -> tuple[Counts, Counts, Floats]:
    """Impostors and genuine comparisons accepted, in numbers, and thresholds, ∞ first: each (T + 1,)."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != bool:
        raise ValueError(
            f"expected scores (M,) and positive as booleans (M,), got {scores.shape} and "
            f"{positive.dtype} {positive.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    if positive.all() or not positive.any():
        raise ValueError(f"expected comparisons of both kinds, got {positive.sum()} positive of {positive.size}")
    distinct, place = np.unique(scores, return_inverse=True)  # (T,) ascending, (M,) where each score is among them
    false, true = (
        np.concatenate([[0], np.bincount(place[kind], minlength=len(distinct))[::-1].cumsum()])
        for kind in (~positive, positive)
    )
    return false, true, np.concatenate([[np.inf], distinct[::-1]])


def _last_within(curve: RocCurve, false_accepts: float) -> int:
    """The place of the lowest threshold that accepts at most this share of impostors."""
    if not 0 <= false_accepts <= 1:
        raise ValueError(f"expected false_accepts from 0 to 1, got {false_accepts}")
    return int(np.searchsorted(curve.false_accepts, false_accepts, side="right")) - 1


def _checked_classes(name: str, values: ArrayLike, classes: int) -> Counts:
    numbers = np.asarray(values)
    countable = numbers.dtype == bool or np.issubdtype(numbers.dtype, np.integer)
    if numbers.ndim != 1 or numbers.size == 0 or not countable:
        raise ValueError(f"expected {name} as whole numbers (N,), at least one, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(f"expected {name} from 0 to {classes - 1}, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64)


# The command.


def main(arguments: list[str] | None = None) -> int:
    """Set a threshold from pairs; returns the exit status, see :mod:`resnet.command`."""
    from resnet.inference import add_network_options  # here, as gallery and inference need this module

    parser = make_parser(
        "python -m resnet.evaluation",
        "Measure on pairs of pictures how well a network tells people apart, and set the threshold from which "
        "python -m resnet.predict --gallery takes a person for recognised.",
    )
    parser.add_argument(
        "--pairs",
        type=not_empty,
        required=True,
        metavar="FOLDER",
        help="one folder a person, best of people unknown in training",
    )
    parser.add_argument(
        "--gallery",
        type=not_empty,
        metavar="FOLDER",
        help="compare with the people in it instead of those in --pairs, the same by name: bare faces, where those in "
        "--pairs wear masks",
    )
    parser.add_argument(
        "--false-accepts",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="of comparisons with somebody else that may be accepted (0.01); a stranger compared with a gallery of K "
        "people is taken for one of them with up to about K times this share",
    )
    add_network_options(parser, bad_pictures="stop")
    options = parser.parse_args(arguments)
    return end_well(lambda: _set_threshold(options), debug=options.debug)


def share(text: str) -> float:
    """Read a share above 0 and below 1.

    Raises:
        argparse.ArgumentTypeError: it is none.

    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text!r}")
    return number


def _set_threshold(options: argparse.Namespace) -> int:
    """Do the command's work; returns the exit status."""
    from nn.parallel import threads
    from resnet.gallery import all_pairs, embed_people, enrol, fingerprint, leave_one_out, threshold_file
    from resnet.inference import load_network
    from resnet.runfolder import write_json

    network = load_network(options.model, options.backend)
    sha256 = fingerprint(network.path)  # now: a training may go on writing while this measures
    reading = {"batch_size": options.batch_size, "bad_pictures": options.bad_pictures}
    with threads(options.threads):
        known = embed_people(network, options.pairs, **reading)
        gallery = None if options.gallery is None else enrol(network, options.gallery, **reading)
    scores, genuine = leave_one_out(known.embeddings, known.labels) if gallery is None else all_pairs(gallery, known)
    people, pictures = len(known.people), len(known.labels)
    for note in (*known.notes, *(() if gallery is None else gallery.notes)):
        print(f"note: {printable(note)}", file=sys.stderr)
    if not genuine.any() or genuine.all():
        needed = "one of them with two pictures" if gallery is None else "one of them with a folder in both"
        raise ValueError(
            f"expected pairs of both kinds, got {genuine.sum():,} genuine ones and {(~genuine).sum():,} impostors, of "
            f"{people} people with {pictures} pictures: it takes at least two people, {needed}"
        )
    learned = set(known.people) & set(network.people)
    if learned:
        print(
            f"note: {len(learned)} of the {people} people have names that the network learned; if it is them, "
            "strangers will be told apart less well than these numbers say",
            file=sys.stderr,
        )
    found = verify(scores, genuine, options.false_accepts)
    facts = {
        "weights": network.path.name,
        "sha256": sha256,
        "pairs": str(Path(options.pairs).resolve()),
        "gallery": None if gallery is None else str(Path(options.gallery).resolve()),
        "people": people,
        "pictures": pictures,
        **asdict(found),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
    }
    path = threshold_file(network)
    write_json(path, facts)
    print(_table(people, pictures, found))
    print(f"written: {path}")
    return 0


def _table(people: int, pictures: int, found: Verification) -> str:
    """What was measured, a line each."""
    rows = {
        "people": f"{people:,}",
        "pictures": f"{pictures:,}",
        "genuine pairs": f"{found.genuine:,}",
        "impostor pairs": f"{found.impostors:,}",
        "area under ROC": f"{found.area_under_roc:.4f}",
        "equal error rate": f"{100 * found.equal_error_rate:.2f} %",
        "false accepts": f"{100 * found.false_accepts:.4g} % (asked for: at most {100 * found.asked:.4g} %)",
        "true accepts": f"{100 * found.true_accepts:.2f} %",
        "threshold": f"{found.threshold:.4f}",
    }
    return "\n".join(f"{name:18}{value}" for name, value in rows.items())


if __name__ == "__main__":
    sys.exit(main())
