"""The figures of the chapters on ResNet18 and on training, and the small trainings that chapter and figures share.

The made-up people are learned in half a second: each is a coarse pattern of greys, each picture of one that pattern
with noise. So every curve that is not one of a real training is computed whenever the book is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nn import SGD, SoftmaxCrossEntropy
from nn.parallel import one_blas_thread, threads
from nn.schedule import Schedule, constant, cosine, make_schedule, one_cycle, warm_up
from resnet.blocks import BasicBlock
from resnet.data.augment import Augmentation, augment, inverse_maps, relight, warp
from resnet.experiments.figures import HATCHES, INKS, new, style
from resnet.models import ResNet, build, resnet18, summarize

RESULTS = Path(__file__).parents[2] / "results"
Batch = tuple[NDArray[np.float32], NDArray[np.int64]]

# Small trainings


def made_up_patterns() -> Batch:
    """Return 200 grey pictures (200, 12, 12, 1) of ten made-up people, normalised, and whom each shows."""
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.uniform(60, 195, (10, 4, 4)), np.ones((3, 3)))  # (10, 12, 12)
    pictures = patterns[:, None] + rng.normal(0, 40, (10, 20, 12, 12))
    x = (pictures - pictures.mean()) / pictures.std()
    return x.reshape(200, 12, 12, 1).astype(np.float32), np.repeat(np.arange(10), 20)


def small_network(seed: int = 0) -> ResNet:
    """Return a residual network of eight layers for the made-up people."""
    return build(BasicBlock, (1, 1, 1), (8, 16, 32), 10, 1, stem="small", rng=np.random.default_rng(seed))


def shuffled(x: NDArray[Any], labels: NDArray[Any], steps: int, seed: int = 0) -> Iterator[Batch]:
    """Yield batches of 20 in a new random order every epoch."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(-(-20 * steps // len(x)))])
    for chosen in order[: 20 * steps].reshape(steps, 20):
        yield x[chosen], labels[chosen]


def sorted_by_person(x: NDArray[Any], labels: NDArray[Any], steps: int) -> Iterator[Batch]:
    """Yield batches of 20 in the order of the folders: one person a batch."""
    for chosen in np.resize(np.arange(len(x)), (steps, 20)):
        yield x[chosen], labels[chosen]


def learn(model: ResNet, batches: Iterator[Batch], schedule: Schedule) -> list[float]:
    """Train on each batch once and return the loss of each."""
    loss = SoftmaxCrossEntropy()
    optimizer = SGD(model.named_parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4, decay_all=False)
    losses = []
    model.train()
    with threads(1), one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        for step, (x, labels) in enumerate(batches):
            model.zero_grad()
            losses.append(float(loss(model(x), labels)))
            model.backward(loss.backward(), needs_dx=False)
            optimizer.step(schedule(step))
    return losses


