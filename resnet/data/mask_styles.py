"""What masks look like: the cut, relief, prints and colours of each style, as formulas in a mask's own coordinates.

`u` runs from -1 at the left side of a mask over 0 at the nose to 1 at its right side, `v` from 0 at its top edge to 1
at its bottom edge. `resnet.data.masks` puts them on a face.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Formula: TypeAlias = Callable[[Floats, Floats, np.random.Generator], Floats]  # (u, v, rng) -> one number a sample


# Relief: factors around 1 that lighten and darken the cloth.


def _line(distance: Floats, width: float) -> Floats:
    """A soft line along `distance` = 0: 1 on it, 0 away from it."""
    return np.exp(-((distance / width) ** 2))


def _fold(distance: Floats, width: float) -> Floats:
    """A fold along `distance` = 0: bright (up to 1) before it, dark (down to -1) behind it."""
    d = distance / width
    return -d * np.exp(0.5 - 0.5 * d * d)


def _rim(u: Floats, v: Floats) -> Floats:
    """Distance from the nearest edge, in heights of the mask, which is nearly twice as wide as high."""
    return np.minimum(np.minimum(v, 1 - v), 0.8 * (1 - np.abs(u)))


def roundness(u: Floats, v: Floats) -> Floats:
    """The head is round and the nose stands out: sides and chin turn away from the light, the middle towards it."""
    return 1 - 0.24 * u * u * np.abs(u) - 0.5 * np.maximum(v - 0.6, 0) ** 2 + 0.07 * (1 - v) * _line(u, 0.3)


def wrinkles(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Two soft wrinkles on either side, where the straps pull, fading towards the nose."""
    inwards, left = 1 - np.abs(u), u < 0
    folds = np.zeros_like(u)
    for _ in range(2):
        starts, slopes = rng.uniform((0.1, -0.4), (0.9, 0.4), (2, 2)).astype(np.float32).T  # (left and right,) each
        folds += _fold(v - np.where(left, *starts) - np.where(left, *slopes) * inwards, 0.05)
    return 1 + 0.07 * folds * _line(inwards, 0.8)


def _pleated(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Surgical: three pleats from side to side and a bound border."""
    rim = _rim(u, v)
    shade = 1 + 0.05 * (rim < 0.08) - 0.1 * _line(rim - 0.08, 0.018)
    for height in rng.uniform((0.28, 0.48, 0.68), (0.32, 0.52, 0.72)).tolist():
        shade += 0.15 * _fold(v - height, 0.035)
    return shade


def _hemmed(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Cloth: a stitched hem all around and, on every other one, a seam down the middle."""
    seam = 0.12 * float(rng.integers(2))
    return 1 - 0.14 * _line(_rim(u, v) - 0.06, 0.018) + seam * _fold(u, 0.04)


def _ridged(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """KN95: two stiff halves that meet in a sharp ridge, one of them in shade; welded edges, a clip over the nose."""
    halves = 0.97 + rng.choice((-0.05, 0.05)).item() * np.tanh(u / 0.05) + 0.12 * _fold(u, 0.03)
    return halves - 0.1 * _line(_rim(u, v) - 0.07, 0.015) - 0.14 * _line(v - 0.14, 0.03) * (np.abs(u) < 0.28)


def _moulded(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Dark: smooth foam with a raised seam and a sheen on either side of it."""
    beside = rng.uniform(0.25, 0.4)
    sheen = _line(u - beside, 0.22) + _line(u + beside, 0.22)
    return 1 + 0.45 * sheen * _line(v - 0.35, 0.28) + 0.25 * _fold(u, 0.035)


# Prints: the share of a second colour.


def _plain(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """No print."""
    return np.zeros_like(u)


def _printed(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Stripes, checks or dots at any angle; half of the cloth is plain."""
    kind, angle, waves = rng.random(), rng.uniform(0, np.pi), 2 * np.pi * rng.uniform(3.5, 7)
    if kind < 0.5:
        return _plain(u, v, rng)
    along = np.sin(waves * (math.cos(angle) * u + math.sin(angle) * v))
    across = np.sin(waves * (math.cos(angle) * v - math.sin(angle) * u))
    if kind < 0.7:
        return (along > 0.2).astype(np.float32)
    return (0.5 * (along > 0) + 0.5 * (across > 0) if kind < 0.9 else along + across > 1.2).astype(np.float32)


@dataclass(frozen=True)
class Cut:
    """How a style is cut and what it is made of."""

    top: float  # power of the top edge between nose and cheek: 1 runs straight, 2 is round
    bottom: float  # power of the bottom edge between chin and jaw
    short: float  # share of the way from cheek to jaw that the mask leaves free at its sides
    bulge: float  # how far its sides curve outwards, in units of u
    strap: float  # width of a strap at the mask, in heights of the mask
    relief: Formula
    print: Formula = _plain


CUTS = {
    "surgical": Cut(1.5, 2.4, 0.05, 0.02, 0.05, _pleated),
    "cloth": Cut(1.4, 1.9, 0.09, 0.05, 0.07, _hemmed, _printed),
    "kn95": Cut(1.15, 1.5, 0.18, 0.03, 0.05, _ridged),
    "dark": Cut(1.2, 1.6, 0.12, 0.04, 0.13, _moulded),
}
STYLES = tuple(CUTS)
WHITE = (228, 229, 228)
COLOURS = {
    "surgical": ((152, 192, 218), (166, 205, 224), (180, 214, 216), (168, 208, 194), (214, 220, 224)),
    "cloth": ((150, 62, 64), (70, 94, 140), (92, 120, 94), (196, 168, 130), (128, 106, 150), (206, 204, 196)),
    "kn95": (WHITE, (220, 222, 226), (230, 227, 220)),
    "dark": ((38, 38, 42), (30, 34, 48), (54, 54, 58), (46, 38, 40)),
}
STRAPS = {"surgical": WHITE, "kn95": WHITE}  # the straps of the others are of their cloth
