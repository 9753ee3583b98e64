"""Looking over a whole library: every adapter read again, and what is wrong named; the index made anew."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from weft.digest import digest as digest_of
from weft.errors import FormatError
from weft.fingerprint import Fingerprint
from weft.formats import load
from weft.library import index
from weft.library.base import row_of_base
from weft.library.describe import manifest_of
from weft.library.index import DamagedIndexError, Index
from weft.library.manifest import Manifest
from weft.library.record import NewerRecordError, Record, file_sums
from weft.library.sketch import sketch
from weft.library.store import Store

Sort = Literal["damaged", "missing", "stray", "index", "leftover"]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a library.

    Attributes:
        sort: damaged: files that are not what was written; missing: in the index, and nowhere else; stray: an adapter
            that is not in the index, or something that is no adapter; index: it says other than the adapter does, or
            cannot be read; leftover: of a process that was killed.
        name: the adapter's, if it is known.
        digest: the adapter's, if it is one.
        path: where.
        message: what is wrong, and what to do.
        repaired: whether it is no longer so.
    """

    sort: Sort
    name: str | None
    digest: str | None
    path: Path
    message: str
    repaired: bool = False


def verify(store: Store, progress: Callable[[str], object]) -> list[Problem]:
    """See `Library.verify`."""
    damage = _index_damage(store)
    problems = [] if damage is None else [Problem("index", None, None, store.index, damage)]
    for removed in (False, True):
        for digest, folder in list(store.objects.all(removed=removed)):
            progress(digest)
            for _ in range(2):  # somebody may have moved it while it was read
                problem = _problem(store, digest, folder, removed, indexed=damage is None)
                if problem is None or problem.sort != "damaged":
                    break
            if problem is not None and folder.exists():
                problems.append(problem)
    if damage is None:
        problems = _settled(store, [*problems, *_missing(store)])
    stray = "it is no adapter of this library; move it elsewhere"
    left = "a process that wrote here was killed; --repair deletes it"
    problems += [Problem("stray", None, None, path, stray) for path in store.objects.strangers()]
    problems += [Problem("leftover", None, None, path, left) for path in store.objects.abandoned()]
    return problems


def repaired(store: Store, progress: Callable[[str], object]) -> list[Problem]:
    """The same, and then the index made anew from the adapters, and what killed processes left deleted."""
    problems = verify(store, progress)
    rebuild(store)
    for path in store.objects.abandoned():
        store.objects.delete(path)
    left = {(problem.sort, problem.path) for problem in verify(store, lambda digest: None)}
    return [replace(problem, repaired=(problem.sort, problem.path) not in left) for problem in problems]


def rebuild(store: Store) -> None:
    """Makes the index anew from the adapters alone.

    A damaged one is deleted; a process that has it open at this moment writes into nothing, and what it adds is found
    as a stray later. An adapter whose record is damaged is described again, as the index did, or from its own files.

    Raises:
        FormatError: the index is of a newer weft, or the disk does not take a new one.
    """
    if _index_damage(store) is not None:
        index.delete(store.index)
    with store.changing() as change:
        noted = change.index.everything()
        change.index.clear()
        for removed in (True, False):
            for digest, folder in list(store.objects.all(removed=removed)):
                record = _record(store, folder, digest, noted.get(digest))
                if record is None:
                    continue
                change.index.forget(digest)  # in both places after a kill: the one in the library counts
                name = record.manifest.name
                if not removed and change.index.named(name) is not None:
                    record = replace(record, manifest=replace(record.manifest, name=f"{name[:80]}-{digest[:8]}"))
                    store.objects.describe(folder, record)
                base = None if record.base is None else Fingerprint.from_dict(record.base)
                row = row_of_base(change.index, base)
                change.index.add(record.manifest, base=row, sketch=record.sketch, removed=removed)


_REPAIR = "`weft library verify --repair` makes the index anew"


def _index_damage(store: Store) -> str | None:
    """What is wrong with the index as a file.

    Raises:
        FormatError: it is of a newer weft.
    """
    if not store.index.is_file() and any(store.objects.all()):
        return f"there is none; {_REPAIR}"
    try:
        with store.reading() as found:
            damage = found.damage()
    except DamagedIndexError as error:
        return str(error)
    return None if damage is None else f"it is damaged ({damage}); {_REPAIR}"


