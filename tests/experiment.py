"""One experiment with a network, for ours and PyTorch's alike: gradients, running statistics, a short training.

PyTorch answers live (``test_torch.py``) or from files that it once wrote (``test_golden.py``). What they start from is
drawn with ``Generator.random`` and ``Generator.integers`` and scaled by plain products, so that it comes out bit for
bit alike on any machine. Letters: N pictures, H × W places, C channels, K classes.

ReLU, LeakyReLU and max pooling have kinks. Where rounding puts the two networks on different sides of one, both are
right and yet their gradients differ by far more than rounding: in float32 about once in a million numbers, which is
about once a step of ResNet18. Such a batch is replaced by another one, rather than the tolerance widened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nn import SGD, MaxPool2d, SoftmaxCrossEntropy
from resnet.blocks import BasicBlock, Bottleneck, PlainBasicBlock, PlainBottleneck
from resnet.models import ResNet, build, make_model

Array = NDArray[Any]

STEPS = 5
STATISTICS_AFTER = 3
ATTEMPTS = 30
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}

#: Networks of the family small enough for every one of their numbers to fit into a golden file.
SMALL = {
    "small basic": (BasicBlock, (1, 2, 1, 1), (3, 5, 6, 8), "B"),
    "small bottleneck": (Bottleneck, (1, 1, 2, 1), (2, 3, 4, 5), "B"),
    "small option A": (BasicBlock, (1, 2, 1), (4, 6, 9), "A"),
    "small plain": (PlainBasicBlock, (1, 2, 1), (4, 6, 9), "B"),
    "small plain bottleneck": (PlainBottleneck, (1, 1, 1), (2, 3, 4), "B"),
}


@dataclass(frozen=True)
class Settings:
    """A network, the pictures it sees, and how it is trained.

    Attributes:
        network: a name of ``resnet.models.MODELS`` or of ``SMALL``.
        pictures: N, H, W; large enough for maps of 2 × 2 before the average. On 1 × 1 maps batch norm sees N values a
            channel, and where these lie close together it magnifies rounding beyond any tolerance.
        lr: of SGD. In a training that diverges every difference grows, rounding too.
    """

    network: str
    pictures: tuple[int, int, int]
    channels: int = 3
    classes: int = 7
    activation: str = "leaky_relu"
    negative_slope: float = 0.01
    stem: str = "imagenet"
    algorithm: str = "auto"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = True
    label_smoothing: float = 0.1
    seed: int = 0

    def model(self) -> ResNet:
        """Our network; its weights are about to be replaced."""
        options: dict[str, Any] = {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "stem": self.stem,
            "algorithm": self.algorithm,
            "rng": np.random.default_rng(self.seed),
        }
        if self.network not in SMALL:
            return make_model(self.network, self.classes, self.channels, **options)
        block, depths, widths, option = SMALL[self.network]
        return build(block, depths, widths, self.classes, self.channels, option=option, **options)

    def start(self, like: Mapping[str, Array]) -> dict[str, Array]:
        """Weights for the names and shapes of ``like``; no scale is 1 and no shift is 0, lest one be forgotten."""
        rng = np.random.default_rng(self.seed)
        return {name: _start_value(name, array, rng) for name, array in like.items()}

    def batches(self) -> Iterator[tuple[Array, Array]]:
        """Batches without end: pictures (N, H, W, C) of mean 0 and variance 1, and random labels (N,)."""
        rng = np.random.default_rng((self.seed, 1))
        shape = (*self.pictures, self.channels)
        while True:
            yield _even(shape, 3**0.5, rng), rng.integers(0, self.classes, shape[0])


def _even(shape: tuple[int, ...], bound: float, rng: np.random.Generator) -> Array:
    """Numbers spread evenly over ±bound; rounded to float32, so that float32 and float64 start equal."""
    return ((2 * rng.random(shape) - 1) * bound).astype(np.float32)


def _start_value(name: str, array: Array, rng: np.random.Generator) -> Array:
    if name.endswith("num_batches_tracked"):
        return np.asarray(11, array.dtype)
    if array.ndim == 4:  # (F, C, KH, KW): variance 2 / fan-in, which keeps the size of activations
        return _even(array.shape, (6 / np.prod(array.shape[1:])) ** 0.5, rng)
    if array.ndim == 2:  # (F, C)
        return _even(array.shape, array.shape[1] ** -0.5, rng)
    if name.endswith(("running_var", "weight")):
        return 1 + _even(array.shape, 0.5, rng)
    return _even(array.shape, 0.2, rng)


def fingerprint(settings: Settings) -> str:
    """A checksum of everything the experiment starts from."""
    digest = hashlib.sha256()
    for name, array in settings.start(settings.model().state_dict()).items():
        digest.update(name.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    for pictures, labels in islice(settings.batches(), STEPS + 1):
        digest.update(pictures.astype("<f4").tobytes() + labels.astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Answer:
    """What one forward and one backward of loss(network(pictures), labels) gave."""

    loss: Array  # ()
    logits: Array  # (N, K)
    dpictures: Array  # (N, H, W, C)


class Network(Protocol):
    """What the experiment asks of an implementation."""

    def answer(self, pictures: Array, labels: Array, training: bool) -> Answer:
        """Run forward and backward."""

    def grad_dict(self) -> dict[str, Array]:
        """Return the gradients of the last answer, in torchvision's names and layouts."""

    def step(self) -> None:
        """Let SGD take a step with the gradients of the last answer."""

    def state_dict(self) -> dict[str, Array]:
        """Return weights and running statistics."""

    def pieces(self) -> dict[str, Array]:
        """Return where each activation was positive, which place each max-pooling window chose, in the last answer."""


