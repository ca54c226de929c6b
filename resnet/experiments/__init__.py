"""The claims and figures of the papers, each put to the test by one command: ``python -m resnet.experiments``.

Each module states the claim and the criterion in its docstring, written before it was run. What all share:

    harness.py    cells of work done once and kept, result files, the plain sentence on what came out
    sources.py    which data sets are here, and how to get the others
    networks.py   a network trained once and kept for every experiment that asks for it, killed or not
    trainings.py  the trainings that several experiments ask for
    figures.py    the look of all figures
    drawing.py    networks drawn from the model object
"""

from __future__ import annotations

NAMES = (
    "architectures",
    "activation",
    "degradation",
    "lesion",
    "paths",
    "occlusion",
    "real_masks",
    "mask_detection",
)
"""The experiments, in the order of the papers."""
