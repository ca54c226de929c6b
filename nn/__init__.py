"""What any network needs: layers with hand-written backward passes, on NumPy or CuPy.

Arrays are channels-last, (N, H, W, C); state dicts speak torchvision's names and layouts. See ``nn.module`` for the
contract of a layer and ``nn.reference`` for each layer in plain loops.

The names below are the public ones: they keep their meaning and their arguments from one minor version to the next, and
``CHANGELOG.md`` tells of each change. ``nn.gradcheck`` is public, too; it is a command as well, so it is imported by
its own name: ``from nn.gradcheck import gradcheck``.
"""

from nn.activation import LeakyReLU, ReLU
from nn.backend import BackendError, array_module, to_numpy
from nn.batchnorm import BatchNorm2d
from nn.checkpoint import load_weights, save_weights
from nn.conv import Conv2d
from nn.linear import Flatten, Linear
from nn.loss import SoftmaxCrossEntropy
from nn.module import Buffer, Identity, Module, Parameter, Sequential
from nn.optim import SGD, Adam
from nn.parallel import threads
from nn.pooling import GlobalAvgPool2d, MaxPool2d
from nn.residual import Add
from nn.schedule import make_schedule

__all__ = [
    "SGD",
    "Adam",
    "Add",
    "BackendError",
    "BatchNorm2d",
    "Buffer",
    "Conv2d",
    "Flatten",
    "GlobalAvgPool2d",
    "Identity",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "SoftmaxCrossEntropy",
    "array_module",
    "load_weights",
    "make_schedule",
    "save_weights",
    "threads",
    "to_numpy",
]
