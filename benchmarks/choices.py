"""What each choice of the fast CPU path is worth: ``python -m benchmarks.choices``.

    slices       time and working memory of convolution and batch norm against the size of a slice
    threads      one thread beside all cores, layer by layer and for a whole training step
    algorithms   im2col beside Winograd's algorithm for 3×3 convolutions with stride 1
    memory       copies of arrays from 16 KiB to 256 MiB, layers beside a copy, convolutions beside a matrix product
    scatter      adding up patches by ``np.add.at`` and tap by tap; the input gradient by that and as a convolution

Contestants take turns within one process, a process for each section, so that ratios are taken within a round. Each row
of the result file has every round's seconds; "time" is how many times as long as ``against`` it took, "speed" how many
times as fast it was: median, least and most of the rounds' ratios. A turn during which other processes computed is done
again, as long as ``--patience`` lasts; its own seconds have no say in that.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from benchmarks import ours
from benchmarks.measure import (
    PRODUCT_SIZE,
    ROOT,
    BenchmarkError,
    Measured,
    add_options,
    circumstances,
    exit_status,
    speed_ratio,
    spread,
    table,
    whole,
    worker_environment,
    write_report,
)
from benchmarks.worker import Phases, repetition
from nn import parallel
from nn.conv import as_rows, choose_algorithm, col2im, conv2d_forward, im2col, patch_bytes, turned
from nn.parallel import cores, cores_for, elementwise, in_batch_slices, keep_freed_memory, one_blas_thread, threads
from nn.winograd import tile_bytes

SECONDS = 0.1  # a turn lasts at least that long
PAUSE = 0.03  # seconds between turns: BLAS's own threads spin for a while after a product, then fall asleep
DISTURBANCE = 0.03  # seconds of other processes' computing within a turn, from which on it is done again
COPIED_BYTES = 2**22  # small copies are repeated until so much was copied, or the clock would be most of the time
KERNEL, STRIDE, PADDING = 3, 1, 1  # of all convolutions here: as many channels and places out as in
#: Phases that belong together, and the name of their sum.
PARTS, WHOLE = ("forward", "backward"), "forward + backward"

Shape = tuple[int, int, int]  # (N, side, C) stands for pictures of (N, side, side, C)
Row = dict[str, Any]
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


# Taking turns


@dataclass
class Rounds:
    """How many rounds there are to be, and what came of them.

    Attributes:
        repetitions: rounds.
        patience: seconds that may be spent on doing turns again that other processes disturbed.
        again: turns that were done again.
        disturbed: turns that count although they were disturbed, as patience had come to an end.
    """

    repetitions: int
    patience: float = 0.0
    again: int = 0
    disturbed: int = 0

    def turn(self, phases: Phases) -> dict[str, float]:
        """Return the seconds of each phase in one turn."""
        while True:
            time.sleep(PAUSE)
            start, others = time.perf_counter(), others_seconds()
            seconds = repetition(phases, time.perf_counter, between, SECONDS)
            if others_seconds() - others < DISTURBANCE:
                return seconds
            if self.patience <= 0:
                self.disturbed += 1
                return seconds
            time.sleep(10 * PAUSE)
            self.again += 1
            self.patience -= time.perf_counter() - start


def others_seconds() -> float:
    """Return how long other processes have computed since the machine was started; 0 where that is not known."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, *more = map(int, file.readline().split()[1:9])  # without idle and waiting
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def take_turns(contestants: dict[str, Phases], rounds: Rounds) -> dict[str, dict[str, list[float]]]:
    """Let the contestants take turns, in each round another one first; return seconds by contestant and phase."""
    for phases in contestants.values():
        repetition(phases, time.perf_counter, between, seconds=0)  # warm up
    seconds: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in phases} for name, phases in contestants.items()
    }
    names = list(contestants)
    for number in range(rounds.repetitions):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for phase, spent in rounds.turn(contestants[name]).items():
                seconds[name][phase].append(spent)
    return seconds


def between(start: float, stop: float) -> float:
    """Return the seconds from one mark to another."""
    return stop - start


def compare(
    case: str,
    contestants: dict[str, Phases],
    rounds: Rounds,
    against: str | None = None,
    facts: dict[str, dict[str, Any]] | None = None,
) -> list[Row]:
    """Measure a case; return a row for each contestant and phase.

    Args:
        case: what is computed.
        contestants: who computes it.
        rounds: how many.
        against: with whom the others are compared; None where they do unlike work.
        facts: what else is known of a contestant, by its name.
    """
    seconds = take_turns(contestants, rounds)
    print(f"measured: {case}", file=sys.stderr, flush=True)
    return rows_of(case, seconds, against, facts or {})


def rows_of(
    case: str, seconds: dict[str, dict[str, list[float]]], against: str | None, facts: dict[str, dict[str, Any]]
) -> list[Row]:
    """Return a row for each contestant and phase, and for the sum of forward and backward; arguments as `compare`."""
    seconds = {name: with_sum(phases) for name, phases in seconds.items()}
    return [
        {"case": case, "phase": phase, "contestant": name, "seconds": values}
        | {"ms": spread([1000 * value for value in values])}
        | ({} if against is None else relative(values, seconds[against][phase]) | {"against": against})
        | rates(facts.get(name, {}), statistics.median(values))
        for name, phases in seconds.items()
        for phase, values in phases.items()
    ]


