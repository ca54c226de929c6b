"""Blocks deleted and reordered: against networks put together by hand; what the experiment draws, counts and judges."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from conftest import assert_close, normal
from small_networks import KINDS, act, done, noise_task, small, untrained_lab

from nn.conv import conv2d_forward
from resnet.blocks import BasicBlock
from resnet.experiments import degradation, lesion
from resnet.experiments.harness import Lab
from resnet.experiments.surgery import block_names, blocks, keeps_shape, movable, permuted, stages, subsets, without
from resnet.models import build, make_model
from resnet.statistics import kendall_tau

# The same, by hand


def norm(layer, x):
    mean, variance = layer.running_mean.data, layer.running_var.data
    return (x - mean) / np.sqrt(variance + 1e-5) * layer.weight.data + layer.bias.data


def conv_norm(conv, bn, x):
    return norm(bn, conv2d_forward(x, conv.weight.data, None, conv.stride, conv.padding)[0])


def branch(kind, block, x):
    x = act(kind, conv_norm(block.conv1, block.bn1, x))
    x = conv_norm(block.conv2, block.bn2, x)
    return conv_norm(block.conv3, block.bn3, act(kind, x)) if "bottleneck" in kind else x


def padded(x, channels, stride):
    y = np.zeros((*x[:, ::stride, ::stride].shape[:3], channels))
    y[..., : x.shape[3]] = x[:, ::stride, ::stride]
    return y


def shortcut(kind, block, x, channels, stride):
    if stride == 1 and x.shape[3] == channels:
        return x
    if KINDS[kind][1] == "B":
        return conv_norm(block.downsample[0], block.downsample[1], x)
    return padded(x, channels, stride)


def by_hand(kind, model, x, order=None, deleted=()):
    """Logits of a network that runs its blocks in ``order`` without the branches of ``deleted``."""
    x = act(kind, conv_norm(model.conv1, model.bn1, x))
    chain = [getattr(model.layer1, str(i)) for i in range(3)] + [getattr(model.layer2, str(i)) for i in range(2)]
    expansion = 4 if "bottleneck" in kind else 1
    for place, number in enumerate(order or range(5)):
        width, stride = [(4, 1), (4, 1), (4, 1), (6, 2), (6, 1)][place]
        y = 0 if number in deleted else branch(kind, chain[number], x)
        if "plain" not in kind or number in deleted:
            y = y + shortcut(kind, chain[number], x, width * expansion, stride)
        x = act(kind, y)
    return x.mean(axis=(1, 2)) @ model.fc.weight.data + model.fc.bias.data


# Deletion


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_without_a_block_is_the_one_put_together_by_hand(kind, rng):
    model, x = small(kind, rng), normal(rng, (2, 8, 6, 2))
    assert_close(model(x), by_hand(kind, model, x))
    answers = [model(x)]
    for number in range(5):
        answers.append(without(model, [number])(x))
        assert_close(answers[-1], by_hand(kind, model, x, deleted=[number]))
    assert all(np.abs(a - b).max() > 1e-6 for i, a in enumerate(answers) for b in answers[:i])  # no two alike
    assert_close(without(model, [1, 3, 4])(x), by_hand(kind, model, x, deleted=[1, 3, 4]))
    assert_close(without(model, range(5))(x), by_hand(kind, model, x, deleted=range(5)))


def test_plain_and_residual_twins_without_any_block_are_the_same_network(rng):
    """With option A they have lost the same: only stem and head are left."""
    residual, x = small("option A", rng), normal(rng, (2, 8, 6, 2))
    plain = small("plain", rng)
    plain.load_state_dict(residual.state_dict())
    np.testing.assert_array_equal(without(plain, range(5))(x), without(residual, range(5))(x))
    assert np.abs(without(plain, [0])(x) - without(residual, [0])(x)).max() > 1e-6


@pytest.mark.parametrize("kind", ["projection", "plain"])
def test_surgery_leaves_the_network_as_it_was(kind, rng):
    model, x = small(kind, rng).train(), normal(rng, (2, 8, 6, 2))
    parts, before = [module for _, module in model.named_modules()], model.state_dict()
    model.eval()
    expected, gradient = model(x), model.backward(np.ones((2, 3)))
    model(x)
    grads = model.grad_dict()
    for patient in (without(model, [0, 3]), permuted(model, [2, 0, 1, 3, 4])):
        assert not patient.keeps_cache
        patient(x)
        for parameter in patient.parameters():
            parameter.data[...] = 0
    np.testing.assert_array_equal(model.backward(np.ones((2, 3))), gradient)  # what it had kept is still there
    assert all(np.array_equal(2 * grads[name], grad) for name, grad in model.grad_dict().items())
    np.testing.assert_array_equal(model(x), expected)
    assert [module for _, module in model.named_modules()] == parts
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert all(module.keeps_cache for module in parts)


def test_blocks_that_are_not_there_cannot_be_deleted(rng):
    with pytest.raises(ValueError, match=r"blocks from 0 to 4, got \[-1, 5\]"):
        without(small("plain", rng), [5, 0, -1])


@pytest.mark.parametrize(
    ("name", "sizes", "keep"), [("resnet20", [3] * 3, 7), ("plain32", [5] * 3, 13), ("resnet18", [2] * 4, 5)]
)
def test_blocks_their_names_and_shapes(name, sizes, keep):
    model = make_model(name, 2)
    assert [len(some) for some in stages(model).values()] == sizes
    parts = dict(model.named_modules())
    assert [parts[block] for block in block_names(model)] == blocks(model)
    assert sum(map(keeps_shape, blocks(model))) == keep


# Order


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_in_the_order_asked_for(kind, rng):
    model, x = small(kind, rng), normal(rng, (2, 8, 6, 2))
    np.testing.assert_array_equal(permuted(model, range(5))(x), model(x))
    orders = [[0, 2, 1, 3, 4]] if "bottleneck" in kind else [[2, 0, 1, 3, 4], [1, 2, 0, 3, 4], [2, 1, 0, 3, 4]]
    for order in orders:
        assert_close(permuted(model, order)(x), by_hand(kind, model, x, order))
        assert np.abs(permuted(model, order)(x) - model(x)).max() > 1e-6


def test_blocks_stay_where_their_shape_fits(rng):
    model = small("option A", rng, (3, 3))
    assert movable(model) == [[0, 1, 2], [4, 5]]
    assert movable(build(BasicBlock, (2, 2), (4, 4), 3, stem="small", rng=rng)) == [[0, 1], [3]]  # 2 has a stride
    for order in ([0, 1, 3, 2, 4, 5], [0, 1, 5, 3, 4, 2], [0, 1, 2, 4, 3, 5]):
        with pytest.raises(ValueError, match="cannot stand at place"):
            permuted(model, order)
    for order in ([0, 1, 2, 3, 4], [0, 0, 1, 3, 4, 5]):
        with pytest.raises(ValueError, match="each block from 0 to 5 once"):
            permuted(model, order)


def test_drawn_orders_go_from_ascending_to_descending(rng):
    groups = [[0, 1, 2, 3], [5, 6, 7]]
    assert lesion.draw_order(groups, 8, 0.0, rng) == tuple(range(8))
    assert lesion.draw_order(groups, 8, 1.0, rng) == (3, 2, 1, 0, 4, 7, 6, 5)
    assert kendall_tau(range(8)) == 1
    assert kendall_tau((3, 2, 1, 0, 4, 7, 6, 5)) == pytest.approx(1 - 2 * (6 + 3) / 28)
    drawn = [lesion.draw_order(groups, 8, 0.3, rng) for _ in range(2000)]
    assert all(sorted(order[:4]) == [0, 1, 2, 3] and order[4] == 4 for order in drawn)
    assert len({lesion.draw_order([[0, 1, 2], [4, 5]], 6, 0.5, rng) for _ in range(500)}) == 6 * 2
    descending = (1 - np.mean([kendall_tau(order) for order in drawn])) * 28 / 2
    assert descending == pytest.approx(0.3 * 9, abs=0.15)


# Draws


def test_subsets_are_different_and_all_there_are_if_few(rng):
    for size in range(10):
        drawn = subsets(9, size, 20, rng)
        assert len(set(drawn)) == len(drawn) == min(20, comb(9, size))
        assert all(len(set(some)) == size and list(some) == sorted(some) for some in drawn)
        assert set().union(*drawn) <= set(range(9))
    often = np.bincount([number for _ in range(100) for some in subsets(9, 3, 20, rng) for number in some])
    assert often.min() > 0.85 * often.mean()  # about 667 times each
    with pytest.raises(ValueError, match="size from 0 to 9"):
        subsets(9, 10, 1, rng)


@pytest.fixture
def task(rng):
    return noise_task(rng)


def test_numbers_of_draws_and_errors(task):
    rng = np.random.default_rng
    many = lesion.delete_several(task.training, task.tests["clean"], 4, 6, rng(0))
    assert len(many["sets"]) == len(many["errors"]) == 6
    assert lesion.delete_several(task.training, task.tests["clean"], 4, 6, rng(0)) == many
    orders = lesion.reorder(task.training, task.tests["clean"], 8, rng(0))
    assert orders["orders"][0] == tuple(range(9))
    assert len(orders["orders"]) == len(set(orders["orders"])) == len(orders["errors"]) <= 8
    assert orders["taus"] == [kendall_tau(order) for order in orders["orders"]]
    assert orders["taus"][0] == 1
    each = lesion.delete_each(task.training, task.tests)
    assert each["keeps_shape"] == [True] * 3 + [False, True, True] * 2
    assert orders["errors"][0] == each["before"]["clean"]
    assert len(each["without"]) == len(each["blocks"]) == 9
    assert each["without"][2]["clean"] == lesion.error_rate(
        task.training, without(task.training.model, [2]), task.tests["clean"]
    )


def test_each_error_is_that_of_its_own_surgery(task, monkeypatch):
    monkeypatch.setattr(lesion, "without", lambda model, some: list(some))
    monkeypatch.setattr(lesion, "permuted", lambda model, order: list(order))
    monkeypatch.setattr(lesion, "error_rate", lambda training, model, test: model)
    training, test, rng = task.training, task.tests["clean"], np.random.default_rng(0)
    each = lesion.delete_each(training, task.tests)
    assert each["without"] == [{"clean": [number]} for number in range(9)]
    assert each["before"] == {"clean": training.model}
    many = lesion.delete_several(training, test, 4, 6, rng)
    assert many["errors"] == [list(some) for some in many["sets"]]
    orders = lesion.reorder(training, test, 8, rng)
    assert orders["errors"] == [list(order) for order in orders["orders"]]


def test_the_error_rate_is_that_of_the_given_network(task):
    test = task.tests["clean"]
    right = (task.training.scores(test.pictures).argmax(axis=1) == test.labels).mean()
    assert lesion.error_rate(task.training, task.training.model, test) == pytest.approx(1 - right)
    always = without(task.training.model, [])
    always.fc.weight.data[:], always.fc.bias.data[:] = 0, [0, 1, 0]
    assert lesion.error_rate(task.training, always, test) == pytest.approx(2 / 3)
    always.fc.bias.data[:] = [0, np.nan, np.inf]
    assert lesion.error_rate(task.training, always, test) == 1


# The experiment


TINY = lesion.Settings("quick", 1, (0, 1), {20: (2, 3)}, 6, 3, 4, 48, 4, (0,))


@pytest.fixture
def lab(task, monkeypatch):
    return untrained_lab(task, monkeypatch)


def test_cells_of_all_presets_have_names_and_settings_of_their_own():
    for settings in lesion.PRESETS.values():
        cells = lesion.cells(settings, Lab())
        assert len({cell.name for cell in cells}) == len(cells)
        assert len({json.dumps(cell.settings) for cell in cells}) == len(cells)
        sizes = sum(2 + len(some) for some in settings.several.values())
        assert len(cells) == len(settings.seeds) * 2 * sizes + len(settings.orl_seeds)
        assert settings.preset in degradation.PRESETS
        assert settings.test_pictures <= degradation.PRESETS[settings.preset].cifar_test_pictures


def test_from_cells_to_figures(lab):
    results = done(lesion.cells(TINY, lab))
    report = lesion.summarize(TINY, results)
    assert report["holds"] is False  # noise
    assert list(report["nets"]) == ["resnet20", "plain20"]
    assert [len(errors) for errors in report["nets"]["plain20"]["several"].values()] == [2, 18, 6, 6]
    report |= {"cells": {}, "settings": {"several": {"20": [2, 3]}, "test_pictures": 6, "draws": 3, "seeds": [0, 1]}}
    report = json.loads(json.dumps(report))
    assert set(lesion.draw(report)) == {"one", "several"}
    assert len(lesion.table(report).splitlines()) == 4


def outcome(before: float, without: float, outlier: float) -> dict[str, object]:
    """Return a cell's result: errors about ``without`` for the blocks that keep their shape, but for one."""
    keeps = [True] * 3 + [False, True, True] * 2
    around = iter([-0.05, 0, -0.05, 0, 0.05, 0.05, 0.05])
    errors = [without + next(around) if keep else 0.9 for keep in keeps]
    errors[1] = outlier
    rows = [{"error": error} for error in errors]
    return {"blocks": [""] * 9, "keeps_shape": keeps, "before": {"error": before}, "without": rows}


