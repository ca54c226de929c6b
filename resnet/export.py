"""A trained network as an ONNX file, for any program that runs those: ``python -m resnet.export RUN model.onnx``.

The graph is put together by hand, module by module: a function a kind of module adds the nodes that compute the same,
under the names that our parts have (``layer1.0.conv1``). It takes pictures as they come from a decoder, resized to the
network's size: bytes, channels last. The normalisation is in the graph, the batch norms are folded into the
convolutions.

ONNX is channels first. Letters: N pictures, C channels, H × W places, F filters, K people, D features.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nn import Conv2d, Flatten, GlobalAvgPool2d, Identity, LeakyReLU, Linear, MaxPool2d, Module, ReLU, Sequential
from nn.checkpoint import write_atomically
from resnet import __version__
from resnet.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, PlainBottleneck
from resnet.command import end_well, make_parser, not_empty, whole_number
from resnet.data.batches import to_network_input
from resnet.inference import TrainedNetwork, load_network
from resnet.models import ResNet
from resnet.runfolder import WEIGHTS
from resnet.text import printable

INPUT, EMBEDDING, LOGITS = "pictures", "embedding", "logits"
OUTPUTS = {"flatten": EMBEDDING, "fc": LOGITS}  # of which parts the outputs are
OPSET = 13  # version of ONNX's operators; runtimes have it since 2020
OLDEST_OPSET = 11  # has all that the graph is made of
TOLERANCE = 1e-5  # of an output, relative to the largest
TO_THE_END = np.iinfo(np.int64).max  # where a slice ends that takes all


def to_onnx(network: TrainedNetwork, opset: int = OPSET) -> Any:
    """Translate a network.

    Args:
        network: on any device; it stays as it is.
        opset: version of ONNX's operators.

    Returns:
        an ``onnx.ModelProto`` that has passed ONNX's checker. Input: ``pictures``, uint8 (N, H, W, C), any N. Outputs:
        ``logits``, float32 (N, K), and ``embedding``, float32 (N, D), what the classifier looks at.

    Raises:
        ImportError: onnx is not installed.
        ValueError: a version of the operators that is too old or not known; a module of a kind that is not known.
    """
    onnx = _optional("onnx")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"expected --opset from {OLDEST_OPSET} to {newest}, the newest that onnx knows, got {opset}")
    fused = network.model.fuse().to("numpy")
    graph = Graph(onnx)
    x = add_normalisation(graph, network.mean, network.std)
    add_module(graph, fused, x, "")

    helper, kinds = onnx.helper, onnx.TensorProto
    size, channels = network.image_size, fused.in_channels
    features, people = fused.fc.weight.data.shape  # (D, K)
    pictures = helper.make_tensor_value_info(INPUT, kinds.UINT8, ["batch", size, size, channels])
    outputs = [
        helper.make_tensor_value_info(LOGITS, kinds.FLOAT, ["batch", people]),
        helper.make_tensor_value_info(EMBEDDING, kinds.FLOAT, ["batch", features]),
    ]
    operators = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, network.arch, [pictures], outputs, graph.numbers),
        opset_imports=operators,
        ir_version=helper.find_min_ir_version_for(operators),  # else the newest, which older runtimes refuse
        producer_name="masked-resnet",
        producer_version=__version__,
        doc_string=DOCUMENTATION.format(size=size, channels=channels, people=people, features=features),
    )
    helper.set_model_props(model, metadata(network))
    onnx.checker.check_model(model, full_check=True)
    return model


DOCUMENTATION = (
    "Recognises {people} people. Input: pictures, uint8 (batch, {size}, {size}, {channels}), values as a decoder gives "
    "them. Outputs: logits (batch, {people}), the largest is that of the person recognised, see metadata people; and "
    "embedding (batch, {features}), by whose angles two faces are compared, people never seen included: take the mean "
    "of those of a picture and of its mirror image. How pictures are to be resized is in metadata resize."
)


def metadata(network: TrainedNetwork) -> dict[str, str]:
    """Return what whoever uses the file must know; ``people`` is JSON, in the order of the logits."""
    size, channels = network.image_size, network.model.in_channels
    mode, colours = ("RGB", "red, green, blue") if network.colour else ("L", "grey")
    return {
        "people": json.dumps(network.people),
        "image_size": str(size),
        "channels": str(channels),
        "arch": network.arch,
        "version": __version__,
        "resize": (
            f"cut the face out as in the pictures the network learned from; {channels} channel(s), {colours}, 0 black "
            f"to 255 white; squash or stretch to {size}x{size} by linear interpolation that looks at every pixel, with "
            f"Pillow image.convert('{mode}').resize(({size}, {size}), Image.Resampling.BILINEAR)"
        ),
    }


class Graph:
    """The nodes and constant numbers of an ONNX graph that grows."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.numbers: list[Any] = []

    def add(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output, its own but for the outputs of the whole."""
        output = OUTPUTS.get(name, name)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add constant numbers; returns their name."""
        self.numbers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def weights(self, module: Module, name: str) -> list[str]:
        """Add a module's parameters, in torchvision's layouts, which are ONNX's; returns their names."""
        state = module.state_dict()
        return [self.constant(f"{name}.{key}", array.astype(np.float32)) for key, array in state.items()]


def add_normalisation(graph: Graph, mean: Iterable[float], std: Iterable[float]) -> str:
    """Bytes (N, H, W, C) -> (N, C, H, W), about 0: the arithmetic of `resnet.data.batches.to_network_input`."""
    mean, std = (np.reshape(list(values), (-1, 1, 1)) for values in (mean, std))  # (C, 1, 1)
    gain = graph.constant("normalise.gain", (1 / (255 * std)).astype(np.float32))
    offset = graph.constant("normalise.offset", (-mean / std).astype(np.float32))
    x = graph.add("Cast", "normalise.cast", INPUT, to=1)  # 1: float32
    x = graph.add("Transpose", "normalise.transpose", x, perm=[0, 3, 1, 2])  # (N, H, W, C) -> (N, C, H, W)
    x = graph.add("Mul", "normalise.scale", x, gain)  # (N, C, H, W) * (C, 1, 1)
    return graph.add("Add", "normalise.shift", x, offset)  # (N, C, H, W) + (C, 1, 1)


def add_module(graph: Graph, module: Module, x: str, name: str) -> str:
    """Add what a module computes.

    Args:
        graph: to add to.
        module: of a known kind; without batch norms, which :meth:`nn.Module.fuse` takes away.
        x: name of its input.
        name: of the module; "" for the whole network.

    Returns:
        the name of its output.

    Raises:
        ValueError: nobody has told how modules of this kind are written in ONNX.
    """
    kind = type(module)
    if kind not in KINDS:
        known = ", ".join(known.__name__ for known in KINDS)
        raise ValueError(f"{name}: a {kind.__name__} cannot be exported; add a function for it here. Known: {known}")
    return KINDS[kind](graph, module, x, name)


def add_parts(graph: Graph, module: Module, x: str, name: str, parts: Iterable[str]) -> str:
    """Add parts of a module, one after another."""
    for part in parts:
        x = add_module(graph, getattr(module, part), x, f"{name}.{part}" if name else part)
    return x


def add_all_parts(graph: Graph, module: Module, x: str, name: str) -> str:
    """Add the parts of a module that runs them in their order."""
    return add_parts(graph, module, x, name, [part for part, _ in module.children()])


def add_block(graph: Graph, block: Module, x: str, name: str) -> str:
    """Act(branch(x) + shortcut(x)); a plain block has no shortcut."""
    shortcuts = ("downsample", "add")
    *branch, activation = [part for part, _ in block.children() if part not in shortcuts]
    y = add_parts(graph, block, x, name, branch)
    if isinstance(block, BasicBlock | Bottleneck):
        shortcut = x if block.downsample is None else add_module(graph, block.downsample, x, f"{name}.downsample")
        y = graph.add("Add", f"{name}.add", y, shortcut)
    return add_parts(graph, block, y, name, [activation])


def add_conv(graph: Graph, conv: Conv2d, x: str, name: str) -> str:
    """(N, C, H, W) -> (N, F, OH, OW), kernels (F, C, KH, KW)."""
    weights = graph.weights(conv, name)
    kernel = conv.weight.data.shape[:2]  # of (KH, KW, C, F)
    return graph.add("Conv", name, x, *weights, kernel_shape=kernel, strides=conv.stride, pads=both_ends(conv.padding))


def add_relu(graph: Graph, relu: ReLU, x: str, name: str) -> str:
    """Any shape -> the same shape."""
    return graph.add("Relu", name, x)


def add_leaky_relu(graph: Graph, relu: LeakyReLU, x: str, name: str) -> str:
    """Any shape -> the same shape."""
    return graph.add("LeakyRelu", name, x, alpha=relu.negative_slope)


def add_max_pool(graph: Graph, pool: MaxPool2d, x: str, name: str) -> str:
    """(N, C, H, W) -> (N, C, OH, OW); ONNX too takes the frame for −∞."""
    pads = both_ends(pool.padding)
    return graph.add("MaxPool", name, x, kernel_shape=pool.kernel_size, strides=pool.stride, pads=pads)


def add_global_average(graph: Graph, pool: GlobalAvgPool2d, x: str, name: str) -> str:
    """(N, C, H, W) -> (N, C, 1, 1)."""
    return graph.add("GlobalAveragePool", name, x)


def add_flatten(graph: Graph, flatten: Flatten, x: str, name: str) -> str:
    """(N, C, 1, 1) -> (N, C); with more places than one the order would not be ours, which has channels last."""
    return graph.add("Flatten", name, x, axis=1)


def add_linear(graph: Graph, linear: Linear, x: str, name: str) -> str:
    """(N, D) -> (N, K), weight (K, D)."""
    return graph.add("Gemm", name, x, *graph.weights(linear, name), transB=1)


def add_pad_shortcut(graph: Graph, shortcut: PadShortcut, x: str, name: str) -> str:
    """Every so many places, then channels of zeros: (N, C, H, W) -> (N, C, OH, OW) -> (N, F, OH, OW)."""
    new = shortcut.out_channels - shortcut.in_channels
    settings = {
        "starts": [0, 0],
        "ends": [TO_THE_END] * 2,
        "axes": [2, 3],
        "steps": [shortcut.stride] * 2,
        "pads": [0, 0, 0, 0, 0, new, 0, 0],  # before N, C, H, W, then behind them
    }
    *where, pads = (graph.constant(f"{name}.{key}", np.array(numbers)) for key, numbers in settings.items())
    taken = graph.add("Slice", f"{name}.take", x, *where)
    return graph.add("Pad", name, taken, pads)


def add_nothing(graph: Graph, identity: Identity, x: str, name: str) -> str:
    """Hand on what comes."""
    return x


KINDS: Mapping[type[Module], Callable[[Graph, Any, str, str], str]] = {
    ResNet: add_all_parts,
    Sequential: add_all_parts,
    PlainBasicBlock: add_block,
    BasicBlock: add_block,
    PlainBottleneck: add_block,
    Bottleneck: add_block,
    Conv2d: add_conv,
    ReLU: add_relu,
    LeakyReLU: add_leaky_relu,
    MaxPool2d: add_max_pool,
    GlobalAvgPool2d: add_global_average,
    Flatten: add_flatten,
    Linear: add_linear,
    PadShortcut: add_pad_shortcut,
    Identity: add_nothing,
}


def both_ends(padding: tuple[int, int]) -> list[int]:
    """(PH, PW) as ONNX wants it: top, left, bottom, right."""
    return [*padding, *padding]


def run_onnx(model: bytes, pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Run an exported network in onnxruntime.

    Args:
        model: content of the ONNX file.
        pictures: uint8 (N, H, W, C).

    Returns:
        embeddings (N, D) and logits (N, K).

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it does not run the file.
    """
    runtime = _optional("onnxruntime")
    try:
        session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return session.run([EMBEDDING, LOGITS], {INPUT: pictures})
    except Exception as error:  # onnxruntime's errors have nothing in common but this
        raise ValueError(
            f"onnxruntime {runtime.__version__} does not run the file; if it is older, lower --opset: {error}"
        ) from error


def largest_difference(model: bytes, network: TrainedNetwork, batches: Iterable[int] = (1, 3)) -> float:
    """Compare an exported network in onnxruntime with ours, on random pictures.

    Args:
        model: content of the ONNX file.
        network: that it was made of.
        batches: numbers of pictures.

    Returns:
        the largest difference of an output, relative to the batch's largest output of that name; not a number if an
        output is none.

    Raises:
        ImportError, ValueError: as :func:`run_onnx`.
    """
    fused, rng, differences = network.model.fuse().to("numpy"), np.random.default_rng(0), []
    for n in batches:
        pictures = rng.integers(0, 256, (n, *[network.image_size] * 2, fused.in_channels), np.uint8)  # (N, H, W, C)
        embedding = fused.embed(to_network_input(pictures, network.mean, network.std))  # (N, D)
        for ours, theirs in zip((embedding, fused.fc(embedding)), run_onnx(model, pictures), strict=True):
            differences.append(np.abs(theirs - ours).max() / (np.abs(ours).max() or 1))
    return float(np.max(differences))


def export(run: str | Path, path: str | Path, opset: int = OPSET, *, overwrite: bool = False) -> list[str]:
    """Write a trained network to an ONNX file.

    Args:
        run: a run folder, or a file such as its ``best.safetensors``.
        path: file to write.
        opset: version of ONNX's operators.
        overwrite: whether an earlier file may be replaced.

    Returns:
        lines on what was written, and how closely onnxruntime agrees.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: there is no such run.
        FileExistsError: something is at ``path`` already.
        ValueError: the run cannot be used, or onnxruntime's outputs are not ours; nothing has been written then.
        OSError: the file cannot be written.
    """
    path = Path(path)
    _check_target(path, overwrite)
    network = load_network(run, "numpy")
    model = to_onnx(network, opset)
    content = model.SerializeToString()
    size, (features, people) = network.image_size, network.model.fc.weight.data.shape
    lines = [
        f"{network.arch}, opset {opset}: {INPUT} uint8 (batch, {size}, {size}, {network.model.in_channels}) -> "
        f"{LOGITS} float32 (batch, {people}), {EMBEDDING} float32 (batch, {features})",
        _compared(content, network),
        f"written: {printable(str(path))} ({len(content) / 1e6:.1f} MB)",
    ]
    try:
        write_atomically(path, content)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): choose another place, or make room") from error
    return lines


def _check_target(path: Path, overwrite: bool) -> None:
    """Raise an OSError if a file shall not or cannot be written to ``path``, before the work is done."""
    if path.is_dir():
        raise IsADirectoryError(f"expected an ONNX file to write, got the folder {path}: name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected a folder {path.parent} to write {path.name} to, found none: make it first")


def _compared(content: bytes, network: TrainedNetwork) -> str:
    """Return a line on how closely onnxruntime agrees; a ValueError if it does not."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "note: not compared with ours: onnxruntime is not installed (pip install -e '.[onnx]')"
    difference = largest_difference(content, network)
    if not difference <= TOLERANCE:  # nor is NaN
        raise ValueError(
            f"onnxruntime's outputs differ from ours by {difference:.1e} of the largest, expected at most "
            f"{TOLERANCE:g}: nothing was written. Please report this with the network's config.json"
        )
    return f"onnxruntime's outputs on random pictures differ from ours by {difference:.1e} of the largest"


def _optional(package: str) -> Any:
    """Import a package of the extra "onnx".

    Raises:
        ImportError: it is not installed, or broken.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"cannot import {package} ({error}): pip install -e '.[onnx]'") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, see :mod:`resnet.command`."""
    parser = make_parser(
        "python -m resnet.export",
        "Write a trained network to an ONNX file, and compare its outputs in onnxruntime with ours.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=not_empty, help=f"run folder ({WEIGHTS} in it), or a file of weights of a run"
    )
    parser.add_argument("file", metavar="FILE", type=not_empty, help="ONNX file to write, e.g. model.onnx")
    parser.add_argument(
        "--opset",
        type=whole_number(OLDEST_OPSET),
        default=OPSET,
        help=f"version of ONNX's operators, from {OLDEST_OPSET} on; older runtimes want a lower one ({OPSET})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there already")
    options = parser.parse_args(arguments)

    def work() -> int:
        for line in export(options.run, options.file, options.opset, overwrite=options.overwrite):
            print(line)
        return 0

    return end_well(work, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
