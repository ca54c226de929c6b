"""Random small changes to training pictures: moved, scaled, turned, mirrored, lit differently.

Every picture gets one affine map, drawn at random, and is sampled once through it, so it is blurred once and not four
times. The map is kept the way sampling needs it, from the new picture back to the old: pixel p of the new picture is
read at A·p + b in the old one, between the four pixels around that place (bilinear); beyond an edge the edge repeats.

Letters: N pictures, H height, W width, C channels. Places are (row, column), rows downwards, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PIXELS_AT_ONCE = 32_768
"""Pictures are sampled a few at a time, so that the dozen arrays of their size stay in cache. One core takes 30 µs for
one of 64x64 grey (a loop over Pillow's Image.transform: 50) and 210 µs for 112x112 RGB (a batch at once: 380)."""

_MID_GREY = 127.5


@dataclass(frozen=True)
class Augmentation:
    """How strongly training pictures are changed; the defaults suit faces already cropped and upright.

    Attributes:
        shift: largest move, down and across, as a share of the picture's height and width; 0 to 1.
        scale: largest growth: sizes are multiplied by a factor from 1 / (1 + scale) to 1 + scale; 0 or more.
        turn: largest turn either way, in degrees; 0 to 180.
        flip: whether every second picture, by chance, is mirrored left to right.
        brightness: largest change of contrast (a factor from 1 - brightness to 1 + brightness about mid-grey) and of
            light (up to that share of mid-grey is added or taken away); 0 to 1.

    Raises:
        ValueError: a strength is out of range; the message names it.

    """

    shift: float = 0.08
    scale: float = 0.1
    turn: float = 10.0
    flip: bool = True
    brightness: float = 0.2

    def __post_init__(self) -> None:
        for name, most in (("shift", 1.0), ("scale", np.inf), ("turn", 180.0), ("brightness", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most or not np.isfinite(value):
                raise ValueError(f"expected {name} from 0 to {most:g}, got {value}")

    @classmethod
    def none(cls) -> Augmentation:
        """Leave pictures as they are."""
        return cls(shift=0.0, scale=0.0, turn=0.0, flip=False, brightness=0.0)


def augment(
    pictures: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    shift: float = Augmentation.shift,
    scale: float = Augmentation.scale,
    turn: float = Augmentation.turn,
    flip: bool = Augmentation.flip,
    brightness: float = Augmentation.brightness,
) -> NDArray[np.uint8]:
    """Change every picture of a batch at random; the input is left alone.

    Args:
        pictures: uint8 (N, H, W, C), sides of at least 2 pixels.
        rng: the only source of chance. How much is drawn depends on N alone, not on the strengths.
        shift: see `Augmentation`, as are the other strengths.
        scale: largest growth.
        turn: largest turn, in degrees.
        flip: whether to mirror every second picture.
        brightness: largest change of contrast and light.

    Returns:
        uint8 (N, H, W, C), a new array.

    Raises:
        ValueError: the pictures are not uint8 (N, H, W, C) of at least 2x2 pixels, or a strength is out of range.

    """
    Augmentation(shift, scale, turn, flip, brightness)  # checks the strengths
    _check_pictures(pictures)
    N, (H, W) = len(pictures), pictures.shape[1:3]
    maps = inverse_maps(
        (H, W),
        shifts=rng.uniform(-shift, shift, (N, 2)) * (H, W),  # (N, 2) * (2,)
        scales=np.exp(rng.uniform(-np.log1p(scale), np.log1p(scale), N)),
        turns=rng.uniform(-turn, turn, N),
        mirrored=(rng.random(N) < 0.5) & flip,
    )
    contrasts = 1 + rng.uniform(-brightness, brightness, N)
    lights = rng.uniform(-brightness, brightness, N)

    changed = np.empty_like(pictures)
    step = max(1, _PIXELS_AT_ONCE // max(1, pictures[:1].size))
    for start in range(0, N, step):
        part = slice(start, start + step)
        changed[part] = relight(warp(pictures[part], maps[part]), contrasts[part], lights[part])
    return changed


def inverse_maps(
    shape: tuple[int, int], *, shifts: ArrayLike, scales: ArrayLike, turns: ArrayLike, mirrored: ArrayLike
) -> NDArray[np.float64]:
    """The affine maps that mirror, then turn and scale about the middle, then move; from new picture to old.

    The new picture's place q of a thing at p in the old one is q = c + t + s·R·F·(p - c), with c the middle, F the
    mirror, R the turn, s the scale and t the shift; solved for p, that is p = A·q + b with
    A = F·Rᵀ / s and b = c - A·(c + t).

    Args:
        shape: (H, W) of the pictures.
        shifts: (N, 2) pixels down and to the right.
        scales: (N,) factors; above 1 things grow.
        turns: (N,) degrees, counter-clockwise as one looks at the picture.
        mirrored: (N,) whether left and right change places.

    Returns:
        float64 (N, 2, 3), the matrix A and, as its third column, b.

    """
    angle = np.deg2rad(np.asarray(turns, dtype=np.float64))
    zoom = np.asarray(scales, dtype=np.float64)
    sign = np.where(mirrored, -1.0, 1.0)
    middle = (np.array(shape) - 1) / 2
    maps = np.empty((len(angle), 2, 3))
    maps[:, 0, 0] = np.cos(angle) / zoom
    maps[:, 0, 1] = np.sin(angle) / zoom
    maps[:, 1, 0] = -np.sin(angle) / zoom * sign
    maps[:, 1, 1] = np.cos(angle) / zoom * sign
    moved_middle = middle + np.asarray(shifts)  # (2,) + (N, 2) -> (N, 2)
    maps[:, :, 2] = middle - np.einsum("nij,nj->ni", maps[:, :, :2], moved_middle)  # (N, 2, 2) @ (N, 2) -> (N, 2)
    return maps


def warp(pictures: NDArray[np.uint8], maps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sample each picture through its own map, bilinear, edges repeated.

    Args:
        pictures: uint8 (N, H, W, C), sides of at least 2 pixels.
        maps: (N, 2, 3) from new picture to old, as `inverse_maps` makes them.

    Returns:
        float32 (N, H, W, C), not rounded.

    """
    N, H, W, C = pictures.shape
    A, b = maps[:, :, :2], maps[:, :, 2]
    q_row, q_column = np.arange(H), np.arange(W)
    # A place is a sum of what its row and what its column adds: (N, 2, H, 1) + (N, 2, 1, W) -> (N, 2, H, W).
    from_row = (A[:, :, :1] * q_row + b[:, :, np.newaxis]).astype(np.float32)  # (N, 2, H)
    from_column = (A[:, :, 1:] * q_column).astype(np.float32)  # (N, 2, W)
    row = np.clip(from_row[:, 0, :, np.newaxis] + from_column[:, 0, np.newaxis, :], 0, H - 1)  # (N, H, W)
    column = np.clip(from_row[:, 1, :, np.newaxis] + from_column[:, 1, np.newaxis, :], 0, W - 1)  # (N, H, W)

    top = np.minimum(row.astype(np.int32), H - 2)  # (N, H, W); at the last row the lower neighbour has all the weight
    left = np.minimum(column.astype(np.int32), W - 2)  # (N, H, W)
    down = np.subtract(row, top, dtype=np.float32)  # (N, H, W), weight of the lower neighbours
    right = np.subtract(column, left, dtype=np.float32)  # (N, H, W), weight of the right neighbours
    corner = np.arange(N)[:, np.newaxis, np.newaxis] * (H * W) + (top * W + left)  # (N, H, W), upper left neighbours

    sampled = np.empty(pictures.shape, dtype=np.float32)
    for channel in range(C):
        plane = pictures[..., channel].reshape(-1).astype(np.float32)  # (N, H, W) -> (N·H·W,)
        upper = _between(plane.take(corner), plane.take(corner + 1), right)  # (N, H, W)
        lower = _between(plane.take(corner + W), plane.take(corner + (W + 1)), right)  # (N, H, W)
        sampled[..., channel] = _between(upper, lower, down)
    return sampled


def relight(
    pictures: NDArray[np.float32], contrasts: NDArray[np.float64], lights: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Change contrast about mid-grey, add light, round to whole grey levels and cut at 0 and 255.

    Args:
        pictures: float32 (N, H, W, C), 0 to 255; overwritten.
        contrasts: (N,) factors.
        lights: (N,) shares of mid-grey to add.

    Returns:
        uint8 (N, H, W, C).

    """
    gain = contrasts.astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]  # (N,) -> (N, 1, 1, 1)
    offset = (_MID_GREY * (1 + lights - contrasts)).astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    pictures *= gain
    pictures += offset
    np.rint(pictures, out=pictures)
    np.clip(pictures, 0, 255, out=pictures)
    return pictures.astype(np.uint8)


def _between(start: NDArray[np.float32], end: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """`start` + `share` · (`end` - `start`), both overwritten to save two arrays."""
    end -= start
    end *= share
    start += end
    return start


def _check_pictures(pictures: NDArray[Any]) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != 4:
        raise ValueError(f"expected pictures uint8 (N, H, W, C), got {pictures.dtype} {pictures.shape}")
    if min(pictures.shape[1:3]) < 2:
        raise ValueError(f"expected pictures of at least 2x2 pixels, got {pictures.shape[1]}x{pictures.shape[2]}")