class OurNetwork:
    """Our side of the comparison, in ``dtype``."""

    def __init__(self, settings: Settings, dtype: str) -> None:
        self.model = settings.model().astype(dtype)
        self.loss = SoftmaxCrossEntropy(settings.label_smoothing)
        self.optimizer = SGD(
            self.model.named_parameters(),
            settings.momentum,
            settings.nesterov,
            settings.weight_decay,
            settings.decay_all,
        )
        self.lr, self.dtype = settings.lr, dtype
        self.model.load_state_dict(settings.start(self.state_dict()), strict=True)
        self._pieces: dict[str, Array] = {}

    def answer(self, pictures: Array, labels: Array, training: bool) -> Answer:
        (self.model.train if training else self.model.eval)()
        self.model.zero_grad()
        logits = self.model(pictures.astype(self.dtype))
        self._pieces = _pieces(self.model)
        loss = self.loss(logits, labels)
        dpictures = self.model.backward(self.loss.backward())
        return Answer(loss, logits, dpictures)

    def grad_dict(self) -> dict[str, Array]:
        return self.model.grad_dict()

    def step(self) -> None:
        self.optimizer.step(self.lr)

    def state_dict(self) -> dict[str, Array]:
        return self.model.state_dict()

    def pieces(self) -> dict[str, Array]:
        return self._pieces


def _pieces(model: ResNet) -> dict[str, Array]:
    found = {name: (module, module.pieces()) for name, module in model.named_modules()}
    return {
        name: _place(module, piece) if isinstance(module, MaxPool2d) else piece
        for name, (module, piece) in found.items()
        if piece is not None
    }


def _place(pool: MaxPool2d, tap: Array) -> Array:
    """Turn the number of a tap (N, OH, OW, C) into the place of the picture it fell on, row · W + column."""
    (_, kw), (sh, sw), (ph, pw) = pool.kernel_size, pool.stride, pool.padding
    width = pool.kept().x_shape[2]
    rows = np.arange(tap.shape[1])[:, None, None] * sh + tap // kw - ph  # (OH, 1, 1) + (N, OH, OW, C)
    columns = np.arange(tap.shape[2])[:, None] * sw + tap % kw - pw  # (OW, 1) + (N, OH, OW, C)
    return rows * width + columns


def run_experiment(networks: Sequence[Network], settings: Settings) -> list[dict[str, Array]]:
    """Ask everything of each network: eval mode, train mode, running statistics after 3 steps, losses of 5 steps.

    Returns:
        the results of each network by name, e.g. "train: gradient of conv1.weight".
    """
    batches = settings.batches()
    answers = _answers(networks, batches, training=False)
    results = [_named("eval", *pair) for pair in zip(answers, networks, strict=True)]
    losses: list[list[Array]] = [[] for _ in networks]
    for step in range(1, STEPS + 1):
        answers = _answers(networks, batches, training=True)
        for network, result, curve, answer in zip(networks, results, losses, answers, strict=True):
            if step == 1:
                result |= _named("train", answer, network)
            curve.append(answer.loss)
            network.step()
            if step == STATISTICS_AFTER:
                result |= _after(step, _statistics(network.state_dict()))
    for network, result, curve in zip(networks, results, losses, strict=True):
        result |= {"loss curve": np.stack(curve)} | _after(STEPS, network.state_dict())
    return results


def _answers(networks: Sequence[Network], batches: Iterator[tuple[Array, Array]], training: bool) -> list[Answer]:
    """Return each network's answer to the next batch; to the one after it if a kink lies between the networks."""
    for pictures, labels in islice(batches, ATTEMPTS):
        answers = [network.answer(pictures, labels, training) for network in networks]
        if not _kink_between(networks, answers):  # if so, all running statistics have seen the batch, and go on
            break
    return answers


def _kink_between(networks: Sequence[Network], answers: list[Answer]) -> bool:
    """Whether networks that agree in their logits are on different linear pieces; plain disagreement is no excuse."""
    first, *others = networks
    agree = all(relative_error(answer.logits, answers[0].logits) < TOLERANCE["float32"] for answer in answers)
    pieces = first.pieces()
    return agree and any(
        not np.array_equal(piece, pieces[name]) for other in others for name, piece in other.pieces().items()
    )


def _after(steps: int, state: Mapping[str, Array]) -> dict[str, Array]:
    return {f"after {steps} steps: {name}": array for name, array in state.items()}


def _named(mode: str, answer: Answer, network: Network) -> dict[str, Array]:
    gradients = {f"gradient of {name}": array for name, array in network.grad_dict().items()}
    whole = {"loss": answer.loss, "logits": answer.logits, "gradient of the pictures": answer.dpictures}
    return {f"{mode}: {name}": array for name, array in (whole | gradients).items()}


def _statistics(state: Mapping[str, Array]) -> dict[str, Array]:
    endings = ("running_mean", "running_var", "num_batches_tracked")
    return {name: array for name, array in state.items() if name.endswith(endings)}


def relative_error(got: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected number of the tensor.

    Not relative to each number by itself: one that is the small difference of large terms carries their rounding.
    """
    if got.shape != expected.shape:
        return float("inf")
    difference = np.abs(got.astype(np.float64) - expected).max()
    largest = max(float(np.abs(expected).max()), np.finfo(np.float64).tiny)
    return float(difference / largest)


def assert_agree(got: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> None:
    """Fail with a line for every tensor that only one side has, or that is off by more than ``tolerance``."""
    problems = sorted(f"only one side has {name}" for name in got.keys() ^ expected.keys())
    errors = {name: relative_error(got[name], array) for name, array in expected.items() if name in got}
    problems += [f"{name}: off by {error:.1e}" for name, error in errors.items() if not error <= tolerance]
    assert not problems, f"{len(problems)} of {len(expected)} results differ:\n  " + "\n  ".join(problems)
