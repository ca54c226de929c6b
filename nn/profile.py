"""Watch a network layer by layer: shapes, parameters, multiply-adds, bytes kept for backward, time, working memory.

Used by ``python -m resnet.models`` and ``train.py --profile``. Only leaves are watched, the layers without parts.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nn.backend import Array, array_module, synchronize
from nn.module import Module


@dataclass
class LayerRecord:
    """What was seen of one layer.

    Attributes:
        name: dotted name in the network.
        kind: class, e.g. "Conv2d".
        detail: its settings in a few words.
        shape: of the output.
        parameters: how many numbers it learns.
        multiply_adds: of one forward.
        bytes_kept: what it holds for backward, each array counted at the first layer that holds it.
        working_bytes: the most it allocated on top of what was there, in forward or backward (NumPy only).
        forward_seconds, backward_seconds: one entry a call.
    """

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    bytes_kept: int = 0
    working_bytes: int = 0
    forward_seconds: list[float] = field(default_factory=list)
    backward_seconds: list[float] = field(default_factory=list)


@contextmanager
def record_layers(model: Module) -> Iterator[list[LayerRecord]]:
    """Record every leaf of ``model`` that runs within the ``with``; the list is in order of the first forward.

    Times include waiting for the device, so a GPU runs slower than usual while it is watched. Working memory is
    recorded while ``tracemalloc`` is running (it slows down what it watches, so measure times without it).
    """
    records: list[LayerRecord] = []
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    for name, layer in leaves:
        _watch(name, layer, records)
    try:
        yield records
    finally:
        for _, layer in leaves:
            del layer.forward, layer.backward  # the class's own methods show again


def _watch(name: str, layer: Module, records: list[LayerRecord]) -> None:
    """Put timers around this instance's forward and backward."""
    record = LayerRecord(name, type(layer).__name__, layer.describe(), parameters=layer.count_parameters())
    forward, backward = layer.forward, layer.backward

    def watched_forward(*inputs: Any, **options: Any) -> Any:
        if not record.forward_seconds:
            records.append(record)
        y = _measured(record, record.forward_seconds, lambda: forward(*inputs, **options))
        record.shape, record.multiply_adds = y.shape, layer.multiply_adds(y.shape)
        return y

    def watched_backward(*upstream: Any) -> Any:
        return _measured(record, record.backward_seconds, lambda: backward(*upstream))

    layer.forward, layer.backward = watched_forward, watched_backward  # type: ignore[method-assign]


def _measured(record: LayerRecord, seconds: list[float], work: Callable[[], Any]) -> Any:
    before = tracemalloc.get_traced_memory()[0]
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    start = time.perf_counter()
    result = work()
    first = result[0] if isinstance(result, tuple) else result
    if first is not None:  # the first layer's backward may be asked for no gradient
        synchronize(array_module(first))
    seconds.append(time.perf_counter() - start)
    record.working_bytes = max(record.working_bytes, tracemalloc.get_traced_memory()[1] - before)
    return result


def note_kept(model: Module, records: Iterable[LayerRecord]) -> None:
    """Fill in ``bytes_kept``; to be called between a forward and its backward.

    An array that two layers hold (an activation's output is the next convolution's input) counts once, at the first;
    parameters do not count.
    """
    modules = dict(model.named_modules())
    seen = {id(_owner(parameter.data)) for parameter in model.parameters()}
    for record in records:
        record.bytes_kept = 0
        kept = modules[record.name].kept()
        for value in kept if isinstance(kept, tuple) else ():
            if hasattr(value, "nbytes") and id(_owner(value)) not in seen:
                seen.add(id(_owner(value)))
                record.bytes_kept += value.nbytes


def _owner(array: Array) -> Array:
    """Return the array that owns the memory of a view."""
    while getattr(array, "base", None) is not None:
        array = array.base  # type: ignore[assignment]
    return array


def layer_table(records: list[LayerRecord]) -> str:
    """Return the records as a table: layer, output shape, parameters, multiply-adds, bytes kept for backward."""
    rows = [
        (
            r.name,
            f"{r.kind} {r.detail}".strip(),
            " × ".join(map(str, r.shape)),
            r.parameters,
            r.multiply_adds,
            r.bytes_kept,
        )
        for r in records
    ]
    totals = [sum(row[column] for row in rows) for column in (3, 4, 5)]  # type: ignore[misc]
    return table(
        ("layer", "what", "output", "parameters", "multiply-adds", "bytes kept"), [*rows, ("total", "", "", *totals)]
    )


def time_table(records: list[LayerRecord]) -> str:
    """Return the records as a table: median milliseconds forward and backward, share, bytes kept, working memory."""
    times = [(_median_ms(r.forward_seconds), _median_ms(r.backward_seconds)) for r in records]
    whole = sum(map(sum, times)) or 1.0
    rows = [
        (
            r.name,
            f"{r.kind} {r.detail}".strip(),
            f"{f:.2f}",
            f"{b:.2f}",
            f"{100 * (f + b) / whole:.1f}",
            r.bytes_kept,
            r.working_bytes,
        )
        for r, (f, b) in zip(records, times, strict=True)
    ]
    total = (
        *("total", "", f"{sum(f for f, _ in times):.2f}", f"{sum(b for _, b in times):.2f}", "100.0"),
        *(sum(r.bytes_kept for r in records), max((r.working_bytes for r in records), default=0)),
    )
    head = ("layer", "what", "forward ms", "backward ms", "share %", "bytes kept", "working bytes")
    return table(head, [*rows, total])


def _median_ms(seconds: list[float]) -> float:
    return 1000 * float(np.median(seconds)) if seconds else 0.0


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return rows as aligned text; the last row is set off as the total. Whole numbers get thousands separators."""
    cells = [head, *(tuple(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numeric = [isinstance(cell, int) or str(cell).replace(".", "").isdigit() for cell in rows[-1]]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))
