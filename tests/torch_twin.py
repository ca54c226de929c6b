"""PyTorch's networks behind our questions: an interpreter between the two worlds.

Nothing here comes from our own code: not the shapes, not the formulas, not the gradients. Letters: N pictures, H × W
places, C channels. PyTorch's pictures are (N, C, H, W), ours (N, H, W, C).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from experiment import Answer, Settings
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.torch_networks import NETWORKS, ResNet, Style

Array = NDArray[Any]


class TorchNetwork:
    """A PyTorch network that speaks our language: pictures (N, H, W, C), NumPy arrays in and out.

    Answers the questions of ``experiment.Network``; gradients are autograd's, the steps those of ``torch.optim``.
    """

    def __init__(self, settings: Settings, dtype: str) -> None:
        block, depths, widths, option = NETWORKS[settings.network]
        style = Style(settings.activation, settings.negative_slope, option)
        self.model = ResNet(block, depths, widths, settings.classes, settings.channels, settings.stem, style)
        self.dtype = getattr(torch, dtype)
        self.model.to(self.dtype)
        start = settings.start(self.state_dict())
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in start.items()}, strict=True)
        self.label_smoothing = settings.label_smoothing
        self.optimizer = make_optimizer(self.model, settings)
        self.seen: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ReLU | nn.LeakyReLU | nn.MaxPool2d):
                module.register_forward_hook(partial(self._note, name))

    def _note(self, name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.seen[name] = inputs[0].detach()

    def answer(self, pictures: Array, labels: Array, training: bool) -> Answer:
        self.model.train(training)
        self.model.zero_grad()
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        x = x.to(self.dtype).contiguous().requires_grad_()
        logits = self.model(x)
        loss = functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=self.label_smoothing)
        loss.backward()
        dpictures = x.grad.permute(0, 2, 3, 1).numpy()  # (N, C, H, W) -> (N, H, W, C)
        return Answer(loss.detach().numpy(), logits.detach().numpy(), dpictures)

    def grad_dict(self) -> dict[str, Array]:
        return {name: parameter.grad.numpy().copy() for name, parameter in self.model.named_parameters()}

    def step(self) -> None:
        self.optimizer.step()

    def state_dict(self) -> dict[str, Array]:
        return {name: tensor.numpy().copy() for name, tensor in self.model.state_dict().items()}

    def pieces(self) -> dict[str, Array]:
        """Where each activation was positive and which place each max-pooling window chose, in the last forward."""
        return {name: self._piece(self.model.get_submodule(name), x) for name, x in self.seen.items()}

    def _piece(self, module: nn.Module, x: Tensor) -> Array:
        if not isinstance(module, nn.MaxPool2d):
            return (x > 0).permute(0, 2, 3, 1).numpy()  # (N, C, H, W) -> (N, H, W, C)
        _, place = functional.max_pool2d(x, 3, 2, 1, return_indices=True)  # row · W + column, (N, C, OH, OW)
        return place.permute(0, 2, 3, 1).numpy()  # (N, C, OH, OW) -> (N, OH, OW, C)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD; without ``decay_all`` only matrices and kernels decay, not biases and batch norm's parameters."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if settings.decay_all or p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if not settings.decay_all and p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.nesterov)
