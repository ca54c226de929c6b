"""Weights from elsewhere, to begin with: of an earlier run, or of torchvision.

A file fits if its names and shapes are those of the network, with two liberties that fine-tuning needs. The classifier
of other people is left out, and begins anew. The first kernels may be for colour and the pictures grey: a grey picture
is one whose three colours are equal, w_r·x + w_g·x + w_b·x = (w_r + w_g + w_b)·x, so their sum does the same.

The way back needs no code: a run's ``model.safetensors`` has torchvision's names and layouts, and PyTorch reads it by
``model.load_state_dict(safetensors.torch.load_file(path))``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn import ReLU
from nn.checkpoint import load_weights
from resnet.data.folders import shortened
from resnet.models import ResNet
from resnet.text import printable

FIRST = "conv1.weight"
HEAD = ("fc.weight", "fc.bias")


def load_pretrained(model: ResNet, path: str | Path, people: Sequence[str]) -> list[str]:
    """Copy the weights and running statistics of a safetensors file into a network, as far as they are meant for it.

    Args:
        model: on any device; a classifier that is not taken stays as it is.
        path: of a file in torchvision's names and layouts.
        people: whom the network shall recognise. The file's classifier is taken if it is for the same, in this order.

    Returns:
        a sentence on each liberty that was taken, and on what is likely to be a mistake.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, damaged, or of another network; the message lists what is missing,
            unexpected, of another shape or kind, or not finite, and the network is as it was.
    """
    state, metadata = load_weights(path)
    own, notes = model.state_dict(), []
    if FIRST in state and _differ_in_colour(state[FIRST], own[FIRST]):
        done = "summed for grey pictures" if model.in_channels == 1 else "spread over three colours"
        notes.append(f"{path}: the kernels of {FIRST} were {done}")
        state[FIRST] = fit_channels(state[FIRST].astype(own[FIRST].dtype), model.in_channels)
    if not _same_people(metadata, people):
        notes.append(f"{path}: its classifier is not said to be for these people in this order; ours begins anew")
        state |= {name: own[name] for name in HEAD}
    if "activation" not in metadata and not isinstance(model.relu, ReLU):
        notes.append(
            f"{path}: it does not say with which activation it learned; torchvision's networks did with ReLU, which "
            "--activation relu keeps"
        )
    try:
        model.load_state_dict(state)
    except ValueError as error:
        of = f" is of a network {printable(metadata['arch']):.50}, and" if "arch" in metadata else ""
        problems = "\n".join(shortened(str(error).split("\n")))
        raise ValueError(f"{path}{of} does not fit; --arch and --stem choose the network. {problems}") from error
    return notes


def fit_channels(kernels: NDArray[np.floating], channels: int) -> NDArray[np.floating]:
    """Make kernels (F, C, KH, KW) for C channels ones for another number of channels, (F, channels, KH, KW).

    Their sum answers to a grey picture as they do to the same picture in C equal colours; spread over the new channels
    it does the same the other way round.
    """
    summed = kernels.sum(axis=1, keepdims=True)  # (F, C, KH, KW) -> (F, 1, KH, KW)
    return np.repeat(summed / channels, channels, axis=1)  # -> (F, channels, KH, KW)


def _differ_in_colour(theirs: NDArray[Any], ours: NDArray[Any]) -> bool:
    """Whether kernels (F, C, KH, KW) differ in that some are for colour, the others for grey pictures, and no more."""
    if theirs.dtype.kind != "f" or theirs.ndim != 4:
        return False
    return {theirs.shape[1], ours.shape[1]} == {1, 3} and theirs[:, 0].shape == ours[:, 0].shape  # (F, KH, KW)


def _same_people(metadata: Mapping[str, str], people: Sequence[str]) -> bool:
    """Whether a file's classifier is for these people."""
    try:
        return list(people) == json.loads(metadata.get("people", "null"))
    except (ValueError, RecursionError):
        return False
