"""What the choices of the fast CPU path are compared by: five sections, each a function that returns rows.

    slices       time and working memory of convolution and batch norm against the size of a slice
    threads      one thread beside all cores, layer by layer and for a whole training step
    algorithms   im2col beside Winograd's algorithm for 3×3 convolutions with stride 1
    memory       copies of arrays from 16 KiB to 256 MiB, layers beside a copy, convolutions beside a matrix product
    scatter      adding up patches by ``np.add.at`` and tap by tap; the input gradient by that and as a convolution

``benchmarks.choices`` is the command.
"""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours
from benchmarks.measure import PRODUCT_SIZE
from benchmarks.turns import Rounds, Row, compare, rows_of, take_turns
from benchmarks.worker import Phases
from nn import parallel
from nn.conv import as_rows, choose_algorithm, col2im, conv2d_forward, im2col, patch_bytes, turned
from nn.parallel import cores, cores_for, elementwise, in_batch_slices, one_blas_thread, threads
from nn.winograd import tile_bytes

COPIED_BYTES = 2**22  # small copies are repeated until so much was copied, or the clock would be most of the time
KERNEL, STRIDE, PADDING = 3, 1, 1  # of all convolutions here: as many channels and places out as in

Shape = tuple[int, int, int]  # (N, side, C) stands for pictures of (N, side, side, C)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sizes:
    """What is measured how large.

    Attributes:
        slice_bytes: sizes of a slice; the default size is added.
        sliced: layers and shapes that are cut into slices.
        layer: shape for the threads, and for the layers beside a copy.
        step: batch and side of the pictures of a training step.
        arch: the network that it trains.
        compared: shapes for im2col beside Winograd.
        copied_bytes: sizes of the arrays that are copied.
        product: side of the square matrices that are multiplied.
        scattered: shape whose patches are added up.
        gradients: shapes for the input gradient.
    """

    slice_bytes: tuple[int, ...]
    sliced: tuple[tuple[str, Shape], ...]
    layer: Shape
    step: tuple[int, int]
    arch: str
    compared: tuple[Shape, ...]
    copied_bytes: tuple[int, ...]
    product: int
    scattered: Shape
    gradients: tuple[Shape, ...]


#: ResNet18's four stages for pictures of 224²: each has as many operations as the others.
STAGES = ((56, 64), (28, 128), (14, 256), (7, 512))
FULL = Sizes(
    slice_bytes=tuple(2**power for power in range(15, 28)),
    sliced=(
        ("im2col", (32, 56, 64)),
        ("im2col", (32, 14, 256)),
        ("im2col", (256, 8, 64)),  # patches of one picture take 144 KiB: no slice can be smaller than a picture
        ("winograd", (32, 56, 64)),
        ("BatchNorm2d", (32, 56, 64)),
    ),
    layer=(32, 56, 64),
    step=(32, 112),
    arch="resnet18",
    compared=tuple(
        (batch, side, channels)
        for batch in (32, 4)
        for channels in (16, 32, 64, 128, 256, 512)
        for side in (56, 28, 14, 7)
        if side * channels <= 56 * 64  # no more operations than a stage of ResNet18
    ),
    copied_bytes=tuple(2**power for power in range(14, 29)),
    product=PRODUCT_SIZE,
    scattered=(4, 28, 64),
    gradients=tuple((batch, *stage) for batch in (32, 4) for stage in STAGES),
)
TINY = Sizes(
    slice_bytes=(2**10, 2**12),
    sliced=(("im2col", (2, 6, 4)), ("BatchNorm2d", (2, 6, 4))),
    layer=(2, 8, 4),
    step=(2, 16),
    arch="resnet20",
    compared=((2, 8, 4), (4, 16, 32)),
    copied_bytes=(2**10, 2**12),
    product=16,
    scattered=(2, 6, 3),
    gradients=((2, 6, 4), (1, 2, 8)),
)


# What is computed


def noise(*shape: int) -> Floats:
    """Return random numbers."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def written(shape: Shape) -> str:
    """Return e.g. "32 × 56² × 64"."""
    return "{} × {}² × {}".format(*shape)


def layer(kind: str, shape: Shape, n_threads: int = 0) -> Phases:
    """Return forward and backward of a layer as in training; ``kind`` is its name, or a convolution's algorithm."""
    batch, side, channels = shape
    convolution = kind in ("im2col", "winograd")
    job: dict[str, Any] = {"side": "numpy", "layer": "Conv2d" if convolution else kind}
    job |= {"shape": (batch, side, side, channels)}
    job |= {"kernel": KERNEL, "stride": STRIDE if convolution else 2, "padding": PADDING}
    return ours.layer(job | {"filters": channels, "algorithm": kind, "threads": n_threads})


def forward_only(phases: Phases) -> Phases:
    """Leave backward out."""
    return {"forward": phases["forward"]}


