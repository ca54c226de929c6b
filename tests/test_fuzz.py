"""Whatever a file holds, it is read or refused: soon, without much memory, and without running anything in it.

``python tests/fuzz.py`` does the same with many more cases.
"""

from __future__ import annotations

import ast
import ctypes
import io
import json
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz import Loader, Outcome, outcomes
from fuzz_changes import claim_a_crowd, claim_size, png, png_chunks, repeat_scan
from fuzz_loaders import load_picture, load_settings, load_to_use, loaders, picture_files, trained_network
from PIL import Image

import resnet.data.faces
from nn.checkpoint import load_weights
from resnet.config import LARGEST_FILE, read_settings
from resnet.data.faces import MAX_PIXELS, read_header, read_picture
from resnet.data.points import read_points

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process can be limited on Linux only")


def try_once(name: str, content: bytes, load: Callable[[Path], object] = load_picture) -> Outcome:
    """Load one file in a process of its own."""
    (outcome,) = outcomes(Loader("one", {name: content}, load), runs=1)
    return outcome


def assert_cheap(outcome: Outcome, kind: str = "refused") -> None:
    assert outcome.kind == kind, outcome
    assert outcome.seconds < 3
    assert outcome.megabytes < 150


# Random cases


def test_every_loader_reads_or_refuses_every_file():
    for loader in loaders().values():
        found = list(outcomes(loader, runs=40, seed=7))
        assert [outcome for outcome in found if outcome.failed] == [], loader.name
        for name, outcome in zip(loader.files, found, strict=False):  # the first cases are the good files
            assert outcome.kind == ("refused" if name == "float.tif" else "accepted"), (loader.name, name, outcome)
        assert any(outcome.kind == "refused" for outcome in found), loader.name


def test_a_case_depends_on_seed_loader_and_number_alone():
    loader = loaders()["weights"]
    cases = [fuzz.make_case(loader, 0, number) for number in range(100)]
    assert cases == [fuzz.make_case(loader, 0, number) for number in range(100)]
    assert cases[10:] != [fuzz.make_case(loader, 1, number) for number in range(10, 100)]
    assert len({content for _, content in cases}) > 90


def test_a_case_is_the_same_in_another_process():
    code = "import sys, zlib; sys.path.insert(0, sys.argv[1]); import fuzz\n"
    code += "cases = [fuzz.make_case(loader, 3, 25)[1] for loader in fuzz.loaders().values()]\n"
    code += "print([zlib.crc32(content) for content in cases])"
    run = subprocess.run([sys.executable, "-c", code, str(ROOT / "tests")], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str([zlib.crc32(fuzz.make_case(loader, 3, 25)[1]) for loader in loaders().values()])


# The harness itself


def raise_index_error(path: Path) -> None:
    [][1]


def refuse_without_a_name(path: Path) -> None:
    raise ValueError("it is damaged")


def take_two_gigabytes(path: Path) -> None:
    bytearray(2 << 30)


def hide_that_memory_was_short(path: Path) -> None:
    try:
        take_two_gigabytes(path)
    except MemoryError as error:
        raise ValueError(f"cannot read {path}") from error


def chew_for_ever(path: Path) -> None:
    while True:
        pass


def crash(path: Path) -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (raise_index_error, "raised"),
        (refuse_without_a_name, "raised"),
        (take_two_gigabytes, "ate"),
        (hide_that_memory_was_short, "ate"),
        (chew_for_ever, "hung"),
        (crash, "died"),
    ],
)
def test_a_planted_failure_is_caught_and_counted(load, kind, monkeypatch, tmp_path, capsys):
    """Only on the second case: those before and behind it are tried, too."""

    def planted(path: Path) -> None:
        if path.name == "bad":
            load(path)

    loader = Loader("planted", {"good": b"1", "bad": b"2", "other": b"3"}, planted)
    monkeypatch.setattr(fuzz, "loaders", lambda: {"planted": loader})
    arguments = f"--runs 3 --seconds 0.5 --keep {tmp_path / 'kept'} --json {tmp_path / 'report.json'}"
    assert fuzz.main(arguments.split()) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    counts = {"cases": 3, "accepted": 2, "refused": 0, "failed": 1}
    assert {name: report["loaders"]["planted"][name] for name in counts} == counts
    (failure,) = report["failures"]
    assert (failure["case"], failure["kind"]) == (1, kind)
    assert Path(failure["file"]).read_bytes() == b"2"
    said = capsys.readouterr().out
    assert failure["file"] in said
    assert re.search(r"^planted +3 +2 +0 +1 ", said, re.MULTILINE)


