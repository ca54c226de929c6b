"""The trainings that experiments ask for: faces of ORL and LFW, pictures of CIFAR-10, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from resnet.data import Faces
from resnet.data.augment import Augmentation
from resnet.data.batches import masked_copies
from resnet.data.faces import reframe
from resnet.data.masks import TEMPLATES
from resnet.experiments.harness import Lab
from resnet.training import Training, assemble, split_faces

TEST_SHARES = {"orl": 0.5, "lfw": 0.25}  # 5 of 10 pictures a person; a quarter, as most who test on LFW's 62 people
REPEATS = {"orl": 4, "lfw": 1}  # ORL has few pictures, so each comes several times an epoch, changed at random
LFW_SIZE = 160  # pixels, before it is cropped
CIFAR_AUGMENTATION = Augmentation(shift=0.125, scale=0.0, turn=0.0, flip=True, brightness=0.0)
"""He et al. 2015, section 4.2: moved by up to 4 of 32 pixels and mirrored. Theirs move by whole pixels and pad with
zeros, ours by fractions and repeat the edge."""


class Task(NamedTuple):
    """A training and what to test its network on."""

    training: Training
    tests: dict[str, Faces]


def recognise(lab: Lab, data: str, *, size: int, seed: int, **settings: Any) -> Task:
    """Return a training that recognises people; the seed decides the split, too.

    Networks of one seed and architecture start from the same weights, those drawn for ReLU, whatever their activation:
    so they differ in nothing else.

    Args:
        lab: where.
        data: "orl" or "lfw".
        size: side of the pictures in pixels.
        seed: of split, initial weights, batches and masks.
        **settings: of :class:`resnet.config.TrainingConfig`.

    Returns:
        the training, and the test photographs "clean" and "masked".

    Raises:
        ValueError: as :func:`resnet.data.load_faces` and :class:`resnet.config.TrainingConfig`.
    """
    config = lab.config(
        data=data, test_share=TEST_SHARES[data], repeats=REPEATS[data], image_size=size, seed=seed, **settings
    )
    train, test = split_faces(people(lab, data, size), config)
    training = assemble(config, train, {})
    relu = assemble(replace(config, activation="relu"), train, {})
    training.model.load_state_dict(relu.model.state_dict())
    return Task(training, {"clean": test, "masked": masked_copies(test, seed)})


def people(lab: Lab, data: str, size: int) -> Faces:
    """Return the faces of "orl" or "lfw" with sides of ``size``; LFW's are cropped to fill the picture as ORL's do."""
    if data == "lfw":
        return reframe(lab.sources.faces("lfw", LFW_SIZE), TEMPLATES["orl"], size)
    return lab.sources.faces(data, size)


def classify(lab: Lab, arch: str, *, train_pictures: int, test_pictures: int, seed: int, **settings: Any) -> Task:
    """Return a training on a part of CIFAR-10, tested after every epoch on a part of its test set.

    Args:
        lab: where.
        arch: one of He et al.'s CIFAR nets.
        train_pictures, test_pictures: how many, the same number of each class.
        seed: of initial weights and batches; the pictures are the same for all seeds.
        **settings: of :class:`resnet.config.TrainingConfig`.

    Returns:
        the training, and the test pictures "clean".

    Raises:
        ValueError: as :func:`resnet.data.cifar10.load_cifar10` and :class:`resnet.config.TrainingConfig`; or fewer
            pictures are there than asked for.
    """
    train, test = lab.sources.cifar10()
    config = lab.config(arch=arch, stem="small", image_size=32, mask_probability=0.0, repeats=1, seed=seed, **settings)
    tests = {"clean": part(test, test_pictures)}
    return Task(assemble(config, part(train, train_pictures), tests, CIFAR_AUGMENTATION), tests)


def part(pictures: Faces, count: int) -> Faces:
    """Return the first ``count`` pictures, the same number of each class.

    Raises:
        ValueError: there are not so many.
    """
    each = count // len(pictures.people)
    chosen = [np.flatnonzero(pictures.labels == label)[:each] for label in range(len(pictures.people))]
    if any(len(indices) < each for indices in chosen):
        raise ValueError(
            f"expected at least {each} pictures of each of {len(pictures.people)} classes, got "
            f"{min(map(len, chosen))} of one: the data set is not complete"
        )
    return pictures.take(np.sort(np.concatenate(chosen)))
