"""What a training run can be told: one dataclass, from which command line, TOML file and ``config.json`` are made."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nn.conv import ALGORITHMS
from nn.precision import PRECISIONS
from nn.schedule import SCHEDULES
from resnet.blocks import ACTIVATIONS
from resnet.data import DATASETS
from resnet.data.masks import TEMPLATES
from resnet.models import MODELS, STEMS

LARGEST_FILE = 2**14
"""Bytes of a TOML file. All settings together have 500, and for 2**15 of a.a.a.…a = 1 Python's reader takes seconds."""

LARGEST_NUMBER = 2**63
"""Whole numbers stay below it, so that they fit into arrays and divide into fractions."""


def option(default: Any, help: str, choices: Any = None, least: float | None = None, most: float | None = None) -> Any:
    """Return a dataclass field that knows how to present and check itself."""
    metadata = {"help": help, "choices": None if choices is None else tuple(choices), "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run. The names are those of the command line, with _ for -.

    Raises:
        ValueError: a setting out of its range; the message names it.
    """

    backend: str = option(
        "auto", "where to compute: cupy needs an NVIDIA GPU, auto takes one if it is usable", ("auto", "numpy", "cupy")
    )
    precision: str = option(
        "float32",
        "how exactly a GPU computes: tf32 and float16 use its tensor cores, float16 halves memory",
        PRECISIONS,
    )
    data: str = option(
        "orl",
        "faces to learn: the ORL database, Labeled Faces in the Wild, or any folder with one folder a person; of RMFRD "
        "it is learned whether a mask is worn",
        (*DATASETS, "rmfrd"),
    )
    data_dir: str | None = option(None, "folder of the pictures; only orl has its own, the installed carrier package")
    template: str | None = option(
        None, "where masks sit on aligned faces; by default orl or lfw for those sets, else centred", TEMPLATES
    )
    faces_box: str | None = option(
        None, "where the face is in every picture, to place masks: left,top,right,bottom as shares of width and height"
    )
    points: str | None = option(
        None, "CSV file of six facial points a picture, to place masks; python -m resnet.data.points DIR writes a draft"
    )
    bad_pictures: str = option("stop", "what to do about pictures that cannot be used", ("stop", "skip"))
    test_share: float = option(0.5, "share of each person's photographs kept for testing", least=0.05, most=0.95)
    arch: str = option("resnet18", "network: " + ", ".join(MODELS), MODELS)
    stem: str = option("imagenet", "first layers: 7x7 with pooling, or a small 3x3 for small pictures", STEMS)
    activation: str = option("leaky_relu", "activation function", ACTIVATIONS)
    negative_slope: float = option(0.01, "slope of LeakyReLU below zero", least=0, most=1)
    weights: str | None = option(
        None, "begin with the weights in this safetensors file, of a run or of torchvision; another head is left out"
    )
    image_size: int = option(64, "side of the square pictures the network sees, in pixels", least=8, most=1024)
    epochs: int = option(20, "how many epochs to train", least=1)
    repeats: int = option(
        4, "how often each training photograph comes in an epoch, changed at random each time", least=1
    )
    batch_size: int = option(32, "pictures a training step; batch norm needs at least 2", least=2)
    learning_rate: float = option(0.1, "learning rate; of a schedule that varies, the largest", least=0)
    schedule: str = option("one-cycle", "how the learning rate goes over the training", SCHEDULES)
    warm_up: int = option(0, "steps of a straight rise at the start", least=0)
    momentum: float = option(0.9, "momentum of SGD (Nesterov's form)", least=0, most=0.999)
    weight_decay: float = option(5e-4, "weight decay; biases and batch norm are exempt", least=0)
    label_smoothing: float = option(0.1, "share of the target spread evenly over all people", least=0, most=0.99)
    mask_probability: float = option(0.5, "chance that a training picture wears a drawn mask", least=0, most=1)
    algorithm: str = option("auto", "how 3x3 convolutions are computed; auto takes the faster for each", ALGORITHMS)
    threads: int = option(0, "cores to compute on, 0 for all", least=0)
    seed: int = option(0, "of split, initial weights, masks and augmentation", least=0)
    run_dir: str | None = option(None, "folder to write to; by default a new one under runs/")

    def __post_init__(self) -> None:
        types = get_type_hints(TrainingConfig)
        for field in dataclasses.fields(self):
            value, rules = getattr(self, field.name), field.metadata
            name = "--" + field.name.replace("_", "-")
            _check_type(name, value, types[field.name])
            if rules["choices"] is not None and value not in (*rules["choices"], field.default):
                raise ValueError(f"{name}: expected one of {', '.join(rules['choices'])}, got {_short(value)}")
            least, most = rules["least"], rules["most"]
            if (least is not None and not value >= least) or (most is not None and not value <= most):
                bounds = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name}: expected {bounds}, got {value}: {rules['help']}")


KINDS = {int: "a whole number", float: "a number", str: "a text", str | None: "a text"}


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Raise a ValueError if a setting, which may come from a file, has another type than its field."""
    allowed = int | float if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name}: expected {KINDS[kind]}, got {_short(value)}")
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        raise ValueError(f"{name}: expected {KINDS[kind]} below 2^63, got {_short(value)}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def _short(value: Any) -> str:
    """Say what was given, in few letters whatever it is."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.100}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting of :class:`TrainingConfig` to a parser; those not given leave no trace."""
    types = get_type_hints(TrainingConfig)
    for field in dataclasses.fields(TrainingConfig):
        rules = field.metadata
        kind = types[field.name] if types[field.name] in (int, float) else str
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=argparse.SUPPRESS,
            choices=rules["choices"],
            metavar=None if rules["choices"] is not None and len(rules["choices"]) < 6 else field.name.upper(),
            help=rules["help"] + ("" if field.default is None else f" ({field.default})"),
        )


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as options."""
    return {name: getattr(options, name) for name in _names() if hasattr(options, name)}


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML file: lines such as ``learning-rate = 0.05``, with the names of the options.

    Raises:
        OSError: the file cannot be read.
        ValueError: no TOML, or a setting that is not known; the message names it and the nearest that is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a TOML file of settings at {path}, found none")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: expected a TOML file of at most {LARGEST_FILE:,} bytes, got {path.stat().st_size:,}")
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # both TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is no TOML file of settings such as learning-rate = 0.05: {error}") from error
    settings = {name.replace("-", "_"): value for name, value in table.items()}
    types = get_type_hints(TrainingConfig)
    for name, value in settings.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else "; train.py --help lists all"
            shown = name.replace("_", "-") if name.isprintable() else repr(name)
            raise ValueError(f"{path}: there is no setting {shown:.100}{hint}")
        if types[name] is float and type(value) is int and abs(value) < LARGEST_NUMBER:
            settings[name] = float(value)
    return settings


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(TrainingConfig)]
