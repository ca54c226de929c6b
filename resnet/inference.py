"""A trained network in use: read with all that one must know to use it, and run over pictures and picture files.

Letters: N pictures, B of them in a batch, H height, W width, C channels, K people, D features of an embedding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nn.backend import Array, array_module, choose_backend, to_numpy
from nn.checkpoint import load_weights
from nn.gpu import uploads
from nn.parallel import cores_for, keep_freed_memory
from resnet.command import not_empty, whole_number
from resnet.config import TrainingConfig
from resnet.data.batches import prefetch, to_network_input
from resnet.data.faces import read_picture, resize
from resnet.models import ResNet, make_model
from resnet.runfolder import BEST, WEIGHTS

MOST_NAMES = 1_000_000  # people in a file's metadata


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with what it learned, and what one must know to show it pictures.

    Attributes:
        model: with its weights, on its device; not to be changed once it has been used.
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
        """Return a number a person for pictures: higher is likelier.

        Args:
            pictures: uint8 (N, H, W, C) with H = W = ``image_size`` and C = 3 if ``colour``, else 1.
            batch_size: pictures at a time.

        Returns:
            float32 (N, K), on the CPU.

        Raises:
            ValueError: no pictures, or of another shape; answers that are not finite, because the weights are not.
        """
        return self._run(self._fused, pictures, batch_size)

    def embeddings(self, pictures: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
        """Return embeddings of pictures, float32 (N, D) on the CPU: see :func:`embed`.

        Args and raises: as :meth:`logits`.
        """
        return self._run(lambda x: _embed_both_ways(self._fused, x), pictures, batch_size)

    @cached_property
    def _fused(self) -> ResNet:
        """The network as it computes: made once, as whoever reads files asks for many small batches."""
        return self.model.fuse()

    def _run(
        self, function: Callable[[Array], Array], pictures: NDArray[np.uint8], batch_size: int
    ) -> NDArray[np.float32]:
        size, channels = self.image_size, self.model.in_channels
        if pictures.ndim != 4 or len(pictures) == 0 or pictures.shape[1:] != (size, size, channels):
            raise ValueError(
                f"expected pictures (N, {size}, {size}, {channels}), at least one, got {pictures.shape}: "
                "resnet.data.faces has read_picture and resize"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # the error below says it
            answers = _in_batches(function, self.model, pictures, self.mean, self.std, batch_size)
        if np.count_nonzero(~np.isfinite(answers)):
            raise ValueError(
                f"the answers of {self.path} are no finite numbers: its training went astray. Use a file of an earlier "
                f"epoch, such as {BEST} of its run, or train again with a lower --learning-rate"
            )
        return answers


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
        _check_head(state.get("fc.weight"), len(facts["people"]))
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


def _check_head(weight: NDArray[Any] | None, people: int) -> None:
    """Raise a ValueError if a classifier is not for so many people: a small file cannot ask for a large one."""
    if weight is None or weight.ndim != 2 or len(weight) != people or weight.shape[1] < 64:
        found = "none" if weight is None else str(weight.shape)
        raise ValueError(f"expected fc.weight ({people}, 64 or more), a row for each of its people, found {found}")


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
    return _in_batches(model.fuse(), model, pictures, mean, std, batch_size)


def embed(
    model: ResNet, pictures: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], batch_size: int = 32
) -> NDArray[np.float32]:
    """Return what the classifier looks at: of each picture and of its mirror image, the mean of both.

    Args: as :func:`predict`.

    Returns:
        float32 (N, D), on the CPU.
    """
    fused = model.fuse()
    return _in_batches(lambda x: _embed_both_ways(fused, x), model, pictures, mean, std, batch_size)


def _embed_both_ways(fused: ResNet, x: Array) -> Array:
    """Mean embedding of pictures (N, H, W, C) and of their mirror images: (N, D)."""
    mirrored = array_module(x).ascontiguousarray(x[:, :, ::-1])  # (N, H, W, C), left and right swapped
    return (fused.embed(x) + fused.embed(mirrored)) / 2


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


Failures: TypeAlias = list[tuple[Path, str]]
"""Files that could not be read, each with what is wrong."""


class FileBatch(NamedTuple):
    """What became of some picture files.

    Attributes:
        files: the B that could be read, in the order asked for.
        pictures: for each network, uint8 (B, H, W, C) as it takes them; empty if B is 0.
        bad: the others.
    """

    files: list[Path]
    pictures: list[NDArray[np.uint8]]
    bad: Failures


def read_ahead(
    files: Sequence[Path], networks: Sequence[TrainedNetwork], batch_size: int = 32, title: str | None = None
) -> Iterator[FileBatch]:
    """Read picture files in batches, while the batch before is computed with; on a terminal a bar shows the progress.

    Each picture is shrunk as soon as it is decoded, so that large photographs never lie in memory together.

    Args:
        files: to read.
        networks: for which; each gets the pictures in its own size and colours.
        batch_size: most files at a time.
        title: of the progress bar.
    """
    starts = range(0, len(files), batch_size)
    batches = (_read(files[start : start + batch_size], networks) for start in starts)
    with (
        tqdm(total=len(files), desc=title, unit=" pictures", disable=None, leave=False) as bar,
        closing(prefetch(batches)) as ready,
    ):
        for batch in ready:
            yield batch
            bar.update(len(batch.files) + len(batch.bad))


def _read(files: Sequence[Path], networks: Sequence[TrainedNetwork]) -> FileBatch:
    """Read a batch of files."""
    good: list[Path] = []
    views: list[list[NDArray[np.uint8]]] = []  # B of them, each with a picture (H, W, C) for each network
    bad: Failures = []
    for path in files:
        try:
            pictures = {colour: read_picture(path, colour) for colour in {network.colour for network in networks}}
        except ValueError as error:
            bad.append((path, str(error)))
            continue
        good.append(path)
        views.append([resize(pictures[network.colour], network.image_size) for network in networks])
    return FileBatch(good, [np.stack(view) for view in zip(*views, strict=True)], bad)  # B of (H, W, C) -> (B, H, W, C)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits (N, K) -> probabilities (N, K), each row with the sum 1."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))  # (N, K) - (N, 1)
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # (N, K) / (N, 1)


def add_network_options(parser: argparse.ArgumentParser, *, bad_pictures: str) -> None:
    """Add the options that all commands have which use a trained network.

    Args:
        parser: to add them to.
        bad_pictures: what to do by default about pictures that cannot be read, "stop" or "skip".
    """
    parser.add_argument(
        "--model",
        type=not_empty,
        required=True,
        metavar="RUN",
        help=f"run folder ({WEIGHTS} in it), or a file of weights of a run",
    )
    parser.add_argument(
        "--bad-pictures",
        choices=("stop", "skip"),
        default=bad_pictures,
        help="what to do about pictures that cannot be read: stop names them all before anything is written, skip "
        f"names them and goes on without ({bad_pictures})",
    )
    parser.add_argument("--batch-size", type=whole_number(1), default=32, help="pictures at a time (32)")
    parser.add_argument("--threads", type=whole_number(0), default=0, help="cores to compute on, 0 for all (0)")
    parser.add_argument(
        "--backend",
        choices=("auto", "numpy", "cupy"),
        default="auto",
        help="where to compute: cupy needs an NVIDIA GPU, auto takes one if it is usable (auto)",
    )
