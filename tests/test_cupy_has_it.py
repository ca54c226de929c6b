"""Every array function that the project calls exists in CuPy. Needs CuPy's wheel, but neither driver nor GPU."""

from __future__ import annotations

import ast
import inspect
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
MODULES = {"xp", "self.xp", "cupy", "array_module"}  # what an array module is called in the source
FILES = sorted(path for folder in ("nn", "resnet", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def calls() -> dict[str, set[str]]:
    """Return what is looked up in an array module, e.g. "cuda.Event", with the keywords that calls give it."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        tree = ast.parse(path.read_text())
        keywords = {
            id(node.func): {keyword.arg for keyword in node.keywords if keyword.arg}
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                start, names = node.value, [node.attr]
                while isinstance(start, ast.Attribute) and ast.unparse(start) not in MODULES:
                    start, names = start.value, [start.attr, *names]
                if ast.unparse(start).split("(")[0] in MODULES and not names[-1].startswith("__"):
                    found.setdefault(".".join(names), set()).update(keywords.get(id(node), set()))
    return found


def methods() -> set[str]:
    """Return the names of methods that the layers call and that NumPy's arrays have."""
    tree = [node for path in (ROOT / "nn").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    called = {node.func.attr for node in tree if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    return {name for name in called if hasattr(np.ndarray, name)}


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", exc_type=ImportError, reason="CuPy is not installed")


def test_the_search_finds_what_the_project_calls():
    found = calls()
    assert {"matmul", "empty", "cuda.Event", "lib.stride_tricks.sliding_window_view", "cuda.runtime.memGetInfo"} <= set(
        found
    )
    assert "axis" in found["lib.stride_tricks.sliding_window_view"]
    assert {"reshape", "sum", "astype"} <= methods()


def test_every_function_exists(cupy):
    missing = []
    for name in calls():
        try:
            reduce(getattr, name.split("."), cupy)
        except AttributeError:
            missing.append(name)
    assert missing == []


def test_every_keyword_exists(cupy):
    unknown = []
    for name, keywords in calls().items():
        try:
            accepted = inspect.signature(reduce(getattr, name.split("."), cupy)).parameters
        except (TypeError, ValueError):  # compiled, without a signature
            continue
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        unknown += [f"{name}({keyword}=)" for keyword in keywords if keyword not in accepted and not takes_all]
    assert unknown == []


def test_every_method_exists(cupy):
    assert [name for name in methods() if not hasattr(cupy.ndarray, name)] == []
