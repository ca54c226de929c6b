"""How many bytes a network keeps between forward and backward, for the pages that tell what a layer keeps and why."""

from __future__ import annotations

from functools import cache

import numpy as np

from resnet.models import resnet18, summarize


@cache
def _kept(batch: int) -> dict[str, int]:
    """Return the bytes that a small batch makes the layers of ResNet18 keep, summed by class."""
    model = resnet18(1000, rng=np.random.default_rng(0))
    kept: dict[str, int] = {}
    for record in summarize(model, 224, batch):
        kept[record.kind] = kept.get(record.kind, 0) + record.bytes_kept
    return kept


def kept_bytes(kind: str, batch: int = 32) -> int:
    """Return the bytes that all layers of a class keep in ResNet18 for ``batch`` colour pictures of 224 × 224.

    An array that two layers keep counts once, for the layer that keeps it first. Measured with one picture and with
    two; from there on every picture adds as much as the second did.
    """
    one, two = _kept(1)[kind], _kept(2)[kind]
    return one + (batch - 1) * (two - one)
