"""Pictures with what they show: found in a folder or a table, read upright, and cut to a square.

Reading is Pillow's. A picture is turned as its EXIF orientation says, laid on white where it is transparent, made as
small as keeps its shorter side at the resolution (larger, if it is smaller), and cut to the middle square.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from weft.data.rows import SUFFIXES, Row, read_rows
from weft.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Picture:
    """A picture's file, and what it shows in words."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Square:
    """A picture as a model takes it.

    Attributes:
        pixels: (3, resolution, resolution), float32, from -1 to 1.
        size: the height and width that it was read with, in pixels.
        corner: the top and left of the square in it, after it was resized.
    """

    pixels: Tensor
    size: tuple[int, int]
    corner: tuple[int, int]


@dataclass(frozen=True)
class ImageReport:
    """What became of a data set's pictures.

    Attributes:
        rows: pictures.
        captions: different captions among them.
        enlarged: pictures that were smaller than the resolution.
        resolution: the side of the squares that they were made, in pixels.
    """

    rows: int
    captions: int
    enlarged: int
    resolution: int

    def __str__(self) -> str:
        captions = "one caption" if self.captions == 1 else f"{self.captions:,} captions"
        text = f"{self.rows:,} pictures at {self.resolution} x {self.resolution}, {captions}"
        return text + (f"; {self.enlarged:,} were smaller and enlarged" if self.enlarged else "")


def find_pictures(
    source: str | Path,
    caption: str | None = None,
    *,
    image_column: str = "file_name",
    caption_column: str = "text",
) -> list[Picture]:
    """The pictures of a data set, in order of their names, or of the table's rows.

    Args:
        source: a folder of pictures; one with a metadata.jsonl or metadata.csv in it, which is read then; or a table
            with the pictures' files, relative to its folder, and their captions.
        caption: of every picture, whatever a table says.
        image_column, caption_column: the table's.

    Raises:
        DataError: there are none, a file is not there, or a picture has no caption.
    """
    path = Path(source).expanduser()
    table = next((path / name for name in TABLES if (path / name).is_file()), path)
    if table.is_file():
        found = list(_listed(table, caption, image_column, caption_column))
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if files and caption is None:
            raise DataError(
                f"{path}: nothing says what its pictures show; give instance_prompt, or a metadata.jsonl in the folder "
                f"with {image_column!r} and {caption_column!r} of each"
            )
        found = [Picture(file, caption) for file in files if caption is not None]
    else:
        raise DataError(f"there is no folder of pictures {path}, and no table ({', '.join(SUFFIXES)}) of this name")
    if not found:
        raise DataError(f"{path} holds no pictures ({', '.join(PICTURES)})")
    return found


def read_picture(path: Path) -> Image.Image:
    """A picture, upright, in RGB.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.has_transparency_data:
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}; convert it, or take it out") from error


def square(picture: Image.Image, resolution: int) -> Square:
    """The middle square of a picture, at `resolution` pixels a side."""
    width, height = picture.size
    scale = resolution / min(width, height)
    resized = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    left, top = ((side - resolution) // 2 for side in resized)
    cut = picture.resize(resized, Image.Resampling.LANCZOS).crop((left, top, left + resolution, top + resolution))
    values = torch.from_numpy(np.asarray(cut, dtype=np.float32) / 127.5 - 1)  # (resolution, resolution, 3)
    return Square(values.permute(2, 0, 1).contiguous(), (height, width), (top, left))


def _listed(table: Path, caption: str | None, image_column: str, caption_column: str) -> Iterator[Picture]:
    """The pictures of a table's rows."""
    for row in read_rows(table):
        file = table.parent / _text(row, image_column)
        if not file.is_file():
            raise DataError(f"{row.where}: there is no picture {file}")
        yield Picture(file, _text(row, caption_column) if caption is None else caption)


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        there = ", ".join(map(repr, row.values))
        raise DataError(f"{row.where}: expected text in the column {column!r}, found {value!r} (columns: {there})")
    return value
