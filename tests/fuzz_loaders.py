"""What ``tests/fuzz.py`` tries: everything here that reads files, with good files of each kind to begin with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_changes import (
    CSV_WORDS,
    PICTURES,
    SAFETENSORS,
    TOML_WORDS,
    Change,
    change_json,
    claim_a_crowd,
    joined,
    parts_of,
    put_word,
    written,
)
from PIL import Image
from tiny import write_people

from nn import BatchNorm2d, Conv2d, Sequential
from nn.checkpoint import load_weights, save_weights
from nn.module import Module
from resnet.checkpoint import FILE, Progress, read_checkpoint, save_checkpoint
from resnet.config import TrainingConfig, read_settings
from resnet.data.cifar10 import CLASSES, NAMES, RECORD, TEST, load_cifar10
from resnet.data.faces import read_header, read_picture
from resnet.data.folders import LoadOptions, load_folder
from resnet.data.points import COLUMNS, read_points
from resnet.data.rmfrd import MASKED, UNMASKED, load_rmfrd
from resnet.gallery import THRESHOLD, read_threshold
from resnet.inference import TrainedNetwork, load_network
from resnet.training import Training, fit, model_metadata, prepare
from resnet.weights import load_pretrained


@dataclass(frozen=True)
class Loader:
    """Something that reads files.

    Attributes:
        name: what the counts are listed under.
        files: good files, by their names.
        load: reads the file at a path, which has one of these names.
        changes: ways to damage one within its format.
        refusals: the exceptions that it promises for a file that it does not take.
        names_it: whether their words must tell which file it is.
        beside: files that lie in the same folder, unchanged.
    """

    name: str
    files: Mapping[str, bytes]
    load: Callable[[Path], object]
    changes: tuple[Change, ...] = ()
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)
    names_it: bool = True
    beside: Mapping[str, bytes] = field(default_factory=dict)


@cache
def loaders() -> dict[str, Loader]:
    """Everything that reads files, by name."""
    network, _, _ = trained_network()
    found = [
        Loader("weights", weights_files(), load_state, SAFETENSORS),
        Loader("network in use", {"model.safetensors": network}, load_to_use, (*SAFETENSORS, claim_a_crowd)),
        Loader("weights to begin with", {"model.safetensors": network}, load_to_begin, SAFETENSORS),
        Loader("checkpoint", {FILE: trainings()[1]}, resume_from, SAFETENSORS),
        *(Loader(f"picture {kind}", files, load_picture, PICTURES[kind]) for kind, files in picture_files().items()),
        Loader("picture PGM, text mode", {"1.pgm": text_mode_pgm()}, load_picture),
        Loader("CIFAR-10", cifar_files(), load_cifar, beside=cifar_files()),
        Loader("settings", {"a.toml": settings_file()}, load_settings, (put_word(TOML_WORDS),) * 3, names_it=False),
        Loader(
            "settings in a checkpoint",
            {"config.json": written(asdict(TrainingConfig()))},
            load_config,
            (change_json,) * 9,
            refusals=(ValueError, TypeError, RecursionError),  # of json too, and of names that are no settings
            names_it=False,
        ),
        Loader(
            "threshold", threshold_files(), load_threshold, (change_json,) * 3, beside={"model.safetensors": network}
        ),
        Loader("facial points", {"points.csv": points_file()}, read_points, (put_word(CSV_WORDS),) * 3),
        Loader("folders of people", tree_files(), load_tree, names_it=False),
        Loader("RMFRD", masked_tree_files(), load_masked_tree, names_it=False),
    ]
    return {loader.name: loader for loader in found}


@cache
def foreign_files() -> list[bytes]:
    """One of each kind of file, and some that nothing here reads."""
    array = io.BytesIO()
    np.save(array, np.arange(5))
    pickled = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    others = [
        array.getvalue(),
        pickled,
        b"PK\x03\x04\x14\0\0\0\x08\0",
        b"%PDF-1.7\n",
        b"\x89HDF\r\n\x1a\n",
        b"<svg/>",
        b"",
    ]
    pictures = [content for files in picture_files().values() for content in files.values()]
    texts = [settings_file(), points_file(), written(asdict(TrainingConfig()))]
    return [*others, *pictures, *texts, text_mode_pgm(), *cifar_files().values(), *weights_files().values()]


# Weights


def stored(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """What :func:`save_weights` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(Path(folder) / "x", state, metadata)
        return in_order((Path(folder) / "x").read_bytes())


