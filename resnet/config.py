"""What a training run can be told: one dataclass, from which the command line and ``config.json`` are made."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, get_type_hints

from nn.conv import ALGORITHMS
from nn.precision import PRECISIONS
from nn.schedule import SCHEDULES
from resnet.blocks import ACTIVATIONS
from resnet.data import DATASETS
from resnet.data.masks import TEMPLATES
from resnet.models import MODELS, STEMS


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
        "faces to learn: the ORL database, Labeled Faces in the Wild, or any folder with one folder a person",
        DATASETS,
    )
    data_dir: str | None = option(None, "folder of the pictures; only orl has its own, the installed carrier package")
    template: str | None = option(
        None, "where masks sit on aligned faces; by default orl or lfw for those sets, else centred", TEMPLATES
    )
    bad_pictures: str = option("stop", "what to do about pictures that cannot be read", ("stop", "skip"))
    test_share: float = option(0.5, "share of each person's photographs kept for testing", least=0.05, most=0.95)
    arch: str = option("resnet18", "network: " + ", ".join(MODELS), MODELS)
    stem: str = option("imagenet", "first layers: 7x7 with pooling, or a small 3x3 for small pictures", STEMS)
    activation: str = option("leaky_relu", "activation function", ACTIVATIONS)
    negative_slope: float = option(0.01, "slope of LeakyReLU below zero", least=0, most=1)
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
        for field in dataclasses.fields(self):
            value, rules = getattr(self, field.name), field.metadata
            name = "--" + field.name.replace("_", "-")
            if rules["choices"] is not None and value not in (*rules["choices"], field.default):
                raise ValueError(f"{name}: expected one of {', '.join(rules['choices'])}, got {value!r}")
            least, most = rules["least"], rules["most"]
            if (least is not None and not value >= least) or (most is not None and not value <= most):
                bounds = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name}: expected {bounds}, got {value}: {rules['help']}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting of :class:`TrainingConfig` to a parser."""
    types = get_type_hints(TrainingConfig)
    for field in dataclasses.fields(TrainingConfig):
        rules = field.metadata
        kind = types[field.name] if types[field.name] in (int, float) else str
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=field.default,
            choices=rules["choices"],
            metavar=None if rules["choices"] is not None and len(rules["choices"]) < 6 else field.name.upper(),
            help=rules["help"] + ("" if field.default is None else f" ({field.default})"),
        )


def config_from(options: argparse.Namespace) -> TrainingConfig:
    """Return the settings among parsed options.

    Raises:
        ValueError: as :class:`TrainingConfig`.
    """
    return TrainingConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainingConfig)})
