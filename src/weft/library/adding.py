"""Putting an adapter into a library: read, checked, written aside, and moved to its place in one step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weft.digest import digest as digest_of
from weft.errors import ConfigError, FormatError
from weft.formats import load
from weft.library.base import row_of_base
from weft.library.describe import Source, manifest_of, require_finite
from weft.library.manifest import Manifest, checked_name, checked_tags
from weft.library.record import Record, file_sums
from weft.library.sketch import sketch
from weft.library.store import Change, Store


@dataclass(frozen=True)
class Addition:
    """What adding came to.

    Attributes:
        manifest: what the library says of the adapter now.
        new: whether it was not in the library before.
        mended: whether it was, with damaged files, which are whole now.
        replaced: what had the name before, and is in the trash now.
    """

    manifest: Manifest
    new: bool
    mended: bool = False
    replaced: Manifest | None = None


def add(
    store: Store,
    source: Source,
    name: str | None,
    tags: tuple[str, ...],
    given: Mapping[str, Any],
    *,
    take_name: bool,
) -> Addition:
    """See `Library.add`.

    Args:
        store: where to.
        source: what to add.
        name: what to call it; None for what its source is called.
        tags: its tags.
        given: fields of the manifest, in place of what the source says.
        take_name: whether another adapter of that name goes to the trash.
    """
    if name is None and source.name is None:
        raise ConfigError("name: an adapter that comes from no file needs one")
    chosen = checked_name(name or source.name or "")
    require_finite(source.adapter)
    with store.disk_errors(), store.objects.staged() as new, store.objects.staged() as aside:
        source.adapter.save(new)
        adapter = load(new)  # what counts is what is on the disk
        manifest = replace(manifest_of(adapter, digest_of(adapter), chosen), **source.noted())
        manifest = replace(manifest, **{"created": manifest.created or manifest.added, "tags": tags, **given})
        base = None if adapter.base is None else adapter.base.to_dict()
        record = Record(manifest, file_sums(new), sketch(adapter), base)
        record.write(new)
        with store.changing() as change:
            present = change.index.get(manifest.digest)
            if present is not None and not present[1]:
                merged = replace(present[0], tags=checked_tags([*present[0].tags, *tags]), **given)
                return _add_again(change, present[0], name, replace(record, manifest=merged), new, aside)
            taken = change.index.named(chosen)
            other = change.index.get(taken) if taken else None
            if other is not None and not take_name:
                raise ConfigError(
                    f"name: {chosen!r} is another adapter in the library at {store.root} (digest "
                    f"{other[0].digest[:8]}, added {other[0].added[:10]}); choose another with --name, or pass "
                    "--replace (replace=True) to put that one into the trash"
                )
            if other is not None:
                change.to_trash(other[0])
            aside.mkdir()
            for leftover in (False, True):  # in the trash; or, of a process that was killed, at the very place
                folder = store.objects.place(manifest.digest, removed=leftover)
                if folder.exists():
                    change.move(folder, aside / str(leftover))
            change.index.forget(manifest.digest)
            change.index.add(manifest, base=row_of_base(change.index, adapter.base), sketch=record.sketch)
            change.move(new, store.objects.place(manifest.digest))
    return Addition(manifest, new=True, replaced=other[0] if other else None)


def _add_again(change: Change, present: Manifest, name: str | None, record: Record, new: Path, aside: Path) -> Addition:
    """What adding comes to where the adapter is in the library: new facts are noted, damaged files replaced."""
    if name is not None and name != present.name:
        raise ConfigError(
            f"name: this adapter is in the library at {change.store.root} already, as {present.name!r}; "
            f"`weft library tag {present.name} --rename {name}` renames it"
        )
    folder = change.store.objects.place(present.digest)
    sound = _is_sound(folder)
    if not sound:
        record.write(new)
        if folder.exists():
            change.move(folder, aside)
        change.move(new, folder)
        change.index.change(record.manifest)
    elif record.manifest != present:
        change.note(record.manifest)
    return Addition(record.manifest, new=False, mended=not sound)


def _is_sound(folder: Path) -> bool:
    try:
        return dict(Record.read(folder).files) == file_sums(folder)
    except (FormatError, OSError):
        return False