def in_order(content: bytes) -> bytes:
    """The same file with its metadata in alphabetical order; that of safetensors is another in each process."""
    header, numbers = parts_of(content)
    tensors = json.loads(header)
    metadata = {"__metadata__": dict(sorted(tensors.pop("__metadata__", {}).items()))}
    return joined(json.dumps(metadata | tensors).encode(), numbers)


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@cache
def small_network() -> Sequential:
    return Sequential(Conv2d(2, 3, 3, rng=np.random.default_rng(0)), BatchNorm2d(3))


@cache
def weights_files() -> dict[str, bytes]:
    """Small good files of weights, in all the precisions that are read."""
    state = small_network().state_dict()
    floats = {name: array for name, array in state.items() if array.dtype.kind == "f"}
    files = {f"{kind}.safetensors": stored({k: a.astype(kind) for k, a in floats.items()}) for kind in ("f2", "f8")}
    halves = stored({name: as_bfloat16(array) for name, array in floats.items()})
    header, numbers = parts_of(halves)
    files["bf16.safetensors"] = joined(header.replace(b'"U16"', b'"BF16"'), numbers)
    odd = {"empty": np.zeros((0, 3), np.float32), "truth": np.ones(3, bool), "counts": np.arange(5)}
    return files | {"all.safetensors": stored(state, {"format": '"pt"'}), "odd.safetensors": stored(odd)}


def is_finite(model: Module) -> bool:
    return all(np.isfinite(array).all() for array in model.state_dict().values())


def load_into(model: Module, load: Callable[[], object]) -> None:
    """Load into a network. If that fails it must be as it was, else all its numbers finite; then make it as it was."""
    before = model.state_dict()
    try:
        load()
        assert is_finite(model), "numbers that are not finite were taken into the network"
    except Exception:
        after = model.state_dict()
        assert all(np.array_equal(before[name], after[name]) for name in before), "it was changed before it was refused"
        raise
    finally:
        model.load_state_dict(before)


def load_state(path: Path) -> None:
    """Read weights, and give them to a network, which may not want them."""
    state, _ = load_weights(path)
    with suppress(ValueError):
        load_into(small_network(), lambda: small_network().load_state_dict(state))


@cache
def trained_network() -> tuple[bytes, Module, list[str]]:
    """A file of a trained network, a network that it fits, and whom that knows."""
    training = trainings()[0]
    people = list(training.train_faces.people)
    return stored(training.model.state_dict(), model_metadata(training)), training.model, people


def load_to_begin(path: Path) -> None:
    _, model, people = trained_network()
    load_into(model, lambda: load_pretrained(model, path, people))


def load_to_use(path: Path) -> None:
    assert is_finite(load_network(path, "numpy").model), "a network whose numbers are not finite was accepted"


