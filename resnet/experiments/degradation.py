"""Plain nets against residual nets, shallow and deep.

Claim: deeper plain nets have higher training error than shallow ones; residual nets do not (He et al. 2015, section 1
and figures 1 and 6).

Criterion: on CIFAR-10, at the end of training, plain-56's training error is above plain-20's for every seed, and
resnet-56's is not above resnet-20's by more than a tenth of that gap (means over seeds). On ORL, plain-34's training
loss ends above ResNet-34's for every seed.

Activation is ReLU and the CIFAR nets have He et al.'s shortcuts without parameters (option A), as in the paper. On a
CPU it is a part of CIFAR-10 and fewer epochs than the paper's 164: the settings say how many. Training error is that of
the augmented pictures while they are trained on, as in the paper.

Beside it: the size of each layer's response (standard deviation behind each 3×3 convolution's batch norm, before
activation and addition: He et al., figure 7) and of its weights' gradient, before and after training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nn import BatchNorm2d, Conv2d, Module, SoftmaxCrossEntropy
from nn.backend import Array, array_module
from resnet.data.batches import to_network_input
from resnet.evaluation import rank_k_accuracy
from resnet.experiments import figures
from resnet.experiments.harness import Cell, Lab, Result, markdown, percent
from resnet.experiments.trainings import Task, classify, recognise
from resnet.training import Training

CIFAR_NETS = ("plain20", "plain56", "resnet20", "resnet56")
ORL_NETS = ("plain34", "resnet34")
NAMES = {"plain20": "plain-20", "plain56": "plain-56", "resnet20": "ResNet-20", "resnet56": "ResNet-56"}
NAMES |= {"plain34": "plain-34", "resnet34": "ResNet-34"}
COSTS = {"plain20": 1.0, "resnet20": 1.0, "plain56": 2.8, "resnet56": 2.8, "plain34": 2.0, "resnet34": 2.0}
LOOKED_AT = 128  # pictures on which responses and gradients are measured


@dataclass(frozen=True)
class Settings:
    """How thoroughly.

    Attributes:
        minutes: expected on 2 cores.
        cifar_pictures, cifar_test_pictures: how many of CIFAR-10's 50,000 and 10,000.
        cifar_epochs: the paper has 164.
        seeds: how many networks of each kind.
        orl_size: side of the ORL pictures.
        orl_epochs: of the training on ORL.
        orl_seeds: how many pairs.
    """

    minutes: float
    cifar_pictures: int
    cifar_test_pictures: int
    cifar_epochs: int
    seeds: int
    orl_size: int
    orl_epochs: int
    orl_seeds: int


PRESETS = {
    "quick": Settings(8, 1500, 500, 4, 1, 48, 6, 1),
    "full": Settings(70, 5000, 2000, 10, 1, 64, 8, 2),
}


def cifar_task(lab: Lab, settings: Settings, arch: str, seed: int) -> Task:
    """Return the training of one CIFAR net; other experiments use its network, too."""
    return classify(
        lab,
        arch,
        train_pictures=settings.cifar_pictures,
        test_pictures=settings.cifar_test_pictures,
        seed=seed,
        epochs=settings.cifar_epochs,
        activation="relu",
        batch_size=64,
        learning_rate=0.1,
        weight_decay=1e-4,
        label_smoothing=0.0,
    )


def orl_task(lab: Lab, settings: Settings, arch: str, seed: int) -> Task:
    """Return the training of a 34-layer net on ORL."""
    return recognise(
        lab, "orl", size=settings.orl_size, seed=seed, epochs=settings.orl_epochs, arch=arch, activation="relu"
    )


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """A cell a network."""
    cifar = [
        _cell("cifar10", arch, seed, settings, lab, settings.cifar_epochs * settings.cifar_pictures / 1000)
        for seed in range(settings.seeds)
        for arch in CIFAR_NETS
    ]
    orl = [
        _cell("orl", arch, seed, settings, lab, settings.orl_epochs)
        for seed in range(settings.orl_seeds)
        for arch in ORL_NETS
    ]
    return cifar + orl


def _cell(data: str, arch: str, seed: int, settings: Settings, lab: Lab, cost: float) -> Cell:
    sizes = {name: value for name, value in vars(settings).items() if name.startswith(data[:3])}
    facts = {"data": data, "arch": arch, "seed": seed, **sizes}
    make = cifar_task if data == "cifar10" else orl_task
    work = lambda: measure(lab, make(lab, settings, arch, seed))  # noqa: E731
    return Cell(f"{data}/{arch}/seed {seed}", work, facts, cost * COSTS[arch], (data,))


def measure(lab: Lab, task: Task) -> Result:
    """Train one network and measure it.

    Returns:
        by epoch: training loss and error, test error; at the end: error on each test set; before and after training:
        response and gradient of each 3×3 convolution.
    """
    training = task.training
    before = sizes_by_depth(training)
    history = lab.train(training)
    tests = {name: 1 - rank_k_accuracy(training.scores(t.pictures), t.labels) for name, t in task.tests.items()}
    return {
        "train_loss": [metrics.train_loss for metrics in history],
        "train_error": [1 - metrics.train_accuracy for metrics in history],
        "test_error": [1 - metrics.clean_accuracy for metrics in history] if training.tests else [],
        "final_test_error": tests,
        "before": before,
        "after": sizes_by_depth(training),
    }


def sizes_by_depth(training: Training) -> Result:
    """Return the size of the responses and gradients of all 3×3 convolutions, from the input to the output.

    Measured on training pictures by one training forward and backward; the network is as it was before.
    """
    model, faces = training.model, training.train_faces
    xp = array_module(model.fc.weight.data)
    kept = model.state_dict()
    chosen = np.linspace(0, len(faces) - 1, min(LOOKED_AT, len(faces))).astype(int)  # classes evenly
    x = xp.asarray(to_network_input(faces.pictures[chosen], training.mean, training.std))  # (N, H, W, C)
    loss = SoftmaxCrossEntropy()
    model.train()
    model.zero_grad()
    with standard_deviations(model) as responses:
        loss(model(x), faces.labels[chosen])
    model.backward(loss.backward(), needs_dx=False)
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, Conv2d)}
    layers = [name for name, conv in convolutions.items() if conv.weight.data.shape[:2] == (3, 3)]
    gradients = [float(xp.linalg.norm(convolutions[name].weight.grad)) for name in layers]
    model.zero_grad()
    model.load_state_dict(kept)
    return {
        "layers": layers,
        "response": [responses[name.replace("conv", "bn")] for name in layers],
        "gradient": gradients,
    }


@contextmanager
def standard_deviations(model: Module) -> Iterator[dict[str, float]]:
    """Note the standard deviation of what each batch norm puts out within the ``with``, by the batch norm's name."""
    seen: dict[str, float] = {}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm2d)}

    def watch(name: str, layer: Module) -> None:
        forward = layer.forward

        def watched(x: Array) -> Array:
            y = forward(x)
            seen[name] = float(y.std())
            return y

        layer.forward = watched  # type: ignore[method-assign]

    for name, layer in norms.items():
        watch(name, layer)
    try:
        yield seen
    finally:
        for layer in norms.values():
            del layer.forward  # the class's own method shows again


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Compare the last epochs of shallow and deep, plain and residual."""
    finals: Result = {}
    for data, nets in (("cifar10", CIFAR_NETS), ("orl", ORL_NETS)):
        for arch in nets:
            runs = [result for name, result in results.items() if name.startswith(f"{data}/{arch}/")]
            if runs:
                finals.setdefault(data, {})[arch] = {
                    "n": len(runs),
                    "train_loss": [run["train_loss"][-1] for run in runs],
                    "train_error": [run["train_error"][-1] for run in runs],
                    "test_error": {test: [r["final_test_error"][test] for r in runs] for test in _tests(runs)},
                }
    verdicts, sentences = [], []
    if "cifar10" in finals:
        holds, sentence = _judge_cifar(settings, finals["cifar10"])
        verdicts.append(holds)
        sentences.append(sentence)
    if "orl" in finals:
        plain, residual = (finals["orl"][arch]["train_loss"] for arch in ORL_NETS)
        verdicts.append(all(p > r for p, r in zip(plain, residual, strict=True)))
        sentences.append(
            f"ORL, {settings.orl_epochs} epochs: training loss of plain-34 {np.mean(plain):.3f}, "
            f"of ResNet-34 {np.mean(residual):.3f} (means, n = {len(plain)})."
        )
    return {"holds": all(verdicts), "finding": " ".join(sentences), "finals": finals}


def _tests(runs: list[Result]) -> list[str]:
    return list(runs[0]["final_test_error"])


def _judge_cifar(settings: Settings, finals: Result) -> tuple[bool, str]:
    errors = {arch: np.array(finals[arch]["train_error"]) for arch in CIFAR_NETS}
    gaps = errors["plain56"] - errors["plain20"]
    excess = float((errors["resnet56"] - errors["resnet20"]).mean())
    holds = bool((gaps > 0).all()) and excess <= 0.1 * float(gaps.mean())
    words = {arch: f"{100 * error.mean():.1f} %" for arch, error in errors.items()}
    sentence = (
        f"CIFAR-10, {settings.cifar_pictures:,} pictures, {settings.cifar_epochs} epochs: training error of plain-20 "
        f"{words['plain20']}, plain-56 {words['plain56']}; ResNet-20 {words['resnet20']}, ResNet-56 "
        f"{words['resnet56']} (means, n = {len(gaps)}). So depth costs the plain net {100 * gaps.mean():.1f} points, "
        f"the residual one {100 * excess:.1f}."
    )
    return holds, sentence


def table(report: Result) -> str:
    """Return errors and losses at the end, a row a network."""
    rows = []
    for data, nets in report["finals"].items():
        for arch, final in nets.items():
            errors = ", ".join(f"{test} {percent(values)}" for test, values in final["test_error"].items())
            losses = " – ".join(f"{loss:.3f}" for loss in sorted({min(final["train_loss"]), max(final["train_loss"])}))
            name = {"cifar10": "CIFAR-10", "orl": "ORL"}[data]
            rows.append((name, NAMES[arch], str(final["n"]), percent(final["train_error"]), losses, errors))
    return markdown(("data", "network", "n", "training error", "training loss", "test error"), rows)


def draw(report: Result) -> dict[str, Figure]:
    """Draw the error curves, and responses and gradients by depth."""
    results = {name: cell["result"] for name, cell in report["cells"].items()}
    drawn = {}
    if any(name.startswith("cifar10/") for name in results):
        drawn["cifar10"] = _draw_curves(report, results)
        drawn["depth"] = _draw_depth(results)
    if any(name.startswith("orl/") for name in results):
        drawn["orl"] = _draw_orl(results)
    return drawn


def _runs(results: dict[str, Result], data: str, arch: str) -> list[Result]:
    return [result for name, result in results.items() if name.startswith(f"{data}/{arch}/")]


def _band(axes: Axes, curves: list[list[float]], label: str | None, **look: Any) -> None:
    """Draw the mean of curves with a band from the least to the most."""
    values = np.array(curves)  # (runs, epochs)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(axis=0), label=label, **look)
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)


def _draw_curves(report: Result, results: dict[str, Result]) -> Figure:
    figure = figures.new(9, 3.8)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("plain", "resnet"), strict=True):
        for depth, color in ((20, figures.INKS[2]), (56, figures.INKS[1])):
            runs = _runs(results, "cifar10", f"{kind}{depth}")
            name = NAMES[f"{kind}{depth}"]
            wide = {20: 1.2, 56: 2.4}[depth]
            test = [[100 * error for error in run["test_error"]] for run in runs]
            train = [[100 * error for error in run["train_error"]] for run in runs]
            _band(axes, test, f"{name}, test", color=color, linestyle="-", linewidth=wide)
            _band(axes, train, f"{name}, training", color=color, linestyle="--", linewidth=wide)
        axes.set(title=f"{'plain' if kind == 'plain' else 'residual'} nets", xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.tick_params(labelleft=True)
        axes.set_ylabel("error (%)")
    settings = report["settings"]
    figure.suptitle(
        f"CIFAR-10, {settings['cifar_pictures']:,} training and {settings['cifar_test_pictures']:,} test pictures; "
        f"mean and range of n = {settings['seeds']}; deep nets in thick lines",
        fontsize=9,
    )
    return figure


def _draw_depth(results: dict[str, Result]) -> Figure:
    figure = figures.new(11, 6)
    grid = figure.subplots(2, 2, sharex=True)
    for row, quantity in zip(grid, ("response", "gradient"), strict=True):
        for axes, moment in zip(row, ("before", "after"), strict=True):
            for index, arch in enumerate(CIFAR_NETS):
                curves = [run[moment][quantity] for run in _runs(results, "cifar10", arch)]
                depth = np.linspace(0, 1, len(curves[0]))
                look = figures.style(index) | {"markersize": 3}
                axes.plot(depth, np.mean(curves, axis=0), label=f"{NAMES[arch]} (n = {len(curves)})", **look)
            axes.set(title=f"{quantity}s {moment} training", yscale="log" if quantity == "gradient" else "linear")
            axes.grid(alpha=0.3)
            if quantity == "response":
                axes.set_ylim(0, 1.5)
        row[0].set_ylabel("standard deviation of response" if quantity == "response" else "norm of weight gradient")
    for axes in grid[1]:
        axes.set_xlabel("place of the 3×3 convolution, 0 at the input, 1 at the output")
    grid[0, 0].legend(fontsize=8)
    return figure


def _draw_orl(results: dict[str, Result]) -> Figure:
    figure = figures.new(9, 3.6)
    left, right = figure.subplots(1, 2)
    for index, arch in enumerate(ORL_NETS):
        runs = _runs(results, "orl", arch)
        look = {"color": figures.INKS[index], "linestyle": figures.LINES[index]}
        _band(left, [run["train_loss"] for run in runs], f"{NAMES[arch]} (n = {len(runs)})", **look)
        after = np.mean([run["before"]["gradient"] for run in runs], axis=0)
        right.plot(np.linspace(0, 1, len(after)), after, label=NAMES[arch], **figures.style(index))
    left.set(title="ORL: training loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    right.set(title="gradient before training", xlabel="place of the 3×3 convolution", yscale="log")
    right.set_ylabel("norm of weight gradient")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