def test_memory_that_is_touched_bit_by_bit_is_counted():
    def touch(path: Path) -> None:  # fresh pages: the heap may hold some that the tests before have used
        np.frombuffer(mmap.mmap(-1, 200_000_000), np.uint8)[:] = 1

    (outcome,) = outcomes(Loader("planted", {"x": b""}, touch), runs=1)
    assert outcome.kind == "accepted"
    assert 180 < outcome.megabytes < 260


def test_a_run_without_failures_ends_with_0(capsys):
    assert fuzz.main(["--runs", "2", "--loader", "CIFAR-10"]) == 0
    assert re.search(r"^all +2 +2 +0 +0 ", capsys.readouterr().out, re.MULTILINE)
    assert fuzz.main(["--case", "1", "--loader", "CIFAR-10"]) == 0
    assert "CIFAR-10, case 1: accepted" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        fuzz.main(["--loader", "MNIST"])
    assert exit_.value.code == 2


# Pictures that claim to be huge, or are


@pytest.mark.parametrize(
    ("kind", "name", "width", "height"),
    [
        ("PNG", "RGB.png", 100_000, 100_000),
        ("BMP", "RGB.bmp", 100_000, 100_000),
        ("TIFF", "raw.tif", 100_000, 100_000),
        ("TIFF", "tiff_lzw.tif", 100_000, 100_000),
        ("PPM", "RGB.ppm", 100_000, 100_000),
        ("PPM", "L.ppm", 100_000, 100_000),
        ("PPM", "text.pgm", 100_000, 100_000),
        ("JPEG", "progressive.jpg", 65_500, 65_500),  # the most that libjpeg has; the next formats have 16 and 14 bits
        ("GIF", "grey.gif", 65_535, 65_535),
        ("WEBP", "lossy.webp", 16_383, 16_383),
        ("WEBP", "film.webp", 100_000, 40_000),  # the frame around pictures of that size: 32 bits in all
    ],
)
def test_a_huge_picture_is_refused_before_memory_is_taken(kind, name, width, height):
    content = claim_size(kind, picture_files()[kind][name], width, height)
    assert len(content) < 5000
    outcome = try_once(name, content)
    assert_cheap(outcome)
    assert f"{name}: " in outcome.words
    assert re.search(rf"{width}x{height} pixels|{width * height} pixels", outcome.words)


def empty_png(width: int, height: int) -> bytes:
    """A whole PNG file, all black."""
    rows = zlib.compress((bytes(1) + bytes(width)) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")])


def test_a_small_file_of_a_picture_that_is_too_large_is_refused():
    content = empty_png(8000, MAX_PIXELS // 8000 + 1)
    assert len(content) < 100_000
    outcome = try_once("bomb.png", content)
    assert_cheap(outcome)
    assert "8000x8001 pixels, more than the 64000000 allowed" in outcome.words


def test_as_many_pixels_as_are_allowed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet.data.faces, "MAX_PIXELS", 12)
    (tmp_path / "a.png").write_bytes(empty_png(4, 3))
    (tmp_path / "b.png").write_bytes(empty_png(13, 1))
    assert read_picture(tmp_path / "a.png", colour=False).shape == (3, 4, 1)
    with pytest.raises(ValueError, match=r"b\.png: 13x1 pixels, more than the 12 allowed"):
        read_header(tmp_path / "b.png")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP"])
def test_of_many_pictures_in_a_file_the_first_is_read(kind):
    buffer = io.BytesIO()
    films = [Image.new("RGB", (300, 300), (number, 0, 0)) for number in range(200)]
    films[0].save(buffer, kind, save_all=True, append_images=films[1:])
    assert_cheap(try_once("film", buffer.getvalue()), "accepted")


def test_a_circle_of_directories_in_a_tiff_file_is_not_followed():
    content = picture_files()["TIFF"]["film.tif"]
    place = int.from_bytes(content[4:8], "little")
    end = place + 2 + 12 * int.from_bytes(content[place : place + 2], "little")
    assert_cheap(try_once("a.tif", content[:end] + content[4:8] + content[end + 4 :]), "accepted")


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    first, *others = png_chunks(picture_files()["PNG"]["RGB.png"])
    return png([first, *chunks, *others])


@pytest.mark.parametrize("size", [2**20, 2**26])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_that_grows_when_it_is_unpacked_takes_no_memory(kind, size):
    start = b"words\0\1\0\0\0" if kind == b"iTXt" else b"words\0\0"
    chunk = kind, start + zlib.compress(bytes(size))
    outcome = try_once("text.png", with_chunks(*[chunk] * (100 if size == 2**20 else 1)))
    assert not outcome.failed, outcome
    assert outcome.seconds < 3
    assert outcome.megabytes < 150


def test_a_part_of_which_there_is_less_than_it_says_takes_no_memory():
    """The pixels say that they have two gigabytes, and there are 1,400 bytes, or ten."""
    content = with_chunks()
    place = content.index(b"IDAT")
    longer = content[: place - 4] + struct.pack(">I", 2**31 - 1) + content[place:]
    assert_cheap(try_once("a.png", longer), "accepted")  # all the pixels are there
    assert_cheap(try_once("a.png", longer[: place + 10]))


def tiff_of_tags(tags: int, size: int) -> bytes:
    """A TIFF file with many tags, each of which has the same bytes as its value."""
    place = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1000 + number, 7, size, place) for number in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4) + bytes(size)