def with_sum(phases: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the phases with forward and backward added up within a round, if they are there."""
    if not set(PARTS) <= set(phases):
        return phases
    return phases | {WHOLE: list(map(operator.add, *(phases[part] for part in PARTS)))}


def relative(these: list[float], others: list[float]) -> dict[str, dict[str, float]]:
    """Return how many times as long, and how many times as fast, these seconds are as the others."""
    return {"time": speed_ratio(others, these), "speed": speed_ratio(these, others)}


def rates(facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the facts and what follows from the seconds for "gflop" and "moved_bytes" among them."""
    found = dict(facts)
    if "gflop" in facts:
        found["gflops"] = facts["gflop"] / seconds
    if "moved_bytes" in facts:
        found["gb_per_second"] = 1e-9 * facts["moved_bytes"] / seconds
    return found


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


# Sections, each in a process of its own

#: Places in the result file, and what of each section's answer stands there.
PLACES = {"turns": "turns", "sections": "rows"}
SECTIONS: dict[str, Callable[[Sizes, Rounds, int], list[Row]]] = {
    "slices": slices,
    "threads": threads_section,
    "algorithms": algorithms,
    "memory": memory,
    "scatter": scatter,
}


def serve() -> None:
    """Read a job from stdin, measure its section, write rows and facts to stdout; what ``measure_section`` starts."""
    job = json.loads(sys.stdin.readline())
    keep_freed_memory()  # as in training
    rounds = Rounds(job["repetitions"], job["patience"])
    rows = SECTIONS[job["section"]](TINY if job["tiny"] else FULL, rounds, job["threads"])
    wanted = ("internal_api", "version", "architecture", "num_threads")
    blas = [{key: lib.get(key) for key in wanted} for lib in threadpool_info() if lib["user_api"] == "blas"]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    turns = {"again": rounds.again, "disturbed": rounds.disturbed}
    print(json.dumps({"rows": rows, "turns": turns, "facts": {"versions": versions, "blas": blas}}))


def measure_section(job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return rows and facts of a section.

    Raises:
        BenchmarkError: its process ended without an answer; it has said why on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.choices import serve; serve()"],
        input=json.dumps(job) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{job['section']}: its process ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# Tables


def show(section: str, rows: list[Row]) -> str:
    """Return a section's tables: one for each case of the slices, else one for cases with the same contestants."""
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    for case, of_case in cases.items():
        names = tuple(dict.fromkeys(row["contestant"] for row in of_case))
        groups.setdefault((case,) if section == "slices" else names, {})[case] = of_case
    make = slices_table if section == "slices" else cases_table
    return "\n\n".join(make(group) for group in groups.values())


def slices_table(cases: dict[str, list[Row]]) -> str:
    """Return a row a size: time against the default size and working memory, forward and backward."""
    ((case, rows),) = cases.items()
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row["phase"] in PARTS:
            cells = lines.setdefault(row["contestant"], [str(row["units_a_slice"])])
            cells += [ratio_cell(row["time"]), f"{row['working_bytes'] / 1e6:.2f}"]
    head = (case, "units a slice", *(cell for part in PARTS for cell in (f"{part}, × default", "MB")))
    return table(head, [(name, *cells) for name, cells in lines.items()])


def cases_table(cases: dict[str, list[Row]]) -> str:
    """Return a row a case and phase, a column a contestant."""
    lines: dict[tuple[str, str], list[str]] = {}
    for case, rows in cases.items():
        for row in rows:
            lines.setdefault((case, row["phase"]), []).append(cell(row))
    names = dict.fromkeys(row["contestant"] for row in next(iter(cases.values())))
    return table(("", "", *names), [(*key, *cells) for key, cells in lines.items()])


def cell(row: Row) -> str:
    """Return milliseconds and what else there is: speed beside the one compared with, rates, a star for the chosen."""
    text = f"{row['ms']['median']:.4g} ms"
    if "speed" in row and row["against"] != row["contestant"]:
        text += f", speed × {ratio_cell(row['speed'])}"
    if "gb_per_second" in row:
        text += f", {row['gb_per_second']:.1f} GB/s"
    if "gflops" in row:
        text += f", {row['gflops']:.0f} GFLOP/s"
    return text + " *" * row.get("chosen", False)


def ratio_cell(ratio: dict[str, float]) -> str:
    """Return e.g. "1.50 (1.40 – 1.60)"."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} – {ratio['max']:.2f})"


# Command


def run(options: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        BenchmarkError: a section cannot run.
        OSError: the file cannot be written.
    """
    environment, blas_settings = worker_environment(options.keep_blas_settings)
    found: dict[str, dict[str, Any]] = {}
    for section in options.sections:
        job = {key: getattr(options, key) for key in ("tiny", "repetitions", "threads", "patience")}
        job["section"] = section
        found[section] = measure_section(job, environment)
        print(f"\n{section}\n\n{show(section, found[section]['rows'])}", flush=True)
        print("turns done again: {again}; counted although disturbed: {disturbed}".format(**found[section]["turns"]))
    seen = [Measured({}, 0, 0, answer["facts"]) for answer in found.values()]
    parts = {key: {section: answer[part] for section, answer in found.items()} for key, part in PLACES.items()}
    write_report(options.json, circumstances(blas_settings, options, seen) | parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choices", description=(__doc__ or "").split(":")[0] + "."
    )
    every = tuple(SECTIONS)
    parser.add_argument("--sections", nargs="+", choices=every, default=every, help="what to measure (everything)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to see whether it runs; no times worth reading"
    )
    parser.add_argument(
        "--patience",
        type=whole(0),
        default=15,
        metavar="SECONDS",
        help="to spend in each section on doing turns again that other processes disturbed (15)",
    )
    add_options(parser)
    return exit_status(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
