"""Watch a network layer by layer: shapes, parameters, multiply-adds, bytes kept for backward, time, working memory.

Used by ``python -m resnet.models`` and ``train.py --profile``. Only leaves are watched, the layers without parts.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from nn.backend import Array, array_module
from nn.gpu import mark, seconds_between
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
        working_bytes: the most it allocated on top of what was there, in forward or backward (if memory is watched).
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


class MemoryWatch:
    """How much memory arrays hold that were made since watching began, and the most since the last ``restart``."""

    def __init__(self) -> None:
        self._used = self._peak = 0

    def add(self, bytes_more: int) -> None:
        """Note that so many bytes were taken, or given back if negative."""
        self._used += bytes_more
        self._peak = max(self._peak, self._used)

    def used(self) -> int:
        """Return the bytes that are held now."""
        return self._used

    def peak(self) -> int:
        """Return the most that was held since ``restart``."""
        return self._peak

    def restart(self) -> None:
        """Let the peak begin anew from what is held now."""
        self._peak = self._used


class _HostMemoryWatch(MemoryWatch):
    """What tracemalloc knows: NumPy tells it of every array."""

    def used(self) -> int:
        return tracemalloc.get_traced_memory()[0]

    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1]

    def restart(self) -> None:
        tracemalloc.reset_peak()


@contextmanager
def watch_memory(xp: ModuleType) -> Iterator[MemoryWatch]:
    """Watch the memory of NumPy's or CuPy's arrays. It slows down what it watches, so measure times without it."""
    if xp is np:
        tracemalloc.start()
        try:
            yield _HostMemoryWatch()
        finally:
            tracemalloc.stop()
        return
    watch = MemoryWatch()

    class Hook(xp.cuda.MemoryHook):  # type: ignore[misc, name-defined]
        name = "watch_memory"

        def malloc_postprocess(self, **facts: Any) -> None:
            watch.add(facts["mem_size"])

        def free_postprocess(self, **facts: Any) -> None:
            watch.add(-facts["mem_size"])

    with Hook():
        yield watch


@contextmanager
def record_layers(model: Module, memory: MemoryWatch | None = None) -> Iterator[list[LayerRecord]]:
    """Record every leaf of ``model`` that runs within the ``with``; the list is in order of the first forward.

    Times are filled in at the end. On a GPU they are those of its own clock, and nothing waits meanwhile.

    Args:
        model: any.
        memory: watches the memory, if working memory is to be recorded.
    """
    recorder = _Recorder(memory or MemoryWatch())
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    for name, layer in leaves:
        recorder.watch(name, layer)
    try:
        yield recorder.records
    finally:
        for _, layer in leaves:
            del layer.forward, layer.backward  # the class's own methods show again
        recorder.read_clock()


class _Recorder:
    """Puts itself around layers."""

    def __init__(self, memory: MemoryWatch) -> None:
        self.memory = memory
        self.records: list[LayerRecord] = []
        self._marks: list[tuple[list[float], ModuleType, Any, Any]] = []

    def watch(self, name: str, layer: Module) -> None:
        """Put timers around this instance's forward and backward."""
        record = LayerRecord(name, type(layer).__name__, layer.describe(), parameters=layer.count_parameters())
        forward, backward = layer.forward, layer.backward

        def watched_forward(*inputs: Any, **options: Any) -> Any:
            if not record.shape:
                self.records.append(record)
            xp = array_module(inputs[0])
            y = self._measured(record, record.forward_seconds, xp, lambda: forward(*inputs, **options))
            record.shape, record.multiply_adds = y.shape, layer.multiply_adds(y.shape)
            return y

        def watched_backward(*upstream: Any, **options: Any) -> Any:
            xp = array_module(upstream[0])
            return self._measured(record, record.backward_seconds, xp, lambda: backward(*upstream, **options))

        layer.forward, layer.backward = watched_forward, watched_backward  # type: ignore[method-assign]

    def _measured(self, record: LayerRecord, seconds: list[float], xp: ModuleType, work: Callable[[], Any]) -> Any:
        before = self.memory.used()
        self.memory.restart()
        start = mark(xp)
        result = work()
        self._marks.append((seconds, xp, start, mark(xp)))
        record.working_bytes = max(record.working_bytes, self.memory.peak() - before)
        return result

    def read_clock(self) -> None:
        """Fill in the seconds of all calls, in their order."""
        for seconds, xp, start, stop in self._marks:
            seconds.append(seconds_between(xp, start, stop))


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
