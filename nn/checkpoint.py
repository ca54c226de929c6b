"""Weights to and from disk, as safetensors: names, shapes and numbers, no code: a stranger's file is safe to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


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
    """
    arrays = {name: np.array(array, order="C") for name, array in state.items()}  # safetensors wants plain memory
    write_atomically(path, save(arrays, dict(metadata or {})))


def load_weights(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        the arrays by name, and the metadata.

    Raises:
        OSError: the file is missing or not readable.
        ValueError: not a safetensors file, or a damaged one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a safetensors file at {path}, found none")
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or a damaged one: {error}") from error
