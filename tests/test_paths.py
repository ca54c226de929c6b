"""Paths through residual blocks: each by hand, all together against the whole gradient; counts, fits and figures."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from conftest import assert_close, normal
from small_networks import KINDS, act, done, noise_task, small, untrained_lab

from nn import SoftmaxCrossEntropy
from nn.conv import conv2d_backward, conv2d_forward
from resnet.experiments import degradation, paths
from resnet.experiments.harness import Lab
from resnet.experiments.surgery import path_counts, path_gradients
from resnet.models import make_model

RESIDUAL = [kind for kind in KINDS if "plain" not in kind]
LABELS = np.array([2, 0])


@pytest.fixture
def task(rng):
    return noise_task(rng)


@pytest.fixture
def lab(task, monkeypatch):
    return untrained_lab(task, monkeypatch)


def all_paths(n):
    return [path for size in range(n + 1) for path in combinations(range(n), size)]


def whole_gradient(model, x):
    """The gradient by the first block's input, by the network's own backward."""
    loss = SoftmaxCrossEntropy()
    loss(model(x), LABELS)
    dy = loss.backward()
    for name, part in reversed(list(model.children())):
        if name in ("conv1", "bn1", "relu"):
            break
        dy = part.backward(dy)
    return dy


@pytest.mark.parametrize("kind", RESIDUAL)
def test_the_shares_of_all_paths_add_up_to_the_whole_gradient(kind, rng):
    model, x = small(kind, rng), normal(rng, (2, 8, 6, 2))
    shares = list(path_gradients(model, x, LABELS, all_paths(5)))
    assert len(shares) == 32
    whole = whole_gradient(model, x)
    assert np.abs(sum(shares) - whole).max() <= 1e-10 * np.abs(whole).max()
    assert np.abs(sum(shares[:-1]) - whole).max() > 1e-6 * np.abs(whole).max()


# One path at a time, by hand


def scale(norm):
    return norm.weight.data / np.sqrt(norm.running_var.data + 1e-5)


class HandBlock:
    """A basic block with what backward needs, in the functions of nn.conv."""

    def __init__(self, kind, block, x):
        self.kind, self.block, self.x = kind, block, x
        self.inner, self.cache1 = self.conv_norm(block.conv1, block.bn1, x)
        out, self.cache2 = self.conv_norm(block.conv2, block.bn2, act(kind, self.inner))
        self.sum = out + self.shortcut(x)
        self.y = act(kind, self.sum)

    @staticmethod
    def conv_norm(conv, norm, x):
        y, cache = conv2d_forward(x, conv.weight.data, None, conv.stride, conv.padding)
        return (y - norm.running_mean.data) * scale(norm) + norm.bias.data, cache

    def shortcut(self, x):
        stride = self.block.conv1.stride[0]
        y = np.zeros((*x[:, ::stride, ::stride].shape[:3], self.block.conv2.weight.data.shape[3]))
        y[..., : x.shape[3]] = x[:, ::stride, ::stride]
        return y

    def slope(self, x):
        return np.where(x > 0, 1.0, 0.1 if KINDS[self.kind][2] == "leaky_relu" else 0.0)

    def back(self, dy, by_branch):
        dy = dy * self.slope(self.sum)
        if by_branch:
            dy = conv2d_backward(dy * scale(self.block.bn2), self.cache2)[0] * self.slope(self.inner)
            return conv2d_backward(dy * scale(self.block.bn1), self.cache1)[0]
        dx, stride = np.zeros_like(self.x), self.block.conv1.stride[0]
        dx[:, ::stride, ::stride] = dy[..., : self.x.shape[3]]
        return dx


def test_every_single_path_is_the_one_followed_by_hand(rng):
    kind, x = "option A", normal(rng, (2, 8, 6, 2))
    model = small(kind, rng, (2, 2))
    y = model.relu(model.bn1(model.conv1(x)))
    chain = []
    for block in (model.layer1[0], model.layer1[1], model.layer2[0], model.layer2[1]):
        chain.append(HandBlock(kind, block, y))
        y = chain[-1].y  # (N, H, W, C)
    n, h, w, _ = y.shape
    logits = y.mean(axis=(1, 2)) @ model.fc.weight.data + model.fc.bias.data
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    top = (shares - np.eye(3)[LABELS]) / n @ model.fc.weight.data.T  # (N, C)
    top = np.broadcast_to(top[:, None, None] / (h * w), y.shape)
    gradients = list(path_gradients(model, x, LABELS, all_paths(4)))
    for path, gradient in zip(all_paths(4), gradients, strict=True):
        dy = top
        for number in (3, 2, 1, 0):
            dy = chain[number].back(dy, number in path)
        assert_close(gradient, dy)
    assert all(np.abs(a - b).max() > 1e-8 for a, b in combinations(gradients, 2))  # no two alike


def test_following_paths_leaves_the_network_as_it_was(rng):
    model, x = small("projection", rng).train(), normal(rng, (2, 8, 6, 2))
    before = model.state_dict()
    model(x)
    before = model.state_dict()
    first = list(path_gradients(model, x, LABELS, [(0, 1), (), (0, 1)]))
    np.testing.assert_array_equal(first[0], first[2])
    assert model.training
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert all(parameter._grad is None for parameter in model.parameters())
    model.backward(np.ones((2, 3)))  # what it had kept is still there


def test_a_plain_network_has_one_path_and_no_shortcuts(rng):
    with pytest.raises(ValueError, match="has no shortcuts"):
        next(path_gradients(small("plain", rng), normal(rng, (2, 8, 6, 2)), LABELS, [()]))
    assert path_counts(make_model("plain20", 2)) == [0] * 9 + [1]


def test_path_lengths_are_binomial(rng):
    for model, n in ((make_model("resnet56", 2), 27), (small("bottleneck", rng), 5)):
        assert path_counts(model) == [comb(n, k) for k in range(n + 1)]


# What came out


def run_of(norms):
    n = len(norms) - 1
    return [{"length": k, "count": comb(n, k), "norms": [0.5 * g, 1.5 * g]} for k, g in enumerate(norms)]


@pytest.mark.parametrize("n", [9, 27])
def test_a_gradient_that_falls_by_a_factor_a_block_gives_a_binomial(n):
    """Counts × factorᵏ is in proportion to a binomial distribution with p = factor / (1 + factor)."""
    for factor in (0.25, 0.5, 1.0, 1.2):
        net = paths.profile(run_of([3 * factor**k * (1 + 1e-9 * (-1) ** k) for k in range(n + 1)]))
        p = factor / (1 + factor)
        assert net["factor"] == pytest.approx(factor)
        assert net["mean_length"] == pytest.approx(n * p)
        assert net["shares"] == pytest.approx([comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
        assert sum(net["shares"][k] for k in net["carriers"]) >= 0.95
        assert all(b == a + 1 for a, b in pairwise(net["carriers"]))
        assert net["start"] == pytest.approx(3)
    assert paths.profile(run_of([0.5**k for k in range(n + 1)]))["correlation"] == pytest.approx(-1)


def test_a_length_that_lets_nothing_through_is_left_out_of_the_fit():
    net = paths.profile(run_of([0.5**k for k in range(9)] + [0.0]))
    assert net["factor"] == pytest.approx(0.5)
    assert net["shares"][9] == 0


def test_the_lengths_that_carry_the_gradient():
    assert paths.carrying([0.05, 0.2, 0.6, 0.15]) == [1, 2, 3]
    assert paths.carrying([0.01, 0.02, 0.96, 0.01]) == [2]
    assert paths.carrying(np.array([0.25, 0.25, 0.25, 0.25])) == [0, 1, 2, 3]
    net = paths.profile(run_of([1e9, 1, 1, 1]))
    assert net["carriers"] == [0]
    assert net["share_of_paths"] == 1 / 8


def judged(*factors):
    settings = paths.Settings("quick", 1, tuple(range(len(factors))), {"resnet20": 5}, 10)
    results = {
        f"resnet20/seed {seed}/length {cell['length']}": cell
        for seed, factor in enumerate(factors)
        for cell in run_of([factor**k for k in range(10)])
    }
    return paths.summarize(settings, results)


def test_the_verdict_is_that_of_the_criterion():
    report = judged(0.45, 0.3)
    assert report["holds"] is True
    assert "The criterion: ResNet-20 meets it." in report["finding"]
    assert "512 paths" in report["finding"]
    assert paths.table(judged(0.25)).splitlines()[-1] == (
        "| ResNet-20 | 9 | 512 | 0.25 | -1.000 | 4.5 | 1.8 | 0 to 4 | 50 % |"
    )
    assert judged(0.3, 0.55)["holds"] is False  # every network must, and n/3 is where a block takes half
    assert "The criterion: ResNet-20 does not meet it." in judged(0.55)["finding"]
    assert judged(1.1)["holds"] is False


def test_a_gradient_that_falls_but_not_steadily_is_no_exponential():
    norms = [1.0] + [0.01] * 9
    assert paths.profile(run_of(norms))["correlation"] > paths.STRAIGHT
    assert paths.profile(run_of([2.0**-k for k in range(10)]))["correlation"] < paths.STRAIGHT


# The experiment


def test_cells_of_all_presets_have_names_and_settings_of_their_own():
    for settings in paths.PRESETS.values():
        cells = paths.cells(settings, Lab())
        assert len({cell.name for cell in cells}) == len({json.dumps(cell.settings) for cell in cells}) == len(cells)
        assert len(cells) == len(settings.seeds) * sum(paths.BLOCKS[arch] + 1 for arch in settings.draws)
        assert settings.pictures <= degradation.PRESETS[settings.preset].cifar_test_pictures


def test_from_cells_to_figures(lab):
    settings = paths.Settings("quick", 1, (0,), {"resnet20": 3}, 6)
    results = done(paths.cells(settings, lab))
    assert [cell["count"] for cell in results.values()] == [comb(9, k) for k in range(10)]
    assert [len(cell["norms"]) for cell in results.values()] == [1] + 8 * [3] + [1]
    assert results["resnet20/seed 0/length 9"]["paths"] == [list(range(9))]
    assert all(norm > 0 for cell in results.values() for norm in cell["norms"])
    report = paths.summarize(settings, results)
    report |= {
        "cells": {name: {"result": result} for name, result in results.items()},
        "settings": {"pictures": 6, "seeds": [0]},
    }
    assert len(paths.table(report).splitlines()) == 3
    drawn = paths.draw(json.loads(json.dumps(report)))
    assert set(drawn) == {"unravelled", "gradient"}
    dark = [bar for bar in drawn["gradient"].axes[2].patches if bar.get_facecolor()[0] < 0.5]
    assert len(dark) == len(report["nets"]["resnet20"][0]["carriers"])


@pytest.mark.parametrize("n", [2, 3])
def test_the_drawing_has_every_path_and_block(n):
    *chains, unravelled = paths.draw_unravelled(n).axes
    boxes = Counter(text.get_text() for text in unravelled.texts)
    assert [boxes[f"$f_{block}$"] for block in range(1, n + 1)] == [2 ** (n - block) for block in range(1, n + 1)]
    lengths = Counter(text.get_text().split(":")[0] for text in unravelled.texts if "length" in text.get_text())
    assert lengths == {f"length {k}": comb(n, k) for k in range(n + 1)}
    labels = [text.get_text().split(": ")[1] for text in unravelled.texts if "length" in text.get_text()]
    expected = ["shortcuts only"]
    for block in range(1, n + 1):  # first all paths by the shortcut, then the same by the branch
        expected += [f"$f_{block}$" if path == "shortcuts only" else f"{path} $f_{block}$" for path in expected]
    assert labels == expected
    rows = [text.get_position()[1] for text in unravelled.texts if text.get_text() == "$f_1$"]
    assert rows == list(range(2**n - 2, -1, -2))  # from the top every second one
    for axes in chains:
        assert [text.get_text() for text in axes.texts].count("$f_1$") == 1