def right(model: ResNet, x: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the share of right answers, in the state that the model is in."""
    return float((model(x).argmax(axis=1) == labels).mean())


# ResNet18

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def stage_of(name: str) -> str:
    """Return the stage that a layer of ResNet18 belongs to, by its dotted name."""
    first = name.split(".")[0]
    if first.startswith("layer"):
        return first
    return "stem" if first in ("conv1", "bn1", "relu", "maxpool") else "head"


@cache
def records(batch: int) -> list[Any]:
    """Return a record of each layer of ResNet18 for so many pictures of 224 × 224."""
    return summarize(resnet18(1000, rng=np.random.default_rng(0)), 224, batch)


def stages() -> Figure:
    """Draw what each stage hands on, holds and costs."""
    out = {stage_of(record.name): int(np.prod(record.shape)) for record in records(1)}
    parameters, products = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    for record in records(1):
        parameters[stage_of(record.name)] += record.parameters
        products[stage_of(record.name)] += record.multiply_adds
    figure = new(6.4, 2.8)
    panels = figure.subplots(1, 3, sharey=True)
    told = (
        ("numbers handed on,\nthousands", out, 1e3),
        ("parameters,\nmillions", parameters, 1e6),
        ("multiply-adds,\nmillions", products, 1e6),
    )
    for axes, (title, numbers, unit), ink in zip(panels, told, (INKS[1], INKS[2], INKS[4]), strict=True):
        values = [numbers[stage] / unit for stage in STAGES]
        axes.barh(STAGES, values, color=ink)
        for place, value in enumerate(values):
            axes.text(
                value + max(values) * 0.02, place, f"{value:,.2f}" if value < 10 else f"{value:,.0f}", va="center"
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlim(0, max(values) * 1.3)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure


KINDS = {
    "BatchNorm2d": "batch norm: a convolution's output",
    "LeakyReLU": "activation: its output, the next convolution's input",
    "Conv2d": "convolution: an input that nobody else keeps",
    "MaxPool2d": "max pooling: a byte a window",
}


def kept() -> Figure:
    """Draw what is kept for backward, by stage and by layer, for a batch of 32."""
    megabytes = {kind: dict.fromkeys(STAGES[:-1], 0.0) for kind in KINDS}
    for one, two in zip(records(1), records(2), strict=True):
        if one.kind in KINDS:  # the first picture's with what does not grow with the batch, and 31 more
            bytes_kept = one.bytes_kept + 31 * (two.bytes_kept - one.bytes_kept)
            megabytes[one.kind][stage_of(one.name)] += bytes_kept / 1e6
    figure = new(6.4, 3.6)
    axes = figure.add_subplot()
    below = np.zeros(len(STAGES) - 1)
    for number, (kind, words) in enumerate(KINDS.items()):
        heights = np.array(list(megabytes[kind].values()))
        look = {"color": INKS[number + 1], "hatch": HATCHES[number], "edgecolor": "white", "linewidth": 0.5}
        axes.bar(STAGES[:-1], heights, 0.65, bottom=below, label=words, **look)
        below += heights
    for place, height in enumerate(below):
        axes.text(place, height + 4, f"{height:.0f}", ha="center")
    axes.set_ylabel("kept for backward, MB")
    axes.set_ylim(0, below.max() * 1.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


# Descent


def quadratic() -> Figure:
    """Draw gradient descent on w²/2 with three learning rates."""
    figure = new(6.4, 2.8)
    panels = figure.subplots(1, 3, sharey=True)
    line = np.linspace(-6.3, 6.3, 200)
    for axes, (rate, words) in zip(panels, ((0.2, "creeps"), (1.7, "overshoots"), (2.1, "explodes")), strict=True):
        path = 4 * (1 - rate) ** np.arange(6)
        axes.plot(line, line**2 / 2, color=INKS[3], linewidth=1)
        axes.plot(path, path**2 / 2, **style(1))
        axes.plot(path[:1], path[:1] ** 2 / 2, marker="o", color=INKS[0], markersize=8)
        axes.set_title(f"learning rate {rate}:\n{words}", fontsize=10)
        axes.set_xlabel("w")
        axes.set_ylim(-1, 21)
    panels[0].set_ylabel("loss w²/2")
    return figure


CURVATURE = np.array([1.0, 25.0])


def descend(steps: int, rate: float, momentum: float = 0.0, nesterov: bool = False) -> NDArray[np.float64]:
    """Return the way (steps + 1, 2) down the ravine (x² + 25 y²) / 2 from (10, 1)."""
    w, v = np.array([10.0, 1.0]), np.zeros(2)
    path = [w]
    for _ in range(steps):
        gradient = CURVATURE * w
        v = momentum * v + gradient
        w = w - rate * (gradient + momentum * v if nesterov else v)
        path.append(w)
    return np.array(path)


WAYS: dict[str, dict[str, Any]] = {
    "gradient descent": {"rate": 0.07},
    "momentum 0.8": {"rate": 0.02, "momentum": 0.8},
    "Nesterov 0.8": {"rate": 0.02, "momentum": 0.8, "nesterov": True},
}


def ravine() -> Figure:
    """Draw three ways down a ravine, and how the loss falls along each."""
    figure = new(6.4, 3.2)
    left, below = figure.subplots(1, 2, width_ratios=(3, 2))
    x, y = np.meshgrid(np.linspace(-4, 11, 200), np.linspace(-1.3, 1.3, 100))
    levels = [0.3, 1, 3, 8, 18, 34, 56]
    left.contour(x, y, (x**2 + 25 * y**2) / 2, levels=levels, colors=INKS[3], linewidths=0.5)
    for number, (name, settings) in enumerate(WAYS.items()):
        path = descend(60, **settings)
        left.plot(*path[:31].T, **style(number) | {"markersize": 3, "linewidth": 1}, label=name)
        below.semilogy((path**2 @ CURVATURE) / 2, **style(number) | {"marker": ""}, label=name)
    left.plot(0, 0, marker="+", color="black", markersize=10)
    left.set_title("30 steps; 25 times as steep across as along", fontsize=10)
    left.set_xlabel("along")
    left.set_ylabel("across")
    below.set_title("loss", fontsize=10)
    below.set_xlabel("step")
    below.set_ylim(1e-7, 1e2)
    figure.legend(*below.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return figure


# Schedules

STEPS = 500  # of python train.py: 20 epochs of 25


def schedules() -> Figure:
    """Draw the four schedules of train.py with their usual settings, and a warm-up."""
    named: dict[str, Schedule] = {name: make_schedule(name, 0.1, STEPS) for name in ("constant", "step", "cosine")}
    named["one-cycle"] = make_schedule("one-cycle", 0.1, STEPS)
    named["cosine, 50 steps of warm-up"] = make_schedule("cosine", 0.1, STEPS, 50)
    figure = new(6.4, 3.4)
    axes = figure.add_subplot()
    for number, (name, schedule) in enumerate(named.items()):
        look = style(number) | {"markevery": (number * 9, 50), "linewidth": 1.4}
        axes.plot([schedule(step) for step in range(STEPS)], **look, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=3)
    return figure


def noise() -> Figure:
    """Draw stochastic gradient descent on w²/2: how far from the minimum the noise holds it."""
    named = {"constant 0.5": constant(0.5), "constant 0.02": constant(0.02), "cosine from 0.5": cosine(0.5, 200)}
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200, 400))  # of 400 descents
    figure = new(6.4, 3.2)
    axes = figure.add_subplot()
    for number, (name, schedule) in enumerate(named.items()):
        w, distances = np.full(400, 10.0), []
        for step in range(200):
            distances.append(np.sqrt((w**2).mean()))
            w = w - schedule(step) * (w + draws[step])
        axes.semilogy(distances, **style(number) | {"markevery": (number * 8, 25)}, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("typical distance\nfrom the minimum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


COMPARED: dict[str, Callable[[float], Schedule]] = {
    "constant": constant,
    "constant after warm-up": lambda rate: warm_up(constant(rate), 15),
    "cosine": lambda rate: cosine(rate, 50),
    "one-cycle": lambda rate: one_cycle(rate, 50),
}


def cooling() -> Figure:
    """Draw how many made-up people are told apart after trainings by four schedules, all too fast at their peak.

    Each network answers twice: with its running statistics, as in use, and with those of the pictures it is shown.
    """
    x, labels = made_up_patterns()
    figure = new(6.4, 3.0)
    axes = figure.add_subplot()
    for number, make in enumerate(COMPARED.values()):
        for seed in range(4):
            model = small_network(seed)
            learn(model, shuffled(x, labels, 50, seed), make(1.0))
            with_running = 100 * right(model.inference(), x, labels)
            with_own = 100 * right(model.train(), x, labels)
            told = seed == number == 0
            look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 8, "alpha": 0.75}
            words = "running statistics" if told else None
            axes.plot(with_running, number + 0.15, color=INKS[1], label=words, **look)
            words = "statistics of the batch itself" if told else None
            axes.plot(with_own, number - 0.15, color=INKS[2], fillstyle="none", label=words, **look)
    axes.axvline(10, color=INKS[3], linewidth=0.8)
    axes.text(11, 3.4, "chance", color=INKS[3], fontsize=9)
    axes.set_yticks(range(len(COMPARED)), [name.replace(" after", "\nafter") for name in COMPARED])
    axes.set_ylim(len(COMPARED) - 0.5, -0.5)
    axes.set_xlim(0, 103)
    axes.set_xlabel("right answers after 50 steps, per cent; a mark a seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0.1, 0.45))
    return figure


# Loss curves


def rates() -> Figure:
    """Draw losses of the small network: by learning rate, and with batches in two orders."""
    x, labels = made_up_patterns()
    figure = new(6.4, 3.4)
    left, beside = figure.subplots(1, 2, sharey=True)
    for number, rate in enumerate((0.001, 0.01, 0.1, 1.0, 10.0)):
        losses = learn(small_network(), shuffled(x, labels, 60), constant(rate))
        left.plot(losses, **style(number) | {"markevery": (number * 2, 10)}, label=f"{rate:g}")
    for number, (name, batches) in enumerate((("shuffled", shuffled), ("one person a batch", sorted_by_person))):
        losses = learn(small_network(), batches(x, labels, 60), constant(0.05))
        beside.plot(losses, **style(number) | {"markevery": (number * 5, 10)}, label=name)
    for axes, title in ((left, "learning rate"), (beside, "order of the batches, rate 0.05")):
        axes.axhline(np.log(10), color=INKS[3], linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(0, 5)
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    left.text(60, np.log(10) + 0.06, "ln 10", color=INKS[3], ha="right", fontsize=9)
    left.set_ylabel("loss of the batch")
    return figure


def smallest_loss(classes: int, smoothing: float) -> float:
    """Return the cross-entropy that no network can get below: that of the smoothed target with itself."""
    target = np.full(classes, smoothing / classes)
    target[0] += 1 - smoothing
    return float(-(target * np.log(target)).sum())


def real() -> Figure:
    """Draw the three trainings of docs/results/train_seed*.json."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train_seed*.json"))]
    figure = new(6.4, 3.4)
    left, beside = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        losses = [epoch["train_loss"] for epoch in run["epochs"]]
        left.plot(range(1, len(losses) + 1), losses, **style(number) | {"markersize": 4}, label=f"seed {number}")
    settings = runs[0]["settings"]
    floor = smallest_loss(runs[0]["people"], settings["label_smoothing"])
    for height, text, words in (
        (np.log(runs[0]["people"]), 0.06, f"ln {runs[0]['people']}"),
        (floor, -0.48, f"least possible with\nlabel smoothing {settings['label_smoothing']}"),
    ):
        left.axhline(height, color=INKS[3], linewidth=0.8)
        left.text(20.3, height + text, words, color=INKS[3], ha="right", fontsize=9)
    left.set_ylim(0, 4)
    left.set_title("training loss", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    named = {"train_accuracy": "training, while learning", "clean_accuracy": "test, clean"}
    named["masked_accuracy"] = "test, masked"
    for number, (key, words) in enumerate(named.items()):
        shares = [100 * epoch[key] for epoch in runs[0]["epochs"]]
        beside.plot(range(1, len(shares) + 1), shares, **style(number) | {"markersize": 4}, label=words)
    beside.set_title("right answers, per cent, seed 0", fontsize=10)
    beside.set_ylim(0, 103)
    beside.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, beside):
        axes.set_xlabel("epoch")
        axes.set_xticks(range(0, 21, 5))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# Augmentation