def as_in_training(work: Callable[[], object], n_threads: int) -> Callable[[], object]:
    """Return the work in so many threads, each with a BLAS of one thread."""

    def run() -> object:
        with threads(n_threads), one_blas_thread():
            return work()

    return run


def convolution_gflop(shape: Shape) -> float:
    """Return the 10⁹ operations of a convolution's forward: two for each multiply-add of im2col's product."""
    batch, side, channels = shape
    return 2e-9 * batch * side**2 * KERNEL**2 * channels**2


# Slices


def slices(sizes: Sizes, rounds: Rounds, n_threads: int) -> list[Row]:
    """Compare slices of each size with the default ones.

    A picture is never cut, so below its size ("unit_bytes") nothing changes. Buffers of more than
    ``parallel.SCRATCH_BYTES`` are not kept: there the largest slices also pay for memory fresh from the system.
    """
    rows = []
    for kind, shape in sizes.sliced:
        usual = parallel.ELEMENTWISE_BYTES if kind == "BatchNorm2d" else parallel.CPU_SLICE_BYTES
        phases, alone = layer(kind, shape, n_threads), layer(kind, shape, 1)
        wanted = {named_bytes(size): size for size in sorted({usual, *sizes.slice_bytes})}
        found = compare(
            f"{kind} {written(shape)}",
            {name: {phase: with_slices(size, work) for phase, work in phases.items()} for name, size in wanted.items()},
            rounds,
            named_bytes(usual),
            {name: {"slice_bytes": size, **units(kind, shape, size)} for name, size in wanted.items()},
        )
        memory = {name: working_bytes(alone, size, shape) for name, size in wanted.items()}
        rows += [row | {"working_bytes": memory[row["contestant"]].get(row["phase"])} for row in found]
    return rows


@contextmanager
def slice_size(n_bytes: int) -> Iterator[None]:
    """Within it, slices have that many bytes."""
    before = parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES
    parallel.CPU_SLICE_BYTES = parallel.ELEMENTWISE_BYTES = n_bytes
    try:
        yield
    finally:
        parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES = before


def with_slices(n_bytes: int, work: Callable[[], object]) -> Callable[[], object]:
    """Return the work in slices of that many bytes."""

    def run() -> object:
        with slice_size(n_bytes):
            return work()

    return run


