"""The harness of the experiments: cells done once, killed runs that go on, networks trained once, missing data."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import write_people

from nn.checkpoint import load_weights, save_weights
from resnet.config import TrainingConfig
from resnet.experiments import NAMES, figures, harness
from resnet.experiments.__main__ import main
from resnet.experiments.harness import Cell, Lab, MissingDataError
from resnet.experiments.networks import fingerprint, train_once
from resnet.experiments.sources import Sources
from resnet.runfolder import EpochMetrics
from resnet.training import Training, fit, prepare

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Settings:
    minutes: float = 1.0
    count: int = 3


def experiment(work: Any, settings: Settings = Settings(), needs: tuple[str, ...] = ()) -> SimpleNamespace:
    """Return an experiment of ``count`` cells that call ``work`` with their number."""

    def cells(settings: Settings, lab: Lab) -> list[Cell]:
        return [
            Cell(f"cell {number}", lambda number=number: work(number), {"number": number}, needs=needs)
            for number in range(settings.count)
        ]

    def draw(report: dict[str, Any]) -> dict[str, Any]:
        figure = figures.new(2, 2)
        figure.subplots().plot(list(report["values"]))
        return {"": figure, "more": figures.new(1, 1)}

    return SimpleNamespace(
        __doc__="Title.\n\nClaim: cells\nare kept.\n\nCriterion: each is done once.\n\nMore words.",
        PRESETS={"quick": settings},
        cells=cells,
        summarize=lambda settings, results: {
            "finding": "Kept.",
            "holds": True,
            "values": [result["value"] for result in results.values()],
        },
        table=lambda report: harness.markdown(("n",), [(str(value),) for value in report["values"]]),
        draw=draw,
    )


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(work=tmp_path / "work", backend="numpy", quiet=True)


def run(module: SimpleNamespace, lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(harness, "load", lambda name: module)
    return harness.run("one", "quick", lab, folder / "results", folder / "figures", say=lambda line: None)


def test_a_run_writes_result_and_figures(lab, tmp_path, monkeypatch):
    report = run(experiment(lambda number: {"value": number**2}), lab, tmp_path, monkeypatch)
    written = json.loads((tmp_path / "results/one-quick.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert written["values"] == [0, 1, 4]
    assert (written["claim"], written["criterion"]) == ("cells are kept.", "each is done once.")
    assert written["preset"] == "quick"
    assert written["settings"] == {"minutes": 1.0, "count": 3}
    assert written["versions"]["numpy"] == np.__version__
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"one-quick.svg", "one-more-quick.svg"}


def test_a_run_that_was_stopped_does_only_what_is_missing(lab, tmp_path, monkeypatch):
    done = []

    def work(number):
        if number == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return {"value": number}

    with pytest.raises(KeyboardInterrupt):
        run(experiment(work), lab, tmp_path, monkeypatch)
    assert not (tmp_path / "results").exists()
    done.append("stopped")
    assert run(experiment(work), lab, tmp_path, monkeypatch)["values"] == [0, 1, 2]
    assert done == [0, 1, "stopped", 2]


def test_progress_tells_how_long_the_rest_will_take(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 30.0, 30.0, 100.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    cells = [Cell(name, dict, {}, cost=cost) for name, cost in (("a", 1), ("b", 2), ("c", 12))]
    lines: list[str] = []
    harness.do(cells, tmp_path, Sources(), lines.append)
    assert lines == [
        "1 of 3 cells: a took 10.0 s; about 2 min left",
        "2 of 3 cells: b took 20.0 s; about 2 min left",
        "3 of 3 cells: c took 70.0 s",
    ]
    harness.do(cells, tmp_path, Sources(), lines.append)
    assert lines[3:] == ["3 of 3 cells are done already"]


def test_changed_settings_and_damaged_files_are_done_again(lab, tmp_path, monkeypatch):
    done = []

    def work(number):
        done.append(number)
        return {"value": number}

    module = experiment(work)
    run(module, lab, tmp_path, monkeypatch)
    cells = module.cells(Settings(), lab)
    folder = lab.work / "one-quick"
    harness.place(cells[0], folder).write_text('{"settings": {"number"')
    harness.place(cells[1], folder).write_text("[]")
    assert [harness.read(cell, folder, lab.sources) is None for cell in cells] == [True, True, False]
    assert harness.read(replace(cells[2], settings={"number": 5}), folder, lab.sources) is None
    run(module, lab, tmp_path, monkeypatch)
    assert done == [0, 1, 2, 0, 1]


def test_a_cell_is_done_again_with_other_data(tmp_path):
    cell = Cell("one", lambda: {"value": 1}, {}, needs=("orl", "lfw"))
    first = Sources({"orl": tmp_path / "a", "lfw": tmp_path / "b"})
    harness.do([cell], tmp_path, first, lambda line: None)
    same = Sources({"orl": tmp_path / "b/../a", "lfw": tmp_path / "b", "cifar10": tmp_path / "c"})
    assert harness.read(cell, tmp_path, same) == {"result": {"value": 1}, "seconds": 0.0}
    for other in (Sources({"orl": tmp_path / "c", "lfw": tmp_path / "b"}), Sources({"lfw": tmp_path / "b"})):
        assert harness.read(cell, tmp_path, other) is None


def test_cells_with_like_names_have_files_of_their_own(tmp_path):
    names = ["a/b", "a b", "a-b", "A/b", "x" * 90 + "1", "x" * 90 + "2"]
    places = {harness.place(Cell(name, dict, {}), tmp_path) for name in names}
    assert len({str(place).casefold() for place in places}) == len(names)
    assert all(place.parent == tmp_path and len(place.name) < 100 for place in places)


def test_cells_without_their_data_are_left_out_and_said(lab):
    cells = [Cell("one", dict, {}, needs=("orl",)), Cell("two", dict, {}, needs=("lfw", "rmfrd")), Cell("3", dict, {})]
    sources = Sources({"orl": Path("somewhere")})
    usable, left_out = harness.available(cells, sources)
    assert [cell.name for cell in usable] == ["one", "3"]
    assert len(left_out) == 2
    assert "--lfw DIR" in left_out[0]
    assert "1 of 3 cells" in left_out[0]
    assert "--rmfrd DIR" in left_out[1]
    with pytest.raises(MissingDataError, match=r"--lfw DIR.*--rmfrd DIR"):
        harness.available(cells[1:2], sources)


KILLED = """
import json, sys, time
from pathlib import Path
from resnet.experiments.harness import Cell, do
from resnet.experiments.sources import Sources
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def work(number):
    time.sleep(0.05)
    with open(log, "a") as file:
        file.write(f"{number}\\n")
    return {"value": number, "padding": "x" * 200_000}
