"""Weights from elsewhere, to begin with: of an earlier run, or of torchvision.

A file fits if its names and shapes are those of the network, with two liberties that fine-tuning needs. The classifier
of other people is left out, and begins anew. The first kernels may be for colour and the pictures grey: a grey picture
is one whose three colours are equal, w_r·x + w_g·x + w_b·x = (w_r + w_g + w_b)·x, so their sum does the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nn.checkpoint import load_weights
from resnet.models import ResNet

FIRST = "conv1.weight"
HEAD = ("fc.weight", "fc.bias")


def load_pretrained(model: ResNet, path: str | Path, people: Sequence[str]) -> list[str]:
    """Copy the weights and running statistics of a safetensors file into a network, as far as they are meant for it.

    Args:
        model: on any device; what the file does not have stays as it is.
        path: of a file in torchvision's names and layouts.
        people: whom the network shall recognise. The file's classifier is taken if it is for the same, in this order.

    Returns:
        a sentence on each liberty that was taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another network; the message lists what is missing, unexpected or of another
            shape, and the network is as it was.
    """
    state, metadata = load_weights(path)
    own, notes = model.state_dict(), []
    if FIRST in state and state[FIRST].ndim == 4 and state[FIRST].shape[1] != model.in_channels:
        notes.append(f"{path}: {FIRST} is for {state[FIRST].shape[1]} channels, made fit for {model.in_channels}")
        state[FIRST] = fit_channels(state[FIRST], model.in_channels)
    if not _same_people(metadata, people) or any(
        name in state and state[name].shape != own[name].shape for name in HEAD
    ):
        notes.append(f"{path}: its classifier is for others, ours begins anew")
        state |= {name: own[name] for name in HEAD}
    try:
        model.load_state_dict(state)
    except ValueError as error:
        arch = metadata.get("arch")
        of = f" is of a network {arch}, and" if arch else ""
        raise ValueError(f"{path}{of} does not fit; --arch and --stem choose the network. {error}") from error
    return notes


def fit_channels(kernels: NDArray[np.floating], channels: int) -> NDArray[np.floating]:
    """Make kernels (F, C, KH, KW) for C channels ones for another number of channels, (F, channels, KH, KW).

    Their sum answers to a grey picture as they do to the same picture in C equal colours; spread over the new channels
    it does the same the other way round.
    """
    summed = kernels.sum(axis=1, keepdims=True)  # (F, C, KH, KW) -> (F, 1, KH, KW)
    return np.repeat(summed / channels, channels, axis=1)  # -> (F, channels, KH, KW)


def _same_people(metadata: dict[str, str], people: Sequence[str]) -> bool:
    """Whether a file's classifier is for these people."""
    try:
        return list(people) == json.loads(metadata.get("people", "null"))
    except (ValueError, RecursionError):
        return False
