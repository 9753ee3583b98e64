"""``weft.json``, which stands beside an adapter's files in a library: all that the index is made of.

The manifest, a checksum of each file beside it, the sketch, and a checksum of all that.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import FormatError
from weft.library.manifest import Manifest

RECORD = "weft.json"
_VERSION = 1


class NewerRecordError(FormatError):
    """A record that a newer weft wrote: it is not damaged, and not to be written over."""


@dataclass(frozen=True)
class Record:
    """What is known of an object.

    Attributes:
        manifest: what the library says of the adapter.
        files: file name -> sha256.
        sketch: see `weft.library.sketch`; None for a change that is zero.
        base: the base's fingerprint as plain values, if it is known.
    """

    manifest: Manifest
    files: Mapping[str, str]
    sketch: bytes | None
    base: Mapping[str, Any] | None

    def write(self, folder: Path) -> None:
        """Writes the record into a folder that nobody reads from yet.

        Raises:
            OSError: the disk did not take it.
        """
        from weft.formats.atomic import flush  # brings torch, which reading does not need

        (folder / RECORD).write_text(self._text(), encoding="utf-8")
        flush(folder / RECORD)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record in an object's folder.

        Raises:
            FormatError: it is missing, damaged, or of a newer weft.
        """
        path = folder / RECORD
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise FormatError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        try:
            values = json.loads(text)
            if values["version"] > _VERSION:
                raise NewerRecordError(
                    f"{path} was written by a newer weft (version {values['version']} of its form, known here: "
                    f"{_VERSION}); upgrade weft"
                )
            if values.pop("checksum") != _checksum(values):
                raise ValueError("its checksum is another")
            sketch = values["sketch"]
            return cls(
                Manifest.from_dict(values["manifest"]),
                dict(values["files"]),
                None if sketch is None else base64.b64decode(sketch),
                values["base"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} is damaged: {error}") from error

    def _text(self) -> str:
        values: dict[str, Any] = {
            "version": _VERSION,
            "manifest": self.manifest.to_dict(),
            "files": dict(self.files),
            "sketch": None if self.sketch is None else base64.b64encode(self.sketch).decode(),
            "base": self.base,
        }
        return json.dumps(values | {"checksum": _checksum(values)}, indent=2, ensure_ascii=False) + "\n"


def file_sums(folder: Path) -> dict[str, str]:
    """The sha256 of each of an object's files, the record left out."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name != RECORD)
    return {name: _sum_of(folder / name) for name in names}


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