cells = [Cell(f"cell {n}", lambda n=n: work(n), {"n": n}) for n in range(12)]
print(json.dumps([kept["result"]["value"] for kept in do(cells, folder, Sources(), lambda line: None).values()]))
"""


def test_a_run_killed_at_any_moment_goes_on_and_loses_at_most_the_cell_under_way(tmp_path):
    folder, log, kills = tmp_path / "cells", tmp_path / "log", 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    moments = random.Random(0)
    while True:
        command = [sys.executable, "-c", KILLED, str(folder), str(log)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        seen = len(log.read_text().split()) if log.exists() else 0
        if kills < 4:
            while process.poll() is None and len(log.read_text().split() if log.exists() else []) < seen + 2:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            kills += 1
        output = process.communicate()[0]
        if process.returncode == 0:
            break
    assert json.loads(output) == list(range(12))
    done = log.read_text().split()
    assert sorted(set(map(int, done))) == list(range(12))
    assert len(done) <= 12 + kills  # at most one cell was lost a kill


# Networks trained once


def training(folder: Path, epochs: int = 4, **settings: Any) -> Training:
    words = {"data": "folder", "data_dir": str(folder), "arch": "resnet20", "stem": "small", "image_size": 16}
    config = TrainingConfig(backend="numpy", epochs=epochs, repeats=1, batch_size=6, **(words | settings))
    made = prepare(config)
    made.tests = {}
    return made


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


def comparable(history: list[EpochMetrics]) -> list[tuple[Any, ...]]:
    return [(row.epoch, row.steps, row.learning_rate, row.train_loss, row.train_accuracy) for row in history]


def test_a_network_is_trained_once(people, tmp_path, monkeypatch):
    first, again = training(people), training(people)
    history = train_once(first, tmp_path / "nets", quiet=True)
    monkeypatch.setattr("resnet.experiments.networks.fit", None)  # to train again would raise
    assert comparable(train_once(again, tmp_path / "nets", quiet=True)) == comparable(history)
    assert len(history) == 4
    for name, array in first.model.state_dict().items():
        np.testing.assert_array_equal(again.model.state_dict()[name], array)
    with pytest.raises(ValueError, match="has not begun"):
        train_once(first, tmp_path / "nets", quiet=True)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_training_goes_on_bit_for_bit(people, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("resnet.experiments.networks.SECONDS_BETWEEN_STATES", 0.0)
    whole = training(people)
    expected = train_once(whole, tmp_path / "whole", quiet=True)

    def killed(made, quiet):
        for metrics in fit(made, quiet=quiet):
            yield metrics
            if metrics.epoch == stop_after:
                raise KeyboardInterrupt  # after the state of this epoch was written

    with monkeypatch.context() as patch:
        patch.setattr("resnet.experiments.networks.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train_once(training(people), tmp_path / "nets", quiet=True)
    (own,) = (tmp_path / "nets").iterdir()
    assert [path.name for path in own.iterdir()] == ["state.safetensors"]
    resumed = training(people)
    assert comparable(train_once(resumed, tmp_path / "nets", quiet=True)) == comparable(expected)
    assert [path.name for path in own.iterdir()] == ["model.safetensors"]
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(resumed.model.state_dict()[name], array, err_msg=name)


def test_a_damaged_state_is_not_used(people, tmp_path):
    made = training(people, epochs=1)
    own = tmp_path / f"resnet20-{fingerprint(made)}"
    own.mkdir()
    (own / "state.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    save_weights(own / "model.safetensors", {"x": np.zeros(3)}, {"history": "[{"})
    assert len(train_once(made, tmp_path, quiet=True)) == 1
    assert "conv1.weight" in load_weights(own / "model.safetensors")[0]


def test_a_fingerprint_tells_all_that_matters_apart_and_nothing_else(people, tmp_path):
    base = fingerprint(training(people))
    assert fingerprint(training(people, threads=1)) == base
    others = [{"seed": 1}, {"epochs": 5}, {"activation": "relu"}, {"mask_probability": 0.0}, {"learning_rate": 0.05}]
    marks = {fingerprint(training(people, **settings)) for settings in others}
    weights = training(people)
    weights.model.conv1.weight.data[0, 0, 0, 0] += 1
    pictures = training(people)
    pictures.train_faces.pictures[0, 0, 0, 0] ^= 1
    labels = training(people)
    labels.train_faces.labels[:] = labels.train_faces.labels[::-1].copy()
    marks |= {fingerprint(made) for made in (weights, pictures, labels)}
    assert len(marks | {base}) == 9


def test_the_state_of_another_network_is_refused_and_nothing_changes(people):
    made, other = training(people), training(people, arch="resnet32")
    before = made.model.state_dict()
    for state, words in (
        (other.trainer.state_dict(), "unexpected"),
        ({"model/x": np.zeros(1)}, "steps"),
        (made.trainer.state_dict() | {"optimizer/momentum/fc.bias": np.zeros(3)}, "fc.bias.*expected"),
        (made.trainer.state_dict() | {"other/thing": np.zeros(3)}, "other"),
    ):
        with pytest.raises(ValueError, match=words):
            made.trainer.load_state_dict(state)
    for name, array in made.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert made.trainer.steps == 0


# The command


def test_a_caveat_is_the_docstrings_or_none():
    assert harness.caveat(harness.load("architectures")) == ""
    assert harness.caveat(harness.load("real_masks")).startswith("the test was made stricter after the full run")


def test_every_experiment_states_claim_and_criterion_and_has_both_presets():
    for name in NAMES:
        module = harness.load(name)
        assert len(harness.paragraph(module, "Claim")) > 20, name
        assert len(harness.paragraph(module, "Criterion")) > 40, name
        assert set(module.PRESETS) == {"quick", "full"}, name
        assert module.PRESETS["quick"].minutes <= 10, name


def committed() -> list[Path]:
    return [path for name in NAMES for path in sorted((ROOT / "docs/results").glob(f"{name}-*.json"))]


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.stem)
def test_a_committed_report_follows_from_its_cells_and_the_settings_of_its_preset(path):
    report = json.loads(path.read_text())
    experiment = harness.load(report["experiment"])
    settings = experiment.PRESETS[report["preset"]]
    assert report["settings"] == json.loads(json.dumps(asdict(settings)))
    assert report["claim"] == harness.paragraph(experiment, "Claim")
    assert report["criterion"] == harness.paragraph(experiment, "Criterion")
    assert report["caveat"] == harness.caveat(experiment)
    results = {name: kept["result"] for name, kept in report["cells"].items()}
    again = json.loads(json.dumps(experiment.summarize(settings, results)))
    assert_alike(again, {name: report[name] for name in again})


def assert_alike(ours: Any, theirs: Any) -> None:
    """Compare JSON values, numbers but for rounding: another BLAS adds up in another order."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for name in ours:
            assert_alike(ours[name], theirs[name])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-9) if isinstance(theirs, float) else theirs)