def test_tags_that_share_their_bytes_take_no_memory():
    """A file of 1 MB, from which 3 GB would be read."""
    outcome = try_once("a.tif", tiff_of_tags(3000, 10**6))
    assert_cheap(outcome)
    outcome = try_once("a.png", with_chunks((b"eXIf", tiff_of_tags(3000, 10**6))))
    assert not outcome.failed, outcome
    assert outcome.megabytes < 150


def test_a_jpeg_file_of_many_scans_is_refused():
    """One of the same size is decoded for minutes."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    assert_cheap(try_once("a.jpg", content), "accepted")
    start = content.rfind(b"\xff\xda")
    outcome = try_once("a.jpg", content[:start] + content[start:-2] * 20_000 + content[-2:])
    assert_cheap(outcome)
    assert "a.jpg: more than 100 scans" in outcome.words


def test_scans_are_counted_up_to_the_end_of_the_picture():
    """Phones append films, and put a small picture before the large one; neither is decoded."""
    buffer, thumbnail = io.BytesIO(), b"\xff\xd8" + b"\xff\xda\0\x08" * 50 + b"\xff\xd9"
    Image.new("L", (8, 8)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scans = content.count(b"\xff\xda")
    assert 1 < scans < 12
    segment = b"\xff\xe5" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    assert resnet.data.faces._count_scans(content[:2] + segment + content[2:] + b"\xff\xda" * 500) == scans
    assert resnet.data.faces._count_scans(repeat_scan(content, np.random.default_rng(0))) > scans


def test_a_large_picture_of_text_mode_is_refused():
    pixels = bytes(range(14, 254)) * 20_000
    outcome = try_once("1.pgm", b"P5\r\n4800 1000\r\n255\r\n" + pixels[:-1] + b"\r\n")
    assert_cheap(outcome)
    assert "too large to be mended; copy it again, as binary" in outcome.words


def test_a_large_file_is_refused_unread(tmp_path):
    content = picture_files()["PNG"]["RGB.png"]
    for name in ("a.png", "a.safetensors", "a.toml", "a.csv"):
        (tmp_path / name).write_bytes(content)
        os.truncate(tmp_path / name, 2**42)  # four terabytes of zeros, none of them stored
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"a\.png: 4,398,046,511,104 bytes, more than the 536,870,912 allowed"):
        read_picture(tmp_path / "a.png", colour=True)
    with pytest.raises(ValueError, match=r"a\.safetensors: expected .* at most 4,294,967,296 bytes, got 4,398"):
        load_weights(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.toml: expected a TOML file of at most 16,384 bytes, got 4,398"):
        read_settings(tmp_path / "a.toml")
    with pytest.raises(ValueError, match=r"a\.csv: expected a CSV file of at most 16,777,216 bytes, got 4,398"):
        read_points(tmp_path / "a.csv")
    assert time.perf_counter() - start < 1


@pytest.fixture
def alarm():
    """Raise an exception if a test waits for longer than five seconds."""

    def ring(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_pipe_and_a_folder_are_no_files(tmp_path, alarm):
    """To open a pipe is to wait for whoever writes into it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero")):
        for read in (read_header, lambda path: read_picture(path, colour=False)):
            with pytest.raises(ValueError, match=rf"{path}: no file, but a folder, a pipe or a device"):
                read(path)
        for read in (load_weights, read_settings, read_points):
            with pytest.raises((FileNotFoundError, ValueError), match=rf"{path}.*found"):
                read(path)


