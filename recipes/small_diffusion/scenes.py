"""Pictures of simple scenes with captions: an animal or a thing, in a color, on a ground, drawn with a few shapes."""

import random

from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]

COLORS: dict[str, Color] = {
    "red": (200, 40, 40), "orange": (225, 130, 40), "yellow": (230, 210, 70), "green": (60, 150, 60),
    "blue": (50, 90, 200), "purple": (130, 60, 160), "brown": (130, 85, 50), "white": (235, 235, 230),
    "gray": (130, 130, 130), "black": (35, 35, 40),
}  # fmt: skip
GROUNDS: dict[str, Color] = {
    "grass": (90, 150, 60), "sand": (215, 195, 150), "snow": (240, 240, 245), "water": (80, 130, 190),
    "wood": (150, 105, 65), "stone": (150, 145, 140),
}  # fmt: skip
THINGS = ("dog", "cat", "backpack", "ball", "house", "tree")
WORDS = (*COLORS, *GROUNDS, *THINGS, *["a", "photo", "of", "on", "the", "sks"])
SIDE = 32  # pixels; scenes are drawn at four times that


def scene(chance: random.Random) -> tuple[Image.Image, str]:
    """A picture, SIDE x SIDE, and its caption."""
    color, ground, thing = (chance.choice(list(names)) for names in (COLORS, GROUNDS, THINGS))
    side = 4 * SIDE
    picture = _graded(side, COLORS[chance.choice(list(COLORS))], chance)
    horizon = side * chance.uniform(0.3, 0.7)
    lower = _graded(side, GROUNDS[ground], chance)
    picture.paste(lower.crop((0, int(horizon), side, side)), (0, int(horizon)))
    size = side * chance.uniform(0.5, 0.9)
    left, top = chance.uniform(0, side - size), chance.uniform(0, side - size)
    _draw(ImageDraw.Draw(picture), thing, _near(COLORS[color], chance), left, top, size, mirrored=chance.random() < 0.5)
    soft = picture.filter(ImageFilter.GaussianBlur(chance.uniform(0, 2)))
    grain = Image.frombytes("L", (SIDE, SIDE), chance.randbytes(SIDE * SIDE)).convert("RGB")
    small = soft.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Image.blend(small, grain, chance.uniform(0, 0.06)), f"a photo of a {color} {thing} on the {ground}"


def _graded(side: int, color: Color, chance: random.Random) -> Image.Image:
    """A ground that goes from one shade to another, in any direction."""
    ends = [Image.new("RGB", (side, side), _near(color, chance, 40)) for _ in range(2)]
    ramp = Image.linear_gradient("L").rotate(chance.uniform(0, 360)).resize((side, side))
    return Image.composite(*ends, ramp)


def _near(color: Color, chance: random.Random, far: int = 25) -> Color:
    red, green, blue = (max(0, min(255, value + chance.randint(-far, far))) for value in color)
    return red, green, blue


def _draw(
    draw: ImageDraw.ImageDraw, thing: str, color: Color, left: float, top: float, size: float, mirrored: bool
) -> None:
    """One thing in the square at (left, top); coordinates below are shares of its side."""
    dark: Color = tuple(value * 2 // 3 for value in color)  # type: ignore[assignment]

    def at(x: float, y: float) -> Point:
        return left + size * (1 - x if mirrored else x), top + size * y

    def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
        (a, b), (c, d) = at(x0, y0), at(x1, y1)
        return [min(a, c), min(b, d), max(a, c), max(b, d)]

    if thing in ("dog", "cat"):
        for x in (0.15, 0.3, 0.5, 0.65):
            draw.rectangle(box(x, 0.6, x + 0.1, 0.98), fill=dark)
        draw.ellipse(box(0.1, 0.4, 0.8, 0.8), fill=color)
        draw.ellipse(box(0.6, 0.1, 0.98, 0.5), fill=color)
        if thing == "dog":
            draw.ellipse(box(0.56, 0.14, 0.7, 0.5), fill=dark)
            draw.ellipse(box(0.86, 0.28, 1.0, 0.44), fill=dark)
            draw.line([at(0.12, 0.5), at(0.0, 0.3)], fill=color, width=max(1, int(size * 0.07)))
        else:
            for x in (0.62, 0.82):
                draw.polygon([at(x, 0.2), at(x + 0.07, 0.0), at(x + 0.14, 0.18)], fill=dark)
            draw.arc(box(0.0, 0.1, 0.2, 0.65), 90, 270, fill=color, width=max(1, int(size * 0.05)))
        for x in (0.74, 0.86):
            draw.ellipse(box(x, 0.24, x + 0.05, 0.29), fill=(15, 15, 15))
    elif thing == "backpack":
        draw.arc(box(0.35, 0.0, 0.65, 0.3), 180, 360, fill=dark, width=max(1, int(size * 0.06)))
        draw.rounded_rectangle(box(0.15, 0.1, 0.85, 0.98), radius=size * 0.2, fill=color)
        draw.rounded_rectangle(box(0.25, 0.55, 0.75, 0.92), radius=size * 0.08, fill=dark)
    elif thing == "ball":
        draw.ellipse(box(0.1, 0.1, 0.9, 0.9), fill=color)
        draw.ellipse(box(0.5, 0.2, 0.7, 0.4), fill=(250, 250, 250))
    elif thing == "house":
        draw.rectangle(box(0.1, 0.45, 0.9, 0.98), fill=color)
        draw.polygon([at(0.0, 0.45), at(0.5, 0.05), at(1.0, 0.45)], fill=dark)
        draw.rectangle(box(0.4, 0.65, 0.6, 0.98), fill=(40, 30, 25))
    else:
        draw.rectangle(box(0.42, 0.6, 0.58, 1.0), fill=(95, 65, 40))
        draw.polygon([at(0.05, 0.7), at(0.5, 0.0), at(0.95, 0.7)], fill=color)
