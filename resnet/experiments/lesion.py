"""Layers deleted and reordered in trained networks.

Claim: deleting one layer at test time breaks a plain net, but hardly a residual one (Veit, Wilber and Belongie 2016,
arXiv 1605.06431, section 4.1 and figure 3).

Criterion: on CIFAR-10, in nets of nine blocks (plain-20 and ResNet-20), one block is deleted at a time. The damage is
(error without the block - error before) / (90 % - error before) on test pictures: 0 if nothing is lost, 1 if the net is
at chance, which is 90 % error with ten classes. A network's damage is the median over the seven blocks that keep their
input's shape, all but the first of stages 2 and 3. Means over the seeds: the residual nets' damage is below 1/4, the
plain nets' above 3/4.

A block is deleted by taking out its branch: a residual block is left with its shortcut and its last activation, a plain
one gets the same shortcut in exchange, the identity or, where the shape changes, He et al.'s option A. So both lose the
same. Chance is the measure because the nets are trained on a part of CIFAR-10 for a few epochs: where the error is 50 %
before, it can rise by 40 points only.

Beside it, deciding nothing: several blocks deleted at random and blocks run in another order (Veit, sections 4.2 and
4.3, figure 5), and each of ResNet-18's eight blocks deleted on ORL, on clean and on masked test photographs (chance is
2.5 % right). Orders are drawn so that the correlations with the old order spread evenly; Veit et al. swap pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from resnet.data import Faces
from resnet.evaluation import rank_k_accuracy
from resnet.experiments import degradation, figures
from resnet.experiments.harness import Cell, Lab, Result, markdown, percent
from resnet.experiments.surgery import block_names, blocks, keeps_shape, movable, permuted, subsets, without
from resnet.experiments.trainings import Task, part, recognise
from resnet.models import ResNet
from resnet.statistics import kendall_tau
from resnet.training import Training

KINDS = ("resnet", "plain")
NAMES = {"resnet": "ResNet", "plain": "plain"}
INKS = {"resnet": figures.INKS[2], "plain": figures.INKS[1]}
MARKERS = {"resnet": "o", "plain": "s"}
LINES = {"resnet": "-", "plain": "--"}
JUDGED = 20  # the depth that the criterion is about
CHANCE = 0.9  # error of guessing among ten classes
LITTLE, MUCH = 0.25, 0.75  # damage, from 0 to 1


@dataclass(frozen=True)
class Settings:
    """How thoroughly.

    Attributes:
        preset: of the experiment ``degradation``, whose trainings these are.
        minutes: expected on 2 cores, with trainings.
        seeds: of the CIFAR nets.
        several: for each depth of the CIFAR nets, how many blocks are deleted at random.
        test_pictures: of CIFAR-10.
        draws: sets of blocks for each number of deleted blocks.
        orders: how many are drawn; equal ones count once.
        orl_size: side of the ORL pictures.
        orl_epochs: of the training on ORL.
        orl_seeds: of the ORL nets.
    """

    preset: str
    minutes: float
    seeds: tuple[int, ...]
    several: dict[int, tuple[int, ...]]
    test_pictures: int
    draws: int
    orders: int
    orl_size: int
    orl_epochs: int
    orl_seeds: tuple[int, ...]


NINE = tuple(range(2, 9))
TWENTY_SEVEN = (2, 3, 5, 8, 12, 16, 20)
SEEDS = {name: tuple(range(shared.seeds)) for name, shared in degradation.PRESETS.items()}
PRESETS = {
    "quick": Settings("quick", 5, SEEDS["quick"], {20: NINE}, 300, 20, 20, 48, 4, (0,)),
    "full": Settings("full", 60, SEEDS["full"], {20: NINE, 56: TWENTY_SEVEN}, 500, 20, 40, 64, 12, (0, 1, 2)),
}


def cells(settings: Settings, lab: Lab) -> list[Cell]:
    """A cell a network and kind of surgery: one block deleted, so many blocks deleted, another order; ORL."""
    made = [
        _cell(settings, lab, f"{kind}{depth}", seed, what)
        for seed in settings.seeds
        for depth, sizes in settings.several.items()
        for kind in KINDS
        for what in _parts(sizes)
    ]
    return made + [_orl_cell(settings, lab, seed) for seed in settings.orl_seeds]


def _parts(sizes: Iterable[int]) -> list[str | int]:
    return ["one", *sizes, "order"]


def _cell(settings: Settings, lab: Lab, arch: str, seed: int, what: str | int) -> Cell:
    shared = degradation.PRESETS[settings.preset]
    facts = {"arch": arch, "seed": seed, "what": what}
    facts |= {name: value for name, value in vars(shared).items() if name.startswith("cifar")}
    facts |= {name: getattr(settings, name) for name in ("test_pictures", "draws", "orders")}

    def work() -> Result:
        task = degradation.cifar_task(lab, shared, arch, seed)
        lab.train(task.training)
        test = part(task.tests["clean"], settings.test_pictures)
        if what == "one":
            return delete_each(task.training, {"error": test})
        if isinstance(what, int):
            return delete_several(task.training, test, what, settings.draws, np.random.default_rng([seed, what]))
        return reorder(task.training, test, settings.orders, np.random.default_rng([seed, 0]))

    cost = (10.0 if what == "one" else 20.0) * (3.0 if "56" in arch else 1.0)
    return Cell(f"{arch}/seed {seed}/{what}", work, facts, cost, ("cifar10",))


def _orl_cell(settings: Settings, lab: Lab, seed: int) -> Cell:
    facts = {"seed": seed, "size": settings.orl_size, "epochs": settings.orl_epochs}

    def work() -> Result:
        task = orl_task(lab, settings, seed)
        lab.train(task.training)
        return delete_each(task.training, task.tests)

    return Cell(f"orl/seed {seed}", work, facts, 20.0, ("orl",))


def orl_task(lab: Lab, settings: Settings, seed: int) -> Task:
    """Return the training of ResNet-18 with LeakyReLU on ORL."""
    return recognise(
        lab,
        "orl",
        size=settings.orl_size,
        seed=seed,
        epochs=settings.orl_epochs,
        arch="resnet18",
        activation="leaky_relu",
        negative_slope=0.01,
        mask_probability=0.5,
    )


# The three kinds of surgery


def delete_each(training: Training, tests: dict[str, Faces]) -> Result:
    """Delete each block in turn.

    Returns:
        the blocks' names; whether each keeps its input's shape; error on each test set before, and without each block.
    """
    model = training.model
    errors = [_errors(training, without(model, [number]), tests) for number in range(len(blocks(model)))]
    return {
        "blocks": block_names(model),
        "keeps_shape": [keeps_shape(block) for block in blocks(model)],
        "before": _errors(training, model, tests),
        "without": errors,
    }


def delete_several(training: Training, test: Faces, size: int, most: int, rng: np.random.Generator) -> Result:
    """Delete random sets of ``size`` blocks, ``most`` of them; all sets where there are no more.

    Returns:
        the sets, and the error without each.
    """
    sets = subsets(len(blocks(training.model)), size, most, rng)
    return {"sets": sets, "errors": [error_rate(training, without(training.model, some), test) for some in sets]}


def reorder(training: Training, test: Faces, most: int, rng: np.random.Generator) -> Result:
    """Run the blocks in other orders.

    Returns:
        up to ``most`` orders, Kendall's τ of each with the old order, and the error in it. The first is the old one.
    """
    groups, total = movable(training.model), len(blocks(training.model))
    orders = [draw_order(groups, total, share, rng) for share in np.linspace(0, 1, most)]
    orders = list(dict.fromkeys(orders))  # equal ones count once
    return {
        "orders": orders,
        "taus": [kendall_tau(order) for order in orders],
        "errors": [error_rate(training, permuted(training.model, order), test) for order in orders],
    }


def draw_order(groups: Iterable[Sequence[int]], total: int, share: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Return a random order of 0 … total − 1 in which numbers change places within their groups only.

    Each number of a group is put before so many of the lesser ones as a binomial draw says (its Lehmer code), so the
    expected share of a group's pairs that descend is ``share``.

    Args:
        groups: numbers that may change places, ascending.
        total: how many numbers.
        share: from 0, the ascending order, to 1, every group descending.
        rng: source of the draws.
    """
    order = list(range(total))
    for group in groups:
        mixed: list[int] = []
        for number in group:
            mixed.insert(len(mixed) - int(rng.binomial(len(mixed), share)), number)
        for place, number in zip(group, mixed, strict=True):
            order[place] = number
    return tuple(order)


