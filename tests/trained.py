"""Files of networks as trainings leave them, but made in no time: random weights, the statistics of a trained network.

``torch_answers`` asks PyTorch what such a file says of a picture, from its path alone: neither reading nor resizing nor
normalising nor the network is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from small_networks import with_statistics

from nn.checkpoint import load_weights, save_weights
from resnet.models import make_model

MEAN, STD = (0.4, 0.5, 0.6), (0.25, 0.2, 0.3)


def write_network(
    path: Path,
    people: list[str],
    *,
    channels: int = 1,
    size: int = 16,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write resnet20 for pictures of ``size``², divisible by 4; its logits are about 0, with a spread of about 1.

    Facts in ``changes`` stand in its metadata in place of the true ones; where they are None, nothing does.
    """
    rng = np.random.default_rng(seed)
    model = with_statistics(make_model("resnet20", len(people), channels, stem="small", rng=rng), rng)
    model = model.astype(np.float32).eval()
    coarse = rng.integers(0, 256, (32, 4, 4, channels))
    pictures = np.kron(coarse, np.ones((1, size // 4, size // 4, 1))) / 255  # (32, 4, 4, C) -> (32, size, size, C)
    logits = model(((pictures - MEAN[:channels]) / STD[:channels]).astype(np.float32))  # (32, K)
    model.fc.weight.data /= logits.std(axis=0)  # (D, K) / (K,)
    model.fc.bias.data -= logits.mean(axis=0)
    model.fc.bias.data /= logits.std(axis=0)
    facts = {
        "arch": "resnet20",
        "stem": "small",
        "activation": "leaky_relu",
        "negative_slope": 0.01,
        "image_size": size,
        "channels": channels,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "people": people,
    }
    facts |= changes or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {name: json.dumps(value) for name, value in facts.items() if value is not None}
    save_weights(path, model.state_dict(), metadata)
    return path


def write_noise(path: Path, seed: int, size: tuple[int, int] = (20, 24), mode: str = "L") -> Path:
    """Write a picture of coarse noise, (width, height) ``size``."""
    rng = np.random.default_rng(seed)
    bands = 3 if mode == "RGB" else 1
    coarse = rng.integers(0, 256, (4, 4, bands), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse.squeeze()).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def write_gallery(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write so many pictures of each person."""
    for place, (person, count) in enumerate(counts.items()):
        (folder / person).mkdir(parents=True)
        for number in range(count):
            write_noise(folder / person / f"{number}.png", 1000 * seed + 100 * place + number)
    return folder


def torch_answers(path: Path, pictures: Sequence[Path]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits (N, K), and the embeddings (N, D) of pictures and mirror images, that PyTorch computes."""
    import torch

    from benchmarks.torch_networks import NETWORKS, ResNet, Style

    state, metadata = load_weights(path)
    facts = {name: json.loads(value) for name, value in metadata.items()}
    block, depths, widths, option = NETWORKS["resnet20"]
    style = Style(facts["activation"], facts["negative_slope"], option)
    model = ResNet(block, depths, widths, len(facts["people"]), facts["channels"], "small", style)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    model.eval()
    seen = []
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy()))
    x = torch.from_numpy(np.stack([_normalised(picture, facts) for picture in pictures]))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine the others spin
    with torch.no_grad():
        logits = model(x).numpy()
        model(torch.flip(x, [3]))
    torch.set_num_threads(before)
    return logits, (seen[0] + seen[1]) / 2


def _normalised(picture: Path, facts: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a picture as PyTorch wants it, (C, H, W)."""
    with Image.open(picture) as image:
        grey_or_colour = image.convert({1: "L", 3: "RGB"}[facts["channels"]])
        small = grey_or_colour.resize((facts["image_size"],) * 2, Image.Resampling.BILINEAR)
    x = np.asarray(small, np.float32).reshape(small.height, small.width, -1) / 255
    return ((x - np.array(facts["mean"])) / np.array(facts["std"])).transpose(2, 0, 1).astype(np.float32)
