"""How ``tests/fuzz.py`` damages a good file: blindly, or within its format as no honest program would.

A change takes the content of a file and a generator of random numbers, and returns other content. One that finds
nothing of its format returns the content as it is.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

Rng = np.random.Generator
Change = Callable[[bytes, Rng], bytes]

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
NO_SUCH_THING = (ValueError, RecursionError, AttributeError, TypeError, IndexError, KeyError)


# Of any file


def any_place(content: bytes, rng: Rng) -> int:
    """A place in a file; every second time among the first bytes, where the headers are."""
    return int(rng.integers(0, (len(content) if rng.random() < 0.5 else min(len(content), 64)) + 1))


def flip_bits(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9) if content else 0):
        changed[min(any_place(content, rng), len(content) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut_off(content: bytes, rng: Rng) -> bytes:
    return content[: any_place(content, rng)]


def take_out(content: bytes, rng: Rng) -> bytes:
    place = any_place(content, rng)
    return content[:place] + content[place + int(rng.integers(1, 40)) :]


def put_in(content: bytes, rng: Rng) -> bytes:
    place = any_place(content, rng)
    return content[:place] + rng.bytes(int(rng.integers(1, 40))) + content[place:]


def repeat(content: bytes, rng: Rng) -> bytes:
    place = any_place(content, rng)
    part = content[place : place + int(rng.integers(1, 100))]
    return content[:place] + part * int(rng.integers(2, 200)) + content[place:]


def swap(content: bytes, rng: Rng) -> bytes:
    first, second = sorted((any_place(content, rng), any_place(content, rng)))
    return content[second:] + content[first:second] + content[:first]


def make_extreme(content: bytes, rng: Rng) -> bytes:
    """Put the least or the largest number of 1, 2, 4 or 8 bytes somewhere."""
    place, size = any_place(content, rng), int(rng.choice([1, 2, 4, 8]))
    number = EXTREMES[rng.integers(len(EXTREMES))] % 256**size
    return content[:place] + number.to_bytes(size, "little" if rng.random() < 0.5 else "big") + content[place + size :]


def append(content: bytes, rng: Rng) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 10_000)))


def be_random(content: bytes, rng: Rng) -> bytes:
    return rng.bytes(int(rng.integers(0, 2000)))


BLIND: tuple[Change, ...] = (flip_bits, cut_off, take_out, put_in, repeat, swap, make_extreme, append, be_random)


def mix_with(others: Sequence[bytes]) -> Change:
    """Return the change to another kind of file, or to the beginning of one kind before the end of another."""

    def change(content: bytes, rng: Rng) -> bytes:
        other, place = others[rng.integers(len(others))], any_place(content, rng)
        return [other, other[:place] + content[place:], content[:place] + other[place:]][rng.integers(3)]

    return change


# Of JSON, and with it of the header and the metadata of safetensors

DEEP, LONG = "@deep@", "@long@"  # stand for nesting and for digits that json.dumps would not write
NUMBERS = (0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, np.nan, np.inf, -np.inf)
WORDS = ("", "x", "F32", "BF16", "F8_E4M3", "resnet152", "\x00\x1b[31m", "\ud800", "é" * 2000, DEEP, LONG)
LISTS = ([], [[]], [0], [-1], [1, 1], [2**62, 8], [0, 2**62], [1] * 70, ["x"] * 200_000)
ODD = (None, True, False, {}, {"a": 1}, {"dtype": "F32"}, *NUMBERS, *WORDS, *LISTS)
NAMES = ("", "x", "fc.weight", "steps", "a\nb", "__metadata__", "optimizer/momentum/x")


def edit_json(value: Any, rng: Rng) -> Any:
    """Return what a JSON file says with one thing in it exchanged, renamed, taken out, or there once more."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return ODD[rng.integers(len(ODD))]
    if isinstance(value, list):
        place = int(rng.integers(len(value)))
        before, this, behind = value[:place], value[place], value[place + 1 :]
        return [before, [*value, this], [*before, edit_json(this, rng), *behind]][rng.integers(3)]
    name = list(value)[rng.integers(len(value))]
    others = {key: inside for key, inside in value.items() if key != name}
    changed = {name: edit_json(value[name], rng)}
    return [others | changed, others | changed, others, others | {NAMES[rng.integers(len(NAMES))]: value[name]}][
        rng.integers(4)
    ]