def _errors(training: Training, model: ResNet, tests: dict[str, Faces]) -> dict[str, float]:
    return {name: error_rate(training, model, test) for name, test in tests.items()}


def error_rate(training: Training, model: ResNet, test: Faces) -> float:
    """Return the share of pictures that ``model`` gets wrong; one whose scores overflow is wrong, too."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores = replace(training, model=model).scores(test.pictures)  # (N, K)
    scores[~np.isfinite(scores).all(axis=1)] = 0  # a tie, which counts as wrong
    return 1 - rank_k_accuracy(scores, test.labels)


# What came out


def summarize(settings: Settings, results: dict[str, Result]) -> Result:
    """Judge the nets of nine blocks, and report the others beside them."""
    nets = {
        f"{kind}{depth}": _summary(settings, results, f"{kind}{depth}", sizes)
        for depth, sizes in settings.several.items()
        for kind in KINDS
        if f"{kind}{depth}/seed {settings.seeds[0]}/one" in results
    }
    faces = [result for name, result in results.items() if name.startswith("orl/")]
    sentences = [_verdict(settings, nets) if nets else "The criterion is about CIFAR-10, which is missing."]
    others = [
        f"{_name(arch)} {_percent(net['damage'])}" for arch, net in nets.items() if not arch.endswith(str(JUDGED))
    ]
    sentences += [f"Of the way to chance, the same way: {', '.join(others)}."] if others else []
    sentences += [_orl_sentence(faces)] if faces else []
    return {"holds": bool(nets) and _holds(nets), "finding": " ".join(sentences), "nets": nets}


def _summary(settings: Settings, results: dict[str, Result], arch: str, sizes: Iterable[int]) -> Result:
    """Gather all that is known of one network's copies, seed by seed."""
    of = {what: [results[f"{arch}/seed {seed}/{what}"] for seed in settings.seeds] for what in _parts(sizes)}
    runs = of["one"]
    before = np.array([run["before"]["error"] for run in runs])  # (seeds,)
    errors = np.array([[row["error"] for row in run["without"]] for run in runs])  # (seeds, blocks)
    rise = np.median((errors - before[:, None])[:, runs[0]["keeps_shape"]], axis=1)  # (seeds,)
    room = np.maximum(CHANCE - before, 0.01)  # a net at chance has nothing to lose: no division by zero
    several = {"0": before.tolist(), "1": errors.ravel().tolist()}
    several |= {str(size): [error for run in of[size] for error in run["errors"]] for size in sizes}
    return {
        "n": len(runs),
        "blocks": runs[0]["blocks"],
        "keeps_shape": runs[0]["keeps_shape"],
        "before": before.tolist(),
        "without": errors.tolist(),
        "median_rise": rise.tolist(),
        "damage": (rise / room).tolist(),
        "several": several,
        "orders": [[tau, e] for run in of["order"] for tau, e in zip(run["taus"], run["errors"], strict=True)],
    }


