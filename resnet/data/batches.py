"""From faces to what a network eats: masked, changed at random, shuffled, in batches, made ahead of time.

Every random choice hangs only on (seed, epoch, place in the epoch), never on what was drawn before. So training that
is taken up again at epoch 7 sees the batches it would have seen, and making batches in another thread changes none.

Letters: N pictures of the set, B pictures of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, replace
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet.data.augment import Augmentation, augment
from resnet.data.faces import Faces
from resnet.data.folders import shortened
from resnet.data.masks import draw_mask

STORE_BYTES = 256 * 2**20
"""Most bytes a `TrainingBatches` keeps in masked pictures; one mask a picture is kept whatever it takes."""

# What a stream of random numbers is for; each has its own first words, so that no two streams are ever the same.
_ORDER, _CHANGES, _TRAINING_MASK, _TEST_MASK, _IN_PLACE = range(1, 6)

_SECONDS_BETWEEN_LOOKS = 1.0  # at a producer from which nothing has come

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
        bad_pictures: what to do when a picture cannot be masked or changed: "stop" raises an error that names its file,
            "skip" leaves it out of this batch and of all that come.

    Attributes:
        failures: why each picture that is left out is, by its file.

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
        bad_pictures: str = "stop",
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
        if bad_pictures not in ("stop", "skip"):
            raise ValueError(f'expected bad_pictures "stop" or "skip", got {bad_pictures!r}')
        self.faces = faces
        self.batch_size = batch_size
        self.mask_probability = mask_probability
        self.augmentation = augmentation
        self.variants = max(1, min(variants, STORE_BYTES // faces.pictures.nbytes))
        self.seed = seed
        self.bad_pictures = bad_pictures
        self.failures: dict[str, str] = {}
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

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, always the same for the same number, from 0 on.

        Sizes differ by at most one, so that no batch is much smaller than the others, until a picture is left out.

        Args:
            number: of the epoch, from 0 on.
            start: how many of its batches to pass over, for training that stopped in the middle of it.

        Yields:
            x float32 (B, H, W, C), normalised, and labels int64 (B,).

        Raises:
            ValueError: `start` is out of range; a picture cannot be masked or changed and `bad_pictures` is "stop", or
                too few others are left.

        """
        if not 0 <= start <= len(self):
            raise ValueError(f"expected to start at a batch from 0 to {len(self)}, got {start}")
        parts = np.array_split(self._order(number), len(self))
        for position, indices in enumerate(parts[start:], start):
            pictures, labels = self._prepared(indices, [self.seed, number, position])
            yield to_network_input(pictures, self._mean, self._std), labels

    def _order(self, number: int) -> NDArray[np.intp]:
        """Which pictures come, one after the other: (pictures_per_epoch,)."""
        rng = np.random.default_rng([_ORDER, self.seed, number])
        passes = -(-self.pictures_per_epoch // len(self.faces))  # rounded up
        order = np.concatenate([rng.permutation(len(self.faces)) for _ in range(passes)])
        return order[: self.pictures_per_epoch]

    def _prepared(self, indices: NDArray[np.intp], place: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The pictures at `indices`, masked and changed, uint8 (B, H, W, C), and their labels (B,).

        All chance comes from the batch's `place`, its seed, epoch and position. A picture that breaks is found out and
        left out, then the others are prepared afresh.
        """
        while True:
            good = self._without_failures(indices, place) if self.failures else indices
            rng = np.random.default_rng([_CHANGES, *place])
            masked = rng.random(len(good)) < self.mask_probability
            variants = rng.integers(self.variants, size=len(good))
            try:
                return self._changed(good, masked, variants, rng), self.faces.labels[good]
            except MemoryError:  # no picture's fault
                raise
            except Exception as error:  # a picture may break in any way
                self._leave_out_culprits(good, masked, variants, error)

    def _changed(
        self,
        indices: NDArray[np.intp],
        masked: NDArray[np.bool_],
        variants: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """The pictures at `indices`, those `masked` with their mask of that number, all changed: (B, H, W, C)."""
        pictures = self.faces.pictures[indices]
        for place in np.flatnonzero(masked):
            pictures[place] = self._masked_version(int(indices[place]), int(variants[place]))
        return augment(pictures, rng, **asdict(self.augmentation))

    def _leave_out_culprits(
        self, indices: NDArray[np.intp], masked: NDArray[np.bool_], variants: NDArray[np.int64], error: Exception
    ) -> None:
        """Prepare the pictures of a batch that failed one by one, and note those that fail in `failures`."""
        found = {}
        for place, index in enumerate(indices):
            one = slice(place, place + 1)
            try:
                self._changed(indices[one], masked[one], variants[one], np.random.default_rng(self.seed))
            except Exception as its_own:
                found[self.faces.files[index]] = f"{type(its_own).__name__}: {its_own}"
        if not found:
            files = ", ".join(shortened([self.faces.files[index] for index in indices]))
            raise RuntimeError(f"a batch cannot be prepared, though each of its pictures can: {files}") from error
        if self.bad_pictures == "stop":
            raise ValueError(
                f"{len(found)} pictures cannot be masked or changed; repair or delete them, or leave them out with "
                f'--bad-pictures skip (bad_pictures="skip"):\n  '
                + "\n  ".join(shortened([f"{file}: {reason}" for file, reason in found.items()]))
            ) from error
        self.failures.update(found)

    def _without_failures(self, indices: NDArray[np.intp], place: list[int]) -> NDArray[np.intp]:
        """The `indices` but for pictures left out; where fewer than two remain, others of the set come in by chance."""
        usable = np.array([file not in self.failures for file in self.faces.files])  # (N,)
        good = indices[usable[indices]]
        missing = min(2, len(indices)) - len(good)
        if missing <= 0:
            return good
        others = np.setdiff1d(np.flatnonzero(usable), good)
        if len(others) < missing:
            raise ValueError(
                f"too few pictures are left to train on, {len(self.failures)} cannot be masked or changed:\n  "
                + "\n  ".join(shortened([f"{file}: {reason}" for file, reason in self.failures.items()]))
            )
        chosen = np.random.default_rng([_IN_PLACE, *place]).choice(others, missing, replace=False)
        return np.concatenate([good, chosen])

    def _masked_version(self, index: int, variant: int) -> NDArray[np.uint8]:
        """One picture with its mask number `variant`: uint8 (H, W, C). It does not matter which is asked for first."""
        if not self._drawn[index, variant]:
            rng = np.random.default_rng([_TRAINING_MASK, self.seed, index, variant])
            self._masked[index, variant] = draw_mask(self.faces.pictures[index], self.faces.points_of(index), rng)
            self._drawn[index, variant] = True
        return self._masked[index, variant]


def masked_copies(faces: Faces, seed: int) -> Faces:
    """Every picture once, with a mask on; which mask hangs on the seed and the picture's place in `faces` alone.

    Raises:
        ValueError: the seed is below 0, or no mask can be drawn on a picture; the message names its file.

    """
    if seed < 0:
        raise ValueError(f"expected a seed from 0 on, got {seed}")
    masked = np.empty_like(faces.pictures)
    for index, picture in enumerate(faces.pictures):
        rng = np.random.default_rng([_TEST_MASK, seed, index])
        try:
            masked[index] = draw_mask(picture, faces.points_of(index), rng)
        except ValueError as error:
            raise ValueError(f"cannot draw a mask on {faces.files[index]}: {error}") from error
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
        RuntimeError: the thread has died without a word, as nothing else would ever tell.

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
        while not isinstance(item := _next(ready, producer), _End):
            room.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        room.release()  # wakes the producer if it waits for room
        producer.join()


def _next(ready: SimpleQueue[Item | _End], producer: threading.Thread) -> Item | _End:
    """Wait for what the producer hands over next, as long as it lives."""
    while True:
        alive = producer.is_alive()  # asked first: what a dead one has handed over is there already
        try:
            return ready.get(timeout=_SECONDS_BETWEEN_LOOKS if alive else 0)
        except Empty:
            if not alive:
                raise RuntimeError(
                    "the thread that prepares pictures ahead of time has died without saying why; perhaps there "
                    "is too little memory"
                ) from None


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
