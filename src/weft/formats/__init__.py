"""Adapter files. One file a format; each registers itself in `weft.adapter.file_formats`."""

from weft.formats import diffusers, kohya, peft
from weft.formats.load import load

__all__ = ["diffusers", "kohya", "load", "peft"]
