"""Adapter files. One file a format; each registers itself in `weft.adapter.file_formats`."""

from weft.formats import peft
from weft.formats.load import load

__all__ = ["load", "peft"]