def test_the_command_lists_all_with_cost_and_state(tmp_path, capsys):
    report = {"date": "2026-11-24T10:00:00+00:00", "seconds": 600, "left_out": []}
    (tmp_path / "paths-full.json").write_text(json.dumps(report))
    assert main(["--results", str(tmp_path), "--work", str(tmp_path / "work")]) == 0
    listing = capsys.readouterr().out
    for name in NAMES:
        assert f"{name}: {harness.paragraph(harness.load(name), 'Claim')}" in listing
    assert "done 2026-11-24, took 10 min" in listing
    assert re.search(r"real_masks.*\n.*needs --lfw and --rmfrd", listing)
    assert "not begun" in listing
    assert "about " in listing
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], 2, "no experiment nothing; there are architectures"),
        (["paths", "--preset", "slow"], 2, "invalid choice"),
        (["paths", "--threads", "-1"], 2, "expected 0 or more"),
        (["degradation", "--orl", "/nowhere"], 1, "/nowhere"),
        (["real_masks"], 1, "RMFRD: --rmfrd DIR"),
        (["paths", "--cifar10", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_wrong_use_of_the_command(arguments, status, words, tmp_path, capsys):
    arguments += ["--results", str(tmp_path), "--figures", str(tmp_path), "--work", str(tmp_path / "work")]
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == status
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.json"))


def test_tables_and_percents():
    assert harness.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert harness.percent([0.985]) == "98.5 %"
    assert harness.percent([0.5, 0.25, 0.75], 0) == "50 % (25 – 75)"


def test_minutes_are_said_in_words():
    assert harness.minutes(20.4) == "20 s"
    assert harness.minutes(600) == "10 min"


# Figures


def test_a_figure_without_pictures_is_svg_with_the_same_bytes_each_time(tmp_path):
    def draw() -> Any:
        figure = figures.new(3, 2)
        axes = figure.subplots()
        figures.bars(axes, ["a", "b"], {"x": [1, 2], "y": [3, 4]}, {"x": [(0.5, 1), (0, 0)], "y": [(1, 1), (0, 2)]})
        return figure

    first, second = figures.save(draw(), tmp_path / "one"), figures.save(draw(), tmp_path / "two")
    assert first.name == "one.svg"
    assert first.read_bytes() == second.read_bytes()
    with_picture = figures.new(1, 1)
    with_picture.subplots().imshow(np.eye(3))
    assert figures.save(with_picture, tmp_path / "three").name == "three.png"


def test_bars_stand_beside_each_other_with_their_errors():
    axes = figures.new(3, 2).subplots()
    figures.bars(axes, ["a", "b"], {"x": [1, 2], "y": [3, 4]}, {"x": [(0.5, 1), (0, 0)], "y": [(1, 1), (0, 2)]})
    bars = [patch for patch in axes.patches]
    assert [bar.get_height() for bar in bars] == [1, 2, 3, 4]
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in bars] == [-0.2, 0.8, 0.2, 1.2]
    assert len({bar.get_facecolor() for bar in bars}) == 2  # told apart by grey level
    assert len({bar.get_hatch() for bar in bars}) == 2  # and by hatch
    segments = [line.get_segments() for line in axes.collections]
    ends = sorted(round(float(y), 6) for line in segments for segment in line for _, y in segment)
    assert ends == sorted([0.5, 2, 2, 2, 2, 4, 4, 6])
    assert not math.isnan(sum(ends))