def letter() -> NDArray[np.uint8]:
    """Return a picture (1, 64, 64, 1) to be changed: an F on a checked ground, brighter towards the lower right."""
    row, column = np.mgrid[:64, :64]
    picture = 60.0 + (row + column) / 2 + 18 * ((row // 8 + column // 8) % 2)
    for top, bottom, start, end in ((12, 52, 18, 26), (12, 20, 18, 46), (28, 36, 18, 40)):
        picture[top:bottom, start:end] = 225
    return picture.astype(np.uint8)[None, :, :, None]


def one_change(**changes: float) -> NDArray[np.uint8]:
    """Return the letter changed in one way by as much as the usual strengths allow."""
    shift, light = changes.get("shift", 0.0), changes.get("light", 0.0)
    maps = inverse_maps(
        (64, 64),
        shifts=[[64 * shift, 64 * shift]],
        scales=[changes.get("scale", 1.0)],
        turns=[changes.get("turn", 0.0)],
        mirrored=[changes.get("flip", 0.0) > 0],
    )
    return relight(warp(letter(), maps), np.array([1 + light]), np.array([light]))


def augmented() -> Figure:
    """Draw a picture, each change by itself, and six of them as they come."""
    usual = Augmentation()
    first = {
        "as it is": letter(),
        f"moved by {usual.shift:.0%}": one_change(shift=usual.shift),
        f"larger by {usual.scale:.0%}": one_change(scale=1 + usual.scale),
        f"turned by {usual.turn:g}°": one_change(turn=usual.turn),
        "mirrored": one_change(flip=1),
        f"lit by {usual.brightness:.0%}": one_change(light=usual.brightness),
    }
    figure = new(6.4, 2.7)
    places: NDArray[Any] = figure.subplots(2, 6)
    together = augment(np.repeat(letter(), 6, axis=0), np.random.default_rng(1))
    for axes, picture, title in zip(
        places.flat, (*first.values(), *together[:, None]), (*first, *("all random",) * 6), strict=True
    ):
        _picture(axes, picture[0, :, :, 0], title)
    return figure


def _picture(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


FIGURES = {
    "resnet18-stages": stages,
    "resnet18-kept": kept,
    "training-quadratic": quadratic,
    "training-ravine": ravine,
    "training-schedules": schedules,
    "training-noise": noise,
    "training-cooling": cooling,
    "training-rates": rates,
    "training-real": real,
    "training-augment": augmented,
}
