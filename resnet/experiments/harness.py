"""What all experiments share: cells of work done once and kept, progress, result files, figures.

An experiment is a module with::

    docstring      paragraphs that begin with "Claim:" and "Criterion:", written before it was run; and with "Caveat:",
                   if something was changed after a look at results, or makes the verdict weaker than it sounds
    PRESETS        settings, a frozen dataclass each, by the names "quick" and "full"
    cells          (settings, lab) -> the cells, pieces of work that do not depend on each other
    summarize      (settings, results of the cells) -> what came out, with a plain sentence as "finding", and as
                   "holds" whether the criterion is met
    table          the report -> its main numbers as a Markdown table
    draw           the report -> figures by name ("" for an experiment's only one)

A cell's result is written as soon as it is there, whole or not at all. A run that was killed goes on with the first
cell that is missing; a training within a cell goes on too (``networks.py``). A cell is done again when its settings or
the folders of its data have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from nn.backend import choose_backend
from nn.checkpoint import write_atomically
from resnet.config import TrainingConfig
from resnet.experiments import NAMES
from resnet.experiments.figures import save
from resnet.experiments.networks import train_once
from resnet.experiments.sources import ADVICE, SETS, Sources
from resnet.runfolder import EpochMetrics, machine, write_json
from resnet.training import Training

PRESETS = ("quick", "full")
PACKAGES = ("numpy", "pillow", "matplotlib", "safetensors")
Result = dict[str, Any]


@dataclass(frozen=True)
class Lab:
    """Where experiments are done.

    Attributes:
        sources: the data sets.
        work: folder for what can be made again: cells and trained networks.
        backend: "auto", "numpy" or "cupy".
        threads: cores to compute on, 0 for all.
        quiet: no progress bars of trainings.
    """

    sources: Sources = field(default_factory=Sources)
    work: Path = Path("runs/experiments")
    backend: str = "auto"
    threads: int = 0
    quiet: bool = False

    def config(self, **settings: Any) -> TrainingConfig:
        """Return the settings of a training in this lab."""
        return TrainingConfig(backend=self.backend, threads=self.threads, **settings)

    def train(self, training: Training) -> list[EpochMetrics]:
        """Train to the end, or fetch the network trained before: :func:`resnet.experiments.networks.train_once`."""
        return train_once(training, self.work / "networks", quiet=self.quiet)


@dataclass(frozen=True)
class Cell:
    """A piece of work.

    Attributes:
        name: unique within the experiment, e.g. "orl/relu/seed 3".
        work: does it; what it returns can be written as JSON.
        settings: all that the result depends on.
        cost: how long it takes, compared with the other cells.
        needs: names of the data sets it needs.
    """

    name: str
    work: Callable[[], Result]
    settings: Mapping[str, Any]
    cost: float = 1.0
    needs: tuple[str, ...] = ()


class Experiment(Protocol):
    """What a module of this package offers to the harness."""

    __doc__: str | None
    PRESETS: Mapping[str, Any]
    cells: Callable[[Any, Lab], list[Cell]]
    summarize: Callable[[Any, dict[str, Result]], Result]
    table: Callable[[Result], str]
    draw: Callable[[Result], dict[str, Figure]]


class MissingDataError(ValueError):
    """None of an experiment's cells has its data; the message says how to get them."""


def load(name: str) -> Experiment:
    """Return an experiment's module.

    Raises:
        ValueError: unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"expected an experiment among {', '.join(NAMES)}, got {name!r}")
    module: Any = import_module(f"resnet.experiments.{name}")
    return module


def paragraph(experiment: Experiment, word: str) -> str:
    """Return the docstring's paragraph that begins with ``word`` and a colon, as one line, without the word."""
    found = re.search(rf"^{word}: (.*?)(?:\n\n|\Z)", experiment.__doc__ or "", re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"expected a paragraph that begins with {word!r} in the docstring of {experiment}")
    return " ".join(found[1].split())


def caveat(experiment: Experiment) -> str:
    """Return the docstring's caveat, "" if there is none."""
    return paragraph(experiment, "Caveat") if "\nCaveat: " in (experiment.__doc__ or "") else ""