def judged(residual: list[float], plain: list[float]) -> dict[str, object]:
    """Judge nets with an error of 0.5 before and these without a block, one a seed."""
    results: dict[str, object] = {}
    for arch, errors in (("resnet20", residual), ("plain20", plain)):
        for seed, error in enumerate(errors):
            results[f"{arch}/seed {seed}/one"] = outcome(0.5, error, 0.1)
            results |= {f"{arch}/seed {seed}/{size}": {"errors": [0.6, 0.8]} for size in (2, 3)}
            results[f"{arch}/seed {seed}/order"] = {"taus": [1.0, 0.7], "errors": [0.5, 0.65]}
    return lesion.summarize(replace(TINY, seeds=tuple(range(len(residual)))), results)


def test_the_verdict_is_that_of_the_criterion():
    """The room up to chance is 0.4: a quarter of it is 0.1, three quarters are 0.3."""
    report = judged([0.59, 0.594], [0.85, 0.81])
    assert report["holds"] is True
    assert report["nets"]["resnet20"]["median_rise"] == pytest.approx([0.09, 0.094])
    assert report["nets"]["plain20"]["damage"] == pytest.approx([0.875, 0.775])
    assert "as Veit et al. found" in report["finding"]
    assert "ResNet-20 from 50.0 % by 9.2 points, 23.0 % of the way" in report["finding"]
    row = lesion.table(report | {"cells": {}}).splitlines()[-1]
    assert row == (
        "| plain-20 | 2 | 50.0 % (50.0 – 50.0) | 33.0 points | 82.5 % (77.5 – 87.5) | 70.0 % (9 blocks) "
        "| 65.0 % (0.70) |"
    )
    assert judged([0.55, 0.64], [0.85, 0.81])["holds"] is True  # the mean of the seeds counts
    assert judged([0.56, 0.65], [0.85, 0.81])["holds"] is False  # too much
    assert judged([0.55, 0.55], [0.79, 0.80])["holds"] is False  # too little
    assert "does not tell the two apart as clearly" in judged([0.55, 0.55], [0.79, 0.80])["finding"]