@cache
def trainings() -> tuple[Training, bytes]:
    """A training that has not begun, and the checkpoint of one like it after an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            backend="numpy",
            data="folder",
            data_dir=str(write_people(Path(folder) / "people")),
            arch="resnet20",
            image_size=16,
            stem="small",
            batch_size=6,
            epochs=2,
            repeats=1,
            threads=1,
        )
        begun, progress = prepare(config), Progress()
        metrics = next(fit(begun, progress, quiet=True))
        progress.history = [replace(metrics, pictures_per_second=1.0, seconds=1.0)]  # the same in every run
        begun.config = replace(config, data_dir="people")
        save_checkpoint(Path(folder), begun, progress)
        return prepare(config), in_order((Path(folder) / FILE).read_bytes())


def resume_from(path: Path) -> None:
    training, _ = trainings()
    load_into(training.model, lambda: read_checkpoint(path.parent).restore(training))


# Pictures


def picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # a copy, as Pillow's JPEG writer leaves its settings on the picture
    return buffer.getvalue()


@cache
def picture_files() -> dict[str, dict[str, bytes]]:
    """Good picture files by format and name: grey, colour, see-through, 16 bits, turned, films, all compressions."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8))
    levels = rng.integers(0, 65536, (18, 24), dtype=np.uint16)
    deep = Image.fromarray(levels)
    modes = {mode: colour.convert(mode) for mode in ("1", "L", "RGB", "P")}
    clear = colour.convert("RGBA")
    clear.putalpha(modes["L"])
    turned = {"exif": Image.Exif()}
    turned["exif"][0x0112] = 6

    def film() -> dict[str, Any]:
        return {"save_all": True, "append_images": [colour.rotate(90 * turn) for turn in range(3)]}

    tiffs = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return {
        "JPEG": {
            "grey.jpg": picture(modes["L"], "JPEG"),
            "turned.jpg": picture(colour, "JPEG", **turned),
            "progressive.jpg": picture(colour, "JPEG", progressive=True),
            "cmyk.jpg": picture(colour.convert("CMYK"), "JPEG"),
            "several.jpg": picture(colour, "MPO", **film()),
        },
        "PNG": {f"{mode}.png": picture(image, "PNG") for mode, image in (modes | {"clear": clear, "16": deep}).items()}
        | {
            "turned.png": picture(modes["P"], "PNG", transparency=3, **turned),
            "film.png": picture(colour, "PNG", **film()),
        },
        "PPM": {f"{mode}.ppm": picture(modes[mode], "PPM") for mode in ("1", "L", "RGB")}
        | {
            "16.pgm": b"P5 24 18 65535\n" + levels.astype(">u2").tobytes(),
            "text.pgm": b"P2\n3 2\n# words\n255\n0 10 20\n30 40 50\n",
        },
        "BMP": {f"{mode}.bmp": picture(image, "BMP") for mode, image in (modes | {"clear": clear}).items()},
        "WEBP": {
            "lossy.webp": picture(colour, "WEBP"),
            "turned.webp": picture(colour, "WEBP", lossless=True, **turned),
            "clear.webp": picture(clear, "WEBP"),
            "film.webp": picture(colour, "WEBP", **film()),
        },
        "TIFF": {f"{name}.tif": picture(colour, "TIFF", compression=name) for name in tiffs}
        | {
            "fax.tif": picture(modes["1"], "TIFF", compression="group4"),
            "16.tif": picture(deep, "TIFF"),
            "turned.tif": picture(clear, "TIFF", **turned),
            "film.tif": picture(colour, "TIFF", **film()),
            "float.tif": picture(colour.convert("F"), "TIFF"),
        },
        "GIF": {
            "grey.gif": picture(modes["L"], "GIF"),
            "clear.gif": picture(modes["P"], "GIF", transparency=3),
            "film.gif": picture(colour, "GIF", **film()),
        },
    }


@cache
def text_mode_pgm() -> bytes:
    """A picture like those of ORL after a copy in text mode: each line feed doubled, but for one pair."""
    pixels = np.random.default_rng(1).integers(5, 20, (28, 23), dtype=np.uint8).tobytes().replace(b"\r\n", b"\r\r")
    return b"P5\n23 28\n255\n".replace(b"\n", b"\r\n") + (pixels[:300] + b"\r\r" + pixels[302:]).replace(b"\n", b"\r\n")


