"""Write what the public API looks like, name by name, to tests/golden/api.txt: ``python tests/write_api.py``.

``test_api.py`` compares. A line that changes there is a change that users must hear of: it belongs in CHANGELOG.md.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import nn
import resnet

FILE = Path(__file__).parent / "golden" / "api.txt"


def describe() -> str:
    """Return a line for each public name, and for each public method and attribute of the classes among them."""
    lines = [line for package in (nn, resnet) for name in package.__all__ for line in _lines(package, name)]
    return "\n".join(lines) + "\n"


def _lines(package: Any, name: str) -> Iterator[str]:
    thing, full = getattr(package, name), f"{package.__name__}.{name}"
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        yield f"{full}: {'exception' if callable(thing) else type(thing).__name__}"
        return
    yield f"{full}{inspect.signature(thing)}"
    for member, value in sorted(vars(thing).items()) if inspect.isclass(thing) else ():
        if not member.startswith("_") and inspect.isfunction(value):
            yield f"{full}.{member}{inspect.signature(value)}"
        elif not member.startswith("_") and isinstance(value, property):
            yield f"{full}.{member}"


if __name__ == "__main__":
    FILE.write_text(describe())
    print(f"written: {FILE}")
