"""A trained network in use: read with all that one must know to use it, and run over pictures.

Letters: N pictures, H height, W width, C channels, K people, D features of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn.backend import Array, array_module, choose_backend, to_numpy
from nn.checkpoint import load_weights
from nn.gpu import uploads
from nn.parallel import cores_for, keep_freed_memory
from resnet.config import TrainingConfig
from resnet.data.batches import to_network_input
from resnet.models import ResNet, make_model
from resnet.runfolder import BEST, WEIGHTS

MOST_NAMES = 1_000_000  # people in a file's metadata


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with what it learned, and what one must know to show it pictures.

    Attributes:
        model: with its weights, on its device.
        path: of the file it was read from.
        people: whom it knows, in the order of its logits.
        image_size: side of the pictures it takes, in pixels.
        mean, std: of the pictures it learned from, a number a channel, 0 black to 1 white.
        arch: name of the network.
    """

    model: ResNet
    path: Path
    people: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    arch: str

    @property
    def colour(self) -> bool:
        """Whether it takes pictures in colour, else in grey."""
        return self.model.in_channels == 3

    def logits(self, pictures: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
        """Return a number a person for pictures uint8 (N, H, W, C): float32 (N, K) on the CPU, higher is likelier."""
        return predict(self.model, pictures, self.mean, self.std, batch_size)

    def embeddings(self, pictures: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
        """Return embeddings of pictures uint8 (N, H, W, C): float32 (N, D) on the CPU; see :func:`embed`."""
        return embed(self.model, pictures, self.mean, self.std, batch_size)


def load_network(run: str | Path, backend: str = "auto") -> TrainedNetwork:
    """Read a trained network.

    Args:
        run: a run folder, of which the weights after the last epoch are taken, or a file such as its
            ``best.safetensors``.
        backend: "auto", "numpy" or "cupy".

    Raises:
        FileNotFoundError: there is no such run or file.
        ValueError: the file is damaged, has no word on the network it is of, or does not fit it; the message names
            what was expected.
        BackendError: the backend cannot be used here.
    """
    path = Path(run) / WEIGHTS if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a run folder with {WEIGHTS} in it, or a file such as {BEST}, at {run}, found none: train one "
            "with train.py, whose last line names the folder"
        )
    state, metadata = load_weights(path)
    try:
        facts = {name: json.loads(metadata[name]) for name in _KINDS}
        _check(facts)
        model = make_model(
            facts["arch"],
            len(facts["people"]),
            facts["channels"],
            activation=facts["activation"],
            negative_slope=facts["negative_slope"],
            stem=facts["stem"],
            rng=np.random.default_rng(0),
        )
        model.load_state_dict(state)
    except KeyError as error:
        raise ValueError(
            f"{path}: expected the weights of a run of train.py, whose metadata tell {', '.join(_KINDS)}; found no "
            f"{error.args[0]}. Weights from elsewhere can be trained further: train.py --weights {path}"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no network that can be used: {error}") from error
    model = model.to(choose_backend(backend)).eval()
    people, mean, std = (tuple(facts[name]) for name in ("people", "mean", "std"))
    return TrainedNetwork(model, path, people, facts["image_size"], mean, std, facts["arch"])


_KINDS: dict[str, tuple[type, ...]] = {
    "arch": (str,),
    "stem": (str,),
    "activation": (str,),
    "negative_slope": (float, int),
    "image_size": (int,),
    "channels": (int,),
    "mean": (list,),
    "std": (list,),
    "people": (list,),
}


def _check(facts: dict[str, Any]) -> None:
    """Raise a ValueError if a file's metadata are not those of a network for pictures."""
    for name, kinds in _KINDS.items():
        if type(facts[name]) not in kinds:
            raise ValueError(f"expected {name} as {kinds[0].__name__}, got {facts[name]!r:.100}")
    TrainingConfig(**{name: facts[name] for name in ("arch", "stem", "activation", "image_size")})  # knows the limits
    people, channels = facts["people"], facts["channels"]
    if not 1 <= len(people) <= MOST_NAMES or not all(isinstance(name, str) for name in people):
        raise ValueError(f"expected the names of 1 to {MOST_NAMES:,} people, got {people!r:.100}")
    if channels not in (1, 3):
        raise ValueError(f"expected channels as 1 (grey) or 3 (colour), got {channels}")
    for name in ("mean", "std"):
        numbers = facts[name]
        good = all(type(number) in (float, int) and 0 <= number <= 1 for number in numbers)
        if len(numbers) != channels or not good or (name == "std" and min(numbers) <= 0):
            raise ValueError(f"expected {name} as {channels} numbers from 0 to 1, got {numbers!r:.100}")


def predict(
    model: ResNet, pictures: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], batch_size: int = 32
) -> NDArray[np.float32]:
    """Run a network over pictures with its running statistics, keeping nothing for backward.

    Args:
        model: on any device; it stays as it is.
        pictures: uint8 (N, H, W, C).
        mean, std: normalisation, a number a channel.
        batch_size: pictures at a time.

    Returns:
        logits, float32 (N, K), on the CPU.
    """
    fused = model.fuse()
    return _in_batches(fused, fused, pictures, mean, std, batch_size)


def embed(
    model: ResNet, pictures: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], batch_size: int = 32
) -> NDArray[np.float32]:
    """Return what the classifier looks at: of each picture and of its mirror image, the mean of both.

    Args: as :func:`predict`.

    Returns:
        float32 (N, D), on the CPU.
    """
    fused = model.fuse()

    def both(x: Array) -> Array:
        mirrored = array_module(x).ascontiguousarray(x[:, :, ::-1])  # (N, H, W, C), left and right swapped
        return (fused.embed(x) + fused.embed(mirrored)) / 2

    return _in_batches(both, fused, pictures, mean, std, batch_size)


def _in_batches(
    function: Callable[[Array], Array],
    model: ResNet,
    pictures: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
) -> NDArray[np.float32]:
    """Normalise pictures uint8 (N, H, W, C) and hand them to a function batch by batch: (N, K) or (N, D)."""
    keep_freed_memory()
    xp = array_module(model.fc.weight.data)
    starts = range(0, len(pictures), batch_size)
    batches = ((to_network_input(pictures[start : start + batch_size], mean, std), None) for start in starts)
    with cores_for(min(batch_size, len(pictures))):
        parts = [function(x) for x, _ in uploads(batches, xp)]
    return to_numpy(xp.concatenate(parts))  # (N, K) or (N, D)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits (N, K) -> probabilities (N, K), each row with the sum 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))  # (N, K) - (N, 1)
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # (N, K) / (N, 1)
