"""LeakyReLU against ReLU, after two epochs and after full training.

Claim: LeakyReLU is more accurate than ReLU after two rounds of training.

Criterion: on the test photographs with masks drawn on, after a training of two epochs, the mean difference of rank-1
accuracy, LeakyReLU with slope 0.01 minus ReLU, over pairs of networks with the same split, initial weights and batches,
has a 95 % bootstrap interval above zero, on each data set. The same difference on clean photographs, after full
training, and for other slopes is reported beside it and decides nothing.

Why one could expect it: a unit of ReLU that is negative for every picture gets no gradient and stays as it is; a unit
of LeakyReLU gets some and can come back (Maas, Hannun, Ng 2013). So the share of such dead units and the gradients'
sizes, layer by layer, are measured, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nn import Conv2d, LeakyReLU, ReLU, SoftmaxCrossEntropy
from nn.backend import array_module, to_numpy
from resnet.data.batches import to_network_input
from resnet.evaluation import rank_k_accuracy
from resnet.experiments import figures
from resnet.experiments.harness import Cell, Lab, Result, markdown, percent
from resnet.experiments.trainings import recognise
from resnet.statistics import bootstrap_interval, sign_flip_test
from resnet.training import Training

ROUNDS = ("two epochs", "full")
AFTER = {"two epochs": "after two epochs", "full": "after full training"}
TESTS = ("masked", "clean")
RELU, LEAKY = 0.0, 0.01
NAMES = {"orl": "ORL", "lfw": "LFW-62"}
LOOKED_AT = 256  # pictures on which dead units and gradients are measured


@dataclass(frozen=True)
class Settings:
    """How thoroughly.

    Attributes:
        minutes: expected on 2 cores.
        size: of the pictures, in pixels, by data set.
        epochs: of full training, by data set.
        seeds: of the slopes 0 and 0.01, by data set.
        other_seeds: of the other slopes.
        slopes: all of them.
    """

    minutes: float
    size: dict[str, int]
    epochs: dict[str, int]
    seeds: dict[str, int]
    other_seeds: int
    slopes: tuple[float, ...] = (RELU, LEAKY, 0.1, 0.18, 0.3)


PRESETS = {
    "quick": Settings(8, {"orl": 48}, {"orl": 5}, {"orl": 3}, 1, (RELU, LEAKY, 0.3)),
    "full": Settings(110, {"orl": 64, "lfw": 40}, {"orl": 12, "lfw": 8}, {"orl": 10, "lfw": 5}, 3),
}


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """A cell a training: data set, seed, slope, two epochs or full."""
    return [
        _cell(settings, lab, data, seed, slope, rounds)
        for data in settings.size
        for seed in range(settings.seeds[data])
        for slope in settings.slopes
        if slope in (RELU, LEAKY) or seed < settings.other_seeds
        for rounds in ROUNDS
    ]


def _cell(settings: Settings, lab: Lab, data: str, seed: int, slope: float, rounds: str) -> Cell:
    epochs = 2 if rounds == "two epochs" else settings.epochs[data]
    facts: dict[str, Any] = {"data": data, "size": settings.size[data], "seed": seed, "slope": slope, "epochs": epochs}
    cost = epochs * (8.0 if data == "orl" else 23.0)
    return Cell(f"{data}/{rounds}/slope {slope}/seed {seed}", lambda: measure(lab, **facts), facts, cost, (data,))


def measure(lab: Lab, *, data: str, size: int, seed: int, slope: float, epochs: int) -> Result:
    """Train one network and measure it.

    Returns:
        rank-1 accuracies by test set; the shares of dead units and channels of each activation, the gradient's
        norm of each convolution.
    """
    activation = {"activation": "relu"} if slope == RELU else {"activation": "leaky_relu", "negative_slope": slope}
    training, tests = recognise(lab, data, size=size, seed=seed, epochs=epochs, **activation)
    history = lab.train(training)
    accuracy = {name: rank_k_accuracy(training.scores(test.pictures), test.labels) for name, test in tests.items()}
    return {"accuracy": accuracy, "train_loss": history[-1].train_loss, **look_inside(training)}


def look_inside(training: Training) -> Result:
    """Return the shares of dead units and channels, and each convolution's gradient, on some training pictures.

    A channel is dead if it is negative at every place of every picture, a unit (a channel at one place) if it is so for
    every picture. Gradients are those of a training step, so batch norm uses the batch's own statistics; the network is
    changed by it only in its running statistics.
    """
    model, faces = training.model, training.train_faces
    xp = array_module(model.fc.weight.data)
    chosen = np.linspace(0, len(faces) - 1, min(LOOKED_AT, len(faces))).astype(int)  # people evenly
    x = xp.asarray(to_network_input(faces.pictures[chosen], training.mean, training.std))  # (N, H, W, C)
    activations = {n: m for n, m in model.named_modules() if isinstance(m, ReLU | LeakyReLU)}
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, Conv2d)}
    model.train()
    model.zero_grad()
    loss = SoftmaxCrossEntropy(training.config.label_smoothing)
    loss(model(x), faces.labels[chosen])
    alive = {name: np.any(positive(layer), axis=0) for name, layer in activations.items()}  # (H, W, C) each
    model.backward(loss.backward(), needs_dx=False)
    return {
        "dead_units": {name: 1 - float(units.mean()) for name, units in alive.items()},
        "dead_channels": {name: 1 - float(np.any(units, axis=(0, 1)).mean()) for name, units in alive.items()},
        "gradient_norm": {name: float(xp.linalg.norm(conv.weight.grad)) for name, conv in convolutions.items()},
    }


def positive(layer: ReLU | LeakyReLU) -> NDArray[Any]:
    """Return where the input of the layer's last forward was positive, (N, H, W, C)."""
    pieces = layer.pieces()
    if pieces is None:
        raise ValueError("expected a layer between its forward and its backward")
    return to_numpy(pieces)


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Put the cells side by side: pairs of each slope with ReLU, by data set, rounds and test set."""
    comparisons = []
    for data in settings.size:
        for rounds in ROUNDS:
            for slope in settings.slopes:
                runs = _runs(results, data, rounds, slope)
                if not runs:
                    continue
                row: Result = {"data": data, "rounds": rounds, "slope": slope, "n": len(runs)}
                for kind in ("dead_units", "dead_channels"):
                    row[kind] = [float(np.mean(list(run[kind].values()))) for run in runs.values()]  # mean over layers
                for test in TESTS:
                    row[test] = [runs[seed]["accuracy"][test] for seed in runs]
                    if slope != RELU:
                        relu = _runs(results, data, rounds, RELU)
                        pairs = [runs[seed]["accuracy"][test] - relu[seed]["accuracy"][test] for seed in runs]
                        row[f"{test}_difference"] = _difference(pairs)
                comparisons.append(row)
    decisive = [row for row in comparisons if row["slope"] == LEAKY and row["rounds"] == "two epochs"]
    return {
        "holds": all(row["masked_difference"]["interval"][0] > 0 for row in decisive),
        "finding": " ".join(
            [_sentence(row) for row in comparisons if row["slope"] == LEAKY]
            + [_slopes(data, comparisons) for data in dict.fromkeys(row["data"] for row in comparisons)]
        ),
        "comparisons": comparisons,
        "gradient_norms": _gradient_norms(settings, results),
    }


def _runs(results: dict[str, Result], data: str, rounds: str, slope: float) -> dict[int, Result]:
    """Return the results of one slope by seed."""
    prefix = f"{data}/{rounds}/slope {slope}/seed "
    return {int(name.removeprefix(prefix)): result for name, result in results.items() if name.startswith(prefix)}


def _difference(pairs: list[float]) -> Result:
    """Return mean, 95 % interval and p of paired differences; with one pair there is no interval."""
    if len(pairs) < 2:
        return {"pairs": pairs, "mean": pairs[0], "interval": [-1.0, 1.0], "p": 1.0}
    interval = bootstrap_interval(pairs, np.random.default_rng(0))
    return {"pairs": pairs, "mean": float(np.mean(pairs)), "interval": list(interval), "p": sign_flip_test(pairs)}


def _sentence(row: Result) -> str:
    difference = row["masked_difference"]
    low, high = (100 * end for end in difference["interval"])
    verdict = "more accurate than" if low > 0 else "less accurate than" if high < 0 else "not to be told apart from"
    return (
        f"{NAMES[row['data']]}, {AFTER[row['rounds']]}: LeakyReLU (0.01) is {verdict} ReLU on masked faces, by "
        f"{100 * difference['mean']:+.1f} points [{low:+.1f}, {high:+.1f}] over {row['n']} pairs."
    )


def _slopes(data: str, comparisons: list[Result]) -> str:
    """Say how accurate each slope is after two epochs."""
    rows = [row for row in comparisons if row["data"] == data and row["rounds"] == "two epochs"]
    words = ", ".join(f"{row['slope']:g}: {100 * np.mean(row['masked']):.1f} %" for row in rows)
    return f"{NAMES[data]}, masked faces after two epochs by slope: {words}."


def _gradient_norms(settings: Settings, results: dict[str, Result]) -> Result:
    """Return the mean gradient norm of each convolution after two epochs, by data set and slope."""
    norms: Result = {}
    for data in settings.size:
        for slope in settings.slopes:
            runs = [run["gradient_norm"] for run in _runs(results, data, "two epochs", slope).values()]
            if runs:
                layers = {layer: [run[layer] for run in runs] for layer in runs[0]}
                norms.setdefault(data, {})[str(slope)] = {
                    layer: {"mean": float(np.mean(v)), "least": min(v), "most": max(v)} for layer, v in layers.items()
                }
    return norms


def table(report: Result) -> str:
    """Return accuracies, differences to ReLU and dead units, a row a slope and length of training."""
    header = ("data", "training", "slope", "n", "masked", "clean", "masked − ReLU", "clean − ReLU", "dead units")
    rows = []
    for row in report["comparisons"]:
        differences = [_points(row.get(f"{test}_difference")) for test in TESTS]
        accuracies = [percent(row[test]) for test in TESTS]
        slope = "0 (ReLU)" if row["slope"] == RELU else f"{row['slope']:g}"
        first = (NAMES[row["data"]], row["rounds"], slope, str(row["n"]))
        rows.append((*first, *accuracies, *differences, percent(row["dead_units"])))
    return markdown(header, rows)


def _points(difference: Result | None) -> str:
    """Return e.g. "+1.2 [−0.3, +2.5], p = 0.20": points, 95 % interval, two-sided p of a sign-flip test."""
    if difference is None:
        return ""
    mean = f"{100 * difference['mean']:+.1f}"
    if len(difference["pairs"]) < 2:
        return mean
    low, high = (100 * end for end in difference["interval"])
    return f"{mean} [{low:+.1f}, {high:+.1f}], p = {difference['p']:.2g}"


def draw(report: Result) -> dict[str, Figure]:
    """Draw the paired differences and accuracies, and what is inside the networks."""
    rows = report["comparisons"]
    sets = list(dict.fromkeys(row["data"] for row in rows))
    return {"": _draw_accuracy(rows, sets), "why": _draw_why(rows, report["gradient_norms"], sets)}


def _draw_accuracy(rows: list[Result], sets: list[str]) -> Figure:
    figure = figures.new(10, 3.4 * len(sets))
    grid = figure.subplots(len(sets), 2, squeeze=False)
    for data, (left, right) in zip(sets, grid, strict=True):
        own = [row for row in rows if row["data"] == data]
        pairs = [row for row in own if row["slope"] == LEAKY]
        for place, row in enumerate(pairs):
            for shift, test in ((-0.12, "masked"), (0.12, "clean")):
                difference = row[f"{test}_difference"]
                values = 100 * np.array(difference["pairs"])
                left.plot(np.full(len(values), place + shift), values, ".", color="0.65", zorder=1)
                low, high = difference["interval"]
                mean = 100 * difference["mean"]
                whiskers = [[mean - 100 * low], [100 * high - mean]]
                mark = {"marker": "o", "color": "black"} if test == "masked" else {"marker": "s", "mfc": "white"}
                label = f"{test} faces" if place == 0 else None
                shared: dict[str, Any] = {"ls": "", "capsize": 4, "ecolor": "black", "mec": "black", "label": label}
                left.errorbar([place + shift], [mean], whiskers, **shared, **mark)
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xticks(range(len(pairs)), [f"{AFTER[row['rounds']]}\nn = {row['n']} pairs" for row in pairs])
        left.set(title=f"{NAMES[data]}: LeakyReLU (0.01) − ReLU", ylabel="difference of rank-1 accuracy (points)")
        left.set_xlim(-0.5, len(pairs) - 0.5)
        left.legend(title="mean, 95 % interval; dots: pairs", fontsize=8, title_fontsize=8)
        _draw_slopes(right, own, data)
    return figure


def _draw_slopes(axes: Any, rows: list[Result], data: str) -> None:
    """Draw the accuracy on masked faces by slope, mean and range."""
    slopes = sorted({row["slope"] for row in rows})
    for index, rounds in enumerate(ROUNDS):
        own = {row["slope"]: row for row in rows if row["rounds"] == rounds}
        values = [100 * np.array(own[slope]["masked"]) for slope in slopes]
        means = [value.mean() for value in values]
        whiskers = [[m - v.min() for m, v in zip(means, values, strict=True)]]
        whiskers += [[v.max() - m for m, v in zip(means, values, strict=True)]]
        axes.errorbar(range(len(slopes)), means, whiskers, capsize=3, label=AFTER[rounds], **figures.style(index))
    counts = {row["slope"]: row["n"] for row in rows}
    axes.set_xticks(range(len(slopes)), [f"{slope:g}\nn = {counts[slope]}" for slope in slopes])
    axes.set(title=f"{NAMES[data]}: by slope", xlabel="slope below zero (0 is ReLU)", ylim=(0, 103))
    axes.set_ylabel("rank-1, masked faces (%)")
    axes.legend(title="mean, least to most", fontsize=8, title_fontsize=8)


def _draw_why(rows: list[Result], norms: Result, sets: list[str]) -> Figure:
    figure = figures.new(10, 3.4 * len(sets))
    grid = figure.subplots(len(sets), 2, squeeze=False, width_ratios=(2, 3))
    for data, (left, right) in zip(sets, grid, strict=True):
        own = [row for row in rows if row["data"] == data]
        slopes = sorted({row["slope"] for row in own})
        shares: dict[str, list[float]] = {}
        errors: dict[str, list[tuple[float, float]]] = {}
        for rounds in ROUNDS:
            values = [100 * np.array(row["dead_units"]) for row in own if row["rounds"] == rounds]
            shares[AFTER[rounds]] = [float(value.mean()) for value in values]
            errors[AFTER[rounds]] = [(value.mean() - value.min(), value.max() - value.mean()) for value in values]
        counts = {row["slope"]: row["n"] for row in own}
        figures.bars(left, [f"{slope:g}\nn = {counts[slope]}" for slope in slopes], shares, errors)
        left.set(title=f"{NAMES[data]}: units never positive", xlabel="slope below zero", ylabel="share of units (%)")
        left.legend(title="mean, least to most", fontsize=8, title_fontsize=8)
        for index, (slope, layers) in enumerate(norms[data].items()):
            if float(slope) in (RELU, LEAKY, max(slopes)):
                means = [layer["mean"] for layer in layers.values()]
                whiskers = [[layer["mean"] - layer["least"] for layer in layers.values()]]
                whiskers += [[layer["most"] - layer["mean"] for layer in layers.values()]]
                label = "ReLU" if float(slope) == RELU else f"slope {slope}"
                right.errorbar(range(len(means)), means, whiskers, capsize=2, label=label, **figures.style(index))
        right.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
        right.set(title=f"{NAMES[data]}: after two epochs", ylabel="norm of the weights' gradient", yscale="log")
        right.legend(title="mean, least to most", fontsize=8, title_fontsize=8)
    return figure
