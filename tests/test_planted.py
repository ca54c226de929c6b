"""Mistakes of people without a GPU, planted one after the other: each ``np.`` where ``xp.`` should be is found.

Each call of ``xp.something``, each matrix product and each method such as ``x.sum()`` in the code that computes on the
device is replaced, one at a time, by a call of NumPy's. Then a small training, a prediction and what else there is run
on the stand-in for CuPy, and must fail.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

import devices
import kernel_emulator
import numpy as np
import pytest
from test_devices import batches, small

import nn.activation
import nn.batchnorm
import nn.conv
import nn.linear
import nn.loss
import nn.module
import nn.optim
import nn.parallel
import nn.pooling
import nn.precision
import nn.residual
import nn.winograd
import resnet.blocks
import resnet.inference
import resnet.trainer
import resnet.training
from nn import Adam, Conv2d, Module, ReLU
from resnet.blocks import BasicBlock, Recipe
from resnet.config import TrainingConfig

MODULES = {
    module.__name__: module
    for module in (
        *(nn.activation, nn.batchnorm, nn.conv, nn.linear, nn.loss, nn.module, nn.optim, nn.parallel, nn.pooling),
        *(nn.precision, nn.residual, nn.winograd, resnet.blocks, resnet.inference, resnet.trainer, resnet.training),
    )
}
METHODS = {"sum", "mean", "max", "min", "argmax", "all", "any", "reshape", "transpose", "astype"}

#: Functions that compute on the CPU: NumPy is right there.
ON_THE_CPU = {
    "_export",
    "_import",
    "check_labels",
    "prepare",
    "grey_levels",
    "one_dimension",
    "largest_gradient",
    "softmax",
    "fingerprint",
    "check_state_dict",
    "_misfits",
    "state_dict",
    "load_state_dict",
}


#: What does no harm, a module.
HARMLESS = {
    "nn.parallel": ["np.concatenate in place of xp.concatenate(found, axis=1)"],  # of threads, which only the CPU has
    "nn.precision": [
        "np.full in place of xp.full((), True)",  # written before it is read
        "np.zeros in place of xp.zeros((), np.int32)",  # one more than it is a NumPy number, which may meet an array
    ],
    "nn.winograd": ["np.astype in place of np.kron(one, one).astype(dtype)"],  # constants, made on the CPU
    "resnet.trainer": [
        "np.sum in place of to_numpy(xp.stack([right for _, right in self._pending])).sum()"  # on the CPU already
    ],
}


class Plant(ast.NodeTransformer):
    """Replaces the call number ``wanted`` of those that may be replaced; counts them all."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.seen, self.planted = wanted, 0, ""

    def _replace(self, node: ast.expr, name: str, arguments: list[ast.expr], keywords: list[ast.keyword]) -> ast.expr:
        self.seen += 1
        if self.seen - 1 != self.wanted:
            return node
        function = ast.Attribute(ast.Name("np", ast.Load()), name, ast.Load())
        self.planted = f"line {node.lineno}: np.{name} in place of {ast.unparse(node)}"
        return ast.copy_location(ast.Call(function, arguments, keywords), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node if node.name in ON_THE_CPU else self.generic_visit(node)  # type: ignore[return-value]

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        called = node.func
        if not isinstance(called, ast.Attribute):
            return node
        if ast.unparse(called.value).split("(")[0] in ("xp", "self.xp", "array_module") and hasattr(np, called.attr):
            return self._replace(node, called.attr, node.args, node.keywords)
        if called.attr in METHODS:
            arguments = [ast.Tuple(node.args, ast.Load())] if len(node.args) > 1 else node.args  # reshape(2, 3)
            return self._replace(node, called.attr, [called.value, *arguments], node.keywords)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return self._replace(node, "matmul", [node.left, node.right], []) if isinstance(node.op, ast.MatMult) else node


def functions_of(module: ModuleType) -> dict[str, FunctionType]:
    """Return a module's functions and methods by their qualified names."""
    found: dict[str, FunctionType] = {}
    for value in vars(module).values():
        members = vars(value).values() if inspect.isclass(value) else [value]
        for member in members:
            function = inspect.unwrap(member.fget if isinstance(member, property) else member)
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                found[function.__qualname__] = function
    return found


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of each function and method in compiled source; what lies within them comes with them."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & inspect.CO_OPTIMIZED:
                yield constant
            else:  # the body of a class
                yield from codes_of(constant)


@contextmanager
def planted(module: ModuleType, tree: ast.Module) -> Iterator[None]:
    """Let a module's functions run the code of a changed syntax tree."""
    functions, before = functions_of(module), {}
    had_numpy = hasattr(module, "np")
    for code in codes_of(compile(ast.fix_missing_locations(tree), module.__file__, "exec")):
        function = functions.get(code.co_qualname)
        if function is not None and code.co_freevars == function.__code__.co_freevars:
            before[function] = function.__code__
            function.__code__ = code
    vars(module).setdefault("np", np)
    try:
        yield
    finally:
        for function, code in before.items():
            function.__code__ = code
        if not had_numpy:
            del vars(module)["np"]


def everything() -> None:
    """Run what computes on the device: training, prediction, evaluation, and layers that ResNet18 does not have."""
    rng = np.random.default_rng(0)
    for precision in ("float32", "float16"):
        trainer = resnet.trainer.Trainer(small().to("cupy").train(), TrainingConfig(precision=precision), 3)
        meter = resnet.trainer.Meter()
        for x, labels in batches(2):
            meter.add(*trainer.step(x, labels), len(labels))
        meter.read(trainer)
    assert np.isfinite(meter.losses).all()
    pictures = rng.integers(256, size=(3, 20, 20, 3), dtype=np.uint8)
    resnet.inference.predict(trainer.model, pictures, [0.5] * 3, [0.2] * 3, batch_size=2)
    resnet.inference.embed(trainer.model, pictures, [0.5] * 3, [0.2] * 3, batch_size=2)
    layers: list[Module] = [
        ReLU(),
        Conv2d(4, 8, 3, padding=1, rng=rng),
        Conv2d(4, 8, 3, 2, 1, rng=rng),
        Conv2d(4, 8, 3, padding=1, algorithm="winograd", rng=rng),
        BasicBlock(4, 8, 2, Recipe(rng=rng), "A"),
        nn.BatchNorm2d(4).eval(),
    ]
    for layer in layers:
        x = device_array(rng.normal(size=(2, 7, 5, 4)))
        y = layer.to("cupy")(x)
        layer.backward(y)
        layer.pieces()
        layer(x)
        layer.backward(y)  # adds to the gradients
        if layer.parameters():
            Adam(layer.named_parameters()).step(0.1)
        layer.zero_grad()
        layer.grad_dict()
        layer.astype(np.float64)
        layer.inference()(device_array(rng.normal(size=(2, 7, 5, 4)), np.float64))


def device_array(values: np.ndarray, dtype: Any = np.float32) -> Any:
    return nn.backend.load_backend("cupy").asarray(values.astype(dtype))


def is_found(module: ModuleType, tree: ast.Module) -> bool:
    """Whether running everything with the change fails, on one of the stand-ins."""
    for name in devices.STAND_INS if kernel_emulator.compiler() else ["strict"]:
        with planted(module, tree), devices.on(name):
            try:
                everything()
            except TypeError as error:
                if re.search("device array|NumPy array|numpy.ndarray", str(error)) is None:
                    raise  # the plant itself is wrong
                return True
    return False


def test_without_a_plant_everything_runs():
    for name in devices.STAND_INS if kernel_emulator.compiler() else ["strict"]:
        with devices.on(name):
            everything()


@pytest.mark.parametrize("name", MODULES)
def test_a_numpy_call_where_the_device_computes_is_found(name):
    module = MODULES[name]
    source = inspect.getsource(module)
    count = Plant()
    count.visit(ast.parse(source))
    missed = []
    for number in range(count.seen):
        plant = Plant(number)
        tree = plant.visit(ast.parse(source))
        if not is_found(module, tree):
            missed.append(plant.planted.split(": ")[1])
    assert sorted(missed) == sorted(HARMLESS.get(name, []))