def written(value: Any) -> bytes:
    """JSON as bytes, with what stands for nesting and digits filled in."""
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(f'"{LONG}"', "9" * 5000)
    return text.encode()


def change_json(content: bytes, rng: Rng) -> bytes:
    with suppress(*NO_SUCH_THING):
        return written(edit_json(json.loads(content), rng))
    return content


def parts_of(content: bytes) -> tuple[bytes, bytes]:
    """Header and numbers of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def joined(header: bytes, numbers: bytes) -> bytes:
    """Make a safetensors file of them, with the right length."""
    return len(header).to_bytes(8, "little") + header + numbers


def change_header(content: bytes, rng: Rng) -> bytes:
    header, numbers = parts_of(content)
    return joined(change_json(header, rng), numbers)


def change_one_field(content: bytes, rng: Rng) -> bytes:
    """Change the dtype, the shape or the offsets of one tensor, and leave all else right."""
    header, numbers = parts_of(content)
    with suppress(*NO_SUCH_THING):
        tensors = json.loads(header)
        names = [name for name in tensors if name != "__metadata__"]
        tensor = tensors[names[rng.integers(len(names))]]
        begin, end = tensor["data_offsets"]
        dtype = ("F64", "F32", "F16", "BF16", "I32", "U8", "BOOL", "C64", "F8_E5M2", "F4", "f32")[rng.integers(11)]
        shift = (-8, -4, -1, 1, 4, 8, 2**20, 2**62)[rng.integers(8)]
        shape = [tensor["shape"][::-1], [*tensor["shape"], 1], [*tensor["shape"], 0]][rng.integers(3)]
        fields = [
            {"dtype": dtype},
            {"shape": shape},
            {"data_offsets": [begin, end + shift]},
            {"data_offsets": [0, end]},
        ]
        tensor |= fields[rng.integers(4)]
        return joined(written(tensors), numbers)
    return content


def change_metadata(content: bytes, rng: Rng) -> bytes:
    """Change one thing in the metadata, whose words are JSON themselves."""
    header, numbers = parts_of(content)
    with suppress(*NO_SUCH_THING):
        tensors = json.loads(header)
        words = tensors["__metadata__"]
        name = list(words)[rng.integers(len(words))]
        words[name] = written(edit_json(json.loads(words[name]), rng)).decode()
        return joined(written(tensors), numbers)
    return content


def claim_a_crowd(content: bytes, rng: Rng) -> bytes:
    """Let the metadata name 200,000 people, in a network whose classifier would be 1.6 GB for them."""
    header, numbers = parts_of(content)
    with suppress(*NO_SUCH_THING):
        tensors = json.loads(header)
        tensors["__metadata__"] |= {"arch": '"resnet152"', "people": json.dumps(["x"] * 200_000)}
        return joined(json.dumps(tensors).encode(), numbers)
    return content


def change_numbers(content: bytes, rng: Rng) -> bytes:
    """Put NaN, minus infinity or the largest float32 among the weights."""
    header, numbers = parts_of(content)
    if len(numbers) < 8:
        return content
    place = 4 * int(rng.integers(len(numbers) // 4))
    odd = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f")[rng.integers(3)]
    return joined(header, numbers[:place] + odd + numbers[place + 4 :])


def name_twice(content: bytes, rng: Rng) -> bytes:
    """Let the header tell of its first tensor twice."""
    header, numbers = parts_of(content)
    first = re.search(rb'"[^"]+": ?\{"dtype".*?\]\}', header)
    return content if first is None else joined(b"{" + first[0] + b"," + header[1:], numbers)


def have_many_tensors(content: bytes, rng: Rng) -> bytes:
    """Be all header, of tensors that have no numbers."""
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return joined(("{" + ",".join(entry % number for number in range(rng.integers(2000))) + "}").encode(), b"")


SAFETENSORS: tuple[Change, ...] = (
    *(change_header, change_one_field, change_metadata, change_metadata),
    *(change_numbers, name_twice, have_many_tensors),
)


# Of pictures


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file as (kind, data), as far as there are any."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        chunks.append((kind, content[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Make a PNG file of chunks, with the lengths and the checksums that they need."""
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


