"""Mask or no mask: what a detector learns from RMFRD, and what it is tested on, people kept apart.

Letters: H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet.data.batches import masked_copies
from resnet.data.faces import Faces, join
from resnet.data.rmfrd import Rmfrd

ANSWERS = ("no mask", "mask")
MOST_EACH = 20  # pictures of one person with and without mask; the full set has up to hundreds


def divide(rmfrd: Rmfrd, tested: ArrayLike) -> tuple[Faces, Faces]:
    """Return what is learned from and what is tested, of other people; the classes are :data:`ANSWERS`.

    Args:
        rmfrd: with and without masks.
        tested: labels of the people to test on.
    """
    parts = []
    for inside in (False, True):
        answers = [
            labelled(faces.take(np.flatnonzero(np.isin(faces.labels, tested) == inside)), answer)
            for answer, faces in enumerate((rmfrd.unmasked, rmfrd.masked))
        ]
        parts.append(join(*answers))
    return parts[0], parts[1]


def with_drawn_masks(learned: Faces, seed: int, *, real: bool = True) -> Faces:
    """Return what a detector is shown in an epoch: each bare face as it is and with a drawn mask, for variety.

    Args:
        learned: bare and masked faces, as :func:`divide` returns them.
        seed: decides about the masks and their colours.
        real: show the real masks, too, as many as drawn ones, and each bare face twice: so both answers are equally
            frequent. Without it the real ones are left out.
    """
    bare, masked = (learned.take(np.flatnonzero(learned.labels == answer)) for answer in (0, 1))
    drawn = labelled(recoloured(masked_copies(bare, seed), bare, np.random.default_rng([seed, 1])), 1)
    shown = join(bare, drawn)
    return join(shown, join(bare, repeated(masked, len(bare)))) if real else shown


def recoloured(masked: Faces, bare: Faces, rng: np.random.Generator) -> Faces:
    """Return masked faces whose masks have their red, green and blue at random places.

    Drawn masks are mostly blue, green, white or dark. A network would learn that pink is skin, and miss pink masks.

    Args:
        masked: the faces with drawn masks.
        bare: the same faces without; what differs is the mask.
        rng: source of the draws.
    """
    pictures = masked.pictures.copy()
    for picture, before in zip(pictures, bare.pictures, strict=True):
        changed = (picture != before).any(axis=2)  # (H, W)
        picture[changed] = picture[changed][:, rng.permutation(picture.shape[2])]  # (pixels, C)
    return replace(masked, pictures=pictures)


def repeated(faces: Faces, count: int) -> Faces:
    """Return ``count`` pictures: all of the set, one after the other, as often as need be."""
    return faces.take(np.resize(np.arange(len(faces)), count))


def labelled(faces: Faces, answer: int) -> Faces:
    """Return the pictures under one answer instead of under their people."""
    labels: NDArray[np.int64] = np.full(len(faces), answer, np.int64)
    return replace(faces, labels=labels, people=ANSWERS)
