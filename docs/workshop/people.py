"""Made-up people: drawn ovals with a face of their own each. Real faces belong to real people, and to no page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resnet.data.faces import Faces
from resnet.data.masks import TEMPLATES


def draw_head(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a grey head (size, size) with eyes, brows, nose and mouth where ``rng`` puts them, light from the left."""
    scale = 4 * size / 100  # drawn four times as large, on a sheet of 100 × 100
    sheet = Image.new("L", (4 * size, 4 * size), 70)
    pen = ImageDraw.Draw(sheet)

    def oval(x: float, y: float, width: float, height: float, grey: float) -> None:
        box = [scale * value for value in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        pen.ellipse(box, fill=int(grey))

    skin, hair, round_ = rng.uniform(150, 215), rng.uniform(20, 90), rng.uniform(74, 86)
    oval(50, 46, round_ + 8, 92, hair)
    oval(50, 55, round_, 88, skin)
    apart, level, open_ = rng.uniform(13, 19), rng.uniform(43, 48), rng.uniform(5, 9)
    for side in (-1, 1):
        oval(50 + side * apart, level, 14, open_, 235)
        oval(50 + side * apart, level, 5, open_, 30)
        oval(50 + side * apart, level - rng.uniform(8, 12), 16, rng.uniform(2, 5), hair)
    oval(50, rng.uniform(60, 64), rng.uniform(6, 12), rng.uniform(12, 20), 0.85 * skin)
    oval(50, rng.uniform(76, 82), rng.uniform(16, 30), rng.uniform(3, 8), 0.55 * skin)
    head = np.asarray(sheet.resize((size, size), Image.Resampling.BOX), dtype=float)
    light = np.linspace(1.1, 0.85, size)  # a column each
    return np.clip(head * light, 0, 255).astype(np.uint8)  # (size, size) * (size,)


def made_up_people(people: int = 20, each: int = 6, size: int = 32, seed: int = 0) -> Faces:
    """Return ``each`` grey pictures of every made-up person: one head, in other light, moved, with noise."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((people * each, size, size, 1), np.uint8)
    for person in range(people):
        head = draw_head(size, rng).astype(float)
        for number in range(person * each, (person + 1) * each):
            moved = np.roll(head, rng.integers(2), axis=1)  # by up to a pixel to the right
            changed = moved * rng.uniform(0.97, 1.03) + rng.normal(0, 6, moved.shape)
            pictures[number, :, :, 0] = np.clip(changed, 0, 255)
    labels = np.repeat(np.arange(people), each)
    names = tuple(f"person {number}" for number in range(people))
    files = tuple(f"{names[label]}, picture {number % each}" for number, label in enumerate(labels))
    return Faces(pictures, labels, names, files, TEMPLATES["centred"])