def new_chunk(rng: Rng) -> tuple[bytes, bytes]:
    """A chunk with a megabyte in a few bytes, or with nonsense."""
    bomb = zlib.compress(bytes(2**20))
    kind = bytes(rng.integers(65, 91, 4, dtype=np.uint8))
    bombs = [(b"zTXt", b"words\0\0" + bomb), (b"iTXt", b"words\0\1\0\0\0" + bomb), (b"iCCP", b"profile\0\0" + bomb)]
    nonsense = [(b"eXIf", b"II*\0" + rng.bytes(40)), (b"acTL", struct.pack(">II", 2**31, 0)), (kind, rng.bytes(9))]
    tables = [(b"tRNS", rng.bytes(5)), (b"PLTE", rng.bytes(int(rng.integers(800))))]
    return [*bombs, *nonsense, *tables][rng.integers(8)]


def change_png(content: bytes, rng: Rng) -> bytes:
    """Change chunks, or what is in one, and make the checksums right again."""
    chunks = png_chunks(content)
    if not chunks:
        return content
    place, times = int(rng.integers(len(chunks))), int(rng.choice([1, 2, 100]))
    (kind, data), before, behind = chunks[place], chunks[:place], chunks[place + 1 :]
    others = [
        [*before, (kind, flip_bits(data, rng)), *behind],
        [*before, *behind],
        [*before, *[(kind, data)] * times, *behind],
        [*before, *[new_chunk(rng)] * times, *chunks[place:]],
        [chunks[number] for number in rng.permutation(len(chunks))],
    ]
    return png(others[rng.integers(5)])


def repeat_scan(content: bytes, rng: Rng) -> bytes:
    """Repeat the last scan of a JPEG file."""
    start = content.rfind(b"\xff\xda")
    return content if start < 0 else content[:start] + content[start:-2] * int(rng.integers(2, 300)) + content[-2:]


def tiff_entries(content: bytes) -> list[int]:
    """Where the entries of the first directory of a little-endian TIFF file are."""
    if content[:4] != b"II*\0" or len(content) < 8:
        return []
    place = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[place : place + 2], "little")
    return [start for start in range(place + 2, place + 2 + 12 * count, 12) if start + 12 <= len(content)]


def change_tiff(content: bytes, rng: Rng) -> bytes:
    """Make the tag, the type, the count or the value of an entry extreme, or let the next directory be this one."""
    entries = tiff_entries(content)
    if not entries:
        return content
    start, size = [(0, 2), (2, 2), (4, 4), (8, 4)][rng.integers(4)]
    start += entries[rng.integers(len(entries))]
    number = (EXTREMES[rng.integers(len(EXTREMES))] if rng.random() < 0.5 else int(rng.integers(300))) % 256**size
    if rng.random() < 0.1:
        start, size, number = entries[-1] + 12, 4, entries[0] - 2
    return content[:start] + number.to_bytes(size, "little") + content[start + size :]


