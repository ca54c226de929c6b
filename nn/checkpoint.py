r"""Weights to and from disk, as safetensors: names, shapes and numbers, no code: a stranger's file is safe to load.

Such a file is the length of its header in 8 bytes, the header in JSON, and the numbers of all tensors without a gap:

    {"__metadata__": {"arch": "\"resnet18\""}, "fc.bias": {"dtype": "F32", "shape": [40], "data_offsets": [0, 160]}}

:func:`load_weights` looks at all of the header before it reads a single number, so that a file that is damaged, cut
short, made to do harm, or of another kind ends in an error that names the tensor, and takes no time or memory to speak
of. Whether the numbers are good for a network is for ``Module.load_state_dict`` to say.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

LARGEST_FILE = 2**32
"""Bytes of a file that is read: ResNet-152 has 0.24 GB, with the two running averages of Adam, in float64, 1.4 GB."""

LARGEST_HEADER = 2**24
"""Bytes of names, shapes and metadata: those of ResNet-152 with 10,000 people have 0.3 MB."""

_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
"""The dtypes that are read, with the bytes of a number."""

_MOST_AXES = 64  # of an array of NumPy's
_LONGEST_NAME = 1000  # letters
_OF_TORCH = {b"PK\x03\x04": "a zip archive with a pickle in it", b"\x80": "a pickle"}  # by how they begin


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: to a temporary name, flushed to the disk, then renamed.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; an earlier file at ``path`` is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _flush_folder(folder: Path) -> None:
    """Make a renaming last through a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_weights(
    path: str | Path, state: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict to a safetensors file, whole or not at all.

    Args:
        path: file to write.
        state: NumPy arrays by name, as ``model.state_dict()`` gives them.
        metadata: words to keep with them.

    Raises:
        OSError: as :func:`write_atomically`.
        ValueError: so many names and words that :func:`load_weights` would not read the file.
    """
    arrays = {name: np.array(array, order="C") for name, array in state.items()}  # safetensors wants plain memory
    content = save(arrays, dict(metadata or {}))
    length = int.from_bytes(content[:8], "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"{path}: expected at most {LARGEST_HEADER:,} bytes of names and metadata, got {length:,}")
    write_atomically(path, content)


def load_weights(path: str | Path, largest: int = LARGEST_FILE) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: file to read.
        largest: bytes that the file may have.

    Returns:
        the arrays by name, and the metadata. A bfloat16, which NumPy does not know, becomes the float32 of that value.

    Raises:
        OSError: the file is missing or not readable.
        ValueError: no safetensors file, a damaged one, one too large, or one with a dtype that is not read; the message
            names file and tensor, and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a safetensors file at {path}, found {'a folder' if path.is_dir() else 'none'}"
        )
    try:
        header, start = _read_header(path, largest)
        metadata = _checked_metadata(header.pop("__metadata__", {}))
        _check_tensors(header, path.stat().st_size - start)
        with safe_open(str(path), framework="numpy") as file:
            arrays = {
                name: _read_bfloat16(path, start, tensor) if tensor["dtype"] == "BF16" else file.get_tensor(name)
                for name, tensor in header.items()
            }
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error
    return arrays, metadata


def _read_header(path: Path, largest: int) -> tuple[dict[str, Any], int]:
    """Return the header of a file, not looked at yet, and at which byte the numbers start."""
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"expected a safetensors file of at most {largest:,} bytes, got {size:,}")
    with open(path, "rb") as file:
        beginning = file.read(8)
        length = int.from_bytes(beginning, "little")
        if not 2 <= length <= size - 8:
            _refuse_pickles(beginning)
            raise ValueError(
                "expected a safetensors file, which begins with the length of its header, got a length of "
                f"{length:,} in a file of {size:,} bytes: cut short, or a file of another kind"
            )
        if length > LARGEST_HEADER:
            raise ValueError(f"expected a header of at most {LARGEST_HEADER:,} bytes, got {length:,}")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a safetensors file, whose header is JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"expected a header that tells of tensors by name, got {_short(header)}")
    return header, 8 + length


def _refuse_pickles(beginning: bytes) -> None:
    """Raise a ValueError with what to do if a file begins as those of PyTorch do."""
    found = next((words for magic, words in _OF_TORCH.items() if beginning.startswith(magic)), None)
    if found is not None:
        raise ValueError(
            f"expected a safetensors file, found {found}, such as torch.save writes; to read one is to run whatever "
            "program it brings along, so that is not done here. If you trust it, load it in PyTorch and convert it: "
            'safetensors.torch.save_file(model.state_dict(), "FILE.safetensors")'
        )


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary; a name that comes twice would mean one thing here and another elsewhere."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"expected each name once, got {_short(name)} twice")
        found[name] = value
    return found


def _checked_metadata(metadata: Any) -> dict[str, str]:
    """Return the metadata of a header if they are words by name."""
    if not isinstance(metadata, dict):
        raise ValueError(f"expected metadata as words by name, got {_short(metadata)}")
    for name, words in metadata.items():
        if not isinstance(words, str):
            raise ValueError(f"expected words for {_short(name)} in the metadata, got {_short(words)}")
    return metadata


def _check_tensors(tensors: Mapping[str, Any], size: int) -> None:
    """Raise a ValueError that names the tensor if what a header says does not fit the ``size`` bytes behind it."""
    for name, tensor in tensors.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(f"expected names of up to {_LONGEST_NAME} printable letters, got {_short(name)}")
        try:
            _check_tensor(tensor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    place, last = 0, "its header"
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        if begin != place:
            raise ValueError(f"{name}: expected its numbers to begin at byte {place:,}, behind {last}, got {begin:,}")
        if end > size:
            raise ValueError(f"{name}: expected {end - begin:,} bytes of numbers, got {size - begin:,}: cut short")
        place, last = end, name
    if place != size:
        raise ValueError(f"expected the file to end with the numbers of {last}, got {size - place:,} bytes more")


def _check_tensor(tensor: Any) -> None:
    """Raise a ValueError if what a header says of one tensor contradicts itself or is not read."""
    if not isinstance(tensor, dict) or not {"dtype", "shape", "data_offsets"} <= tensor.keys():
        raise ValueError(f"expected dtype, shape and data_offsets, got {_short(tensor)}")
    dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(
            f"expected a dtype of {', '.join(_BYTES)}, got {_short(dtype)}; in PyTorch, model.float() converts it"
        )
    if not _are_counts(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"expected a shape of up to {_MOST_AXES} whole numbers from 0 on, got {_short(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"expected data_offsets as begin and end, got {_short(offsets)}")
    wanted, got = math.prod(shape) * _BYTES[dtype], offsets[1] - offsets[0]
    if wanted != got:
        raise ValueError(f"expected {_short(wanted)} bytes for {dtype} of shape {_short(shape)}, got {_short(got)}")
    if math.prod(length or 1 for length in shape) >= 2**60:  # where a 0 is among them
        raise ValueError(f"expected a shape that an array can have, got {_short(shape)}")


def _are_counts(numbers: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on, none of which is beyond all measure."""
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _read_bfloat16(path: Path, start: int, tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read a tensor of bfloat16, each of which is the upper half of the float32 of the same value."""
    begin, end = tensor["data_offsets"]
    halves = np.fromfile(path, "<u2", (end - begin) // 2, offset=start + begin)
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(tensor["shape"])


def _short(value: Any) -> str:
    """Say what was found, in few letters whatever it is."""
    words = type(value).__name__ if isinstance(value, dict) else repr(value)
    return words if len(words) <= 100 else f"{words[:100]}…"