def units(kind: str, shape: Shape, n_bytes: int) -> dict[str, int]:
    """Return how many bytes the smallest slice takes, a picture of a convolution or a row, and how many are in one."""
    batch, side, channels = shape
    y = np.broadcast_to(np.float32(0), (batch, side, side, channels))  # no memory behind it
    one, count = {
        "im2col": (patch_bytes(y, np.broadcast_to(np.float32(0), (KERNEL, KERNEL, channels, channels))), batch),
        "winograd": (tile_bytes(y, channels), batch),
        "BatchNorm2d": (channels * y.itemsize, batch * side**2),
    }[kind]
    return {"unit_bytes": one, "units_a_slice": min(count, max(1, n_bytes // one))}


def working_bytes(phases: Phases, n_bytes: int, shape: Shape) -> dict[str, int]:
    """Return what one thread allocates at most in each phase, without the result, which is as large as the input."""
    batch, side, channels = shape
    result = 4 * batch * side**2 * channels
    return {phase: max(0, traced_peak(with_slices(n_bytes, work)) - result) for phase, work in phases.items()}


def traced_peak(work: Callable[[], object]) -> int:
    """Return the most that the work allocates, in a thread of its own, which has no buffers of earlier work."""
    thread = threading.Thread(target=work)
    tracemalloc.start()
    try:
        thread.start()
        thread.join()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def named_bytes(n_bytes: int) -> str:
    """Return e.g. "32 KiB"."""
    power = max(0, n_bytes.bit_length() - 1) // 10
    return f"{n_bytes / 2 ** (10 * power):g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


# Threads


def thread_counts(n_threads: int) -> dict[str, int]:
    """Return one and all, by name; one alone where there are no more."""
    most = n_threads or cores()
    return {named_threads(count): count for count in sorted({1, most})}


def named_threads(count: int) -> str:
    """Return e.g. "2 threads"."""
    return "1 thread" if count == 1 else f"{count} threads"


def threads_section(sizes: Sizes, rounds: Rounds, n_threads: int) -> list[Row]:
    """Compare all cores with one thread."""
    counts, (batch, side) = thread_counts(n_threads), sizes.step
    job = {"side": "numpy", "arch": sizes.arch, "batch": batch, "size": side}
    makers: dict[str, Callable[[int], Phases]] = {
        f"{kind} {written(sizes.layer)}": lambda count, kind=kind: layer(kind, sizes.layer, count)  # type: ignore[misc]
        for kind in ("im2col", "winograd", "BatchNorm2d", "LeakyReLU", "MaxPool2d")
    }
    makers[f"{sizes.arch}, {batch} × {side}²"] = lambda count: ours.step(job | {"threads": count})
    rows = []
    for case, make in makers.items():
        facts = {name: {"threads": count} for name, count in counts.items()}
        contestants = {name: make(count) for name, count in counts.items()}
        rows += compare(case, contestants, rounds, named_threads(1), facts)
    return rows


# Algorithms


def algorithms(sizes: Sizes, rounds: Rounds, n_threads: int) -> list[Row]:
    """Compare Winograd's algorithm with im2col."""
    rows = []
    for shape in sizes.compared:
        contestants = {name: layer(name, shape, n_threads) for name in ("im2col", "winograd")}
        facts = {name: {"shape": shape, "chosen": chosen_algorithm(shape) == name} for name in contestants}
        rows += compare(written(shape), contestants, rounds, "im2col", facts)
    return rows


def chosen_algorithm(shape: Shape) -> str:
    """Return which algorithm a layer would choose."""
    batch, side, channels = shape
    weight_shape = (KERNEL, KERNEL, channels, channels)
    return choose_algorithm((batch, side, side, channels), weight_shape, (STRIDE, STRIDE), (PADDING, PADDING))


# Memory traffic


def memory(sizes: Sizes, rounds: Rounds, n_threads: int) -> list[Row]:
    """Measure copies, layers beside a copy, and convolutions beside matrix products."""
    rows = copies(sizes.copied_bytes, rounds)
    for name, count in thread_counts(n_threads).items():
        rows += layers_beside_copy(name, sizes.layer, rounds, count)
        rows += convolutions_beside_product(name, sizes, rounds, count)
    return rows


def copies(sizes: tuple[int, ...], rounds: Rounds) -> list[Row]:
    """Measure copies of each size by one thread, and what the shortest possible call of NumPy takes."""
    source, target = np.ones(max(sizes), np.uint8), np.ones(max(sizes), np.uint8)
    wanted = {"1 B": 1} | {named_bytes(size): size for size in sizes}
    contestants = {name: {"copy": copy_of(source[:size], target[:size])} for name, size in wanted.items()}
    seconds = {
        name: {"copy": [spent / repeats(wanted[name]) for spent in phases["copy"]]}
        for name, phases in take_turns(contestants, rounds).items()
    }
    print("measured: copies", file=sys.stderr, flush=True)
    facts = {name: {"array_bytes": size, "moved_bytes": 2 * size} for name, size in wanted.items()}  # read, written
    return [row | {"case": row["contestant"], "contestant": "np.copyto"} for row in rows_of("", seconds, None, facts)]


def copy_of(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Callable[[], object]:
    """Return the work of copying so often that the clock does not matter."""
    times = repeats(source.nbytes)

    def run() -> None:
        for _ in range(times):
            np.copyto(target, source)

    return run


def repeats(n_bytes: int) -> int:
    """Return how often an array is copied in a row."""
    return max(1, COPIED_BYTES // max(n_bytes, 2**10))


def layers_beside_copy(name: str, shape: Shape, rounds: Rounds, count: int) -> list[Row]:
    """Compare the forwards of elementwise layers with a copy of their input by as many threads."""
    batch, side, channels = shape
    x = noise(batch, side, side, channels)
    plain, by_slices = np.empty_like(x), "copy in slices"
    contestants: dict[str, Phases] = {
        by_slices: {"forward": as_in_training(lambda: elementwise(lambda part, out: np.copyto(out, part), x), count)},
        "np.copyto": {"forward": lambda: np.copyto(plain, x)},  # one thread in any case
    }
    contestants |= {kind: forward_only(layer(kind, shape, count)) for kind in ("LeakyReLU", "Add", "BatchNorm2d")}
    facts = {key: {"threads": 1 if key == "np.copyto" else count} for key in contestants}
    return compare(f"{written(shape)}, {name}", contestants, rounds, by_slices, facts)


def convolutions_beside_product(name: str, sizes: Sizes, rounds: Rounds, count: int) -> list[Row]:
    """Measure GFLOP/s of products of matrices that are there, and of convolutions, which have to make them first."""
    batch, side, channels = sizes.layer
    square, patch = sizes.product, KERNEL**2 * channels
    places = batch * side**2
    contestants = {
        f"product {square}²": product(noise(square, square), noise(square, square), count),
        "product of patches": product(noise(places, patch), noise(patch, channels), count),
        **{kind: forward_only(layer(kind, sizes.layer, count)) for kind in ("im2col", "winograd")},
    }
    flop = dict.fromkeys(contestants, convolution_gflop(sizes.layer)) | {f"product {square}²": 2e-9 * square**3}
    facts = {key: {"threads": count, "gflop": value} for key, value in flop.items()}
    return compare(f"convolution {written(sizes.layer)}, {name}", contestants, rounds, None, facts)


def product(a: Floats, b: Floats, count: int) -> Phases:
    """Return the product a @ b (any, K) @ (K, any) by so many threads of BLAS's own."""
    out = np.empty((len(a), b.shape[1]), np.float32)

    def run() -> None:
        with threads(count), cores_for(1):
            np.matmul(a, b, out=out)

    return {"forward": run}


# Scatter


def scatter(sizes: Sizes, rounds: Rounds, n_threads: int) -> list[Row]:
    """Compare ways to add up patches, then ways to an input gradient."""
    rows = compare(
        f"patches of {written(sizes.scattered)}, 1 thread",
        {name: {"add up": work} for name, work in ways_to_add_up(sizes.scattered).items()},
        rounds,
        "tap by tap",
    )
    for shape in sizes.gradients:
        contestants, chosen = ways_to_gradient(shape), chosen_gradient(shape)
        rows += compare(
            f"input gradient of {written(shape)}",
            {name: {"backward": as_in_training(work, n_threads)} for name, work in contestants.items()},
            rounds,
            "scatter",
            {name: {"shape": shape, "chosen": name == chosen} for name in contestants},
        )
    return rows


def ways_to_add_up(shape: Shape) -> dict[str, Callable[[], Floats]]:
    """Return three ways to add patches up to where they were cut, with their indices made beforehand."""
    n, side, c = shape
    framed = (n, side + 2 * PADDING, side + 2 * PADDING, c)
    inner = slice(PADDING, -PADDING)
    dcols = noise(n, side, side, KERNEL, KERNEL, c)
    taps, places = np.arange(KERNEL), np.arange(side)
    rows = places[:, None, None, None] + taps[:, None]  # (OH, 1, 1, 1) + (KH, 1) -> (OH, 1, KH, 1)
    columns = places[:, None, None] + taps  # (OW, 1, 1) + (KW,) -> (OW, 1, KW)
    at_places: Any = (slice(None), rows, columns)  # NumPy takes it, its type hints do not know
    numbers = np.arange(prod(framed)).reshape(framed)  # of each place and channel: (N, H + 2·PH, W + 2·PW, C)
    at = im2col(numbers, (KERNEL, KERNEL), (STRIDE, STRIDE), (0, 0)).reshape(-1).copy()  # -> (N·OH·OW·KH·KW·C,)

    def by_places() -> Floats:
        dx = np.zeros(framed, np.float32)
        np.add.at(dx, at_places, dcols)  # (N, OH, OW, KH, KW, C)
        return dx[:, inner, inner]

    def flat() -> Floats:
        dx = np.zeros(framed, np.float32)
        np.add.at(dx.reshape(-1), at, dcols.reshape(-1))  # both flat: (N·OH·OW·KH·KW·C,)
        return dx[:, inner, inner]

    def tap_by_tap() -> Floats:
        dx: Floats = col2im(dcols, (n, side, side, c), (STRIDE, STRIDE), (PADDING, PADDING))
        return dx

    return {"tap by tap": tap_by_tap, "np.add.at": by_places, "np.add.at, flat": flat}


def ways_to_gradient(shape: Shape) -> dict[str, Callable[[], Floats]]:
    """Return both ways of ``nn.conv.input_gradient``, which would choose one of them."""
    n, side, c = shape
    dy, weight = noise(n, side, side, c), noise(KERNEL, KERNEL, c, c)

    def scattered() -> Floats:
        dx = np.empty(dy.shape, np.float32)

        def of_slice(few: slice) -> None:
            dcols = as_rows(dy[few]) @ as_rows(weight).T  # (n·OH·OW, F) @ (F, KH·KW·C) -> (n·OH·OW, KH·KW·C)
            dcols = dcols.reshape(-1, side, side, KERNEL, KERNEL, c)  # -> (n, OH, OW, KH, KW, C)
            dx[few] = col2im(dcols, dx[few].shape, (STRIDE, STRIDE), (PADDING, PADDING))

        in_batch_slices(of_slice, n, patch_bytes(dy, weight), np)
        return dx

    def convolved() -> Floats:
        dx: Floats = conv2d_forward(dy, turned(weight), None, STRIDE, KERNEL - 1 - PADDING)[0]
        return dx

    return {"scatter": scattered, "turned kernel": convolved}


def chosen_gradient(shape: Shape) -> str:
    """Return which way ``nn.conv.input_gradient`` takes."""
    n, side, c = shape
    return "turned kernel" if n * side**2 > c else "scatter"


SECTIONS: dict[str, Callable[[Sizes, Rounds, int], list[Row]]] = {
    "slices": slices,
    "threads": threads_section,
    "algorithms": algorithms,
    "memory": memory,
    "scatter": scatter,
}
