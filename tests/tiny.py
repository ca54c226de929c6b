"""A tiny set of made-up people, quick to learn: each person is a pattern, each picture that pattern with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_people(folder: Path, people: int = 4, pictures: int = 6, size: int = 24, seed: int = 0) -> Path:
    """Write ``people`` folders of ``pictures`` grey PNG files each; return ``folder``."""
    rng = np.random.default_rng(seed)
    for person in range(people):
        pattern = np.kron(rng.uniform(40, 215, (4, 4)), np.ones((size // 4, size // 4)))
        (folder / f"person{person}").mkdir(parents=True)
        for number in range(pictures):
            noisy = np.clip(pattern + rng.normal(0, 15, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"person{person}" / f"{number}.png")
    return folder


def quick(folder: Path, run_dir: Path, **more: object) -> list[str]:
    """Return command-line arguments of a training that takes about a second."""
    settings = {
        "backend": "numpy",
        "data": "folder",
        "data_dir": folder,
        "arch": "resnet20",
        "stem": "small",
        "image_size": 16,
        "epochs": 2,
        "repeats": 1,
        "batch_size": 6,
        "run_dir": run_dir,
        **more,
    }
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
