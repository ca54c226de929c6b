"""From faces to what a network eats: masked, changed at random, shuffled, in batches, made ahead of time.

Every random choice hangs only on (seed, epoch, place in the epoch), never on what was drawn before. So training that
is taken up again at epoch 7 sees the batches it would have seen, and making batches in another thread changes none.

Letters: N pictures of the set, B pictures of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet.data.augment import Augmentation, augment
from resnet.data.faces import Faces
from resnet.data.masks import draw_mask

STORE_BYTES = 256 * 2**20
"""Most bytes a `TrainingBatches` keeps in masked pictures; one mask a picture is kept whatever it takes."""

# What a stream of random numbers is for; each has its own first words, so that no two streams are ever the same.
_ORDER, _CHANGES, _TRAINING_MASK, _TEST_MASK = range(1, 5)

Item = TypeVar("Item")
Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class TrainingBatches:
    """The batches of every epoch of training.

    Drawing a mask takes about 2 ms, all else that is done to a picture here 0.1 ms: masks are too slow to draw afresh
    each time. So each picture has up to `variants` masked versions, each drawn when first needed and then kept as
    N · variants · H · W · C bytes (200 ORL faces of 64x64 with 8 variants: 6.6 MB). Where that would exceed
    `STORE_BYTES`, there are fewer variants, at least 1.

    Args:
        faces: the pictures to train on.
        batch_size: most pictures in a batch.
        pictures_per_epoch: None for each picture once; else that many, passing over the shuffled set as often as
            need be, so that each picture comes equally often, up to one.
        mask_probability: the share of pictures that wear a mask, drawn afresh in each epoch; 0 to 1.
        augmentation: how strongly pictures are changed at random, after the mask is put on.
        variants: masked versions of each picture; `variants` as attribute says how many there really are.
        seed: a whole number from 0 on; all chance comes from it.
        mean: what `to_network_input` subtracts, grey levels from 0 to 1, one number or one a channel.
        std: what `to_network_input` divides by.

    Raises:
        ValueError: no pictures, or an option out of range; the message names it.

    """

    def __init__(
        self,
        faces: Faces,
        batch_size: int,
        *,
        pictures_per_epoch: int | None,
        mask_probability: float,
        augmentation: Augmentation,
        variants: int = 8,
        seed: int,
        mean: ArrayLike,
        std: ArrayLike,
    ) -> None:
        if len(faces) == 0:
            raise ValueError("expected at least 1 picture to train on, got none")
        self.pictures_per_epoch = len(faces) if pictures_per_epoch is None else pictures_per_epoch
        options = {"batch_size": batch_size, "pictures_per_epoch": self.pictures_per_epoch, "variants": variants}
        for name, value in options.items():
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if not 0 <= mask_probability <= 1:
            raise ValueError(f"expected mask_probability from 0 to 1, got {mask_probability}")
        if seed < 0:
            raise ValueError(f"expected a seed from 0 on, got {seed}")
        self.faces = faces
        self.batch_size = batch_size
        self.mask_probability = mask_probability
        self.augmentation = augmentation
        self.variants = max(1, min(variants, STORE_BYTES // faces.pictures.nbytes))
        self.seed = seed
        self._mean, self._std = _checked_constants(mean, std, faces.pictures.shape[3])
        self._masked = np.empty((len(faces), self.variants, *faces.pictures.shape[1:]), dtype=np.uint8)
        self._drawn = np.zeros((len(faces), self.variants), dtype=bool)

    def __len__(self) -> int:
        """The number of batches in an epoch.

        As few as `batch_size` allows; but batch norm may refuse a batch of one picture, so where a batch of two
        leaves one over, a batch of three is made.
        """
        wanted = -(-self.pictures_per_epoch // self.batch_size)  # rounded up
        return wanted if self.batch_size == 1 else min(wanted, max(1, self.pictures_per_epoch // 2))

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, always the same for the same number, from 0 on.

        Sizes differ by at most one, so that no batch is much smaller than the others.

        Yields:
            x float32 (B, H, W, C), normalised, and labels int64 (B,).

        """
        for position, indices in enumerate(np.array_split(self._order(number), len(self))):
            rng = np.random.default_rng([_CHANGES, self.seed, number, position])
            pictures = self._with_masks(indices, rng)
            changed = augment(pictures, rng, **asdict(self.augmentation))
            yield to_network_input(changed, self._mean, self._std), self.faces.labels[indices]

    def _order(self, number: int) -> NDArray[np.intp]:
        """Which pictures come, one after the other: (pictures_per_epoch,)."""
        rng = np.random.default_rng([_ORDER, self.seed, number])
        passes = -(-self.pictures_per_epoch // len(self.faces))  # rounded up
        order = np.concatenate([rng.permutation(len(self.faces)) for _ in range(passes)])
        return order[: self.pictures_per_epoch]

    def _with_masks(self, indices: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The pictures at `indices`, some of them masked: uint8 (B, H, W, C)."""
        masked = rng.random(len(indices)) < self.mask_probability
        variants = rng.integers(self.variants, size=len(indices))
        pictures = self.faces.pictures[indices]
        for place in np.flatnonzero(masked):
            pictures[place] = self._masked_version(int(indices[place]), int(variants[place]))
        return pictures

    def _masked_version(self, index: int, variant: int) -> NDArray[np.uint8]:
        """One picture with its mask number `variant`: uint8 (H, W, C). It does not matter which is asked for first."""
        if not self._drawn[index, variant]:
            rng = np.random.default_rng([_TRAINING_MASK, self.seed, index, variant])
            self._masked[index, variant] = draw_mask(self.faces.pictures[index], self.faces.points, rng)
            self._drawn[index, variant] = True
        return self._masked[index, variant]


def masked_copies(faces: Faces, seed: int) -> Faces:
    """Every picture once, with a mask on; which mask hangs on the seed and the picture's place in `faces` alone.

    Raises:
        ValueError: the seed is below 0.

    """
    if seed < 0:
        raise ValueError(f"expected a seed from 0 on, got {seed}")
    masked = np.empty_like(faces.pictures)
    for index, picture in enumerate(faces.pictures):
        masked[index] = draw_mask(picture, faces.points, np.random.default_rng([_TEST_MASK, seed, index]))
    return replace(faces, pictures=masked)


def to_network_input(pictures: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike) -> NDArray[np.float32]:
    """Grey levels 0 to 255 as float32 numbers about 0: (pictures / 255 - mean) / std.

    Args:
        pictures: uint8 (N, H, W, C).
        mean: grey level from 0 to 1, one number or one a channel.
        std: its spread, above 0, one number or one a channel.

    Raises:
        ValueError: the pictures are not uint8 (N, H, W, C), or mean and std are neither one number nor C of them.

    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4:
        raise ValueError(f"expected pictures uint8 (N, H, W, C), got {pictures.dtype} {pictures.shape}")
    centre, spread = _checked_constants(mean, std, pictures.shape[3])
    gain = (1 / (255 * spread)).astype(np.float32)  # (C,)
    offset = (-centre / spread).astype(np.float32)  # (C,)
    return pictures * gain + offset  # (N, H, W, C) * (C,) + (C,)


def prefetch(iterable: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, made ahead of time in a background thread.

    The thread starts with the first item asked for, works ahead until `depth` items wait and one more is made, and
    has ended when the generator has: used up, closed, or left by an exception, Ctrl-C too. An exception raised while
    making an item is raised here, in its place in the order.

    Raises:
        ValueError: depth is below 1.

    """
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    return _prefetched(iterable, depth)


class _End:
    """The last thing a producer hands over: why it ended, None if there is nothing more."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _prefetched(iterable: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    ready: SimpleQueue[Item | _End] = SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()
    producer = threading.Thread(target=_produce, args=(iterable, ready, room, stopped), name="prefetch", daemon=True)
    producer.start()
    try:
        while not isinstance(item := ready.get(), _End):
            room.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        room.release()  # wakes the producer if it waits for room
        producer.join()


def _produce(
    iterable: Iterable[Item], ready: SimpleQueue[Item | _End], room: threading.Semaphore, stopped: threading.Event
) -> None:
    try:
        for item in iterable:
            room.acquire()
            if stopped.is_set():
                break
            ready.put(item)
    except BaseException as caught:  # whatever it is, the consumer must hear of it, or it would wait for ever
        ready.put(_End(caught))
    else:
        ready.put(_End(None))


def _checked_constants(
    mean: ArrayLike, std: ArrayLike, channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and std as one number a channel, (C,) each."""
    centre, spread = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    for name, value in (("mean", centre), ("std", spread)):
        if value.shape not in ((), (1,), (channels,)) or not np.isfinite(value).all():
            raise ValueError(f"expected {name} as one number or {channels}, one a channel, got {value.tolist()}")
    if (spread <= 0).any():
        raise ValueError(f"expected std above 0, got {spread.tolist()}")
    return np.broadcast_to(centre, (channels,)), np.broadcast_to(spread, (channels,))
