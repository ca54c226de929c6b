"""Pictures with words below them, and names for their files."""

from __future__ import annotations

import io
import itertools
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = (
    256,
    1280,
)  # pixels: pictures are enlarged until the shorter side, or shrunk until the longer one fits
LONGEST_LINE = 200  # characters that are measured at all
LONGEST_NAME = 180  # bytes of a file's name; 255 is what file systems take, with what is added
PAPER, INK = (24, 24, 24), (255, 255, 255)


def annotate(picture: NDArray[np.uint8], lines: Sequence[str]) -> Image.Image:
    """A picture with a band of words below it.

    Pictures smaller than 256 pixels are enlarged, those larger than 1280 shrunk; a narrow one stands in the middle.

    Args:
        picture: uint8 (H, W, 1 or 3).
        lines: of printable characters; one that is too long ends in "…".
    """
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)  # Pillow's grey is (H, W)
    zoom = min(max(1, SMALLEST / min(image.size)), LARGEST / max(image.size))
    width, height = (max(1, round(zoom * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC) if zoom != 1 else image
    across = max(width, SMALLEST)
    letter = min(max(14, across // 24), 36)
    font, gap = _font(letter), letter // 2
    band = gap + len(lines) * (letter + gap)
    sheet = Image.new("RGB", (across, height + band), PAPER)
    sheet.paste(image, ((across - width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        words = _fitting(line, font, across - 2 * gap)
        draw.text((gap, height + gap + number * (letter + gap)), words, font=font, fill=INK)
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own DejaVu Sans, which has the letters of most scripts: it is there on any machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitting(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A line, or as much of it as fits into a width in pixels, and "…"."""
    if len(line) <= LONGEST_LINE and font.getlength(line) <= width:
        return line
    line = line[:LONGEST_LINE]
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def to_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=3)  # as small as 6, the default, in less than half the time
    return content.getvalue()


def png_names(places: Sequence[PurePath], taken: Sequence[str]) -> list[str]:
    """A file name for each picture, all different, also where small and capital letters are the same.

    anna/1.jpg becomes anna_1.png, and where that is taken anna_1-2.png.

    Args:
        places: of the pictures, as they are to be recognised by.
        taken: names that shall not be used.
    """
    used = {_alike(name) for name in taken}
    names = []
    for place in places:
        stem = _safe("_".join(place.with_suffix("").parts))
        numbered = (f"{stem}-{number}.png" for number in itertools.count(2))
        name = next(name for name in itertools.chain([f"{stem}.png"], numbered) if _alike(name) not in used)
        used.add(_alike(name))
        names.append(name)
    return names


def _safe(stem: str) -> str:
    """A name that any file system takes, and that is not hidden."""
    letters = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in stem)
    return letters.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .") or "picture"


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