def _damage(nets: dict[str, Result], kind: str) -> float:
    return float(np.mean(nets[f"{kind}{JUDGED}"]["damage"]))


def _holds(nets: dict[str, Result]) -> bool:
    return _damage(nets, "resnet") < LITTLE and _damage(nets, "plain") > MUCH


def _verdict(settings: Settings, nets: dict[str, Result]) -> str:
    parts = []
    for kind in KINDS:
        net = nets[f"{kind}{JUDGED}"]
        parts.append(
            f"{_name(f'{kind}{JUDGED}')} from {_percent(net['before'])} by {100 * np.mean(net['median_rise']):.1f} "
            f"points, {_percent(net['damage'])} of the way to chance"
        )
    little, much = _damage(nets, "resnet") < LITTLE, _damage(nets, "plain") > MUCH
    if little and much:
        plain = "breaks the plain net and hardly the residual one, as Veit et al. found"
    else:
        plain = "does not tell the two apart as clearly as Veit et al. found"
    return (
        f"CIFAR-10, {settings.test_pictures:,} test pictures, one of the "
        f"{sum(nets[f'resnet{JUDGED}']['keeps_shape'])} blocks that keep their input's shape deleted (median of the "
        f"blocks, mean of {_trainings(len(settings.seeds))}): the test error rises for {parts[0]}; for {parts[1]}. So "
        f"the residual net loses {'less' if little else 'no less'} than a quarter of the way and the plain one "
        f"{'more' if much else 'no more'} than three quarters: deleting one layer {plain}."
    )


