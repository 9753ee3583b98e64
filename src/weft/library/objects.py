"""The adapters of a library on the disk: one folder each, at the digest of its value, that appears by one rename.

objects/ab/ab12...   in the library
trash/ab12...        removed
staging/<letters>    being written, or about to be deleted; nothing here counts

Knows nothing of the index. What must not happen twice at once is kept apart by whoever calls.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weft.library.record import RECORD, Record

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABANDONED = 3600.0  # seconds after which nobody is still writing


@dataclass(frozen=True)
class Objects:
    """The folders of one library."""

    root: Path

    @property
    def kept(self) -> Path:
        """Where adapters are that are in the library."""
        return self.root / "objects"

    @property
    def trash(self) -> Path:
        """Where removed ones are."""
        return self.root / "trash"

    @property
    def staging(self) -> Path:
        """Where what is being written is."""
        return self.root / "staging"

    def place(self, digest: str, *, removed: bool = False) -> Path:
        """Where an adapter's folder is."""
        return self.trash / digest if removed else self.kept / digest[:2] / digest

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A place to write a new folder to; what is still there at the end of the block is deleted."""
        self.kept.mkdir(parents=True, exist_ok=True)  # first of all: by this a library is known
        self.staging.mkdir(exist_ok=True)
        folder = self.staging / secrets.token_hex(8)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def move(self, source: Path, target: Path) -> None:
        """Renames a folder, and waits until both names are on the disk.

        Raises:
            OSError: it could not be, and is where it was.
        """
        from weft.formats.atomic import flush  # brings torch, which reading does not need

        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        flush(target.parent)
        flush(source.parent)

    def describe(self, folder: Path, record: Record) -> None:
        """Puts a record into an adapter's folder by one rename, so that readers find the old one or the new.

        Raises:
            OSError: the disk did not take it; what was there is there.
        """
        with self.staged() as aside:
            aside.mkdir()
            record.write(aside)
            os.replace(aside / RECORD, folder / RECORD)

    def delete(self, folder: Path) -> None:
        """Deletes a folder, which is nowhere from the first moment on.

        Raises:
            OSError: it could not be moved out, and is where it was.
        """
        with self.staged() as aside:
            self.move(folder, aside)

    def all(self, *, removed: bool = False) -> Iterator[tuple[str, Path]]:
        """Digest and folder of every adapter, in the order of the digests."""
        groups = [self.trash] if removed else sorted(_folders(self.kept))
        for group in groups:
            for folder in sorted(_folders(group)):
                if _DIGEST.fullmatch(folder.name) and self.place(folder.name, removed=removed) == folder:
                    yield folder.name, folder

    def strangers(self) -> Iterator[Path]:
        """What stands among the adapters and is none, by its name or place."""
        for removed, parents in ((True, [self.trash]), (False, sorted(_folders(self.kept)))):
            for path in (path for parent in parents for path in sorted(_entries(parent))):
                if not _DIGEST.fullmatch(path.name) or self.place(path.name, removed=removed) != path:
                    yield path
        yield from (path for path in sorted(_entries(self.kept)) if path.is_file())

    def abandoned(self) -> list[Path]:
        """What processes that are long gone left in the staging folder."""
        before, found = time.time() - _ABANDONED, []
        for path in sorted(_entries(self.staging)):
            with suppress(FileNotFoundError):  # its process has just finished
                if path.stat().st_mtime < before:
                    found.append(path)
        return found


def folder_bytes(folder: Path) -> int:
    """The size of a folder's files."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))


def _folders(parent: Path) -> list[Path]:
    return [path for path in _entries(parent) if path.is_dir()]


def _entries(parent: Path) -> list[Path]:
    return list(parent.iterdir()) if parent.is_dir() else []