def load_picture(path: Path) -> None:
    """Read a picture's header and its pixels, which must agree on the size."""
    header = None
    with suppress(ValueError):
        header = read_header(path)
    grey, colour = read_picture(path, colour=False), read_picture(path, colour=True)
    assert grey.shape[:2] == colour.shape[:2], (grey.shape, colour.shape)
    assert header is None or header[:2] == grey.shape[:2], (header, grey.shape)


# Sets of pictures


def cifar_files() -> dict[str, bytes]:
    records = np.random.default_rng(2).integers(0, 256, (3, RECORD), dtype=np.uint8)
    records[:, 0] %= 10
    return {"data_batch_1.bin": records.tobytes(), TEST: records[:1].tobytes(), NAMES: "\n".join(CLASSES).encode()}


def load_cifar(path: Path) -> None:
    load_cifar10(path.parent)


def tree_files() -> dict[str, bytes]:
    people, suffixes = ("anna", "Jürgen", "s10"), ("jpg", "PNG", "gif")
    names = [f"{person}/{number}.{suffix}" for person in people for number, suffix in enumerate(suffixes)]
    odd = ["anna/notes.txt", "anna/in/1.png", ".x/1.png", "bert/1.pipe", "anna/1.loop"]
    return {"names.txt": "\n".join([*names, *odd]).encode()}


def masked_tree_files() -> dict[str, bytes]:
    people = [f"{part}/{person}" for part in (MASKED, UNMASKED) for person in ("anna", "bert")]
    return {"names.txt": "\n".join(f"{person}/{number}.jpg" for person in people for number in range(3)).encode()}


def grow(listing: Path) -> Path:
    """Make files of the names that stand in one, a line each, whatever bytes they are; return their folder."""
    folder = listing.parent / "tree"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pictures = [content for files in picture_files().values() for content in files.values()]
    for number, line in enumerate(listing.read_bytes().split(b"\n")[:40]):
        parts = [part for part in line.replace(b"\0", b"").split(b"/")[:9] if part not in (b"", b".", b"..")]
        with suppress(OSError):  # a name that no file can have
            path = os.path.join(os.fsencode(folder), *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if line.endswith(b"loop"):
                os.symlink(path, path)
            elif line.endswith(b"pipe"):
                os.mkfifo(path)
            else:
                Path(os.fsdecode(path)).write_bytes(pictures[number % len(pictures)])
    return folder


def load_tree(path: Path) -> None:
    load_folder(grow(path), LoadOptions(bad_pictures="skip", min_pictures=1))


def load_masked_tree(path: Path) -> None:
    load_rmfrd(grow(path))


# Settings and tables


def settings_file() -> bytes:
    settings = {name: value for name, value in asdict(TrainingConfig()).items() if value is not None}
    return "".join(f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in settings.items()).encode()


def load_settings(path: Path) -> None:
    """Settings from a TOML file, as train.py --config takes them."""
    TrainingConfig(**read_settings(path))


def load_config(path: Path) -> None:
    """Settings from a dictionary, as they stand in a checkpoint."""
    settings = json.loads(path.read_bytes())
    if not isinstance(settings, dict):
        raise ValueError("expected settings by name")
    TrainingConfig(**settings)


def threshold_files() -> dict[str, bytes]:
    """What :mod:`resnet.evaluation` leaves beside a network."""
    digest = hashlib.sha256(trained_network()[0]).hexdigest()
    return {THRESHOLD: json.dumps({"threshold": 0.25, "sha256": digest, "pairs": [1, 2]}).encode()}


def load_threshold(path: Path) -> None:
    read_threshold(replace(network_in_use(), path=path.with_name("model.safetensors")))


@cache
def network_in_use() -> TrainedNetwork:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(trained_network()[0])
        return load_network(path, "numpy")


def points_file() -> bytes:
    rows = [f"anna/{number}.png," + ",".join(f"{10.5 * place}" for place in range(12)) for number in range(4)]
    return "\n".join([",".join(COLUMNS), *rows]).encode()