def _trainings(number: int) -> str:
    return "1 training" if number == 1 else f"{number} trainings"


def _orl_sentence(runs: list[Result]) -> str:
    accuracy = _orl_accuracy(runs)  # by test set (runs, 1 + blocks)
    names, parts = runs[0]["blocks"], []
    for test, values in accuracy.items():
        before, *after = values.mean(axis=0)
        worst = int(np.argmin(after))
        parts.append(
            f"{test} {100 * before:.1f} % right before, {100 * np.median(after):.1f} % (median) without a block and "
            f"{100 * after[worst]:.1f} % without {names[worst]}"
        )
    return f"ORL, ResNet-18, n = {len(runs)}, 40 people: {'; '.join(parts)}."


def _orl_accuracy(runs: list[Result]) -> dict[str, Any]:
    """Return by test set the accuracies (runs, 1 + blocks): before, and without each block."""
    return {
        test: 1 - np.array([[row[test] for row in (run["before"], *run["without"])] for run in runs])
        for test in runs[0]["before"]
    }


def table(report: Result) -> str:
    """Return the errors with deleted and reordered blocks, a row a CIFAR net; then a row a deleted block for ORL."""
    tables = []
    if report["nets"]:
        header = ("CIFAR-10", "n", "test error", "median rise, 1 deleted", "of the way to chance", "error, 3 deleted")
        rows = [_row(arch, net) for arch, net in report["nets"].items()]
        tables.append(markdown((*header, "error, least similar order (Kendall's τ)"), rows))
    if faces := _faces(report):
        accuracy = _orl_accuracy(faces)  # by test set (runs, 1 + blocks)
        names = ["none", *faces[0]["blocks"]]
        shown = [[name, *[percent(values[:, i]) for values in accuracy.values()]] for i, name in enumerate(names)]
        tables.append(markdown(("ORL, ResNet-18: deleted block", *[f"right, {test}" for test in accuracy]), shown))
    return "\n\n".join(tables)


def _row(arch: str, net: Result) -> list[str]:
    taus, errors = np.array(net["orders"]).T  # (orders,) each
    least = taus.min()
    return [
        _name(arch),
        str(net["n"]),
        percent(net["before"]),
        f"{100 * np.mean(net['median_rise']):.1f} points",
        percent(net["damage"]),
        f"{_percent(net['several']['3'])} ({len(net['blocks'])} blocks)",
        f"{_percent(errors[taus == least])} ({least:.2f})",
    ]


def _faces(report: Result) -> list[Result]:
    return [cell["result"] for name, cell in report["cells"].items() if name.startswith("orl/")]


def _name(arch: str) -> str:
    """Return "ResNet-20" for "resnet20"."""
    kind = arch.rstrip("0123456789")
    return f"{NAMES[kind]}-{arch.removeprefix(kind)}"


def _percent(shares: ArrayLike) -> str:
    return f"{100 * np.asarray(shares, float).mean():.1f} %"


# Figures


def draw(report: Result) -> dict[str, Figure]:
    """Draw one deletion (Veit's figure 3), several and other orders (figure 5), and the deletions on ORL."""
    drawn, nets = {}, report["nets"]
    if nets:
        depths = list(report["settings"]["several"])
        drawn["one"] = _draw_one(nets, depths, report["settings"])
        drawn["several"] = _draw_several(nets, depths, report["settings"])
    if faces := _faces(report):
        drawn["orl"] = _draw_orl(faces)
    return drawn


def _chance(axes: Axes) -> None:
    axes.axhline(100 * CHANCE, color="black", linewidth=0.8, linestyle=":")
    axes.text(0.99, 100 * CHANCE + 1, "chance", transform=axes.get_yaxis_transform(), ha="right", fontsize=8, zorder=5)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)


