"""The public API: what may be imported by name, documented, and as it was."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from write_api import FILE, describe

import nn
import resnet

ROOT = Path(__file__).parent.parent
PUBLIC = [(package, name) for package in (nn, resnet) for name in package.__all__]


def test_the_public_names_and_their_arguments_are_as_they_were():
    assert describe() == FILE.read_text(), "tell of it in CHANGELOG.md, then run: python tests/write_api.py"


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{p.__name__}.{name}" for p, name in PUBLIC])
def test_every_public_name_is_documented(package, name):
    thing = getattr(package, name)
    if not callable(thing):
        home = inspect.getsource(importlib.import_module(f"resnet.{resnet_home(name)}"))
        assert re.search(rf"^{name}\b", home, re.MULTILINE)
        return
    assert inspect.getdoc(thing), name
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_") and inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{member}"


def resnet_home(name: str) -> str:
    return next((module for module, names in resnet._HOMES.items() if name in names), "models")


def test_every_module_is_documented_and_can_be_imported():
    names = [m.name for p in (nn, resnet) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    assert {"nn.conv", "resnet.data.masks", "resnet.experiments.lesion"} <= set(names)
    for name in names:
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__doc__, name


def test_names_that_are_not_public_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'resnet19'"):
        resnet.resnet19  # noqa: B018
    assert not hasattr(nn, "resnet18")
    assert set(resnet.__all__) < set(dir(resnet))


def test_importing_resnet_loads_nothing_else():
    seen = "import resnet, sys; print([m for m in ('numpy', 'matplotlib', 'resnet.models') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


COMMANDS = ("data.masks", "data.points", "evaluation", "experiments", "export", "models", "predict")


@pytest.mark.parametrize("module", [f"resnet.{name}" for name in COMMANDS])
def test_every_command_has_help_version_and_debug_and_is_imported_once(module):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout
    assert "--debug" in done.stdout
    assert "--version" in done.stdout


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == resnet.__version__
