"""The figures of the book, each drawn by a function in a module of this folder.

A module names its figures in ``FIGURES``: file name without ending -> function that returns the figure. All of them are
drawn anew whenever the book is built, into ``docs/figures/book``, where the Markdown finds them; they are committed, so
that the pages are whole without a build, too. ``python -m workshop.drawings`` from ``docs`` draws them by hand.

Figures are drawn dark on white; on a dark page a style sheet turns the lightness of line drawings (SVG) round.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from resnet.experiments.figures import save

FOLDER = Path(__file__).parents[2] / "figures" / "book"


def drawings() -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield (name, function) for every figure of the book."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")):
        yield from importlib.import_module(f"{__name__}.{module}").FIGURES.items()


def draw_all(folder: Path = FOLDER) -> list[Path]:
    """Draw every figure and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [save(draw(), folder / name) for name, draw in drawings()]


def setup(app: Any) -> dict[str, Any]:
    """Let the build of the book draw all figures before it reads a page."""
    app.connect("builder-inited", lambda _: draw_all())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