def run(name: str, preset: str, lab: Lab, results: Path, figures: Path, say: Callable[[str], None]) -> Result:
    """Do what is missing of an experiment, then write its result file and its figures.

    Args:
        name: of the experiment.
        preset: "quick" or "full".
        lab: where.
        results: folder of the result file, ``NAME-PRESET.json``.
        figures: folder of the figures, ``NAME-PRESET.svg`` or ``.png``.
        say: takes lines for the user.

    Returns:
        the report, as it stands in the result file.

    Raises:
        MissingDataError: there is nothing to do without more data.
        ValueError, OSError, TrainingError: from the work itself.
    """
    experiment = load(name)
    settings = experiment.PRESETS[preset]
    cells, left_out = available(experiment.cells(settings, lab), lab.sources)
    for line in left_out:
        say(f"note: {line}")
    done = do(cells, lab.work / f"{name}-{preset}", lab.sources, say)
    report: Result = {
        "experiment": name,
        "preset": preset,
        "claim": paragraph(experiment, "Claim"),
        "criterion": paragraph(experiment, "Criterion"),
        "caveat": caveat(experiment),
        **experiment.summarize(settings, {cell: kept["result"] for cell, kept in done.items()}),
        "left_out": left_out,
        "settings": asdict(settings),
        "seconds": round(sum(kept["seconds"] for kept in done.values()), 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(choose_backend(lab.backend)) | {"threads": lab.threads or os.cpu_count()},
        "versions": {package: version(package) for package in PACKAGES},
        "cells": done,
    }
    results.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    written = [results / f"{name}-{preset}.json"]
    write_atomically(written[0], report_text(report).encode())
    report = _as_json(report)  # as everybody else will read it
    for part, figure in experiment.draw(report).items():
        written.append(save(figure, figures / "-".join(filter(None, (name, part, preset)))))
    say(f"\n{experiment.table(report)}\n\n{report['finding']}")
    verdict = "the criterion is met" if report["holds"] else "the criterion is not met"
    say(f"{verdict}, on the part that was done" if left_out else verdict)
    if report["caveat"]:
        say(f"caveat: {report['caveat']}")
    say("written: " + ", ".join(str(path) for path in written))
    return report


def report_text(report: Result) -> str:
    """Return a report as JSON, indented but for its cells: of these a line each, as they are long."""
    told = json.dumps({name: value for name, value in report.items() if name != "cells"}, indent=2)
    cells = ",\n".join(f"    {json.dumps(name)}: {json.dumps(cell)}" for name, cell in report["cells"].items())
    return f'{told[:-2]},\n  "cells": {{\n{cells}\n  }}\n}}\n'


def available(cells: Iterable[Cell], sources: Sources) -> tuple[list[Cell], list[str]]:
    """Return the cells whose data are here, and a sentence on each data set that is missing.

    Raises:
        MissingDataError: no cell is left.
    """
    cells = list(cells)
    here = {name: sources.has(name) for cell in cells for name in cell.needs}
    usable = [cell for cell in cells if all(here[name] for name in cell.needs)]
    advice = [ADVICE[name] for name, is_here in here.items() if not is_here]
    if not usable:
        raise MissingDataError("there are no data to work on. This needs " + "; and ".join(advice))
    return usable, [f"left out {len(cells) - len(usable)} of {len(cells)} cells; they need {line}" for line in advice]


def do(cells: list[Cell], folder: Path, sources: Sources, say: Callable[[str], None]) -> dict[str, Result]:
    """Do the cells that are not done yet; return the results of all with their seconds, by the cells' names.

    Tells after each how long it took and how long the rest will take, going by the costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {cell.name: kept for cell in cells if (kept := read(cell, folder, sources)) is not None}
    if done:
        say(f"{len(done)} of {len(cells)} cells are done already")
    left = sum(cell.cost for cell in cells if cell.name not in done)
    seconds = cost = 0.0
    for cell in cells:
        if cell.name in done:
            continue
        start = time.perf_counter()
        result = _as_json(cell.work())  # as it will be read back
        taken = time.perf_counter() - start
        done[cell.name] = {"result": result, "seconds": round(taken, 2)}
        write_json(place(cell, folder), {**identity(cell, sources), **done[cell.name]})
        seconds, cost, left = seconds + taken, cost + cell.cost, left - cell.cost
        remaining = f"; about {minutes(seconds / cost * left)} left" if left > 0 else ""
        say(f"{len(done)} of {len(cells)} cells: {cell.name} took {taken:.1f} s{remaining}")
    return {cell.name: done[cell.name] for cell in cells}


def identity(cell: Cell, sources: Sources) -> Result:
    """Return what a cell's result depends on: its settings, and where its data lie."""
    return {"settings": _as_json(cell.settings), "data": {name: sources.place(name) for name in cell.needs}}


def read(cell: Cell, folder: Path, sources: Sources) -> Result | None:
    """Return what is kept of a cell; None if it was not done or with other settings or data, or its file is damaged."""
    try:
        kept = json.loads(place(cell, folder).read_text())
        if {name: kept[name] for name in ("settings", "data")} == identity(cell, sources):
            return {"result": kept["result"], "seconds": kept["seconds"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def place(cell: Cell, folder: Path) -> Path:
    """Return the cell's file: its name as far as file systems like it, with a digest that keeps it unique."""
    readable = re.sub(r"[^\w.]+", "-", cell.name)[:80]
    return folder / f"{readable}-{hashlib.sha256(cell.name.encode()).hexdigest()[:8]}.json"


def state(name: str, preset: str, lab: Lab, results: Path) -> str:
    """Return how far an experiment is: "done 2026-11-24, took 12 min", "3 of 12 cells", "not begun", "needs --lfw"."""
    try:
        report = json.loads((results / f"{name}-{preset}.json").read_text())
        part = " in part" if report["left_out"] else ""
        return f"done{part} {report['date'][:10]}, took {minutes(report['seconds'])}"
    except (OSError, ValueError, KeyError):
        pass
    experiment = load(name)
    cells = experiment.cells(experiment.PRESETS[preset], lab)
    missing = [f"--{need}" for need in SETS if any(need in cell.needs for cell in cells) and not lab.sources.has(need)]
    if missing and all(any(f"--{need}" in missing for need in cell.needs) for cell in cells):
        return "needs " + " and ".join(missing)
    kept = sum(read(cell, lab.work / f"{name}-{preset}", lab.sources) is not None for cell in cells)
    return f"{kept} of {len(cells)} cells" if kept else "not begun"


def minutes(seconds: float) -> str:
    """Return e.g. "20 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(values: Iterable[float], digits: int = 1) -> str:
    """Return shares as "98.5 % (97.0 – 99.5)": mean and, of several, the least and the most."""
    shown = [100 * value for value in values]
    mean = f"{sum(shown) / len(shown):.{digits}f} %"
    return mean if len(shown) == 1 else f"{mean} ({min(shown):.{digits}f} – {max(shown):.{digits}f})"


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