# Settings, tables, networks


@pytest.mark.parametrize(
    "text",
    [
        *("a = " + "[" * 10**6, "a = " + "[" * 5000 + "]" * 5000, "a." * 500_000 + "a = 1", "a." * 8000 + "a = 1"),
        *("[" + "a." * 8000 + "a]", "a = " + "{b = " * 3000 + "1" + "}" * 3000, "epochs." + "a." * 8000 + "a = 1"),
        *("epochs = 0x" + "f" * 16_000, "epochs = 0b" + "1" * 16_000, "learning-rate = 0x" + "f" * 16_000),
        *("learning-rate = 1" + "0" * 400, "epochs = 1" + "0" * 400, "x" * 16_000 + " = 1", "[[a]]\n" * 2700),
    ],
    ids=lambda text: f"{text[:12]}...{len(text)}",
)
def test_nested_tables_and_endless_numbers_are_refused(text):
    loader = Loader("settings", {"a.toml": text.encode()}, load_settings, names_it=False)
    (outcome,) = outcomes(loader, runs=1)
    assert_cheap(outcome)
    assert len(outcome.words) < 700


def test_a_settings_file_as_large_as_allowed_is_read(tmp_path):
    (tmp_path / "a.toml").write_text("epochs = 3 # ".ljust(LARGEST_FILE, "x"))
    assert read_settings(tmp_path / "a.toml") == {"epochs": 3}


def test_marks_upon_marks_on_a_letter_do_not_take_minutes():
    """To sort the marks of one letter takes the square of their number."""
    header, line, *_ = loaders()["facial points"].files["points.csv"].decode().split("\n")
    assert_cheap(try_once("points.csv", f"{header}\n{line}\n".encode(), read_points), "accepted")
    marked = line.replace("anna", "a" + "\u0345\u0327\u0300" * 40_000)
    outcome = try_once("points.csv", f"{header}\n{marked}\n".encode(), read_points)
    assert_cheap(outcome)
    assert "line 2: expected cells of up to 500 letters, got one of 1200" in outcome.words


def test_a_small_file_for_a_crowd_takes_no_memory():
    """Its metadata ask for a classifier of 1.6 GB, which is not in it."""
    content = claim_a_crowd(trained_network()[0], np.random.default_rng(0))
    outcome = try_once("model.safetensors", content, load_to_use)
    assert_cheap(outcome)
    assert "fc.weight" in outcome.words


# Nothing here runs what a file brings along

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("np", "load"),
    ("numpy", "load"),
    ("torch", "load"),
    ("xp", "load"),
    ("cupy", "load"),
    ("pd", "read_pickle"),
}


def unsafe(source: str) -> list[str]:
    """What stands in a program that may run whatever a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            found.append(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if (node.value.id, node.attr) in METHODS else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
    return found


def test_nothing_here_unpickles_or_evaluates():
    files = [ROOT / "train.py", *(ROOT / "nn").rglob("*.py"), *(ROOT / "resnet").rglob("*.py")]
    assert len(files) > 60
    assert {str(file): found for file in files if (found := unsafe(file.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import pickle", "pickle"),
        ("import os, pickle as p", "pickle"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import yaml.loader", "yaml.loader"),
        ("x = np.load('a.npy')", "np.load"),
        ("read = torch.load", "torch.load"),
        ("numpy.load(f, allow_pickle=True)", "numpy.load"),
        ("f(allow_pickle=True)", "allow_pickle"),
        ("[eval(x) for x in y]", "eval"),
        ("lambda: exec(x)", "exec"),
    ],
)
def test_a_planted_one_is_found(source, named):
    assert named in unsafe(source)


def test_what_is_harmless_is_not_found():
    assert unsafe('model.eval(); re.compile("pickle"); json.load(file); x = "eval(1)"; weights.load(path)') == []