def claim_size(kind: str, content: bytes, width: int, height: int) -> bytes:
    """Let a picture file of some format say that it is so large, with all else left as it is.

    Raises:
        OverflowError, struct.error: the format has no room for such numbers.
        ValueError: there is no such place in this file.
    """

    def at(place: int, *numbers: bytes) -> bytes:
        return content[:place] + b"".join(numbers) + content[place + sum(map(len, numbers)) :]

    def little(number: int, size: int) -> bytes:
        return number.to_bytes(size, "little")

    if kind == "PNG":
        (first, data), *others = png_chunks(content)
        return png([(first, struct.pack(">II", width, height) + data[8:]), *others])
    if kind == "BMP":
        return at(18, little(width, 4), little(height, 4))
    if kind == "GIF":
        return at(6, little(width, 2), little(height, 2))
    if kind == "PPM":
        return re.sub(rb"^(P\d)\s+\d+\s+\d+", rb"\1 %d %d" % (width, height), content)
    if kind == "JPEG" and (frame := re.search(rb"\xff[\xc0-\xc2]\x00.\x08", content, re.DOTALL)) is not None:
        return at(frame.end(), height.to_bytes(2, "big"), width.to_bytes(2, "big"))
    if kind == "WEBP" and content[12:16] == b"VP8X":
        return at(24, little(width - 1, 3), little(height - 1, 3))
    if kind == "WEBP" and content[12:16] == b"VP8 ":
        return at(26, little(width, 2), little(height, 2))
    if kind == "TIFF":
        sizes = {256: width, 257: height}
        for start in tiff_entries(content):
            tag = int.from_bytes(content[start : start + 2], "little")
            if tag in sizes:
                content = at(start + 2, little(4, 2), little(1, 4), little(sizes[tag], 4))
        return content
    raise ValueError(f"expected a {kind} file whose size stands at a known place")


def claim_any_size(kind: str) -> Change:
    """Return the change that lets a file of this format claim a size that is large, or 0, or hardly too large."""

    def change(content: bytes, rng: Rng) -> bytes:
        sides = (0, 1, 255, 8000, 8001, 16_383, 65_535, 100_000, 2**31 - 1, 2**32 - 1)
        width, height = (sides[number] for number in rng.integers(len(sides), size=2))
        with suppress(OverflowError, ValueError, struct.error):
            return claim_size(kind, content, width, height)
        return content

    return change


PICTURES: dict[str, tuple[Change, ...]] = {
    "JPEG": (claim_any_size("JPEG"), repeat_scan),
    "PNG": (claim_any_size("PNG"), change_png, change_png),
    "TIFF": (claim_any_size("TIFF"), change_tiff, change_tiff),
    **{kind: (claim_any_size(kind),) for kind in ("PPM", "BMP", "WEBP", "GIF")},
}


# Of text


def put_word(words: Sequence[str]) -> Change:
    """Return the change that puts one of these in the place of a word of a text, or doubles a line."""

    def change(content: bytes, rng: Rng) -> bytes:
        lines = content.split(b"\n")
        place = int(rng.integers(len(lines)))
        found = re.split(rb"([,;=\s]+)", lines[place])  # word, space, word, space, ..., word
        found[2 * int(rng.integers(len(found) // 2 + 1))] = words[rng.integers(len(words))].encode("utf-8", "replace")
        line = b"".join(found) if rng.random() < 0.8 else lines[place] + b"\n" + lines[place]
        return b"\n".join([*lines[:place], line, *lines[place + 1 :]])

    return change


# fmt: off
TOML_WORDS = (
    "nan", "inf", "-inf", "1e400", "-1", "true", "'x'", '""', '"\\u0000"', '"""', "'''", "1979-05-27", "[1, 2]", "[x]",
    "[[x]]", "{a = 1}", "#", "1_0", "0b1", "1.", "0x" + "f" * 2000, "9" * 400, "9" * 5000, "[" * 9000, "é" * 2000,
    '"\\ud800"', "\x00", "[" * 2000 + "]" * 2000, "a." * 4000 + "a = 1", "{a = " * 900 + "1" + "}" * 900, "epochs",
)
CSV_WORDS = (
    "nan", "inf", "1e999", "1_0", "٣", '"', '"""', "'", ",", ";;", "-1", "0x1", "1,5", "..", "/", "\\", "file", "",
    "chin_y", " ", "\r", "\x00", "\u2028", "9" * 400, "x" * 200_000, "a" + "\u0345\u0327\u0300" * 30_000,
)
# fmt: on
