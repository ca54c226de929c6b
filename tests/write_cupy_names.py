"""Write cupy_names.json, what CuPy offers: ``python tests/write_cupy_names.py`` where CuPy can be imported."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).parent / "cupy_names.json"

MODULES = ("cupy", "cupy.lib.stride_tricks", "cupy.linalg", "cupy.cuda", "cupy.cuda.runtime", "cupyx")


def parameters(value: Any) -> str | None:
    """Return a function's parameters, "a axis= * dtype=": = may be left out, behind * by keyword; None if unknown."""
    try:
        found = list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        return _documented(value)
    words: list[str] = []
    for p in found:
        if p.kind is p.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        words.append(stars + p.name + ("" if p.default is p.empty else "="))
    return " ".join(words)


def _documented(value: Any) -> str | None:
    """Read the parameters of a compiled method from the first line of its docstring, where Cython puts them."""
    head, bracket, rest = (getattr(value, "__doc__", None) or "").partition("\n")[0].partition("(")
    if not bracket or not inspect.isroutine(value) or not head.startswith("_ndarray_base."):
        return None
    # "_ndarray_base b, axis=None": types and default values are left out.
    words = [word.partition("=") for word in rest.rpartition(")")[0].split(",")]
    return " ".join(name.split()[-1] + equals for name, equals, _ in words)


def described(owner: Any, ufuncs: tuple[type, ...]) -> dict[str, str | None]:
    """Return the public names of a module or class: a function's parameters, "ufunc", or None for all else."""
    values = {name: getattr(owner, name) for name in dir(owner) if not name.startswith("_")}
    return {
        name: "ufunc" if isinstance(value, ufuncs) else parameters(value) if inspect.isroutine(value) else None
        for name, value in values.items()
        if name != "annotations" and not (isinstance(value, ModuleType) and not value.__name__.startswith("cupy"))
    }


def names(cupy: ModuleType) -> dict[str, Any]:
    """Return what the file says of an imported CuPy."""
    ufuncs = (cupy.ufunc, type(cupy.matmul))
    modules = {name: described(importlib.import_module(name), ufuncs) for name in MODULES}
    return {"version": cupy.__version__, "ndarray": described(cupy.ndarray, ufuncs), **modules}


if __name__ == "__main__":
    FILE.write_text(json.dumps(names(importlib.import_module("cupy")), indent=0, sort_keys=True) + "\n")
