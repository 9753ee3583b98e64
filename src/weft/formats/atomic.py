"""Putting a set of files into a folder complete or not at all.

The files are written into a hidden folder beside their place, flushed to the disk, and then moved. A new
folder appears by one rename. A folder that holds nothing but an earlier set is swapped: the old one is
renamed aside, the new one renamed in, the old one deleted. A folder that holds anything else keeps it: only
the set's own files are moved, all of the old out before any of the new in, so that a reader finds the old set,
the new one, or not a whole one, but never a mixture. At every moment one complete set is on the disk.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from weft.errors import FormatError


@contextmanager
def staged_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to write the files `names` into; they are put into `folder` when the block ends without an error.

    Args:
        folder: where they go; made if it is not there. Other files in it are left alone.
        names: the files of the set, which the block writes.

    Raises:
        FormatError: the disk did not take them; what was in `folder` before is there as it was.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"cannot write to {folder}: a file is there; give the name of a folder")
    blocked = next((folder / name for name in names if (folder / name).is_dir()), None)
    if blocked is not None:
        raise FormatError(f"cannot write to {folder}: {blocked} is a folder; move it away, or choose another place")
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A mount point and the working directory cannot be swapped for another folder either.
        keeps = folder.is_dir() and (
            any(entry not in names for entry in os.listdir(folder)) or os.path.ismount(folder) or folder == Path.cwd()
        )
        staging = (folder if keeps else folder.parent) / f".{folder.name}.{secrets.token_hex(4)}"
        staging.mkdir()
        yield staging
        for name in os.listdir(staging):
            flush(staging / name)
        flush(staging)
        if keeps:
            _move_files(staging, folder, names)
        else:
            _swap_folder(staging, folder, names)
        flush(folder.parent)
    except OSError as error:
        raise FormatError(
            f"cannot write to {folder}: {error.strerror or error}{_space_left(error, folder)}; "
            "what was there before is there as it was"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _swap_folder(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Puts `staging` in the place of `folder`, which holds nothing but files of the set, or is not there."""
    if not folder.exists():
        staging.rename(folder)
        return
    staging.chmod(stat.S_IMODE(folder.stat().st_mode))
    aside = swap(staging, folder)
    with suppress(OSError):  # what cannot be deleted, or is not ours to delete, stays aside
        for name in names:
            (aside / name).unlink(missing_ok=True)
        aside.rmdir()


def swap(new: Path, folder: Path) -> Path:
    """Renames `folder` aside and `new` into its place, or leaves both as they are; returns where the old one stands."""
    aside = new.with_name(f"{new.name}.old")
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    return aside


def _move_files(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Moves the files of the set from `staging` into `folder`, and those that they replace out of it."""
    aside = staging.with_name(f"{staging.name}.old")
    aside.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in ((folder, aside), (staging, folder)):
            for name in names:
                if (source / name).exists():
                    (source / name).rename(target / name)
                    moved.append((source / name, target / name))
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        aside.rmdir()
        raise
    flush(folder)
    shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _space_left(error: OSError, folder: Path) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f" ({shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there)"
