"""Pictures are found with their captions, read upright, and cut to the middle square."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from weft.data.images import Picture, find_pictures, read_picture, square
from weft.errors import DataError

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)
ORIENTATION = 274  # EXIF's tag


def striped(*colors: tuple[int, int, int], size: int = 8) -> Image.Image:
    """Vertical stripes, side by side."""
    picture = Image.new("RGB", (size * len(colors), size))
    for place, color in enumerate(colors):
        picture.paste(color, (place * size, 0, (place + 1) * size, size))
    return picture


def test_a_folders_pictures_come_in_order_with_the_one_caption(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        striped(RED).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    found = find_pictures(tmp_path, "a photo of sks dog")
    assert found == [Picture(tmp_path / name, "a photo of sks dog") for name in ("a.JPG", "b.png", "c.webp")]


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "elsewhere.jsonl"])
def test_captions_come_from_a_table(table: str, tmp_path: Path) -> None:
    striped(RED).save(tmp_path / "a.png")
    striped(BLUE).save(tmp_path / "b.png")
    rows = [("b.png", "blue"), ("a.png", "red")]
    if table.endswith(".csv"):
        text = "file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows)
    else:
        text = "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    (tmp_path / table).write_text(text)
    source = tmp_path if table.startswith("metadata") else tmp_path / table
    assert find_pictures(source) == [Picture(tmp_path / "b.png", "blue"), Picture(tmp_path / "a.png", "red")]
    assert {picture.caption for picture in find_pictures(source, "one for all")} == {"one for all"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('{"file_name": "gone.png", "text": "x"}', r"metadata.jsonl line 1: there is no picture .*gone.png"),
        ('{"file_name": "a.png"}', r"line 1: expected text in the column 'text', found None \(columns: 'file_name'\)"),
        ('{"image": "a.png", "text": "x"}', "expected text in the column 'file_name'"),
    ],
)
def test_a_row_that_names_no_picture_or_caption_is_named(rows: str, expected: str, tmp_path: Path) -> None:
    striped(RED).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(rows)
    with pytest.raises(DataError, match=expected):
        find_pictures(tmp_path)


def test_no_pictures_no_folder_and_no_caption_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        find_pictures(tmp_path, "x")
    with pytest.raises(DataError, match="there is no folder of pictures"):
        find_pictures(tmp_path / "gone", "x")
    striped(RED).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="nothing says what its pictures show; give instance_prompt"):
        find_pictures(tmp_path)


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # its top is at the right: to be turned by 90 degrees clockwise
    striped(RED, BLUE).save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.size == (8, 16)
    assert [upright.getpixel((4, y)) for y in (2, 13)] == [RED, BLUE]


def test_what_is_transparent_is_white_and_all_becomes_rgb(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "gray.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(tmp_path / "gray.png").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_what_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "bad.png"
    if content is None:
        striped(RED, BLUE, GREEN, size=64).save(file)
        content = file.read_bytes()[:-200]  # cut short
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png cannot be read as a picture"):
        read_picture(file)


def test_the_middle_square_is_taken_at_the_resolution() -> None:
    cut = square(striped(RED, BLUE, GREEN), 16)
    assert cut.pixels.shape == (3, 16, 16)
    assert cut.pixels.dtype == torch.float32
    assert cut.pixels[:, 8, 8].tolist() == [-1, -1, 1]
    assert cut.pixels[:, :, 5:11].amax((1, 2)).tolist() == [-1, -1, 1]  # nothing of the stripes beside it
    assert (cut.size, cut.corner) == ((8, 24), (0, 16))
    tall = square(striped(RED, BLUE).rotate(-90, expand=True), 8)
    assert (tall.size, tall.corner) == ((16, 8), (4, 0))
    assert (tall.pixels[0, 0, 4], tall.pixels[2, 7, 4]) == (1, 1)  # red above, blue below
