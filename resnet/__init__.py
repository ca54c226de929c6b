"""ResNets, masks on faces, training and evaluation: what is built from :mod:`nn`.

The names in ``__all__`` are the public ones: they keep their meaning and their arguments from one minor version to the
next, and ``CHANGELOG.md`` tells of each change. A name's module is loaded when the name is first asked for. So
``import resnet`` takes no time, and ``python -m resnet.predict`` does not find that module loaded before it runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet.config import TrainingConfig
    from resnet.data import Faces, load_faces
    from resnet.data.masks import draw_mask
    from resnet.gallery import Gallery, enrol
    from resnet.inference import TrainedNetwork, load_network
    from resnet.models import (
        MODELS,
        ResNet,
        make_model,
        plain18,
        plain34,
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
    )
    from resnet.trainer import Trainer, TrainingError
    from resnet.training import resume, run
    from resnet.weights import load_pretrained

__version__ = "0.2.0"

__all__ = [
    "MODELS",
    "Faces",
    "Gallery",
    "ResNet",
    "TrainedNetwork",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "draw_mask",
    "enrol",
    "load_faces",
    "load_network",
    "load_pretrained",
    "make_model",
    "plain18",
    "plain34",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resume",
    "run",
]

_HOMES = {
    "config": ("TrainingConfig",),
    "data": ("Faces", "load_faces"),
    "data.masks": ("draw_mask",),
    "gallery": ("Gallery", "enrol"),
    "inference": ("TrainedNetwork", "load_network"),
    "trainer": ("Trainer", "TrainingError"),
    "training": ("resume", "run"),
    "weights": ("load_pretrained",),
}  # all others are networks, in models


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "models")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """Return the public names and the version."""
    return [*__all__, "__version__"]