def _draw_one(nets: dict[str, Result], depths: list[str], settings: Result) -> Figure:
    figure = figures.new(8, 3.6 * len(depths))
    for axes, depth in zip(figure.subplots(len(depths), 1, squeeze=False)[:, 0], depths, strict=True):
        for kind in KINDS:
            net = nets[kind + depth]
            errors = 100 * np.array(net["without"])  # (seeds, blocks)
            mean = errors.mean(axis=0)
            reach = (mean - errors.min(axis=0), errors.max(axis=0) - mean)
            look: dict[str, Any] = {"color": INKS[kind], "marker": MARKERS[kind], "linestyle": LINES[kind]}
            look |= {
                "label": f"{_name(kind + depth)}, one block deleted",
                "markersize": 5,
                "linewidth": 0.8,
                "capsize": 2,
            }
            axes.errorbar(range(len(mean)), mean, reach, **look)
            whole = {"color": INKS[kind], "linestyle": LINES[kind], "linewidth": 0.8}
            axes.axhline(100 * np.mean(net["before"]), label=f"{_name(kind + depth)}, whole", **whole)
        names = nets["resnet" + depth]["blocks"]
        ticks = [name.removeprefix("layer") for name in names]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90 if len(ticks) > 12 else 0)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        for place, keeps in enumerate(nets["resnet" + depth]["keeps_shape"]):
            if not keeps:
                axes.axvspan(place - 0.3, place + 0.3, color="0.9", zorder=0)
        axes.set(xlabel="deleted block (stage.block; grey: changes the shape)", ylabel="test error (%)")
        _chance(axes)
        axes.legend(fontsize=8)
    figure.suptitle(_title(settings, "mean and range"), fontsize=9)
    return figure


def _title(settings: Result, what: str) -> str:
    return f"CIFAR-10, {settings['test_pictures']:,} test pictures; {what} of {_trainings(len(settings['seeds']))}"


def _draw_several(nets: dict[str, Result], depths: list[str], settings: Result) -> Figure:
    figure = figures.new(9, 3.7 * len(depths))
    for (left, right), depth in zip(figure.subplots(len(depths), 2, squeeze=False), depths, strict=True):
        for kind in KINDS:
            net, name = nets[kind + depth], _name(kind + depth)
            sizes = [int(size) + {"resnet": -0.06, "plain": 0.06}[kind] for size in net["several"]]  # side by side
            draws = [100 * np.array(errors) for errors in net["several"].values()]
            mean = np.array([errors.mean() for errors in draws])
            reach = [mean - [e.min() for e in draws], [e.max() for e in draws] - mean]
            look: dict[str, Any] = {"color": INKS[kind], "marker": MARKERS[kind]}
            left.errorbar(sizes, mean, reach, label=name, linestyle=LINES[kind], capsize=2, markersize=4, **look)
            taus, errors = np.array(net["orders"]).T
            face = INKS[kind] if kind == "resnet" else "none"
            right.scatter(
                taus, 100 * errors, s=22, label=name, facecolors=face, edgecolors=INKS[kind], marker=MARKERS[kind]
            )
        blocks = len(nets["resnet" + depth]["blocks"])
        left.set(xlabel=f"blocks deleted at random, of {blocks}", ylabel="test error (%)")
        left.set_title(f"deleted: mean and range, {settings['draws']} draws a training", fontsize=9)
        right.set(xlabel="Kendall's τ of the order with the trained one", ylabel="test error (%)")
        right.set_title("reordered: a point an order", fontsize=9)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.invert_xaxis()  # from the trained order to the least similar
        for axes in (left, right):
            _chance(axes)
            axes.legend(fontsize=8)
    figure.suptitle(_title(settings, "all draws"), fontsize=9)
    return figure


def _draw_orl(runs: list[Result]) -> Figure:
    accuracy = {test: 100 * values for test, values in _orl_accuracy(runs).items()}  # (runs, 1 + blocks)
    series = {test: values.mean(axis=0).tolist() for test, values in accuracy.items()}
    errors = {
        test: [(mean - low, high - mean) for mean, low, high in zip(series[test], v.min(0), v.max(0), strict=True)]
        for test, v in accuracy.items()
    }
    figure = figures.new(8, 3.6)
    axes = figure.subplots()
    names = ["none", *[name.removeprefix("layer") for name in runs[0]["blocks"]]]
    figures.bars(axes, names, series, errors)
    axes.axhline(2.5, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(xlabel="deleted block (stage.block)", ylabel="rank-1 accuracy (%)", ylim=(0, 100))
    axes.set_title(
        f"ORL, 40 people, ResNet-18: one block deleted; mean and range of {_trainings(len(runs))}", fontsize=9
    )
    axes.legend(fontsize=8, title="test photographs", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