def test_faces_alone_decide_nothing():
    row = {"clean": 0.05, "masked": 0.3}
    cell = {"blocks": ["layer1.0", "layer1.1"], "before": row, "without": [{"clean": 0.1, "masked": 0.4}, row]}
    report = lesion.summarize(TINY, {"orl/seed 0": cell})
    assert report["holds"] is False
    assert "CIFAR-10, which is missing" in report["finding"]
    shown = lesion.table(report | {"cells": {"orl/seed 0": {"result": cell}}})
    assert "| layer1.0 | 90.0 % | 60.0 % |" in shown.splitlines()
    assert "clean 95.0 % right before, 92.5 % (median) without a block and 90.0 % without layer1.0" in report["finding"]
    drawn = lesion.draw(report | {"cells": {"orl/seed 0": {"result": cell}}})
    assert list(drawn) == ["orl"]
    heights = [bar.get_height() for bar in drawn["orl"].axes[0].patches]
    assert heights == pytest.approx([95, 90, 95, 70, 60, 70])


def test_faces_are_deleted_from_on_both_tests(task, monkeypatch):
    monkeypatch.setattr(lesion, "recognise", lambda *_, **settings: settings)
    settings = lesion.orl_task(Lab(), lesion.PRESETS["full"], 2)
    assert settings == {
        "size": 64, "seed": 2, "epochs": 12, "arch": "resnet18", "activation": "leaky_relu", "negative_slope": 0.01,
        "mask_probability": 0.5,
    }  # fmt: skip
    both = {"clean": task.tests["clean"], "masked": task.tests["clean"]}
    result = lesion.delete_each(task.training, both)
    assert all(row["clean"] == row["masked"] for row in result["without"])