def _problem(store: Store, digest: str, folder: Path, removed: bool, *, indexed: bool) -> Problem | None:
    """What is wrong with one adapter."""
    noted = None
    if indexed:
        with store.reading() as found:
            noted = found.get(digest)
    name = noted[0].name if noted else None
    try:
        record = _sound(folder, digest)
    except FormatError as error:
        advice = "add the adapter again from a copy, or remove and prune it"
        return Problem("damaged", name, digest, folder, f"{error}; {advice}")
    name = record.manifest.name
    if indexed and noted is None:
        return Problem("stray", name, digest, folder, f"it is not in the index: a process was killed; {_REPAIR}")
    if noted is not None and noted != (record.manifest, removed):
        return Problem("index", name, digest, folder, f"the index says other than the adapter's folder; {_REPAIR}")
    return None


def _settled(store: Store, problems: list[Problem]) -> list[Problem]:
    """Without what only looked wrong, between the two halves of another process's change."""
    doubtful = [problem for problem in problems if problem.digest and problem.sort in ("stray", "index", "missing")]
    if not doubtful:
        return problems
    fine = []
    try:
        with store.changing() as change:  # nobody is in the middle of one
            fine = [problem for problem in doubtful if _agrees(store, change.index, problem.digest or "")]
    except FormatError:
        if os.access(store.root, os.W_OK):
            raise
        # Where nothing can be written, nobody is writing.
    return [problem for problem in problems if problem not in fine]


def _agrees(store: Store, found: Index, digest: str) -> bool:
    """Whether the index and the folders say the same of an adapter."""
    noted = found.get(digest)
    places = [store.objects.place(digest, removed=removed) for removed in (False, True)]
    if noted is None or [place.exists() for place in places] != [not noted[1], noted[1]]:
        return noted is None and not any(place.exists() for place in places)
    try:
        return Record.read(places[noted[1]]).manifest == noted[0]
    except FormatError:
        return False


def _missing(store: Store) -> list[Problem]:
    """Adapters that are in the index alone."""
    with store.reading() as found:
        noted = found.everything()
    message = "its folder is gone; add the adapter again from a copy, or let --repair forget it"
    places = {digest: store.objects.place(digest, removed=removed) for digest, (_, removed) in noted.items()}
    return [
        Problem("missing", noted[digest][0].name, digest, place, message)
        for digest, place in places.items()
        if not place.exists()
    ]


def _sound(folder: Path, digest: str) -> Record:
    """The record of an adapter whose files are what was written.

    Raises:
        FormatError: they are not; the message names the file.
    """
    record = Record.read(folder)
    try:
        found = file_sums(folder)
    except OSError as error:
        raise FormatError(f"{folder} cannot be read: {error.strerror or error}") from error
    for name in sorted(record.files.keys() | found.keys()):
        if name not in found:
            raise FormatError(f"{folder / name} is missing")
        if name not in record.files:
            raise FormatError(f"{folder / name} does not belong there")
        if found[name] != record.files[name]:
            raise FormatError(f"{folder / name} is not what was written there: its sha256 is another")
    value = digest_of(load(folder))
    if not value == digest == record.manifest.digest:
        raise FormatError(f"{folder} holds another adapter: its digest is {value}")
    return record


def _record(store: Store, folder: Path, digest: str, noted: tuple[Manifest, bool] | None) -> Record | None:
    """An adapter's record, made again if it is damaged; None if the adapter itself is too.

    Raises:
        NewerRecordError: a newer weft wrote it.
    """
    try:
        record = Record.read(folder)
        if record.manifest.digest == digest:
            return record
    except NewerRecordError:
        raise
    except FormatError:
        pass
    try:
        adapter = load(folder)
    except FormatError:
        return None
    if digest_of(adapter) != digest:
        return None
    base = None if adapter.base is None else adapter.base.to_dict()
    manifest = noted[0] if noted is not None else manifest_of(adapter, digest, f"adapter-{digest[:8]}")
    record = Record(manifest, file_sums(folder), sketch(adapter), base)
    store.objects.describe(folder, record)
    return record
